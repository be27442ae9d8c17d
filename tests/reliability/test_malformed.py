"""Whatever is read is checked: a table of damaged files over all commands that read them, and of bad numbers."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import Damage, every_damage, restore
from valid import COMMANDS, ELSEWHERE, FORMATS, OUTPUT, words_of, write

from neuron_spec.cli.main import COMMANDS as COMMANDS_OF_ALL
from neuron_spec.cli.main import main, module_of

pytestmark = [pytest.mark.slow, pytest.mark.reliability]
DAMAGES = every_damage()


@pytest.fixture(scope="module")
def place(workshop: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of valid files, which is the working directory, and beside it copies of what is damaged."""
    folder, here = tmp_path_factory.mktemp("valid"), Path.cwd()
    os.chdir(folder)
    try:
        write(folder, workshop)
        for name in [name for name in COMMANDS if name not in ELSEWHERE]:
            assert main(words_of(name)) == 0, name
            shutil.rmtree(OUTPUT, ignore_errors=True)
        for of in FORMATS.values():
            for file in of.files:
                kept = folder.parent / "kept" / file
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, kept)
        yield folder
    finally:
        os.chdir(here)


def test_it_is_a_table_of_many() -> None:
    assert len(DAMAGES) >= 250
    assert {damage.format for damage in DAMAGES} == {*FORMATS}
    assert len({str(damage) for damage in DAMAGES}) == len(DAMAGES)


def left(folder: Path) -> dict[str, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


# What is said of what is well, progress among it.
_NOTES = re.compile(r"^(.*: complete already|languages with unknown family: .*|.*it/s\].*)\n", re.MULTILINE)


def fault_of(name: str, named: set[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with how a command ends that has to refuse; None if nothing is."""
    command = COMMANDS[name].split()[0]
    try:
        status = main(words_of(name))
    except SystemExit as end:
        status = end.code
    except Exception as error:
        where = error.__traceback__
        while where and where.tb_next:
            where = where.tb_next
        at = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        return f"{name}: {type(error).__name__}: {str(error)[:100]} at {at}"
    said = _NOTES.sub("", capsys.readouterr().err)
    starts = said.count(f"neuron-spec {command}: ") + said.count("usage: ")
    if status != 2:
        return f"{name}: exit code {status}"
    if (
        starts != 1
        or said.count("\n") > 30
        or "Traceback" in said
        or not said.startswith((f"neuron-spec {command}: ", "usage: "))
    ):
        return f"{name}: not one message: {said[-300:]!r}"
    if not any(part in said for part in named):
        return f"{name}: does not name the file: {said!r}"
    return f"{name}: something is written" if Path(OUTPUT).exists() else None


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_what_is_damaged_is_refused_by_every_command_that_reads_it(
    damage: Damage, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = FORMATS[damage.format]
    try:
        for file in of.files:
            damage.change(place / file)
        named = damage.names(of.files)
        faults, before = [], left(place)
        for name in of.readers:
            if name not in damage.unread:
                capsys.readouterr()
                faults.append(fault_of(name, named, capsys))
                shutil.rmtree(OUTPUT, ignore_errors=True)
        assert not any(faults), "\n".join(filter(None, faults))
        assert left(place) == before
    finally:
        for file in of.files:
            restore(place / file, place.parent / "kept" / file)


# Numbers of flags ------------------------------------------------------------------------------


def numbers_of(parser: argparse.ArgumentParser, words: str) -> Iterator[tuple[str, argparse.Action]]:
    """The flags that take a number, by command and name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from numbers_of(sub, f"{words} {name}")
        elif action.option_strings and action.metavar in ("N", "X", "P", "N,...", "N,N,..."):
            yield f"{words} {action.option_strings[-1]}", action
        elif action.dest == "seed":
            yield f"{words} --seed", action


def every_number() -> dict[str, argparse.Action]:
    found: dict[str, argparse.Action] = {}
    for command in COMMANDS_OF_ALL:
        parser = argparse.ArgumentParser()
        importlib.import_module(module_of(command)).add_arguments(parser)
        found |= {name: action for name, action in numbers_of(parser, command) if action.metavar != "DIR"}
    return found


NUMBERS = every_number()
BAD = (
    "-1",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "9" * 30,
    "9" * 5000,
    "many",
    "",
    "1,,2",
    "0x10",
    "1_0",
    "½",
)
# Where this is none of these: the folder of a seed, which two commands take.
NO_NUMBERS = {"subnetworks --seed", "systems --seed"}
ZERO_IS_RIGHT = {
    "--seed", "--num-workers", "--warmup-updates", "--random-draws", "--shots", "--max-len-a", "--max-len-b", "--lenpen",
    "--label-smoothing", "--alpha", "--voters",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*NUMBERS} - NO_NUMBERS))
def test_numbers_that_are_none_are_refused_by_every_flag(name: str) -> None:
    action, flag = NUMBERS[name], name.split()[-1]
    zero = () if flag in ZERO_IS_RIGHT and name != "compare --alpha" else ("0",)
    for text in (*BAD, *zero):
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            assert action.type is not None, "its text is not looked at"
            print(name, text, action.type(text))


def test_there_are_many_numbers() -> None:
    assert len(NUMBERS) > 60


@pytest.mark.parametrize(
    "k", ["0", "-1", "nan", "inf", "101", "1e-99999999", "1e99999999", "9" * 5000, "1/0", "k"]
)
@pytest.mark.parametrize(
    "flag",
    ["--k", "--encoder-k", "--decoder-k", "--method top-fraction --fraction", "--method shared-core --core"],
)
def test_percentages_that_are_none(
    flag: str, k: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    words = [*words_of("select"), *flag.split()[:-1], f"{flag.split()[-1]}={k}"]
    assert main(words) == 2 and not Path(OUTPUT).exists()
    assert "percentage" in capsys.readouterr().err
    assert time.monotonic() - begun < 5
