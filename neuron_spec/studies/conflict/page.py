"""What gradients and steps show of interference: numbers, tables, pages and figures.

Pairs of directions are compared by kind: both out of English, both into English, both without it, or
``across`` these. What cannot be computed is None, with the reason beside it.

Axis letters: D directions, G = 2 D gradients: two halves of each direction, neighbours in that order.
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

from neuron_spec.artifacts import CONFLICT, CONFLICT_LAYERS, TRANSFER, write_json, write_text
from neuron_spec.directions import GROUPS, Direction, family_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import (
    Mantel,
    NothingToCompare,
    PermutationTest,
    family_contrast,
    mantel,
    pairwise_iou,
    permutation_test,
)
from neuron_spec.pages import figures
from neuron_spec.pages.interference_figures import direction_maps, layer_grids
from neuron_spec.pages.tables import Cell as TableCell
from neuron_spec.pages.tables import markdown_table
from neuron_spec.studies.conflict.measure import OTHER, PARTS, SHARED, Cell

CONFLICT_JSON = f"{CONFLICT}.json"
CONFLICT_CSV = f"{CONFLICT}.csv"
CONFLICT_TABLE = f"{CONFLICT}.md"
CONFLICT_FIGURES = (CONFLICT, CONFLICT_LAYERS)
TRANSFER_JSON = f"{TRANSFER}.json"
TRANSFER_CSV = f"{TRANSFER}.csv"
TRANSFER_TABLE = f"{TRANSFER}.md"
TRANSFER_FIGURE = TRANSFER

ACROSS = "across"
ALL = "all parameters"
# Below this cosine of a direction's own halves, dividing by it would show little but noise.
LEAST_SPLIT_HALF = 0.2


# Pairs of directions --------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """The D directions that are compared.

    Attributes:
        families: language -> family; None: those of the language table.
        overlap: float64 `[D, D]`, the IoU of their sets, mean over layers; None without sets.
    """

    directions: Sequence[Direction]
    families: Mapping[str, str] | None = field(default=None)
    overlap: Tensor | None = field(default=None)

    @property
    def names(self) -> list[str]:
        return [str(direction) for direction in self.directions]

    @property
    def family_of(self) -> dict[str, str]:
        """Language -> family, ``unknown`` where that is so."""
        codes = {code for d in self.directions for code in (d.source, d.target)}
        return {code: family_of(code, self.families) for code in codes}

    def members(self) -> dict[str, list[int]]:
        """Kind -> its directions; kinds without any are left out."""
        kinds = {g.text: [i for i, d in enumerate(self.directions) if d.group == g] for g in GROUPS}
        return {words: rows for words, rows in kinds.items() if rows}

    def pairs(self) -> dict[str, Tensor]:
        """Kind, or ``across`` -> its pairs of different directions, bool `[D, D]`; kinds without any are left out."""
        d = len(self.directions)
        different = ~torch.eye(d, dtype=torch.bool)
        found = {}
        for words, rows in self.members().items():
            is_member = torch.zeros(d, dtype=torch.bool)
            is_member[rows] = True
            found[words] = is_member[:, None] & is_member & different
        found[ACROSS] = different & ~torch.stack(list(found.values())).any(dim=0)
        return {words: pairs for words, pairs in found.items() if pairs.any()}

    def family_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> whether pairs of one family are more alike than others.

        Args:
            similarity: float64 `[D, D]`; of a pair, the mean of both ways is taken.
        """
        found = {}
        for words, rows in self.members().items():
            own = [self.directions[row].family(self.families) for row in rows]
            square = _both_ways(similarity)[rows][:, rows]
            result: dict[str, Any] = dict.fromkeys(("same", "other", *PermutationTest._fields, "reason"))
            try:
                _require_finite(square)
                result["same"], result["other"] = family_contrast(square, own)
                result |= permutation_test(square, own, seed=seed)._asdict()
            except NothingToCompare as error:
                result["reason"] = _line(error)
            found[words] = result
        return found

    def overlap_tests(self, similarity: Tensor, seed: int) -> dict[str, dict[str, Any]]:
        """Kind -> whether directions whose sets overlap more are more alike: Mantel's test; empty without sets."""
        found: dict[str, dict[str, Any]] = {}
        for words, rows in self.members().items() if self.overlap is not None else ():
            assert self.overlap is not None
            result: dict[str, Any] = dict.fromkeys(("correlation", *PermutationTest._fields, "reason"))
            try:
                square = _both_ways(similarity)[rows][:, rows]
                _require_finite(square)
                test: Mantel = mantel(self.overlap[rows][:, rows], square, seed=seed)
                result |= {"correlation": test.correlation, **test.test._asdict()}
            except NothingToCompare as error:
                result["reason"] = _line(error)
            found[words] = result
        return found


def overlap_of(masks: NeuronMasks, directions: Sequence[Direction]) -> Tensor:
    """IoU of the directions' sets, mean over layers, float64 `[D, D]`."""
    rows = [masks.directions.index(direction) for direction in directions]
    return torch.stack([pairwise_iou(masks.kept[layer][rows]) for layer in masks.layers]).mean(dim=0)


def _both_ways(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _require_finite(square: Tensor) -> None:
    if not square[~torch.eye(len(square), dtype=torch.bool)].isfinite().all():
        raise NothingToCompare("a direction has no gradient here")


# Cosines --------------------------------------------------------------------------------------


def cosines(products: Tensor, tokens: Tensor) -> Tensor:
    """Cosines of the directions' gradients over all their text.

    Args:
        products: float64 `[G, G]`, inner products of the halves' mean gradients.
        tokens: `[D, 2]`, target tokens of the halves.

    Returns:
        float64 `[D, D]`; NaN where a gradient is zero.
    """
    d = len(tokens)
    share = tokens.double() / tokens.double().sum(dim=1, keepdim=True)
    four = products.reshape(d, 2, d, 2)
    return _normalized(torch.einsum("ia,iajb,jb->ij", share, four, share))


def across_halves(products: Tensor) -> Tensor:
    """Cosines between one direction's first half and another's second, mean of both ways, float64 `[D, D]`.

    On the diagonal the split-half cosine: what a direction reaches with itself on so much other text. Where
    directions are given in the same order of sentences, the halves share no sentence, so that noise is not
    shared either. NaN where a gradient is zero.
    """
    cosine = _normalized(products)
    return _both_ways(cosine[0::2, 1::2])


def disattenuated(products: Tensor) -> Tensor:
    """Cosines of the gradients on endless text, as estimated from the halves; float64 `[D, D]`.

    Spearman's correction: the cosine across halves over the geometric mean of the two split-half cosines. It may
    exceed 1. NaN where a split-half cosine is below `LEAST_SPLIT_HALF`: there the divisor itself is noise.
    """
    across = across_halves(products)
    own = across.diagonal()
    own = own.where(own >= LEAST_SPLIT_HALF, torch.nan)
    return across / (own[:, None] * own).sqrt()


def _normalized(products: Tensor) -> Tensor:
    lengths = products.diagonal().sqrt()
    return products / (lengths[:, None] * lengths)  # 0 / 0: NaN


def groups_of(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Name of a group -> its cells: all, sides, sides' parts, layers, and parts of layers."""
    groups: dict[str, list[Cell]] = {ALL: list(cells)}
    for cell in cells:
        layer = None if cell.layer is None else f"{cell.side}.layers.{cell.layer}"
        side = None if cell.side == SHARED else cell.side
        for name in dict.fromkeys((side, f"{cell.side} {cell.part}", layer, str(cell))):
            if name is not None:
                groups.setdefault(name, []).append(cell)
    return groups


@dataclass(frozen=True)
class Conflict:
    """The gradients of one checkpoint.

    Attributes:
        products: cell -> float64 `[G, G]`.
        tokens: int64 `[D, 2]`, target tokens of each direction's halves.
        parameters: how many each cell has.
    """

    products: Mapping[Cell, Tensor]
    tokens: Tensor
    parameters: Mapping[Cell, int]

    def of(self, cells: Sequence[Cell]) -> Tensor:
        """Products over a group of cells, float64 `[G, G]`."""
        return torch.stack([self.products[cell] for cell in cells]).sum(dim=0)


def summarize_conflict(compared: Compared, conflict: Conflict, *, seed: int) -> dict[str, Any]:
    """What stands in ``conflict.json`` of one checkpoint."""
    names = compared.names
    groups = {
        name: _conflict_group(compared, conflict, cells, seed)
        for name, cells in groups_of(list(conflict.products)).items()
    }
    products = conflict.of(list(conflict.products))
    return {
        "tokens": dict(zip(names, conflict.tokens.sum(dim=1).tolist(), strict=True)),
        "cosine": _table(names, cosines(products, conflict.tokens)),
        "split_half": dict(zip(names, _plain(across_halves(products).diagonal()), strict=True)),
        "groups": groups,
        "overlap": compared.overlap_tests(cosines(products, conflict.tokens), seed),
    }


def _conflict_group(
    compared: Compared, conflict: Conflict, cells: Sequence[Cell], seed: int
) -> dict[str, Any]:
    products = conflict.of(cells)
    cosine, across, corrected = (
        cosines(products, conflict.tokens),
        across_halves(products),
        disattenuated(products),
    )
    kinds = {}
    for words, pairs in compared.pairs().items():
        is_member = pairs.any(dim=1)
        founded = corrected[pairs & ~corrected.isnan()]
        kinds[words] = {
            "mean": _mean(cosine[pairs]),
            "conflict_fraction": _mean((cosine[pairs] < 0).double().where(~cosine[pairs].isnan(), torch.nan)),
            "across_halves": _mean(across[pairs]),
            "split_half": _mean(across.diagonal()[is_member]),
            "disattenuated": _mean(founded),
            "disattenuated_pairs": len(founded) // 2,
            "pairs": int(pairs.sum()) // 2,
        }
    return {
        "parameters": sum(conflict.parameters[cell] for cell in cells),
        "kinds": kinds,
        "families": compared.family_tests(cosine, seed),
    }


def write_conflict(
    folder: Path, compared: Compared, conflicts: Mapping[str, Conflict], made: Mapping[str, Any], *, seed: int
) -> None:
    """Write ``conflict.csv``, ``.md``, the figures and, last, ``conflict.json``.

    Args:
        conflicts: name of a checkpoint -> its gradients, in the order of the panels.
        made: the signature.
    """
    found = {name: summarize_conflict(compared, one, seed=seed) for name, one in conflicts.items()}
    matrix = direction_maps(
        {
            name: cosines(one.of(list(one.products)), one.tokens).fill_diagonal_(torch.nan)
            for name, one in conflicts.items()
        },
        compared.directions,
        compared.family_of,
        title="Cosine of the gradients of two directions",
        label="cosine (below 0: conflict)",
        rows="",
        columns="",
    )
    grid = layer_grids(
        {
            f"{name}, {kind}" if len(found) > 1 else kind: _grid(own, kind)
            for name, own in found.items()
            for kind in compared.pairs()
        },
        title="Mean cosine of pairs of directions, by layer",
        panels=len(compared.pairs()),  # a line per checkpoint
    )
    for name, figure in zip(CONFLICT_FIGURES, (matrix, grid), strict=True):
        for kind in ("png", "svg"):
            figures.save(figure, folder / f"{name}.{kind}")
    write_text(folder / CONFLICT_CSV, conflict_csv(compared, conflicts))
    write_text(folder / CONFLICT_TABLE, conflict_markdown(found, made))
    write_json(folder / CONFLICT_JSON, {"signature": dict(made), "checkpoints": found})


def _grid(found: Mapping[str, Any], kind: str) -> dict[tuple[str, str], float | None]:
    """(Layer, part) -> mean cosine over the pairs of a kind; embeddings stand beside the layers."""
    order = [*PARTS, OTHER]
    cells = [(Cell.parse(name), group["kinds"][kind]) for name, group in found["groups"].items()]
    cells = [
        (cell, own)
        for cell, own in cells
        if cell.part in order and (cell.layer is not None or cell.part == "embeddings")
    ]
    return {
        (cell.side if cell.layer is None else f"{cell.side} {cell.layer}", cell.part): own["mean"]
        for cell, own in sorted(cells, key=lambda pair: order.index(pair[0].part))
    }


def conflict_csv(compared: Compared, conflicts: Mapping[str, Conflict]) -> str:
    """One line per checkpoint, group of parameters and pair; a direction with itself: its split-half cosine."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("checkpoint", "parameters", "first", "second", "cosine", "across_halves", "disattenuated")
    )
    names = compared.names
    for checkpoint, conflict in conflicts.items():
        for group, cells in groups_of(list(conflict.products)).items():
            products = conflict.of(cells)
            tables = [cosines(products, conflict.tokens), across_halves(products), disattenuated(products)]
            for i, first in enumerate(names):
                for j in range(i, len(names)):
                    values = ["" if t[i, j].isnan() else f"{t[i, j].item():.6f}" for t in tables]
                    writer.writerow((checkpoint, group, first, names[j], *values))
    return text.getvalue()


def conflict_markdown(found: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """The page ``conflict.md``.

    Args:
        found: checkpoint -> what stands in ``conflict.json``.
    """
    parts = [
        "# Gradient conflict",
        "The cosine of two directions' gradients of their mean losses: below 0, a step for one raises the loss of the "
        "other. Teacher-forced, without dropout and label smoothing.",
        f"![Cosines of all pairs]({CONFLICT_FIGURES[0]}.png)",
        f"![Mean cosine by layer]({CONFLICT_FIGURES[1]}.png)",
    ]
    for name, own in found.items():
        parts.append(f"## {name}\n\n" + _conflict_table(own["groups"]))
        parts.append(
            _families_table({g: f["families"] for g, f in own["groups"].items() if g in _shown(own)})
        )
        if own["overlap"]:
            parts.append(_overlap_table(own["overlap"], "cosine"))
    parts += [
        "*Cosine*: mean over pairs of different directions. *In conflict*: the share of pairs below 0. *Across "
        "halves*: between one direction's first half of its text and the other's second, to be held against *split "
        "half*, the same of a direction with itself: the most that noise lets a pair reach. Where directions have sentences "
        "in common, as in a parallel corpus, the plain cosine holds their common noise too. *Disattenuated*: the "
        f"one over the other, where both directions' split-half cosines are {LEAST_SPLIT_HALF:g} or more; how many "
        "pairs that are stands behind it. Within a group of parameters, biases go with their weights. Tests are not "
        "corrected for their number.",
        "## How it was made\n\n" + _how("conflict", made, CONFLICT_CSV, CONFLICT_JSON),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(own: Mapping[str, Any]) -> list[str]:
    """The groups of the page: all but single layers and their parts, which figure and CSV show."""
    return [name for name in own["groups"] if ".layers." not in name]


def _conflict_table(groups: Mapping[str, Any]) -> str:
    rows: list[list[TableCell]] = []
    for name, group in groups.items():
        if ".layers." in name:
            continue
        for kind, own in group["kinds"].items():
            share = own["conflict_fraction"]
            corrected = own["disattenuated"]
            rows.append(
                [
                    name,
                    f"{group['parameters']:,}",
                    kind,
                    _signed(own["mean"]),
                    None if share is None else f"{100 * share:.0f}%",
                    _signed(own["across_halves"]),
                    _signed(own["split_half"]),
                    None
                    if corrected is None
                    else f"{corrected:+.2f} ({own['disattenuated_pairs']} of {own['pairs']})",
                ]
            )
    header = ("group", "parameters", "pairs", "cosine", "in conflict", "across halves", "split half")
    return markdown_table((*header, "disattenuated"), rows)


# Transfer -------------------------------------------------------------------------------------


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
            "own": _mean(own[rows]),
            "others": _mean(change[pairs]),
            "relative": _mean(transfer.relative[pairs]),
            "harmed_fraction": _mean((change[pairs] > 0).double()),
        }
    return {
        "unit": "nats per target token",
        "tokens": dict(zip(names, transfer.tokens, strict=True)),
        "parameter_norm": transfer.norm,
        "intact": dict(zip(names, transfer.intact.tolist(), strict=True)),
        "change": _table(names, change),
        "relative": _table(names, transfer.relative),
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
        figures.save(figure, folder / f"{TRANSFER_FIGURE}.{kind}")
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
    rows: list[list[TableCell]] = []
    for kind, own in found["groups"].items():
        share = own["harmed_fraction"]
        rows.append(
            [
                kind,
                own["pairs"],
                _signed(own["own"], 5),
                _signed(own["others"], 5),
                _signed(own["relative"]),
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
        "## Families\n\n" + _families_table({"gain": found["families"]}, decimals=5),
    ]
    if found["overlap"]:
        parts.append(_overlap_table(found["overlap"], "gain"))
    parts.append("## How it was made\n\n" + _how("transfer", made, TRANSFER_CSV, TRANSFER_JSON))
    return "\n\n".join(parts) + "\n"


# Shared by the pages --------------------------------------------------------------------------


def _families_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]], decimals: int = 2) -> str:
    rows: list[list[TableCell]] = []
    reasons: dict[str, None] = {}
    for name, kinds in found.items():
        for kind, own in kinds.items():
            if own["reason"]:
                reasons[f"- {kind}: {own['reason']}"] = None
            else:
                rows.append(
                    [name, kind, _signed(own["same"], decimals), _signed(own["other"], decimals), _p(own)]
                )
    text = ""
    if rows:
        text = markdown_table(("", "directions", "same family", "other families", "p"), rows)
        text += (
            "\n\np: the share of all ways to deal families out, or of random ones, that separate at least as "
            "well; one-sided. Of a pair, the mean of both ways."
        )
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def _overlap_table(found: Mapping[str, Mapping[str, Any]], what: str) -> str:
    rows: list[list[TableCell]] = [
        [kind, _signed(own["correlation"]), _p(own)] for kind, own in found.items() if not own["reason"]
    ]
    reasons = [f"- {kind}: {own['reason']}" for kind, own in found.items() if own["reason"]]
    text = f"## Overlap of the sets and {what}\n\n"
    if rows:
        text += markdown_table(("directions", "rank correlation", "p"), rows)
        text += f"\n\nMantel's test of the sets' IoU, mean over layers, with the {what}; one-sided."
    return text + ("\n\nNot computed:\n\n" + "\n".join(reasons) if reasons else "")


def _how(command: str, made: Mapping[str, Any], csv_name: str, json_name: str) -> str:
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
        f"`neuron-spec {command}`, {parameters}. Every pair: `{csv_name}`; numbers in full: `{json_name}`."
        f"\n\n{inputs}\n\nVersions: {versions}."
    )


def _table(names: Sequence[str], matrix: Tensor) -> dict[str, dict[str, float | None]]:
    return {name: dict(zip(names, _plain(row), strict=True)) for name, row in zip(names, matrix, strict=True)}


def _plain(values: Tensor) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if value != value else value for value in values.tolist()]


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else None


def _signed(value: float | None, decimals: int = 2) -> TableCell:
    return None if value is None else f"{value:+z.{decimals}f}"


def _p(test: Mapping[str, Any]) -> TableCell:
    if test["p"] is None:
        return None
    return f"{test['p']:.4f}" if test["is_exact"] else f"{test['p']:.4f} (random)"


def _line(error: NothingToCompare) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())
