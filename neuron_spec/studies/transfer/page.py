"""Transfer between directions: numbers, table, page and figure.

Pairs of directions are compared by kind, as `neurons.pairs` has them.

Axis letters: D directions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import TRANSFER, read_json, recorded_command, write_json, write_text
from neuron_spec.neurons.pairs import Compared
from neuron_spec.pages import style
from neuron_spec.pages.heatmap import direction_maps
from neuron_spec.pages.page import Paragraph, Section, Table, again, left_in
from neuron_spec.pages.pairs import (
    FAMILY_HEADER,
    families_table,
    family_cells,
    how,
    mean_known,
    overlap_table,
    square_table,
)
from neuron_spec.pages.tables import Cell, markdown_table, percent, signed

TRANSFER_JSON = f"{TRANSFER}.json"
TRANSFER_CSV = f"{TRANSFER}.csv"
TRANSFER_TABLE = f"{TRANSFER}.md"
TRANSFER_FIGURE = TRANSFER


@dataclass(frozen=True)
class Transfer:
    """Losses before and after steps.

    Attributes:
        tokens: target tokens of each direction's validation text.
        intact: float64 `[D]`, nats per token before.
        after: float64 `[D, D]`, after steps on the direction of the row, of that of the column.
        norm: the length of the parameters, beside which a step is small.
    """

    tokens: Sequence[int]
    intact: Tensor
    after: Tensor
    norm: float

    @property
    def change(self) -> Tensor:
        """float64 `[D, D]`, nats per token; negative = transfer helps."""
        return self.after - self.intact

    @property
    def relative(self) -> Tensor:
        """float64 `[D, D]`, change over what the row's own direction gains: -1 on the diagonal.

        NaN in rows whose own direction gains nothing.
        """
        gain = -self.change.diagonal()
        return self.change / gain.where(gain > 0, torch.nan)[:, None]


def summarize_transfer(compared: Compared, transfer: Transfer, *, seed: int) -> dict[str, Any]:
    """What stands in ``transfer.json``."""
    names, change = compared.names, transfer.change
    own = change.diagonal()
    groups = {}
    for words, pairs in compared.pairs().items():
        rows = pairs.any(dim=1)
        groups[words] = {
            "pairs": int(pairs.sum()),
            "own": mean_known(own[rows]),
            "others": mean_known(change[pairs]),
            "relative": mean_known(transfer.relative[pairs]),
            "harmed_fraction": mean_known((change[pairs] > 0).double()),
        }
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, transfer.tokens, strict=True)),
        "parameter_norm": transfer.norm,
        "intact": dict(zip(names, transfer.intact.tolist(), strict=True)),
        "change": square_table(names, change),
        "relative": square_table(names, transfer.relative),
        "groups": groups,
        "families": compared.family_tests(-change, seed),
        "overlap": compared.overlap_tests(-change, seed),
    }


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
        normalize_rows: draw changes over what the row's own direction gains.
    """
    found = summarize_transfer(compared, transfer, seed=seed)
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
    for kind in ("png", "svg"):
        style.save(figure, folder / f"{TRANSFER_FIGURE}.{kind}")
    write_text(folder / TRANSFER_CSV, transfer_csv(compared, transfer))
    write_text(folder / TRANSFER_TABLE, transfer_markdown(found, made))
    write_json(folder / TRANSFER_JSON, {"signature": dict(made), **found})


def transfer_csv(compared: Compared, transfer: Transfer) -> str:
    """One line per direction that is stepped on and direction that is measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step_on", "direction", "intact", "after", "change", "relative"))
    names, relative = compared.names, transfer.relative
    for i, stepped in enumerate(names):
        for j, name in enumerate(names):
            intact, after = transfer.intact[j].item(), transfer.after[i, j].item()
            ratio = relative[i, j].item()
            writer.writerow(
                (stepped, name, f"{intact:.6f}", f"{after:.6f}", f"{after - intact:.8f}", "" if ratio != ratio else f"{ratio:.6f}")
            )  # fmt: skip
    return text.getvalue()


def transfer_markdown(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The page ``transfer.md``.

    Args:
        found: what stands in ``transfer.json``.
    """
    rows: list[list[Cell]] = []
    for kind, own in found["groups"].items():
        share = own["harmed_fraction"]
        rows.append(
            [
                kind,
                own["pairs"],
                signed(own["own"], 5),
                signed(own["others"], 5),
                signed(own["relative"]),
                None if share is None else f"{100 * share:.0f}%",
            ]
        )
    lr, steps = (made["parameters"][key] for key in ("lr", "steps"))
    parts = [
        "# Transfer between directions",
        "How the validation loss of every direction changes, in nats per target token, when the model takes "
        f"{steps} step{'s' if steps > 1 else ''} of gradient descent on the training text of one: negative where that "
        f"helps. Each step is {lr:g} long, beside parameters of length {found['parameter_norm']:.1f}: the gradient is "
        "scaled to one length, so that directions are comparable. No dropout, no label smoothing.",
        markdown_table(("pairs", "number", "own", "others", "over own gain", "harmed"), rows),
        "*Own*: change of the direction that was stepped on; *others*: of the others of the kind; *over own gain*: mean "
        "of each change over what the row's own direction gained, -1 where the other gained as much; *harmed*: the "
        "share of pairs whose loss rose.",
        f"![Change of every direction's loss]({TRANSFER_FIGURE}.png)",
        "## Families\n\n" + families_table({"gain": found["families"]}, decimals=5),
    ]
    if found["overlap"]:
        parts.append(overlap_table(found["overlap"], "gain"))
    parts.append("## How it was made\n\n" + how("transfer", made, TRANSFER_CSV, TRANSFER_JSON))
    return "\n\n".join(parts) + "\n"


# In a report ----------------------------------------------------------------------------------


def section(folders: Mapping[str, Path]) -> Section:
    """The headline numbers of each folder."""
    text = (
        "How validation losses change, in nats per target token, by a step on the training text of one direction: "
        "negative where it helps. *Own*: of that direction; *others*: of the others of the kind; *harmed*: the share of "
        "pairs whose loss rose. Beside the families, the gain; p: whether one's own family gains more; one-sided."
    )
    return Section(
        "Transfer between directions", [Paragraph(text)], [_headline(*each) for each in folders.items()]
    )


def _headline(name: str, folder: Path) -> Section:
    found = read_json(folder / TRANSFER_JSON, "transfer")
    rows: list[list[Cell]] = [
        [
            kind,
            values["pairs"],
            signed(values["own"], 5),
            signed(values["others"], 5),
            percent(values["harmed_fraction"]),
            *family_cells(found["families"].get(kind), 5),
        ]
        for kind, values in found["groups"].items()
    ]
    caption = "Change of every direction's loss by a step on another"
    return Section(
        name,
        [
            Table(("pairs", "number", "own", "others", "harmed", *FAMILY_HEADER), rows),
            *left_in(folder, TRANSFER, f"{name.replace('/', '-')}-{TRANSFER}", caption),
            *again(recorded_command(found["signature"], folder), f"{name}/{TRANSFER_TABLE}"),
        ],
    )
