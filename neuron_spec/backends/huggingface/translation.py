"""Translating lines of text by a model of transformers: what its removed translation pipeline did, and directions.

Axis letters: B sentences, T tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from neuron_spec.backends.huggingface.specialization import specialization_of, through
from neuron_spec.backends.huggingface.text import language_token, require_known, use_languages
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError, NeuronSpecError, some


def translate(
    model: Any,
    tokenizer: Any,
    lines: Sequence[str],
    source: str,
    target: str,
    *,
    beam: int = 5,
    lenpen: float = 1.0,
    max_tokens: int = 4000,
    max_new_tokens: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Translate lines, each on its own, in their order; a blank one stays blank. Beam search, where the model is.

    A specialized model, and one with deltas, runs through the direction's neurons.

    Args:
        model: of transformers, M2M-100's and NLLB's kinds, mBART's and Marian's.
        source, target: languages by the tokenizer's own codes, such as ``eng_Latn``.
        lenpen: length penalty; greater than 1 makes longer translations.
        max_tokens: source tokens of a batch, with padding and counted for each beam.
        max_new_tokens: of a translation; None: twice the longest source of its batch and 10. One that is cut there is
            counted on standard error.

    Raises:
        DirectionError: if the tokenizer has no such language, or the model's masks no such direction.
        ModelError: if the tokenizer has tokens that the model does not have.
        NeuronSpecError: if a line is longer than the model's positions: none is translated then, and none is cut.
    """
    is_list = isinstance(lines, Iterable) and not isinstance(lines, str)  # whose letters would be translated
    lines = list(lines) if is_list else lines
    if not is_list or (odd := [line for line in lines if not isinstance(line, str)]):
        got = repr(odd[0] if is_list else lines)[:80]
        raise NeuronSpecError("not a list of lines", got=got, expected="[line, ...], each a string")
    one = Direction(source, target)
    use_languages(tokenizer, one)
    if (state := specialization_of(model)) is not None:
        state.row(one)
    for name, value in (("beam", beam), ("max_tokens", max_tokens), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise ModelError(f"no such {name}", got=value, expected="1 or more")
    most = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    if max_new_tokens is not None and max_new_tokens >= most:
        raise ModelError(
            "translations longer than the model's positions", got=max_new_tokens, expected=f"less than {most}"
        )
    numbers = [number for number, line in enumerate(lines) if line.strip()]
    tokens = tokenizer([lines[number] for number in numbers])["input_ids"] if numbers else []
    require_known({token for line in tokens for token in line}, one, model.config.vocab_size)
    _require_short(dict(zip(numbers, tokens, strict=True)), most)
    begin = _begin(tokenizer, target)
    found = [""] * len(lines)
    device, was_training, cut = next(model.parameters()).device, model.training, 0
    model.eval()
    try:
        with (
            torch.no_grad(),
            tqdm(
                total=len(numbers),
                desc=f"translate {one}",
                unit="sent",
                file=sys.stderr,
                disable=not progress,
            ) as bar,
        ):
            for batch in _batches(tokens, max_tokens // beam):
                inputs = tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt").to(
                    device
                )
                limit = max_new_tokens or min(2 * inputs["input_ids"].size(1) + 10, most - 1)
                with through(model, one):
                    out = model.generate(
                        **inputs, **begin, num_beams=beam, length_penalty=lenpen, early_stopping=beam > 1,
                        do_sample=False, max_new_tokens=limit, max_length=None,
                    )  # fmt: skip
                cut += int(
                    (
                        out.ne(model.config.eos_token_id)[:, -1] & out.ne(model.config.pad_token_id)[:, -1]
                    ).sum()
                )
                for i, text in zip(batch, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
                    found[numbers[i]] = text
                bar.update(len(batch))
    finally:
        model.train(was_training)
    if cut:
        print(
            f"{one}: {cut} of {len(numbers)} translations were cut at the most tokens there are",
            file=sys.stderr,
        )
    return found


def _begin(tokenizer: Any, target: str) -> dict[str, int]:
    """How generation is told the language: by the token that the decoder begins with, or by the first that it writes."""
    if (tag := language_token(tokenizer, target)) is None:
        return {}
    number = int(tokenizer.convert_tokens_to_ids(tag))
    written = tokenizer(text_target="a")["input_ids"]
    return {
        "forced_bos_token_id" if written[0] == number else "decoder_start_token_id": number
    }  # else: mBART-25


def _require_short(tokens: dict[int, list[int]], most: int) -> None:
    if bad := {number: len(of) for number, of in tokens.items() if len(of) > most}:
        shown = [f"line {number + 1}: {length} tokens" for number, length in bad.items()]
        raise NeuronSpecError(
            "lines too long for the model's positions",
            got=some(shown, between="; "),
            expected=f"at most {most} tokens each",
            mend="split them into sentences",
        )


def _batches(tokens: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Places of sentences, the longest first, so many tokens together with padding."""
    found: list[list[int]] = []
    for place in sorted(range(len(tokens)), key=lambda place: -len(tokens[place])):
        if found and len(tokens[found[-1][0]]) * (len(found[-1]) + 1) <= max_tokens:
            found[-1].append(place)
        else:
            found.append([place])
    return found
