"""Do the gradients of directions point apart?

Gradient conflict, after Yu et al. (2020): the cosine of two directions' gradients, below zero where a step
for one raises the other's loss. Ours in how: mean loss over a fixed text, by groups of parameters, and with
two halves of each direction's text, which say how much of a cosine is noise.

Gradients go through a checkpoint's masks where it has any. It needs single precision.

Axis letters: D directions, G = 2 D gradients: two halves of each direction, neighbours in that order.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from neuron_spec.artifacts import completed, is_made_from, load_tensors, save_tensors, signature_in
from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.pairs import Compared, by_name, by_names, mean_known

if TYPE_CHECKING:  # a report starts without fairseq
    from neuron_spec.backends.fairseq.loading import TeacherForced

HALVES = (Part(1, 2), Part(2, 2))
SHARED = "shared"
PARTS = {
    "self-attention": r"\.self_attn\.",
    "encoder-decoder attention": r"\.encoder_attn\.",
    "fc1": r"\.fc1\.",
    "fc2": r"\.fc2\.",
    "layer norms": r"(layer_norm|layernorm_embedding)\.",
    "embeddings": r"(embed_tokens|embed_positions|output_projection)\.",
    "adapters": r"\.adapter\.",
}
"""Groups of parameters -> what their names hold; biases go with their weights."""
OTHER = "other"
ALL = "all parameters"
# Below this cosine of a direction's own halves, dividing by it would show little but noise.
LEAST_SPLIT_HALF = 0.2
_COLUMNS_AT_A_TIME = 1 << 16  # of the gradients that are multiplied, in float64


# Groups of parameters -------------------------------------------------------------------------


class Cell(NamedTuple):
    """The finest group of parameters: one part of one layer.

    Attributes:
        side: ``encoder``, ``decoder`` or, of embeddings that the two have in common, ``shared``.
        layer: None for what stands outside the layers.
        part: one of `PARTS`, or ``other``.
    """

    side: str
    layer: int | None
    part: str

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".layers.{self.layer}"
        return f"{self.side}{layer} {self.part}"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read what `str` wrote."""
        place, _, part = text.partition(" ")
        side, *layer = place.split(".")
        return cls(side, int(layer[1]) if layer else None, part)


def cells_of(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> dict[Cell, list[str]]:
    """The names of the trained parameters in each cell; a parameter is in one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    cells: dict[Cell, list[str]] = {}
    for name, parameter in trained.items():
        sides = {alias.partition(".")[0] for alias in names[id(parameter)]}
        side = sides.pop() if len(sides) == 1 else SHARED
        layer = re.search(r"\.layers\.(\d+)\.", name)
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), OTHER)
        cells.setdefault(Cell(side, int(layer[1]) if layer else None, part), []).append(name)
    return cells


# Gradient conflict ----------------------------------------------------------------------------


class Gradients:
    """A checkpoint, and the two halves of every direction's text."""

    def __init__(self, model: TeacherForced, subset: str, sentences: int | None) -> None:
        self.model = model
        self.texts = [model.read(subset, sentences=sentences, part=half) for half in HALVES]
        self.cells = cells_of(model.model, model.trained)

    @property
    def sizes(self) -> dict[Cell, int]:
        """How many parameters each cell has."""
        trained = self.model.trained
        return {cell: sum(trained[name].numel() for name in names) for cell, names in self.cells.items()}

    def of(
        self, row: int, slices: Mapping[Cell, slice], each_batch: Callable[[], Any] = lambda: None
    ) -> dict[Cell, Tensor]:
        """Of a direction's two halves: cell -> float32 ``[2, values]`` on the CPU.

        Args:
            slices: which values of each cell, its parameters laid end to end.
        """
        halves = []
        for text in self.texts:
            grad = self.model.gradients(text, row, each_batch)
            half = {}
            for cell, place in slices.items():
                half[cell] = torch.cat([grad[name].flatten() for name in self.cells[cell]])[place].cpu()
            halves.append(half)
        return {cell: torch.stack([half[cell] for half in halves]) for cell in slices}

    def write_products(
        self, path: Path, made: Mapping[str, Any], slices: Mapping[Cell, slice], each_batch: Callable[[], Any]
    ) -> None:
        """Write the products over some of the parameters; what is on disk already is not computed again.

        Pieces of other runs, such as of another bound, are made anew.
        """
        places = {str(cell): [place.start, place.stop] for cell, place in slices.items()}
        metadata = {"signature": {**made, "pass": places}}

        def is_here(file: Path) -> bool:
            there = signature_in(file, "gradients")
            return is_made_from(there, made) and (there or {}).get("pass") == places

        parts = path.with_name(path.stem.replace("pass", "gradients"))
        if not is_here(path):
            files = [parts / f"{direction}.safetensors" for direction in self.model.directions]
            for row, file in enumerate(files):
                if not is_here(file):
                    halves = self.of(row, slices, each_batch)
                    save_tensors(file, {str(cell): values for cell, values in halves.items()}, metadata)
            save_tensors(path, {cell: _products(files, cell) for cell in places}, metadata)
        shutil.rmtree(parts, ignore_errors=True)


def plan_passes(sizes: Mapping[Cell, int], values: int) -> list[dict[Cell, slice]]:
    """Which parameters each pass over the text looks at: at most ``values`` of them, all in as few as that takes."""
    passes = []
    for begin in range(0, sum(sizes.values()), values):
        slices, offset = {}, 0
        for cell, size in sizes.items():
            start, stop = max(0, begin - offset), min(size, begin + values - offset)
            if start < stop:
                slices[cell] = slice(start, stop)
            offset += size
        passes.append(slices)
    return passes


def gradient_products(
    folder: Path,
    names: Sequence[str],
    made: Mapping[str, Any],
    load: Callable[[], Gradients],
    *,
    gibibytes: float,
    description: str = "gradients",
) -> tuple[dict[Cell, Tensor], dict[str, Any]]:
    """The inner products of all gradients, by cell.

    A gradient has as many values as the model has parameters, and there are two per direction. So they are
    taken in as many passes over the text as it takes to hold at most ``gibibytes`` of them, in the folder; in
    memory are those of one direction. Each direction's are written at once, so that a killed run goes on.

    Args:
        folder: of this checkpoint; the result stays there as ``products.safetensors``.
        names: of the D directions.
        made: the signature.
        load: called if the result is missing.

    Returns:
        Cell -> float64 ``[G, G]``; and ``tokens``, the target tokens of each direction's halves ``[D, 2]``, and
        ``parameters``, how many each cell has.

    Raises:
        ArtifactError: if another result is there.
        ModelError: if not even one value per gradient may be held, or a gradient is not finite.
    """
    path = folder / "products.safetensors"
    if not completed(path, made, what="table of gradient products", quiet=True):
        gradients = load()
        values = int(gibibytes * 2**30) // (2 * len(names) * 4)
        if values < 1:
            raise ModelError(
                "no room for the gradients", got=f"{gibibytes:g} GiB", mend="raise --gradient-space"
            )
        passes = {
            folder / f"pass-{number}.safetensors": slices
            for number, slices in enumerate(plan_passes(gradients.sizes, values))
        }
        batches = len(passes) * sum(len(text.batches) for text in gradients.texts)
        products: dict[str, Tensor] = {}
        with tqdm(total=batches, unit="batch", file=sys.stderr, desc=description) as bar:
            for file, slices in passes.items():
                gradients.write_products(file, made, slices, bar.update)
                for cell, product in load_tensors(file, "products of a pass")[0].items():
                    products[cell] = products[cell] + product if cell in products else product
        for cell, product in products.items():
            if not product.isfinite().all():
                row = int((~product.diagonal().isfinite()).nonzero()[0, 0]) // 2
                raise ModelError("a gradient is not finite", where=f"{cell}, {names[row]}")
        metadata = {
            "signature": dict(made),
            "tokens": [list(pair) for pair in zip(*(text.tokens for text in gradients.texts), strict=True)],
            "parameters": {str(cell): size for cell, size in gradients.sizes.items()},
        }
        save_tensors(path, products, metadata)
        for file in passes:
            file.unlink(missing_ok=True)
    tensors, metadata = load_tensors(path, "table of gradient products")
    sides, parts = ("encoder", "decoder", SHARED), [*PARTS, OTHER]

    def place(cell: Cell) -> tuple[int, int, int]:
        return sides.index(cell.side), -1 if cell.layer is None else cell.layer, parts.index(cell.part)

    return {cell: tensors[str(cell)] for cell in sorted(map(Cell.parse, tensors), key=place)}, metadata


def _products(files: Sequence[Path], cell: str) -> Tensor:
    """Inner products float64 ``[G, G]`` of gradients on disk, some columns at a time."""
    with ExitStack() as stack:
        held = [stack.enter_context(safe_open(file, framework="pt")).get_slice(cell) for file in files]
        total = torch.zeros(2 * len(held), 2 * len(held), dtype=torch.float64)
        for start in range(0, held[0].get_shape()[1], _COLUMNS_AT_A_TIME):
            columns = torch.cat([halves[:, start : start + _COLUMNS_AT_A_TIME] for halves in held]).double()
            total.addmm_(columns, columns.T)
    return total


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
    return (cosine[0::2, 1::2] + cosine[0::2, 1::2].T) / 2


def disattenuated(products: Tensor) -> Tensor:
    """Cosines of the gradients on endless text, as estimated from the halves; float64 `[D, D]`.

    Spearman's correction: the cosine across halves over the geometric mean of the two split-half cosines. It may
    exceed 1. NaN where a split-half cosine is below `LEAST_SPLIT_HALF`: there the divisor itself is noise.
    """
    across = across_halves(products)
    split_half = across.diagonal()
    split_half = split_half.where(split_half >= LEAST_SPLIT_HALF, torch.nan)
    return across / (split_half[:, None] * split_half).sqrt()


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
    """What stands in ``conflict.json`` of one checkpoint.

    Args:
        seed: of random relabellings.
    """
    names, everything = compared.names, list(conflict.products)
    products = conflict.of(everything)
    cosine = cosines(products, conflict.tokens)
    return {
        "tokens": by_name(names, conflict.tokens.sum(dim=1)),
        "cosine": by_names(names, names, cosine),
        "split_half": by_name(names, across_halves(products).diagonal()),
        "groups": {
            name: _group(compared, conflict, cells, seed) for name, cells in groups_of(everything).items()
        },
        "overlap": compared.overlap_tests(cosine, seed),
    }


def _group(compared: Compared, conflict: Conflict, cells: Sequence[Cell], seed: int) -> dict[str, Any]:
    products = conflict.of(cells)
    cosine, across = cosines(products, conflict.tokens), across_halves(products)
    corrected = disattenuated(products)
    kinds = {}
    for kind, pairs in compared.pairs().items():
        values, founded = cosine[pairs], corrected[pairs & ~corrected.isnan()]
        kinds[kind] = {
            "mean": mean_known(values),
            "conflict_fraction": mean_known((values < 0).double().where(~values.isnan(), torch.nan)),
            "across_halves": mean_known(across[pairs]),
            "split_half": mean_known(across.diagonal()[pairs.any(dim=1)]),
            "disattenuated": mean_known(founded),
            "disattenuated_pairs": len(founded) // 2,
            "pairs": int(pairs.sum()) // 2,
        }
    return {
        "parameters": sum(conflict.parameters[cell] for cell in cells),
        "kinds": kinds,
        "families": compared.family_tests(cosine, seed),
    }
