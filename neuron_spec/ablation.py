"""Switching neurons off and measuring what the model loses: are specialized neurons functional, or only
correlated with their direction?

The definition is ours. A neuron that is switched off emits zero for every direction, its constant
ReLU(bias) included; all else stays. The loss is the mean negative log-likelihood of a target token in
nats, without label smoothing. Tokens are what fairseq counts: end of sentence, and the language token
that targets begin with, are among them.

Sets of directions overlap by far the most, so a model without one whole set is a ruin for all. What tells
directions apart are the *distinctive* neurons of a set: those that the fewest other sets hold.

Axis letters: D directions, F ffn. True = kept, or switched off where the text says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from torch import Tensor
from tqdm import tqdm

from neuron_spec import tasks as tasks_of_ours
from neuron_spec.artifacts import hash_text, is_already_here, read_json, write_json
from neuron_spec.directions import ENGLISH, Direction, direction_id
from neuron_spec.errors import ModelError, NeuronSpecError
from neuron_spec.fairseq_commands import generation_config
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import NothingToCompare

assert tasks_of_ours  # registered

Neurons = dict[str, Tensor]
"""Layer key -> bool ``[F]``, True = switched off. Layers that are not named stay whole."""

RANDOM = "random"


# Which neurons --------------------------------------------------------------------------------


def owner_of(direction: Direction, masks: NeuronMasks, side: str = "both") -> str | None:
    """Whose set is a direction's own: its own name or, where the sets are per language, a language.

    That is the source language for the encoder's sets, the target language for the decoder's, and for both
    sides the one that is not English; None where neither is English.
    """
    if not _is_by_language(masks):
        return str(direction)
    if side != "both":
        return direction.source if side == "encoder" else direction.target
    foreign = [code for code in (direction.source, direction.target) if code != ENGLISH]
    return foreign[0] if len(foreign) == 1 else None


def owned_sets(masks: NeuronMasks, side: str = "both") -> dict[str, dict[str, Tensor]]:
    """Layer -> owner, a direction or a language -> its set there, bool ``[F]``; each owner once.

    Args:
        side: ``both``, ``encoder`` or ``decoder``.

    Raises:
        ModelError: if the sets are per language, but differ between directions of one language.
    """
    sets: dict[str, dict[str, Tensor]] = {}
    for layer in masks.layers:
        if side in ("both", side_of(layer)):
            sets[layer] = {}
            for direction, own in zip(masks.directions, masks.kept[layer], strict=True):
                owner = owner_of(direction, masks, side_of(layer))
                assert owner is not None
                if not torch.equal(sets[layer].setdefault(owner, own), own):
                    raise ModelError(
                        "directions of one language have different sets",
                        where=f"{layer}, {owner}",
                        expected="one set per language",
                        mend="select with the same k for all directions",
                    )
    return sets


def _is_by_language(masks: NeuronMasks) -> bool:
    return masks.metadata.get("neuron_sets") == "language"


def distinctive(sets: Mapping[str, Tensor], count: int, where: object = None) -> dict[str, Tensor]:
    """The ``count`` neurons of each set that the fewest other sets hold.

    Among equals by index: sets that tie over the same neurons then lose the same ones, so that a tie makes
    two ablations alike, and never different.

    Args:
        sets: owner -> bool ``[F]``, True = kept, all of one layer.

    Returns:
        owner -> bool ``[F]``, True = switched off.

    Raises:
        NothingToCompare: if all sets are the same.
        NeuronSpecError: if a set is smaller than ``count``.
    """
    kept = torch.stack(list(sets.values()))
    if bool((kept == kept[0]).all()):
        raise NothingToCompare(
            "no neurons are distinctive where all sets are the same",
            where=where,
            got=f"one set for {', '.join(sets)}",
            mend="name the other --side, or pass --ablate whole",
        )
    owner, size = min(zip(sets, kept.sum(1).tolist(), strict=True), key=lambda pair: pair[1])
    if count > size:
        raise NeuronSpecError(
            "more neurons to switch off than a set holds",
            where=f"{where}, {owner}",
            got=count,
            expected=f"at most {size}",
            mend="lower --fraction or --count",
        )
    holders = kept.sum(0).where(kept, len(kept) + 1)  # the neurons of other sets come last
    chosen = holders.argsort(dim=1, stable=True)[:, :count]
    return dict(zip(sets, torch.zeros_like(kept).scatter_(1, chosen, True), strict=True))


def choose(
    masks: NeuronMasks,
    *,
    ablate: str = "distinctive",
    fraction: float = 0.0,
    count: int | None = None,
    side: str = "both",
) -> dict[str, Neurons]:
    """What is switched off for each owner of a set.

    Args:
        ablate: ``distinctive``, the neurons of each set that the fewest other sets hold, or ``whole``.
        fraction: how many distinctive neurons, as a fraction (0-1) of each layer's, rounded.
        count: how many, instead.
        side: ``both``, ``encoder`` or ``decoder``; the other side stays whole. A language that no
            direction translates from has no set in the encoder, and nothing of it is switched off there.

    Returns:
        owner -> layer -> bool ``[F]``, True = switched off.

    Raises:
        NothingToCompare: if in a layer all sets are the same.
        NeuronSpecError: if a set is smaller than what is to be switched off.
    """
    chosen: dict[str, Neurons] = {}
    for layer, sets in owned_sets(masks, side).items():
        if ablate == "distinctive":
            width = masks.widths[layer]
            sets = distinctive(sets, int(fraction * width + 0.5) if count is None else count, where=layer)
        for owner, neurons in sets.items():
            chosen.setdefault(owner, {})[layer] = neurons
    return chosen


def draw_random(chosen: Mapping[str, Neurons], draws: int, seed: int) -> dict[str, Neurons]:
    """Controls: as many neurons per layer as are switched off for the owners on average, of all neurons.

    Returns:
        ``random-1`` and so on -> layer -> bool ``[F]``, True = switched off.
    """
    per_layer: dict[str, list[Tensor]] = {}
    for neurons in chosen.values():
        for layer, off in neurons.items():
            per_layer.setdefault(layer, []).append(off)
    return {
        f"{RANDOM}-{number}": {
            layer: _draw(torch.stack(offs), hash_text(str(seed), str(number), layer))
            for layer, offs in per_layer.items()
        }
        for number in range(1, draws + 1)
    }


def _draw(offs: Tensor, digest: str) -> Tensor:
    """As many of F neurons as are True in the rows of ``[owners, F]`` on average, rounded."""
    generator = torch.Generator().manual_seed(int(digest[:8], 16))
    size = int(offs.sum().item() / len(offs) + 0.5)
    drawn = torch.zeros_like(offs[0])
    drawn[torch.randperm(offs.size(1), generator=generator)[:size]] = True
    return drawn


def held_by_others(
    masks: NeuronMasks, chosen: Mapping[str, Neurons], side: str = "both"
) -> dict[str, dict[str, float]]:
    """How distinctive the choice is: layer -> owner -> by how many other sets a chosen neuron is held, mean.

    Owners of whom nothing is switched off in a layer are left out.
    """
    found: dict[str, dict[str, float]] = {}
    for layer, sets in owned_sets(masks, side).items():
        holders = torch.stack(list(sets.values())).sum(0).double()
        found[layer] = {
            owner: (holders[neurons[layer]] - 1).mean().item()
            for owner, neurons in chosen.items()
            if layer in neurons and neurons[layer].any()
        }
    return found


# The loss without them ------------------------------------------------------------------------


class Ablator:
    """A checkpoint and a validation set in memory, to be run with any neurons switched off.

    A specialized checkpoint keeps its own masks besides.

    Attributes:
        directions: the D directions that are evaluated.
        tokens: target tokens of each.
        batches: how many one pass has.
    """

    def __init__(
        self,
        path: Path,
        data_bin: Path,
        directions: Sequence[Direction],
        subset: str,
        *,
        token_flags: Sequence[str],
        dictionary_sha256: str | None = None,
        max_tokens: int = 4000,
        dtype: torch.dtype = torch.float32,
        cpu: bool = False,
    ) -> None:
        """Load both once.

        Args:
            token_flags: of the checkpoint, as `checkpoints.token_flags` returns them.
            dictionary_sha256: of the dictionary that the masks were made with.

        Raises:
            ModelError: if the data-bin has another dictionary, a specialized checkpoint lacks a direction,
                or a direction has no text.
        """
        cfg = generation_config(
            [
                *(str(data_bin), "--path", str(path), "--task", "neuron_specialization"),
                *("--lang-pairs", ",".join(map(str, directions)), *token_flags),
            ]
        )
        task = tasks.setup_task(cfg.task)
        if dictionary_sha256 not in (None, found := hash_text(*task.source_dictionary.symbols)):
            raise ModelError(
                "the masks are for another dictionary",
                where=data_bin,
                got=f"sha256 {found[:12]}",
                expected=f"sha256 {str(dictionary_sha256)[:12]}",
                mend="use the data-bin that was profiled",
            )
        (self.model,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=task)
        self._cuda = torch.cuda.is_available() and not cpu
        self.model.eval().to(dtype=dtype, device="cuda" if self._cuda else "cpu")
        if self.model.has_masks:
            self.model.masks(task.langs).require_directions(directions, where=path)
        modules = dict(self.model.named_modules())
        self._fc2s = {layer: modules[f"{layer}.fc2"] for layer in self.model.ffn_layers()}
        for fc1 in self.model.ffn_layers().values():
            fc1.ffn_path = "multiply"  # a gathered hidden vector has other places for its neurons
        self._criterion = CrossEntropyCriterion(task, sentence_avg=False)

        self.directions = list(directions)
        row_of = {direction_id(d, task.langs): row for row, d in enumerate(directions)}
        self.tokens = [0] * len(directions)
        self._batches: list[tuple[int, dict[str, Any]]] = []  # row of its direction, batch
        task.load_dataset(subset)
        for batch in task.get_batch_iterator(
            task.dataset(subset),
            max_tokens=max_tokens,
            max_positions=utils.resolve_max_positions(task.max_positions(), self.model.max_positions()),
            ignore_invalid_inputs=True,
        ).next_epoch_itr(shuffle=False):
            row = row_of[batch["net_input"]["distinct_ids"][0]]  # the task's batches hold one direction
            self.tokens[row] += batch["ntokens"]
            # On the device for all passes: a validation set is small beside the model.
            self._batches.append((row, utils.move_to_cuda(batch) if self._cuda else batch))
        if empty := [str(d) for d, tokens in zip(directions, self.tokens, strict=True) if not tokens]:
            raise ModelError(
                "no text to measure a loss on",
                where=data_bin,
                got=f"0 tokens for {', '.join(empty)} in {subset}, or only sentences too long for the model",
                mend="name another --gen-subset, or fewer --lang-pairs",
            )

    @property
    def batches(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def losses(self, neurons: Neurons, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Mean nats per target token of each direction, without these neurons: one pass.

        The result does not depend on how the text is batched, beyond rounding. Nothing here waits for the
        device before the end.
        """
        sums = torch.zeros(len(self.directions), dtype=torch.float64, device=self._device)
        with self._switched_off(neurons):
            for row, batch in self._batches:
                loss, _, _ = self._criterion(self.model, batch)  # the batch's sum
                sums[row] += loss
                each_batch()
        return [total / tokens for total, tokens in zip(sums.tolist(), self.tokens, strict=True)]

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @contextmanager
    def _switched_off(self, neurons: Neurons) -> Iterator[None]:
        """Inside the block these neurons emit zero: their places in the input of ``fc2``."""
        hooks = []
        for layer, off in neurons.items():
            index = off.nonzero().flatten().to(self._device)
            hooks.append(self._fc2s[layer].register_forward_pre_hook(_zero(index)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _zero(index: Tensor) -> Callable[[Any, tuple[Tensor, ...]], Tensor]:
    """A hook; index int64 ``[neurons switched off]``, hidden vectors ``[T, B, F]``."""
    return lambda module, inputs: inputs[0].index_fill(-1, index, 0)


# Rows -----------------------------------------------------------------------------------------


def measure(
    ablations: Mapping[str, Neurons],
    folder: Path,
    sign: Callable[[Neurons], Mapping[str, Any]],
    load: Callable[[], Ablator],
) -> dict[str, dict[str, dict[str, float]]]:
    """The losses of all ablations, one pass each; what is in the folder already is not measured again.

    Args:
        ablations: name -> what is switched off.
        folder: where each finished row is written at once, so that a killed run goes on.
        sign: the signature of a row.
        load: called if a row is missing.

    Returns:
        Name -> ``nats`` and ``tokens`` -> direction -> its loss per target token, and their number.

    Raises:
        ArtifactError: if a row was measured on something else.
    """
    made = {name: sign(neurons) for name, neurons in ablations.items()}
    missing = [name for name in ablations if not _is_measured(folder / f"{name}.json", made[name])]
    if missing:
        ablator = load()
        names = [str(direction) for direction in ablator.directions]
        with tqdm(total=len(missing) * ablator.batches, unit="batch", file=sys.stderr) as bar:
            for number, name in enumerate(missing, start=1):
                bar.set_description(f"without {name} ({number}/{len(missing)})")
                nats = ablator.losses(ablations[name], bar.update)
                row = {
                    "nats": dict(zip(names, nats, strict=True)),
                    "tokens": dict(zip(names, ablator.tokens, strict=True)),
                }
                write_json(folder / f"{name}.json", {"signature": made[name], **row})
    return {name: read_json(folder / f"{name}.json", "row of an ablation") for name in ablations}


def _is_measured(path: Path, wanted: Mapping[str, Any]) -> bool:
    found = read_json(path, "row of an ablation").get("signature", {}) if path.is_file() else None
    return is_already_here(path, found, wanted, what="row of an ablation")
