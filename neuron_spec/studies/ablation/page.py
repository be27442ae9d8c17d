"""What an ablation shows: whether a direction loses more by its own neurons than by those of others.

`summarize` gives the numbers as they stand in ``ablation.json``; `write_ablation` adds table, page and
figure. Losses are nats per target token; a change is the loss without the neurons minus the loss with
all. What cannot be computed is None, with the reason beside it.

Axis letters: S sets, D evaluated directions, n directions of one group.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import read_json, recorded_command, write_json, write_text
from neuron_spec.directions import GROUPS, Direction, family_of
from neuron_spec.pages import style
from neuron_spec.pages.heatmap import loss_increase_heatmap
from neuron_spec.pages.page import Paragraph, Section, Table, again, left_in
from neuron_spec.pages.tables import Cell, markdown_table, shown_p, signed
from neuron_spec.statistics import (
    NothingToCompare,
    PermutationTest,
    diagonal_test,
    family_contrast,
    permutation_test,
)

ABLATION_JSON = "ablation.json"
ABLATION_CSV = "ablation.csv"
ABLATION_TABLE = "ablation.md"
FIGURE = "ablation"

_SPECIALIZED = (
    "The checkpoint is specialized: a direction runs without the neurons that it drops anyway, so that the "
    "sets of others can cost it little."
)


@dataclass(frozen=True)
class Ablation:
    """The losses of an ablation.

    Attributes:
        directions: the D directions that were evaluated.
        tokens: target tokens of each.
        owners: whose neurons were switched off, S directions or languages.
        own: the row of each direction's own set; None where it has none, or several.
        intact: float64 `[D]`, the loss with all neurons.
        without: float64 `[S, D]`, without those of each owner.
        without_random: float64 `[draws, D]`, without as many random ones.
        families: language -> family; None: those of the language table.
    """

    directions: Sequence[Direction]
    tokens: Sequence[int]
    owners: Sequence[str]
    own: Sequence[int | None]
    intact: Tensor
    without: Tensor
    without_random: Tensor
    families: Mapping[str, str] | None = field(default=None)

    @property
    def change(self) -> Tensor:
        """float64 `[S, D]`."""
        return self.without - self.intact

    @property
    def random_change(self) -> Tensor:
        """float64 `[D]`, the mean over draws; NaN without any."""
        return self.without_random.mean(dim=0) - self.intact

    def family(self, code: str) -> str:
        return family_of(code, self.families)


# The numbers ----------------------------------------------------------------------------------


def summarize(ablation: Ablation, *, seed: int) -> dict[str, Any]:
    """Everything that stands in ``ablation.json``, without signature and the neurons' numbers.

    Args:
        seed: of random relabellings.
    """
    groups: dict[str, Any] = {}
    for group in GROUPS:
        columns = [i for i, d in enumerate(ablation.directions) if d.group == group]
        if columns:
            groups[group.text] = _group(ablation, columns, seed)
    names = [str(direction) for direction in ablation.directions]
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, ablation.tokens, strict=True)),
        "intact": dict(zip(names, ablation.intact.tolist(), strict=True)),
        "own_set": {
            name: None if row is None else ablation.owners[row]
            for name, row in zip(names, ablation.own, strict=True)
        },
        "change": {
            owner: dict(zip(names, values, strict=True))
            for owner, values in zip(ablation.owners, ablation.change.tolist(), strict=True)
        },
        "random_change": [
            dict(zip(names, values, strict=True))
            for values in (ablation.without_random - ablation.intact).tolist()
        ],
        "groups": groups,
    }


def _group(ablation: Ablation, columns: Sequence[int], seed: int) -> dict[str, Any]:
    """Directions of one kind, and what they lose by each other's sets."""
    found: dict[str, Any] = {
        "directions": [str(ablation.directions[i]) for i in columns],
        "random": _mean(ablation.random_change[list(columns)]),
    }
    keys = ("own", "others", "own_is_largest", "p", "relabellings", "is_exact", "families", "reason")
    found |= dict.fromkeys(keys)
    rows = [row for row in (ablation.own[i] for i in columns) if row is not None]
    others = [row for row in range(len(ablation.owners)) if row not in rows]
    found["other_rows"] = _mean(ablation.change[others][:, list(columns)])
    try:
        if len(rows) < len(columns) or len(set(rows)) < len(rows):
            raise NothingToCompare("these directions share a set, or own several")
        square = ablation.change[rows][:, list(columns)]  # [n, n], own sets on the diagonal
        test = diagonal_test(square, seed=seed)
    except NothingToCompare as error:
        return found | {"reason": _line(error)}
    is_own = torch.eye(len(square), dtype=torch.bool)
    most_of_others = square.masked_fill(is_own, -torch.inf).amax(dim=0)
    return found | {
        "own": _mean(square[is_own]),
        "others": _mean(square[~is_own]),
        "own_is_largest": int((square.diagonal() > most_of_others).sum()),
        **test._asdict(),
        "families": _families(ablation, square, columns, seed),
    }


def _families(ablation: Ablation, square: Tensor, columns: Sequence[int], seed: int) -> dict[str, Any]:
    """What directions lose by the sets of relatives, and of others; `[n, n]`, own sets left out."""
    families = [ablation.directions[i].family(ablation.families) for i in columns]
    either_way = (square + square.T) / 2  # of a pair of languages; its mean is that of both ways
    try:
        same, other = family_contrast(either_way, families)
        test = permutation_test(either_way, families, seed=seed)
    except NothingToCompare as error:
        empty = dict.fromkeys(("same", "other", *PermutationTest._fields))
        return {**empty, "reason": _line(error)}
    return {"same": same, "other": other, **test._asdict(), "reason": None}


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if values.numel() and not values.isnan().any() else None


def _line(error: NothingToCompare) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


# The folder -----------------------------------------------------------------------------------


def write_ablation(
    folder: Path, ablation: Ablation, switched_off: Mapping[str, Any], made: Mapping[str, Any], *, seed: int
) -> Path:
    """Write figure, ``ablation.csv``, ``ablation.md`` and, last, ``ablation.json``: the mark of completeness.

    Args:
        switched_off: layer -> ``neurons`` (the width), ``switched_off`` (of each owner, mean) and
            ``held_by_others`` (owner -> by how many other sets such a neuron is held, mean).
        made: the signature.
    """
    found = {"switched_off": dict(switched_off), **summarize(ablation, seed=seed)}
    figure = loss_increase_heatmap(
        ablation.change,
        ablation.random_change,
        ablation.owners,
        ablation.directions,
        ablation.own,
        ablation.family,
    )
    for kind in ("png", "svg"):
        style.save(figure, folder / f"{FIGURE}.{kind}")
    write_text(folder / ABLATION_CSV, as_csv(ablation))
    write_text(folder / ABLATION_TABLE, as_markdown(found, made))
    write_json(folder / ABLATION_JSON, {"signature": dict(made), **found})
    return folder / ABLATION_JSON


def as_csv(ablation: Ablation) -> str:
    """One line per evaluated direction and what was switched off."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("direction", "switched_off", "is_own", "nats_per_token", "change"))
    rows = [("nothing", ablation.intact), *zip(ablation.owners, ablation.without, strict=True)]
    rows += [(f"random-{number}", nats) for number, nats in enumerate(ablation.without_random, start=1)]
    for i, direction in enumerate(ablation.directions):
        own = {ablation.owners[row] for row in [ablation.own[i]] if row is not None}
        for name, nats in rows:
            loss, intact = nats[i].item(), ablation.intact[i].item()
            writer.writerow((direction, name, int(name in own), f"{loss:.6f}", f"{loss - intact:.6f}"))
    return text.getvalue()


# The page -------------------------------------------------------------------------------------


def as_markdown(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The page ``ablation.md``.

    Args:
        found: what stands in ``ablation.json``.
        made: the signature.
    """
    parameters = made["parameters"]
    what = "distinctive neurons" if parameters["ablate"] == "distinctive" else "whole set"
    parts = [
        "# Ablation of specialized neurons",
        f"What a direction loses when the {what} of each set in turn emit nothing, for all directions alike: "
        "the rise of its loss, in nats per target token. If the sets are functional, a direction loses most by "
        "its own.",
        *([_SPECIALIZED] if parameters["checkpoint"] == "specialized" else []),
        _losses_table(found),
        f"![Loss increase of every direction without each set's neurons]({FIGURE}.png)",
        "## By the sets of relatives\n\n" + _families_table(found),
        "## Neurons switched off\n\n" + _neurons_table(found),
        "## How it was made\n\n" + _how(made),
    ]
    return "\n\n".join(parts) + "\n"


def _losses_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    reasons = []
    for name, group in found["groups"].items():
        n = len(group["directions"])
        largest = None if group["own_is_largest"] is None else f"{group['own_is_largest']} of {n}"
        intact = sum(found["intact"][direction] for direction in group["directions"]) / n
        own, others, other_rows, random = (
            _nats(group[key]) for key in ("own", "others", "other_rows", "random")
        )
        rows.append([name, n, f"{intact:.3f}", own, others, largest, _p(group), other_rows, random])
        if group["reason"]:
            reasons.append(f"- {name}: {group['reason']}")
    header = ("evaluated", "directions", "intact loss", "own", "others", "own is largest", "p")
    text = markdown_table((*header, "remaining sets", "random"), rows)
    text += (
        "\n\n*Own*, *others*: mean rise of the loss without a direction's own neurons, and without those of "
        "another direction of the group; *own is largest*: for how many directions all other sets of the "
        "group cost less. p: the share of all ways to deal the group's sets out, or of random ones, that cost at least "
        "as much as the true one; one-sided, and untouched by sets that matter to all or directions that suffer "
        "from any. *Remaining sets*: those of directions of another group, or, of sets per "
        "language, English's. *Random*: as many random neurons of each layer."
    )
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def _families_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    reasons = []
    for name, group in found["groups"].items():
        if (own := group["families"]) is None:
            continue
        rows.append([name, _nats(own["same"]), _nats(own["other"]), _p(own)])
        if own["reason"]:
            reasons.append(f"- {name}: {own['reason']}")
    if not rows:
        return "Not computed: see above."
    text = markdown_table(("evaluated", "same family", "other families", "p"), rows)
    text += (
        "\n\nMean rise of the loss without the neurons of another language; p: the share of all ways to deal "
        "families out, or of random ones, that separate at least as well."
    )
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def _neurons_table(found: Mapping[str, Any]) -> str:
    rows: list[list[Cell]] = []
    for layer, own in found["switched_off"].items():
        holders = list(own["held_by_others"].values())
        spread = f"{min(holders):.1f}-{max(holders):.1f}" if holders else None
        mean = sum(holders) / len(holders) if holders else None
        rows.append([layer, own["neurons"], own["switched_off"], mean, spread])
    header = ("layer", "neurons", "switched off", "held by other sets", "least-most")
    return (
        "Of each set, mean. *Held by other sets*: by how many of them a neuron that is switched off is held, mean "
        "over owners; the fewer, the more distinctive.\n\n" + markdown_table(header, rows)
    )


def _how(made: Mapping[str, Any]) -> str:
    inputs = markdown_table(
        ("made from", "sha256"), [[name, str(value)] for name, value in made["inputs"].items()]
    )
    parameters = ", ".join(
        f"{name} {value}"
        for name, value in made["parameters"].items()
        if isinstance(value, (str, int, float))
    )
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"`neuron-spec ablate`, {parameters}. Every loss: `{ABLATION_CSV}`; numbers in full: `{ABLATION_JSON}`."
        f"\n\n{inputs}\n\nVersions: {versions}."
    )


def _nats(value: float | None) -> Cell:
    return None if value is None else f"{value:+z.3f}"


def _p(test: Mapping[str, Any]) -> Cell:
    if test["p"] is None:
        return None
    return f"{test['p']:.4f}" if test["is_exact"] else f"{test['p']:.4f} (random)"


# In a report ----------------------------------------------------------------------------------


def section(folders: Mapping[str, Path]) -> Section:
    """The headline numbers of each folder."""
    text = (
        "What a direction loses when the neurons of each set in turn emit nothing: the rise of its loss, in nats per "
        "target token. If the sets are functional, it loses most by its own."
    )
    return Section("Ablation", [Paragraph(text)], [_headline(*each) for each in folders.items()])


def _headline(name: str, folder: Path) -> Section:
    found = read_json(folder / ABLATION_JSON, "ablation")
    rows: list[list[Cell]] = [
        [
            group_name,
            len(group["directions"]),
            *(signed(group[key], 3) for key in ("own", "others", "random")),
            None if group["own_is_largest"] is None else f"{group['own_is_largest']}",
            None if group["p"] is None else shown_p(group["p"]),
        ]
        for group_name, group in found["groups"].items()
    ]
    header = ("evaluated", "directions", "own", "others", "random", "own is largest, directions", "p")
    caption = "Loss increase of every direction without each set's neurons"
    return Section(
        name,
        [
            Table(header, rows),
            *left_in(folder, FIGURE, f"ablation-{name.replace('/', '-')}", caption),
            *again(recorded_command(found.get("signature"), folder), f"{name}/{ABLATION_TABLE}"),
        ],
    )
