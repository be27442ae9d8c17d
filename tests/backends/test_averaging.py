"""The mean of checkpoints: of weights as fairseq's script makes it, masks kept, or refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from neuron_spec.backends.fairseq.averaging import chosen_checkpoints
from neuron_spec.backends.fairseq.checkpoints import is_specialized, masks_of, read_checkpoint, token_flags
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError

THREE = 3


def averaged(*paths: Path, to: Path, status: int = 0) -> Path:
    words = ["checkpoint", "average", "--inputs", *map(str, paths), "--output", str(to)]
    assert main(words) == status
    return to


def as_fairseq_averages(paths: list[Path]) -> dict[str, torch.Tensor]:
    """The arithmetic of fairseq's scripts/average_checkpoints.py: sums in the order given, halves as singles."""
    sums: dict[str, torch.Tensor] = {}
    for path in paths:
        for key, value in read_checkpoint(path)["model"].items():
            value = value.float() if value.dtype == torch.float16 else value
            sums[key] = sums[key] + value if key in sums else value.clone()
    return {key: value / len(paths) for key, value in sums.items()}


@pytest.fixture(scope="module")
def saved(workshop, tmp_path_factory):
    """Checkpoints of one architecture with other weights each."""
    folder = tmp_path_factory.mktemp("averaging")

    def make(
        name: str, *flags: str, masks: int | None = None, numbers=range(THREE), **kinds: str
    ) -> list[Path]:
        paths = []
        for number in numbers:
            cfg, _, model = workshop.build(*flags, seed=number, **kinds)
            if masks is not None:
                model.set_masks(workshop.masks(model, seed=masks), workshop.langs)
            paths.append(workshop.save(folder / f"{name}-{number}.pt", cfg, model))
        return paths

    return make


@pytest.fixture(scope="module")
def dense(saved) -> list[Path]:
    return saved("dense")


@pytest.fixture(scope="module")
def specialized(saved) -> list[Path]:
    return saved("specialized", masks=1)


def test_the_mean_of_a_dense_model_is_fairseqs_bit_for_bit(dense, tmp_path):
    model = read_checkpoint(averaged(*dense, to=tmp_path / "a.pt"))["model"]
    expected = as_fairseq_averages(dense)
    assert model.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.items())
    assert not torch.equal(
        model["encoder.layers.0.fc1.weight"],
        read_checkpoint(dense[0])["model"]["encoder.layers.0.fc1.weight"],
    )


def test_shared_embeddings_are_stored_once_and_equal(dense, tmp_path):
    model = read_checkpoint(averaged(*dense, to=tmp_path / "a.pt"))["model"]
    assert (
        model["encoder.embed_tokens.weight"].data_ptr()
        == model["decoder.output_projection.weight"].data_ptr()
    )
    assert (tmp_path / "a.pt").stat().st_size < 1.1 * dense[0].stat().st_size


def test_half_precision_stays_and_is_summed_in_single(dense, tmp_path):
    halves = []
    for path in dense:
        state = read_checkpoint(path)
        state["model"] = {key: value.half() for key, value in state["model"].items()}
        torch.save(state, tmp_path / path.name)
        halves.append(tmp_path / path.name)
    model = read_checkpoint(averaged(*halves, to=tmp_path / "a.pt"))["model"]
    expected = as_fairseq_averages(halves)
    assert all(torch.equal(value, expected[key].half()) for key, value in model.items())


def test_masks_languages_and_flags_are_kept(specialized, tmp_path):
    state = read_checkpoint(averaged(*specialized, to=tmp_path / "a.pt"))
    first = read_checkpoint(specialized[0])
    assert is_specialized(state)
    for key, mask in masks_of(first).items():
        assert torch.equal(state["model"][key], mask) and state["model"][key].dtype == mask.dtype
    assert vars(state["cfg"]["task"]) == vars(first["cfg"]["task"])
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["checkpoints"] == [path.name for path in specialized]
    assert beside["signature"]["stage"] == "average"


def test_the_average_translates_and_its_losses_are_those_of_its_weights(workshop, specialized, tmp_path):
    path = averaged(*specialized, to=tmp_path / "a.pt")
    command = ["evaluate", str(workshop.data_bin), "--path", str(path), "--cpu", "--beam", "1", "--output"]
    end = ["--lang-pairs", "en-qa", "--", "--max-len-b", "3"]
    assert main([*command, str(tmp_path / "e"), *end]) == 0
    cfg, _, model = workshop.build()
    model.load_state_dict(read_checkpoint(path)["model"])
    again = workshop.save(tmp_path / "again.pt", cfg, model)
    losses = []
    for of in (path, again, specialized[0]):
        flags = token_flags(argparse.Namespace(**vars(cfg.task)))
        loaded = TeacherForced(of, workshop.data_bin, parse_directions("en-qa"), token_flags=flags, cpu=True)
        losses.append(loaded.mean_losses(loaded.read("valid")))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("arch", "flags"),
    [
        ("neuron_spec_adapters_tiny", ("--adapters", "pair", "--adapter-size", "4")),
        ("neuron_spec_transformer_tiny", ()),
    ],
)
def test_other_architectures_are_averaged_too(saved, arch, flags, tmp_path):
    paths = saved(arch, *flags, arch=arch)
    model = read_checkpoint(averaged(*paths, to=tmp_path / "a.pt"))["model"]
    states = [read_checkpoint(path)["model"] for path in paths]
    for key, value in model.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(state[key] for state in states) / THREE)
        else:
            assert all(torch.equal(value, state[key]) for state in states)


def test_an_average_is_made_once(dense, tmp_path, capsys):
    path = averaged(*dense, to=tmp_path / "a.pt")
    before = path.stat().st_mtime_ns
    averaged(*dense, to=path)
    assert "complete already" in capsys.readouterr().err and path.stat().st_mtime_ns == before
    averaged(*dense[:2], to=path, status=2)
    assert "another average is already here" in capsys.readouterr().err
    path.unlink()
    averaged(*dense, to=path)
    assert path.is_file()


def test_what_has_optimizer_state_or_moved_masks_leaves_them(dense, tmp_path):
    paths = []
    for path in dense:
        state = read_checkpoint(path)
        state["last_optimizer_state"] = {"state": {}}
        state["extra_state"]["ema"] = {"weight": torch.zeros(1)}
        state["model"] = {**state["model"], "dynamics.score": torch.rand(3)}
        torch.save(state, tmp_path / path.name)
        paths.append(tmp_path / path.name)
    state = read_checkpoint(averaged(*paths, to=tmp_path / "a.pt"))
    assert not state.get("last_optimizer_state") and "ema" not in state["extra_state"]
    assert not [key for key in state["model"] if key.startswith("dynamics")]


# ---------------------------------------------------------------- refused


@pytest.fixture
def refusal(capsys, tmp_path):
    def message(*paths: Path) -> str:
        averaged(*paths, to=tmp_path / "out" / "a.pt", status=2)
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    return message


def test_unlike_checkpoints_are_refused(refusal, saved, dense, specialized, checkpoint):
    others = saved("other-masks", masks=2, numbers=[5])
    assert "different masks cannot be averaged" in refusal(specialized[0], *others)
    assert "different weights" in refusal(specialized[0], dense[0])
    heads = saved("heads", "--encoder-attention-heads", "4", numbers=[5])
    assert "encoder_attention_heads: 2 and 4" in refusal(dense[0], *heads)
    zero = saved("zero", "--dropped-neurons", "zero", masks=1, numbers=[5])
    assert "dropped_neurons" in refusal(specialized[0], *zero)
    width = saved("width", "--encoder-ffn-embed-dim", "32", numbers=[5])
    assert "different architectures" in refusal(dense[0], *width)
    tokens = saved("tokens", "--encoder-langtok", "tgt", numbers=[5])
    assert "--encoder-langtok src and --encoder-langtok tgt" in refusal(dense[0], *tokens)
    dropout = saved("dropout", "--dropout", "0.3", numbers=[5])
    assert averaged(dense[0], *dropout, to=dense[0].with_name("dropout.pt")).is_file()


def test_one_checkpoint_or_the_same_twice_is_no_average(refusal, dense):
    assert "two checkpoints or more" in refusal(dense[0])
    assert "each once" in refusal(dense[0], dense[0])
    assert "checkpoint not found" in refusal(dense[0], dense[0].with_name("absent.pt"))


def test_nothing_is_overwritten(dense, tmp_path, capsys):
    copy = tmp_path / "kept.pt"
    copy.write_bytes(dense[0].read_bytes())
    averaged(*dense, to=copy, status=2)
    assert "another file is already here" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{}")
    averaged(*dense, to=tmp_path / "a.pt", status=2)
    assert (tmp_path / "a.json").read_text() == "{}"


# ---------------------------------------------------------------- which of a folder


@pytest.fixture
def folder(dense, tmp_path) -> Path:
    names = [f"checkpoint{n}" for n in (2, 9, 10)] + [
        f"checkpoint_{e}_{u}" for e, u in ((1, 500), (1, 1000), (2, 9000))
    ]
    for name, path in zip(
        [*names, "checkpoint_best", "checkpoint_last"], [*dense, *dense, *dense], strict=False
    ):
        (tmp_path / f"{name}.pt").write_bytes(path.read_bytes())
    return tmp_path


def test_the_last_of_a_folder_are_by_number(folder):
    def names(number, **options):
        return [path.stem for path in chosen_checkpoints(folder, number, **options)]

    assert names(2, kind="epoch") == ["checkpoint10", "checkpoint9"]
    assert names(2, kind="update") == ["checkpoint_2_9000", "checkpoint_1_1000"]
    assert names(2, kind="update", upper_bound=1000) == ["checkpoint_1_1000", "checkpoint_1_500"]
    with pytest.raises(ArtifactError, match="fewer checkpoints"):
        names(2, kind="epoch", upper_bound=8)


@pytest.mark.parametrize(
    ("is_largest", "expected"), [(False, ["2.3451", "10.1002"]), (True, ["11.5000", "10.1002"])]
)
def test_the_best_of_a_folder_are_by_the_metric_of_training(dense, tmp_path, is_largest, expected):
    state = read_checkpoint(dense[0])
    state["cfg"]["checkpoint"]["maximize_best_checkpoint_metric"] = is_largest
    for value in ("11.5000", "2.3451", "10.1002"):
        torch.save(state, tmp_path / f"checkpoint.best_nll_loss_{value}.pt")
    found = chosen_checkpoints(tmp_path, 2, "best")
    assert [path.stem.rpartition("_")[2] for path in found] == expected


def test_a_folder_is_averaged_by_fairseqs_flags(folder, capsys):
    words = ["checkpoint", "average", "--inputs", str(folder), "--output", str(folder / "mean" / "a.pt")]
    assert main([*words, "--num-update-checkpoints", "3"]) == 0
    assert read_checkpoint(folder / "mean" / "a.pt")["model"].keys()
    beside = json.loads((folder / "mean" / "a.json").read_text())
    assert beside["checkpoints"] == ["checkpoint_2_9000.pt", "checkpoint_1_1000.pt", "checkpoint_1_500.pt"]
    words[-1] = str(folder / "mean" / "b.pt")
    assert main(words) == 2
    assert main([*words, "--num-epoch-checkpoints", "4"]) == 2
    assert "got:      3 of the kind epoch" in capsys.readouterr().err
