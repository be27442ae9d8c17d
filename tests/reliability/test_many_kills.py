"""Two hundred kills of every stage and training, and the quickstart killed by the clock; -s shows the figures."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from stages import EVERY, FURTHER, ROOT, SEED, STAGES, Line, kill_and_restart

pytestmark = [pytest.mark.slow, pytest.mark.long]

MANY = 200


def test_many_kills(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all stages and the other trainings, by turns; -s shows the figures of results/reliability.md."""
    missing = [stage.name for stage in FURTHER if stage.name not in line.after]
    line.prepare(missing)
    names, kills = [stage.name for stage in STAGES + FURTHER], dict.fromkeys(EVERY, 0)
    moments = {
        name: line.points(name, 5 if name == "lass" else MANY, SEED) for name in names
    }  # it starts processes
    turns = [
        (name, moment)
        for number in range(MANY)
        for name in names
        for moment in moments[name][number : number + 1]
    ]
    for name, moment in turns[:MANY]:
        kill_and_restart(line, name, moment)
        kills[name] += 1
        with capsys.disabled():
            print(f"{sum(kills.values())}: {name}, write {moment}", flush=True)
    with capsys.disabled():
        print("\n| stage | writes | killed |\n|---|---|---|")
        for name in names:
            print(f"| {name} | {len(line.writes[name])} | {kills[name]} |")


@pytest.mark.parametrize("script", ["quickstart.sh", "iwslt14/run.sh"])
def test_a_whole_script_killed_by_the_clock_comes_to_the_same(tmp_path: Path, script: str) -> None:
    """The quickstart and a recipe, at their smallest size."""
    chance, run = random.Random(SEED), tmp_path / "run"
    words = [str(ROOT / "scripts" / script), "--smoke", "--run", str(run)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}

    def is_ended(limit: float | None = None) -> bool:
        with (tmp_path / "log.txt").open("a") as log:
            process = subprocess.Popen(words, env=environment, start_new_session=True, stdout=log, stderr=log)
            try:
                assert process.wait(limit) == 0, (tmp_path / "log.txt").read_text()[-3000:]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                return False
            return True

    def left() -> dict[Path, bytes]:
        """Profiles, masks and scores, which name by hash the checkpoints that they are of."""
        files = [*run.rglob("*.safetensors"), *run.rglob("scores.json")]
        return {path.relative_to(run): path.read_bytes() for path in files}

    assert is_ended()
    wanted = left()
    run.rename(tmp_path / "undisturbed")
    kills = 0
    while not is_ended(chance.uniform(15, 90)):
        kills += 1
    assert kills
    assert left() == wanted
    assert not list(run.rglob("*.tmp"))
