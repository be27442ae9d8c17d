"""The loss of the text does not see the language tag, and is what fairseq's cross-entropy of the rest is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data.multilingual.multilingual_utils import get_lang_tok

from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ModelError

PAD = 1


def likelihoods_of(model: TeacherForced, text: Any) -> dict[Any, Any]:
    return {d: model.sentence_likelihoods(text, row) for row, d in enumerate(model.directions)}


@pytest.fixture(scope="module")
def open_model(workshop, checkpoint) -> Any:
    def open_(*flags: str, path: Path = checkpoint, tagged: bool = True, **options: Any) -> TeacherForced:
        token_flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", *flags]
        token_flags += ["--decoder-langtok"] if tagged else []
        directions = parse_directions(workshop.lang_pairs)
        return TeacherForced(
            path, workshop.data_bin, directions, token_flags=token_flags, cpu=True, **options
        )

    return open_


@pytest.fixture(scope="module")
def model(open_model) -> TeacherForced:
    return open_model()


def tags(model: TeacherForced) -> list[int]:
    dictionary = model.model.decoder.dictionary
    return [dictionary.index(get_lang_tok(lang, "multilingual")) for lang in ("en", "qa", "qb", "qm")]


def log_probabilities(model: TeacherForced, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**batch["net_input"])[0].log_softmax(-1)


def by_hand(model: TeacherForced, batch: dict[str, Any], sentence: int) -> tuple[float, int, float]:
    """Nats of a sentence's text, its tokens, and nats of its tag: token by token."""
    of_tags, scores = tags(model), log_probabilities(model, batch)[sentence]
    tokens = [token for token in batch["target"][sentence].tolist() if token != PAD]
    assert tokens[0] in of_tags and not set(tokens[1:]) & set(of_tags)
    nats = [-scores[place, token].item() for place, token in enumerate(tokens)]
    return sum(nats[1:]), len(nats) - 1, nats[0]


def test_likelihoods_of_sentences_are_sums_over_their_tokens(model):
    text = model.read("valid")
    likelihoods = likelihoods_of(model, text)
    for row, batch in text.batches[:3]:
        of = likelihoods[model.directions[row]]
        for sentence, place in enumerate(batch["id"].tolist()):
            nats, tokens, tag = by_hand(model, batch, sentence)
            assert of.text_nats[place] == pytest.approx(nats, rel=1e-5)
            assert of.tag_nats[place] == pytest.approx(tag, rel=1e-5)
            assert of.text_tokens[place] == tokens
    for of in likelihoods.values():
        assert of.text_nats.dtype == of.text_tokens.dtype == of.tag_nats.dtype == np.float64


def test_a_loss_is_the_mean_over_the_text_and_with_the_tag_over_all(model, open_model):
    text, likelihoods = model.read("valid"), likelihoods_of(model, model.read("valid")).values()
    tokens = [of.text_tokens.sum() for of in likelihoods]
    assert text.tokens == tokens
    of_text = [of.text_nats.sum() for of in likelihoods]
    assert model.mean_losses(text) == pytest.approx(np.divide(of_text, tokens), rel=1e-5)

    with_tag = open_model(with_tag=True)
    text = with_tag.read("valid")
    assert text.tokens == [number + 21 for number in tokens]  # a tag a sentence
    of_all = [nats + of.tag_nats.sum() for nats, of in zip(of_text, likelihoods, strict=True)]
    assert with_tag.mean_losses(text) == pytest.approx(np.divide(of_all, text.tokens), rel=1e-5)


def test_likelihoods_depend_on_no_batching(model, open_model):
    small, large = (likelihoods_of(m, m.read("valid")) for m in (open_model(max_tokens=40), model))
    for direction, of in large.items():
        for name, values in vars(of).items():
            np.testing.assert_allclose(getattr(small[direction], name), values, rtol=1e-5)


def test_sentences_that_were_not_run_are_not_numbers(model, open_model):
    whole = likelihoods_of(model, model.read("valid"))
    sample = likelihoods_of(model, model.read("valid", sentences=7))
    limited = open_model("--max-target-positions", "12")
    short = likelihoods_of(limited, limited.read("valid"))
    for direction, of in whole.items():
        fits = np.flatnonzero(of.text_tokens + 1 <= 12)
        assert 0 < len(fits) < 21
        for part, there in ((sample, [*range(0, 21, 3)]), (short, fits.tolist())):
            for name, values in vars(part[direction]).items():
                assert np.flatnonzero(~np.isnan(values)).tolist() == there
                np.testing.assert_allclose(values[there], getattr(of, name)[there], rtol=1e-5)


def test_a_target_without_a_tag_has_text_alone(open_model, workshop, tmp_path):
    cfg, _, model = workshop.build()
    for args in (cfg.task, cfg.model):
        args.decoder_langtok, args.langtoks = False, None
    path = workshop.save(tmp_path / "untagged.pt", cfg, model)
    untagged, as_fairseq = (
        open_model(path=path, tagged=False, with_tag=with_tag) for with_tag in (False, True)
    )
    text = untagged.read("valid")
    assert text.tokens == as_fairseq.read("valid").tokens
    assert untagged.mean_losses(text) == as_fairseq.mean_losses(text)
    of = untagged.sentence_likelihoods(text, 0)
    assert np.isnan(of.tag_nats).all() and not np.isnan(of.text_nats).any()


def test_no_gradient_comes_from_where_the_tag_is_asked_for(model, open_model):
    for one, is_zero in ((model, True), (open_model(with_tag=True), False)):
        text = one.read("valid")
        taken: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: tuple[torch.Tensor, Any], taken=taken) -> None:
            output[0].retain_grad()
            taken.append(output[0])

        handle = one.model.decoder.register_forward_hook(keep)
        try:
            one.gradients(text, 0)
        finally:
            handle.remove()
        assert taken
        for logits, batch in zip(taken, text.of(0), strict=True):
            is_tag = torch.isin(batch["target"], torch.tensor(tags(one)))
            assert is_tag.any() and logits.grad is not None
            assert (not logits.grad[is_tag].any()) == is_zero
            assert logits.grad[batch["target"].ne(PAD) & ~is_tag].any()


def test_a_loss_that_is_no_number_is_refused_with_its_direction(open_model):
    model = open_model()
    text, named = model.read("valid"), [str(d) for d in model.directions]
    tag = model.model.decoder.dictionary.index(get_lang_tok("qb", "multilingual"))
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[tag] = (
            torch.nan
        )  # shared with the output, so of every direction
    for row, name in enumerate(named):
        with pytest.raises(ModelError, match=rf"not a number: the loss[\s\S]*{name}"):
            model.sentence_likelihoods(text, row)
    with pytest.raises(ModelError, match="not a number: the loss"):
        model.mean_losses(text)
