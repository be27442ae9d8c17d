"""Data sets whose samples carry a direction id, and batches of one direction each, from fairseq's data sets that mix them.

fairseq sorts by source length, then by target length. Over all directions that pads little; within one,
where so many fewer sentences share both lengths, it leaves the target side ragged. ``in_turns`` treats the
two sides alike instead. The batch list is shuffled as ever, so directions interleave over updates.

fairseq's own ``--enable-lang-ids`` gives every sentence of a mixed batch the first data set's ids; here the
id is the sample's own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import (
    BaseWrapperDataset,
    ConcatDataset,
    FairseqDataset,
    LanguagePairDataset,
    SampledMultiDataset,
    SampledMultiEpochDataset,
    data_utils,
)
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager

from neuron_spec.artifacts import hash_file
from neuron_spec.backends.fairseq.data_bin import read_dictionary
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ArtifactError, ModelError

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

    Raises:
        ModelError: if a sentence alone has more than ``max_tokens``.
    """
    longer = np.maximum(*lengths.T).astype(np.int64)
    most = limits.get("max_tokens") or 0
    if most > 0 and len(longer) and (longest := int(longer.max())) > most:
        raise ModelError(
            "a sentence is longer than a batch may be",
            got=f"{longest} tokens, language token and end among them, and --max-tokens {most}",
            expected=f"--max-tokens {longest} or more",
            mend="raise --max-tokens",
        )
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
    ends: str  # the attribute with the first index past each sub data set

    def owner(self, indices: np.ndarray) -> np.ndarray:
        """Which sub data set each index belongs to, int ``[len(indices)]``."""
        return np.searchsorted(getattr(self, self.ends), indices, side="right")

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

    ends = "cumulative_sizes"


class OneDirectionSampledDataset(_OneDirectionBatches, SampledMultiDataset):
    """The temperature-sampled training set."""

    ends = "cumulated_sizes"


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


class OneDirectionEpochDataset(_OneDirectionBatches, ResumableEpochDataset):
    """The same, in batches of one direction."""

    ends = "cumulated_sizes"

    def owner(self, indices: np.ndarray) -> np.ndarray:
        return super().owner(self._map_epoch_index_to_global(indices))


# fairseq seeds its sampling with the class name: under the parents' names, dense and specialized runs
# see the same sample.
OneDirectionSampledDataset.__name__ = SampledMultiDataset.__name__
ResumableEpochDataset.__name__ = SampledMultiEpochDataset.__name__
OneDirectionEpochDataset.__name__ = SampledMultiEpochDataset.__name__


class DirectionTaggedDataset(BaseWrapperDataset):
    """One direction's sentence pairs; batches get ``net_input["direction_ids"]``, int64 ``[B]``.

    Beside it ``net_input["distinct_ids"]``, a tuple of the same ids, each once.
    """

    def __init__(self, dataset: LanguagePairDataset, direction_id: int) -> None:
        super().__init__(dataset)
        self.direction_id = direction_id

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "direction_id": self.direction_id}

    def collater(self, samples: list[dict[str, Any]], **kwargs: Any) -> dict[str, Any]:
        """As the wrapped data set; the samples may come from several such data sets."""
        # The wrapped collater sorts by length: numbering the samples tells their new order.
        numbered = [{**sample, "id": position} for position, sample in enumerate(samples)]
        batch: dict[str, Any] = super().collater(numbered, **kwargs)
        if not batch:
            return batch
        ordered = [samples[position] for position in batch["id"].tolist()]
        batch["id"] = torch.tensor([sample["id"] for sample in ordered])
        ids = [sample["direction_id"] for sample in ordered]
        batch["net_input"]["direction_ids"] = torch.tensor(ids)
        # The batch moves to the device; this stays on the host, where the way through the FFNs is chosen.
        batch["net_input"]["distinct_ids"] = tuple(sorted(set(ids)))
        return batch


def _require_same_symbols(file: Path, symbols: Sequence[str], fixed: str) -> None:
    """That a data-bin's dictionary gives its symbols the numbers that they have in another, which may hold more."""
    of_data = read_dictionary(file).symbols
    for number, (ours, theirs) in enumerate(zip_longest(of_data, symbols[: len(of_data)])):
        # What fairseq fills a dictionary up with is in no text.
        if ours != theirs and not ours.startswith("madeupword"):
            raise ArtifactError(
                "the data-bin was made with another dictionary than --fixed-dictionary",
                where=file,
                got=f"symbol {number} is {ours}",
                expected=f"{theirs or 'none'}, as in {fixed}",
                mend="binarize the text with the dictionary of the model, or name the one that the text has",
            )


_ONE_DIRECTION = {
    ConcatDataset: OneDirectionConcatDataset,
    SampledMultiDataset: OneDirectionSampledDataset,
    SampledMultiEpochDataset: OneDirectionEpochDataset,
}
_MIXED = {SampledMultiEpochDataset: ResumableEpochDataset}


class DirectionDatasetManager(MultilingualDatasetManager):
    """Tags every sub data set with its direction and chooses the batching."""

    @classmethod
    def load_all_dictionaries(
        cls, args: argparse.Namespace, langs: Sequence[str], load: Callable[[str], Any], training: bool
    ) -> dict[str, Any]:
        """As the parent, but languages whose files are the same share one dictionary.

        A dictionary of 128,000 symbols takes 30 MB, and fairseq keeps one for every language.

        Raises:
            ArtifactError: if the data-bin was made with other symbols than those of ``--fixed-dictionary``.
        """
        shared: dict[str, Any] = {}

        def load_once(path: str) -> Any:
            content = hash_file(path)
            if content not in shared:
                shared[content] = load(path)
            return shared[content]

        dictionaries: dict[str, Any] = super().load_all_dictionaries(args, langs, load_once, training)
        if args.fixed_dictionary:
            symbols = next(iter(dictionaries.values())).symbols
            folder = utils.split_paths(args.data)[0]
            for file in {hash_file(file): file for file in sorted(Path(folder).glob("dict.*.txt"))}.values():
                _require_same_symbols(file, symbols, args.fixed_dictionary)
        return dictionaries

    def load_a_dataset(
        self, split: str, data_path: str, src: str, src_dict: Any, tgt: str, *args: Any, **kw: Any
    ) -> Any:
        dataset = super().load_a_dataset(split, data_path, src, src_dict, tgt, *args, **kw)
        return DirectionTaggedDataset(dataset, direction_id(Direction(src, tgt), self.langs))

    def load_dataset(self, split: str, training: bool, epoch: int = 0, *args: Any, **kw: Any) -> Any:
        dataset = super().load_dataset(split, training, epoch, *args, **kw)
        # The parent names its classes inside long methods; ours add methods and no state.
        classes = _MIXED if self.args.batching == "mixed" else _ONE_DIRECTION
        dataset.__class__ = classes.get(type(dataset), type(dataset))
        dataset.split = split  # for the log: fairseq names its sampled data sets only
        if isinstance(dataset, ResumableEpochDataset):  # draw again what the parent's constructor drew
            dataset._random_global_indices = dataset.load_next_shard = None
            dataset._next_virtual_epoch(epoch)
        return dataset
