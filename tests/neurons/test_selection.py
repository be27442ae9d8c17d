from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from neuron_spec.directions import parse_directions
from neuron_spec.errors import DirectionError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.selection import by_language, cumulative, ks_per_direction, parse_k, select

KS = [Fraction(k) for k in ("0.01", "1", "25", "50", "70", "90", "95", "99.9", "100")]
DIRECTIONS = parse_directions("en-qa,en-qb,qa-en,qb-en")
WIDTHS = {"encoder.layers.0": 12, "decoder.layers.0": 9}


def random_counts(seed: int, width: int = 40, highest: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, highest, (width,), generator=generator)


def profile(seed: int = 0) -> ActivationCounts:
    found = ActivationCounts.zeros(DIRECTIONS, WIDTHS)
    for number, layer in enumerate(WIDTHS):
        for row in range(len(DIRECTIONS)):
            found.counts[layer][row] = random_counts(100 * seed + 10 * number + row, WIDTHS[layer])
    for tokens in found.tokens.values():
        tokens += 30
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", KS)
def test_the_kept_neurons_cover_k_percent_and_none_is_superfluous(seed, k):
    counts = random_counts(seed)
    kept = cumulative(counts, k)
    total, covered = int(counts.sum()), int(counts[kept].sum())
    assert Fraction(covered, total) >= k / 100
    assert Fraction(covered - int(counts[kept].min()), total) < k / 100
    assert counts[kept].min() >= counts[~kept].max() if (~kept).any() else True


@pytest.mark.parametrize("seed", range(5))
def test_sets_are_nested_as_k_grows(seed):
    counts = random_counts(seed, highest=6)  # with many ties
    kept = [cumulative(counts, k) for k in KS]
    assert all(bool((small <= large).all()) for small, large in pairwise(kept))
    assert kept[0].sum() < kept[-1].sum()


@pytest.mark.parametrize("seed", range(5))
def test_at_100_exactly_the_neurons_ever_active(seed):
    counts = random_counts(seed, highest=4)
    assert (counts == 0).any()
    assert torch.equal(cumulative(counts, Fraction(100)), counts > 0)


def test_ties_go_to_the_lower_index():
    counts = torch.tensor([1, 2, 2, 2, 2, 1])
    assert cumulative(counts, Fraction(40)).tolist() == [False, True, True, False, False, False]
    assert cumulative(counts, Fraction(81)).tolist() == [True, True, True, True, True, False]


def test_the_threshold_itself_is_enough():
    counts = torch.tensor([60, 35, 5])
    assert cumulative(counts, Fraction(95)).tolist() == [True, True, False]
    assert cumulative(counts, Fraction("95.0001")).tolist() == [True, True, True]


def test_sums_are_compared_exactly():
    # In float64, 2**53 + 1 == 2**53: the last neuron would look superfluous.
    counts = torch.tensor([2**53, 1])
    assert float(2**53 + 1) == float(2**53)
    assert cumulative(counts, Fraction(100)).tolist() == [True, True]
    # 0.1 + 0.2 > 0.3 in floats; a k of 30 % of these is met exactly by the first.
    assert cumulative(torch.tensor([3, 2, 2, 2, 1]) * 10**17, Fraction(30)).tolist() == [True] + [False] * 4
    # The total exceeds int64.
    assert cumulative(torch.full((3,), 2**62), Fraction(100)).tolist() == [True] * 3


def test_a_layer_that_was_never_active():
    with pytest.raises(SelectionError, match="no neuron was active"):
        cumulative(torch.zeros(4, dtype=torch.int64), Fraction(95))


@pytest.mark.parametrize("text", ["0", "101", "100.001", "-5", "nan", "inf", "", "many", "95%", "1/0"])
def test_bad_k(text):
    with pytest.raises(SelectionError, match="bad k"):
        parse_k(text)


def test_k_is_read_exactly():
    assert parse_k("99.5") == Fraction(199, 2)
    assert parse_k("100") == 100
    assert parse_k("0.1") == Fraction(1, 10) != Fraction(0.1)


def test_ks_by_side_and_pattern():
    ks = ks_per_direction(
        DIRECTIONS,
        k=Fraction(95),
        decoder_k=Fraction(80),
        k_for=["en-*:decoder=90", "en-qb=70", "qa-en:encoder=60"],
    )
    assert ks == {"encoder": [95, 70, 60, 95], "decoder": [90, 70, 80, 80]}
    assert ks_per_direction(DIRECTIONS) == {side: [95] * 4 for side in ("encoder", "decoder")}
    later = ks_per_direction(DIRECTIONS, k_for=["en-qa=70", "*=80"])
    assert later["encoder"] == [80] * 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("en-*", SelectionError),
        ("en-*:middle=90", SelectionError),
        ("en-*=0", SelectionError),
        ("en-*:encoder=", SelectionError),
        ("xx-*=90", DirectionError),
    ],
)
def test_bad_k_for(text, error):
    with pytest.raises(error):
        ks_per_direction(DIRECTIONS, k_for=[text])


def test_select_treats_each_direction_and_layer_alone():
    found = profile()
    ks = ks_per_direction(DIRECTIONS, encoder_k=Fraction(90), decoder_k=Fraction(50), k_for=["en-qb=100"])
    masks = select(found, ks)
    assert masks.directions == DIRECTIONS and masks.widths == WIDTHS
    for layer, side in (("encoder.layers.0", "encoder"), ("decoder.layers.0", "decoder")):
        for row, k in enumerate(ks[side]):
            assert torch.equal(masks.kept[layer][row], cumulative(found.counts[layer][row], k))
    assert masks.metadata["k_percent"]["decoder"] == {"en-qa": 50, "en-qb": 100, "qa-en": 50, "qb-en": 50}


def test_selection_depends_on_counts_not_on_their_order_of_addition():
    ks = ks_per_direction(DIRECTIONS)
    a, b = profile(1), profile(2)
    assert select(a + b, ks).fingerprint == select(b + a, ks).fingerprint
    assert select(a, ks).fingerprint != select(b, ks).fingerprint


def test_by_language_sums_over_directions_that_share_it():
    found = profile()
    pooled = by_language(found)
    encoder, decoder = found.counts["encoder.layers.0"], found.counts["decoder.layers.0"]
    from_english = encoder[0] + encoder[1]
    assert torch.equal(
        pooled["encoder.layers.0"], torch.stack([from_english, from_english, encoder[2], encoder[3]])
    )
    into_english = decoder[2] + decoder[3]
    assert torch.equal(
        pooled["decoder.layers.0"], torch.stack([decoder[0], decoder[1], into_english, into_english])
    )


def test_language_sets_are_equal_where_the_language_is():
    masks = select(profile(), ks_per_direction(DIRECTIONS), neuron_sets="language")
    encoder, decoder = masks.kept["encoder.layers.0"], masks.kept["decoder.layers.0"]
    assert torch.equal(encoder[0], encoder[1]) and torch.equal(decoder[2], decoder[3])
    assert not torch.equal(encoder[2], encoder[3])
    assert masks.metadata["neuron_sets"] == "language"


def test_a_profile_without_tokens_or_activity():
    empty = profile()
    empty.tokens["encoder"][2] = 0
    with pytest.raises(SelectionError, match="qa-en"):
        select(empty, ks_per_direction(DIRECTIONS))
    dead = profile()
    dead.counts["decoder.layers.0"][1] = 0
    with pytest.raises(SelectionError, match="no neuron was active"):
        select(dead, ks_per_direction(DIRECTIONS))


def test_masks_remember_what_they_are_for():
    found = profile()
    found.metadata = {"checkpoint_sha256": "c", "dictionary_sha256": "d", "langs": ["en"], "other": 1}
    metadata = select(found, ks_per_direction(DIRECTIONS)).metadata
    assert (metadata["checkpoint_sha256"], metadata["dictionary_sha256"], metadata["langs"]) == (
        "c",
        "d",
        ["en"],
    )
