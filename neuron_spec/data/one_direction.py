"""Batches of one direction each, from fairseq's data sets that mix directions.

fairseq sorts by source length, then by target length. Over all directions that pads little; within one,
where so many fewer sentences share both lengths, it leaves the target side ragged. ``in_turns`` treats the
two sides alike instead. The batch list is shuffled as ever, so directions interleave over updates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq.data import (
    ConcatDataset,
    FairseqDataset,
    SampledMultiDataset,
    SampledMultiEpochDataset,
    data_utils,
)

logger = logging.getLogger(__name__)


def in_turns(owner: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The order, int ``[N]``, in which sentences go into batches of one direction. Ours.

    By direction, then by the longer side's length, which is what ``--max-tokens`` limits; among equals
    from long targets to long sources and, at the next length, back, so that neighbours differ little on
    both sides. What is equal in all three keeps the order it came in, which fairseq draws anew each epoch.

    Args:
        owner: the direction of each sentence, as a number, int ``[N]``.
        lengths: of source and target, int ``[N, 2]``.
    """
    longer = np.maximum(*lengths.T)
    difference = lengths[:, 0] - lengths[:, 1]
    return np.lexsort((np.where(longer % 2, -difference, difference), longer, owner))


def cut(
    indices: np.ndarray, lengths: np.ndarray, starts: Sequence[int] | np.ndarray = (0,), **limits: Any
) -> list[np.ndarray]:
    """Cut indices, as they are ordered, into batches that keep fairseq's limits; each index is in one.

    Args:
        indices: int64 ``[N]``.
        lengths: of source and target of each of them, int ``[N, 2]``.
        starts: positions where a new batch must begin, ascending from 0.
        limits: ``max_tokens``, ``max_sentences`` and ``required_batch_size_multiple``, as fairseq has them.
    """
    longer = np.maximum(*lengths.T).astype(np.int64)
    batches: list[np.ndarray] = []
    for start, end in zip(starts, [*starts[1:], len(indices)], strict=True):
        part = indices[start:end]
        full = data_utils.batch_by_size(part, None, num_tokens_vec=longer[start:end], **limits)
        batches += full
        # Recent fairseq drops a last batch that is no multiple of --required-batch-size-multiple:
        # up to 7 sentences, which may be validation or test sentences.
        if len(rest := part[sum(map(len, full)) :]):
            batches.append(rest)
    return batches


def padding_percent(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> tuple[float, float]:
    """Which percent of the batches' positions is padding, on the source and on the target side.

    Args:
        lengths: of source and target, int ``[N, 2]``, in the order in which the batches hold the sentences.
    """
    rows = np.fromiter(map(len, batches), np.int64, len(batches))
    starts = np.cumsum(rows) - rows
    source, target = (
        100 * (1 - side.sum() / np.dot(rows, np.maximum.reduceat(side, starts))) for side in lengths.T
    )
    return float(source), float(target)


class _OneDirectionBatches(FairseqDataset):
    """Mixin for data sets made of several: no batch holds sentences of two. Adds no state."""

    split: str

    def owner(self, indices: np.ndarray) -> np.ndarray:
        """Which sub data set each index belongs to, int ``[len(indices)]``."""
        raise NotImplementedError

    def batch_by_size(self, indices: Any, **limits: Any) -> list[np.ndarray]:
        """Batches of one direction; logs how they compare with fairseq's mixed ones."""
        indices = np.asarray(indices, dtype=np.int64)
        if not len(indices):
            return []
        lengths = np.take(self.sizes, indices, axis=0)
        mixed = cut(indices, lengths, **limits)
        padding_mixed = padding_percent(lengths, mixed)

        owner = self.owner(indices)
        order = in_turns(owner, lengths)
        indices, lengths, owner = indices[order], np.take(lengths, order, axis=0), owner[order]
        batches = cut(indices, lengths, np.flatnonzero(np.diff(owner, prepend=-1)), **limits)
        source, target = padding_percent(lengths, batches)
        logger.info(
            f"{self.split}: {len(batches):,} batches of one direction (fairseq's mixed: {len(mixed):,}), "
            f"padding {source:.1f} % of source and {target:.1f} % of target positions "
            f"(mixed: {padding_mixed[0]:.1f} and {padding_mixed[1]:.1f} %)"
        )
        return batches


class OneDirectionConcatDataset(_OneDirectionBatches, ConcatDataset):
    """Validation and test sets of several directions."""

    def owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cumulative_sizes, indices, side="right")


class OneDirectionSampledDataset(_OneDirectionBatches, SampledMultiDataset):
    """The temperature-sampled training set."""

    def owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cumulated_sizes, indices, side="right")


class ResumableEpochDataset(SampledMultiEpochDataset):
    """The temperature-sampled training set in virtual epochs; the same sample after a resume.

    fairseq draws one sample per pass over the data, seeded by the pass' first virtual epoch. After a
    resume inside a later virtual epoch it seeds with that one, and trains on another sample.
    """

    def _next_virtual_epoch(self, epoch: int) -> None:
        first = epoch - (epoch - 1) % self.num_virtual_epochs
        if self._random_global_indices is None and epoch != first:
            super()._next_virtual_epoch(first)
        super()._next_virtual_epoch(epoch)

    def redraw(self, epoch: int) -> None:
        """Draw again what the parent's constructor drew."""
        self._random_global_indices = None
        self.load_next_shard = None
        self._next_virtual_epoch(epoch)


class OneDirectionEpochDataset(_OneDirectionBatches, ResumableEpochDataset):
    """The same, in batches of one direction."""

    def owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cumulated_sizes, self._map_epoch_index_to_global(indices), side="right")


# fairseq seeds its sampling with the class name: under the parents' names, dense and specialized runs
# see the same sample.
OneDirectionSampledDataset.__name__ = SampledMultiDataset.__name__
ResumableEpochDataset.__name__ = SampledMultiEpochDataset.__name__
OneDirectionEpochDataset.__name__ = SampledMultiEpochDataset.__name__
