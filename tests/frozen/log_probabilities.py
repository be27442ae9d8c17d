"""Log-probabilities that checkpoints give a validation set, by fairseq's own functions: for any version of the code.

python log_probabilities.py DATA_BIN CHECKPOINT ...   prints {"CHECKPOINT's name": [one sum per sentence]} as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from fairseq import checkpoint_utils

from neuron_spec import models, tasks


def of_valid(data_bin: Path, checkpoint: Path) -> list[float]:
    """Natural logarithms, a sum over each sentence's target tokens, ordered by its tokens."""
    assert models and tasks  # registered
    overrides = {"data": str(data_bin), "cpu": True, "num_workers": 0}
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    model.eval()
    task.load_dataset("valid", epoch=1)
    batches = task.get_batch_iterator(
        task.dataset("valid"), max_tokens=200, max_positions=(64, 64), required_batch_size_multiple=1, epoch=1
    )
    found: dict[
        tuple[int, ...], float
    ] = {}  # ids are those of one direction's set, so tokens name a sentence
    pad = task.target_dictionary.pad()
    with torch.no_grad():
        for batch in batches.next_epoch_itr(shuffle=False):
            probabilities = model.get_normalized_probs(model(**batch["net_input"]), log_probs=True)
            of_target = probabilities.gather(-1, batch["target"].unsqueeze(-1)).squeeze(-1)
            sums = of_target.masked_fill(batch["target"] == pad, 0).double().sum(dim=1)
            tokens = torch.cat([batch["net_input"]["src_tokens"], batch["target"]], dim=1)
            names = [tuple(token for token in row if token != pad) for row in tokens.tolist()]
            found.update(zip(names, sums.tolist(), strict=True))
    return [round(found[name], 4) for name in sorted(found)]


if __name__ == "__main__":
    data_bin, *checkpoints = map(Path, sys.argv[1:])
    print(json.dumps({path.stem: of_valid(data_bin, path) for path in checkpoints}))
