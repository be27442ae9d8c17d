"""Translating by a model of transformers: its own generate, a line at a time, whatever the batches."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_tokenizers
import torch
from tiny_models import build, random_masks, transformers

from neuron_spec.backends.huggingface import add_delta, delta_parameters, direction, specialize, translate
from neuron_spec.backends.huggingface.translation import _begin
from neuron_spec.errors import DirectionError, ModelError, NeuronSpecError

EN, DE = "eng_Latn", "deu_Latn"
LINES = ["The cat sees a dog.", "", "Where is the old dog?", "  ", "The house is big and old.", "A dog."]


@pytest.fixture(scope="module")
def nllb() -> tuple[Any, Any]:
    tokenizer = tiny_tokenizers.nllb()
    return build(vocab_size=tiny_tokenizers.size(tokenizer)), tokenizer


def by_hand(model: Any, tokenizer: Any, line: str, **how: Any) -> str:
    tokenizer.src_lang = EN
    inputs = tokenizer([line], return_tensors="pt")
    number = tokenizer.convert_tokens_to_ids(DE)
    out = model.generate(
        **inputs, forced_bos_token_id=number, num_beams=5, early_stopping=True, max_length=None,
        max_new_tokens=2 * inputs["input_ids"].size(1) + 10, **how,
    )  # fmt: skip
    found: str = tokenizer.decode(out[0], skip_special_tokens=True)
    return found


@pytest.mark.parametrize("max_tokens", [1, 60, 4000])
def test_a_line_is_translated_as_alone_whatever_the_batches(nllb, max_tokens):
    model, tokenizer = nllb
    how = {"max_new_tokens": 30, "progress": False}
    found = translate(model, tokenizer, LINES, EN, DE, max_tokens=max_tokens, **how)
    assert found == [translate(model, tokenizer, [line], EN, DE, **how)[0] for line in LINES]
    assert [bool(line) for line in found] == [bool(line.strip()) for line in LINES]


def test_a_single_line_is_generates(nllb):
    model, tokenizer = nllb
    (found,) = translate(model, tokenizer, [LINES[0]], EN, DE, progress=False)
    assert found == by_hand(model, tokenizer, LINES[0]) != ""


def test_the_translation_begins_with_the_language(nllb, monkeypatch):
    model, tokenizer = nllb
    seen: dict[str, Any] = {}
    generate = model.generate

    def watched(**inputs: Any) -> Any:
        seen.update(inputs, out=generate(**inputs))
        return seen["out"]

    monkeypatch.setattr(model, "generate", watched)
    translate(model, tokenizer, LINES, EN, DE, progress=False)
    assert set(seen["out"][:, 1].tolist()) == {tokenizer.convert_tokens_to_ids(DE)}
    assert set(seen["input_ids"][:, 0].tolist()) == {tokenizer.convert_tokens_to_ids(EN)}


def test_m2m_100_and_mbart_are_told_the_language_where_they_look_for_it(tmp_path):
    m2m_100 = tiny_tokenizers.m2m_100(tmp_path)
    m2m_100.src_lang, m2m_100.tgt_lang = "en", "de"
    assert _begin(m2m_100, "de") == {"forced_bos_token_id": m2m_100.convert_tokens_to_ids("__de__")}
    model = build(vocab_size=tiny_tokenizers.size(m2m_100))
    assert len(translate(model, m2m_100, ["A dog."], "en", "de", progress=False)) == 1
    vocabulary = tiny_tokenizers.nllb().get_vocab()
    pieces = [
        (piece, 0.0 if piece.startswith("<") else -1.0 - number) for number, piece in enumerate(vocabulary)
    ]
    for kind, key in (("MBart50", "forced_bos_token_id"), ("MBart", "decoder_start_token_id")):
        mbart = getattr(transformers, f"{kind}Tokenizer")(
            vocab=pieces[:60], src_lang="en_XX", tgt_lang="de_DE"
        )
        assert _begin(mbart, "de_DE") == {key: mbart.convert_tokens_to_ids("de_DE")}


def test_a_specialized_model_runs_through_the_directions_neurons(nllb):
    _, tokenizer = nllb
    masked = build(vocab_size=tiny_tokenizers.size(tokenizer))
    specialize(masked, random_masks(masked, directions=[f"{EN}-{DE}"], kept=0.4))
    with direction(masked, f"{EN}-{DE}"):
        wanted = by_hand(masked, tokenizer, LINES[0])
    assert translate(masked, tokenizer, [LINES[0]], EN, DE, progress=False) == [wanted]
    with pytest.raises(DirectionError, match="without masks"):
        translate(masked, tokenizer, [LINES[0]], DE, EN)


def test_a_delta_changes_its_own_direction_alone(nllb):
    plain, tokenizer = nllb
    model = build(vocab_size=tiny_tokenizers.size(tokenizer))
    add_delta(model, f"{EN}-{DE}", random_masks(model, directions=[f"{EN}-{DE}"]))
    with torch.no_grad():
        for parameter in delta_parameters(model).values():
            parameter.normal_()
    for source, target, is_same in ((EN, DE, False), (DE, EN, True)):
        found = [translate(one, tokenizer, LINES, source, target, progress=False) for one in (plain, model)]
        assert (found[0] == found[1]) is is_same


def test_a_line_longer_than_the_positions_is_refused_and_none_is_cut(nllb, monkeypatch):
    model, tokenizer = nllb
    monkeypatch.setattr(model, "generate", None)  # nothing is translated before
    long = "The cat sees a dog. " * 20
    with pytest.raises(NeuronSpecError, match="too long") as caught:
        translate(model, tokenizer, ["A dog.", long, long], EN, DE)
    assert "line 2: " in str(caught.value) and "at most 64 tokens" in str(caught.value)


def test_a_translation_that_was_cut_is_said(nllb, capsys):
    model, tokenizer = nllb
    translate(model, tokenizer, LINES, EN, DE, max_new_tokens=2, progress=False)
    said = capsys.readouterr().err
    assert f"{EN}-{DE}: 4 of 4 translations were cut" in said


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"target": "deu"}, DirectionError, "no such language code"),
        ({"beam": 0}, ModelError, "no such beam"),
        ({"max_new_tokens": 64}, ModelError, "longer than the model's positions"),
    ],
)
def test_bad_requests_are_refused(nllb, given, kind, said):
    model, tokenizer = nllb
    asked = {"source": EN, "target": DE, **given}
    with pytest.raises(kind, match=said):
        translate(model, tokenizer, LINES, **asked)


def test_nothing_is_nothing(nllb):
    assert translate(*nllb, [], EN, DE, progress=False) == []
    assert translate(*nllb, ["", " "], EN, DE, progress=False) == ["", ""]


@pytest.mark.parametrize("lines", ["The light is on.", None, 3, ["A dog.", None], [b"A dog."], [3]])
def test_what_is_no_list_of_lines_is_refused(nllb, lines):
    with pytest.raises(NeuronSpecError, match="not a list of lines"):
        translate(*nllb, lines, "eng_Latn", "deu_Latn")


def test_lines_may_come_from_any_iterable(nllb):
    found = translate(*nllb, iter(LINES[:2]), EN, DE, progress=False)
    assert found == translate(*nllb, LINES[:2], EN, DE, progress=False)
