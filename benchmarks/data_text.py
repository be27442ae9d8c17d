"""What `neuron-spec data text` takes: peak memory of one process, and pairs a second of one core.

Synthetic pairs of two languages, their words drawn by Zipf's law from 50,000 invented ones, 4 to 40 words a side. A
given SentencePiece model, learnt before on the first pairs; learning pieces on a sample, which is bounded too, comes on
top without one. A small corpus stands beside the large one: what does not grow between them is not the text.

examples:
  python benchmarks/data_text.py
  python benchmarks/data_text.py --pairs 2000 4000
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
import numpy as np

_WORDS, _ALPHABET = 50_000, "abcdefghijklmnopqrstuvwxyz"
_AT_ONCE = 10_000
_TO_LEARN_ON = 20_000


def write_pairs(folder: Path, pairs: int, seed: int = 1) -> None:
    """``train.en-de.en`` and ``train.en-de.de``; a word's translation is itself spelt backwards."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 10, _WORDS)
    letters = rng.choice(list(_ALPHABET), lengths.sum())
    words = ["".join(part) for part in np.split(letters, lengths.cumsum()[:-1])]
    chances = 1 / np.arange(1, _WORDS + 1)
    chances /= chances.sum()
    with (folder / "train.en-de.en").open("w") as english, (folder / "train.en-de.de").open("w") as german:
        for start in range(0, pairs, _AT_ONCE):
            sizes = rng.integers(4, 41, min(_AT_ONCE, pairs - start))
            drawn = np.split(rng.choice(_WORDS, sizes.sum(), p=chances), sizes.cumsum()[:-1])
            for numbers in drawn:
                line = [words[number] for number in numbers]
                english.write(" ".join(line) + "\n")
                german.write(" ".join(word[::-1] for word in line) + "\n")


_MEASURED = """
import json, resource, sys, time
from neuron_spec.cli.main import main
wall, cpu = time.perf_counter(), time.process_time()
status = main(sys.argv[1:])
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu,
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
sys.exit(status)
"""


def measure(folder: Path, pairs: int, pieces: int, model: Path | None) -> dict[str, Any]:
    text, output = folder / f"text-{pairs}", folder / f"corpus-{pairs}"
    text.mkdir()
    write_pairs(text, pairs)
    words = ["data", "text", "--train", text / "train", "--output", output, "--workers", 1]
    words += ["--sentencepiece", model] if model else ["--vocab-size", pieces]
    command = [sys.executable, "-c", _MEASURED, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall, cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return {
        "pairs": pairs,
        "text_megabytes": round(sum(file.stat().st_size for file in text.iterdir()) / 1e6, 1),
        "peak_megabytes": round(peak / 1e6),
        "cpu_seconds": round(cpu, 1),
        "pairs_a_cpu_second": round(pairs / cpu),
        "wall_seconds": round(wall, 1),
    }


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--pairs", nargs="+", type=int, default=[100_000, 1_000_000], metavar="N")
    parser.add_argument("--vocab-size", type=int, default=8000, metavar="N", help="SentencePiece pieces")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learnt = min(_TO_LEARN_ON, args.pairs[0])
        measure(folder, learnt, args.vocab_size, None)
        model = folder / f"corpus-{learnt}" / "spm" / "sentencepiece.model"
        model = model.rename(folder / "pieces.model")
        (folder / f"text-{learnt}").rename(folder / "learnt-on")
        (folder / f"corpus-{learnt}").rename(folder / "learnt")
        rows = [measure(folder, pairs, args.vocab_size, model) for pairs in args.pairs]
    measuring.print_table(
        "neuron-spec data text, one process",
        ["pairs", "text, MB", "peak memory, MB", "CPU, s", "pairs a second of CPU"],
        [
            [row[key] for key in ("pairs", "text_megabytes", "peak_megabytes", "cpu_seconds", "pairs_a_cpu_second")]
            for row in rows
        ],
    )  # fmt: skip
    ratio = rows[-1]["peak_megabytes"] / rows[0]["peak_megabytes"]
    measuring.save(args, "data_text", {"rows": rows, "memory_ratio_of_last_to_first": round(ratio, 3)})


if __name__ == "__main__":
    main()
