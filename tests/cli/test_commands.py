"""Exit codes, one message for bad input, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.cli.main import COMMANDS, main
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks


@pytest.fixture(scope="module")
def profile(workshop, checkpoint, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    assert (
        main(["profile", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"])
        == 0
    )
    return output


@pytest.fixture(scope="module")
def masks(profile) -> Path:
    output = profile.with_name("masks.safetensors")
    assert main(["select", str(profile), "--output", str(output)]) == 0
    return output


class Refusal:
    """Runs a command that must fail with one message, leaving its output folder empty."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self.capsys = folder / "out" / "file.safetensors", capsys

    def __call__(self, *arguments: Any) -> str:
        self.capsys.readouterr()
        assert main([*map(str, arguments), "--output", str(self.output)]) == 2
        said = self.capsys.readouterr()
        assert said.out == ""
        message = said.err[said.err.index(f"neuron-spec {arguments[0]}: ") :]
        assert "Traceback" not in said.err
        assert message.count(f"neuron-spec {arguments[0]}: ") == 1
        folder = self.output.parent
        assert not folder.exists() or not list(folder.iterdir())
        return message


@pytest.fixture
def refusal(tmp_path, capsys) -> Refusal:
    return Refusal(tmp_path, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["data", "toy", "--langs", ""],
        ["data", "toy", "--langs="],
        ["data", "toy", "", "--langs", "qa"],
        ["data", "existing", "data-bin", "--lang-pairs", ""],
        ["evaluate", "--generate-output", "a", "b", "--lang-pairs", ""],
        ["select", "profile.safetensors", "--k="],
        ["select", "profile.safetensors", "--encoder-k="],
        ["select", "profile.safetensors", "--decoder-k="],
        ["select", "profile.safetensors", "--method", "top-fraction", "--fraction="],
        ["select", "profile.safetensors", "--method", "shared-core", "--core="],
    ],
)
def test_an_empty_value_is_refused_not_ignored(tmp_path, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--output", str(tmp_path / "output")])
    assert "an empty value: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Done


def test_profile_prints_its_file_and_is_not_made_twice(workshop, checkpoint, profile, capsys):
    before = profile.stat().st_mtime_ns
    command = [
        "profile",
        str(workshop.data_bin),
        "--path",
        str(checkpoint),
        "--output",
        str(profile),
        "--cpu",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(profile)]
    assert "complete already" in said.err
    assert profile.stat().st_mtime_ns == before


def test_select_covers_k_percent_of_the_profile(profile, masks):
    counts, kept = ActivationCounts.load(profile), NeuronMasks.load(masks)
    assert kept.directions == counts.directions
    for layer, values in counts.counts.items():
        covered = (values * kept.kept[layer]).sum(dim=1) / values.sum(dim=1)
        assert bool((covered >= 0.95).all()) and bool((covered < 1).all())
    summary = json.loads(masks.with_suffix(".json").read_text())
    assert summary["directions"] == [str(d) for d in kept.directions]


def test_selecting_twice_gives_the_same_bytes(profile, masks, tmp_path):
    assert main(["select", str(profile), "--output", str(tmp_path / "m.safetensors")]) == 0
    assert (tmp_path / "m.safetensors").read_bytes() == masks.read_bytes()


def test_select_adds_profiles(profile, masks, workshop, checkpoint, tmp_path):
    words = ["profile", str(workshop.data_bin), "--path", str(checkpoint), "--cpu"]
    parts = [str(tmp_path / f"part-{number}.safetensors") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        assert main([*words, "--part", f"{number}/2", "--output", part]) == 0
    assert main(["select", *parts, "--output", str(tmp_path / "m.safetensors")]) == 0
    assert NeuronMasks.load(tmp_path / "m.safetensors").fingerprint == NeuronMasks.load(masks).fingerprint


def test_toy_data_from_the_command_line(tmp_path, capsys):
    command = ["data", "toy", "--output", str(tmp_path / "toy"), "--langs", "qa", "--train-size", "120"]
    command += ["--valid-size", "5", "--test-size", "5", "--vocab-size", "120"]
    assert main(command) == 0
    card = Path(capsys.readouterr().out.strip())
    assert json.loads(card.read_text())["lang_pairs"] == ["en-qa", "qa-en"]
    before = card.stat().st_mtime_ns
    assert main(command) == 0 and card.stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*command, "--seed", "2"]) == 2
    assert "another corpus is already here" in capsys.readouterr().err
    assert card.stat().st_mtime_ns == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"neuron-spec {command}" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    "arguments", [[], ["unknown"], ["select"], ["select", "p", "--output", "m", "--", "--fp16"]]
)
def test_malformed_command_lines(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_missing_checkpoint(refusal, workshop, tmp_path):
    message = refusal("profile", workshop.data_bin, "--path", tmp_path / "absent.pt")
    assert "checkpoint not found" in message and "absent.pt" in message


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_checkpoint(refusal, workshop, checkpoint, tmp_path, kept):
    content = checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(kept * len(content))])
    message = refusal("profile", workshop.data_bin, "--path", tmp_path / "cut.pt")
    assert "checkpoint cannot be read" in message and "cut.pt" in message


def test_files_that_are_no_checkpoint(refusal, workshop, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    assert "cannot be read" in refusal("profile", workshop.data_bin, "--path", tmp_path / "text.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert "not a fairseq checkpoint" in refusal(
        "profile", workshop.data_bin, "--path", tmp_path / "other.pt"
    )


def test_missing_data_bin(refusal, checkpoint, tmp_path):
    message = refusal("profile", tmp_path / "absent", "--path", checkpoint)
    assert "data-bin not found" in message


def test_missing_subset_and_truncated_data(refusal, workshop, checkpoint, tmp_path):
    message = refusal("profile", workshop.data_bin, "--path", checkpoint, "--gen-subset", "dev")
    assert "no dev set" in message
    copy = Path(shutil.copytree(workshop.data_bin, tmp_path / "copy"))
    (copy / "valid.qa-en.en.bin").write_bytes(b"12")
    assert "cut short" in refusal("profile", copy, "--path", checkpoint)


def test_scores_that_only_look_official_are_refused(refusal, workshop, checkpoint):
    words = ("evaluate", workshop.data_bin, "--path", checkpoint, "--official-scoring")
    assert "add --references data-bin" in refusal(*words)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("en-xx", "unknown language"),
        ("en-qa,en-qa", "named twice"),
        ("enqa", "malformed direction"),
        ("qa-qb", "no valid set"),
    ],
)
def test_bad_directions(refusal, workshop, checkpoint, pairs, said):
    assert said in refusal("profile", workshop.data_bin, "--path", checkpoint, "--lang-pairs", pairs)


@pytest.mark.parametrize("k", ["0", "101", "nan", "many"])
@pytest.mark.parametrize("flag", ["--k", "--encoder-k", "--decoder-k"])
def test_k_out_of_range(refusal, profile, flag, k):
    assert "bad k" in refusal("select", profile, flag, k)


@pytest.mark.parametrize(
    ("k_for", "said"), [("en-*", "malformed --k-for"), ("xx-*=90", "names no direction"), ("*=0", "bad k")]
)
def test_bad_k_for(refusal, profile, k_for, said):
    assert said in refusal("select", profile, "--k-for", k_for)


def test_a_mask_file_is_no_profile(refusal, masks):
    assert "not a profile" in refusal("select", masks)


def test_missing_and_truncated_profile(refusal, profile, tmp_path):
    assert "profile not found" in refusal("select", tmp_path / "absent")
    (tmp_path / "cut").write_bytes(profile.read_bytes()[:-1])
    assert "cannot be read" in refusal("select", tmp_path / "cut")


def test_profiles_of_other_directions_are_not_added(refusal, profile, tmp_path):
    other = ActivationCounts.load(profile)
    other.directions = other.directions[::-1]
    other.save(tmp_path / "other")
    assert "different directions" in refusal("select", profile, tmp_path / "other")


def test_another_profile_is_not_overwritten(workshop, checkpoint, profile, capsys):
    before = profile.read_bytes()
    command = [
        "profile",
        str(workshop.data_bin),
        "--path",
        str(checkpoint),
        "--output",
        str(profile),
        "--cpu",
    ]
    assert main([*command, "--lang-pairs", "en-qa"]) == 2
    assert "another profile is already here" in capsys.readouterr().err
    assert profile.read_bytes() == before


@pytest.mark.parametrize(
    ("langs", "said"), [("qa,xx", "no such language"), ("en,qa", "bad --langs"), ("qa,qa", "bad --langs")]
)
def test_bad_languages(refusal, langs, said):
    assert said in refusal("data", "toy", "--langs", langs)


def test_codes_that_fairseq_would_part_are_refused_with_what_to_write(refusal):
    assert "zh_Hans" in refusal("data", "homeassistant", "--langs", "de,zh-Hans")
    assert "bad --langs" in refusal("data", "homeassistant", "--langs", "de,eng_Latn")


def test_git_lfs_pointers_are_refused(refusal, workshop, tmp_path):
    pointer = tmp_path / "file"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    for command in (
        ("data", "toy", "--sentencepiece", pointer),
        ("profile", workshop.data_bin, "--path", pointer, "--cpu"),
        ("evaluate", "--generate-output", pointer),
        ("select", pointer),
    ):
        assert "git lfs pull" in refusal(*command)


def test_a_bug_of_ours_is_not_dressed_as_bad_input(profile, tmp_path, monkeypatch):
    from neuron_spec.neurons import selection

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(selection, "select", broken)
    with pytest.raises(ZeroDivisionError):
        main(["select", str(profile), "--output", str(tmp_path / "m.safetensors")])
    assert not list(tmp_path.iterdir())
