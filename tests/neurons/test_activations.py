import pytest
import torch

from neuron_spec.artifacts import save_tensors
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts, layer_order, side_of
from neuron_spec.neurons.choices import SIDES

DIRECTIONS = parse_directions("en-qa,qa-en")
WIDTHS = {"encoder.layers.0": 5, "encoder.layers.1": 9, "decoder.layers.0": 3}


def counts(seed: int = 0, **metadata: str) -> ActivationCounts:
    """Counts of random activity, such that no count exceeds its tokens."""
    generator = torch.Generator().manual_seed(seed)
    profile = ActivationCounts.zeros(DIRECTIONS, WIDTHS)
    for side in profile.tokens:
        profile.tokens[side] += torch.randint(50, 90, (2,), generator=generator)
    for values in profile.counts.values():
        values += torch.randint(0, 50, values.shape, generator=generator)
    profile.metadata = {"checkpoint_sha256": "abc", **metadata}
    return profile


def same(a: ActivationCounts, b: ActivationCounts) -> bool:
    return (
        a.directions == b.directions
        and a.counts.keys() == b.counts.keys()
        and all(torch.equal(a.counts[layer], b.counts[layer]) for layer in a.counts)
        and all(torch.equal(a.tokens[side], b.tokens[side]) for side in a.tokens)
    )


def test_counts_of_shards_add_up():
    a, b, c = counts(1), counts(2), counts(3)
    total = a + b + c
    assert same(total, c + (a + b))
    for layer in WIDTHS:
        assert torch.equal(total.counts[layer], a.counts[layer] + b.counts[layer] + c.counts[layer])
    assert torch.equal(
        total.tokens["decoder"], a.tokens["decoder"] + b.tokens["decoder"] + c.tokens["decoder"]
    )
    zeros = ActivationCounts.zeros(DIRECTIONS, WIDTHS)
    zeros.metadata = dict(a.metadata)
    assert same(a + zeros, a)


def test_adding_changes_neither_summand():
    a, b = counts(1), counts(2)
    a + b
    assert same(a, counts(1)) and same(b, counts(2))


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (ActivationCounts.zeros(DIRECTIONS[::-1], WIDTHS), "directions"),
        (ActivationCounts.zeros(DIRECTIONS, {**WIDTHS, "decoder.layers.0": 4}), "layers and widths"),
        (ActivationCounts.zeros(DIRECTIONS, {"encoder.layers.0": 5}), "layers and widths"),
        (ActivationCounts.zeros(DIRECTIONS, WIDTHS), "checkpoint"),
    ],
)
def test_profiles_that_do_not_match_cannot_be_added(other, what):
    with pytest.raises(ArtifactError, match=f"different {what}"):
        counts() + other


def test_round_trip(tmp_path):
    profile = counts(note="kept")
    profile.save(tmp_path / "p.safetensors")
    loaded = ActivationCounts.load(tmp_path / "p.safetensors")
    assert same(loaded, profile)
    assert loaded.metadata == profile.metadata
    assert loaded.widths == WIDTHS


def test_layers_in_their_order():
    shuffled = ["decoder.layers.10", "encoder.layers.2", "decoder.layers.9", "encoder.layers.10"]
    assert sorted(shuffled, key=layer_order) == [
        "encoder.layers.2",
        "encoder.layers.10",
        "decoder.layers.9",
        "decoder.layers.10",
    ]
    assert side_of("decoder.layers.10") == "decoder"


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_direction_without_tokens_is_named(side):
    profile = counts()
    profile.require_tokens()
    profile.tokens[side][1] = 0
    with pytest.raises(SelectionError, match="qa-en"):
        profile.require_tokens()


def test_bad_files(tmp_path):
    path = tmp_path / "p.safetensors"
    with pytest.raises(ArtifactError, match="profile not found"):
        ActivationCounts.load(path)
    counts().save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="cannot be read"):
        ActivationCounts.load(path)
    save_tensors(path, {"encoder.layers.0": torch.zeros(2, 5)}, {"directions": ["en-qa", "qa-en"]})
    with pytest.raises(ArtifactError, match="not a profile"):
        ActivationCounts.load(path)
    tokens = {f"tokens.{side}": torch.ones(2, dtype=torch.int64) for side in ("encoder", "decoder")}
    for wrong in (torch.zeros(2, 5), torch.zeros(3, 5, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)):
        save_tensors(path, {"encoder.layers.0": wrong, **tokens}, {"directions": ["en-qa", "qa-en"]})
        with pytest.raises(ArtifactError, match="damaged profile"):
            ActivationCounts.load(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda counts, tokens: counts["encoder.layers.0"].__setitem__((0, 0), -1), "below 0"),
        (lambda counts, tokens: counts["encoder.layers.0"].__setitem__((1, 2), 11), "above the tokens"),
        (lambda counts, tokens: tokens["decoder"].fill_(-1), "tokens of the decoder"),
        (lambda counts, tokens: tokens["decoder"].fill_(2**62), "tokens of the decoder"),
        (lambda counts, tokens: tokens.pop("decoder"), "both sides"),
        (lambda counts, tokens: counts.update({"encoder.layers.0": torch.ones(2, 3)}), "layer encoder.layers.0"),
        (lambda counts, tokens: counts.update({"encoder.blocks.0": torch.zeros(2, 3).long()}), "not a site"),
    ],
)  # fmt: skip
def test_what_cannot_be_counts_is_refused_in_memory_and_before_it_is_written(spoil, said, tmp_path):
    directions = parse_directions("en-de,de-en")
    counts, tokens = {"encoder.layers.0": torch.full((2, 3), 10)}, {s: torch.full((2,), 10) for s in SIDES}
    profile = ActivationCounts(directions, counts, tokens)
    spoil(counts, tokens)
    with pytest.raises(ArtifactError, match=said):
        ActivationCounts(directions, counts, tokens)
    with pytest.raises(ArtifactError, match=said):
        profile.save(tmp_path / "p.safetensors")
    assert not [*tmp_path.iterdir()]
