import math
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import DirectionError, SelectionError
from neuron_spec.languages import by_family, language
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import SIDES
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import (
    always_active,
    another_direction,
    by_language,
    cumulative,
    intersection_of_all,
    ks_per_direction,
    matched_random,
    only_side,
    other_direction,
    parse_k,
    parse_swap,
    select,
    select_shared_core,
    select_top_fraction,
    top_fraction,
)

KS = [Fraction(k) for k in ("0.01", "1", "25", "50", "70", "90", "95", "99.9", "100")]
DIRECTIONS = parse_directions("en-qa,en-qb,qa-en,qb-en")
WIDTHS = {"encoder.layers.0": 12, "decoder.layers.0": 9}


def random_counts(seed: int, width: int = 40, highest: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, highest, (width,), generator=generator)


def profile(
    seed: int = 0, directions: list[Direction] = DIRECTIONS, widths: dict[str, int] = WIDTHS
) -> ActivationCounts:
    found = ActivationCounts.zeros(directions, widths)
    for number, layer in enumerate(widths):
        for row in range(len(directions)):
            found.counts[layer][row] = random_counts(100 * seed + 10 * number + row, widths[layer])
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


def neuron_by_neuron(counts: Tensor, k: Fraction) -> list[bool]:
    """`cumulative` as its docstring says it, in Python's integers."""
    values, kept, covered = counts.tolist(), [False] * len(counts), 0
    for index in sorted(range(len(values)), key=lambda i: -values[i]):
        if Fraction(covered) >= k * sum(values) / 100:
            break
        kept[index] = True
        covered += values[index]
    return kept


@pytest.mark.parametrize("highest", [2, 5, 300, 2**31 + 2, 2**62])  # many ties to none; sums beyond int64
@pytest.mark.parametrize("seed", range(20))
def test_the_sets_are_those_of_adding_up_neuron_by_neuron(seed, highest):
    counts = random_counts(seed, width=7 * seed + 1, highest=highest)
    counts[0] += 1  # of one neuron alone, too
    assert [cumulative(counts, k).tolist() for k in KS] == [neuron_by_neuron(counts, k) for k in KS]


@pytest.mark.parametrize(
    "counts",
    [torch.ones(3), torch.ones(3, dtype=torch.int32), torch.ones(3, 2).long(), torch.tensor([3, -1])],
)
def test_what_is_no_counts(counts):
    for choose in (cumulative, top_fraction):
        with pytest.raises(SelectionError, match="not the activation counts of a layer"):
            choose(counts, Fraction(50))


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
        ("en-*=90=80", SelectionError),
        ("xx-*=90", DirectionError),
    ],
)
def test_bad_k_for(text, error):
    with pytest.raises(error):
        ks_per_direction(DIRECTIONS, k_for=[text])


@pytest.mark.parametrize("choose", [select, lambda found, ks: select_shared_core(found, ks, 50)])
def test_a_k_for_each_direction_and_side_and_no_more(choose):
    right = ks_per_direction(DIRECTIONS)
    for wrong in (
        ks_per_direction(DIRECTIONS[:-1]),
        right | {"decoder": [*right["decoder"], Fraction(95)]},
        {"encoder": right["encoder"]},
    ):
        with pytest.raises(SelectionError, match="not a k for each direction"):
            choose(profile(), wrong)


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
    pooled = {layer: by_language(found, layer) for layer in WIDTHS}
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


# Controls

WIDE = {"encoder.layers.0": 61, "encoder.layers.1": 40, "decoder.layers.0": 53}
FAMILIES = parse_directions("en-de,de-en,en-nl,nl-en,en-es,es-en,en-pt,pt-en,en-cs,cs-en,en-ru,ru-en")


def selected(
    seed: int = 0, directions: list[Direction] = FAMILIES, k: str = "97", **rest: str
) -> NeuronMasks:
    found = profile(seed, directions, WIDE)
    return select(found, ks_per_direction(directions, k=Fraction(k)), **rest)


def sizes(masks: NeuronMasks) -> dict[str, list[int]]:
    return {layer: kept.sum(dim=1).tolist() for layer, kept in masks.kept.items()}


CONTROLS: dict[str, Callable[[NeuronMasks], NeuronMasks]] = {
    "matched-random": lambda masks: matched_random(masks, 1),
    "intersection-of-all": intersection_of_all,
    "other-direction": other_direction,
}


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
@pytest.mark.parametrize("seed", range(3))
def test_matched_random_keeps_as_many_but_others(seed, neuron_sets):
    masks = selected(seed, neuron_sets=neuron_sets)
    drawn = matched_random(masks, seed)
    assert sizes(drawn) == sizes(masks)
    assert all((drawn.kept[layer] != masks.kept[layer]).any(dim=1).all() for layer in WIDE)


def test_matched_random_is_the_same_draw_for_a_seed_and_another_for_another():
    masks = selected()
    assert matched_random(masks, 3).metadata["seed"] == 3
    prints = [matched_random(masks, seed).fingerprint for seed in (1, 2, 3, 2**32 + 1, -1)]
    assert len(set(prints)) == len(prints)
    assert matched_random(masks, 1).fingerprint == prints[0]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert matched_random(masks, 1).fingerprint == prints[0]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_draw_depends_on_no_other_direction_or_layer():
    masks = selected()
    drawn = matched_random(masks, 1)
    order = [7, 0, 3]
    fewer = NeuronMasks(
        [masks.directions[i] for i in order], {layer: masks.kept[layer][order] for layer in reversed(WIDE)}
    )
    again = matched_random(fewer, 1)
    assert all(torch.equal(again.kept[layer], drawn.kept[layer][order]) for layer in WIDE)


def test_random_draws_of_directions_and_layers_differ():
    half = torch.tensor([[True] * 30 + [False] * 30] * len(FAMILIES))
    layers = ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0")
    drawn = matched_random(NeuronMasks(FAMILIES, dict.fromkeys(layers, half)), 1)
    rows = {tuple(row.tolist()) for kept in drawn.kept.values() for row in kept}
    assert len(rows) == len(layers) * len(FAMILIES)


def test_random_draws_are_uniform():
    """Every neuron is drawn about equally often, whatever its index or activity."""
    kept = torch.tensor([[True] * 10 + [False] * 30])
    masks = NeuronMasks(FAMILIES[:1], {"encoder.layers.0": kept})
    seeds = 800
    times = sum(matched_random(masks, seed).kept["encoder.layers.0"][0].int() for seed in range(seeds))
    assert int(times.sum()) == 10 * seeds
    # A count has mean 200 and deviation 12.2; six deviations.
    assert (times - seeds / 4).abs().max() < 6 * math.sqrt(seeds * 0.25 * 0.75)


def test_a_random_draw_is_the_same_on_every_machine():
    kept = torch.tensor([[True] * 4 + [False] * 8])
    drawn = matched_random(NeuronMasks(parse_directions("en-de"), {"decoder.layers.3": kept}), 7)
    assert drawn.kept["decoder.layers.3"][0].nonzero().flatten().tolist() == [4, 9, 10, 11]


def test_random_sets_per_language_stay_one_per_language():
    drawn = matched_random(selected(neuron_sets="language"), 1)
    for layer, kept in drawn.kept.items():
        owners = [d.source if layer.startswith("encoder") else d.target for d in FAMILIES]
        for i, row in enumerate(kept):
            assert [torch.equal(row, other) for other in kept] == [owner == owners[i] for owner in owners]


@pytest.mark.parametrize("seed", range(3))
def test_random_sets_are_nested_as_k_grows(seed):
    small, large = (matched_random(selected(seed, k=k), 1) for k in ("60", "90"))
    assert all(bool((small.kept[layer] <= large.kept[layer]).all()) for layer in WIDE)


@pytest.mark.parametrize("percent", ["0.01", "10", "33.3", "50", "75", "99.9", "100"])
@pytest.mark.parametrize("width", [41, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_top_fraction_keeps_that_many_of_the_most_active(seed, width, percent):
    counts = random_counts(seed, width=width, highest=6)  # with many ties
    kept = top_fraction(counts, Fraction(percent))
    assert Fraction(int(kept.sum()) - 1, width) < Fraction(percent) / 100 <= Fraction(int(kept.sum()), width)
    if not kept.all():
        least = counts[kept].min()
        assert least >= counts[~kept].max()
        tied = kept[counts == least]
        assert tied.tolist() == sorted(tied.tolist(), reverse=True)  # the lower index first


def test_top_fraction_at_the_size_of_cumulative_is_cumulative():
    counts = random_counts(1)
    kept = cumulative(counts, Fraction(80))
    assert torch.equal(top_fraction(counts, Fraction(100 * int(kept.sum()), len(counts))), kept)


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
def test_top_fraction_is_as_many_everywhere(neuron_sets):
    masks = select_top_fraction(profile(0, FAMILIES, WIDE), Fraction(25), neuron_sets=neuron_sets)
    assert sizes(masks) == {layer: [math.ceil(width / 4)] * len(FAMILIES) for layer, width in WIDE.items()}
    assert masks.metadata["fraction_percent"] == 25 and "k_percent" not in masks.metadata
    with pytest.raises(SelectionError, match="no neuron was active"):
        top_fraction(torch.zeros(4, dtype=torch.int64), Fraction(50))


@pytest.mark.parametrize("seed", range(3))
def test_the_intersection_is_what_all_share_and_no_less(seed):
    masks = selected(seed, DIRECTIONS)
    shared = intersection_of_all(masks)
    for layer, kept in shared.kept.items():
        assert all(torch.equal(row, kept[0]) for row in kept)
        assert bool((kept <= masks.kept[layer]).all())
        assert torch.equal(kept[0], torch.stack([*masks.kept[layer]]).sum(dim=0) == len(DIRECTIONS))
        assert 0 < int(kept[0].sum()) < masks.kept[layer].sum(dim=1).min()


def test_the_intersection_is_of_heads_too():
    masks = selected(0, DIRECTIONS)
    heads = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    both = NeuronMasks(masks.directions, {**masks.kept, "encoder.layers.0.self_attn": heads}, {})
    shared = intersection_of_all(both)
    assert shared.sites == both.sites
    assert shared.kept["encoder.layers.0.self_attn"].tolist() == [[True, False, False]] * len(DIRECTIONS)
    heads[0] = ~heads[1]
    with pytest.raises(SelectionError, match="no head is kept"):
        intersection_of_all(
            NeuronMasks(masks.directions, {**both.kept, "encoder.layers.0.self_attn": heads}, {})
        )


def test_an_empty_intersection_names_its_layer():
    masks = selected(0, DIRECTIONS)
    masks.kept["encoder.layers.1"][0] = ~masks.kept["encoder.layers.1"][1]
    with pytest.raises(SelectionError, match=r"no neuron is kept for all(.|\n)*encoder\.layers\.1"):
        intersection_of_all(masks)


@pytest.mark.parametrize(
    "langs",
    [
        "de,nl,es,pt,cs,ru",  # three families of two
        "de,fr",
        "de,nl,sv,fr",  # more than half of one family
        "de,nl,sv",  # one family
        "qa,qb,qc",  # none known
        "de,nl,sv,da,fr,es,ru,hi,he,ar,mt",
        "fi,de,et,nl,hu",
    ],
)
def test_another_direction_takes_each_once_and_another_family_where_it_can(langs):
    codes = langs.split(",")
    directions = parse_directions([pair for code in codes for pair in (f"en-{code}", f"{code}-en")])
    others = another_direction(directions)
    assert list(others) == directions
    assert set(others.values()) == set(directions)
    assert all(other != direction for direction, other in others.items())
    assert all((a.source == "en") == (b.source == "en") for a, b in others.items())
    assert another_direction(directions[::-1]) == others
    changes = sum(
        language(a.target).family != language(b.target).family for a, b in others.items() if a.source == "en"
    )
    largest = max(Counter(language(code).family for code in codes).values())
    assert changes == min(len(codes), 2 * (len(codes) - largest))


def test_groups_are_dealt_with_apart():
    directions = parse_directions("en-de,en-ru,nl-en,cs-en,en-fr")
    others = {str(a): str(b) for a, b in another_direction(directions).items()}
    assert others["nl-en"] == "cs-en" and others["cs-en"] == "nl-en"
    assert by_family(["de", "ru", "fr"]) == ["de", "fr", "ru"]
    assert [others[d] for d in ("en-de", "en-fr", "en-ru")] == ["en-fr", "en-ru", "en-de"]
    assert list(another_direction(parse_directions("de-en,ru-en"))) == parse_directions("de-en,ru-en")
    for names in ("en-de,en-nl", "en-de,en-nl,en-sv", "nl-en,de-en"):  # of one family: the next
        alike = sorted(parse_directions(names), key=str)
        assert another_direction(alike) == dict(zip(alike, alike[1:] + alike[:1], strict=True))


def test_other_direction_moves_whole_sets_and_says_whose():
    masks = selected()
    moved = other_direction(masks)
    for i, direction in enumerate(FAMILIES):
        row = FAMILIES.index(Direction.parse(moved.metadata["set_of"][str(direction)]))
        assert row != i
        for layer in WIDE:
            assert torch.equal(moved.kept[layer][i], masks.kept[layer][row])
    assert moved.fingerprint != masks.fingerprint
    assert "family" in moved.metadata["rule"]


def test_a_swap_moves_the_named_pairs_alone_and_twice_is_none():
    masks = selected()
    swap = parse_swap("en-de:en-ru,de-en:ru-en", FAMILIES)
    moved = other_direction(masks, swap)
    a, b = FAMILIES.index(Direction("en", "de")), FAMILIES.index(Direction("en", "ru"))
    for layer, kept in masks.kept.items():
        assert torch.equal(moved.kept[layer][a], kept[b]) and torch.equal(moved.kept[layer][b], kept[a])
        assert torch.equal(moved.kept[layer][2], kept[2])
    assert other_direction(moved, swap).fingerprint == masks.fingerprint != moved.fingerprint
    assert moved.metadata["rule"] == "as named"
    assert [d for d, other in moved.metadata["set_of"].items() if d != other] == [
        "en-de",
        "de-en",
        "en-ru",
        "ru-en",
    ]


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", SelectionError, "malformed --swap"),
        ("en-de", SelectionError, "malformed --swap"),
        ("en-de:en-ru,", SelectionError, "malformed --swap"),
        ("en-de:enru", DirectionError, "malformed direction"),
        ("en-de:en-xx", SelectionError, r"without a profile\n +got: +en-xx"),
        ("en-de:en-de", SelectionError, r"a direction twice\n +got: +en-de"),
        ("en-de:en-ru,en-ru:en-nl", SelectionError, r"a direction twice\n +got: +en-ru"),
    ],
)
def test_bad_swap(text, error, said):
    with pytest.raises(error, match=said):
        parse_swap(text, FAMILIES)


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ("en-de", "no other direction"),
        ("en-de,en-ru,de-en", "no other direction"),
        ("en-de,de-ru", r"without English\n +got: +de-ru\n"),
    ],
)
def test_where_there_is_no_other_direction(directions, said):
    with pytest.raises(SelectionError, match=said):
        another_direction(parse_directions(directions))


def test_sets_per_language_are_not_swapped():
    with pytest.raises(SelectionError, match="drop --neuron-sets language"):
        other_direction(selected(neuron_sets="language"))


@pytest.mark.parametrize("name", ["none", *CONTROLS])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_only_side_leaves_the_other_dense_before_or_after_a_control(side, name):
    control = CONTROLS.get(name, lambda masks: masks)
    before, after = control(only_side(selected(), side)), only_side(control(selected()), side)
    assert before.fingerprint == after.fingerprint and before.metadata == after.metadata
    for layer, kept in before.kept.items():
        if layer.startswith(side):
            assert torch.equal(kept, control(selected()).kept[layer]) and not kept.all()
        else:
            assert kept.all()
    assert list(before.metadata["k_percent"]) == [before.metadata["only_side"]] == [side]


def test_only_side_of_masks_that_know_no_k():
    masks = select_top_fraction(profile(), 25)
    assert only_side(masks, "encoder").metadata == {**masks.metadata, "only_side": "encoder"}


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("directions", ["en-de,en-ru", "en-de,en-ru,de-en,ru-en"])
def test_controls_at_k_100_of_a_model_all_of_whose_neurons_are_active(name, directions):
    found = profile(0, parse_directions(directions), WIDE)
    for counts in found.counts.values():
        counts += 1
    kept = CONTROLS[name](select(found, ks_per_direction(found.directions, k=Fraction(100)))).kept
    assert all(bool(rows.all()) for rows in kept.values())


def test_one_direction_alone():
    masks = selected(0, parse_directions("en-de"))
    assert sizes(matched_random(masks, 1)) == sizes(masks)
    assert intersection_of_all(masks).fingerprint == masks.fingerprint


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_leave_their_masks_as_they_were_and_pass_on_what_those_are_for(name):
    masks = selected()
    masks.metadata["checkpoint_sha256"] = "c"
    before, metadata = masks.fingerprint, dict(masks.metadata)
    control = CONTROLS[name](masks)
    assert masks.fingerprint == before and masks.metadata == metadata
    assert control.metadata["method"] == name
    assert {key: control.metadata[key] for key in metadata if key != "method"} == {
        key: value for key, value in metadata.items() if key != "method"
    }


@pytest.mark.parametrize("core_percent", [Fraction(p) for p in (1, 20, 50, 99)])
@pytest.mark.parametrize("k", [Fraction(50), Fraction(95)])
def test_a_shared_core_and_the_rest_specialized(core_percent, k):
    counted = profile(seed=3)
    ks = ks_per_direction(counted.directions, k=k)
    masks = select_shared_core(counted, ks, core_percent)
    for layer, counts in counted.counts.items():
        core = always_active(counts, counted.tokens["encoder"], core_percent)
        assert torch.equal(core, (counts * 100 >= int(core_percent) * 30).all(dim=0))
        assert masks.kept[layer][:, core].all()
        for row, kept in enumerate(masks.kept[layer]):
            # Outside the core it is the method's own choice among those neurons alone.
            outside = counts[row, ~core]
            chosen = cumulative(outside, k) if outside.any() else torch.zeros_like(outside).bool()
            assert torch.equal(kept[~core], chosen)
    assert masks.metadata["method"] == "shared-core" and masks.metadata["core_percent"] == float(core_percent)


@pytest.mark.parametrize("percent", [1, 29, 50, 100])
def test_the_core_is_active_on_that_share_of_every_directions_tokens_itself_enough(percent):
    tokens = torch.tensor([1000, 300])
    needed = tokens * percent // 100
    counts = torch.stack(
        [needed, needed - torch.tensor([1, 0]), needed - torch.tensor([0, 1]), tokens], dim=1
    )
    expected = [True, False, False, True]
    assert always_active(counts, tokens, Fraction(percent)).tolist() == expected


SELECTIONS: dict[str, Callable[..., NeuronMasks]] = {
    "cumulative": lambda found, percent="40", **sets: select(found, percent, **sets),
    "shared-core": lambda found, percent="40", **sets: select_shared_core(found, 70, percent, **sets),
    "top-fraction": lambda found, percent="40", **sets: select_top_fraction(found, percent, **sets),
}


@pytest.mark.parametrize("method", SELECTIONS)
def test_masks_say_how_they_were_selected(method):
    found, choose = profile(), SELECTIONS[method]
    masks = choose(found)
    assert masks.metadata["method"] == method and masks.metadata["neuron_sets"] == "direction"
    assert masks.fingerprint == choose(found, neuron_sets="direction").fingerprint
    if method != "top-fraction":
        k = {"cumulative": 40, "shared-core": 70}[method]
        assert masks.metadata["k_percent"] == {side: dict.fromkeys(found.names, k) for side in SIDES}
    with pytest.raises(SelectionError, match="bad neuron_sets"):
        choose(found, neuron_sets="both")
    name = {"cumulative": "k", "shared-core": "core_percent", "top-fraction": "percent"}[method]
    with pytest.raises(SelectionError, match=rf"bad {name}\n"):
        choose(found, "101")
    assert choose(found, "100").widths == found.widths


def test_without_a_core_the_sets_are_the_method_s_own():
    counted = profile(seed=3)
    counted.tokens = {side: 100 * tokens for side, tokens in counted.tokens.items()}
    ks = ks_per_direction(counted.directions, k=Fraction(70))
    assert select_shared_core(counted, ks, Fraction(99)).fingerprint == select(counted, ks).fingerprint


def test_a_core_of_all_neurons_leaves_nothing_to_specialize():
    counted = profile(seed=3)
    counted.counts = {layer: counts.clamp(min=1) for layer, counts in counted.counts.items()}
    masks = select_shared_core(counted, ks_per_direction(counted.directions), Fraction(1))
    assert all(kept.all() for kept in masks.kept.values())
