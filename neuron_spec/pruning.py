"""Pruning a checkpoint step by step to static subnetworks, one per direction or language, while it stays good.

After Choenni, Garrette and Shutova (2023). A step removes the least important units of every open set, with
importance measured anew under the current masks. Quality, ours, stands in for their parsing score: the ratio of
perplexities exp(dense nats - pruned nats) on the validation set, 1 where nothing is lost. A set whose step would
bring one of its directions below the floor takes the step back and is closed; where sets are per language, that
are both sets of the direction, the encoder's and the decoder's.

Axis letters: N directions, F units of a site. True = kept.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from neuron_spec.artifacts import hash_text, is_already_here
from neuron_spec.errors import SelectionError
from neuron_spec.importance import ImportanceMeter
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pruning import PrunedSet, sets_of, sites_of_kind, without_least_important
from neuron_spec.teacher_forcing import Text


@dataclass(frozen=True)
class Rules:
    """How to prune.

    Attributes:
        sites: ``heads``, ``neurons`` or ``both``.
        neuron_sets: ``direction`` or ``language``.
        step_fraction: of the units that a set still has, 0 to 1.
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
) -> NeuronMasks:
    """Prune, and save the masks; each finished step is written at once, so that a killed run goes on.

    Args:
        output: of the masks; the steps are kept beside it until they are done.
        load: called if they are not.
        metadata: of the masks, with their ``signature``.

    Raises:
        ArtifactError: if other masks, or steps towards other masks, are there.
    """
    so_far = output.with_suffix(".steps.safetensors")
    for path in (output, so_far):
        found = NeuronMasks.load(path) if path.is_file() else None
        made = found.metadata.get("signature", {}) if found else None
        if is_already_here(path, made, metadata["signature"], what="mask file") and path == output:
            assert found is not None
            return found
    pruning = _Pruning(load(), subset, rules)
    if so_far.is_file():
        pruning.resume(NeuronMasks.load(so_far))
    while pruning.step():
        pruning.masks(metadata).save(so_far)
    masks = pruning.masks(metadata)
    for key in ("open", "nats"):  # what only going on needs
        del masks.metadata[key]
    masks.save(output)
    for path in (so_far, so_far.with_suffix(".json")):
        path.unlink(missing_ok=True)
    return masks


class _Pruning:
    """The masks so far and the sets that are still open."""

    def __init__(self, meter: ImportanceMeter, subset: str, rules: Rules) -> None:
        self.meter, self.rules = meter, rules
        self.text = meter.read(subset)
        self.directions = meter.directions
        sizes = sites_of_kind(meter.model.sites(), rules.sites)
        self.sets = sets_of(self.directions, list(sizes), rules.neuron_sets)
        self.open = list(self.sets)
        self.kept = {s: torch.ones(len(self.directions), n, dtype=torch.bool) for s, n in sizes.items()}
        self.dense = self._nats(self.kept, range(len(self.directions)), "dense")
        self.nats = dict(self.dense)
        self.history: list[dict[str, Any]] = []
        self.dictionary = hash_text(*meter.model.encoder.dictionary.symbols)

    def resume(self, saved: NeuronMasks) -> None:
        """Go on after the last step that was saved."""
        self.kept = dict(saved.kept)
        self.history = saved.metadata["steps"]
        self.open = [own for own in self.sets if own.name in saved.metadata["open"]]
        self.nats = {row: saved.metadata["nats"][str(d)] for row, d in enumerate(self.directions)}

    def masks(self, metadata: Mapping[str, Any]) -> NeuronMasks:
        """The masks so far, and how they came about."""
        own = {
            "method": "gradient-pruning",
            "dictionary_sha256": self.dictionary,
            "neuron_sets": self.rules.neuron_sets,
            "quality": self._by_name({row: self._quality(row, self.nats) for row in self.nats}),
            "steps": self.history,
            "nats": self._by_name(self.nats),
            "open": [own.name for own in self.open],
        }
        return NeuronMasks(self.directions, self.kept, {**metadata, **own})

    def step(self) -> bool:
        """One step of every open set; False where nothing was left to do."""
        if not self.open or len(self.history) == self.rules.max_steps:
            return False
        number = len(self.history) + 1
        importance = self._importance(f"step {number}: importance")
        proposed = {site: kept.clone() for site, kept in self.kept.items()}
        stepping = [own for own in self.open if self._propose(own, importance, proposed)]
        if not stepping:  # down to the last unit of every site
            self.open = []
            return False
        nats = dict(self.nats)
        pending = _rows(stepping)
        while pending:
            # A direction all of whose sets took their step back is where it was.
            changed = [row for row in pending if self._differs(row, proposed)]
            nats |= {row: self.nats[row] for row in pending if row not in changed}
            nats |= self._nats(proposed, changed, f"step {number}: quality")
            below = {row for row in _rows(stepping) if self._quality(row, nats) < self.rules.quality_floor}
            back = [own for own in stepping if below.intersection(own.rows)]
            for own in back:
                for site in own.sites:
                    proposed[site][list(own.rows)] = self.kept[site][list(own.rows)]
            stepping = [own for own in stepping if own not in back]
            pending = _rows(back)
        self.kept, self.nats, self.open = proposed, nats, stepping
        self.history.append(self._record(number))
        return True

    def _propose(self, own: PrunedSet, importance: Mapping[str, Tensor], proposed: dict[str, Tensor]) -> bool:
        """Write the set's next step into ``proposed``; whether there is one."""
        rows = list(own.rows)
        before = {site: self.kept[site][rows[0]] for site in own.sites}
        pooled = {site: importance[site][rows].sum(0) for site in own.sites}
        after = without_least_important(before, pooled, self.rules.step_fraction)
        for site, kept in after.items():
            proposed[site][rows] = kept
        return any(not torch.equal(before[site], after[site]) for site in before)

    def _record(self, number: int) -> dict[str, Any]:
        left = {site: kept.double().mean().item() for site, kept in self.kept.items()}
        quality = self._by_name({row: round(self._quality(row, self.nats), 6) for row in self.nats})
        tqdm.write(
            f"step {number}: {100 * sum(left.values()) / len(left):.1f} % kept, quality at least "
            f"{min(quality.values()):.4f}, {len(self.open)} of {len(self.sets)} sets open",
            file=sys.stderr,
        )
        return {
            "step": number,
            "kept_percent": {site: round(100 * value, 3) for site, value in left.items()},
            "quality": quality,
            "open_sets": len(self.open),
        }

    def _quality(self, row: int, nats: Mapping[int, float]) -> float:
        return math.exp(self.dense[row] - nats[row])

    def _differs(self, row: int, proposed: Mapping[str, Tensor]) -> bool:
        return any(not torch.equal(kept[row], proposed[site][row]) for site, kept in self.kept.items())

    def _by_name(self, values: Mapping[int, float]) -> dict[str, float]:
        return {str(self.directions[row]): value for row, value in values.items()}

    def _importance(self, words: str) -> dict[str, Tensor]:
        rows = set(_rows(self.open))
        self.meter.set_masks(NeuronMasks(self.directions, self.kept))
        with self._bar(rows, words) as bar:
            return self.meter.importance(self.text, rows, bar.update)

    def _nats(self, kept: dict[str, Tensor], rows: Collection[int], words: str) -> dict[int, float]:
        """Mean nats per target token of these directions."""
        if not rows:
            return {}
        self.meter.set_masks(NeuronMasks(self.directions, kept))
        part = Text(self.text.tokens, [(row, batch) for row, batch in self.text.batches if row in rows])
        with self._bar(rows, words) as bar:
            nats = self.meter.mean_losses(part, bar.update)
        return {row: nats[row] for row in rows}

    def _bar(self, rows: Collection[int], words: str) -> Any:
        batches = sum(row in rows for row, _ in self.text.batches)
        return tqdm(total=batches, unit="batch", desc=words, file=sys.stderr, leave=False)


def _rows(sets: Sequence[PrunedSet]) -> list[int]:
    return sorted({row for own in sets for row in own.rows})
