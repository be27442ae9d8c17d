"""Whether a training with masks needs more memory the longer it runs: fairseq-train's own, measured from outside.

A small specialized model trains on the toy corpus, as fairseq-train with --user-dir does it: one-direction batches,
epochs, validation and checkpoints after each of them. What the system counts for the process (RSS) is read at equal
intervals, and beside it what of that is no file's (anonymous). Over the second half a line is fitted to each: its
slope is what an hour adds. The ratio is the last quarter's mean over the third's. Linux only.

examples:
  python benchmarks/memory.py --minutes 60
  python benchmarks/memory.py --minutes 5 --masks none
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import torch

from neuron_spec.directions import parse_directions
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.shared import PACKAGE

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "smoke" / "continue.yaml"
LAYERS, FFN = 2, 128  # of the config, on either side
DROPPED = 0.3
FIGURES = {"rss_mb": "VmRSS", "anonymous_mb": "RssAnon"}  # ours -> /proc/PID/status
SOONEST = 0.05  # seconds between two looks


def write_masks(data_bin: Path, folder: Path) -> Path:
    """Random masks for the toy corpus and the config's model."""
    directions = parse_directions((data_bin / "lang_pairs.txt").read_text(encoding="utf-8").strip())
    generator = torch.Generator().manual_seed(1)
    kept = {
        f"{side}.layers.{number}": torch.rand(len(directions), FFN, generator=generator) >= DROPPED
        for side in ("encoder", "decoder")
        for number in range(LAYERS)
    }
    path = folder / "masks.safetensors"
    NeuronMasks(directions, kept).save(path)
    return path


def run(*words: object, log: Path) -> subprocess.Popen[bytes]:
    """A process of its own, whose output goes into a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [*map(str, words)], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "LOGLEVEL": "INFO"}
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait():
        sys.exit(log.read_text(encoding="utf-8", errors="replace")[-3000:])


def train(args: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Make the corpus, and start a training of so many minutes; its log is JSON."""
    ours, log = (sys.executable, "-m", "neuron_spec"), folder / "log"
    corpus = ("data", "toy", "--output", folder / "toy", "--train-size", args.train_size)
    sizes = ("--valid-size", 50, "--test-size", 50) if args.train_size < 1000 else ()
    finish(run(*ours, *corpus, *sizes, log=log), log)
    flags = subprocess.run([*ours, "flags", CONFIG], check=True, capture_output=True, text=True).stdout
    data_bin = folder / "toy" / "data-bin"
    langs, pairs = ((data_bin / name).read_text().split() for name in ("langs.txt", "lang_pairs.txt"))
    masks = write_masks(data_bin, folder) if args.masks == "random" else None
    return run(
        *(sys.executable, "-m", "fairseq_cli.train", data_bin, "--user-dir", PACKAGE),
        *("--task", "neuron_specialization", "--langs", ",".join(langs), "--lang-pairs", ",".join(pairs)),
        *(*flags.splitlines(), "--save-dir", folder / "checkpoints", "--no-epoch-checkpoints"),
        *(("--neuron-masks", masks, "--masks-on-random-weights") if masks else ()),
        *("--stop-time-hours", args.minutes / 60, "--total-num-update", 10**6, "--max-update", 10**6),
        *("--log-format", "json", "--log-interval", 1000, "--cpu"),
        log=log,
    ), log  # fmt: skip


def memory(process: int) -> dict[str, float] | None:
    """Megabytes that a process has now; None once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = {
        name: words[0] for name, *words in (line.replace(":", " ").split() for line in lines) if words
    }
    if not all(
        word in kilobytes for word in FIGURES.values()
    ):  # a process that has ended but was not waited for
        return None
    return {name: int(kilobytes[word]) * 1024 / 1e6 for name, word in FIGURES.items()}


def watch(process: subprocess.Popen[bytes], log: Path, minutes: float, count: int) -> list[dict[str, float]]:
    """The process's memory over time, from its first epoch on until it ends."""
    while process.poll() is None and "begin training epoch" not in log.read_text(errors="replace"):
        time.sleep(SOONEST)
    start, points = time.monotonic(), []
    while len(points) < count and process.poll() is None and (found := memory(process.pid)):
        points.append({"minutes": (time.monotonic() - start) / 60, **found})
        time.sleep(max(SOONEST, start + 60 * minutes * len(points) / count - time.monotonic()))
    return points


def trend(points: list[dict[str, float]], name: str) -> dict[str, float]:
    """How a figure grows over the second half, MB an hour, with the slope's standard error as of independent readings;
    and the last quarter's mean over the third's."""
    half = points[len(points) // 2 :]
    minutes, values = [of["minutes"] for of in half], [of[name] for of in half]
    line, mean = statistics.linear_regression(minutes, values), statistics.fmean(minutes)
    rest = sum((y - line.slope * x - line.intercept) ** 2 for x, y in zip(minutes, values, strict=True))
    error = math.sqrt(rest / (len(half) - 2) / sum((x - mean) ** 2 for x in minutes))
    third, last = values[: len(values) // 2], values[len(values) // 2 :]
    return {
        "mb_per_hour": round(60 * line.slope, 3),
        "standard_error": round(60 * error, 3),
        "ratio": round(statistics.fmean(last) / statistics.fmean(third), 5),
    }


def updates_in(log: Path) -> tuple[int, int]:
    """Updates and epochs that fairseq logged at the ends of epochs."""
    done = updates = epochs = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        _, is_epoch, text = line.partition("| train | ")
        if is_epoch and text.startswith("{"):
            found = json.loads(text)
            done, updates, epochs = done + 1, int(found["train_num_updates"]), int(found["epoch"])
    return (updates, epochs) if done else (0, 0)


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--points", type=int, default=60, metavar="N", help="how often memory is read, at most (default 60)"
    )
    parser.add_argument("--masks", choices=("random", "none"), default="random", help="default: random")
    parser.add_argument(
        "--train-size", type=int, default=3000, metavar="N", help="sentences of the toy corpus (default 3000)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        process, log = train(args, Path(place))
        try:
            points = watch(process, log, args.minutes, args.points)
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
        finish(process, log)
        updates, epochs = updates_in(log)
    if len(points) < 8:
        sys.exit(f"only {len(points)} points: too short a training for a slope; more --minutes, or --points")
    trends = {name: trend(points, name) for name in FIGURES}
    measuring.print_table(
        f"fairseq-train of {updates} updates in {epochs} epochs and {points[-1]['minutes']:.1f} minutes, "
        f"masks: {args.masks}",
        [
            "",
            "first, MB",
            "half-way",
            "last",
            "most",
            "slope of the second half, MB an hour",
            "± s.e.",
            "ratio",
        ],
        [
            [name.removesuffix("_mb")]
            + [f"{of:.1f}" for of in (points[0][name], points[len(points) // 2][name], points[-1][name])]
            + [
                f"{max(of[name] for of in points):.1f}",
                f"{trends[name]['mb_per_hour']:+.1f}",
                f"{trends[name]['standard_error']:.1f}",
            ]
            + [f"{trends[name]['ratio']:.4f}"]
            for name in FIGURES
        ],
    )
    rounded = [{"minutes": round(of["minutes"], 2), **{n: round(of[n], 1) for n in FIGURES}} for of in points]
    columns: dict[str, Any] = {name: [of[name] for of in rounded] for name in ("minutes", *FIGURES)}
    measuring.save(
        args,
        "memory" if args.masks == "random" else "memory_dense",
        {
            "masks": args.masks,
            "updates": updates,
            "epochs": epochs,
            "second_half": trends,
            "over_time": columns,
        },
    )


if __name__ == "__main__":
    main()
