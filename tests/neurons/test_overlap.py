import pytest
import torch

from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.overlap import (
    family_contrast,
    mean_off_diagonal,
    pairwise_iou,
    permutation_test,
    sparsity,
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
    assert permutation_test(iou, FAMILIES, permutations=2000, seed=0) < 0.02


def test_random_neurons_show_no_families():
    values = [
        permutation_test(pairwise_iou(random_kept(seed=seed)), FAMILIES, permutations=500, seed=0)
        for seed in range(20)
    ]
    assert 0.3 < sum(values) / len(values) < 0.7


def test_p_value_of_indistinguishable_directions_is_one():
    assert permutation_test(torch.ones(9, 9), FAMILIES, permutations=100, seed=0) == 1.0


def test_p_value_is_bounded_by_the_ways_to_deal_families():
    # Two families of two can be dealt in three ways, one of which is the true one.
    iou = torch.tensor([[1, 0.9, 0.1, 0.2], [0.9, 1, 0.3, 0.1], [0.1, 0.3, 1, 0.8], [0.2, 0.1, 0.8, 1]])
    assert permutation_test(iou, list("AABB"), permutations=3000, seed=0) == pytest.approx(1 / 3, abs=0.05)


def test_p_value_depends_on_the_seed_alone():
    iou = pairwise_iou(random_kept())
    first, again, other = (permutation_test(iou, FAMILIES, permutations=999, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


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
