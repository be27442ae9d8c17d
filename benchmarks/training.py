"""Updates per second of fairseq-train itself, specialized against dense continuation, on real text.

Each round trains every system for the same updates on the same batches, in turns, by ``neuron-spec specialize``; what
counts is what fairseq logs of the last intervals, so without start-up. Unlike ffn_step.py this has all that a training
does: reading batches, clipping, the optimizer, logging.

  dense continuation   no masks
  specialized          the masks
  frozen               the masks, --dropped-neurons frozen

examples:
  python benchmarks/training.py runs/quickstart/corpus/data-bin --path data/quickstart/dense.pt \\
    --masks runs/quickstart/masks.safetensors --config configs/quickstart/continue.yaml --updates 60 -- \\
    --total-num-update 300
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring

SYSTEMS: dict[str, tuple[bool, list[str]]] = {
    "dense continuation": (False, []),
    "specialized": (True, []),
    "frozen": (True, ["--dropped-neurons", "frozen"]),
}
INTERVALS = 4  # fairseq's lines of a training; the first, with what happens once, is left out


def train(args: Any, name: str, folder: Path) -> list[dict[str, Any]]:
    """fairseq's lines of one training, but for the first."""
    masked, flags = SYSTEMS[name]
    interval = args.updates // INTERVALS
    command = [
        *(sys.executable, "-m", "neuron_spec", "specialize", args.data_bin, "--path", args.path),
        *("--masks", args.masks if masked else "none", "--save-dir", folder / "checkpoints"),
        *("--config", args.config, *(["--lang-pairs", args.lang_pairs] if args.lang_pairs else [])),
        *("--", "--max-update", args.updates, "--disable-validation", *args.flags),
        *("--no-save", "--log-format", "json", "--log-interval", interval, "--seed", 1, *flags),
        *(["--cpu"] if args.device == "cpu" else []),
    ]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, "LOGLEVEL": "INFO"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name} did not train:\n{done.stdout[-3000:]}")
    lines = [line.partition("| train_inner | ")[2] for line in done.stdout.splitlines()]
    found = [json.loads(line) for line in lines if line.startswith("{")]
    if len(found) != INTERVALS:
        sys.exit(
            f"{name}: expected {INTERVALS} lines of train_inner, found {len(found)}:\n{done.stdout[-3000:]}"
        )
    return found[1:]


def main() -> None:
    parser = measuring.parser(__doc__, repeats=2)
    parser.add_argument("data_bin", type=Path, metavar="DATA_BIN")
    parser.add_argument("--path", type=Path, required=True, metavar="FILE", help="the dense checkpoint")
    parser.add_argument("--masks", type=Path, required=True, metavar="FILE")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="stage 2's flags")
    parser.add_argument("--lang-pairs", metavar="PAIRS")
    parser.add_argument("--updates", type=int, default=60, metavar="N", help="of each training (default 60)")
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="of fairseq-train, after --")
    args = parser.parse_args()
    if args.updates % INTERVALS:
        parser.error(f"--updates {args.updates} is no multiple of {INTERVALS}")

    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    words: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    free: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for _ in range(args.repeats):
        for name in SYSTEMS:
            with tempfile.TemporaryDirectory() as folder:
                lines = train(args, name, Path(folder))
            seconds[name].append(sum(1 / float(line["ups"]) for line in lines) / len(lines))
            words[name] += [float(line["wps"]) for line in lines]
            free[name] += [float(line["gb_free"]) for line in lines if "gb_free" in line]

    baseline = next(iter(SYSTEMS))
    found = {}
    for name in SYSTEMS:
        found[name] = {
            **measuring.ratio(seconds, name, baseline),
            "tokens_per_s": round(sum(words[name]) / len(words[name])),
            **({"least_gb_free": min(free[name])} if free[name] else {}),
        }
    measuring.print_table(
        f"one update of fairseq-train, {args.config}, {args.updates} updates, {args.repeats} rounds",
        ["", "ms", "x dense", "least", "greatest", "target tokens/s"],
        [
            [name, f"{row['ms']:.0f}"]
            + [f"{row[key]:.2f}" for key in ("ratio", "least", "greatest")]
            + [row["tokens_per_s"]]
            for name, row in found.items()
        ],
    )
    measuring.save(
        args,
        "training",
        {"config": str(args.config), "updates": args.updates, "rounds": args.repeats, "variants": found},
    )


if __name__ == "__main__":
    main()
