"""A model of transformers, and parallel text, to be run with any neurons switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from neuron_spec.backends.huggingface.directed_text import DirectedText
from neuron_spec.backends.huggingface.ffns import Sites, ffns
from neuron_spec.backends.huggingface.training import in_order, text_loss
from neuron_spec.modules.taps import tapped
from neuron_spec.studies.ablation.measure import Neurons, without


class HuggingFaceAblator:
    """As `measure.Ablator`. A specialized model keeps its own masks besides.

    Attributes:
        tokens: target tokens of each direction, without the language token.
        batches: how many one pass has.
    """

    def __init__(self, model: Any, text: DirectedText, *, max_tokens: int) -> None:
        self._model, self._text, self._max_tokens = model, text, max_tokens
        self._sites = Sites(ffns(model))
        self.batches, self.tokens = len([*in_order(text, max_tokens)]), list(text.text_tokens.values())

    def losses(self, neurons: Neurons, each_batch: Callable[[], Any] = lambda: None) -> list[float]:
        """Mean nats per target token of each direction, without these neurons: one pass."""
        device = next(self._model.parameters()).device
        with tapped(self._sites, without(neurons, device)):
            found = text_loss(self._model, self._text, max_tokens=self._max_tokens, each_batch=each_batch)
        return [loss.per_token for loss in found.values()]

    def by_name(self, values: Iterable[Any]) -> dict[str, Any]:
        """Direction -> its value."""
        return dict(zip(map(str, self._text.directions), values, strict=True))
