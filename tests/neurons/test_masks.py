import json

import pytest
import torch

from neuron_spec.artifacts import load_tensors, running, save_tensors, signature, signature_in, write_json
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks

DIRECTIONS = parse_directions("en-qa,qa-en,en-qb")
WIDTHS = {"encoder.layers.0": 16, "encoder.layers.1": 13, "decoder.layers.0": 1, "decoder.layers.1": 7}


def masks(
    seed: int = 0, widths: dict[str, int] = WIDTHS, directions: list[Direction] = DIRECTIONS
) -> NeuronMasks:
    generator = torch.Generator().manual_seed(seed)
    kept = {
        layer: torch.rand(len(directions), width, generator=generator) < 0.6
        for layer, width in widths.items()
    }
    return NeuronMasks(directions, kept, {"method": "random"})


def test_round_trip_with_widths_of_no_whole_bytes(tmp_path):
    ours = masks()
    ours.save(tmp_path / "m.safetensors")
    loaded = NeuronMasks.load(tmp_path / "m.safetensors")
    assert loaded.directions == DIRECTIONS
    assert loaded.widths == WIDTHS
    assert loaded.metadata == ours.metadata
    assert all(torch.equal(loaded.kept[layer], ours.kept[layer]) for layer in WIDTHS)
    assert loaded.fingerprint == ours.fingerprint


def test_fingerprint_sees_sets_and_directions_alone():
    ours = masks()
    annotated = NeuronMasks(ours.directions, ours.kept, {"note": "other"})
    assert annotated.fingerprint == ours.fingerprint
    assert masks(1).fingerprint != ours.fingerprint
    assert NeuronMasks(DIRECTIONS[::-1], ours.kept).fingerprint != ours.fingerprint


def test_masks_of_sixty_directions_of_a_big_model_are_under_a_megabyte(tmp_path):
    directions = [Direction("en", f"q{i}") for i in range(60)]
    widths = {f"{side}.layers.{i}": 4096 for side in ("encoder", "decoder") for i in range(6)}
    masks(widths=widths, directions=directions).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < 1_000_000


def test_sparsity_and_the_readable_summary(tmp_path):
    thirds = torch.eye(2, 3, dtype=torch.bool)  # to a thousandth of a percent
    assert NeuronMasks(DIRECTIONS[:2], {"encoder.layers.0": thirds}).summary()["dropped_percent"] == {
        "encoder.layers.0": {"mean": 66.667, "en-qa": 66.667, "qa-en": 66.667}
    }
    kept = torch.tensor([[True] * 4, [True, False, False, False]])
    ours = NeuronMasks(DIRECTIONS[:2], {"encoder.layers.0": kept}, {"method": "by hand"})
    assert ours.sparsity()["encoder.layers.0"].tolist() == [0.0, 0.75]
    ours.save(tmp_path / "m.safetensors")
    summary = json.loads((tmp_path / "m.json").read_text())
    assert summary["dropped_percent"]["encoder.layers.0"] == {"mean": 37.5, "en-qa": 0.0, "qa-en": 75.0}
    assert summary["method"] == "by hand"


def test_some_directions_in_an_order_of_their_own():
    ours = masks()
    some = ours.of(["en-qb", DIRECTIONS[0]])
    assert some.names == ["en-qb", "en-qa"] and some.metadata == ours.metadata
    for site, kept in ours.kept.items():
        assert torch.equal(some.kept[site], torch.stack([kept[2], kept[0]]))
        assert torch.equal(ours["en-qb"][site], kept[2])
    assert list(ours["en-qb"]) == list(ours.sites)
    for find in (lambda: ours.of(["en-qa", "en-xx"]), lambda: ours["en-xx"]):
        with pytest.raises(DirectionError, match=r"not in the mask file\n +got: +en-xx"):
            find()


def test_to_plain_tensors_and_back():
    ours = masks()
    again = NeuronMasks.from_dict(ours.to_dict(), method="by hand", seed=1)
    assert (again.directions, again.fingerprint) == (ours.directions, ours.fingerprint)
    assert again.metadata == {"method": "by hand", "seed": 1}
    assert NeuronMasks.from_dict({"en-qa": {}}).sites == {}


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        ([True, False], "list"),
        (torch.ones(2), r"torch\.float32 \[2\]"),
        (torch.ones(1, 2).bool(), r"torch\.bool \[1, 2\]"),
    ],
)
def test_plain_tensors_that_are_no_masks(mask, got):
    good = {"encoder.layers.0": torch.ones(2).bool()}
    with pytest.raises(
        ArtifactError, match=rf"malformed masks: decoder\.layers\.0\n +where: +qa-en\n +got: +{got}"
    ):
        NeuronMasks.from_dict({"en-qa": good, "qa-en": good | {"decoder.layers.0": mask}})


def test_plain_tensors_of_two_models():
    good = {"encoder.layers.0": torch.ones(2).bool()}
    for other in ({"encoder.layers.0": torch.ones(3).bool()}, {"encoder.layers.1": torch.ones(2).bool()}, {}):
        with pytest.raises(
            ModelError, match=r"masks of different models\n +where: +qa-en\n[\s\S]*as in en-qa"
        ):
            NeuronMasks.from_dict({"en-qa": good, "qa-en": other})


def test_which_directions_have_other_masks():
    ours = masks()
    assert ours.differing(masks()) == []
    changed = masks()
    changed.kept["decoder.layers.0"][1] ^= True  # in one site alone
    assert ours.differing(changed) == changed.differing(ours) == ["qa-en"]
    some = ours.of(["en-qb", "en-qa"])
    assert ours.differing(some) == [] and some.differing(ours) == ["qa-en"]
    narrow = masks(widths={**WIDTHS, "decoder.layers.0": 2})
    assert ours.differing(narrow) == narrow.differing(ours) == ours.names


def test_sides():
    assert list(masks().side("decoder")) == ["decoder.layers.0", "decoder.layers.1"]


@pytest.mark.parametrize(
    "kept", [torch.ones(3, 4), torch.ones(2, 4, dtype=torch.bool), torch.ones(3, dtype=torch.bool)]
)
def test_malformed_masks(kept):
    with pytest.raises(ArtifactError, match="malformed masks"):
        NeuronMasks(DIRECTIONS, {"encoder.layers.0": kept})


def test_another_model_is_told_layer_by_layer():
    masks().require_fit(dict(reversed(WIDTHS.items())))
    with pytest.raises(ModelError, match="another model") as caught:
        masks().require_fit({**WIDTHS, "encoder.layers.1": 14})
    assert "encoder.layers.1: 13" in str(caught.value) and "encoder.layers.0" not in str(caught.value)
    with pytest.raises(ModelError, match=r"encoder\.layers\.2: absent"):
        masks().require_fit({**WIDTHS, "encoder.layers.2": 13})


def test_missing_directions_are_named():
    masks().require_directions(DIRECTIONS[:1])
    with pytest.raises(ModelError, match="also qb-en"):
        masks().require_directions([*DIRECTIONS, Direction("qb", "en")])


def test_bad_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ArtifactError, match="mask file not found"):
        NeuronMasks.load(path)
    profile = ActivationCounts.zeros(DIRECTIONS, WIDTHS)
    profile.save(path)
    with pytest.raises(ArtifactError, match="not a mask file"):
        NeuronMasks.load(path)
    masks().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="cannot be read"):
        NeuronMasks.load(path)
    header = {"format": 1, "directions": ["en-qa"], "widths": {"encoder.layers.0": 16}}
    for tensors in ({"encoder.layers.0": torch.zeros(1, 3, dtype=torch.uint8)}, {}):
        save_tensors(path, tensors, header)
        with pytest.raises(ArtifactError, match=r"damaged mask file\n[\s\S]*m\.safetensors"):
            NeuronMasks.load(path)


HEADS = {"decoder.layers.0.encoder_attn": 4, "encoder.layers.1.self_attn": 4, "decoder.layers.0.self_attn": 2}


def test_heads_and_neurons_are_told_apart_in_one_file(tmp_path):
    both, neurons, heads = masks(widths=WIDTHS | HEADS), masks(), masks(widths=HEADS)
    both.save(tmp_path / "m.safetensors")
    both = NeuronMasks.load(tmp_path / "m.safetensors")
    assert both.layers == neurons.layers and both.widths == neurons.widths
    assert both.head_sites == heads.head_sites == list(heads.sites)
    assert list(both.sites) == [
        *("encoder.layers.0", "encoder.layers.1", "encoder.layers.1.self_attn"),
        *("decoder.layers.0", "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"),
        "decoder.layers.1",
    ]
    assert list(both.sparsity()) == both.layers and list(both.side("encoder")) == both.layers[:2]
    summary = json.loads((tmp_path / "m.json").read_text())
    assert list(summary["dropped_percent"]) == list(both.sites)
    both.require_neurons()
    with pytest.raises(ArtifactError, match="heads alone"):
        heads.require_neurons()


def test_a_file_without_heads_is_what_it_was(tmp_path):
    masks().save(tmp_path / "m.safetensors")
    tensors, header = load_tensors(tmp_path / "m.safetensors", "mask file")
    assert set(tensors) == set(WIDTHS) and header["widths"] == WIDTHS and header["format"] == 1


def test_a_kind_fits_whole_or_is_absent():
    model = WIDTHS | HEADS
    for sizes in (WIDTHS, HEADS, model):
        masks(widths=sizes).require_fit(model)
    masks(widths=model).require_fit(WIDTHS)  # of a model whose heads are not known
    some = dict(list(HEADS.items())[:2])
    for sizes in (some, WIDTHS | some, {**HEADS, "encoder.layers.1.self_attn": 8}):
        with pytest.raises(ModelError, match="another model"):
            masks(widths=sizes).require_fit(model)
    for sizes in (HEADS, {}):
        with pytest.raises(ModelError, match=r"encoder\.layers\.0: absent"):
            masks(widths=sizes).require_fit(WIDTHS)


@pytest.mark.parametrize("site", ["encoder.layers", "encoder.layers.0.fc1", "layers.0", "decoder.layers.x"])
def test_what_is_no_site(site):
    with pytest.raises(ArtifactError, match="not a site"):
        masks(widths={site: 4})


def test_the_same_masks_have_the_same_bytes_whoever_made_them(tmp_path):
    paths = [tmp_path / name / "masks.safetensors" for name in "ab"]
    for path in paths:
        with running(["neuron-spec", "select", path.parent.name]):
            made = signature("select", inputs={}, parameters={"k": 90})
        NeuronMasks(
            parse_directions("en-qa"), {"encoder.layers.0": torch.eye(1, 9).bool()}, {"signature": made}
        ).save(path)
        assert signature_in(path, "masks")["command"] == f"neuron-spec select {path.parent.name}"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    # A summary of other masks says nothing of these.
    write_json(paths[0].with_suffix(".json"), {"signature": {**made, "stage": "another"}})
    assert "command" not in signature_in(paths[0], "masks")
