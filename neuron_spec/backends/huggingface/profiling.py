"""Counting active neurons in a model of transformers, where it runs, over text of any number of directions.

Every real token counts, as in fairseq's backend: language tokens and the end of sentence too, on either side, and of the
decoder the positions that predict a token. Padding does not.

Axis letters: T tokens, B sentences, F ffn.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from neuron_spec.backends.huggingface.ffns import Sites, ffns, require_rule
from neuron_spec.backends.huggingface.specialization import (
    config_sha256,
    direction,
    specialization_of,
    weights_sha256,
)
from neuron_spec.backends.huggingface.text import (
    Example,
    batches,
    by_direction,
    collated,
    pairs_of,
    use_languages,
)
from neuron_spec.directions import Direction, as_directions, parse_directions
from neuron_spec.errors import DirectionError, ModelError
from neuron_spec.modules.taps import tapped
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import WHOLE, Part
from neuron_spec.neurons.counting import ActivationCounter, profile_signature


class NeuronCounter(ActivationCounter):
    """Counts of a model of transformers, plain or specialized, in a loop of your own.

    Examples:
        >>> counter = NeuronCounter(model, ["eng_Latn-deu_Latn"])        # doctest: +SKIP
        >>> with counter.counting("eng_Latn-deu_Latn", batch):           # doctest: +SKIP
        ...     model(**batch)
        >>> counter.result().save("profile.safetensors")                 # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        directions: Iterable[Direction | str],
        *,
        active_rule: str | None = None,
        count_padding: bool = False,
    ) -> None:
        """Args: active_rule: ``gate`` for GLUs, where a neuron is active if its gate is > 0.

        Raises:
            ModelError: if "active" means nothing for the model's activation.
        """
        found = ffns(model)
        self.active_rule = require_rule(found, active_rule)
        self.count_padding = count_padding
        widths = {key: ffn.width for key, ffn in found.items()}
        super().__init__(parse_directions(map(str, directions)), widths, next(model.parameters()).device)
        self._padding = model.config.pad_token_id
        self._sites = Sites(found, self.active_rule)
        self._taps = {key: partial(self.count, key) for key in found}

    @contextmanager
    def counting(
        self, asked: Direction | str, batch: Mapping[str, Tensor], sentences: Tensor | None = None
    ) -> Iterator[None]:
        """Count the forward pass inside the block, which must run on this batch of one direction.

        Args:
            batch: ``input_ids``, ``attention_mask`` and ``labels``, or ``decoder_input_ids`` with
                ``decoder_attention_mask``; int64 ``[B, T]``.
            sentences: bool ``[B]``, those that count; None: all.

        Raises:
            DirectionError: if the direction is not profiled.
            ModelError: if the batch does not say which of its tokens are real.
        """
        (one,) = as_directions([asked])
        if one not in self.directions:
            raise DirectionError(
                "a batch of a direction that is not profiled",
                got=str(one),
                expected=f"one of {', '.join(map(str, self.directions))}",
            )
        real = {
            "encoder": self._real(batch, "attention_mask", "input_ids"),
            "decoder": self._of_decoder(batch),
        }
        for side, tokens in real.items():
            if self.count_padding:
                real[side] = torch.ones_like(tokens)
            if sentences is not None:
                real[side] = real[side] & sentences[:, None]
        self.begin(self.directions.index(one), real)
        with tapped(self._sites, self._taps):
            yield

    def _real(self, batch: Mapping[str, Tensor], mask: str, tokens: str) -> Tensor:
        if batch.get(mask) is not None:
            return batch[mask].bool()
        if batch.get(tokens) is None or self._padding is None:
            raise ModelError(
                "a batch that does not say which tokens are real", got=", ".join(batch), expected=mask
            )
        return batch[tokens].ne(self._padding)

    def _of_decoder(self, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch.get("labels")
        if labels is None:
            return self._real(batch, "decoder_attention_mask", "decoder_input_ids")
        real = labels.ne(-100)
        return real if self._padding is None else real & labels.ne(self._padding)


def profile(
    model: Any,
    text: Mapping[Any, Any],
    tokenizer: Any = None,
    *,
    active_rule: str | None = None,
    max_tokens: int = 4000,
    part: Part = WHOLE,
    count_padding: bool = False,
) -> ActivationCounts:
    """On how many tokens of each direction each neuron is active: what ``neuron-spec profile`` writes.

    One pass, teacher-forced, where the model is. Of the text no more than a few thousand pairs are in memory.

    Args:
        model: plain or specialized, of transformers.
        text: direction -> its pairs, as `text.pairs_of` takes them: two lists of lines, an iterable of pairs, a
            `datasets.Dataset`.
        tokenizer: the model's; None if the rows are tokens.
        active_rule: ``gate`` for GLUs.
        max_tokens: of a batch, with padding.
        part: count every so-many-th sentence only; the others run too.
        count_padding: count every position.

    Raises:
        DirectionError, ModelError: before anything runs, if directions, model and tokenizer do not fit; or if there are
            tokens in the text that the model does not have.
        CorpusError: if a text cannot be read.
        SelectionError: if a direction has no tokens.
    """
    named = by_direction(text)
    counter = NeuronCounter(model, named, active_rule=active_rule, count_padding=count_padding)
    state = specialization_of(model)
    for one in named:
        use_languages(tokenizer, one)
        if state is not None:
            state.row(one)
    read = _Read(model, tokenizer)
    config, runs = model.config, model.base_model
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.no_grad(), tqdm(desc="profile", unit="sent", file=sys.stderr) as bar:
            for one, pairs in named.items():
                bar.set_postfix_str(str(one))
                for batch in read.batches(one, pairs, max_tokens):
                    inputs = collated(batch, padding=config.pad_token_id, device=device)
                    places = torch.tensor([example.index for example in batch], device=device)
                    sentences = None if part.is_whole else part.holds(places)
                    with ExitStack() as stack:
                        if state is not None:
                            stack.enter_context(direction(model, one))
                        stack.enter_context(counter.counting(one, inputs, sentences))
                        labels = inputs.pop("labels")
                        runs(**inputs, decoder_input_ids=shifted(model, labels), use_cache=False)
                    bar.update(len(batch))
    finally:
        model.train(was_training)
    found = counter.result()
    found.require_tokens()
    found.metadata = _signature(model, read, counter.directions, counter.active_rule, part, count_padding)
    return found


def shifted(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads where it is to predict ``labels``, by the model's own rule, int64 ``[B, T]``."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        inputs: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
    else:  # M2M-100
        rule = sys.modules[type(model).__module__].shift_tokens_right
        inputs = rule(labels, model.config.pad_token_id, model.config.decoder_start_token_id)
    return inputs


def signed_profile(
    model: Any,
    text: Mapping[Any, Any],
    tokenizer: Any = None,
    *,
    active_rule: str | None = None,
    part: Part = WHOLE,
    count_padding: bool = False,
) -> dict[str, Any]:
    """The metadata that `profile` would give its counts; of the text, which is read and tokenized once for it.

    Raises:
        ModelError: if "active" means nothing for the model's activation.
    """
    rule, read = require_rule(ffns(model), active_rule), _Read(model, tokenizer)
    named = by_direction(text)
    for one, pairs in named.items():
        for _ in read.batches(one, pairs, quiet=True):
            pass
    return _signature(model, read, list(named), rule, part, count_padding)


def _signature(
    model: Any, read: _Read, directions: list[Direction], rule: str, part: Part, count_padding: bool
) -> dict[str, Any]:
    state = specialization_of(model)
    masks = {} if state is None or state.masks is None else {"masks": state.masks.fingerprint}
    return profile_signature(
        checkpoint=weights_sha256(model),
        data=read.text.hexdigest(),
        subset="text",
        directions=directions,
        count_padding=count_padding,
        dtype=next(model.parameters()).dtype,
        part=part,
        tokens_sha256=read.tokens.hexdigest(),
        config_sha256=config_sha256(model),
        **({} if rule == "relu" else {"active_rule": rule}),
        **masks,
    )


class _Read:
    """Text as a model reads it, hashed on the way: the lines, and the tokens that counts are of.

    Tokens say what tokenizer and positions made of the lines, whatever the tokenizer keeps in its files.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.text, self.tokens = hashlib.sha256(), hashlib.sha256()
        self._tokenizer, self._vocabulary = tokenizer, model.config.vocab_size
        self._max_length = getattr(model.config, "max_position_embeddings", None)

    def batches(
        self, one: Direction, pairs: Any, max_tokens: int = 4000, *, quiet: bool = False
    ) -> Iterator[list[Example]]:
        """As `text.batches`; hashes do not depend on ``max_tokens``."""
        self.tokens.update(f"{one}\0".encode())
        for batch in batches(
            one,
            self._hashed(one, pairs),
            self._tokenizer,
            max_tokens=max_tokens,
            max_length=self._max_length,
            vocabulary=self._vocabulary,
            quiet=quiet,
        ):
            for example in batch:
                self.tokens.update(f"{example.index} {example.source} {example.target}\n".encode())
            yield batch

    def _hashed(self, one: Direction, pairs: Any) -> Iterator[Any]:
        self.text.update(f"{one}\0".encode())
        for pair in pairs_of(one, pairs):
            sides = map(_listed, (pair["input_ids"], pair["labels"])) if isinstance(pair, Mapping) else pair
            self.text.update("\0".join(map(str, sides)).encode() + b"\n")
            yield pair


def _listed(tokens: Any) -> Any:
    return (
        list(tokens) if isinstance(tokens, Iterable) else tokens
    )  # what is none is refused where it is tokenized
