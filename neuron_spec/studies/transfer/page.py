"""A transfer's folder and section: what a step on one direction does to the loss of every other.

Pairs of directions are compared by kind, as `neurons.pairs` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_spec.neurons.pairs import Compared, plain_values
from neuron_spec.pages.heatmap import direction_maps
from neuron_spec.pages.page import Block, Paragraph, Picture, Section, Table
from neuron_spec.pages.study_page import (
    FAMILY_FORM,
    FAMILY_HEADER,
    FAMILY_P,
    KNOWN,
    OVERLAP_FORM,
    StudyPage,
    family_cells,
    form,
    loss_said,
    overlap_tests,
    reasons_of,
)
from neuron_spec.pages.tables import Cell, counted, csv_text, percent, signed
from neuron_spec.studies.transfer.measure import Transfer, summarize_transfer

_ABOUT = (
    "How the validation loss of every direction changes, in nats per token, when the model takes steps of gradient "
    "descent on the training text of one: negative where that helps. The gradient is scaled to one length, so that "
    "directions are comparable. No dropout, no label smoothing.",
    "*Own*: change of the direction that was stepped on; *others*: of the others of the kind; *over own gain*: mean of "
    "each change over what the row's own direction gained, -1 where the other gained as much; *harmed*: the share of "
    f"pairs whose loss rose. *Same family*, *other families*: mean gain, both ways, of such pairs. {FAMILY_P}",
)


def write_transfer(
    folder: Path, compared: Compared, transfer: Transfer, made: Mapping[str, Any], *, seed: int
) -> None:
    """Write ``transfer.csv``, ``.md``, the figure and, last, ``transfer.json``.

    Args:
        made: the signature; by its ``normalize_rows`` changes are drawn over what the row's own direction gains.
        seed: of random relabellings.
    """
    is_relative = made["parameters"]["normalize_rows"]
    label = "change, over the row's own gain" if is_relative else "change (thousandths of a nat per token)"
    figure = direction_maps(
        {"": transfer.relative if is_relative else 1000 * transfer.change},
        compared.directions,
        compared.family_of,
        title="Change of a direction's loss by a step on another",
        label=label,
        rows="step on",
        columns="validation loss of",
        positive_is_red=True,
    )
    rows: list[tuple[object, ...]] = []
    for i, stepped in enumerate(compared.names):
        for j, name in enumerate(compared.names):
            intact, after = transfer.intact[j].item(), transfer.after[i, j].item()
            (ratio,) = plain_values(transfer.relative[i, j, None])
            of_pair = f"{intact:.6f}", f"{after:.6f}", f"{after - intact:.8f}"
            rows.append((stepped, name, *of_pair, None if ratio is None else f"{ratio:.6f}"))
    table = csv_text(("step_on", "direction", "intact", "after", "change", "relative"), rows)
    numbers = summarize_transfer(compared, transfer, seed=seed)
    PAGE.write(folder, numbers, made, {"transfer": figure}, table)


def _show(content: Mapping[str, Any], pictures: Mapping[str, Picture]) -> Section:
    lr, steps = (content["signature"]["parameters"][key] for key in ("lr", "steps"))
    families = content["families"]
    rows: list[list[Cell]] = [
        [
            kind,
            pairs["pairs"],
            signed(pairs["own"], 5),
            signed(pairs["others"], 5),
            signed(pairs["relative"]),
            percent(pairs["harmed_fraction"]),
            *family_cells(families.get(kind), 5),
        ]
        for kind, pairs in content["groups"].items()
    ]
    blocks: list[Block] = [
        Paragraph(
            f"{counted(steps, 'step')} on each direction, {lr:g} long, beside parameters of length "
            f"{content['parameter_norm']:.1f}."
        ),
        loss_said(content["signature"]),
        Table(("pairs", "number", "own", "others", "over own gain", "harmed", *FAMILY_HEADER), rows),
        *reasons_of(families),
        *pictures.values(),
    ]
    return Section("", blocks, overlap_tests(content["overlap"], "gain"))


_KIND = {"pairs": int, **dict.fromkeys(("own", "others", "relative", "harmed_fraction"), KNOWN)}
PAGE = StudyPage(
    name="transfer",
    title="Transfer between directions",
    csv="transfer.csv",
    csv_holds="pair",
    show=_show,
    about=_ABOUT,
    form=form(
        {
            "parameter_norm": float,
            "groups": {str: _KIND},
            "families": {str: FAMILY_FORM},
            "overlap": {str: OVERLAP_FORM},
        },
        lr=float,
        steps=int,
    ),
    captions={"transfer": "Change of every direction's loss by a step on another"},
)
section = PAGE.section
