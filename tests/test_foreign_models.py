"""Models of the kinds that the field publishes, through the whole method by its command lines."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import foreign_models
import pytest
import torch
from foreign_models import PAIRS, fairseq

from neuron_spec.backends.fairseq.checkpoints import flags_of, masks_of, read_checkpoint
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.cli.main import main
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.evaluation import read_evaluation

pytestmark = pytest.mark.slow


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def m2m(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_models.m2m(data_bin, tmp_path_factory.mktemp("m2m") / "model")


def specialized(data_bin: Path, dense: Path, run: Path, *flags: object) -> Path:
    """Profile, select and specialize; the specialized checkpoint."""
    command(
        "profile", data_bin, "--path", dense, "--output", run / "profile.safetensors", "--cpu",
        "--lang-pairs", PAIRS,
    )  # fmt: skip
    command("select", run / "profile.safetensors", "--output", run / "masks.safetensors", "--k", 70)
    command(
        "specialize", data_bin, "--path", dense, "--masks", run / "masks.safetensors", "--save-dir",
        run / "specialized", "--", "--max-update", 4, "--cpu", "--num-workers", 0, *flags,
    )  # fmt: skip
    return run / "specialized" / "checkpoint_best.pt"


def require_specialized(checkpoint: Path, dense: Path, masks: NeuronMasks) -> None:
    """That it carries the masks, has learned, and has not touched neurons that no direction keeps."""
    before, after = read_checkpoint(dense), read_checkpoint(checkpoint)
    assert masks_of(after)
    for layer, kept in masks.kept.items():
        assert torch.equal(after["model"][f"{layer}.fc1.neuron_mask"], kept)
        old, new = (of["model"][f"{layer}.fc1.weight"] for of in (before, after))
        is_kept = kept.any(0)
        assert torch.equal(old[~is_kept], new[~is_kept])
        assert not torch.equal(old[is_kept], new[is_kept])
    assert any((~kept.any(0)).any() for kept in masks.kept.values())
    # In training layers are dropped as before.
    flags = [flags_of(state, "model") for state in (before, after)]
    for name in ("encoder_layerdrop", "decoder_layerdrop", "dropout", "attention_dropout", "activation_fn"):
        assert flags[0][name] == flags[1][name]


def test_a_model_like_m2m_100_from_data_bin_to_report(m2m: Path, data_bin: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(data_bin.parent, run / "corpus")
    of_run = run / "corpus" / "data-bin"
    checkpoint = specialized(of_run, m2m, run)
    masks = NeuronMasks.load(run / "masks.safetensors")
    assert [str(direction) for direction in masks.directions] == PAIRS.split(",")
    require_specialized(checkpoint, m2m, masks)
    for name, path, pairs in (("dense", m2m, ("--lang-pairs", PAIRS)), ("specialized", checkpoint, ())):
        command(
            "evaluate", of_run, "--path", path, "--output", run / "evaluation" / name, "--cpu", *pairs,
            "--beam", 2, "--", "--max-len-b", 5,
        )  # fmt: skip
        assert len(read_evaluation(run / "evaluation" / name).scores) == 4
    dictionary = m2m.with_name("model_dict.txt")
    require_as_fairseq_generates(
        of_run, checkpoint, run / "evaluation" / "specialized", "--fixed-dictionary", dictionary
    )
    command("report", run)
    assert "specialized" in (run / "report.md").read_text(encoding="utf-8")


def test_layers_are_not_dropped_where_neurons_are_counted(m2m: Path, data_bin: Path, tmp_path: Path) -> None:
    always = m2m.with_name("always.pt")
    state = read_checkpoint(m2m)
    flags = vars(state["args"]) | {"encoder_layerdrop": 0, "decoder_layerdrop": 0}
    torch.save({**state, "args": argparse.Namespace(**flags)}, always)
    counts = []
    for path in (m2m, always):
        output = tmp_path / f"{path.stem}.safetensors"
        command(
            "profile", data_bin, "--path", path, "--output", output, "--cpu", "--lang-pairs", "en-qa,qb-en"
        )
        counts.append(ActivationCounts.load(output).counts)
    assert len(counts[0]) == 24
    assert all(torch.equal(counts[0][layer], counts[1][layer]) for layer in counts[1])


def test_pairs_may_stand_in_a_file_and_those_without_text_are_named(
    m2m: Path, data_bin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.txt").write_text("en-qa\nqa-en\n")
    words = ["profile", data_bin, "--path", m2m, "--cpu", "--output"]
    command(*words, tmp_path / "profile.safetensors", "--lang-pairs", tmp_path / "pairs.txt")
    assert len(ActivationCounts.load(tmp_path / "profile.safetensors").directions) == 2
    assert main([*map(str, words), str(tmp_path / "all.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "no valid set for 9894 of the checkpoint's directions" in said
    assert "--lang-pairs en-qa,en-qb,en-qm,qa-en,qb-en,qm-en" in said


@pytest.mark.parametrize("kind", ["mbart", "ec40"])
def test_models_of_other_kinds(kind: str, data_bin: Path, tmp_path: Path) -> None:
    dense = getattr(foreign_models, kind)(data_bin, tmp_path / "dense")
    checkpoint = specialized(data_bin, dense, tmp_path)
    require_specialized(checkpoint, dense, NeuronMasks.load(tmp_path / "masks.safetensors"))
    command(
        "evaluate", data_bin, "--path", checkpoint, "--output", tmp_path / "evaluation", "--cpu", "--beam", 2,
        "--lang-pairs", "en-qa", "--", "--max-len-b", 5,
    )  # fmt: skip
    require_as_fairseq_generates(data_bin, checkpoint, tmp_path / "evaluation")


def require_as_fairseq_generates(data_bin: Path, checkpoint: Path, evaluation: Path, *flags: object) -> None:
    tokens = LanguageTokens.of(flags_of(read_checkpoint(checkpoint), "task"))
    fairseq(
        "generate", data_bin, "--task", "neuron_specialization", "--path", checkpoint, "-s", "en", "-t", "qa",
        "--lang-pairs", PAIRS, *(word for flag, value in tokens.flags.items() for word in (flag, *value)), "--cpu",
        "--beam", 2, "--max-len-b", 5, "--max-tokens", 500, "--remove-bpe", "sentencepiece",
        "--results-path", evaluation / "generated", *flags,
    )  # fmt: skip
    log = (evaluation / "generated" / "generate-test.txt").read_text(encoding="utf-8")
    theirs = {line.split("\t")[0][2:]: line.split("\t")[2] for line in log.splitlines() if line[:2] == "D-"}
    ours = (evaluation / "hypotheses" / "en-qa.txt").read_text(encoding="utf-8").split("\n")
    assert len(theirs) > 10
    assert all(ours[int(number)] == text for number, text in theirs.items())


def test_a_model_without_relu_is_refused(
    data_bin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = foreign_models.mbart(data_bin, tmp_path / "dense", activation="gelu")
    words = ["profile", data_bin, "--path", dense, "--output", tmp_path / "profile", "--cpu"]
    assert main([str(word) for word in words]) == 2
    assert "this model has another activation" in capsys.readouterr().err
