"""Installed from a wheel, without a checkout: everything is there, from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from neuron_spec.cli.main import main
from neuron_spec.shared import FOLDERS, shared_files

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path, environment: dict[str, str]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_what_is_written_is_what_the_checkout_holds(tmp_path: Path) -> None:
    assert shared_files() == ROOT
    assert main(["init", str(tmp_path / "here")]) == 0
    for folder in FOLDERS:
        files = [
            path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert files
        for path in files:
            written = tmp_path / "here" / path.relative_to(ROOT)
            assert written.read_bytes() == path.read_bytes()
            assert os.access(written, os.X_OK) == os.access(path, os.X_OK)
    # Again, and where one file is missing.
    (tmp_path / "here" / "configs/smoke/continue.yaml").unlink()
    assert main(["init", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / "configs/smoke/continue.yaml").is_file()


def test_changed_files_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "scripts" / "quickstart.sh"
    changed.parent.mkdir()
    changed.write_text("mine\n")
    assert main(["init", str(tmp_path)]) == 2
    assert "scripts/quickstart.sh" in capsys.readouterr().err
    assert changed.read_text() == "mine\n"
    assert not (tmp_path / "configs").exists()
    assert main(["quickstart", "--output", str(tmp_path)]) == 2


@pytest.mark.slow
def test_the_wheel_goes_from_text_to_a_report_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    own = shutil.ignore_patterns(".*", "runs", "downloads", "build", "*.egg-info", "results", "__pycache__")
    shutil.copytree(ROOT, source, ignore=own)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(
        *pip,
        "wheel",
        "--no-deps",
        "--wheel-dir",
        tmp_path / "wheel",
        source,
        cwd=tmp_path,
        environment=environment,
    )
    run(
        sys.executable,
        "-m",
        "venv",
        "--without-pip",
        tmp_path / "venv",
        cwd=tmp_path,
        environment=environment,
    )
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        run(
            python,
            "-c",
            "import site; print(site.getsitepackages()[0])",
            cwd=tmp_path,
            environment=environment,
        ).strip()
    )
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        assert "neuron_spec/py.typed" in content.namelist(), "type checkers look for it"
    run(*pip, "--python", python, "install", "--no-deps", wheel, cwd=tmp_path, environment=environment)
    # What it depends on is taken from here; the neuron_spec of the checkout is not, as its .pth is not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    environment |= {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["PYTHONWARNINGS"] = "ignore"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert str(site) in run("neuron-spec", "user-dir", cwd=elsewhere, environment=environment)
    run("neuron-spec", "init", "here", cwd=elsewhere, environment=environment)
    scripts, work = elsewhere / "here" / "scripts", elsewhere / "run"
    often = ("--cpu", "--log-format", "simple", "--log-interval", 10, "--save-interval-updates", 20)
    corpus, dense = work / "corpus", work / "dense" / "checkpoint_last.pt"
    stages: list[tuple[object, ...]] = [
        ("00_install.sh",),
        ("10_data.sh", "toy", corpus, "--langs", "qa,qb", "--train-size", 300, "--valid-size", 20, "--test-size", 8),
        ("20_pretrain.sh", corpus / "data-bin", dense.parent, "../here/configs/smoke/pretrain.yaml",
         "--max-update", 20, "--total-num-update", 20, *often),
        ("30_profile.sh", corpus / "data-bin", dense, work / "profile.safetensors", "--cpu"),
        ("40_select.sh", work / "profile.safetensors", work / "masks.safetensors"),
        *(("50_specialize.sh", corpus / "data-bin", dense, masks, work / name, "../here/configs/smoke/continue.yaml",
           "--max-update", 5, "--total-num-update", 5, *often)
          for name, masks in (("specialized", work / "masks.safetensors"), ("dense-continuation", "none"))),
        *(("60_evaluate.sh", corpus / "data-bin", work / name / "checkpoint_last.pt", work / "evaluation" / name,
           "--cpu", "--", "--max-len-a", 2, "--max-len-b", 10)
          for name in ("dense-continuation", "specialized")),
        ("70_report.sh", work),
    ]  # fmt: skip
    for name, *words in stages:
        run(scripts / str(name), *words, cwd=work if work.is_dir() else elsewhere, environment=environment)
    assert "specialized" in (work / "report.md").read_text(encoding="utf-8")
    lines = run(scripts / "quickstart.sh", "--dry-run", cwd=elsewhere, environment=environment)
    assert "data/quickstart/dense.pt" in lines
