"""What strangers made can be opened: nothing in it runs, and nothing leaves the folder that it is for."""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from pathlib import Path
from typing import Any

import fairseq
import pytest
import torch

import neuron_spec
from neuron_spec.artifacts import _HERE, write_text
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.backends.fairseq.compat import value_of
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.metrics import Outputs

ROOT = Path(__file__).parents[1]
PACKAGE = Path(neuron_spec.__file__).parent
PROGRAMS = sorted(
    path
    for folder in (PACKAGE, *(ROOT / name for name in ("scripts", "benchmarks", "examples", "docs")))
    for path in folder.rglob("*.py")
)
# What runs what it reads or is told, and who may all the same, and why.
RUNS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open", "joblib.load", "dill.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.hub.load", "torch.jit.load", "numpy.load", "np.load",
    "importlib.import_module", "import_module", "shutil.unpack_archive", "tarfile.extractall",
}  # fmt: skip
ALLOWED = {
    ("neuron_spec/artifacts.py", "torch.load"): "weights_only",
    ("neuron_spec/neurons/official.py", "torch.load"): "weights_only",
    ("neuron_spec/__init__.py", "import_module"): "our own names",
    ("neuron_spec/cli/main.py", "importlib.import_module"): "our own commands",
    ("neuron_spec/report/report.py", "importlib.import_module"): "our own studies",
    ("neuron_spec/backends/fairseq/compat.py", "importlib.import_module"): "constants above it",
}


def unsafe_calls(source: str) -> list[tuple[str, ast.Call]]:
    """Calls of `RUNS`, of any ``extractall``, with ``shell=True``, ``allow_pickle=True``, ``trust_remote_code`` not False,
    and imports of a name that is no constant."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
        flags = {word.arg: word.value for word in node.keywords if word.arg}
        switched = [
            flag
            for flag in ("shell", "allow_pickle", "trust_remote_code")
            if flag in flags and not (isinstance(flags[flag], ast.Constant) and not flags[flag].value)  # type: ignore[attr-defined]
        ]
        is_import = name.endswith("import_module") and constant
        if (name in RUNS and not is_import) or name.endswith((".extractall", ".extract")) or switched:
            found.append((name, node))
    return found


def test_nothing_that_runs_what_it_reads_is_called() -> None:
    assert len(PROGRAMS) > 200
    used = set()
    for path in PROGRAMS:
        file = str(path.relative_to(ROOT))
        for name, call in unsafe_calls(path.read_text(encoding="utf-8")):
            reason = ALLOWED.get((file, name))
            assert reason, f"{file}:{call.lineno}: {ast.unparse(call)}"
            assert reason != "weights_only" or "weights_only=True" in ast.unparse(call)
            used.add((file, name))
    assert used == {*ALLOWED}, "and no more is allowed than there is"


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)", "pickle.loads(x)", "yaml.load(x, Loader=L)", "eval(x)", "exec(x)", "__import__(x)",
        "importlib.import_module(name)", "archive.extractall(folder)", "run(x, shell=True)", "run(x, shell=y)",
        "np.load(x, allow_pickle=True)", "from_pretrained(x, trust_remote_code=True)", "os.system(x)",
    ],
)  # fmt: skip
def test_the_search_finds_what_is_unsafe(line: str) -> None:
    assert unsafe_calls(line)


def test_the_search_lets_pass_what_is_safe() -> None:
    assert not unsafe_calls(
        "model.eval(); yaml.safe_load(x); importlib.import_module('a.b'); run(x, shell=False)"
    )


# Values that fairseq would run ----------------------------------------------------------------------


def test_in_every_module_of_fairseq_values_are_read_and_not_run() -> None:
    """A newer fairseq with an ``eval`` in another place fails here."""
    root = Path(fairseq.__file__).parent
    evaluating = [
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in root.rglob("*.py")
        if "examples" not in path.relative_to(root).parts
        and re.search(r"(?<![\w.])eval\(", path.read_text(encoding="utf-8"))
    ]
    assert {"fairseq.utils", "fairseq.optim.adam"} <= {*evaluating}
    assert [name for name in evaluating if vars(sys.modules[name]).get("eval") is not value_of] == []


@pytest.mark.parametrize(
    "text", ["(0.9, 0.98)", " [1, 2]", "True", "None", "1e-3", "{'main': ('src', None)}", "[(256, 3)] * 4 + [(1, 2)]"]
)  # fmt: skip
def test_plain_values_are_what_python_says(text: str) -> None:
    assert value_of(text) == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "open('ran', 'w')",
        "x",
        "a.b",
        "[i for i in (1,)]",
        "9 ** 9",
        "[0] * 10**12",
        "'a' * 9",
        "",
        "(" * 9999,
    ],
)
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="no plain value"):
        value_of(text)


def spoilt(checkpoint: Path, path: Path, **values: object) -> Path:
    """A checkpoint whose flags of these names, wherever it has them, say something else."""
    state = torch.load(checkpoint, weights_only=True)
    for flags in state["cfg"].values():
        of: dict[str, Any] = vars(flags) if isinstance(flags, argparse.Namespace) else flags
        if isinstance(of, dict):
            of.update({name: value for name, value in values.items() if name in of})
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "name",
    ["adaptive_softmax_cutoff", "left_pad_source", "left_pad_target", "adam_betas", "langtoks", "user_dir"],
)
def test_a_checkpoint_runs_no_code(
    workshop: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("open('ran', 'w')")
    value = "other" if name == "user_dir" else "__import__('pathlib').Path('ran').touch()"
    path = spoilt(checkpoint, tmp_path / "stranger.pt", **{name: value})
    assert path.read_bytes().count(value.encode()) >= 1
    for words in (
        ["profile", workshop.data_bin, "--path", path, "--cpu", "--output", "profile.safetensors"],
        ["specialize", workshop.data_bin, "--path", path, "--masks", "none", "--save-dir", "run", "--dry-run", "--", "--max-update", 1],
    ):  # fmt: skip
        assert main([str(word) for word in words]) == (0 if name in ("user_dir", "adam_betas") else 2)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_calls_something_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "extra_state": Payload()}, tmp_path / "stranger.pt")
    with pytest.raises(ArtifactError, match="checkpoint cannot be read") as error:
        read_checkpoint(tmp_path / "stranger.pt")
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


# Names and places ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x-en", "en-../x", "/tmp-en", "=cmd-en", "en-de\n#", "en-d e", "<b>-en"]
)
def test_what_names_no_direction_names_no_file(name: str, tmp_path: Path) -> None:
    kept = {"encoder.layers.0": torch.ones(1, 4, dtype=torch.bool)}
    for make in (
        lambda: Direction(*name.split("-", 1)),
        lambda: NeuronMasks([name], kept),  # type: ignore[list-item]
        lambda: NeuronMasks.from_dict({name: {"encoder.layers.0": kept["encoder.layers.0"][0]}}),
        lambda: Outputs(name, ["a"], ["b"]),  # type: ignore[arg-type]
    ):
        with pytest.raises(DirectionError):
            make()


def test_nothing_is_written_through_a_link_in_the_output_folder(tmp_path: Path) -> None:
    kept, output = tmp_path / "kept", tmp_path / "output"
    output.mkdir()
    kept.write_text("mine")
    for name in ("scores.json", f".scores.json.{_HERE}-{os.getpid()}.tmp"):
        (output / name).symlink_to(kept)
    write_text(output / "scores.json", "new")
    assert kept.read_text() == "mine"
    assert [path.name for path in output.iterdir()] == ["scores.json"]
    assert (output / "scores.json").read_text() == "new" and not (output / "scores.json").is_symlink()


def test_what_a_killed_process_left_is_not_removed_through_a_link(tmp_path: Path) -> None:
    kept, output = tmp_path / "kept", tmp_path / "output"
    (kept / "inside").mkdir(parents=True)
    output.mkdir()
    (output / f".scores.json.{_HERE}-{os.getpid()}.tmp").symlink_to(kept, target_is_directory=True)
    with pytest.raises((OSError, NeuronSpecError)):
        write_text(output / "scores.json", "new")
    assert (kept / "inside").is_dir()
