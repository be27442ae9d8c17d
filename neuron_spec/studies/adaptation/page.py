"""What an adaptation shows: BLEU and chrF++ (0-100) against the number of shots, on its own page and in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from neuron_spec.artifacts import ADAPTATION, read_json, recorded_command, write_text
from neuron_spec.directions import Direction
from neuron_spec.forms import require_form
from neuron_spec.pages.curves import Point, line_panels
from neuron_spec.pages.page import (
    Block,
    Bullets,
    Page,
    Paragraph,
    Section,
    Table,
    again,
    as_markdown,
    left_in,
    plain,
    write_pictures,
)
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell
from neuron_spec.scoring.endpoints import OF_TEXTS
from neuron_spec.scoring.evaluation import ALL

TITLE = "Adaptation to few training sentences"
_CAPTION = "BLEU and chrF++ against the number of shots"
_ABOUT = (
    "Scores against the number of training sentences (shots) of directions that a copy of the model learns; 0 shots "
    "is the model as it is."
)

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Direction -> shots -> ``bleu`` and ``chrf``."""


def write_adaptation(output: Path, signatures: Sequence[str]) -> Path:
    """Write ``adaptation.png``, ``.svg`` and, last, ``.md``, whose path is returned, from ``adaptation.json``.

    Args:
        signatures: sacreBLEU's, of all scores.
    """
    content = _read(output)
    picture = drawn(ADAPTATION, _CAPTION, curves(_scores_in(content)))
    write_pictures(output, [picture])
    updates = content["updates"]
    known = [name for name, of in content["directions"].items() if of["in_training"]]
    notes = [
        f"{updates['steps']} updates of {updates['optimizer']} at rate {updates['rate']:g}, each on a batch of up to "
        f"{updates['max_tokens']} tokens, seed {updates['seed']}.",
        "Updates are by the loss of the text"
        + (", without the language token." if content.get("loss") == "text" else " and its language token."),
        "One draw of sentences for each direction: another seed gives other scores, the more so the fewer the shots.",
        f"In the model's own training: {', '.join(known) or 'none of these directions'}.",
        f"All directions as one evaluation, for `neuron-spec compare`: `{ALL}/` and the number of shots.",
        *(f"`{signature}`" for signature in signatures),
    ]
    sections = [Section("Scores", [picture, *_blocks(content)]), Section("How", [Bullets(notes)])]
    page = Page(TITLE, [Paragraph(_ABOUT)], sections)
    write_text(output / f"{ADAPTATION}.md", as_markdown(page, figures=""))
    return output / f"{ADAPTATION}.md"


def section(folders: Mapping[str, Path]) -> Section:
    """The scores of each folder, for a report.

    Raises:
        ArtifactError: if one is not as neuron-spec adapt writes it now.
    """
    sections = []
    for name, folder in folders.items():
        content = _read(folder)
        picture = left_in(folder, ADAPTATION, name.replace("/", "-"), _CAPTION)
        more = again(recorded_command(content, folder), f"{name}/{ADAPTATION}.md")
        sections.append(Section(name, [*_blocks(content), *picture, *more]))
    return Section(TITLE, [Paragraph(_ABOUT)], sections)


_FORM = {
    "checkpoint_sha256": str,
    "updates": {},
    "subset": str,
    "references": str,
    "fairseq_flags": [str],
    "borrow": {str: str},
    "borrowed": {str: str},
    "directions": {str: {"shots": {str: {**{endpoint.key: float for endpoint in OF_TEXTS}}}}},
    "command?": (str, None),
}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / f"{ADAPTATION}.json"
    content = read_json(path, "adaptation")
    mend = "give the same neuron-spec adapt again: it keeps what is complete, and writes this file anew"
    require_form(content, _FORM, "an adaptation", path, mend=mend)
    return dict(content)


def _scores_in(content: Mapping[str, Any]) -> Scores:
    return {direction: of["shots"] for direction, of in content["directions"].items()}


def _blocks(content: Mapping[str, Any]) -> list[Block]:
    columns = {endpoint.key: f"{endpoint.title}, " for endpoint in OF_TEXTS}
    blocks: list[Block] = [table(_scores_in(content), columns)]
    borrowed = [f"{direction} through those of {lender}" for direction, lender in content["borrowed"].items()]
    if borrowed:
        blocks.append(Paragraph(plain(f"Masks are borrowed: {', '.join(borrowed)}.")))
    return blocks


def table(scores: Scores, metrics: Mapping[str, str]) -> Table:
    """A row per direction and the mean over directions; for each metric a column per number of shots.

    Args:
        metrics: ``bleu``, ``chrf`` -> what the names of its columns begin with.
    """
    columns = [(metric, shots) for metric in metrics for shots in next(iter(scores.values()))]
    lines = {name: [of[shots][metric] for metric, shots in columns] for name, of in scores.items()}
    if len(lines) > 1:
        lines["mean"] = [fmean(column) for column in zip(*lines.values(), strict=True)]
    rows: list[list[Cell]] = [[name, *line] for name, line in lines.items()]
    return Table(("direction", *(f"{metrics[metric]}{shots} shots" for metric, shots in columns)), rows)


def curves(scores: Scores) -> Figure:
    """A panel per metric, a line per direction; numbers of shots stand at equal distances."""
    panels = {
        endpoint.title: {
            Direction.parse(name).arrow: {float(n): Point(at[endpoint.key]) for n, at in of.items()}
            for name, of in scores.items()
        }
        for endpoint in OF_TEXTS
    }
    shots = {float(n): f"{int(n):,}" for n in next(iter(scores.values()))}
    title, label = "Scores against shots", "training sentences (shots)"
    return line_panels([panels], title=title, label=label, ticks=shots, zero="bottom")
