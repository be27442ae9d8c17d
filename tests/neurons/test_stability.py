import pytest
import torch

from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import WHOLE, Part
from neuron_spec.neurons.overlap import chance_iou, compared, pairwise_iou
from neuron_spec.neurons.selection import (
    ks_per_direction,
    matched_random,
    only_side,
    parse_k,
    select,
    select_top_fraction,
)
from neuron_spec.neurons.stability import (
    are_split,
    chance_iou_per_direction,
    iou_per_direction,
    iou_with_other_languages,
    part_of,
    select_again,
)
from neuron_spec.statistics import NothingToCompare

DIRECTIONS = parse_directions("en-de,de-en,en-ru,ru-en")
WIDTHS = {"encoder.layers.0": 24, "decoder.layers.0": 16}


def profile(directions=DIRECTIONS, seed=0, widths=WIDTHS, checkpoint="c0ffee"):
    generator = torch.Generator().manual_seed(seed)
    made = ActivationCounts.zeros(directions, widths)
    for counts in made.counts.values():
        counts += torch.randint(0, 1000, counts.shape, generator=generator)
    for tokens in made.tokens.values():
        tokens += 1000
    made.metadata = {"checkpoint_sha256": checkpoint}
    return made


def selected(made, k="90", **kinds):
    ks = ks_per_direction(made.directions, k=parse_k(k), k_for=["en-*:decoder=70.3"])
    return select(made, ks, **kinds)


def part(text, **changes):
    made = profile()
    parameters = {"subset": "valid", "dtype": "float32", **changes}
    if text != "1/1":
        made.metadata["part"] = parameters["part"] = text
    made.metadata["signature"] = {"inputs": {"data": "d"}, "parameters": parameters}
    return made


@pytest.mark.parametrize("of", [1, 2, 5])
def test_each_sentence_is_in_one_part(of):
    sentences = torch.arange(12)
    held = torch.stack([Part.parse(f"{number}/{of}").holds(sentences) for number in range(1, of + 1)])
    assert held.sum(dim=0).tolist() == [1] * 12
    assert sentences[held[0]].tolist() == list(range(0, 12, of))


@pytest.mark.parametrize("text", ["0/2", "3/2", "x", "1", "1/0", "1/2 ", "1.0/2", "/", "", "1/2/2", "²/3"])
def test_a_bad_part_is_refused(text):
    with pytest.raises(SelectionError, match="bad part") as caught:
        Part.parse(text)
    assert repr(text) in str(caught.value)


def test_split_profiles_are_different_parts_of_one_set():
    assert are_split([part("2/2"), part("1/2")])
    assert are_split([part("1/3"), part("3/3")])
    for others in (
        [],
        [part("1/2")],
        [part("1/2"), part("1/2")],
        [part("1/2"), part("1/1")],
        [part("1/2"), part("2/3")],
        [part("1/1"), part("1/1")],
        [part("1/2"), part("2/2", subset="test")],
        [part("1/2"), part("2/2", dtype="bfloat16")],
        [profile(), profile(seed=1)],
    ):
        assert not are_split(others)
    assert part_of(part("2/2")) == Part(2, 2) and part_of(profile()) == WHOLE


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
def test_the_same_profile_gives_the_same_sets(neuron_sets):
    made = profile()
    for masks in (
        selected(made, neuron_sets=neuron_sets),
        only_side(selected(made, neuron_sets=neuron_sets), "decoder"),
        select_top_fraction(made, parse_k("33.3"), neuron_sets=neuron_sets),
    ):
        again = select_again(masks, made)
        assert again.fingerprint == masks.fingerprint
        assert again.metadata == masks.metadata
        for layer in masks.layers:
            assert iou_per_direction(masks.kept[layer], again.kept[layer]).tolist() == [1.0] * 4


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
def test_other_directions_of_a_profile_and_their_order_play_no_part(neuron_sets):
    more = profile([*DIRECTIONS[::-1], *parse_directions("en-cs,cs-en")])
    rows = [3, 2, 1, 0]
    own = profile()
    own.counts = {layer: counts[rows] for layer, counts in more.counts.items()}
    masks = selected(own, neuron_sets=neuron_sets)
    assert select_again(masks, more).fingerprint == masks.fingerprint


def test_other_data_give_other_sets():
    masks = selected(profile())
    again = select_again(masks, profile(seed=1))
    assert again.fingerprint == selected(profile(seed=1)).fingerprint != masks.fingerprint


def test_iou_per_direction_is_the_diagonal():
    first, second = (selected(profile(seed=seed)).kept["encoder.layers.0"] for seed in (0, 1))
    own = iou_per_direction(first, second)
    torch.testing.assert_close(own, pairwise_iou(first, second).diagonal())
    assert torch.equal(own, iou_per_direction(second, first))
    empty = torch.zeros(2, 4, dtype=torch.bool)
    assert iou_per_direction(empty, empty).tolist() == [1, 1]


def test_random_sets_have_the_expected_overlap():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(4000, 24, generator=generator).argsort(dim=1) < size for size in (15, 9))
    expected = chance_iou_per_direction(first[:2], second[:2])
    assert torch.equal(expected, chance_iou(first[:2], second[:2]).diagonal())
    assert iou_per_direction(first, second).mean().item() == pytest.approx(expected[0].item(), abs=0.01)


def test_other_languages_are_compared_across_profiles():
    first, second = (selected(profile(seed=seed)).kept["decoder.layers.0"] for seed in (0, 1))
    chosen = compared("decoder", DIRECTIONS)
    iou = pairwise_iou(first, second)
    assert iou_with_other_languages(first, second, chosen) == pytest.approx(
        (iou[0, 2] + iou[2, 0]).item() / 2
    )
    with pytest.raises(NothingToCompare, match="pair of languages"):
        iou_with_other_languages(first[:1], second[:1], compared("decoder", DIRECTIONS[:1]))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (profile(checkpoint="other"), "another checkpoint"),
        (profile(DIRECTIONS[1:]), "without directions that have masks"),
        (profile(widths={"encoder.layers.0": 24}), "other layers or widths"),
        (profile(widths=WIDTHS | {"decoder.layers.0": 8}), "other layers or widths"),
    ],
)
def test_profiles_that_do_not_fit(other, said):
    with pytest.raises(ArtifactError, match=said) as caught:
        select_again(selected(profile()), other, where="half.safetensors")
    assert "half.safetensors" in str(caught.value)


def test_masks_that_a_profile_does_not_give():
    with pytest.raises(SelectionError, match="cannot be selected again"):
        select_again(matched_random(selected(profile()), seed=1), profile())
    unsaid = selected(profile())
    unsaid.metadata = {}
    with pytest.raises(SelectionError, match="method unknown"):
        select_again(unsaid, profile())


def test_a_direction_without_tokens():
    empty = profile()
    empty.tokens["decoder"][1] = 0
    for counts in empty.counts.values():
        counts[1] = 0
    with pytest.raises(SelectionError, match="no tokens"):
        select_again(selected(profile()), empty)
