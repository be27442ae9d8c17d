"""fairseq's multilingual data manager, with tagged data sets and batches of one direction."""

from __future__ import annotations

from typing import Any

from fairseq.data import ConcatDataset, SampledMultiDataset, SampledMultiEpochDataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager

from neuron_spec.data.one_direction import (
    OneDirectionConcatDataset,
    OneDirectionEpochDataset,
    OneDirectionSampledDataset,
    ResumableEpochDataset,
)
from neuron_spec.data.tagged import DirectionTaggedDataset
from neuron_spec.directions import Direction, direction_id

_ONE_DIRECTION = {
    ConcatDataset: OneDirectionConcatDataset,
    SampledMultiDataset: OneDirectionSampledDataset,
    SampledMultiEpochDataset: OneDirectionEpochDataset,
}
_MIXED = {SampledMultiEpochDataset: ResumableEpochDataset}


class DirectionDatasetManager(MultilingualDatasetManager):
    """Tags every sub data set with its direction and chooses the batching."""

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
        if isinstance(dataset, ResumableEpochDataset):
            dataset.redraw(epoch)
        return dataset
