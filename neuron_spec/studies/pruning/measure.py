"""Pruning a checkpoint step by step to static subnetworks, one per direction or language, while it stays good.

After Choenni, Garrette and Shutova (2023). A step removes the least important units of every open set, with
importance measured anew under the current masks. Quality, ours, stands in for their parsing score: the ratio of
perplexities exp(dense nats - pruned nats) on the validation set, 1 where nothing is lost. A set whose step would
bring one of its directions below the floor takes the step back; where sets are per language, that are both sets of
the direction, the encoder's and the decoder's. Its steps are half as large from then on, and it is closed when the
step was of a single unit.

`prune` takes a model as it is, `prune_fine_tuned` a copy of it per direction and voter, fine-tuned on the direction.

Axis letters: N directions, F units of a site. True = kept.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from neuron_spec.artifacts import completed, hash_text
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, weights_sha256
from neuron_spec.backends.fairseq.fine_tuning import Copy, FineTuning
from neuron_spec.backends.fairseq.loading import Text
from neuron_spec.directions import Direction
from neuron_spec.errors import SelectionError
from neuron_spec.neurons.activations import is_head_site
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.pruning.importance import ImportanceMeter
from neuron_spec.studies.pruning.sets import (
    PrunedSet,
    join,
    sets_of,
    sites_of_kind,
    vote,
    without_least_important,
)

_WHAT = "mask file"
# A checkpoint and directions to a meter; directions and seeds to the signature of their masks.
Load = Callable[[Path, list[Direction]], ImportanceMeter]
Sign = Callable[[Sequence[Direction], Sequence[int]], dict[str, Any]]


@dataclass(frozen=True)
class Rules:
    """How to prune.

    Attributes:
        sites: ``heads``, ``neurons`` or ``both``.
        neuron_sets: ``direction`` or ``language``.
        step_fraction: of the units that a set still has, 0 to 1. Ours: every set has its pruned, which begins here and
            is halved whenever a step is taken back, until that was one head, one neuron, or one of each; a tenth is
            coarse for few heads.
        quality_floor: fraction, 0 to 1.
        max_steps: None: until no set is open.
    """

    sites: str
    neuron_sets: str
    step_fraction: float
    quality_floor: float
    max_steps: int | None = None

    def __post_init__(self) -> None:
        """Raises: SelectionError if a fraction is out of range."""
        for name, value in (("step-fraction", self.step_fraction), ("quality-floor", self.quality_floor)):
            if not 0 < value < 1:
                raise SelectionError(f"--{name}", got=value, expected="a fraction between 0 and 1")


def prune(
    output: Path,
    load: Callable[[], ImportanceMeter],
    subset: str,
    rules: Rules,
    metadata: Mapping[str, Any],
    *,
    sentences: int | None = None,
) -> NeuronMasks:
    """Prune, and save the masks; each finished step is written at once, so that a killed run goes on.

    Args:
        output: of the masks; the steps are kept beside it until they are done.
        load: called if they are not.
        metadata: of the masks, with their ``signature``.
        sentences: of each direction, spread evenly over its set; None: all.

    Raises:
        ArtifactError: if other masks, or steps towards other masks, are there.
    """
    so_far = output.with_suffix(".steps.safetensors")
    if completed(output, metadata["signature"], what=_WHAT, quiet=True):
        return NeuronMasks.load(output)
    is_begun = completed(so_far, metadata["signature"], what=_WHAT, quiet=True)
    meter = load()
    pruning = _Pruning(meter, meter.read(subset, sentences=sentences), rules)
    if is_begun:  # go on after the last step that was saved
        saved = NeuronMasks.load(so_far)
        pruning.kept, pruning.history = dict(saved.kept), saved.metadata["steps"]
        pruning.open, nats = saved.metadata["open"], saved.metadata["nats"]
        pruning.nats = {row: nats[str(d)] for row, d in enumerate(pruning.directions)}
    while pruning.step():
        pruning.masks(metadata).save(so_far)
    masks = pruning.masks(metadata)
    for key in ("open", "nats"):  # what only going on needs
        del masks.metadata[key]
    masks.save(output)
    for path in (so_far, so_far.with_suffix(".json")):
        path.unlink(missing_ok=True)
    return masks


@dataclass(frozen=True)
class Voters:
    """The fine-tuned copies of the dense model whose sets vote, per direction as many as there are seeds.

    Attributes:
        work: ``en-de/seed-1/`` holds what one copy's folder does (`fine_tuning`), and the masks pruned from it.
        seeds: of the fine-tuning, one per voter.
        keep_checkpoints: leave the copies, so that other rules need no other training.
    """

    training: FineTuning
    work: Path
    seeds: Sequence[int]
    keep_checkpoints: bool = False


def prune_fine_tuned(
    output: Path,
    voters: Voters,
    load: Load,
    subset: str,
    rules: Rules,
    sign: Sign,
    *,
    sentences: int | None = None,
) -> NeuronMasks:
    """Static subnetworks as in Choenni, Garrette and Shutova (2023): from models fine-tuned on their direction.

    Per direction, each voter's copy is pruned with quality relative to that copy itself, and the sets are voted. The
    masks are for the dense checkpoint. Their ``quality`` is the voters' pruned, of before the vote. Complete voters are
    skipped, a killed one goes on; several processes may share the work, not a voter of a direction.

    Args:
        load: a checkpoint to a meter of these directions.
        sign: the signature of masks of these directions and seeds.
        sentences: as for `prune`.

    Raises:
        ArtifactError: if ``output`` or the work holds what was made otherwise.
        SelectionError: if sets are per language: each copy knows one direction.
        NeuronSpecError: if a training fails, or another process is at work on a voter.
    """
    training = voters.training
    if rules.neuron_sets != "direction":
        raise SelectionError(
            "models fine-tuned on one direction have no sets per language",
            got=f"--neuron-sets {rules.neuron_sets}",
            expected="--neuron-sets direction",
        )
    whole = sign(training.directions, voters.seeds)
    if completed(output, whole, what=_WHAT, quiet=True):
        return NeuronMasks.load(output)
    # What would stop the pruning of a copy is found on the dense model, before any training.
    load(training.dense, training.directions).read(subset, sentences=sentences)

    def of_voter(direction: Direction, seed: int) -> NeuronMasks:
        """One copy's masks of its direction: read if they are complete, else fine-tuned and pruned for."""
        print(f"{direction}, seed {seed}", file=sys.stderr)
        folder = voters.work / str(direction) / f"seed-{seed}"
        copy = Copy(training, direction, folder, seed, voters.keep_checkpoints)
        part = folder / f"{rules.sites}-floor-{rules.quality_floor:g}.safetensors"
        signature = sign([direction], [seed])

        def from_copy() -> None:
            path = copy.checkpoint("last")
            state = read_checkpoint(path)
            metadata = {
                "checkpoint_sha256": weights_sha256(state),
                "langs": training.langs,
                "fine_tuning_seconds": training.seconds(state),
                "signature": signature,
            }
            prune(part, lambda: load(path, [direction]), subset, rules, metadata, sentences=sentences)

        copy.make(part, from_copy, training.signature("fine-tuning", [direction], seed))
        assert completed(part, signature, what=_WHAT, quiet=True)
        return NeuronMasks.load(part)

    voted, quality, seconds = [], {}, {}
    for direction in training.directions:
        of_seeds = {str(seed): of_voter(direction, seed) for seed in voters.seeds}
        voted.append(vote([*of_seeds.values()]) if len(of_seeds) > 1 else next(iter(of_seeds.values())))
        name = str(direction)
        quality[name] = {seed: voter.metadata["quality"][name] for seed, voter in of_seeds.items()}
        seconds[name] = {seed: voter.metadata["fine_tuning_seconds"] for seed, voter in of_seeds.items()}
    masks = join(
        voted,
        {
            "method": "gradient-pruning",
            "checkpoint_sha256": training.checkpoint_sha256,
            "dictionary_sha256": voted[0].metadata["dictionary_sha256"],
            "langs": training.langs,
            "neuron_sets": rules.neuron_sets,
            "voters": len(voters.seeds),
            "quality": quality,
            "fine_tuning_seconds": seconds,
            "signature": whole,
        },
    )
    masks.save(output)
    return masks


class _Pruning:
    """The masks so far and the sets that are still open, each with the fraction of its next step."""

    def __init__(self, meter: ImportanceMeter, text: Text, rules: Rules) -> None:
        self.meter, self.text, self.rules = meter, text, rules
        self.directions = meter.directions
        sizes = sites_of_kind(meter.model.sites(), rules.sites)
        self.sets = sets_of(self.directions, list(sizes), rules.neuron_sets)
        self.open = {pruned.name: rules.step_fraction for pruned in self.sets}
        self.kept = {s: torch.ones(len(self.directions), n, dtype=torch.bool) for s, n in sizes.items()}
        self.dense = self._nats(self.kept, range(len(self.directions)), "dense")
        self.nats = dict(self.dense)
        self.history: list[dict[str, Any]] = []
        self.importance: dict[str, Tensor] = {}  # site -> [N, F], of the masks so far but in rows of `stale`
        self.stale = set(range(len(self.directions)))

    def masks(self, metadata: Mapping[str, Any]) -> NeuronMasks:
        """The masks so far, and how they came about."""
        of_pruning = {
            "method": "gradient-pruning",
            "dictionary_sha256": hash_text(*self.meter.model.encoder.dictionary.symbols),
            "neuron_sets": self.rules.neuron_sets,
            "quality": self._by_name({row: self._quality(row, self.nats) for row in self.nats}),
            "steps": self.history,
            "nats": self._by_name(self.nats),
            "open": self.open,
        }
        return NeuronMasks(self.directions, self.kept, {**metadata, **of_pruning})

    def step(self) -> bool:
        """One step of every open set; False where nothing was left to do."""
        if not self.open or len(self.history) == self.rules.max_steps:
            return False
        number = len(self.history) + 1
        # Of the directions of open sets whose masks changed: after a step taken back it is what it was.
        rows = self.stale.intersection(_rows([pruned for pruned in self.sets if pruned.name in self.open]))
        if rows:
            self.meter.set_masks(NeuronMasks(self.directions, self.kept))
            with self._bar(rows, f"step {number}: importance") as bar:
                measured = self.meter.importance(self.text, rows, bar.update)
            for site, values in measured.items():
                self.importance.setdefault(site, torch.zeros_like(values))[list(rows)] = values[list(rows)]
            self.stale -= rows
        proposed = {site: kept.clone() for site, kept in self.kept.items()}
        removed = {
            pruned: self._propose(pruned, proposed) for pruned in self.sets if pruned.name in self.open
        }
        stepping = [pruned for pruned, units in removed.items() if units]
        if not stepping:  # down to the last unit of every site
            self.open = {}
            return False
        still_open = {pruned.name: self.open[pruned.name] for pruned in stepping}
        nats = dict(self.nats)
        pending = _rows(stepping)
        while pending:
            # A direction all of whose sets took their step back is where it was.
            changed = [row for row in pending if self._differs(row, proposed)]
            nats |= {row: self.nats[row] for row in pending if row not in changed}
            nats |= self._nats(proposed, changed, f"step {number}: quality")
            below = {row for row in _rows(stepping) if self._quality(row, nats) < self.rules.quality_floor}
            back = [pruned for pruned in stepping if below.intersection(pruned.rows)]
            for pruned in back:
                for site in pruned.sites:
                    proposed[site][list(pruned.rows)] = self.kept[site][list(pruned.rows)]
                still_open[pruned.name] /= 2
                if removed[pruned] == 1:
                    del still_open[pruned.name]
            stepping = [pruned for pruned in stepping if pruned not in back]
            pending = _rows(back)
        self.stale |= {row for row in range(len(self.directions)) if self._differs(row, proposed)}
        self.kept, self.nats, self.open = proposed, nats, still_open
        left = {site: kept.double().mean().item() for site, kept in self.kept.items()}
        quality = self._by_name({row: round(self._quality(row, nats), 6) for row in nats})
        tqdm.write(
            f"step {number}: {100 * sum(left.values()) / len(left):.1f} % kept, quality at least "
            f"{min(quality.values()):.4f}, {len(self.open)} of {len(self.sets)} sets open",
            file=sys.stderr,
        )
        kept_percent = {site: round(100 * value, 3) for site, value in left.items()}
        record = {"step": number, "kept_percent": kept_percent, "quality": quality}
        self.history.append(record | {"open_sets": len(self.open)})
        return True

    def _propose(self, pruned: PrunedSet, proposed: dict[str, Tensor]) -> int:
        """Write the set's next step into ``proposed``; how many units it removes, of heads or of neurons the more."""
        rows = list(pruned.rows)
        before = {site: self.kept[site][rows[0]] for site in pruned.sites}
        pooled = {site: self.importance[site][rows].sum(0) for site in pruned.sites}
        after = without_least_important(before, pooled, self.open[pruned.name])
        for site, kept in after.items():
            proposed[site][rows] = kept
        return max(
            sum(int((before[s] & ~after[s]).sum()) for s in pruned.sites if is_head_site(s) == is_heads)
            for is_heads in (True, False)
        )

    def _quality(self, row: int, nats: Mapping[int, float]) -> float:
        return math.exp(self.dense[row] - nats[row])

    def _differs(self, row: int, proposed: Mapping[str, Tensor]) -> bool:
        return any(not torch.equal(kept[row], proposed[site][row]) for site, kept in self.kept.items())

    def _by_name(self, values: Mapping[int, float]) -> dict[str, float]:
        return {str(self.directions[row]): value for row, value in values.items()}

    def _nats(self, kept: dict[str, Tensor], rows: Collection[int], words: str) -> dict[int, float]:
        """Mean nats per target token of these directions."""
        if not rows:
            return {}
        self.meter.set_masks(NeuronMasks(self.directions, kept))
        batches = [(row, batch) for row, batch in self.text.batches if row in rows]
        part = replace(self.text, batches=batches)
        with self._bar(rows, words) as bar:
            nats = self.meter.mean_losses(part, bar.update)
        return {row: nats[row] for row in rows}

    def _bar(self, rows: Collection[int], words: str) -> Any:
        batches = sum(row in rows for row, _ in self.text.batches)
        return tqdm(total=batches, unit="batch", desc=words, file=sys.stderr, leave=False)


def _rows(sets: Sequence[PrunedSet]) -> list[int]:
    return sorted({row for pruned in sets for row in pruned.rows})
