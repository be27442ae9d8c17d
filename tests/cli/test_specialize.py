"""What of a training the checkpoint says, and what flags may say otherwise."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign_models
import pytest
import torch
from fairseq import options, tasks
from foreign_models import PAIRS

from neuron_spec.artifacts import hash_text, training_command
from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import is_specialized, read_checkpoint
from neuron_spec.backends.fairseq.continuation import continued_flags
from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.neurons.masks import NeuronMasks

LENGTH = ("--max-update", "4", "--cpu")
QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart" / "dense.pt"


@pytest.fixture(scope="module")
def dense(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As plain fairseq trains it."""
    folder = tmp_path_factory.mktemp("dense")
    return foreign_models.train(
        data_bin, folder, "transformer_iwslt_de_en", *foreign_models.shape(2), "--encoder-ffn-embed-dim", 48,
        "--share-decoder-input-output-embed", "--langs", "qm,en,qa,qb", "--encoder-langtok", "src",
        "--decoder-langtok", "--max-source-positions", 300, "--clip-norm", 0.5, "--weight-decay", 0.01,
    )  # fmt: skip


@pytest.fixture(scope="module")
def masks(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random sets of two directions, of two seeds."""
    folder = tmp_path_factory.mktemp("masks")
    weights = read_checkpoint(dense)["model"]
    widths = {k.removesuffix(".fc1.bias"): len(v) for k, v in weights.items() if k.endswith("fc1.bias")}
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        kept = {layer: torch.rand(2, width, generator=generator) < 0.6 for layer, width in widths.items()}
        NeuronMasks(parse_directions("en-qa,qb-en"), kept).save(folder / f"{seed}.safetensors")
    return folder / "1.safetensors"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def specialize(data_bin: Path, dense: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def run(
        *words: object, path: Path = dense, masks: object = "none", save_dir: object = tmp_path / "run"
    ) -> Any:
        capsys.readouterr()
        given = ["specialize", data_bin, "--path", path, "--masks", masks, "--save-dir", save_dir, *words]
        code = main([str(word) for word in given])
        return code, *capsys.readouterr()

    return run


def arguments(line: str) -> Any:
    """What fairseq-train makes of a printed line."""
    return options.parse_args_and_arch(options.get_training_parser(), input_args=words_of(line))


def words_of(line: str) -> list[str]:
    words = shlex.split(line)
    assert words.pop(0) == "fairseq-train"
    at = words.index("--user-dir")
    assert words[at + 1] == "$(neuron-spec user-dir)"
    return [*words[:at], *words[at + 2 :]]


def test_the_line_says_all_that_the_checkpoint_knows(specialize: Run, dense: Path) -> None:
    code, line, _ = specialize("--dry-run", "--", *LENGTH)
    assert code == 0
    now = vars(arguments(line))
    trained = vars(read_checkpoint(dense)["cfg"]["model"])
    # What is another training's, or says the same in other words.
    others = {
        *("task", "arch", "criterion", "best_checkpoint_metric", "max_update", "save_dir", "_name"),
        *("finetune_from_model", "langtoks", "lang_pairs", "disable_validation", "num_workers"),
        *("left_pad_source", "left_pad_target"),  # text on the command line, later true or false
    }
    assert {k: now[k] for k in trained if k in now and k not in others} == {
        k: v for k, v in trained.items() if k in now and k not in others
    }
    assert (now["encoder_ffn_embed_dim"], now["lr"], now["lang_pairs"]) == (48, [3e-3], PAIRS)
    assert now["best_checkpoint_metric"] == "text_nll_loss"
    # Only what is not fairseq's default.
    assert "--adam-eps 1e-06" in line and "--attention-dropout" not in line


def test_flags_win_over_the_config_and_that_over_the_checkpoint(specialize: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "lr: 0.01\nlr-scheduler: polynomial_decay\nmax-update: 9\noptimizer: sgd\nencoder-layers: 2\n"
    )
    _, line, _ = specialize(
        "--dry-run", "--config", config, "--", "--lr", "0.02", "--criterion", "cross_entropy"
    )
    now = arguments(line)
    assert (now.lr, now.optimizer, now.max_update, now.criterion) == ([0.02], "sgd", 9, "cross_entropy")
    assert now.total_num_update == "9"  # where the decay ends
    assert now.clip_norm == 0.5  # the checkpoint's
    assert "--adam-eps" not in line and "--label-smoothing" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--encoder-layers", "3"], "got:      --encoder-layers 3\n  expected: --encoder-layers 2"),
        (["--encoder-ffn-embed-dim", "32"], "expected: --encoder-ffn-embed-dim 48"),
        (
            ["--share-all-embeddings"],
            "got:      --share-all-embeddings\n  expected: no --share-all-embeddings",
        ),
        (["--arch", "neuron_spec_transformer_tiny"], "expected: no --decoder-normalize-before"),
        (["--langs", "en,qa,qb,qm"], "language flags differ"),
        (["--encoder-langtok", "tgt"], "language flags differ"),
        (["--task", "translation"], "got:      --task translation"),
        (["--task", "neuron_profiling"], "got:      --task neuron_profiling"),
        (["--neuron-masks", "x"], "give --masks before the --"),
        (["--restore-file", "x"], "give --path before the --"),
        (["--lang-pairs", "en-qa"], "give --lang-pairs before the --"),
        (["--user-dir", "x"], "fairseq-train does not take"),
        (["--help"], "fairseq-train does not take"),
        (["--drop-out", "0"], "unrecognized: --drop-out 0"),
        (["--lr-scheduler", "cosin"], "fairseq-train does not take"),
        (["--warmup-updates", "4"], None),
        (["--langs", "qm,en,qa,qb", "--encoder-layers", "2"], None),
        (["--max-source-positions", "100", "--dropout", "0", "--dropped-neurons", "zero"], None),
        (["--task", "neuron_spec_dynamic", "--dynamic-masks", "reselect"], None),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(
    specialize: Run, tmp_path: Path, flags: list[str], said: str | None
) -> None:
    code, line, errors = specialize("--dry-run", "--", *LENGTH, *flags)
    assert code == (2 if said else 0)
    assert (said or "") in errors
    assert line.endswith(" ".join(flags) + "\n") or said
    assert not (tmp_path / "run").exists()


def lengthen(lines: list[str]) -> None:
    lines.append("extra 1\n")


def reorder(lines: list[str]) -> None:
    lines[20], lines[30] = lines[30], lines[20]


@pytest.mark.parametrize(
    ("change", "files", "said"),
    [
        (lengthen, "dict.qa.txt", "dictionaries of one side differ"),
        (reorder, "dict.qa.txt", "dictionaries of one side differ"),
        (lengthen, "dict.*", "the checkpoint was trained with another dictionary"),
        (reorder, "dict.*", "the masks are for another dictionary"),
    ],
)
def test_a_dictionary_that_is_not_the_checkpoints_is_refused(
    data_bin: Path, dense: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: Callable[[list[str]], None], files: str, said: str,
) -> None:  # fmt: skip
    from neuron_spec.backends.fairseq.checkpoints import task_args, token_flags
    from neuron_spec.backends.fairseq.commands import generation_config

    cfg = generation_config(
        dense, data_bin, parse_directions("en-qa,qa-en"), token_flags(task_args(read_checkpoint(dense)))
    )
    known = NeuronMasks.load(masks)
    known.metadata["dictionary_sha256"] = hash_text(*tasks.setup_task(cfg.task).source_dictionary.symbols)
    known.save(tmp_path / "masks.safetensors")
    theirs = shutil.copytree(data_bin, tmp_path / "theirs")
    words = ["specialize", theirs, "--path", dense, "--masks", tmp_path / "masks.safetensors"]
    words += ["--save-dir", tmp_path / "run", "--dry-run", "--", *LENGTH, "--warmup-updates", "1"]
    assert main([str(word) for word in words]) == 0
    for file in theirs.glob(files):
        lines = file.read_text().splitlines(keepends=True)
        change(lines)
        file.write_text("".join(lines))
    assert main([str(word) for word in words]) == 2
    assert said in capsys.readouterr().err


def test_a_training_needs_a_length_that_fits(specialize: Run, dense: Path, tmp_path: Path) -> None:
    assert "how long shall it train" in specialize("--dry-run")[2]
    assert "how long shall it train" in specialize("--dry-run", "--", "--max-update", "0")[2]
    code, _, errors = specialize("--dry-run", "--", "--max-update", "2")
    assert code == 2 and "--warmup-updates 2 as the checkpoint was trained" in errors
    assert specialize("--dry-run", "--", "--max-update", "2", "--warmup-updates", "1")[0] == 0
    config = tmp_path / "warm-up.yaml"
    config.write_text("warmup-updates: 3\n")
    for words in (("--config", config, "--"), ("--", "--warmup-updates", "3")):
        code, _, errors = specialize("--dry-run", *words, "--max-update", "2")
        assert code == 2 and "got:      --max-update 2, and --warmup-updates 3\n" in errors
    assert specialize("--dry-run", "--", "--max-epoch", "2")[0] == 0
    decay = ("--lr-scheduler", "polynomial_decay")
    assert "give --max-update N" in specialize("--dry-run", "--", "--max-epoch", "2", *decay)[2]
    code, line, _ = specialize("--dry-run", "--", "--max-epoch", "2", *decay, "--total-num-update", "9")
    assert code == 0 and line.count("--total-num-update") == 1


def test_masks_are_checked_before_work(specialize: Run, masks: Path, dense: Path, tmp_path: Path) -> None:
    code, _, errors = specialize("--lang-pairs", "en-qa,qa-en", "--dry-run", "--", *LENGTH, masks=masks)
    assert code == 2 and "qa-en" in errors
    compose = ("--missing-direction", "dense")
    assert (
        specialize("--lang-pairs", "en-qa,qa-en", "--dry-run", "--", *LENGTH, *compose, masks=masks)[0] == 0
    )
    code, _, errors = specialize("--lang-pairs", "en-qaa", "--dry-run", "--", *LENGTH)
    assert code == 2 and "did you mean qa?" in errors
    NeuronMasks(parse_directions("en-qa"), {"encoder.layers.0": torch.ones(1, 48).bool()}).save(
        tmp_path / "m"
    )
    code, _, errors = specialize("--dry-run", "--", *LENGTH, masks=tmp_path / "m")
    assert code == 2 and "the masks are for another model" in errors


def test_complete_work_is_skipped_and_other_work_is_not(specialize: Run, masks: Path, tmp_path: Path) -> None:
    flags = (*LENGTH, "--num-workers", "0", "--disable-validation")
    code, line, _ = specialize("--", *flags, masks=masks)
    last = tmp_path / "run" / "checkpoint_last.pt"
    assert code == 0 and is_specialized(read_checkpoint(last))
    assert line.startswith(" ".join(training_command(last.parent)[:2]))
    before = last.stat().st_mtime_ns
    code, again, errors = specialize("--", *flags, masks=masks)
    assert (code, again) == (0, line.partition("\n")[0] + "\n")
    assert "complete already" in errors and last.stat().st_mtime_ns == before
    # Longer: it goes on.
    assert specialize("--", *flags, "--max-update", "5", masks=masks)[0] == 0
    assert read_checkpoint(last)["optimizer_history"][-1]["num_updates"] == 5
    # At another learning rate nothing is left to do, and what is there is not said to be of it.
    words = training_command(last.parent)
    code, _, errors = specialize("--", *flags, "--max-update", "5", "--lr", "0.125", masks=masks)
    assert code == 2 and "another training is complete here" in errors and "0.125" in errors
    assert training_command(last.parent) == words
    # With other masks it cannot.
    other = masks.with_name("2.safetensors")
    code, _, errors = specialize("--", *flags, "--max-update", "6", masks=other)
    assert code == 2
    assert errors.splitlines()[-4].endswith(
        "the checkpoint was specialized with other masks than --neuron-masks"
    )
    # From a specialized checkpoint it goes on with that one's masks alone.
    code, _, errors = specialize("--", *flags, path=last, save_dir=tmp_path / "on")
    assert code == 2 and "begins from a dense checkpoint" in errors
    code, _, errors = specialize("--", *flags, path=last, masks=other, save_dir=tmp_path / "on")
    assert code == 2 and "goes on with its own masks" in errors
    assert specialize("--dry-run", "--", *flags, path=last, masks=masks, save_dir=tmp_path / "on")[0] == 0


@pytest.mark.slow
def test_the_line_can_be_pasted(specialize: Run, masks: Path, tmp_path: Path) -> None:
    flags = (*LENGTH, "--num-workers", "0", "--disable-validation", "--dropout", "0")
    assert specialize("--", *flags, masks=masks)[0] == 0
    _, line, _ = specialize("--dry-run", "--", *flags, masks=masks, save_dir=tmp_path / "pasted")
    bin_ = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, pasted = (
        read_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("run", "pasted")
    )
    assert ours.keys() == pasted.keys() and all(torch.equal(ours[key], pasted[key]) for key in ours)


def test_a_checkpoint_that_was_made_small_is_gone_on_with_too() -> None:
    """The quickstart's, which keeps its flags."""
    asked = Asked.read(QUICKSTART, QUICKSTART.parent)
    _, now = continued_flags(asked, ["--max-update", "1600", "--cpu"])
    sizes = (
        now.encoder_layers,
        now.decoder_ffn_embed_dim,
        now.max_source_positions,
        now.share_all_embeddings,
    )
    assert sizes == (3, 256, 256, True)
    assert (now.total_num_update, now.lr_scheduler) == ("1600", "polynomial_decay")


# ---------------------------------------------------------------- dictionaries


@pytest.fixture(scope="module")
def fixed(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a dictionary of its own, at a place that is gone."""
    folder = tmp_path_factory.mktemp("fixed")
    langs = ("en", "qa", "qb", "qm")
    foreign_models.fixed_dictionary(data_bin, folder / "dictionary.txt", langs)
    path = foreign_models.train(
        data_bin, folder, "transformer_iwslt_de_en", *foreign_models.shape(2), "--share-all-embeddings",
        "--langs", ",".join(langs), "--decoder-langtok", "--fixed-dictionary", folder / "dictionary.txt",
    )  # fmt: skip
    state = read_checkpoint(path)
    for of in ("model", "task"):
        state["cfg"][of].fixed_dictionary = "/elsewhere/dictionary.txt"
    torch.save(state, folder / "moved.pt")
    return folder / "moved.pt"


def test_a_dictionary_is_found_beside_the_checkpoint_or_by_its_flag(
    specialize: Run, fixed: Path, tmp_path: Path
) -> None:
    beside = fixed.with_name("dictionary.txt")
    assert f"--fixed-dictionary {beside} " in specialize("--dry-run", "--", *LENGTH, path=fixed)[1]
    away = beside.rename(tmp_path / "dictionary.txt")
    try:
        code, _, errors = specialize("--dry-run", "--", *LENGTH, path=fixed)
        assert code == 2
        assert "got:      --fixed-dictionary /elsewhere/dictionary.txt" in errors
        assert f"a copy of it at {beside}" in errors
        code, line, _ = specialize("--dry-run", "--", *LENGTH, "--fixed-dictionary", str(away), path=fixed)
        assert code == 0 and arguments(line).fixed_dictionary == str(away)
        assert line.count("--fixed-dictionary") == 1
    finally:
        away.rename(beside)


@pytest.mark.parametrize("command", ["profile", "evaluate"])
def test_text_of_another_dictionary_is_refused(
    data_bin: Path, fixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    lines = fixed.with_name("dictionary.txt").read_text().splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    (tmp_path / "other.txt").write_text("\n".join(lines) + "\n")
    words = [
        command,
        data_bin,
        "--path",
        fixed,
        "--output",
        tmp_path / "out",
        "--cpu",
        "--lang-pairs",
        "en-qa",
    ]
    assert main([*map(str, words), "--", "--fixed-dictionary", str(tmp_path / "other.txt")]) == 2
    errors = capsys.readouterr().err
    assert "made with another dictionary than --fixed-dictionary" in errors
    assert "symbol 9 is" in errors  # after bos, pad, eos and unk


def test_languages_of_one_dictionary_share_it(workshop: Any) -> None:
    _, task, _ = workshop.build()
    assert len(task.dicts) == 4
    assert len({id(dictionary) for dictionary in task.dicts.values()}) == 1


def test_no_training_in_the_folder_of_the_checkpoint_that_it_begins_from(tmp_path, capsys):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense/checkpoint_last.pt").write_bytes(b"not looked at yet")
    (tmp_path / "link").symlink_to("dense")
    for folder in ("dense", "link"):
        words = ["specialize", tmp_path, "--path", tmp_path / "dense/checkpoint_last.pt", "--masks", "none"]
        assert main([*map(str, words), "--save-dir", str(tmp_path / folder)]) == 2
        assert "write over the checkpoint that it begins from" in capsys.readouterr().err
