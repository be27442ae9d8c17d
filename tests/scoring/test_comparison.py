"""Comparing systems: properties of the tests, pairing of seeds, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from scipy.stats import ttest_1samp

from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError
from neuron_spec.languages import UNKNOWN
from neuron_spec.pages.style import rendered
from neuron_spec.scoring.bootstrap import (
    Draws,
    PairedScore,
    ResampledScore,
    _draws,
    resampled_ratio,
    resampled_scores,
)
from neuron_spec.scoring.comparison import LOSS, TIE, WIN, Difference, compare, comparison_signature
from neuron_spec.scoring.comparison_files import (
    as_plain,
    comparison_markdown,
    difference_table,
    read_comparison,
    write_comparison,
)
from neuron_spec.scoring.endpoints import COMET, NLL, OF_TEXTS, Ratio, SentenceScores
from neuron_spec.scoring.evaluation import evaluate, family_in, tier_in
from neuron_spec.scoring.figures import score_differences
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.scoring.systems import (
    DENSE,
    SPECIALIZED,
    SYSTEMS,
    System,
    comparable,
    is_official,
    place,
    sentence_scores,
)
from neuron_spec.statistics import OverSeeds, Uncertainty, holm, interval, sign_flip_p_value

DIRECTIONS = [Direction.parse(text) for text in ("en-de", "de-en", "en-qa", "nl-en", "de-nl")]
SENTENCES = 30
SAMPLES = 100
WORDS = [first + second for first in ("ba", "ko", "li", "mu", "pe") for second in ("na", "ro", "ti", "ga")]


def references(direction, sentences=SENTENCES):
    words = random.Random(str(direction))
    return [" ".join(words.choices(WORDS, k=words.randint(5, 12))) for _ in range(sentences)]


def spoiled(lines, share, seed):
    """Each word is replaced with probability ``share``."""
    chance = random.Random(seed)
    return [
        " ".join(chance.choice(WORDS) if chance.random() < share else w for w in s.split()) for s in lines
    ]


def evaluated(share=0.3, seed=1, directions=DIRECTIONS, order=None, **signature):
    outputs = []
    for direction in directions:
        lines = references(direction)
        written, sources = spoiled(lines, share, f"{seed} {direction}"), [line.upper() for line in lines]
        texts = [[text[i] for i in order or range(len(text))] for text in (written, lines, sources)]
        outputs.append(Outputs(direction, *texts))
    return evaluate(outputs, signature={"stage": "evaluate", "inputs": {}, "parameters": {}, **signature})


@pytest.fixture(scope="module")
def good():
    return evaluated(0.3, seed=1)


@pytest.fixture(scope="module")
def bad():
    return evaluated(0.6, seed=2)


def compared(*systems, samples=SAMPLES, alpha=0.05, **flags):
    """``systems``: evaluations, or lists of them, one for each seed."""
    named = [
        System("ABCDEFGHIJ"[i], seeds if isinstance(seeds, list) else [seeds])
        for i, seeds in enumerate(systems)
    ]
    named = comparable(named, **flags)
    made = comparison_signature(named, samples=samples, alpha=alpha)
    return compare(named, signature=made, samples=samples, alpha=alpha)


def paired_bootstrap(baseline, systems, *, samples):
    first, *others = resampled_scores([baseline, *systems], samples=samples)
    return [{name: PairedScore.of(first[name], other[name]) for name in first} for other in others]


def seeds_of(comparison, metric=None):
    return [seed for row in comparison.directions for seed in row.seeds if metric in (None, row.metric)]


def test_known_systems_come_in_their_order_and_others_by_name():
    shuffled = random.Random(1).sample(["zebra", "ant", *SYSTEMS], len(SYSTEMS) + 2)
    assert sorted(shuffled, key=place) == [*SYSTEMS, "ant", "zebra"]
    assert place(DENSE) < place(SPECIALIZED)


# ---------------------------------------------------------------- statistics


def test_two_seeds_have_a_standard_deviation_and_one_has_none():
    assert OverSeeds.of([1.0, 3.0]) == OverSeeds(2.0, stdev([1.0, 3.0]))
    assert OverSeeds.of([1.0]) == OverSeeds(1.0, None)


def test_holm_of_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; 0.04 may not fall below its predecessor's 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_lowers_nor_reorders():
    p = np.random.default_rng(0).random(20)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    assert (np.diff(adjusted[p.argsort()]) >= 0).all()
    assert holm([0.2]) == pytest.approx([0.2])


def brute_force(values):
    sums = [abs(sum(s * v for s, v in zip(signs, values))) for signs in product((1, -1), repeat=len(values))]
    return fmean(total >= abs(sum(values)) - 1e-9 for total in sums)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9, 12])
def test_sign_flips_agree_with_brute_force(count):
    for seed in range(5):
        values = np.random.default_rng(seed).normal(0.5, 1, count).round(1)  # rounded: sums that tie
        assert sign_flip_p_value(values) == pytest.approx(brute_force(values.tolist()))


def test_sign_flips_of_like_signs_reach_the_smallest_p():
    for count in (1, 5, 24, 40):
        assert sign_flip_p_value(np.linspace(1, 2, count)) == pytest.approx(2 / 2**count)


def test_sign_flips_have_no_side_and_no_difference_is_no_evidence():
    values = np.random.default_rng(3).normal(0.4, 1, 15)
    assert sign_flip_p_value(values) == sign_flip_p_value(-values)
    assert sign_flip_p_value([0.0, 0.0, 0.0]) == 1
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1  # their sum is not quite 0 in floating point


def test_many_values_are_flipped_at_random_near_the_exact_p():
    values = np.random.default_rng(5).normal(0.2, 1, 40)
    exact = sign_flip_p_value(values)
    assert 0.02 < exact < 0.8
    # A 41st value of 0 changes no sum.
    assert sign_flip_p_value([*values, 0.0]) == pytest.approx(exact, abs=0.01)


def test_flips_at_random_are_the_same_again_and_count_the_signs_as_they_are():
    values = np.random.default_rng(5).normal(0.2, 1, 60)
    assert sign_flip_p_value(values) == sign_flip_p_value(values)
    assert sign_flip_p_value(np.ones(60)) == 1 / 100_001


@pytest.mark.parametrize("scale", [1e-9, 1e9])
@pytest.mark.parametrize("count", [12, 60])
def test_sign_flips_do_not_depend_on_the_unit(count, scale):
    values = np.random.default_rng(4).normal(0.2, 1, count)
    assert sign_flip_p_value(scale * values) == sign_flip_p_value(values) < 1


def test_an_interval_is_of_the_middle_95_percent():
    resampled = np.random.default_rng(1).permutation(1001)
    assert interval(resampled) == pytest.approx((25, 975))
    found = Uncertainty.of_samples(600.0, resampled, 0.01)
    assert (found.low, found.high) == pytest.approx((25, 975))
    assert found.standard_error == pytest.approx(math.sqrt((1001**2 - 1) / 12))
    assert found.smallest_visible / found.standard_error == pytest.approx(2.5758 + 0.8416, abs=1e-4)
    assert found.p_value == 1 / 1002


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_over_seeds_is_students(seeds):
    values = np.random.default_rng(seeds).normal(0.2, 0.1, seeds).tolist()
    found, expected = Uncertainty.over_seeds(values, 0.05), ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    mirrored = Uncertainty.over_seeds([-value for value in values], 0.05)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert mirrored.smallest_visible == found.smallest_visible


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.4], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]])
def test_there_is_no_t_over_two_seeds_or_over_equal_ones(values):
    assert Uncertainty.over_seeds(values, 0.05) is None


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_smallest_visible_difference_is_seen_over_seeds_in_four_of_five_cases(seeds):
    values = np.random.default_rng(seeds).normal(0, 1, (4000, seeds))
    error = 1 / math.sqrt(seeds)
    # Of a sample whose standard error is the true one.
    sample = np.linspace(-1, 1, seeds)
    sample *= error / (sample.std(ddof=1) / math.sqrt(seeds))
    shift = Uncertainty.over_seeds(sample.tolist(), 0.05).smallest_visible
    assert (ttest_1samp(values + shift, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    assert (ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.05, abs=0.01)


# ---------------------------------------------------------------- sacreBLEU's bootstrap


def test_scores_and_p_values_are_sacrebleus_whatever_seed_the_environment_has(good, bad, monkeypatch):
    a, b = good.outputs[0], bad.outputs[0]
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    named = [("a", a.hypotheses), ("b", b.hypotheses)]
    metrics = {"bleu": BLEU(), "chrf": CHRF(word_order=2)}
    _, expected = PairedTest(named, metrics, [a.references], "bs", SAMPLES)()
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    (found,) = paired_bootstrap(a, [b], samples=SAMPLES)
    assert os.environ["SACREBLEU_SEED"] == "7"
    for name, title in (("bleu", "BLEU"), ("chrf", "chrF2++")):
        assert found[name].baseline_score == expected[title][0].score
        assert found[name].score == expected[title][1].score
        assert found[name].sacrebleu_p_value == expected[title][1].p_value
        assert f"|bs:{SAMPLES}|seed:12345|" in found[name].signature


def judged(share, sentences, seed):
    """Texts of any quality, some lines of which are empty, and others longer than what is expected."""
    lines = references(DIRECTIONS[seed % len(DIRECTIONS)], sentences)
    written = [("" if i % 7 == 3 else line) for i, line in enumerate(spoiled(lines, share, seed))]
    longer = [
        f"{line} {line}" if i % 2 else line for i, line in enumerate(spoiled(lines, share * 0.9, seed + 100))
    ]
    return lines, written, longer


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.7, 0.95])
@pytest.mark.parametrize("sentences", [1, 3, 12, 80])
def test_sacrebleu_judges_every_resampled_score(share, sentences, monkeypatch):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    lines, *written = judged(share, sentences, seed=int(100 * share))
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF(word_order=2))):
        own, theirs = (
            resampled_scores([Outputs(DIRECTIONS[0], text, lines) for text in written], samples=SAMPLES),
            PairedTest(list(zip("ab", written)), {name: metric}, [lines], "bs", SAMPLES)()[1],
        )
        (title,) = set(theirs) - {"System"}
        paired = PairedScore.of(own[0][name], own[1][name])
        equal = paired.score == paired.baseline_score
        p_value = 1.0 if equal else theirs[title][1].p_value
        assert paired.sacrebleu_p_value == pytest.approx(p_value, abs=1e-12)
        for text, scores in zip(written, own):
            statistics = metric._extract_corpus_statistics(text, [lines])
            drawn = np.random.default_rng(12345).choice(sentences, size=(SAMPLES, sentences), replace=True)
            for found, kind in ((scores[name].samples, "float64"), (scores[name].single, "float32")):
                totals = np.array(statistics, dtype=kind)[drawn].sum(axis=1)
                expected = np.array([metric._compute_score_from_stats(row).score for row in totals])
                assert found.tolist() == expected.tolist()


def test_a_size_that_exceeds_the_mean_by_no_more_than_the_difference_is_no_hit():
    zeros, sizes = np.zeros(2), np.array([0.0, 2.0])
    baseline, system = ResampledScore(0.0, zeros, zeros, ""), ResampledScore(1.0, sizes, sizes, "")
    assert PairedScore.of(baseline, system).sacrebleu_p_value == 1 / 3


@pytest.mark.parametrize(
    ("written", "lines"),
    [
        (["a", "", "d e", "ix", "k k l m m", ""], ["a", "b c", "d e f g h", "ij", "k l m", "n"]),
        (["a b c", ""], ["a", "d e f"]),
    ],
)
def test_sacrebleu_judges_texts_shorter_than_its_ngrams(written, lines):
    metric = CHRF(word_order=2)
    (own,) = resampled_scores([Outputs(DIRECTIONS[0], written, lines)], samples=SAMPLES)
    statistics = np.array(metric._extract_corpus_statistics(written, [lines]))
    drawn = np.random.default_rng(12345).choice(len(lines), size=(SAMPLES, len(lines)), replace=True)
    expected = [metric._compute_score_from_stats(statistics[rows].sum(axis=0)).score for rows in drawn]
    assert own["chrf"].samples.tolist() == expected
    (nothing,) = resampled_scores([Outputs(DIRECTIONS[0], ["", ""], ["a", "b"])], samples=SAMPLES)
    assert (nothing["chrf"].samples == 0).all()


@pytest.mark.parametrize("official", [False, True])
def test_resampled_texts_are_scored_as_evaluated_ones(official):
    texts = Outputs(
        Direction("en", "zh"), ["打 开 客厅 的 灯 。", "9: 30 ."], ["打 开 客厅 的 门 。", "9: 30 ."]
    )
    (of,) = evaluate([texts], signature={}, official=official).scores
    (found,) = resampled_scores([texts], samples=SAMPLES, official=official)
    assert (found["bleu"].score, found["chrf"].score) == (of.bleu, of.chrf)


def test_the_resampled_differences_are_those_behind_the_p_value(good):
    near = evaluated(0.33, seed=3)  # near enough that p is neither end of its range
    (found,) = paired_bootstrap(good.outputs[1], [near.outputs[1]], samples=SAMPLES)
    for score in found.values():
        sizes = np.abs(score.resampled_differences)
        hits = (sizes - sizes.mean() > abs(score.score - score.baseline_score)).sum()
        expected = pytest.approx((hits + 1) / (SAMPLES + 1), abs=1.5 / SAMPLES)
        assert 2 / (SAMPLES + 1) < score.sacrebleu_p_value == expected


def test_p_values_count_both_tails(good):
    near = evaluated(0.33, seed=3)
    found_values = []
    for baseline, system in zip(good.outputs, near.outputs):
        (found,) = paired_bootstrap(baseline, [system], samples=SAMPLES)
        for score in found.values():
            # The normal approximation of a difference that is 0 in truth and as variable as this one.
            z = abs(score.score - score.baseline_score) / score.resampled_differences.std()
            assert score.p_value == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.1)
            found_values.append(score.p_value)
    assert max(found_values) > 0.5 and min(found_values) < 0.2


def test_an_own_p_is_small_where_sacrebleus_is(good, bad):
    (found,) = paired_bootstrap(good.outputs[0], [bad.outputs[0]], samples=SAMPLES)
    for score in found.values():
        assert score.p_value == score.sacrebleu_p_value == 1 / (SAMPLES + 1)


def test_equal_systems_are_called_different_at_the_nominal_rate():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2000, 50))  # differences of sentences; a score is their mean
    drawn = generator.integers(50, size=(400, 50))
    found = [PairedScore(0.0, of.mean(), 1.0, of[drawn].mean(axis=1), "").p_value for of in values]
    for alpha in (0.05, 0.2, 0.5):
        # A bootstrap takes 50 sentences for their population: its spread is a little too small.
        assert np.mean(np.array(found) < alpha) == pytest.approx(alpha, abs=0.03)


def test_a_comparison_says_which_test_sets_are_too_few_sentences():
    few, enough = (
        evaluated(0.3, seed=1, order=range(12)),
        evaluated(0.3, seed=1, order=[*range(30), *range(20)]),
    )
    of_few, of_enough = (compared(of, of) for of in (few, enough))
    assert of_few.few_sentences == [f"{direction} (12)" for direction in DIRECTIONS]
    assert ", ".join(of_few.few_sentences) in comparison_markdown(of_few)
    assert of_enough.few_sentences == []
    assert "test sentences:" not in comparison_markdown(of_enough)


def test_several_systems_at_once_are_as_one_by_one(good, bad):
    other = evaluated(0.4, seed=4)
    together = paired_bootstrap(good.outputs[0], [bad.outputs[0], other.outputs[0]], samples=SAMPLES)
    for at_once, system in zip(together, (bad, other)):
        (alone,) = paired_bootstrap(good.outputs[0], [system.outputs[0]], samples=SAMPLES)
        for key in ("bleu", "chrf"):
            assert at_once[key].p_value == alone[key].p_value
            assert (at_once[key].resampled_differences == alone[key].resampled_differences).all()


# ---------------------------------------------------------------- comparing


def test_identical_systems_tie_everywhere(good):
    result = compared(good, good)
    for seed in seeds_of(result):
        assert (seed.difference, seed.low, seed.high, seed.p_value, seed.result) == (0, 0, 0, 1, TIE)
    assert {(row.sign_flip_p_value, row.over_sentences.p_value) for row in result.groups} == {(1, 1)}
    assert {row.over_sentences.smallest_visible for row in result.groups} == {0}
    assert result.groups[0].results == {WIN: 0, TIE: len(DIRECTIONS), LOSS: 0}


def test_a_clearly_worse_system_loses_everywhere(good, bad):
    result = compared(good, bad)
    for seed in seeds_of(result):
        assert seed.result == seed.holm_result == LOSS
        assert seed.low < seed.difference < seed.high < 0
        assert seed.p_value < 0.05
        assert seed.holm_p_value == pytest.approx(len(DIRECTIONS) / (SAMPLES + 1))
    overall = result.groups[0]
    assert overall.results == overall.holm_results == {WIN: 0, TIE: 0, LOSS: len(DIRECTIONS)}
    assert overall.sign_flip_p_value == 2 / 2 ** len(DIRECTIONS)
    assert overall.over_sentences.p_value == 1 / (SAMPLES + 1)
    assert overall.over_sentences.low < overall.difference.mean < overall.over_sentences.high < 0


def test_the_other_way_round_differences_change_sign_and_p_values_stay(good):
    near = evaluated(0.36, seed=5)
    there, back = compared(good, near, alpha=0.2), compared(near, good, alpha=0.2)
    mirrored = {WIN: LOSS, LOSS: WIN, TIE: TIE}
    assert {seed.result for seed in seeds_of(there)} > {TIE}  # both sorts of result are seen
    for a, b in zip(seeds_of(there), seeds_of(back), strict=True):
        assert (a.difference, a.p_value, a.holm_p_value) == (-b.difference, b.p_value, b.holm_p_value)
        assert (a.low, a.high) == pytest.approx((-b.high, -b.low))
        assert (a.result, a.holm_result) == (mirrored[b.result], mirrored[b.holm_result])
    for a, b in zip(there.groups, back.groups, strict=True):
        assert a.sign_flip_p_value == b.sign_flip_p_value
        assert a.over_sentences.p_value == b.over_sentences.p_value
        assert a.over_sentences.low == pytest.approx(-b.over_sentences.high)
        assert a.over_sentences.smallest_visible == pytest.approx(b.over_sentences.smallest_visible)
        assert a.difference.mean == pytest.approx(-b.difference.mean)
        assert (a.results[WIN], a.results[LOSS]) == (b.results[LOSS], b.results[WIN])


def test_order_of_sentences_does_not_matter(good, bad):
    order = list(range(SENTENCES))
    random.Random(0).shuffle(order)
    here = compared(good, bad)
    there = compared(evaluated(0.3, seed=1, order=order), evaluated(0.6, seed=2, order=order))
    assert here.signature["inputs"] != there.signature["inputs"]
    for a, b in zip(seeds_of(here), seeds_of(there), strict=True):
        assert (a.baseline, a.score, a.difference) == (b.baseline, b.score, b.difference)


def test_order_of_directions_does_not_matter(good, bad):
    turned = evaluated(0.6, seed=2, directions=DIRECTIONS[::-1])
    assert compared(good, turned).directions == compared(good, bad).directions


@pytest.mark.parametrize("count", [1, 2])
def test_one_direction_or_two_languages_suffice(count, good, bad, tmp_path):
    few = DIRECTIONS[:count]  # en-de, and de-en
    result = compared(evaluated(0.3, seed=1, directions=few), evaluated(0.6, seed=2, directions=few))
    whole = compared(good, bad)
    for endpoint in OF_TEXTS:
        alone = [row for row in result.directions if row.metric == endpoint.key]
        among = [row for row in whole.directions if row.metric == endpoint.key][:count]
        for a, b in zip(alone, among, strict=True):
            assert replace(a.seeds[0], holm_p_value=0) == replace(b.seeds[0], holm_p_value=0)
            assert a.seeds[0].holm_p_value == count * a.seeds[0].p_value
    for row in result.groups:
        assert row.sign_flip_p_value == 2 / 2**row.directions
    write_comparison(tmp_path, result)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "nan" not in text and "| en-de " in text
    (tmp_path / "comparison.png").write_bytes(rendered(score_differences(result), "png"))


def test_one_sentence_is_no_sample():
    """Every draw is the sentence itself: no spread, and the smallest p there is."""
    systems = [
        System(name, [evaluate(multi_parallel(["en-de"], 1, share=share), signature={})])
        for name, share in (("a", 0.3), ("b", 0.6))
    ]
    with pytest.raises(NeuronSpecError, match="one test sentence of en-de"):
        compare(comparable(systems), signature={}, samples=SAMPLES)


def test_the_fewest_sentences_and_samples_that_can_tell_are_taken():
    two = [evaluate(multi_parallel(["en-de"], 2, share=share), signature={}) for share in (0.3, 0.6)]
    for samples, alpha in ((20, 0.05), (1, 0.6)):
        assert len(compared(*two, samples=samples, alpha=alpha).directions) == 2  # one of BLEU, one of chrF++


def test_groups_are_those_of_the_evaluation(good, bad):
    result = compared(good, bad)
    rows = {(r.kind, r.name, r.group): r for r in result.groups if r.metric == "bleu"}
    assert set(rows) == {(mean.kind, mean.name, mean.group) for mean in good.summary}
    means = {(mean.kind, mean.name, mean.group): mean.bleu for mean in bad.summary}
    for key, row in rows.items():
        assert row.score.mean == pytest.approx(means[key])
        assert row.difference.mean == pytest.approx(row.score.mean - row.baseline.mean)
    assert rows["family", UNKNOWN, "all"].directions == 1  # en-qa
    families = {str(row.direction): row.family for row in result.directions}
    assert families == {
        "en-de": "Germanic",
        "de-en": "Germanic",
        "en-qa": UNKNOWN,
        "nl-en": "Germanic",
        "de-nl": None,
    }


def test_the_signature_knows_texts_groups_and_parameters(good, bad):
    def made(*evaluations, alpha=0.05):
        systems = comparable([System("AB"[i], [seed]) for i, seed in enumerate(evaluations)])
        return comparison_signature(systems, samples=SAMPLES, alpha=alpha)

    assert made(good, bad) == made(good, bad)
    scored = [replace(score, bleu_signature="tok:other") for score in good.scores]
    others = [
        made(bad, good),
        made(good, bad, alpha=0.1),
        made(replace(good, families={"qa": "New"}), bad),
        *(made(*(replace(each, pivot=pivot) for each in (good, bad))) for pivot in ("de", "nl")),
        made(*(replace(each, scores=scored) for each in (good, bad))),
    ]
    assert made(good, bad) not in others
    assert len({json.dumps(signature) for signature in others}) == len(others)
    # Nor does it ask in which order a table was written.
    first, second = (
        [replace(good, tiers=tiers), bad] for tiers in ({"de": "a", "nl": "b"}, {"nl": "b", "de": "a"})
    )
    assert made(*first) == made(*second)


def test_three_systems_are_each_compared_with_the_first(good, bad):
    result = compared(good, bad, good)
    assert {row.system for row in result.directions} == {"B", "C"}
    assert {seed.result for row in result.directions for seed in row.seeds if row.system == "B"} == {LOSS}
    assert {seed.result for row in result.directions for seed in row.seeds if row.system == "C"} == {TIE}


# ---------------------------------------------------------------- joint draws


def multi_parallel(codes, sentences=SENTENCES, seed=0, share=0.3, systems_seed=1, **more):
    """Outputs of directions whose lines i are of one meaning."""
    lines = {
        code: references(f"{code} {seed}", sentences)
        for code in {c for pair in codes for c in pair.split("-")}
    }
    outputs = []
    for pair in codes:
        direction = Direction.parse(pair)
        expected = lines[direction.target]
        written = spoiled(expected, share, f"{systems_seed} {pair} {seed}")
        outputs.append(Outputs(direction, written, expected, lines[direction.source]))
    return outputs


def test_directions_that_share_a_side_line_by_line_are_drawn_together():
    one = multi_parallel(["en-de", "de-en", "fr-en", "de-nl"], seed=1)
    other = multi_parallel(["en-cs", "ru-cs"], seed=2)
    apart = multi_parallel(["es-en"], seed=3)
    numbers = Draws.of([*one, *other, *apart]).numbers
    # de-nl is one with fr-en by way of de-en; en-cs has other English.
    assert numbers[:4] == [numbers[0]] * 4
    assert numbers[4] == numbers[5]
    assert len(set(numbers)) == 3
    assert Draws.of([*one, *other, *apart]).partly_shared == []


def test_what_a_vocabulary_does_to_some_lines_parts_no_test_sets():
    first, second = multi_parallel(["fr-en", "de-en"])
    changed = [
        line.replace("ba", "<unk>") if i % 3 == 0 else line for i, line in enumerate(second.references)
    ]
    assert Draws.of([first, replace(second, references=changed)]).numbers == [0, 0]
    # The same sentences in another order are not one test set, and that is said.
    turned = replace(second, references=second.references[::-1])
    found = Draws.of([first, turned])
    assert found.numbers == [1, 0]  # de-en first, by name
    assert found.partly_shared == ["en"]
    (apart,) = multi_parallel(["es-en"], seed=3)
    assert Draws.of([apart, first, turned]).partly_shared == ["en"]
    of = evaluate([first, turned], signature={})
    result = compared(of, of)
    assert result.draws == [["fr-en"], ["de-en"]] and result.partly_shared == ["en"]


@pytest.mark.parametrize(
    ("own", "equal", "elsewhere", "is_one", "is_partly"),
    [
        (2, 2, 0, False, True),  # half of the lines
        (1, 3, 0, True, False),
        (3, 1, 0, False, False),  # a commonplace
        (2, 1, 1, False, True),
        (3, 0, 1, False, False),
        (2, 0, 2, False, True),
    ],
)
def test_most_lines_make_two_test_sets_one(own, equal, elsewhere, is_one, is_partly):
    """Lines of its own, those that stand at the same place in both, and those that stand at another."""
    same, moved = (
        [f"{kind} {i}" for i in range(count)] for kind, count in (("same", equal), ("moved", elsewhere))
    )
    first, second = (
        Outputs(Direction("en", code), english, [f"{code} {line}" for line in english], english)
        for code, english in (
            ("de", same + moved + [f"first {i}" for i in range(own)]),
            ("fr", same + [f"second {i}" for i in range(own)] + moved),
        )
    )
    found = Draws.of([first, second])
    assert (found.numbers == [0, 0]) == is_one
    assert (found.partly_shared == ["en"]) == is_partly


def test_test_sets_of_other_lengths_are_two():
    first, second = multi_parallel(["de-en", "fr-en"])
    shorter = Outputs(second.direction, *(text[:-5] for text in second.texts().values()))
    found = Draws.of([first, shorter])
    assert found.numbers == [0, 1] and found.partly_shared == ["en"]


def test_draws_are_numbered_by_their_first_directions_names():
    test_sets = multi_parallel(["de-en", "zu-en"], seed=1) + multi_parallel(["es-fr"], seed=2)
    assert Draws.of(test_sets).numbers == [0, 0, 1]
    assert Draws.of(test_sets[::-1]).numbers == [1, 0, 0]


def test_unknown_sources_part_what_only_sources_share(good):
    first, second = multi_parallel(["en-de", "en-fr"])
    assert Draws.of([first, second]).numbers == [0, 0]
    assert len(set(Draws.of([replace(first, sources=None), second]).numbers)) == 2
    without = [replace(output, sources=None) for output in good.outputs]
    unknown = evaluate(without, signature=good.signature)
    assert compared(unknown, unknown, samples=25).unknown_sources == [str(d) for d in DIRECTIONS]
    assert compared(unknown, good, samples=25).unknown_sources == []  # one evaluation suffices


PAIRS = ["en-de", "de-en", "en-fr", "fr-en", "en-cs", "cs-en"]


def of_pairs(share, seed, pairs=PAIRS, **more):
    return evaluate(multi_parallel(pairs, share=share, systems_seed=seed), signature={}, **more)


@pytest.mark.parametrize("pairs", [PAIRS, ["en-de"]])
def test_a_joint_interval_is_that_of_the_mean_on_sacrebleus_draws(pairs):
    systems = [of_pairs(0.3, 1, pairs), of_pairs(0.33, 2, pairs)]
    result = compared(*systems)
    assert result.draws == [pairs]
    for endpoint in OF_TEXTS:
        found = [
            resampled_scores([system.outputs[at] for system in systems], samples=SAMPLES)
            for at in range(len(pairs))
        ]
        differences = [b[endpoint.key].samples - a[endpoint.key].samples for a, b in found]
        overall = next(r for r in result.groups if (r.kind, r.metric) == ("overall", endpoint.key))
        joint = overall.over_sentences
        assert (joint.low, joint.high) == pytest.approx(interval(np.mean(differences, axis=0)))
        assert joint.standard_error == pytest.approx(np.mean(differences, axis=0).std())
        if len(pairs) == 1:
            row = next(r for r in result.directions if r.metric == endpoint.key)
            assert (joint.low, joint.high, joint.p_value) == pytest.approx(
                (row.low, row.high, row.seeds[0].p_value)
            )


def groups_of(comparison):
    return {
        (row.system, row.metric, row.kind, row.name, row.group): row.over_sentences
        for row in comparison.groups
    }


def assert_same_groups(first, second):
    assert first.keys() == second.keys()
    for key, of in first.items():
        assert vars(of) == pytest.approx(vars(second[key])), key


@pytest.mark.parametrize("pairs", [PAIRS, None], ids=["one draw", "five draws"])
def test_order_of_directions_and_seeds_changes_no_group(pairs, good, bad):
    a = [of_pairs(0.3, 1), of_pairs(0.3, 2)] if pairs else [good, evaluated(0.3, seed=3)]
    b = [of_pairs(0.33, 3), of_pairs(0.33, 4)] if pairs else [evaluated(0.35, seed=4), bad]
    here = compared(a, b)

    def turned(seed):
        return evaluate(seed.outputs[::-1], signature={})

    assert_same_groups(groups_of(here), groups_of(compared(a[::-1], b[::-1])))
    assert_same_groups(groups_of(here), groups_of(compared(list(map(turned, a)), list(map(turned, b)))))


def test_draws_of_other_sentences_are_independent():
    """Though all are by one seed: the variance of a mean over unrelated test sets is that of independent ones."""
    directions = ["en-de", "en-fr", "en-cs", "en-ru"]
    test_sets = [multi_parallel([pair], seed=i)[0] for i, pair in enumerate(directions)]
    draws = Draws.of(test_sets)
    assert sorted(draws.numbers) == [0, 1, 2, 3]
    same = np.random.default_rng(1).normal(size=2000)  # as if sentence i had the same difference in all
    assert draws.mean([same] * 4, range(4)).std() == pytest.approx(same.std() / 2, rel=0.1)
    together = Draws.of(multi_parallel(directions))
    assert together.mean([same] * 4, range(4)).std() == pytest.approx(same.std())


def test_joint_intervals_cover_what_those_over_directions_do_not():
    """Directions that share sentences: the joint interval holds the truth in 95 % of cases, and what is as large as the
    smallest visible difference is seen in 80 %."""
    repeats, count, sentences, samples = 500, 8, 60, 400
    generator = np.random.default_rng(7)
    # What a sentence does to all directions, and what to each.
    common = generator.normal(size=(repeats, 1, sentences))
    values = common + generator.normal(size=(repeats, count, sentences))
    draws = Draws.of(
        multi_parallel([f"en-{code}" for code in ("de", "fr", "cs", "ru", "es", "nl", "it", "sv")])
    )
    drawn = _draws(sentences, samples) / sentences
    found = []
    for of_directions in values:
        joint = draws.mean([drawn @ of for of in of_directions], range(count))
        found.append(Uncertainty.of_samples(of_directions.mean(), joint, 0.05))
    assert np.mean([of.low <= 0 <= of.high for of in found]) == pytest.approx(0.95, abs=0.025)
    assert np.mean([of.p_value < 0.05 for of in found]) == pytest.approx(0.05, abs=0.025)
    shift = fmean(of.smallest_visible for of in found)
    seen = []
    for of_directions, of in zip(values, found):
        resampled = draws.mean([drawn @ row for row in of_directions + shift], range(count))
        seen.append(Uncertainty.of_samples(of_directions.mean() + shift, resampled, 0.05).p_value < 0.05)
        assert of.smallest_visible > 0
    assert np.mean(seen) == pytest.approx(0.8, abs=0.04)
    # A bootstrap over directions, as if they were a sample of which each had its own sentences.
    means = values.mean(axis=2)
    over = means[:, generator.integers(count, size=(samples, count))].mean(axis=2)
    low, high = np.quantile(over, (0.025, 0.975), axis=1)
    assert ((low <= 0) & (high >= 0)).mean() < 0.6


# ---------------------------------------------------------------- likelihood, COMET


def with_likelihood(evaluation, shift=0.0, seed=0, tokens=None, missing=()):
    """Made-up negative log-likelihoods, the same for the same seed but for ``shift`` nats a token."""
    sentences, scores = {}, []
    for output, score in zip(evaluation.outputs, evaluation.scores):
        count = len(output.references)
        generator = np.random.default_rng([seed, *str(output.direction).encode()])
        own = (
            np.array([len(line.split()) + 1.0 for line in output.references])
            if tokens is None
            else np.full(count, float(tokens))
        )
        nll = own * (generator.normal(3, 0.1, count) + shift)
        own[list(missing)] = nll[list(missing)] = np.nan
        sentences[output.direction] = SentenceScores(text_nll=nll, text_tokens=own)
        scores.append(replace(score, nll=Ratio(nll, own).value))
    return replace(evaluation, sentences=sentences, scores=scores)


def test_a_ratio_is_that_of_the_drawn_sums():
    generator = np.random.default_rng(0)
    ratio = Ratio(generator.normal(3, 1, 12), generator.integers(1, 9, 12).astype(float))
    found = resampled_ratio(ratio, SAMPLES)
    drawn = np.random.default_rng(12345).choice(12, size=(SAMPLES, 12), replace=True)
    expected = ratio.numerators[drawn].sum(axis=1) / ratio.denominators[drawn].sum(axis=1)
    assert found.samples == pytest.approx(expected)
    assert found.score == ratio.value
    # A sentence without one adds nothing, wherever the NaN stands.
    numerators, denominators = ratio.numerators.copy(), ratio.denominators.copy()
    numerators[3] = denominators[5] = np.nan
    kept = ~np.isin(drawn, (3, 5))
    expected = (ratio.numerators[drawn] * kept).sum(axis=1) / (ratio.denominators[drawn] * kept).sum(axis=1)
    assert resampled_ratio(Ratio(numerators, denominators), SAMPLES).samples == pytest.approx(expected)


def test_a_draw_of_sentences_without_one_has_the_score_of_all():
    ratio = Ratio(np.array([3.0, np.nan, np.nan]), np.array([2.0, np.nan, np.nan]))
    found = resampled_ratio(ratio, SAMPLES)
    drawn = np.random.default_rng(12345).choice(3, size=(SAMPLES, 3), replace=True)
    assert (drawn != 0).all(axis=1).any()
    assert (found.samples == 1.5).all()


def test_a_draw_of_one_token_counts():
    ratio = Ratio(np.array([3.0, np.nan, 5.0]), np.array([1.0, np.nan, 4.0]))
    drawn = np.random.default_rng(12345).choice(3, size=(SAMPLES, 3), replace=True)
    of_one_token = ((drawn == 0).sum(axis=1) == 1) & ((drawn == 1).sum(axis=1) == 2)
    assert of_one_token.any()
    assert (resampled_ratio(ratio, SAMPLES).samples[of_one_token] == 3).all()


@pytest.mark.parametrize("families", [{}, {"de": "Own"}])
@pytest.mark.parametrize("tiers", [None, {"de": "high"}])
def test_a_direction_has_its_group_family_and_tier_if_there_are_tiers(good, bad, tiers, families):
    result = compared(*(replace(each, tiers=tiers, families=families) for each in (good, bad)))
    for row in result.directions:
        assert row.group == row.direction.group.code
        assert row.family == family_in(families, row.direction)
        assert row.tier == (tier_in(tiers, row.direction) if tiers else None)
    named = {kind: {row.name for row in result.groups if row.kind == kind} for kind in ("family", "tier")}
    assert named["family"] == {row.family for row in result.directions if row.family}
    assert ("Own" in named["family"]) == bool(families)
    assert named["tier"] == ({"high", UNKNOWN} if tiers else set())


def test_a_p_of_alpha_is_no_win(good):
    other = evaluated(0.35, seed=3)
    p = min(seed.p_value for seed in seeds_of(compared(good, other)) if seed.p_value > 2 / SAMPLES)
    holm_p = min(
        seed.holm_p_value for seed in seeds_of(compared(good, other)) if 2 / SAMPLES < seed.holm_p_value < 1
    )
    assert {seed.result for seed in seeds_of(compared(good, other, alpha=p)) if seed.p_value == p} == {TIE}
    found = seeds_of(compared(good, other, alpha=holm_p))
    assert {seed.holm_result for seed in found if seed.holm_p_value == holm_p} == {TIE}


def test_likelihood_comes_first_and_less_is_better(good, bad):
    result = compared(with_likelihood(good), with_likelihood(bad, shift=-0.2, seed=1))
    assert [endpoint.key for endpoint in result.endpoints] == ["nll", "bleu", "chrf"]
    assert {seed.result for seed in seeds_of(result, "nll")} == {WIN}
    assert {seed.result for seed in seeds_of(result, "bleu")} == {LOSS}
    assert {seed.sacrebleu_p_value for seed in seeds_of(result, "nll")} == {None}
    overall = result.groups[0]
    assert overall.metric == "nll" and overall.results[WIN] == len(DIRECTIONS)
    assert overall.difference.mean == pytest.approx(-0.2, abs=0.05)
    assert list(result.sacrebleu) == ["bleu", "chrf"]
    text = comparison_markdown(result)
    assert "| NLL (lower is better): mean over |" in text
    assert text.index("NLL (lower is better)") < text.index("| BLEU: mean over")
    assert "chosen before a run: likelihood and BLEU can differ" in text
    assert "sacreBLEU's p" not in text.split("## NLL, every direction")[1].split("##")[0]
    assert "sacreBLEU's p" in text.split("## BLEU, every direction")[1].split("##")[0]
    figure = score_differences(result)
    assert [ax.get_title("left") for ax in figure.axes] == ["NLL", "BLEU", "chrF++"]
    assert figure.axes[0].get_xlabel() == "difference to A, less is better"
    baseline, row = Difference.of_groups(result)
    bleu = [seed.holm_result for seed in seeds_of(result, "bleu")]
    assert (row.wins, row.losses) == (bleu.count(WIN), bleu.count(LOSS))
    assert (baseline.wins, baseline.losses) == (None, None)
    assert (baseline.nll_difference, row.nll - baseline.nll) == (None, pytest.approx(row.nll_difference))
    assert row.nll_low < row.nll_difference < row.nll_high < 0
    table = difference_table("A", [baseline, row])
    assert list(table.header[:4]) == ["system", "NLL - A", "95% interval, NLL", "BLEU"]
    assert table.rows[0][1:3] == (None, None)
    assert table.rows[1][1] == f"{row.nll_difference:+.3f}"
    assert difference_table("A", Difference.of_groups(compared(good, bad))).header[1] == "BLEU"


@dataclass(frozen=True)
class OfPart(Difference):
    part: str = ""


def test_differences_are_those_of_the_groups_the_baseline_first(good, bad):
    given = (good, bad, evaluated(0.4, seed=4))
    systems = [with_likelihood(replace(each, tiers={"de": "high"}), seed=at) for at, each in enumerate(given)]
    result = compared(*systems)
    found = OfPart.of_groups(result, ("overall", "tier"), part="all")
    names = ["all", "high", UNKNOWN]
    by_system = {system: [row.name for row in found if row.system == system] for system in "ABC"}
    assert by_system == dict.fromkeys("ABC", names)
    assert [row.system for row in found if row.name == "high"] == ["A", "B", "C"]
    assert {row.part for row in found} == {"all"} and {row.baseline for row in found} == {"A"}
    groups = {
        (of.system, of.name, of.metric): of
        for of in result.groups
        if of.kind in ("overall", "tier") and of.group == "all"
    }
    for row in found:
        nll, bleu, chrf = (
            groups["B" if row.system == "A" else row.system, row.name, key] for key in ("nll", "bleu", "chrf")
        )
        if row.system == "A":
            assert (row.bleu, row.chrf, row.nll) == (
                bleu.baseline.mean,
                chrf.baseline.mean,
                nll.baseline.mean,
            )
            assert {
                row.difference,
                row.chrf_difference,
                row.nll_difference,
                row.uncertainty,
                row.nll_uncertainty,
            } == {None}
        else:
            assert (row.bleu, row.chrf, row.nll) == (bleu.score.mean, chrf.score.mean, nll.score.mean)
            differences = (row.difference, row.chrf_difference, row.nll_difference)
            assert differences == (bleu.difference.mean, chrf.difference.mean, nll.difference.mean)
            assert (row.uncertainty, row.nll_uncertainty) == (bleu.over_sentences, nll.over_sentences)
    assert found[1].values({"of": "system", "BLEU": "bleu"}) == {"of": found[1].system, "BLEU": found[1].bleu}


def test_a_shift_of_likelihood_moves_the_interval_and_nothing_else(good):
    a = with_likelihood(good)
    near, far = (compared(a, with_likelihood(good, shift, seed=1)).groups[0] for shift in (0, 0.5))
    for name in ("low", "high"):
        moved = getattr(far.over_sentences, name) - getattr(near.over_sentences, name)
        assert moved == pytest.approx(0.5)
    assert far.over_sentences.smallest_visible == pytest.approx(near.over_sentences.smallest_visible)
    assert far.difference.mean - near.difference.mean == pytest.approx(0.5)


def test_the_baseline_with_the_better_likelihood_makes_losses(good):
    result = compared(with_likelihood(good, shift=-0.2, seed=1), with_likelihood(good))
    assert {seed.result for seed in seeds_of(result, "nll")} == {LOSS}


def test_what_some_evaluations_lack_is_left_out_and_said(good, bad):
    known = with_likelihood(good)
    result = compared(known, [known, bad], known)
    assert [endpoint.key for endpoint in result.endpoints] == ["bleu", "chrf"]
    assert result.left_out == {"nll": "not known of B, seed 2"}
    text = comparison_markdown(result)
    assert "# Not compared\n\nNLL is left out: not known of B, seed 2." in text
    some = dict(list(known.sentences.items())[1:])
    assert compared(known, replace(known, sentences=some)).left_out == {"nll": "not known of B for en-de"}
    assert compared(good, bad).left_out == {}
    assert "Not compared" not in comparison_markdown(compared(good, bad))


def test_likelihoods_of_other_vocabularies_are_not_compared(good, bad):
    result = compared(with_likelihood(good, tokens=9), with_likelihood(bad, tokens=7))
    assert NLL not in result.endpoints
    assert result.left_out["nll"] == (
        "other vocabularies: sentence 1 of en-de has 9 target tokens for A, 7 for B"
    )


def test_a_sentence_too_long_for_one_system_is_refused(good, bad):
    both = compared(with_likelihood(good, missing=[4]), with_likelihood(bad, missing=[4]))
    assert NLL in both.endpoints
    with pytest.raises(NeuronSpecError, match="NLL of different sentences cannot be compared") as error:
        compared(with_likelihood(good), with_likelihood(bad, missing=[4]))
    message = str(error.value)
    assert "A; B, en-de, sentence 5" in message
    assert "a value of A, none of B" in message
    assert "--no-likelihood" in message
    with pytest.raises(NeuronSpecError, match="a value of B, none of A"):
        compared(with_likelihood(good, missing=[4]), with_likelihood(bad))


@pytest.mark.parametrize("sentence", [0.5, math.nan])
def test_sentences_without_a_mean_are_not_known(good, sentence):
    known = with_comet(good, sentence)
    mean = 0.5 if math.isnan(sentence) else None
    scores = [replace(score, comet=mean) for score in known.scores]
    assert sentence_scores(replace(known, scores=scores), 0, COMET) is None
    assert sentence_scores(with_comet(good, 0.5), 0, COMET).value == 0.5


def test_likelihoods_that_are_not_those_of_the_sentences(good):
    known = with_likelihood(good)
    other = [replace(score, nll=score.nll + 0.1) for score in known.scores]
    with pytest.raises(ArtifactError, match=r"(?s)B, en-de, NLL\n.*evaluate again"):
        compared(known, replace(known, scores=other))


def test_evaluations_grouped_around_different_languages_are_refused(good, bad):
    with pytest.raises(NeuronSpecError, match=r"around different languages\n.*A: en, B: de"):
        compared(good, replace(bad, pivot="de"))
    names = [
        comparison_signature([System("A", [of]), System("B", [of])], samples=9, alpha=0.05)
        for of in (good, replace(good, pivot=None))
    ]
    assert names[0]["inputs"] != names[1]["inputs"]


def with_comet(evaluation, values, **parameters):
    sentences = {
        output.direction: SentenceScores(comet=np.full(len(output.references), values))
        for output in evaluation.outputs
    }
    scores = [replace(score, comet=values) for score in evaluation.scores]
    signature = {"parameters": parameters} if parameters else evaluation.signature
    return replace(evaluation, sentences=sentences, scores=scores, signature=signature)


def test_comet_is_the_mean_of_its_sentences_and_of_one_model(good, bad):
    result = compared(with_comet(good, 0.8), with_comet(bad, 0.75))
    assert [endpoint.key for endpoint in result.endpoints] == ["bleu", "chrf", "comet"]
    assert {seed.result for seed in seeds_of(result, "comet")} == {LOSS}
    assert "-0.0500" in comparison_markdown(result)
    other = compared(with_comet(good, 0.8, comet="one"), with_comet(bad, 0.75, comet="two"))
    assert other.left_out == {"comet": "by different models: one of A, two of B"}


def test_the_signature_knows_sentence_scores(good, bad):
    def made(*evaluations):
        systems = comparable([System("AB"[i], [seed]) for i, seed in enumerate(evaluations)])
        return comparison_signature(systems, samples=SAMPLES, alpha=0.05)

    a, b = with_likelihood(good), with_likelihood(bad)
    assert made(a, b) == made(a, b) != made(a, with_likelihood(bad, seed=9))
    assert made(a, bad) == made(good, bad)  # nothing to compare by it


def test_where_holm_leaves_nothing_tables_say_so_and_figures_are_pale(good, bad):
    result = compared(good, bad, evaluated(0.31, seed=9))
    assert (result.is_noise("B", OF_TEXTS[0]), result.is_noise("C", OF_TEXTS[0])) == (False, True)
    b, c = comparison_markdown(result).split("# C against A")
    line = "**No direction differs after Holm's adjustment: none of the differences below can be told from noise.**\n\n| direction"
    assert line not in b
    assert c.count(line) == 2
    figure = score_differences(result)
    dots = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "D")]
    assert {(line.get_marker(), line.get_alpha()) for line in dots} == {("o", None), ("D", 0.3)}
    assert figure.legends[0].get_texts()[-1].get_text() == "pale: no direction after Holm"


def test_t_over_seeds_stands_beside_the_joint_interval(good, tmp_path):
    a = [evaluated(0.3, seed=seed) for seed in (1, 2, 3)]
    b = [evaluated(0.35, seed=seed) for seed in (4, 5, 6)]
    result = compared(a, b)
    assert all(row.over_seeds for row in result.groups)
    text = comparison_markdown(result)
    for word in ("| 95 % interval, t over seeds |", "| p, t over seeds |", "| smallest visible over seeds |"):
        assert word in text
    write_comparison(tmp_path, result)
    assert as_plain(read_comparison(tmp_path / "comparison.json")) == as_plain(result)
    # A single evaluation beside three is not three, and two are too few.
    for baseline, systems in ((good, b), (a[:2], b[:2])):
        assert {row.over_seeds for row in compared(baseline, systems).groups} == {None}
    assert "No t over seeds" in comparison_markdown(compared(a[:2], b[:2]))


def test_nine_systems_beside_the_baseline_look_each_their_own_way(good):
    figure = score_differences(compared(good, *[evaluated(0.3, seed=seed) for seed in range(9)], samples=25))
    looks = {(of.get_color(), of.get_marker()) for of in figure.legends[0].legend_handles}
    assert len({look for look in looks if look[1] not in ("None", "|")}) >= 9


def test_no_table_of_means_is_wide(good, bad):
    result = compared(
        [with_likelihood(good, seed=i) for i in range(3)], [with_likelihood(bad, seed=i) for i in (3, 4, 5)]
    )
    headers = [line for line in comparison_markdown(result).splitlines() if re.search(r"mean over +\|", line)]
    assert len(headers) == 4  # three endpoints, and what is folded
    assert max(line.count("|") - 1 for line in headers) <= 9


def test_a_comparison_of_an_earlier_version_shows_what_it_has():
    old = read_comparison(Path(__file__).parents[1] / "frozen/0.1.0/comparison/comparison.json")
    overall = old.groups[0]
    assert overall.sign_flip_p_value == pytest.approx(0.65625)
    assert (overall.over_sentences, overall.over_seeds, old.draws) == (None, None, [])
    text = comparison_markdown(old)
    assert "| all languages   | all   |" in text and "of an earlier version" in text
    assert "0.656" in text.split("sign-flip over directions |")[1]
    row = Difference.of_groups(old)[1]
    assert (row.low, row.p_value, row.wins) == (None, None, 0)
    score_differences(old)


# ---------------------------------------------------------------- seeds


def test_mean_and_deviation_over_seeds(good):
    a = [good, evaluated(0.32, seed=7), evaluated(0.28, seed=8)]
    b = [evaluated(0.35, seed=seed) for seed in (11, 12, 13)]
    result = compared(a, b)
    row = next(r for r in result.directions if (r.metric, str(r.direction)) == ("chrf", "nl-en"))
    of_a, of_b = ([seed.scores[3].chrf for seed in seeds] for seeds in (a, b))
    paired = [y - x for x, y in zip(of_a, of_b)]
    for over_seeds, values in ((row.baseline, of_a), (row.score, of_b), (row.difference, paired)):
        assert (over_seeds.mean, over_seeds.std) == pytest.approx((fmean(values), stdev(values)))
    assert [seed.difference for seed in row.seeds] == paired

    group = next(r for r in result.groups if (r.metric, r.name) == ("chrf", "M2O"))
    means = [fmean(y.scores[i].chrf - x.scores[i].chrf for i in (1, 3)) for x, y in zip(a, b)]  # de-en, nl-en
    assert (group.difference.mean, group.difference.std) == pytest.approx((fmean(means), stdev(means)))
    assert sum(group.results.values()) == 2 * 3

    overall = next(r for r in result.groups if (r.metric, r.kind) == ("chrf", "overall"))
    of_directions = [r.difference.mean for r in result.directions if r.metric == "chrf"]
    assert overall.sign_flip_p_value == sign_flip_p_value(of_directions) < 1
    assert group.over_seeds == Uncertainty.over_seeds(means, 0.05)


def test_a_single_seed_is_compared_with_each(good, bad):
    several = [bad, evaluated(0.4, seed=21)]
    result, mirrored = compared(good, several), compared(several, good)
    for row, back in zip(result.directions, mirrored.directions, strict=True):
        assert [seed.difference for seed in row.seeds] == [-seed.difference for seed in back.seeds]
        assert row.baseline.std is None
        assert row.score == back.baseline
        assert row.score.std == pytest.approx(row.difference.std)


def test_pairs_of_seeds_are_as_those_alone(good, bad):
    a, b = [good, evaluated(0.3, seed=31)], [evaluated(0.35, seed=32), bad]
    together = compared(a, b)
    for index in range(2):
        alone = compared(a[index], b[index])
        assert [row.seeds[index] for row in together.directions] == seeds_of(alone)


def test_seeds_that_do_not_pair_up(good, bad):
    with pytest.raises(NeuronSpecError, match=r"got: +3 of B\n.*1 or 2, as of the baseline A"):
        compared([good, bad], [good, bad, good])


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_systems(count, good):
    with pytest.raises(NeuronSpecError, match="nothing to compare"):
        comparable([System("A", [good])][:count])


def test_two_systems_of_one_name(good, bad):
    with pytest.raises(NeuronSpecError, match="two systems have one name"):
        comparable([System("A", [good]), System("A", [bad])])


def test_other_directions(good):
    fewer = evaluated(0.4, directions=[*DIRECTIONS[1:], Direction("en", "fr")])
    with pytest.raises(DirectionError, match=r"only B has en-fr\n.*only A has en-de\n.*--common-directions"):
        compared(good, fewer)
    result = compared(good, fewer, common_directions=True)
    assert [str(row.direction) for row in result.directions[:4]] == ["de-en", "en-qa", "nl-en", "de-nl"]
    assert result.groups[0].directions == 4
    elsewhere = evaluated(directions=[Direction("en", "fr")])
    with pytest.raises(DirectionError, match="no direction in common"):
        compared(good, elsewhere, common_directions=True)


def with_text(evaluation, **changes):
    outputs = [replace(evaluation.outputs[0], **changes), *evaluation.outputs[1:]]
    return evaluate(outputs, signature=evaluation.signature)


@pytest.mark.parametrize("text", ["references", "sources"])
def test_other_texts_are_shown_on_both_sides(good, text):
    lines = list(getattr(good.outputs[0], text))
    lines[4] = "something else"
    with pytest.raises(NeuronSpecError, match=rf"different {text}") as error:
        compared(good, with_text(good, **{text: lines}))
    message = str(error.value)
    assert "A; B, en-de" in message
    assert "the 5th: 'something else'" in message
    assert f"the 5th: {getattr(good.outputs[0], text)[4]!r}" in message


def test_a_shorter_test_set(good):
    first = good.outputs[0]
    shorter = with_text(
        good, hypotheses=first.hypotheses[:-1], references=first.references[:-1], sources=first.sources[:-1]
    )
    with pytest.raises(NeuronSpecError, match=r"got: +29 lines.*nothing\n.*expected: +30 lines"):
        compared(good, shorter)


def test_unknown_sources_are_no_hindrance(good):
    without = evaluate([replace(o, sources=None) for o in good.outputs], signature=good.signature)
    assert len(compared(good, without).directions) == 2 * len(DIRECTIONS)


def test_other_signatures_of_sacrebleu(good):
    scores = [replace(score, bleu_signature="tok:zh") for score in good.scores]
    with pytest.raises(
        NeuronSpecError, match=r"differ in BLEU signature.*\n.*en-de\n.*tok:zh of B\n.*tok:13a"
    ):
        compared(good, replace(good, scores=scores))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"beam": 5}, {"beam": 5}, ""),
        ({"beam": 5}, {"beam": 4}, "beam: 4, not beam: 5"),
        ({"beam": 5, "lenpen": 1.2}, {"beam": 5}, "lenpen: absent, not lenpen: 1.2"),
        ({"beam": 5, "fairseq_flags": []}, {"beam": 5, "fairseq_flags": ["--unkpen", "1"]}, "--unkpen"),
        ({"beam": 5, "lenpen": 1.2}, {"references": "T lines of the logs"}, ""),
    ],
)
def test_systems_that_were_translated_otherwise_are_warned_of(one, other, message, capsys):
    systems = [System(name, [evaluated(parameters=made)]) for name, made in (("A", one), ("B", other))]
    comparable(systems)
    said = capsys.readouterr().err
    assert message in said
    assert ("B was translated otherwise than A" in said) == bool(message)


def test_seeds_may_be_translated_otherwise_if_pairs_are_not(capsys):
    ways = [{"beam": 5, "lenpen": value} for value in (1.0, 1.4)]
    same = [System(name, [evaluated(parameters=way) for way in ways]) for name in "AB"]
    comparable(same)
    assert not capsys.readouterr().err
    comparable([same[0], System("B", same[1].seeds[::-1])])
    assert "B, seed 1 was translated otherwise than A, seed 1" in capsys.readouterr().err
    of_logs = evaluated(parameters={"references": "T lines of the logs"})
    comparable([System("A", [of_logs, same[0].seeds[0]]), System("B", [of_logs, same[0].seeds[1]])])
    assert "B, seed 2 was translated otherwise than A, seed 2" in capsys.readouterr().err


def test_scoring_is_official_where_it_says_so():
    assert [is_official(evaluated(**of)) for of in ({}, {"parameters": {"official_scoring": True}})] == [
        False,
        True,
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_other_data_bins_and_scoring(good, order):
    def made(data="x", official=False, pairs=("en-de", "de-en")):
        parameters = {"official_scoring": official, "directions": list(pairs)}
        return replace(good, signature={"inputs": {"data": data}, "parameters": parameters})

    def said(first, second):
        with pytest.raises(NeuronSpecError) as error:
            compared(*[first, second][::order])
        return [line.partition(":")[2].strip() for line in str(error.value).splitlines()[2:4]], str(
            error.value
        )

    (got, expected), message = said(made("x"), made("y"))
    assert "data-bin (its text or vocabulary)" in message
    assert (got, expected) == (("y of B", "x, as of A") if order == 1 else ("x of B", "y, as of A"))
    (got, expected), message = said(made(), made(official=True))
    assert "official scoring" in message
    assert (got, expected) == (
        ("True of B", "False, as of A") if order == 1 else ("False of B", "True, as of A")
    )
    # The hash covers the files of all directions: with others it says nothing.
    compared(*[made("x"), made("y", pairs=["en-de"])][::order], samples=25)


def test_scores_that_are_not_those_of_the_texts(good, bad):
    with pytest.raises(ArtifactError, match=r"(?s)B, en-de, BLEU\n.*evaluate again"):
        compared(bad, replace(good, outputs=bad.outputs))


@pytest.mark.parametrize("value", [math.nan, None, "12.3", math.inf])
def test_scores_that_are_no_numbers(good, value):
    broken = [replace(good.scores[0], bleu=value), *good.scores[1:]]
    with pytest.raises(ArtifactError, match=r"(?s)B, en-de, BLEU\n.*evaluate again"):
        compared(good, replace(good, scores=broken))


@pytest.mark.parametrize(("samples", "alpha"), [(19, 0.05), (0, 0.05), (100, 0), (100, 1), (100, -0.1)])
def test_samples_too_few_for_alpha(good, bad, samples, alpha):
    with pytest.raises(NeuronSpecError, match="no p-value could be below alpha"):
        compared(good, bad, samples=samples, alpha=alpha)


# ---------------------------------------------------------------- official scoring, files, figure


def test_official_scoring_is_kept(good):
    pytest.importorskip("sacremoses")
    given = good.outputs[1]
    assert given.direction.target == "en"  # whose rules join "it 's", one word to 13a
    texts = [[f"it 's {line}" for line in lines] for lines in (given.hypotheses, given.references)]
    outputs = [Outputs(given.direction, *texts)]
    official = evaluate(outputs, signature={"parameters": {"official_scoring": True}}, official=True)
    assert official.scores[0].bleu != evaluate(outputs, signature={}).scores[0].bleu
    row = compared(official, official).directions[0]
    assert row.score.mean == official.scores[0].bleu


def test_files_agree(tmp_path, good, bad):
    result = compared([good, bad], [bad, evaluated(0.5, seed=41)])
    write_comparison(tmp_path, result)
    content = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    with open(tmp_path / "comparison.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(OF_TEXTS) * len(DIRECTIONS) * 2
    first = content["directions"][0]
    assert (first["direction"], rows[0]["direction"], rows[1]["seed"]) == ("en-de", "en-de", "2")
    assert float(rows[1]["p_value"]) == first["seeds"][1]["p_value"]
    assert content["signature"] == result.signature
    assert content["groups"][0]["results"] == result.groups[0].results
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") == comparison_markdown(result)


def test_the_table_shows_each_result_and_warns_where_holm_cannot_tell(good, bad):
    text = comparison_markdown(compared([good, good], [bad, good]))
    assert "| 0 wins, 1 tie, 1 loss |" in text
    assert "No Holm p can be below" not in text
    assert "±" in text
    text = comparison_markdown(compared(good, bad, samples=50))
    assert "No Holm p can be below 0.05 with 50 samples for 5 directions: the smallest is 0.098." in text
    assert "| sacreBLEU's p |" in text and "p is ours and two-sided" in text
    assert "±" not in text


def test_the_figure_draws_the_intervals_and_names_what_is_in_it(good, bad):
    result = compared([good, good], [bad, good])
    figure = score_differences(result)
    ordered = ["en-de", "en-qa", "de-en", "nl-en", "de-nl"]
    for ax, endpoint in zip(figure.axes, OF_TEXTS, strict=True):
        intervals = [line.get_xydata().tolist() for line in ax.lines if len(set(line.get_ydata())) == 1]
        means = {line.get_xydata()[0][0] for line in ax.lines if line.get_marker() == "|"}
        dots = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
        rows = [row for row in result.directions if row.metric == endpoint.key]
        assert means == {row.difference.mean for row in rows}
        for row in rows:
            y = ordered.index(str(row.direction))
            assert [[row.low, y], [row.high, y]] in intervals
            assert [x for x, at in dots if at == y] == [seed.difference for seed in row.seeds]
        (zero,) = (line for line in ax.lines if list(line.get_xdata()) == [0, 0])
        assert zero.get_color() == "#777777"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["B", "p < 0.05, two-sided", "p ≥ 0.05", "mean over seeds"]
    named = {text.get_text(): text.xy[1] for text in figure.axes[-1].texts}
    assert set(named) == {row.family or "unknown" for row in result.directions}


def test_the_figure_of_very_many_directions_is_no_taller_than_can_be_drawn(monkeypatch, good, bad):
    result = compared(good, bad)
    usual = score_differences(result).get_figheight()
    monkeypatch.setattr("neuron_spec.scoring.figures._TALLEST", 0.1)
    assert usual > score_differences(result).get_figheight() == pytest.approx(1.6 + 0.1)


def test_figure_marks_what_is_significant(tmp_path, good, bad):
    figure = score_differences(compared(good, bad, good))
    assert len(figure.axes) == len(OF_TEXTS)
    for ax in figure.axes:
        dots = [line for line in ax.lines if line.get_marker() in ("o", "D")]
        assert len(dots) == 2 * len(DIRECTIONS)
        filled = [line for line in dots if line.get_markerfacecolor() != "white"]
        assert {line.get_marker() for line in filled} == {"o"}  # all of B, none of C
        assert all(line.get_xdata()[0] < 0 for line in filled)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["en→de", "en→qa", "de→en", "nl→en", "de→nl"]
    for name, start in (("figure.png", b"\x89PNG"), ("figure.svg", b"<?xml")):
        for path in (tmp_path / "one" / name, tmp_path / "two" / name):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(rendered(figure, path.suffix[1:]))
        assert (tmp_path / "one" / name).read_bytes().startswith(start)
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
