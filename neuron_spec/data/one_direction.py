"""Batches of one direction each, from fairseq's data sets that mix directions.

The batch list is shuffled as ever, so directions interleave over updates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fairseq.data import ConcatDataset, FairseqDataset, SampledMultiDataset, SampledMultiEpochDataset


class _OneDirectionBatches(FairseqDataset):
    """Mixin for data sets made of several: batch each one's indices apart. Adds no state."""

    def _owner(self, indices: np.ndarray) -> np.ndarray:
        """Which sub data set each index belongs to, int ``[len(indices)]``."""
        raise NotImplementedError

    def batch_by_size(self, indices: Any, **limits: Any) -> list[Any]:
        indices = np.asarray(indices)
        owner = self._owner(indices)
        batches: list[Any] = []
        for number in np.unique(owner):
            own = indices[owner == number]
            batches += (full := list(super().batch_by_size(own, **limits)))
            # Recent fairseq drops a last batch that is no multiple of --required-batch-size-multiple:
            # up to 7 sentences, which may be validation or test sentences.
            if len(rest := own[sum(map(len, full)) :]):
                batches.append(rest)
        return batches


class OneDirectionConcatDataset(_OneDirectionBatches, ConcatDataset):
    """Validation and test sets of several directions."""

    def _owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cumulative_sizes, indices, side="right")


class OneDirectionSampledDataset(_OneDirectionBatches, SampledMultiDataset):
    """The temperature-sampled training set."""

    def _owner(self, indices: np.ndarray) -> np.ndarray:
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

    def _owner(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.cumulated_sizes, self._map_epoch_index_to_global(indices), side="right")


# fairseq seeds its sampling with the class name: under the parents' names, dense and specialized runs
# see the same sample.
OneDirectionSampledDataset.__name__ = SampledMultiDataset.__name__
ResumableEpochDataset.__name__ = SampledMultiEpochDataset.__name__
OneDirectionEpochDataset.__name__ = SampledMultiEpochDataset.__name__
