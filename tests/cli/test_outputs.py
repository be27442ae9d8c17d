"""Where nothing can be written is said before work starts, by every command that writes."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron_spec.arguments import inputs_required
from neuron_spec.cli.main import COMMANDS, module_of
from neuron_spec.errors import ArtifactError

PLACES = {"--output", "--save-dir", "--work"}


def places_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from places_of(sub)
        elif PLACES & {*action.option_strings}:
            yield action


def every_place() -> dict[str, argparse.Action]:
    found = {}
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(module_of(command)).add_arguments(parser)
        for number, action in enumerate(places_of(parser)):
            found[f"{command} {action.option_strings[0]} {number}"] = action
    return found


EVERY = every_place()


def test_there_are_many():
    assert len(EVERY) > 25


@pytest.mark.parametrize("action", EVERY.values(), ids=EVERY)
def test_a_place_that_cannot_be_written_to_is_refused(action: argparse.Action, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    bad = ["file/x", "file/x/y", "dangling/x", "file" if action.metavar == "DIR" else "folder"]
    bad += ["dangling"] if action.metavar == "DIR" else ["pipe"]
    for name in [*bad, "/dev/null"]:
        with pytest.raises(ArtifactError, match="nothing can be written"), inputs_required():
            action.type(str(tmp_path / name))
    for name in ("new", "new/deep", "folder/x"):
        with inputs_required():
            assert action.type(str(tmp_path / name)) == tmp_path / name
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "pipe", "dangling"}
