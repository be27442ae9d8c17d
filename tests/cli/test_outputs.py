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
    nowhere = [] if action.metavar == "DIR" else ["", ".", "/"]
    for name in [*bad, "/dev/null"]:
        with pytest.raises(ArtifactError, match="nothing can be written"), inputs_required():
            action.type(str(tmp_path / name))
    for name in nowhere:
        with pytest.raises(ArtifactError, match="nothing can be written"), inputs_required():
            action.type(name)
    for name in ("new", "new/deep", "folder/x"):
        with inputs_required():
            assert action.type(str(tmp_path / name)) == tmp_path / name
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "pipe", "dangling"}


SUMMARIZED = {
    name: action
    for name, action in EVERY.items()
    if "output_with_summary" in getattr(action.type, "__qualname__", "")
}


def test_many_write_a_summary_beside_their_file() -> None:
    assert {name.split()[0] for name in SUMMARIZED} == {"select", "masks", "prune", "lass", "checkpoint"}


@pytest.mark.parametrize("action", SUMMARIZED.values(), ids=SUMMARIZED)
def test_no_file_of_another_is_overwritten_by_a_summary(action: argparse.Action, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a summary is written beside"), inputs_required():
        action.type(str(tmp_path / "m.json"))
    with inputs_required():
        assert action.type(str(tmp_path / "m.safetensors")) == tmp_path / "m.safetensors"


@pytest.mark.parametrize("content", ["notes", "[]", '{"mine": 1}', '{"signature": null}'])
def test_masks_are_not_saved_beside_a_summary_of_something_else(content: str, tmp_path: Path) -> None:
    import torch

    from neuron_spec.neurons.masks import NeuronMasks

    masks = NeuronMasks.from_dict({"en-de": {"encoder.layers.0": torch.tensor([True, False])}})
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ArtifactError, match="another file is where the summary"):
        masks.save(tmp_path / "m.safetensors")
    with pytest.raises(ArtifactError, match="another file is where the summary"), inputs_required():
        next(of for name, of in SUMMARIZED.items() if name.startswith("select")).type(
            str(tmp_path / "m.safetensors")
        )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.json": content}
    for _ in range(2):  # over its own
        masks.save(tmp_path / "own.safetensors")
