"""What a page says, before it is Markdown (here) or HTML (`pages.html`).

Paragraphs, items and captions are our own words with three of Markdown's marks: ``*emphasis*``, ``**strong**``
and `` `code` ``. Whatever comes from outside (names, paths, translations) passes through `plain` before it
is put between them. Titles, cells and code are taken literally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import atomic_path
from neuron_spec.pages.tables import Cell, markdown_table
from neuron_spec.pages.tables import plain as plain

FIGURES = "figures"
DPI = 150  # of figures


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table; one of running text, such as translations, has no order that a reader could want to change."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_text: bool = False


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure; ``name`` is that of its file without folder and ending."""

    name: str
    caption: str
    png: bytes
    svg: bytes | None = None


Block = Paragraph | Bullets | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """``is_folded``: details, which a writer may show only when asked."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class Page:
    title: str
    blocks: Sequence[Block]
    sections: Sequence[Section]


def left_in(folder: Path, figure: str, name: str, caption: str) -> list[Picture]:
    """The figure that a command left in its folder, if it did; ``name`` tells it from other folders' on the page."""
    path = folder / f"{figure}.png"
    return [Picture(name, caption, path.read_bytes())] if path.is_file() else []


def again(command: str | None, page: str | None = None) -> list[Block]:
    """Where more stands, and the command that makes it again; None of what was made before commands were recorded."""
    texts = [f"In full: *{plain(page)}*."] if page else []
    if command is None:
        return [Paragraph(text) for text in texts]
    return [Paragraph(" ".join([*texts, "Again:"])), Code(command)]


def not_computed(reasons: Iterable[tuple[str, str | None]]) -> list[Block]:
    """Why numbers are missing: pairs of a place and its reason, None where nothing is; what places share is said once."""
    places: dict[str, list[str]] = {}
    for place, reason in dict.fromkeys(reasons):
        if reason:
            places.setdefault(reason, []).append(place)
    where = {reason: "; ".join(of) if len(of) < 5 else f"{len(of)} lines" for reason, of in places.items()}
    items = [plain(f"{reason} ({of})") for reason, of in where.items()]
    return [Paragraph("Not computed:"), Bullets(items)] if items else []


def how_it_was_made(made: Mapping[str, Any], files: str) -> Section:
    """From what, by which command, with which parameters and versions.

    Args:
        made: the signature.
        files: a sentence about where more stands.
    """
    parameters = {name: of for name, of in made["parameters"].items() if isinstance(of, (str, int, float))}
    text = f"Stage: {plain(made['stage'])}. Parameters: {plain(parameters_text(parameters))}. {files}"
    blocks: list[Block] = [
        Paragraph(text),
        Table(("made from", "sha256"), [[name, str(value)] for name, value in made["inputs"].items()]),
        Paragraph(f"Versions: {plain(versions_text(made))}."),
    ]
    command = [Code(made["command"])] if made.get("command") else []
    return Section("How it was made", [*command, *blocks], is_folded=True)


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """``beam 5; subset test``."""
    return "; ".join(f"{name}: {_parameter(value)}" for name, value in parameters.items()) or "none known"


def versions_text(made: Mapping[str, Any]) -> str:
    """Of a signature; empty if it has none."""
    return ", ".join(f"{name} {version}" for name, version in sorted(made.get("versions", {}).items()))


def _parameter(value: Any) -> str:
    """What holds for every direction alike is said once."""
    if isinstance(value, Mapping):
        inner = {name: _parameter(of) for name, of in value.items()}
        if len(inner) > 1 and len(set(inner.values())) == 1:
            return f"{next(iter(inner.values())).removesuffix(' (all)')} (all)"
        return ", ".join(f"{name} {of}" for name, of in inner.items())
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def pictures(of: Page | Section) -> Iterator[Picture]:
    """All figures of a page, in their order."""
    yield from (block for block in of.blocks if isinstance(block, Picture))
    for section in of.sections:
        yield from pictures(section)


def write_pictures(folder: Path, pictures: Iterable[Picture], kinds: Sequence[str] = ("png", "svg")) -> None:
    """Write figures into a folder, in those of the kinds that they have."""
    for picture in pictures:
        for kind in kinds:
            if drawn := getattr(picture, kind):
                with atomic_path(folder / f"{picture.name}.{kind}") as temporary:
                    temporary.write_bytes(drawn)


def as_markdown(page: Page, figures: str = FIGURES) -> str:
    """The page; its figures are files in the folder ``figures`` beside it, or in its own where that is empty."""
    return "\n\n".join(_parts(page, 1, f"{figures}/" if figures else "")) + "\n"


def _parts(of: Page | Section, level: int, figures: str) -> Iterator[str]:
    yield f"{'#' * level} {plain(of.title)}"
    for block in of.blocks:
        match block:
            case Paragraph(text):
                yield text
            case Bullets(items):
                yield "\n".join(f"- {item}" for item in items)
            case Table(header, rows):
                yield markdown_table(header, rows)
            case Code(text):
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                yield f"{fence}bash\n{text}\n{fence}"
            case Picture(name, caption):
                yield f"![{caption}]({figures}{name}.png)"
    for section in of.sections:
        yield from _parts(section, level + 1, figures)
