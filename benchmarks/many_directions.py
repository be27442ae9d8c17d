"""Seconds and peak memory of the commands that look at all directions at once, for very many of them.

A made-up profile of 300 directions and 24+24 layers of 16,384 neurons, and made-up evaluations of two systems. Each
command runs in a process of its own; its peak is what the system counted for it (RSS, which includes the pages of
files that it read), its seconds by the clock and of CPU time. The ratio is the peak over the bytes of its input.

  select    neuron-spec select, the profile
  load      the masks, read as every command that takes them reads them
  analyze   neuron-spec analyze, the masks
  compare   neuron-spec compare, the evaluations

examples:
  python benchmarks/many_directions.py
  python benchmarks/many_directions.py --only compare --directions 60
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
from comparison import write_evaluations

from neuron_spec.directions import Direction
from neuron_spec.neurons.activations import ActivationCounts

TOKENS = 20_000  # of each direction's validation text
# The command is this small process's only child, so that what the system counts for its children is the command's
# own: a child of ours would be given our peak too.
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = {"seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime,
         "peak_bytes": 1024 * used.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
sys.exit(status)
"""
LOAD = "import sys; from neuron_spec.neurons.masks import NeuronMasks; NeuronMasks.load(sys.argv[1])"


def write_profile(path: Path, directions: Sequence[Direction], layers: int, ffn: int) -> None:
    """Counts as of a trained model: few neurons are active often, most hardly; sets of many sizes, alike in families."""
    generator = torch.Generator().manual_seed(1)
    profile = ActivationCounts.zeros(
        directions, {f"{side}.layers.{n}": ffn for side in ("encoder", "decoder") for n in range(layers)}
    )
    families = [direction.family() for direction in directions]
    names = sorted(set(families))
    of_family = torch.tensor([names.index(family) for family in families])
    for counts in profile.counts.values():
        common = torch.randn(ffn, generator=generator) - 2
        kin = 0.5 * torch.randn(len(names), ffn, generator=generator)
        own = 0.5 * torch.randn(len(directions), ffn, generator=generator)
        spread = 0.8 + 0.4 * torch.rand(len(directions), 1, generator=generator)
        counts[:] = (TOKENS * (spread * (common + kin[of_family] + own)).sigmoid()).long()
    for tokens in profile.tokens.values():
        tokens += TOKENS
    profile.save(path)


def measured(folder: Path, *words: object) -> dict[str, float]:
    """What a command needed."""
    place = folder / "used.json"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(place), *map(str, words)], stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}:\n{done.stderr[-3000:]}")
    return dict(json.loads(place.read_text(encoding="utf-8")))


def size_of(*places: Path) -> int:
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place])]
    return sum(file.stat().st_size for file in files if file.is_file())


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--directions", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=24, metavar="N", help="per side (default %(default)s)")
    parser.add_argument("--ffn", type=int, default=16384, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--sentences", type=int, default=50, metavar="N", help="of each test set (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of each system (default 1)")
    parser.add_argument("--only", choices=("sets", "compare"), help="the first three commands, or the last")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="for what is made, some GB (default: a temporary one)"
    )
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place)
        profile, masks, ours = (
            folder / "profile",
            folder / "masks.safetensors",
            (sys.executable, "-m", "neuron_spec"),
        )
        steps: dict[str, tuple[Sequence[Path], Sequence[object]]] = {}
        if args.only != "compare":
            write_profile(profile, measuring.languages(args.directions)[1], args.layers, args.ffn)
            steps = {
                "select": ([profile], (*ours, "select", profile, "--output", masks)),
                "load": ([masks], (sys.executable, "-c", LOAD, masks)),
                "analyze": ([masks], (*ours, "analyze", masks, "--output", folder / "analysis")),
            }
        if args.only != "sets":
            systems = write_evaluations(folder, 2, args.directions, args.seeds, args.sentences)
            evaluations = [folder / "system-0", folder / "system-1"]
            steps["compare"] = evaluations, (*ours, "compare", *systems, "--output", folder / "comparison")
        for name, (inputs, words) in steps.items():
            used = measured(folder, *words)
            rows[name] = {key: round(value, 1) for key, value in used.items()}
            rows[name] |= {"input_bytes": size_of(*inputs), "output_bytes": 0}
            rows[name]["ratio"] = round(used["peak_bytes"] / rows[name]["input_bytes"], 3)
        for name, place_of in {
            "select": masks,
            "analyze": folder / "analysis",
            "compare": folder / "comparison",
        }.items():
            if name in rows:
                rows[name]["output_bytes"] = size_of(place_of)
    measuring.print_table(
        f"{args.directions} directions; {args.layers}+{args.layers} layers of {args.ffn} neurons; test sets of "
        f"{args.sentences} sentences, {args.seeds} seed(s)",
        ["", "seconds", "of CPU time", "peak, GiB", "input, MB", "output, MB", "peak x input"],
        [
            [
                name,
                *(f"{row[key]:.1f}" for key in ("seconds", "cpu_seconds")),
                f"{row['peak_bytes'] / 2**30:.2f}",
                *(f"{row[key] / 1e6:.1f}" for key in ("input_bytes", "output_bytes")),
                f"{row['ratio']:.2f}",
            ]
            for name, row in rows.items()
        ],
    )
    shape = {name: getattr(args, name) for name in ("directions", "layers", "ffn", "sentences", "seeds")}
    measuring.save(args, "many_directions", {**shape, "commands": rows})


if __name__ == "__main__":
    main()
