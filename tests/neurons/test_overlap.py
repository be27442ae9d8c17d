import re
from itertools import combinations, permutations
from math import factorial

import pytest
import torch
from scipy.stats import hypergeom, spearmanr

from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.choices import GROUPS
from neuron_spec.neurons.overlap import (
    adjusted_iou,
    chance_iou,
    churn,
    cluster,
    compared,
    kept_fraction,
    mean_off_diagonal,
    mean_overlap,
    off_diagonal,
    pairwise_iou,
    sparsity,
)
from neuron_spec.statistics import (
    NothingToCompare,
    family_contrast,
    mantel,
    mantels,
    pairs_of,
    permutation_test,
    permutation_tests,
)

FAMILIES = [family for family in "ABC" for _ in range(3)]


def random_kept(directions=9, ffn_dim=64, seed=0):
    return torch.rand(directions, ffn_dim, generator=torch.Generator().manual_seed(seed)) < 0.7


def planted_kept(seed=0):
    """Directions of one family differ from their family's neurons in one neuron of ten."""
    generator = torch.Generator().manual_seed(seed)
    family_sets = torch.rand(3, 200, generator=generator) < 0.7
    noise = torch.rand(9, 200, generator=generator) < 0.1
    return family_sets.repeat_interleave(3, dim=0) ^ noise


def test_hand_made_example():
    kept = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[1, 1 / 3, 1 / 2], [1 / 3, 1, 1 / 2], [1 / 2, 1 / 2, 1]], dtype=torch.float64)
    torch.testing.assert_close(pairwise_iou(kept), expected)
    assert mean_off_diagonal(pairwise_iou(kept)) == pytest.approx(4 / 9)
    assert sparsity(kept).tolist() == [0.5, 0.5, 0.0]
    within, between = family_contrast(pairwise_iou(kept), ["A", "A", "B"])
    assert (within, between) == pytest.approx((1 / 3, 1 / 2))


def test_iou_is_symmetric_and_one_on_the_diagonal():
    iou = pairwise_iou(random_kept())
    assert torch.equal(iou, iou.T)
    assert torch.equal(iou.diagonal(), torch.ones(9, dtype=torch.float64))
    assert ((iou >= 0) & (iou <= 1)).all()


def test_iou_does_not_depend_on_the_order_of_neurons():
    kept = random_kept()
    shuffled = kept[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(pairwise_iou(kept), pairwise_iou(shuffled))


def test_empty_sets_are_equal_to_each_other_only():
    kept = torch.tensor([[0, 0], [0, 0], [1, 0]], dtype=torch.bool)
    assert pairwise_iou(kept).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("kept", [torch.ones(2, 3), torch.ones(3, dtype=torch.bool), torch.ones(2, 0).bool()])
def test_not_kept_neurons(kept):
    with pytest.raises(NeuronSpecError, match="not the kept neurons"):
        pairwise_iou(kept)
    with pytest.raises(NeuronSpecError, match="not the kept neurons"):
        sparsity(kept)


def test_mean_needs_a_pair():
    with pytest.raises(NeuronSpecError, match="pair of directions"):
        mean_off_diagonal(torch.ones(1, 1))


def test_planted_families_are_found():
    iou = pairwise_iou(planted_kept())
    within, between = family_contrast(iou, FAMILIES)
    assert within > between + 0.1
    assert permutation_test(iou, FAMILIES, permutations=2000, seed=0).p < 0.02


def test_random_neurons_show_no_families():
    values = [
        permutation_test(pairwise_iou(random_kept(seed=seed)), FAMILIES, permutations=500, seed=0).p
        for seed in range(20)
    ]
    assert 0.3 < sum(values) / len(values) < 0.7


def test_p_value_of_indistinguishable_directions_is_one():
    assert permutation_test(torch.ones(9, 9), FAMILIES, permutations=100, seed=0).p == 1.0


def test_p_value_is_bounded_by_the_ways_to_deal_families():
    # Two families of two can be dealt in three ways, one of which is the true one.
    iou = torch.tensor([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.3, 0.1], [0.1, 0.3, 1, 0.8], [0.2, 0.1, 0.8, 1]])
    assert permutation_test(iou, list("AABB"), permutations=6, seed=0) == (pytest.approx(1 / 3), 6, True)
    sampled = permutation_test(iou, list("AABB"), permutations=5, seed=0)
    assert (sampled.relabellings, sampled.is_exact) == (5, False)


def test_p_value_depends_on_the_seed_alone():
    iou = pairwise_iou(random_kept())
    first, again, other = (permutation_test(iou, FAMILIES, permutations=999, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert not first.is_exact


@pytest.mark.parametrize("families", ["AABBC", "AAABB", "ABABA"])
def test_p_value_equals_brute_force(families):
    """Over every permutation of the labels, of which `permutation_test` takes distinct ones alone."""
    iou = pairwise_iou(random_kept(5, 40))
    pairs = list(combinations(range(5), 2))

    def contrast(labels):
        within = [iou[a, b].item() for a, b in pairs if labels[a] == labels[b]]
        between = [iou[a, b].item() for a, b in pairs if labels[a] != labels[b]]
        return sum(within) / len(within) - sum(between) / len(between)

    observed = contrast(families)
    hits = sum(contrast(labels) >= observed - 1e-9 for labels in permutations(families))
    found = permutation_test(iou, list(families), seed=0)
    assert found.is_exact
    assert found.p == pytest.approx(hits / factorial(5))


@pytest.mark.parametrize("permutations", [400, 2000])  # drawn, and all
def test_several_are_tested_as_each_by_itself(permutations):
    ious = [pairwise_iou(random_kept(seed=seed)) for seed in range(5)] + [torch.ones(9, 9)]
    settings = {"permutations": permutations, "seed": 3}
    together = permutation_tests(ious, FAMILIES, **settings)
    assert together == [permutation_test(iou, FAMILIES, **settings) for iou in ious]
    assert len({test.p for test in together}) > 3
    assert all(test.is_exact == (permutations == 2000) for test in together)


def test_sampling_estimates_the_exact_p_value_and_is_never_zero():
    iou = pairwise_iou(random_kept())
    exact = permutation_test(iou, FAMILIES, permutations=1680, seed=0)
    sampled = permutation_test(iou, FAMILIES, permutations=1679, seed=0)
    assert (exact.is_exact, sampled.is_exact) == (True, False)
    assert sampled.p == pytest.approx(exact.p, abs=0.05)
    assert permutation_test(iou, FAMILIES, permutations=1681, seed=0) == exact
    assert permutation_test(pairwise_iou(planted_kept()), FAMILIES, permutations=3, seed=0).p >= 1 / 4


@pytest.mark.parametrize("shape", [(4,), (2, 3), (3, 2), (3, 3, 3)])
def test_only_a_square_has_pairs(shape):
    with pytest.raises(NeuronSpecError, match=f"got: +shape {re.escape(str(list(shape)))}"):
        pairs_of(torch.ones(shape))


def test_unknown_families_are_left_out():
    iou = pairwise_iou(random_kept())
    families = ["unknown", *"AABB", "unknown", *"CCA"]
    known = [i for i, family in enumerate(families) if family != "unknown"]
    without = iou[known][:, known], [families[i] for i in known]
    assert family_contrast(iou, families) == family_contrast(*without)
    assert permutation_test(iou, families, seed=0) == permutation_test(*without, seed=0)
    with pytest.raises(NothingToCompare, match="no family structure"):
        family_contrast(iou, ["unknown"] * 9)


@pytest.mark.parametrize("families", [["A"] * 9, list("ABCDEFGHI")])
def test_no_family_structure(families):
    iou = pairwise_iou(random_kept())
    with pytest.raises(NeuronSpecError, match="no family structure"):
        family_contrast(iou, families)
    with pytest.raises(NeuronSpecError, match="no family structure"):
        permutation_test(iou, families, seed=0)


def test_families_must_fit_the_matrix():
    with pytest.raises(NeuronSpecError, match="one family per direction"):
        family_contrast(torch.ones(3, 3), ["A", "A"])


def test_iou_with_other_sets():
    kept, other = random_kept(4), random_kept(3, seed=1)
    both = pairwise_iou(torch.cat([kept, other]))
    assert torch.equal(pairwise_iou(kept, other), both[:4, 4:])


# Which directions are compared


EN_CENTRIC = parse_directions("en-de,de-en,en-ru,ru-en")
OTHERS = parse_directions("de-nl,de-es,nl-es,es-nl")


@pytest.mark.parametrize(
    ("side", "group", "rows", "languages"),
    [
        ("encoder", "own", [1, 3], ["de", "ru"]),
        ("decoder", "own", [0, 2], ["de", "ru"]),
        ("encoder", "en-x", [0, 2], ["de", "ru"]),
        ("decoder", "x-en", [1, 3], ["de", "ru"]),
        ("encoder", "all", [0, 1, 2, 3], ["en", "de", "en", "ru"]),
        ("decoder", "all", [0, 1, 2, 3], ["de", "en", "ru", "en"]),
    ],
)
def test_groups(side, group, rows, languages):
    found = compared(side, EN_CENTRIC, group)
    assert (found.rows, found.languages) == (rows, languages)


@pytest.mark.parametrize("directions", [OTHERS, parse_directions("en-de,de-en"), [Direction("en", "de")]])
def test_where_its_own_group_has_no_pair_a_side_is_compared_over_all(directions):
    for side, of in (("encoder", "source"), ("decoder", "target")):
        found = compared(side, directions)
        assert found.group == "all"
        assert found.languages == [getattr(direction, of) for direction in directions]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("directions", [EN_CENTRIC, OTHERS, EN_CENTRIC[:1]])
def test_iou_of_languages_is_the_mean_over_their_directions(directions, group):
    kept = random_kept(len(directions))
    for side in ("encoder", "decoder"):
        found = compared(side, directions, group)
        own = pairwise_iou(kept)
        of_languages = found.between_languages(kept)
        assert of_languages.shape == (len(found.distinct), len(found.distinct))
        assert torch.equal(of_languages, of_languages.T)
        for (i, a), (j, b) in combinations(enumerate(found.distinct), 2):
            pairs = [
                own[x, y].item()
                for x, one in zip(found.rows, found.languages, strict=True)
                for y, other in zip(found.rows, found.languages, strict=True)
                if (one, other) == (a, b)
            ]
            assert of_languages[i, j].item() == pytest.approx(sum(pairs) / len(pairs))


# Distances between languages


def random_distances(n, seed=0):
    """Few different values, so that ties occur."""
    half = torch.randint(1, 6, (n, n), generator=torch.Generator().manual_seed(seed)).double().triu(1)
    return half + half.T


def test_mantel_equals_brute_force():
    first, second = random_distances(5), random_distances(5, seed=1)
    pairs = tuple(torch.triu_indices(5, 5, offset=1))

    def correlation(order):
        relabelled = first[list(order)][:, list(order)]
        return spearmanr(relabelled[pairs].numpy(), second[pairs].numpy()).statistic

    observed = correlation(range(5))
    found = mantel(first, second, seed=0)
    assert found.correlation == pytest.approx(observed)
    hits = sum(correlation(order) >= observed - 1e-9 for order in permutations(range(5)))
    assert found.test == (pytest.approx(hits / 120), 120, True)


def test_mantel_does_not_depend_on_the_order_of_languages():
    first, second = random_distances(6), random_distances(6, seed=1)
    order = [3, 0, 5, 1, 4, 2]
    there = mantel(first[order][:, order], second[order][:, order], seed=0)
    here = mantel(first, second, seed=0)
    assert there.correlation == pytest.approx(here.correlation)
    assert there.test == here.test


def test_the_last_bits_of_distances_break_no_ties():
    first, second = random_distances(6), random_distances(6, seed=1)
    noise = 1e-15 * torch.rand(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert mantel(first + noise, second, seed=0) == mantel(first, second, seed=0)
    with pytest.raises(NothingToCompare):
        mantel(torch.ones(6, 6) + noise, second, seed=0)


def test_how_much_sets_change_overlap_and_keep():
    def of(*rows):
        return {site: torch.tensor(rows).bool() for site in ("encoder.layers.0", "decoder.layers.0")}

    one, other = [1, 1, 0, 0], [0, 0, 1, 1]
    assert churn(of(one, other), of(one, other)) == 0
    assert churn(of(one, one), of(other, other)) == 1
    assert churn(of(one, one), of(one, other)) == 0.5
    assert mean_overlap(of(one)) == mean_overlap(of(one, one)) == 1
    assert mean_overlap(of(one, other)) == 0
    assert mean_overlap(of(one, one, other)) == pytest.approx(1 / 3)
    # Sites count alike, however many neurons they have.
    assert (
        kept_fraction({"encoder.layers.0": torch.ones(2, 4), "decoder.layers.0": torch.eye(2, 8)}) == 0.5625
    )


def test_mantel_looks_at_ranks_alone_and_at_both_alike():
    first, second = random_distances(6), random_distances(6, seed=1)
    here = mantel(first, second, seed=0)
    assert mantel(first.exp(), second, seed=0) == here
    assert mantel(second, first, seed=0).correlation == pytest.approx(here.correlation)
    assert mantel(second, first, seed=0).test == here.test
    assert mantel(-first, second, seed=0).correlation == pytest.approx(-here.correlation)


def test_mantel_of_a_distance_with_itself():
    points = torch.tensor([0.0, 1.0, 3.0, 7.0, 15.0])
    distances = (points[:, None] - points[None, :]).abs()
    assert mantel(distances, distances, seed=0) == (pytest.approx(1), (1 / 120, 120, True))


def test_three_languages_suffice_for_a_correlation():
    distances = torch.tensor([[0, 1, 2], [1, 0, 3], [2, 3, 0]])
    assert mantel(distances, distances, seed=0) == (pytest.approx(1), (1 / 6, 6, True))


def test_mantel_samples_where_there_are_too_many_orders():
    first, second = random_distances(6), random_distances(6, seed=1)
    exact, sampled = (mantel(first, second, permutations=n, seed=0).test for n in (720, 719))
    assert (exact.is_exact, sampled.is_exact) == (True, False)
    assert sampled.p == pytest.approx(exact.p, abs=0.06)
    assert mantel(first, first, permutations=3, seed=0).test.p >= 1 / 4


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (torch.ones(2, 2), torch.ones(2, 2), "three languages"),
        (torch.ones(4, 4), random_distances(4), "all distances are equal"),
        (random_distances(4), torch.ones(4, 4), "all distances are equal"),
    ],
)
def test_mantel_has_nothing_to_compare(first, second, said):
    with pytest.raises(NothingToCompare, match=said):
        mantel(first, second, seed=0)


@pytest.mark.parametrize("permutations", [300, 1000])  # drawn, and all
def test_several_distances_are_tested_as_each_by_itself(permutations):
    second, settings = random_distances(6, seed=9), {"permutations": permutations, "seed": 3}
    firsts = [random_distances(6, seed=seed) for seed in range(4)]
    firsts.insert(2, torch.ones(6, 6))
    together = mantels(firsts, second, **settings)
    nothing = together.pop(2)
    assert isinstance(nothing, NothingToCompare) and "all distances are equal" in str(nothing)
    del firsts[2]
    assert together == [mantel(first, second, **settings) for first in firsts]
    assert len({of.test.p for of in together}) > 2
    assert [str(of) for of in mantels([torch.ones(6, 6)], second, **settings)] == [str(nothing)]


def test_drawn_orders_relabel_the_first():
    """The p of earlier versions, which relabelled the first distances and looked them up one by one."""
    first, second = random_distances(8), random_distances(8, seed=1)
    pairs = tuple(torch.triu_indices(8, 8, offset=1))
    order = torch.rand(500, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).argsort(dim=1)

    def correlation(of):
        return spearmanr(first[of][:, of][pairs].numpy(), second[pairs].numpy()).statistic

    observed = correlation(torch.arange(8))
    hits = sum(correlation(of) >= observed - 1e-9 for of in order)
    assert mantel(first, second, permutations=500, seed=5).test.p == pytest.approx((1 + hits) / 501)


def test_mantel_of_distances_that_do_not_fit():
    for second in (random_distances(5), torch.full((4, 4), float("nan"))):
        with pytest.raises(NeuronSpecError, match="cannot be compared"):
            mantel(random_distances(4), second, seed=0)


# Dendrograms


CODES = [f"{family.lower()}{i}" for i, family in enumerate(FAMILIES)]


def ultrametric_iou():
    """0.9 within families, 0.7 between A and B, 0.5 to C: a tree drawn exactly."""
    iou = torch.full((9, 9), 0.5, dtype=torch.float64)
    iou[:6, :6] = 0.7
    for start in (0, 3, 6):
        iou[start : start + 3, start : start + 3] = 0.9
    return iou.fill_diagonal_(1)


def test_dendrogram_of_an_ultrametric_is_exact():
    iou = ultrametric_iou()
    tree = cluster(iou, CODES)
    torch.testing.assert_close(tree.cophenetic(), 1 - iou)
    assert tree.cophenetic_correlation(iou) == pytest.approx(1)


@pytest.mark.parametrize("iou", [ultrametric_iou(), pairwise_iou(planted_kept())])
def test_dendrogram_recovers_families(iou):
    order = [4, 0, 8, 2, 6, 1, 3, 7, 5]
    tree = cluster(iou[order][:, order], [CODES[i] for i in order])
    leaves, lines = tree.drawing()
    assert sorted(leaves) == sorted(CODES)
    families = [leaf[0] for leaf in leaves]
    assert all(len(set(families[start : start + 3])) == 1 for start in (0, 3, 6))
    assert len(lines) == 8
    assert {place for places, _ in lines for place in places} >= {float(i) for i in range(9)}


def test_dendrogram_links_by_the_mean_distance():
    iou = torch.tensor([[1, 0.9, 0.5], [0.9, 1, 0.3], [0.5, 0.3, 1]], dtype=torch.float64)
    assert cluster(iou, ["de", "nl", "ru"]).merges[:, 2].tolist() == pytest.approx([0.1, 0.6])


def test_dendrogram_of_two_languages_and_of_one():
    iou = torch.tensor([[1, 0.8], [0.8, 1]], dtype=torch.float64)
    tree = cluster(iou, ["de", "ru"])
    assert off_diagonal(tree.cophenetic()).tolist() == pytest.approx([0.2])
    with pytest.raises(NothingToCompare, match="three languages"):
        tree.cophenetic_correlation(iou)
    with pytest.raises(NothingToCompare, match="two languages"):
        cluster(iou[:1, :1], ["de"])


def test_dendrogram_of_equal_sets():
    tree = cluster(torch.ones(4, 4), list("abcd"))
    assert tree.cophenetic().count_nonzero() == 0
    with pytest.raises(NothingToCompare, match="all distances are equal"):
        tree.cophenetic_correlation(torch.ones(4, 4))


# Chance


def sets_of(sizes, width, seed=0):
    """Random sets of these sizes, bool `[len(sizes), width]`."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(sizes), width, generator=generator).argsort(dim=1)
    return order < torch.tensor(sizes)[:, None]


@pytest.mark.parametrize("width", [1, 2, 5, 6])
def test_chance_level_equals_brute_force(width):
    sizes = range(width + 1)
    chance = chance_iou(sets_of(sizes, width))
    for first in sizes:
        one = set(range(first))
        for second in sizes:
            values = [
                len(one & set(other)) / len(one | set(other)) if one or other else 1.0
                for other in combinations(range(width), second)
            ]
            assert chance[first, second].item() == pytest.approx(sum(values) / len(values), rel=1e-13)


@pytest.mark.parametrize("width", [300, 512, 4096])
def test_chance_level_of_wide_layers_is_that_of_the_whole_distribution(width):
    sizes = [1, 7, width // 20, width // 3, width // 2, width - 40, width - 1, width]
    chance = chance_iou(sets_of(sizes, width))
    for i, first in enumerate(sizes):
        for j, second in enumerate(sizes):
            shared = torch.arange(min(first, second) + 1, dtype=torch.float64).numpy()
            weights = hypergeom.pmf(shared, width, first, second)
            expected = (weights * shared / (first + second - shared)).sum()
            assert chance[i, j].item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_chance_level_is_about_p_over_2_minus_p():
    for width, tolerance in ((64, 4e-3), (512, 4e-4), (4096, 5e-5)):
        for p, q in ((0.3, 0.3), (0.5, 0.5), (0.9, 0.9), (0.35, 0.7)):
            sizes = [round(p * width), round(q * width)]
            p, q = (size / width for size in sizes)
            chance = chance_iou(sets_of(sizes, width))[0, 1].item()
            assert 0 < chance - p * q / (p + q - p * q) < tolerance
            if p == q:
                assert chance == pytest.approx(p / (2 - p), abs=tolerance)


def test_chance_level_of_other_sets_and_of_what_is_none():
    kept, other = sets_of([3, 9, 9], 12), sets_of([5, 1], 12, seed=1)
    both = chance_iou(torch.cat([kept, other]))
    assert torch.equal(chance_iou(kept, other), both[:3, 3:])
    for measure in (chance_iou, adjusted_iou):
        with pytest.raises(NeuronSpecError, match="not the kept neurons"):
            measure(torch.ones(2, 3))


def test_adjusted_iou_by_hand():
    # Of two sets of two among four, 1/6 of the pairs share both, 4/6 one (IoU 1/3), 1/6 none: 7/18 on average.
    kept = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    assert chance_iou(kept)[0, 1].item() == pytest.approx(7 / 18)
    adjusted = adjusted_iou(kept)
    assert adjusted[0].tolist() == pytest.approx(
        [1, (1 / 3 - 7 / 18) / (11 / 18), -7 / 11, (1 / 2 - 1 / 4) / (3 / 4)]
    )


def test_adjusted_iou_of_equal_sets_is_one_whatever_their_size():
    kept = sets_of([1, 20, 32, 63], 64)
    assert adjusted_iou(kept).diagonal().tolist() == pytest.approx([1] * 4)
    assert adjusted_iou(kept, kept.clone()).diagonal().tolist() == pytest.approx([1] * 4)
    assert (adjusted_iou(kept) <= 1 + 1e-12).all()


@pytest.mark.parametrize(("first", "second"), [(6, 6), (32, 32), (58, 58), (6, 40), (32, 60), (1, 63)])
def test_adjusted_iou_of_random_sets_is_zero_on_average(first, second):
    one, other = sets_of([first] * 400, 64), sets_of([second] * 400, 64, seed=1)
    adjusted, iou = adjusted_iou(one, other), pairwise_iou(one, other)
    assert adjusted.mean().item() == pytest.approx(0, abs=4e-3)
    assert (iou.mean() - chance_iou(one[:1], other[:1])).abs().item() < 4e-3


def test_larger_random_sets_raise_iou_alone():
    small, large = (sets_of([size] * 30, 512) for size in (100, 400))
    assert mean_off_diagonal(pairwise_iou(large)) - mean_off_diagonal(pairwise_iou(small)) > 0.5
    assert abs(mean_off_diagonal(adjusted_iou(large)) - mean_off_diagonal(adjusted_iou(small))) < 0.01


def test_adjusted_iou_is_symmetric_and_does_not_depend_on_the_order_of_neurons():
    kept = sets_of([5, 20, 40, 40, 63], 64)
    adjusted = adjusted_iou(kept)
    assert torch.equal(adjusted, adjusted.T)
    shuffled = kept[:, torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert torch.equal(adjusted, adjusted_iou(shuffled))
    rows = [3, 0, 4]
    assert torch.equal(adjusted_iou(kept[rows]), adjusted[rows][:, rows])


def test_adjusted_iou_is_unknown_where_sizes_alone_fix_the_iou():
    kept = sets_of([0, 6, 12], 12)
    known = ~adjusted_iou(kept).isnan()
    assert known.tolist() == [[False] * 3, [False, True, False], [False] * 3]
    assert adjusted_iou(kept, kept[1:2]).isnan().tolist() == [[True], [False], [True]]
    languages = compared("decoder", [Direction("en", code) for code in ("de", "nl", "ru")])
    assert languages.between_languages(kept, adjusted_iou)[0, 1].isnan()


def test_overlaps_that_are_no_numbers_are_not_tested_but_refused():
    """NaN is not above NaN: of no relabelling would it be said that it separates as well."""
    iou = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    iou = (iou + iou.T) / 2
    bad = iou.clone()
    bad[0, 1] = bad[1, 0] = float("nan")
    for test in (
        lambda of: permutation_test(of, list("AABB"), seed=1),
        lambda of: family_contrast(of, list("AABB")),
        lambda of: cluster(of, list("abcd")),
    ):
        test(iou)
        with pytest.raises(NeuronSpecError, match="not numbers"):
            test(bad)
    with pytest.raises(NeuronSpecError, match="one code per language"):
        cluster(iou, ["a", "b"])
