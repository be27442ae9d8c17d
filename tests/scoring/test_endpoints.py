"""What systems are compared by, and the scores of sentences."""

from __future__ import annotations

import numpy as np
import pytest

from neuron_spec.errors import ArtifactError
from neuron_spec.scoring.endpoints import COMET, ENDPOINTS, NLL, SentenceScores

VALUES = np.array([1.5, np.nan, 0.25])


@pytest.mark.parametrize("endpoint", ENDPOINTS.values())
@pytest.mark.parametrize("size", [1e-9, 0.3, 1.0, 40.0])
def test_better_is_a_matter_of_the_sign_alone(endpoint, size):
    better = -size if endpoint is NLL else size
    assert endpoint.is_better(better)
    assert not endpoint.is_better(-better) and not endpoint.is_better(0.0)


def test_a_likelihood_a_token_needs_both():
    for scores in (SentenceScores(), SentenceScores(text_nll=VALUES), SentenceScores(text_tokens=VALUES)):
        assert scores.ratio(NLL.key) is None
    ratio = SentenceScores(text_nll=VALUES, text_tokens=np.array([3.0, np.nan, 1.0])).ratio(NLL.key)
    assert ratio is not None and ratio.known.tolist() == [True, False, True]
    assert ratio.value == (1.5 + 0.25) / 4
    mean = SentenceScores(comet=VALUES).ratio(COMET.key)
    assert mean is not None and mean.value == (1.5 + 0.25) / 2


def test_scores_of_sentences_there_and_back(tmp_path):
    path = tmp_path / "en-de.csv"
    SentenceScores(text_nll=VALUES, comet=-VALUES).write(path)
    again = SentenceScores.read(path, 3)
    assert again.text_tokens is None and again.tag_nll is None
    np.testing.assert_array_equal(again.text_nll, VALUES)
    np.testing.assert_array_equal(again.comet, -VALUES)


def test_columns_of_other_lengths_are_neither_written_nor_read(tmp_path):
    path = tmp_path / "en-de.csv"
    with pytest.raises(ValueError):
        SentenceScores(text_nll=VALUES, comet=VALUES[:2]).write(path)
    assert not path.exists()
    for text in (
        "text_nll,text_tokens,comet\n1,2\n3,4\n",
        "text_nll\n1,2\n3,4\n",
        "text_nll,comet\n1,2\n3\n",
    ):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="damaged"):
            SentenceScores.read(path, 2)
