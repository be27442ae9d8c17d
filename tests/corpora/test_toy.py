from collections import defaultdict
from itertools import combinations
from statistics import mean

import pytest

from neuron_spec.corpora.toy import DEFAULT_LANGS, FAMILIES, generate
from neuron_spec.errors import CorpusError

SIZES = {"train": 400, "valid": 50, "test": 50}
INVENTED = sorted(set(FAMILIES) - {"en"})


@pytest.fixture(scope="module")
def corpus():
    return generate(sentences=SIZES, langs=INVENTED, seed=1)


def test_same_seed_same_text(corpus):
    assert generate(sentences=SIZES, langs=INVENTED, seed=1) == corpus


def test_seed_changes_the_sentences_but_not_the_languages(corpus):
    other = generate(sentences=SIZES, langs=INVENTED, seed=2)
    assert other["train"]["qa"] != corpus["train"]["qa"]
    words = {word for line in corpus["train"]["qa"] for word in line.split()}
    assert words >= {word for line in other["test"]["qa"] for word in line.split()}


def test_text_is_pinned():
    """The same on every platform and Python, so that checkpoints fit the corpus made elsewhere."""
    test = generate(sentences={"test": 1}, langs=["qa", "qm", "qx"], seed=1)["test"]
    assert test == {
        "en": ["these cats help a small girl"],
        "qa": ["nas botanen bebos bes labor rober"],
        "qm": ["munilü ji käyi vulöm hö lihi"],
        "qx": ["стамот визвадрош стак зваблит дрогром крам"],
    }


def test_lines_are_parallel_in_all_languages(corpus):
    for split, size in SIZES.items():
        assert list(corpus[split]) == ["en", *INVENTED]
        assert {len(lines) for lines in corpus[split].values()} == {size}


def test_splits_share_no_meaning(corpus):
    # Each meaning has one sentence in each language and each sentence one meaning.
    for lang in ("en", *INVENTED):
        everything = [line for split in SIZES for line in corpus[split][lang]]
        assert len(set(everything)) == len(everything)


def test_english_sentences_are_short(corpus):
    assert {len(line.split()) for line in corpus["train"]["en"]} == set(range(3, 10))


def test_held_out_text_depends_neither_on_training_size_nor_on_languages(corpus):
    other = generate(sentences=SIZES | {"train": 10}, langs=["qx"], seed=1)
    assert other["test"]["qx"] == corpus["test"]["qx"]
    assert other["valid"]["en"] == corpus["valid"]["en"]


def test_related_languages_share_more_character_grams(corpus):
    grams = {
        lang: {line[i : i + 3] for line in corpus["train"][lang] for i in range(len(line) - 2)}
        for lang in INVENTED
    }
    similarity = defaultdict(list)
    for a, b in combinations(INVENTED, 2):
        similarity[FAMILIES[a] == FAMILIES[b]].append(len(grams[a] & grams[b]) / len(grams[a] | grams[b]))
    assert min(similarity[True]) > max(similarity[False])
    assert mean(similarity[True]) < 0.9  # related, not the same


def test_default_languages_are_three_families_of_two():
    families = [FAMILIES[lang] for lang in DEFAULT_LANGS]
    assert sorted(families.count(family) for family in set(families)) == [2, 2, 2]


def test_unknown_language():
    with pytest.raises(CorpusError, match="no such language"):
        generate(sentences=SIZES, langs=["de"], seed=1)


def test_empty_split():
    with pytest.raises(CorpusError, match="empty valid split"):
        generate(sentences={"train": 1, "valid": 0}, langs=["qa"], seed=1)
