"""The one list of studies: it is whole, and a line in it is all that a new study needs."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import write_run

import neuron_spec
from neuron_spec.cli.main import module_of
from neuron_spec.studies import STUDIES, as_markdown

PACKAGE = Path(neuron_spec.__file__).parent


def test_every_study_has_a_folder_and_every_folder_a_study():
    folders = [path.parent.name for path in (PACKAGE / "studies").glob("*/__init__.py")]
    assert sorted(folders) == sorted({study.folder for study in STUDIES})


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.command or study.folder)
def test_what_a_study_names_is_there(study):
    assert study.command or study.training
    if study.command:
        command = importlib.import_module(study.module(study.command_module))
        assert callable(command.add_arguments) and callable(command.run)
        assert module_of(study.command) == command.__name__
    if study.leaves:
        assert callable(importlib.import_module(study.module(study.page_module)).section)


def test_the_docs_hold_the_list():
    assert as_markdown() in (PACKAGE.parent / "docs" / "studies.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- a new study

VOWELS = '''"""How many vowels does a text have?"""

import json
from pathlib import Path

from neuron_spec.artifacts import signature, write_json
from neuron_spec.pages.page import Section, Table


def add_arguments(parser):
    parser.add_argument("text")
    parser.add_argument("--output", type=Path, required=True)


def run(args):
    count = sum(letter in "aeiou" for letter in args.text)
    made = signature("vowels", inputs={}, parameters={"text": args.text})
    write_json(args.output / "vowels.json", {"signature": made, "vowels": count})
    print(args.output / "vowels.json")


def section(folders):
    counts = [[name, json.loads((of / "vowels.json").read_text())["vowels"]] for name, of in folders.items()]
    return Section("Vowels", [Table(("folder", "vowels"), counts)])
'''
LINE = """STUDIES = (
    Study(
        "vowels",
        "how many vowels does a text have?",
        "vowels",
        leaves="vowels*/vowels.json",
        command_module="counting",
        page_module="counting",
    ),
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A folder with a copy of the package that has one study more: a folder of its own, and one line in the list."""
    folder = tmp_path_factory.mktemp("elsewhere")
    copy = folder / "neuron_spec"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "studies" / "vowels").mkdir()
    (copy / "studies" / "vowels" / "__init__.py").write_text("")
    (copy / "studies" / "vowels" / "counting.py").write_text(VOWELS)
    studies = copy / "studies" / "__init__.py"
    text = studies.read_text(encoding="utf-8")
    assert text.count("STUDIES = (\n") == 1
    studies.write_text(text.replace("STUDIES = (\n", LINE), encoding="utf-8")
    return folder


def python(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_study_has_its_command_and_stands_in_help_and_docs(elsewhere):
    assert "  vowels       how many vowels does a text have?" in python(elsewhere, "neuron_spec", "--help")
    row = "| how many vowels does a text have? | `neuron-spec vowels` | `studies/vowels/` |"
    assert row in python(elsewhere, "neuron_spec.studies")
    assert row not in as_markdown()


@pytest.mark.slow
def test_a_new_study_stands_in_the_report(elsewhere):
    run = write_run(elsewhere / "run", systems={"dense": 0.3})
    python(elsewhere, "neuron_spec", "vowels", "mobile phone", "--output", "run/vowels-1")
    made = json.loads((run / "vowels-1" / "vowels.json").read_text())
    assert made["vowels"] == 5
    assert made["signature"]["command"] == "neuron-spec vowels 'mobile phone' --output OUTPUT"
    python(elsewhere, "neuron_spec", "report", "run")
    for page in ("report.md", "report.html"):
        assert "vowels-1" in (run / page).read_text(encoding="utf-8")
    assert "## Vowels\n\n| folder   | vowels |\n" in (run / "report.md").read_text(encoding="utf-8")
