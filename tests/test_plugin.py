"""The package as fairseq's --user-dir."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import neuron_spec
from neuron_spec.errors import ModelError, message_in

if TYPE_CHECKING:
    from conftest import Workshop

pytestmark = pytest.mark.slow

USER_DIR = Path(neuron_spec.__file__).parent
LOAD = f"""
import argparse
from fairseq.utils import import_user_module
import_user_module(argparse.Namespace(user_dir={str(USER_DIR)!r}))
"""
IMPORT = "import neuron_spec.models, neuron_spec.tasks\n"
CHECK = """
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
for name in ("", "_tiny", "_iwslt", "_big"):
    assert f"neuron_spec_transformer{name}" in ARCH_MODEL_REGISTRY, name
for name in ("neuron_specialization", "neuron_profiling"):
    assert TASK_REGISTRY[name].__module__ == f"neuron_spec.tasks.{name}"
import argparse, io, torch
buffer = io.BytesIO()
torch.save({"args": argparse.Namespace(lr=[0.1])}, buffer)
buffer.seek(0)
assert torch.load(buffer, weights_only=True)["args"].lr == [0.1]
"""


@pytest.mark.parametrize(
    "ways_in",
    [LOAD, IMPORT, LOAD + IMPORT, IMPORT + LOAD, LOAD + LOAD],
    ids=["user-dir", "import", "both", "reversed", "twice"],
)
def test_registered_once_whichever_way_it_comes_in(ways_in: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ways_in + CHECK], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_beside_the_package_shadows_the_standard_library() -> None:
    # --user-dir puts the package's parent folder first on the path.
    beside = {path.stem for path in USER_DIR.parent.glob("*.py")} | {
        p.name for p in USER_DIR.parent.iterdir() if p.is_dir()
    }
    assert not beside & set(sys.stdlib_module_names)


def test_user_dir_command_names_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from neuron_spec.cli.main import main

    assert main(["user-dir"]) == 0
    assert Path(capsys.readouterr().out.strip()) == USER_DIR


# ---------------------------------------------------------------- mistakes


def fairseq(command: str, *words: object) -> tuple[int, str, str]:
    """``fairseq-COMMAND`` with our --user-dir: exit code, output, errors."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment.pop("LOGLEVEL", None)
    done = subprocess.run(
        [sys.executable, "-m", f"fairseq_cli.{command}", *map(str, words), "--user-dir", str(USER_DIR), "--cpu"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


TOKENS = ("--encoder-langtok", "src", "--decoder-langtok")
LANGUAGES = ("--langs", "en,qa,qb,qm", "--lang-pairs", "en-qa,qa-en")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (LANGUAGES, "got:      --lang-pairs, --langs with no --task"),
        (
            (*LANGUAGES, "--task", "translation_multi_simple_epoch", "--missing-direction=dense"),
            "got:      --missing-direction with --task translation_multi_simple_epoch",
        ),
        (
            (*LANGUAGES, *TOKENS, "--task", "neuron_specialization", "-s", "en", "-t", "qaa"),
            "mend:     did you mean qa?",
        ),
    ],
)
def test_a_mistake_ends_with_our_message_alone(
    data_bin: Path, checkpoint: Path, words: object, said: str
) -> None:
    code, _, errors = fairseq("generate", data_bin, "--path", checkpoint, *words)
    assert code == 2
    assert errors.count("generate: ") == 1
    last = errors.partition("\ngenerate: ")[2] or errors.removeprefix("generate: ")
    assert said in last and "Traceback" not in errors and "usage:" not in errors


def test_our_message_is_last_where_fairseq_raises_another_in_its_place(
    workshop: Workshop, tmp_path: Path
) -> None:
    """A training that is resumed with other masks."""
    cfg, _, model = workshop.build()
    shape = [
        f"--{side}-{name}={getattr(cfg.model, f'{side}_{name}'.replace('-', '_'))}"
        for side in ("encoder", "decoder")
        for name in ("layers", "embed-dim", "ffn-embed-dim", "attention-heads")
    ]
    files = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, file in enumerate(files):
        workshop.masks(model, seed=seed).save(file)
    model.set_masks(workshop.masks(model, seed=0), list(workshop.langs))
    workshop.save(tmp_path / "checkpoint_last.pt", cfg, model)
    code, _, errors = fairseq(
        "train", workshop.data_bin, "--task", "neuron_specialization", "--arch", "neuron_spec_transformer_tiny",
        *shape, "--langs", "en,qa,qb,qm", "--lang-pairs", workshop.lang_pairs, "--encoder-langtok", "src",
        "--decoder-langtok", "--neuron-masks", files[1], "--save-dir", tmp_path, "--max-tokens", 500, "--optimizer",
        "adam", "--criterion", "label_smoothed_cross_entropy",
    )  # fmt: skip
    assert code == 2
    message = "the checkpoint was specialized with other masks than --neuron-masks"
    assert errors.splitlines()[-4] == f"train: {message}"
    assert "Traceback" not in errors


def failure(raise_: Callable[[], None]) -> Exception:
    try:
        raise_()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def mistaken() -> None:
    raise ModelError("the masks are wrong", got="others", mend="take these")


def wrapped() -> None:
    try:
        mistaken()
    except ModelError:
        raise Exception("please ensure that the architectures match")  # noqa: B904


def a_bug() -> None:
    try:
        mistaken()
    except ModelError:
        raise KeyError("fc1")  # noqa: B904


def unrelated() -> None:
    try:
        raise KeyError("fc1")
    except KeyError as error:
        raise ValueError("neuron_spec.errors is a module") from error


def test_a_message_is_found_behind_what_fairseq_raises_and_in_what_another_process_wrote() -> None:
    message = str(failure(mistaken))
    assert message_in(failure(mistaken)) == message_in(failure(wrapped)) == message
    for of in (mistaken, wrapped):
        text = "".join(traceback.format_exception(failure(of)))
        of_process = RuntimeError(f"\n\n-- Process 1 terminated with the following error:\n{text}")
        assert message_in(of_process) == message
    assert message_in(failure(unrelated)) is message_in(failure(a_bug)) is None


def test_bugs_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from neuron_spec.backends.fairseq import plugin

    monkeypatch.setattr(plugin, "_before", sys.__excepthook__)
    for error, shown in ((failure(unrelated), True), (failure(wrapped), False)):
        with contextlib.suppress(SystemExit):
            plugin._excepthook(type(error), error, error.__traceback__)
        assert ("Traceback" in capsys.readouterr().err) == shown
    monkeypatch.setenv("LOGLEVEL", "DEBUG")
    with pytest.raises(SystemExit) as end:
        plugin._excepthook(type(error), error, error.__traceback__)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors and errors.endswith(f"{message_in(error)}\n")


def test_training_without_masks_says_so(
    workshop: Workshop, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="neuron_spec")
    _, task, model = workshop.build("--finetune-from-model", str(checkpoint))
    task.begin_epoch(1, model)
    assert caplog.messages == [f"no masks: training on densely from {checkpoint}"]
    caplog.clear()
    model.set_masks(workshop.masks(model), list(workshop.langs))
    task.begin_epoch(1, model)
    _, task, model = workshop.build()
    task.begin_epoch(1, model)
    assert not caplog.messages


def test_sizes_that_differ_from_the_start_are_not_blamed_on_the_masks(
    workshop: Workshop, checkpoint: Path
) -> None:
    masks = ("--neuron-masks", "absent.safetensors", "--finetune-from-model", str(checkpoint))
    with pytest.raises(ModelError, match="other layers or sizes than the checkpoint") as refused:
        workshop.build("--encoder-layers", "3", *masks)
    assert "encoder.layers.2: 48 neurons of 16 dimensions" in str(refused.value)


def test_a_training_that_comes_upon_no_number_names_module_and_direction(
    workshop: Workshop, tmp_path: Path
) -> None:
    """The weights are finite, their product is not."""
    cfg, _, model = workshop.build()
    with torch.no_grad():
        model.encoder.layers[1].fc1.bias[2] = 1e38
        model.encoder.layers[1].fc2.weight[:, 2] = 100
    shape = [
        f"--{side}-{name}={getattr(cfg.model, f'{side}_{name}'.replace('-', '_'))}"
        for side in ("encoder", "decoder")
        for name in ("layers", "embed-dim", "ffn-embed-dim", "attention-heads")
    ]
    start = workshop.save(tmp_path / "start.pt", cfg, model)
    code, _, errors = fairseq(
        "train", workshop.data_bin, "--task", "neuron_specialization", "--arch", "neuron_spec_transformer_tiny",
        *shape, "--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings",
        "--langs", "en,qa,qb,qm", "--lang-pairs", "en-qa", "--encoder-langtok", "src", "--decoder-langtok",
        "--finetune-from-model", start, "--save-dir", tmp_path / "run", "--max-tokens", "200", "--max-update", "2",
        "--optimizer", "adam", "--lr", "0.001", "--criterion", "label_smoothed_cross_entropy", "--num-workers", "0",
    )  # fmt: skip
    assert code == 2, errors
    message = errors.rpartition("train: ")[2]
    assert message.startswith("not a number") and "Traceback" not in message
    assert "where:    encoder.layers.1.fc2" in message and "Inf in its output, in a batch of en-qa" in message
