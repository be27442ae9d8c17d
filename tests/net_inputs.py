"""What a model makes of a mixed batch must not depend on the other sentences of it, their order or the padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rows_of(net_input: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    chosen = {key: value[rows] for key, value in net_input.items() if key != "distinct_ids"}
    return {**chosen, "distinct_ids": tuple(chosen["direction_ids"].unique().tolist())}


def log_probabilities(model: Any, net_input: dict[str, Any]) -> Tensor:
    """float ``[B, T, V]``."""
    with torch.no_grad():
        return model.get_normalized_probs(model(**net_input), log_probs=True)


def require_sentence_by_sentence(model: Any, net_input: dict[str, Any], *, tolerance: float) -> None:
    """Fails unless every sentence alone, without padding, gets what it gets in the batch."""
    mixed = log_probabilities(model, net_input)
    for row in range(len(mixed)):
        source, target = (
            int(net_input[key][row].ne(1).sum()) for key in ("src_tokens", "prev_output_tokens")
        )
        alone = rows_of(net_input, torch.tensor([row]))
        alone["src_tokens"] = alone["src_tokens"][:, -source:]  # left-padded
        alone["prev_output_tokens"] = alone["prev_output_tokens"][:, :target]
        got = log_probabilities(model, alone)
        torch.testing.assert_close(got[0], mixed[row, :target], atol=tolerance, rtol=tolerance)


def require_no_order_nor_padding(model: Any, net_input: dict[str, Any], *, tolerance: float) -> None:
    """Fails unless a batch in another order, and one padded further, get the same."""
    expected = log_probabilities(model, net_input)
    order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(1))
    shuffled = log_probabilities(model, rows_of(net_input, order))
    torch.testing.assert_close(shuffled, expected[order], atol=tolerance, rtol=tolerance)
    padded = dict(net_input)
    padded["src_tokens"] = F.pad(net_input["src_tokens"], (3, 0), value=1)
    padded["prev_output_tokens"] = F.pad(net_input["prev_output_tokens"], (0, 2), value=1)
    got = log_probabilities(model, padded)[:, :-2]
    real = net_input["prev_output_tokens"].ne(1)
    torch.testing.assert_close(got[real], expected[real], atol=tolerance, rtol=tolerance)
