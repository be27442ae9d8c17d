"""What every corpus' build writes beside the pairs with English."""

import pytest

from neuron_spec.cli.main import main
from neuron_spec.corpora import build, toy
from neuron_spec.corpora.build import Corpus
from neuron_spec.directions import Direction
from neuron_spec.errors import CorpusError
from neuron_spec.scoring.evaluation import read_evaluation


def test_zero_shot_directions_are_translated_and_scored(workshop, checkpoint, data_bin, tmp_path):
    corpus = toy.read(langs=workshop.langs[1:], sizes=workshop.sizes, seed=1)
    output = tmp_path / "corpus"
    build.build(corpus, output, vocab_size=300, parameters={"corpus": "toy"}, zero_shot=[("qa", "qm")])
    for file in data_bin.iterdir():  # what is trained on and all else is as without
        assert (output / "data-bin" / file.name).read_bytes() == file.read_bytes()

    scores = tmp_path / "evaluation"
    command = ["evaluate", str(output / "data-bin"), "--path", str(checkpoint), "--output", str(scores)]
    assert main([*command, "--lang-pairs", "qa-qm,qm-qa", "--beam", "1", "--cpu"]) == 0
    assert [str(score.direction) for score in read_evaluation(scores).scores] == ["qa-qm", "qm-qa"]
    texts = build.raw_texts(output / "data-bin", "test", [Direction("qm", "qa"), Direction("qa", "en")])
    assert texts[Direction("qm", "qa")][1] == texts[Direction("qa", "en")][0]


def test_languages_that_translate_other_lines_have_no_zero_shot_text(tmp_path):
    lines = {"de": [("eins", "one"), ("zwei", "two")], "fr": [("deux", "two"), ("un", "one")]}
    corpus = Corpus(name="odd", sources=[], pairs=dict.fromkeys(build.SPLITS, lines))
    with pytest.raises(CorpusError, match="different English lines") as caught:
        build.build(corpus, tmp_path / "corpus", vocab_size=30, parameters={}, zero_shot=[("de", "fr")])
    assert "de-fr" in str(caught.value)
    assert not (tmp_path / "corpus").exists()
