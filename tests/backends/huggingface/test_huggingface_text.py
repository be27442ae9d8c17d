"""Text comes to a model as its tokenizer makes it of a direction's languages, however it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import torch
from tiny_models import build, rows, transformers
from tiny_tokenizers import TEXT

from neuron_spec.backends.huggingface import profile
from neuron_spec.backends.huggingface.text import batches, collated, language_token, pairs_of
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError, DirectionError, ModelError

EN_DE = Direction("en", "de")
PAIRS = list(zip(TEXT["en"], TEXT["de"], strict=True))


@pytest.fixture(scope="module")
def m2m_100(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizers.m2m_100(tmp_path_factory.mktemp("m2m"))


@pytest.fixture(scope="module")
def nllb() -> Any:
    return tiny_tokenizers.nllb()


def of_all(tokenizer: Any, asked: Direction, pairs: Any, **how: Any) -> list[Any]:
    how = {"max_tokens": 10_000, "max_length": None, "vocabulary": 10_000, **how}
    return [example for batch in batches(asked, pairs, tokenizer, **how) for example in batch]


def test_language_tokens_stand_where_the_models_expect_them(m2m_100, nllb):
    for tokenizer, tokens, asked in (
        (m2m_100, ("__en__", "__de__"), EN_DE),
        (nllb, ("eng_Latn", "deu_Latn"), Direction("eng_Latn", "deu_Latn")),
    ):
        tokenizer.src_lang = asked.target  # what an earlier direction left
        ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
        assert tokenizer.unk_token_id not in ids
        examples = of_all(tokenizer, asked, PAIRS)
        assert len(examples) == len(PAIRS)
        for example in examples:
            source, target = PAIRS[example.index]
            assert (example.source[0], example.target[0]) == (*ids,)
            assert example.source[-1] == example.target[-1] == tokenizer.eos_token_id
            for tokens_of, text in ((example.source, source), (example.target, target)):
                said = tokenizer.decode(tokens_of[1:-1]).replace(" ", "")
                assert said == text.replace(" ", "")


def test_batches_hold_every_pair_once_in_so_many_tokens():
    examples = rows(200)
    found = list(batches(EN_DE, examples, None, max_tokens=40, max_length=None, vocabulary=60))
    assert sorted(example.index for batch in found for example in batch) == list(range(200))
    for batch in found:
        inputs = collated(batch, padding=1)
        assert max(inputs["input_ids"].numel(), inputs["labels"].numel()) <= 40 or len(batch) == 1
        for row, example in enumerate(batch):
            assert examples[example.index] == {"input_ids": example.source, "labels": example.target}
            assert inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist() == example.source
            assert inputs["labels"][row][inputs["labels"][row] != -100].tolist() == example.target


@pytest.mark.parametrize("form", ["lists", "pairs", "files", "translation", "columns", "dataset"])
def test_all_forms_of_text_are_the_same_pairs(form, tmp_path: Path):
    forms: dict[str, Any] = {
        "lists": (TEXT["en"], TEXT["de"]),
        "pairs": PAIRS,
        "translation": [{"translation": {"en": a, "de": b, "fr": ""}} for a, b in PAIRS],
        "columns": [{"id": 1, "en": a, "de": b} for a, b in PAIRS],
    }
    if form == "files":
        for code in ("en", "de"):
            (tmp_path / code).write_text("\n".join(TEXT[code]) + "\n", encoding="utf-8")
        text = (tmp_path / "en", tmp_path / "de")
    elif form == "dataset":
        datasets = pytest.importorskip("datasets", reason="needs the extra huggingface")
        text = datasets.Dataset.from_list(forms["translation"])
    else:
        text = forms[form]
    assert list(pairs_of(EN_DE, text)) == PAIRS


def test_two_pairs_are_not_two_sides():
    assert list(pairs_of(EN_DE, [("a", "b"), ("c", "d")])) == [("a", "b"), ("c", "d")]
    assert list(pairs_of(EN_DE, (["a", "b"], ["c", "d"]))) == [("a", "c"), ("b", "d")]


def test_a_profile_of_text_is_that_of_its_tokens(m2m_100):
    model = build(vocab_size=tiny_tokenizers.size(m2m_100))
    text = {"en-de": (TEXT["en"], TEXT["de"]), "fr-en": (TEXT["fr"], TEXT["en"])}
    found = profile(model, text, m2m_100, max_tokens=30)
    tokens = {}
    for one, (source, target) in text.items():
        m2m_100.src_lang, m2m_100.tgt_lang = one.split("-")
        encoded = m2m_100(source, text_target=target)
        tokens[one] = [
            {"input_ids": a, "labels": b}
            for a, b in zip(encoded["input_ids"], encoded["labels"], strict=True)
        ]
    wanted = profile(model, tokens)
    assert all(torch.equal(found.counts[layer], wanted.counts[layer]) for layer in wanted.counts)
    assert all(torch.equal(found.tokens[side], wanted.tokens[side]) for side in wanted.tokens)


def test_a_tokenizer_of_another_model_is_refused(m2m_100):
    with pytest.raises(ModelError, match=r"expected: *0 to 59"):
        profile(build(), {"en-de": (TEXT["en"], TEXT["de"])}, m2m_100)


@pytest.mark.parametrize(("kind", "code", "said"), [
    ("m2m_100", "eng", "did you mean en"), ("nllb", "en", "no such language code"), ("nllb", "deu_Latm", "deu_Latn"),
    ("nllb", "mask", "no such language code"), ("m2m_100", "the", "no such language code"),
])  # fmt: skip
def test_a_language_that_the_tokenizer_does_not_know_is_refused(kind, code, said, request):
    tokenizer = request.getfixturevalue(kind)
    with pytest.raises(DirectionError, match=said):
        language_token(tokenizer, code)
    before = tokenizer.src_lang
    known = "en" if kind == "m2m_100" else "eng_Latn"
    with pytest.raises(DirectionError, match=said):
        profile(build(), {Direction(known, code): PAIRS}, tokenizer)
    assert tokenizer.src_lang == before


def test_a_tokenizer_without_languages_takes_text_as_it_is(nllb):
    plain = transformers.PreTrainedTokenizerFast(
        tokenizer_object=nllb._tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    assert not hasattr(plain, "src_lang") and language_token(plain, "en") is None
    assert len(of_all(plain, EN_DE, PAIRS)) == len(PAIRS)


def test_sides_of_different_lengths_are_refused_whichever_is_longer():
    for lines in ((["a", "b"], ["c"]), (["a"], ["b", "c"])):
        with pytest.raises(CorpusError, match=r"not parallel(.|\n)*1 lines, and more on the (source|target)"):
            list(pairs_of(EN_DE, lines))
