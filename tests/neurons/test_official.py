"""Masks and counts of the official code: read as they are meant, written as they are read, and nothing run."""

import io
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from neuron_spec.artifacts import load_tensors
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, NeuronSpecError, SelectionError
from neuron_spec.neurons import selection
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.official import masks_in, read_counts, read_masks, write_masks

DIRECTIONS = parse_directions("en-de,de-en,en-deu_Latn")
WIDTHS = {
    **{f"encoder.layers.{number}": 24 for number in range(2)},
    **{f"decoder.layers.{number}": 40 for number in range(11)},  # 10 comes after 9
}
DIMS = {layer: 6 if layer.startswith("encoder") else 8 for layer in WIDTHS}
SHAPES = {layer: (width, DIMS[layer]) for layer, width in WIDTHS.items()}


def random_masks(seed=1, directions=DIRECTIONS):
    generator = torch.Generator().manual_seed(seed)
    kept = {
        layer: torch.rand(len(directions), width, generator=generator) < 0.7
        for layer, width in WIDTHS.items()
    }
    return NeuronMasks(list(directions), kept)


def weight_masks(masks, row):
    """As the official code makes them."""
    return {
        f"{layer}.fc1.weight": kept[row].int().unsqueeze(1).expand([kept.size(1), DIMS[layer]]).bool()
        for layer, kept in masks.kept.items()
    }


def written_officially(folder, masks):
    folder.mkdir(exist_ok=True)
    for row, name in enumerate(masks.names):
        torch.save(weight_masks(masks, row), folder / f"{name}.pt")
    return folder


def same(one, other):
    return one.directions == other.directions and one.fingerprint == other.fingerprint


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Masks


@pytest.mark.parametrize("seed", range(5))
def test_the_official_codes_masks_are_read_as_they_were_made(tmp_path, seed):
    masks = random_masks(seed)
    assert same(read_masks(written_officially(tmp_path / "m", masks), DIRECTIONS, SHAPES), masks)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read_and_what_is_read_is_written(tmp_path, seed):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    masks = random_masks(seed)
    write_masks(masks, one, DIMS)
    again = read_masks(one, masks.directions)
    write_masks(again, other, DIMS)
    assert same(again, masks)
    assert contents(one) == contents(other)
    official = written_officially(tmp_path / "official", masks)
    for name in masks.names:  # as the official code's own, and each tensor with memory of its own
        ours, theirs = (torch.load(folder / f"{name}.pt") for folder in (one, official))
        assert {*ours} == {*theirs}
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert all(mask.is_contiguous() and mask.dtype == torch.bool for mask in ours.values())


def test_directions_are_read_in_the_order_that_is_asked_for_and_no_others(tmp_path):
    masks = random_masks()
    folder = written_officially(tmp_path, masks)
    backwards = [DIRECTIONS[2], DIRECTIONS[0]]
    assert same(read_masks(folder, backwards), masks.of(backwards))
    assert read_masks(folder).names == sorted(masks.names)


def test_a_checkpoints_own_masks_are_those_of_its_files():
    masks = random_masks()
    weights = {
        f"language_mask.{name}.{key.replace('.', '|')}": value
        for row, name in enumerate(masks.names)
        for key, value in weight_masks(masks, row).items()
    }
    assert same(masks_in(weights | {"encoder.layers.0.fc1.bias": torch.zeros(2)}), masks)
    assert masks_in({"encoder.layers.0.fc1.bias": torch.zeros(2)}) is None


def spoilt(change):
    masks = random_masks()
    found = weight_masks(masks, 1)
    changed = change(found)
    return found if changed is None else changed


def drop_an_entry(of):
    of["decoder.layers.0.fc1.weight"][3] = True
    of["decoder.layers.0.fc1.weight"][3, 2] = False


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


BAD_MASKS = {
    "a row that is mixed": (drop_an_entry, "neither kept nor dropped", "decoder.layers.0.fc1.weight, row 3"),
    "a mask for attention": (
        lambda of: {**of, "encoder.layers.0.self_attn.k_proj.weight": of["encoder.layers.0.fc1.weight"]},
        "not a mask of neurons",
        "self_attn.k_proj.weight",
    ),
    "a weight": (
        lambda of: {**of, "encoder.layers.0.fc1.weight": torch.ones(24, 6)},
        "not a mask of neurons",
        "torch.float32 [24, 6]",
    ),
    "a vector": (
        lambda of: {**of, "encoder.layers.0.fc1.weight": torch.ones(24).bool()},
        "not a mask of neurons",
        "torch.bool [24]",
    ),
    "a sparse mask": (
        lambda of: {**of, "encoder.layers.0.fc1.weight": torch.eye(24, 6).to_sparse().bool()},
        "not a mask of neurons",
        "torch.bool [24, 6], torch.sparse_coo",
    ),
    "an empty mask": (
        lambda of: {**of, "encoder.layers.0.fc1.weight": torch.ones(24, 0).bool()},
        "an empty mask",
        "[24, 0]",
    ),
    "fewer layers": (
        lambda of: {key: value for key, value in of.items() if "layers.1." not in key},
        "masks of another model",
        "encoder.layers.1: absent",
    ),
    "other widths": (
        lambda of: {**of, "encoder.layers.1.fc1.weight": torch.ones(32, 6).bool()},
        "masks of another model",
        "(32, 6)",
    ),
    "another model's dimension": (
        lambda of: {**of, "encoder.layers.1.fc1.weight": torch.ones(24, 7).bool()},
        "masks of another model",
        "(24, 7)",
    ),
    "a list": (lambda of: list(of.values()), "not an official mask file", "list"),
    "nothing": (lambda of: {}, "not an official mask file", "dict"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_a_bad_mask_file_is_refused_by_name(tmp_path, kind):
    change, said, got = BAD_MASKS[kind]
    written_officially(tmp_path, random_masks())
    torch.save(spoilt(change), tmp_path / "de-en.pt")
    with pytest.raises(NeuronSpecError, match=said) as error:
        read_masks(tmp_path, DIRECTIONS)
    assert got in str(error.value) and "de-en.pt" in str(error.value)


def test_masks_of_another_model_than_asked_for(tmp_path):
    folder = written_officially(tmp_path, random_masks())
    with pytest.raises(ModelError, match="name the checkpoint that the masks were made for"):
        read_masks(folder, DIRECTIONS, {**SHAPES, "encoder.layers.0": (24, 7)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git-LFS pointer"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut short", "cannot be read"),
        (b"\x80\x04nonsense", "cannot be read"),
    ],
)
def test_a_damaged_mask_file_is_refused(tmp_path, content, said):
    written_officially(tmp_path, random_masks())
    (tmp_path / "de-en.pt").write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as error:
        read_masks(tmp_path)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_mask_file_with_a_payload_is_refused_and_not_run(tmp_path, save):
    run = tmp_path / "run"
    save({"encoder.layers.0.fc1.weight": Payload(run)}, tmp_path / "en-de.pt")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_masks(tmp_path)
    assert not run.exists()


def test_a_missing_direction_and_files_of_other_names(tmp_path):
    folder = written_officially(tmp_path, random_masks())
    with pytest.raises(ArtifactError, match="a direction has no file") as error:
        read_masks(folder, parse_directions("en-de,de-fr"))
    assert "expected: de-fr.pt" in str(error.value)
    (folder / "best.pt").touch()
    with pytest.raises(DirectionError, match="not named by a direction") as error:
        read_masks(folder)
    assert "'best'" in str(error.value)
    with pytest.raises(ArtifactError, match="no files of the official code here"):
        read_masks(tmp_path / "empty")


def test_masks_of_heads_are_not_written(tmp_path):
    masks = random_masks()
    masks.kept["encoder.layers.0.self_attn"] = torch.ones(len(DIRECTIONS), 4).bool()
    with pytest.raises(ArtifactError, match="neurons alone"):
        write_masks(masks, tmp_path, DIMS)
    assert not contents(tmp_path)


# Counts


def random_counts(seed=1, directions=DIRECTIONS):
    generator = torch.Generator().manual_seed(seed)
    return {
        str(of): {
            "{}_layer_{}".format(*layer.split(".layers.")): torch.randperm(10 * width, generator=generator)[
                :width
            ]
            for layer, width in WIDTHS.items()
        }
        for of in directions
    }


def pickled(folder, counts, protocol=pickle.DEFAULT_PROTOCOL):
    for name, of in counts.items():
        (folder / name).mkdir(exist_ok=True, parents=True)
        (folder / name / "activations.pkl").write_bytes(pickle.dumps(of, protocol))
    return folder


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_counts_are_read_as_they_were_pickled(tmp_path, protocol):
    counts = random_counts()
    profile = read_counts(pickled(tmp_path, counts, protocol), DIRECTIONS)
    assert profile.directions == list(DIRECTIONS) and profile.widths == WIDTHS
    for row, of in enumerate(counts.values()):
        for key, expected in of.items():
            layer = key.replace("_layer_", ".layers.")
            assert torch.equal(profile.counts[layer][row], expected)
    profile.save(tmp_path / "profile.safetensors")
    again = ActivationCounts.load(tmp_path / "profile.safetensors")
    assert all(torch.equal(again.counts[layer], profile.counts[layer]) for layer in WIDTHS)
    assert not again.knows_tokens
    assert not (again + again).knows_tokens


def official_selection(counts, k):
    """The official code's rule: descending, the smallest prefix with at least k percent of the sum."""
    values, order = torch.sort(counts, descending=True)
    number = int(torch.where(torch.cumsum(values, 0) >= counts.sum() * (k / 100))[0][0]) + 1
    return torch.isin(torch.arange(len(counts)), order[:number])


@pytest.mark.parametrize("k", [70, 95])
def test_from_their_counts_we_select_their_masks(tmp_path, k):
    counts = random_counts()
    profile = read_counts(pickled(tmp_path / "counts", counts), DIRECTIONS)
    ours = selection.select(profile, selection.ks_per_direction(DIRECTIONS, k=selection.parse_k(str(k))))
    theirs = {
        layer: torch.stack(
            [official_selection(of[layer.replace(".layers.", "_layer_")], k) for of in counts.values()]
        )
        for layer in WIDTHS
    }
    assert same(ours, NeuronMasks(list(DIRECTIONS), theirs))


def test_what_needs_the_number_of_tokens_is_refused(tmp_path):
    profile = read_counts(pickled(tmp_path, random_counts()))
    ks = selection.ks_per_direction(profile.directions)
    with pytest.raises(SelectionError, match="what share of the tokens"):
        selection.select_shared_core(profile, ks, selection.parse_k("50"))


class StoragePayload:
    """Inside the bytes of a tensor."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Payload(self.path), inner)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


def test_a_pickle_with_a_payload_is_refused_in_one_message_and_not_run(tmp_path):
    counts, run = random_counts(), tmp_path / "run"
    folder = pickled(tmp_path / "counts", counts)
    for payload in (Payload(run), {"encoder_layer_0": Payload(run)}, [Payload(run)]):
        pickled(folder, {"en-de": payload})
        with pytest.raises(ArtifactError, match="could run code") as error:
            read_counts(folder)
        assert "it names posix.mkdir" in str(error.value) and "en-de" in str(error.value)
    pickled(folder, {"en-de": {**counts["en-de"], "encoder_layer_0": StoragePayload(run)}})
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_counts(folder)
    assert not run.exists()


BAD_COUNTS = {
    "no dictionary": ([1, 2], "not official activation counts"),
    "empty": ({}, "not official activation counts"),
    "ordered": (OrderedDict(a=1), "not official activation counts"),
    "another layer's name": ({"encoder.layers.0": torch.arange(3)}, "not official activation counts"),
    "one side": ({"encoder_layer_0": torch.arange(24)}, "not official activation counts"),
    "floats": (
        {key: value.float() for key, value in random_counts()["en-de"].items()},
        "not official activation counts",
    ),
    "negative": (
        {key: value - 1000 for key, value in random_counts()["en-de"].items()},
        "not official activation counts",
    ),
    "other widths": (
        {"encoder_layer_0": torch.arange(8), "decoder_layer_0": torch.arange(8)},
        "counts of different models",
    ),
}


@pytest.mark.parametrize("kind", BAD_COUNTS)
def test_other_pickles_are_refused(tmp_path, kind):
    content, said = BAD_COUNTS[kind]
    pickled(tmp_path, random_counts() | {"en-de": content})
    with pytest.raises(ArtifactError, match=said):
        read_counts(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_pickles_are_refused(tmp_path, content):
    pickled(tmp_path, random_counts())
    (tmp_path / "en-de" / "activations.pkl").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"cannot be read|Git-LFS pointer"):
        read_counts(tmp_path)


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    counts = random_counts()
    pickled(tmp_path, counts)

    class Large:
        def __reduce__(self):
            storage = torch.arange(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1000,), (1,), False, OrderedDict())

    pickled(tmp_path, {"en-de": {**counts["en-de"], "encoder_layer_0": Large()}})
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_counts(tmp_path)


def test_the_file_of_imported_masks_says_that_they_are_official(tmp_path):
    masks = read_masks(written_officially(tmp_path / "m", random_masks()))
    masks.save(tmp_path / "masks.safetensors")
    assert load_tensors(tmp_path / "masks.safetensors", "masks")[1]["method"] == "official"
