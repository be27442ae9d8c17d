"""A data set whose every sample carries its direction's id.

fairseq's own ``--enable-lang-ids`` gives every sentence of a mixed batch the first data set's ids; here
the id is the sample's own, and the collater reads it from the samples.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.data import BaseWrapperDataset, LanguagePairDataset


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
        order = batch["id"].tolist()
        batch["id"] = torch.tensor([samples[position]["id"] for position in order])
        ids = [samples[position]["direction_id"] for position in order]
        batch["net_input"]["direction_ids"] = torch.tensor(ids)
        # The batch moves to the device; this stays on the host, where the way through the FFNs is chosen.
        batch["net_input"]["distinct_ids"] = tuple(sorted(set(ids)))
        return batch
