"""Properties of what is read: valid files come back as they were written, damaged ones load or are refused by our message.

A few of each in every run; a fuzz run of many, whose figures are in results/reliability.md: ``pytest -s -m long -k fuzz``.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis", reason="pip install -e '.[dev]'")

from formats import KINDS, Kind
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from neuron_spec.errors import NeuronSpecError, message_in

FUZZED = int(os.environ.get("NEURON_SPEC_FUZZED", "200000"))
OF_EACH = (
    10  # of a valid file that Hypothesis draws, and damages once, so many with other bytes, which are cheaper
)
SEED = int(os.environ.get("NEURON_SPEC_SEED", "1"))
QUIET = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}
FEW = settings(max_examples=25, derandomize=True, **QUIET)
by_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


def read(kind: Kind, folder: Path, content: bytes) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / kind.file).write_bytes(content)
    return kind.read(folder / kind.file)


def outcome(kind: Kind, folder: Path, content: bytes) -> str:
    """``read``, ``refused``, or the name of another exception."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            read(kind, folder, content)
    except NeuronSpecError:
        return "refused"
    except Exception as error:
        return "refused" if message_in(error) else f"{type(error).__name__}: {str(error)[:90]}"
    return "read"


def mangled(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, put in, taken out, swapped for digits or brackets, or cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place, how = chance.randrange(len(changed) + 1), chance.randrange(6)
        if how == 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            changed[place:place] = chance.randbytes(chance.randint(1, 8))
        elif how == 2:
            del changed[place : place + chance.randint(1, 8)]
        elif how == 3:
            changed[place : place + 1] = chance.choice(b'0123456789-.eE"[]{},:tfn').to_bytes(1, "big")
        elif how == 4:
            changed[place : place + 8] = chance.choice((0, 1, 2**31, 2**62, 2**64 - 1)).to_bytes(8, "little")
        elif chance.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(of, other[key]) for key, of in one.items())
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@by_kind
def test_what_is_valid_comes_back(kind: Kind, tmp_path: Path) -> None:
    """All of it: what was read of a file, and of the file written of the same again, is the same."""

    @FEW
    @given(st.data())
    def check(data: st.DataObject) -> None:
        value = data.draw(kind.valid())
        found = read(kind, tmp_path / "of", kind.as_bytes(value))
        if kind.name in ("profile", "masks", "weight masks"):
            tensors, metadata = value
            assert same(found, (tensors, metadata["directions"]))
        elif kind.name == "checkpoint":
            assert same(found, (value["model"], value["cfg"]["task"]["lang_pairs"]))
        elif kind.name == "evaluation":
            assert found == {name: of["bleu"] for name, of in value["directions"].items()}
        elif kind.name in ("corpus card", "signature"):
            assert found == value
        elif kind.name == "comparison":
            assert {key: found[key] for key in value} == value
        elif kind.name == "configuration":
            assert found == value
        elif kind.name == "log":
            lines = value.decode().split("\n")
            wanted = [line.split("\t", 1)[1] for line in lines if line.startswith("T-")]
            assert found.references == wanted
        elif kind.name == "index":
            assert found == int.from_bytes(value[18:26], "little")
        else:
            assert found[4 : 4 + value.count(b"\n")] == [
                line.split()[0] for line in value.decode().splitlines()
            ]

    check()


@by_kind
def test_what_is_damaged_is_read_or_refused_by_our_message(kind: Kind, tmp_path: Path) -> None:
    @settings(FEW, max_examples=60)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(kind.damaged(data.draw(kind.valid())))
        assert outcome(kind, tmp_path / "of", content) in ("read", "refused")

    check()


def fuzzed(kind: Kind, folder: Path, inputs: int) -> Counter[str]:
    """How so many damaged inputs end."""
    found: Counter[str] = Counter()

    @seed(SEED)
    @settings(max_examples=-(-inputs // OF_EACH), phases=[Phase.generate], **QUIET)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        value = data.draw(kind.valid())
        found[outcome(kind, folder, data.draw(kind.damaged(value)))] += 1
        chance = random.Random(data.draw(st.integers(0, 2**32)))
        for _ in range(OF_EACH - 1):
            found[outcome(kind, folder, mangled(kind.as_bytes(value), chance))] += 1

    fuzz()
    return found


@pytest.mark.slow
@pytest.mark.long
def test_fuzz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Many damaged inputs over all formats, each format as many; -s shows the figures of results/reliability.md."""
    rows, faults = [], []
    for kind in KINDS:
        begun = time.monotonic()
        found = fuzzed(kind, tmp_path / "of", -(-FUZZED // len(KINDS)))
        others = {name: number for name, number in found.items() if name not in ("read", "refused")}
        faults += [f"{kind.name}: {number} x {name}" for name, number in others.items()]
        row = (kind.name, sum(found.values()), found["read"], found["refused"], sum(others.values()))
        rows.append((*row, f"{time.monotonic() - begun:.0f}"))
        with capsys.disabled():
            print(*rows[-1], *others, flush=True)
    with capsys.disabled():
        print("\n| format | inputs | read | refused | exceptions | s |\n|---|---:|---:|---:|---:|---:|")
        for row in rows:
            print(f"| {' | '.join(map(str, row))} |")
    assert not faults, "\n".join(faults)
