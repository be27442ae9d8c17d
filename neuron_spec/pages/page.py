"""What a page says, before it is Markdown (here) or HTML (`reporting.html`).

Paragraphs, items and captions are our own words with three of Markdown's marks: ``*emphasis*``, ``**strong**``
and `` `code` ``. Whatever comes from outside (names, paths, translations) passes through `plain` before it
is put between them. Titles, cells and code are taken literally.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron_spec.pages.tables import Cell, markdown_table, shown

FIGURES = "figures"

# A mark between letters, as in neuron_spec, is none.
_MARKS = re.compile(r"[\\`*\[\]<&~$]|(?<!\w)_|_(?!\w)")


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


def plain(text: str) -> str:
    """``text`` for use in a paragraph: what would be a mark gets a backslash."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def pictures(page: Page) -> Iterator[Picture]:
    """All figures of a page, in their order."""

    def below(section: Section | Page) -> Iterator[Picture]:
        yield from (block for block in section.blocks if isinstance(block, Picture))
        for inner in section.sections:
            yield from below(inner)

    return below(page)


def as_markdown(page: Page) -> str:
    """The page with its figures as files below ``figures/``."""
    parts = [f"# {plain(page.title)}", *map(_block, page.blocks)]
    for section in page.sections:
        parts += _section(section, level=2)
    return "\n\n".join(parts) + "\n"


def _section(section: Section, level: int) -> list[str]:
    parts = [f"{'#' * level} {plain(section.title)}", *map(_block, section.blocks)]
    for inner in section.sections:
        parts += _section(inner, level + 1)
    return parts


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows):
            return markdown_table([plain(name) for name in header], [[_cell(c) for c in row] for row in rows])
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}bash\n{text}\n{fence}"
        case Picture(name, caption):
            return f"![{caption}]({FIGURES}/{name}.png)"


def _cell(cell: Cell) -> Cell:
    return plain(shown(cell)) if isinstance(cell, str) else cell
