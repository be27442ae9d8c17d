import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from neuron_spec.artifacts import load_tensors, save_tensors
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, SelectionError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.lass.weight_masks import WeightMasks, magnitude_mask, maskable, pack, unpack

DIRECTIONS = parse_directions("en-qa,qa-en,en-qb")
SHAPES = {  # widths of no whole bytes among them
    "encoder.layers.0.fc1.weight": (16, 8),
    "encoder.layers.0.self_attn.q_proj.weight": (3, 13),
    "decoder.layers.0.encoder_attn.out_proj.weight": (5, 1),
}


def weights(seed: int = 0) -> dict[str, Tensor]:
    """A model's, those that are not masked too."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        **SHAPES,
        "encoder.embed_tokens.weight": (7, 8),
        "encoder.layers.0.fc1.bias": (16,),
        "encoder.layers.0.final_layer_norm.weight": (8,),
        "decoder.output_projection.weight": (7, 8),
    }
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def masks(alpha: float = 0.5, directions: list[Direction] = DIRECTIONS, seed: int = 0) -> WeightMasks:
    """Each direction's from other weights."""
    parts = [WeightMasks.by_magnitude(weights(seed + i), d, alpha) for i, d in enumerate(directions)]
    return WeightMasks.join(parts, {"alpha": alpha})


# Bits


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_unpacking_undoes_packing(width):
    kept = torch.rand(2, 3, width, generator=torch.Generator().manual_seed(width)) < 0.5
    packed = pack(kept)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3, -(-width // 8))
    assert torch.equal(unpack(packed, width), kept)
    assert torch.equal(unpack(packed[1], width), kept[1])


# Magnitude


@pytest.mark.parametrize("alpha", [0, 0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("shape", [(4, 6), (7, 13), (1, 1)])
def test_as_torchs_pruning(alpha, shape):
    linear = nn.Linear(shape[1], shape[0])
    kept = magnitude_mask(linear.weight, alpha)
    prune.l1_unstructured(linear, "weight", amount=float(alpha))
    assert torch.equal(kept, linear.weight_mask.bool())
    assert int((~kept).sum()) == round(alpha * linear.weight.numel())


def test_what_is_kept_is_nowhere_smaller_than_what_is_dropped():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    kept = magnitude_mask(weight, 0.7)
    assert weight.abs()[kept].min() >= weight.abs()[~kept].max()
    assert torch.equal(kept, magnitude_mask(-3 * weight, 0.7))  # neither sign nor scale matters
    more = magnitude_mask(weight, 0.8)
    assert not bool((more & ~kept).any())  # the sets are nested


def test_of_equal_weights_the_earlier_goes():
    kept = magnitude_mask(torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, 1.0]]), 0.5)
    assert kept.tolist() == [[False, False, False], [True, True, True]]
    many = magnitude_mask(torch.zeros(100, 100, dtype=torch.float16), 0.3).flatten()
    assert not bool(many[:3000].any()) and bool(many[3000:].all())


@pytest.mark.parametrize("alpha", [-0.1, 1, 1.5, float("nan")])
def test_alpha_is_a_fraction_below_one(alpha):
    with pytest.raises(SelectionError, match="alpha"):
        magnitude_mask(torch.ones(2, 2), alpha)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(SelectionError, match="not finite"):
        magnitude_mask(torch.tensor([[1.0, float("nan")]]), 0.5)


# The file's content


def test_matrices_of_layers_are_masked_and_nothing_else():
    assert maskable({name: weight.shape for name, weight in weights().items()}) == SHAPES
    assert masks().shapes == SHAPES
    with pytest.raises(SelectionError, match="without weights to mask"):
        WeightMasks.by_magnitude({"encoder.embed_tokens.weight": torch.ones(2, 2)}, DIRECTIONS[0], 0.5)


def test_each_matrix_loses_the_same_fraction():
    ours = masks(0.7)
    for key, sparsity in ours.sparsity().items():
        size = SHAPES[key][0] * SHAPES[key][1]
        assert sparsity.tolist() == pytest.approx([round(0.7 * size) / size] * 3)
    for row, direction in enumerate(DIRECTIONS):
        for key in SHAPES:
            assert torch.equal(ours.kept(key, direction), magnitude_mask(weights(row)[key], 0.7))


def test_alpha_zero_keeps_all():
    ours = masks(0)
    assert all(bool(ours.kept(key, d).all()) for key in SHAPES for d in DIRECTIONS)
    assert all(float(sparsity.abs().max()) == 0 for sparsity in ours.sparsity().values())


def test_round_trip(tmp_path):
    ours = masks()
    ours.save(tmp_path / "m.safetensors")
    loaded = WeightMasks.load(tmp_path / "m.safetensors")
    assert (loaded.directions, loaded.shapes, loaded.metadata) == (DIRECTIONS, SHAPES, {"alpha": 0.5})
    assert all(torch.equal(loaded.kept(key, d), ours.kept(key, d)) for key in SHAPES for d in DIRECTIONS)
    assert loaded.fingerprint == ours.fingerprint
    assert masks(seed=1).fingerprint != ours.fingerprint
    swapped = WeightMasks(DIRECTIONS[::-1], ours.packed, ours.widths)
    assert swapped.fingerprint != ours.fingerprint


def test_the_readable_summary(tmp_path):
    masks(0.5).save(tmp_path / "m.safetensors")
    summary = json.loads((tmp_path / "m.json").read_text())
    dropped = sum(round(0.5 * a * b) for a, b in SHAPES.values())
    assert summary["maskable_weights"] == sum(a * b for a, b in SHAPES.values())
    assert summary["dropped_percent"]["qa-en"] == pytest.approx(
        100 * dropped / summary["maskable_weights"], abs=1e-3
    )
    assert summary["alpha"] == 0.5


def test_a_bit_per_weight_on_disk(tmp_path):
    weight = {"encoder.layers.0.fc1.weight": torch.randn(512, 512)}
    WeightMasks.by_magnitude(weight, DIRECTIONS[0], 0.5).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 512 * 512 / 8 + 2000


def test_a_direction_without_masks_is_named():
    with pytest.raises(DirectionError, match="qb-en"):
        masks().kept(next(iter(SHAPES)), Direction("qb", "en"))


def test_zero_shot_takes_the_encoder_of_the_source_and_the_decoder_of_the_target():
    ours = masks()
    composed = ours.compose(Direction("qa", "qb"))
    assert composed.directions == [Direction("qa", "qb")] and composed.shapes == SHAPES
    for key in SHAPES:
        part = Direction("qa", "en") if key.startswith("encoder") else Direction("en", "qb")
        assert torch.equal(composed.kept(key, Direction("qa", "qb")), ours.kept(key, part))
    joined = WeightMasks.join([ours, composed])
    assert joined.directions == [*DIRECTIONS, Direction("qa", "qb")]
    with pytest.raises(DirectionError, match="qb-en"):
        ours.compose(Direction("qb", "qa"))


def test_zero_shot_finds_english_under_its_own_code():
    ours = masks()
    codes = {"en": "eng_Latn"}
    named = [Direction(codes.get(d.source, d.source), codes.get(d.target, d.target)) for d in DIRECTIONS]
    composed = WeightMasks(named, ours.packed, ours.widths).compose(Direction("qa", "qb"))
    assert composed.packed.keys() == ours.packed.keys()
    for key, bits in ours.compose(Direction("qa", "qb")).packed.items():
        assert torch.equal(composed.packed[key], bits)


# Refusals


def test_parts_of_different_models_or_the_same_direction_do_not_join():
    first = masks()
    other = weights()
    del other["encoder.layers.0.fc1.weight"]
    with pytest.raises(ModelError, match=r"encoder\.layers\.0\.fc1\.weight"):
        WeightMasks.join([first, WeightMasks.by_magnitude(other, Direction("qb", "en"), 0.5)])
    with pytest.raises(DirectionError, match="twice"):
        WeightMasks.join([first, first])


def test_another_model_is_told_matrix_by_matrix():
    masks().require_fit(dict(reversed(SHAPES.items())))
    key = "encoder.layers.0.fc1.weight"
    with pytest.raises(ModelError, match="another model") as caught:
        masks().require_fit({**SHAPES, key: (16, 9)})
    assert f"{key}: [16, 8]" in str(caught.value) and "q_proj" not in str(caught.value)
    with pytest.raises(ModelError, match=r"fc2\.weight: absent"):
        masks().require_fit({**SHAPES, "encoder.layers.0.fc2.weight": (8, 16)})
    with pytest.raises(ModelError, match="absent"):
        masks().require_fit({key: SHAPES[key]})


def test_missing_directions_are_named():
    masks().require_directions(DIRECTIONS[:1])
    with pytest.raises(ModelError, match="also qb-en"):
        masks().require_directions([*DIRECTIONS, Direction("qb", "en")])


def test_bad_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ArtifactError, match="weight mask file not found"):
        WeightMasks.load(path)
    NeuronMasks(DIRECTIONS, {"encoder.layers.0": torch.ones(3, 4, dtype=torch.bool)}).save(path)
    with pytest.raises(ArtifactError, match="not a weight mask file"):
        WeightMasks.load(path)
    masks().save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cannot be read"):
        WeightMasks.load(path)
    masks().save(path)
    tensors, header = load_tensors(path, "")
    key = "encoder.layers.0.fc1.weight"
    for damaged in (
        {k: v for k, v in tensors.items() if k != key},  # missing
        {**tensors, "encoder.layers.9.fc1.weight": tensors[key].clone()},  # unknown
        {**tensors, key: tensors[key][:2]},  # a direction too few
        {**tensors, key: torch.cat([tensors[key]] * 2, dim=2)},  # too wide
        {**tensors, key: tensors[key][:, :2]},
    ):
        save_tensors(path, damaged, header)
        with pytest.raises(ArtifactError, match="damaged weight mask file"):
            WeightMasks.load(path)


def test_malformed_masks():
    packed = torch.zeros(3, 5, 2, dtype=torch.uint8)
    key = "encoder.layers.0.fc1.weight"
    assert WeightMasks(DIRECTIONS, {key: packed}, {key: 9}).shapes == {key: (5, 9)}
    for wrong, width in ((packed.bool(), 9), (packed, 17), (packed[:2], 9), (packed[0], 9)):
        with pytest.raises(ArtifactError, match="malformed"):
            WeightMasks(DIRECTIONS, {key: wrong}, {key: width})
    with pytest.raises(ArtifactError, match="without a width"):
        WeightMasks(DIRECTIONS, {key: packed}, {})
