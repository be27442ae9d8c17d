"""A transfer's folder and section: what a step on one direction does to the loss of every other.

Pairs of directions are compared by kind, as `neurons.pairs` has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import TRANSFER
from neuron_spec.neurons.pairs import Compared
from neuron_spec.pages.family_tests import FAMILY_HEADER, FAMILY_P, family_cells, overlap_tests
from neuron_spec.pages.heatmap import direction_maps
from neuron_spec.pages.page import Block, Paragraph, Picture, Section, Table, not_computed
from neuron_spec.pages.study_page import StudyPage
from neuron_spec.pages.style import drawn
from neuron_spec.pages.tables import Cell, counted, csv_text, percent, signed
from neuron_spec.studies.transfer.measure import Transfer, summarize_transfer

TRANSFER_JSON = f"{TRANSFER}.json"
TRANSFER_TABLE = f"{TRANSFER}.md"
CAPTION = "Change of every direction's loss by a step on another"

_ABOUT = (
    "How the validation loss of every direction changes, in nats per target token, when the model takes steps of gradient "
    "descent on the training text of one: negative where that helps. The gradient is scaled to one length, so that "
    "directions are comparable. No dropout, no label smoothing.",
    "*Own*: change of the direction that was stepped on; *others*: of the others of the kind; *over own gain*: mean of "
    "each change over what the row's own direction gained, -1 where the other gained as much; *harmed*: the share of "
    f"pairs whose loss rose. *Same family*, *other families*: mean gain, both ways, of such pairs. {FAMILY_P}",
)


def write_transfer(
    folder: Path,
    compared: Compared,
    transfer: Transfer,
    made: Mapping[str, Any],
    *,
    seed: int,
    normalize_rows: bool = False,
) -> None:
    """Write ``transfer.csv``, ``.md``, the figure and, last, ``transfer.json``.

    Args:
        made: the signature.
        seed: of random relabellings.
        normalize_rows: draw changes over what the row's own direction gains.
    """
    figure = direction_maps(
        {"": transfer.relative if normalize_rows else 1000 * transfer.change},
        compared.directions,
        compared.family_of,
        title="Change of a direction's loss by a step on another",
        label="change, over the row's own gain"
        if normalize_rows
        else "change (thousandths of a nat per token)",
        rows="step on",
        columns="validation loss of",
        positive_is_red=True,
    )
    numbers = summarize_transfer(compared, transfer, seed=seed)
    PAGE.write(folder, numbers, made, [drawn(TRANSFER, CAPTION, figure)], transfer_csv(compared, transfer))


def transfer_csv(compared: Compared, transfer: Transfer) -> str:
    """One line per direction that is stepped on and direction that is measured."""

    def rows() -> Iterator[tuple[object, ...]]:
        relative = transfer.relative
        for i, stepped in enumerate(compared.names):
            for j, name in enumerate(compared.names):
                intact, after = transfer.intact[j].item(), transfer.after[i, j].item()
                ratio = None if relative[i, j].isnan() else f"{relative[i, j].item():.6f}"
                yield stepped, name, f"{intact:.6f}", f"{after:.6f}", f"{after - intact:.8f}", ratio

    return csv_text(("step_on", "direction", "intact", "after", "change", "relative"), rows())


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    lr, steps = (content["signature"]["parameters"][key] for key in ("lr", "steps"))
    families = content["families"]
    header = ("pairs", "number", "own", "others", "over own gain", "harmed", *FAMILY_HEADER)
    blocks: list[Block] = [
        Paragraph(
            f"{counted(steps, 'step')} on each direction, {lr:g} long, beside parameters of length "
            f"{content['parameter_norm']:.1f}."
        ),
        Table(header, [_row(kind, of, families.get(kind)) for kind, of in content["groups"].items()]),
        *not_computed((kind, test["reason"]) for kind, test in families.items()),
        *pictures.values(),
    ]
    return Section("", blocks, overlap_tests(content["overlap"], "gain"))


def _row(kind: str, pairs: Mapping[str, Any], family_test: Mapping[str, Any] | None) -> list[Cell]:
    return [
        kind,
        pairs["pairs"],
        signed(pairs["own"], 5),
        signed(pairs["others"], 5),
        signed(pairs["relative"]),
        percent(pairs["harmed_fraction"]),
        *family_cells(family_test, 5),
    ]


PAGE = StudyPage(
    name=TRANSFER,
    title="Transfer between directions",
    csv=f"{TRANSFER}.csv",
    csv_holds="pair",
    show=_show,
    about=[*map(Paragraph, _ABOUT)],
    captions={TRANSFER: CAPTION},
)
section = PAGE.section
