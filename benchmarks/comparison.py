"""Seconds of ``neuron-spec compare``: this checkout beside another one, on made-up evaluations.

Both read the same evaluations, each in a process of its own, taken in turns. Their numbers are compared too.

example:
  git worktree add ../before HEAD~1
  python benchmarks/comparison.py --against ../before
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import interleaved, languages, parser, print_table, ratio, save

from neuron_spec.scoring.evaluation import evaluate, write_evaluation
from neuron_spec.scoring.metrics import Outputs

HERE = Path(__file__).resolve().parent.parent
_WORDS = 2000
_LENGTHS = range(5, 26)


def write_evaluations(folder: Path, systems: int, directions: int, seeds: int, sentences: int) -> list[str]:
    """Evaluations of systems that are wrong in ever more words; returns ``NAME=DIR,DIR`` for each system."""
    chance = random.Random(1)
    words = ["".join(chance.choices("aeioubdgklmnrst", k=chance.randint(2, 9))) for _ in range(_WORDS)]
    weights = [1 / rank for rank in range(1, _WORDS + 1)]
    _, pairs = languages(directions)

    def lines_of() -> list[list[str]]:
        return [chance.choices(words, weights, k=chance.choice(_LENGTHS)) for _ in range(sentences)]

    texts = {direction: lines_of() for direction in pairs}
    sources = {direction: [" ".join(line) for line in lines_of()] for direction in pairs}
    arguments = []
    for system in range(systems):
        folders = [folder / f"system-{system}" / str(seed) for seed in range(seeds)]
        for place in folders:
            wrong = 0.3 + 0.01 * system
            outputs = [
                Outputs(
                    direction,
                    [
                        " ".join(chance.choice(words) if chance.random() < wrong else w for w in s)
                        for s in lines
                    ],
                    [" ".join(line) for line in lines],
                    sources[direction],
                )
                for direction, lines in texts.items()
            ]
            write_evaluation(place, evaluate(outputs, signature={"stage": "evaluate"}))
        arguments.append(f"system-{system}={','.join(map(str, folders))}")
    return arguments


def compare(checkout: Path, arguments: list[str], output: Path) -> None:
    """Run the command of a checkout, into a new folder."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "neuron_spec", "compare", *arguments, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=output.parent, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout}: {done.stderr}")


def numbers_in(output: Path) -> dict[str, Any]:
    """What ``comparison.json`` holds, without who made it."""
    content = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    del content["signature"]
    return content


def main() -> None:
    flags = parser(__doc__, repeats=3)
    flags.add_argument("--against", type=Path, required=True, metavar="DIR", help="the other checkout")
    for name, default in (("systems", 4), ("directions", 24), ("seeds", 3), ("sentences", 300)):
        flags.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    flags.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="samples; default: %(default)s"
    )
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        systems = write_evaluations(folder, args.systems, args.directions, args.seeds, args.sentences)
        arguments = [*systems, "--bootstrap", str(args.bootstrap)]
        checkouts = {"this": HERE, "other": args.against.resolve()}
        seconds = interleaved(
            {
                name: lambda name=name: compare(checkouts[name], arguments, folder / name)
                for name in checkouts
            },
            repeats=args.repeats,
            device=args.device,
            warmup=0,
        )
        is_same = numbers_in(folder / "this") == numbers_in(folder / "other")
    found = {name: ratio(seconds, name, "other") for name in checkouts}
    print_table(
        f"neuron-spec compare, {args.systems} systems x {args.seeds} seeds x {args.directions} directions x "
        f"{args.sentences} sentences, {args.bootstrap} samples; same numbers: {is_same}",
        ("checkout", "seconds", "ratio", "least", "greatest"),
        [
            [name, row["ms"] / 1000, row["ratio"], row["least"], row["greatest"]]
            for name, row in found.items()
        ],
    )
    sizes = {
        name: getattr(args, name) for name in ("systems", "directions", "seeds", "sentences", "bootstrap")
    }
    save(args, "comparison", {**sizes, "same_numbers": is_same, "checkouts": found})


if __name__ == "__main__":
    main()
