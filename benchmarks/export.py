"""Translating by exports against fairseq-generate: tokens per second at the same beam, BLEU, sizes, and what another
direction costs.

All translate the same test sets. fairseq-generate runs in this process, and its time is the one that it prints: neither
loading, nor reading the data-bin, nor joining pieces. CTranslate2's is from text to text, segmentation included, model
in memory. Each round is one direction's set, translated once by every variant, in turns.

  fairseq-generate   with the checkpoint, by our task where it is specialized, by fairseq's own else
  float32, int8      CTranslate2, with the direction's export

example:
  python benchmarks/export.py runs/quickstart/specialized/checkpoint_last.pt --dense data/quickstart/dense.pt
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import measuring
import torch

from neuron_spec.arguments import input_file, input_folder
from neuron_spec.backends.ctranslate2.translation import CTranslate2Translator
from neuron_spec.backends.fairseq.checkpoints import (
    data_bin_of,
    is_specialized,
    read_checkpoint,
    task_args,
    token_flags,
)
from neuron_spec.backends.fairseq.exporting import Exporter
from neuron_spec.cli.main import main as neuron_spec
from neuron_spec.corpora.build import raw_texts
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.export.folder import PIECES, ExportFolder, Pieces, Search, joined
from neuron_spec.scoring.logs import read_generate_outputs
from neuron_spec.scoring.metrics import Outputs, score

assert Exporter  # registers models and tasks

BASELINE = "fairseq-generate"
QUANTIZATIONS = ("float32", "int8")
# Asked for once: CTranslate2 sets OpenMP's own number, which torch reads, to that of each of its workers.
THREADS = torch.get_num_threads()
_TRANSLATED = re.compile(r"Translated [\d,]+ sentences \(([\d,]+) tokens\) in ([\d.]+)s")
# Seconds, tokens as fairseq counts them, and translations.
Found = tuple[float, int, list[str]]


class Said(logging.Handler):
    """What fairseq-generate says of its speed."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: tuple[int, float] = (0, 0.0)

    def emit(self, record: logging.LogRecord) -> None:
        if match := _TRANSLATED.search(record.getMessage()):
            self.found = int(match[1].replace(",", "")), float(match[2])


def by_fairseq(path: Path, data_bin: Path, direction: Direction, search: Search) -> Found:
    """Through fairseq-generate itself."""
    command = importlib.import_module("fairseq_cli.generate")
    state = read_checkpoint(path)
    task = "neuron_specialization" if is_specialized(state) else "translation_multi_simple_epoch"
    torch.set_num_threads(THREADS)
    said, logger = Said(), logging.getLogger("fairseq_cli.generate")
    logger.setLevel(logging.INFO)
    logger.addHandler(said)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *("fairseq-generate", data_bin, "--path", path, "--task", task, "--cpu"),
            *(
                "-s",
                direction.source,
                "-t",
                direction.target,
                "--lang-pairs",
                direction,
                *token_flags(task_args(state, path)),
            ),
            *("--remove-bpe", "sentencepiece", "--results-path", folder, *search.flags),
        ]
        with mock.patch.object(sys, "argv", [*map(str, words)]), redirect_stdout(sys.stderr):
            command.cli_main()
        logger.removeHandler(said)
        (log,) = read_generate_outputs([Path(folder) / "generate-test.txt"], [direction])
    tokens, seconds = said.found
    return seconds, tokens, list(log.outputs.hypotheses)


def by_ctranslate2(folder: Path, lines: Sequence[str], search: Search) -> tuple[float, Found]:
    """Seconds of loading, and the rest."""
    start = time.perf_counter()
    export = ExportFolder.read(folder)
    translator = CTranslate2Translator(export, search, cpu=True, threads=THREADS)
    pieces = Pieces(folder / PIECES)
    loaded = time.perf_counter()
    hypotheses = translator.translate_pieces([pieces.of(line) for line in lines])
    texts = [joined(one.tokens) for one in hypotheses]
    seconds = time.perf_counter() - loaded
    more = 1 + bool(export.target_tag)  # fairseq counts the end of sentence and the language token
    return loaded - start, (seconds, sum(len(one.tokens) + more for one in hypotheses), texts)


def measure_model(
    path: Path, data_bin: Path, directions: Sequence[Direction], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    search = Search(beam=args.beam, max_len_a=args.max_len_a, max_len_b=args.max_len_b)
    for quantization in QUANTIZATIONS:
        words = ["--path", path, "--data-bin", data_bin, "--direction", ",".join(map(str, directions))]
        words += [
            "--format",
            "ctranslate2",
            "--quantization",
            quantization,
            "--output",
            folder / quantization,
        ]
        assert neuron_spec(["export", *map(str, words)]) == 0
    texts = raw_texts(data_bin, "test", directions)
    names = [BASELINE, *QUANTIZATIONS]
    loading: dict[str, list[float]] = {name: [] for name in QUANTIZATIONS}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    speeds: dict[str, list[float]] = {name: [] for name in names}
    hypotheses: dict[str, dict[Direction, list[str]]] = {name: {} for name in names}
    for turn in range(args.repeats * len(directions)):
        direction = directions[turn % len(directions)]
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            if name == BASELINE:
                found = by_fairseq(path, data_bin, direction, search)
            else:
                load, found = by_ctranslate2(folder / name / str(direction), texts[direction][0], search)
                loading[name].append(load)
            seconds[name].append(found[0])
            speeds[name].append(found[1] / found[0])
            hypotheses[name][direction] = found[2]
    of_fairseq = [line for direction in directions for line in hypotheses[BASELINE][direction]]
    rows = {}
    for name in names:
        scores = [score(Outputs(of, hypotheses[name][of], texts[of][1])).bleu for of in directions]
        its = [line for direction in directions for line in hypotheses[name][direction]]
        rows[name] = {
            # Of rounds: the baseline's seconds over this one's.
            **measuring.ratio(seconds, BASELINE, name),
            "ms": measuring.ratio(seconds, name, name)["ms"],
            "tokens_per_s": round(statistics.median(speeds[name]), 1),
            "bleu": round(statistics.mean(scores), 3),
            "same_translations_fraction": round(
                sum(a == b for a, b in zip(its, of_fairseq, strict=True)) / len(its), 4
            ),
        }
        if name != BASELINE:
            sizes = [(folder / name / str(of) / "model.bin").stat().st_size for of in directions]
            rows[name] |= {
                "mb": round(statistics.mean(sizes) / 1e6, 3),
                "switch_ms": round(1000 * statistics.median(loading[name]), 1),
            }
    rows[BASELINE]["mb"] = round(weights_bytes(path) / 1e6, 3)
    return rows


def weights_bytes(path: Path) -> int:
    """Of a checkpoint's weights and masks, in memory and float32, shared ones once."""
    weights = {value.data_ptr(): value for value in read_checkpoint(path)["model"].values()}
    return sum(4 * of.numel() if of.is_floating_point() else of.nbytes for of in weights.values())


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("path", type=input_file("checkpoint"), help="a specialized checkpoint")
    parser.add_argument(
        "--dense", type=input_file("checkpoint"), metavar="FILE", help="the same without masks"
    )
    parser.add_argument(
        "--data-bin", type=input_folder("data-bin"), metavar="DIR", help="default: the checkpoint's"
    )
    parser.add_argument("--lang-pairs", metavar="en-de,...", help="default: all of the checkpoint's")
    parser.add_argument("--beam", type=int, default=5, metavar="N")
    parser.add_argument("--max-len-a", type=float, default=0.0, metavar="A")
    parser.add_argument("--max-len-b", type=int, default=200, metavar="B")
    args = parser.parse_args()
    if args.device != "cpu":
        parser.error("is measured on the CPU alone")
    trained = task_args(read_checkpoint(args.path), args.path)
    data_bin = data_bin_of(trained, args.path, args.data_bin)
    directions = parse_directions(args.lang_pairs or trained.lang_pairs)
    for library in ("fairseq", "neuron_spec"):
        logging.getLogger(library).setLevel(logging.WARNING)
    models = {"specialized": args.path, **({"dense": args.dense} if args.dense else {})}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models.items():
            found[name] = measure_model(path, data_bin, directions, args, Path(folder) / name)
    torch.set_num_threads(THREADS)
    keys = (
        "tokens_per_s",
        "ratio",
        "least",
        "greatest",
        "bleu",
        "same_translations_fraction",
        "mb",
        "switch_ms",
    )
    measuring.print_table(
        f"beam {args.beam}, {len(directions)} directions, {THREADS} threads, "
        f"{args.repeats * len(directions)} rounds",
        ["", "tokens/s", "x fairseq", "least", "greatest", "BLEU", "same", "MB", "switch ms"],
        [
            [f"{name}, {variant}", *(row.get(key, "-") for key in keys)]
            for name, rows in found.items()
            for variant, row in rows.items()
        ],
    )
    measuring.save(
        args,
        "export",
        {
            "beam": args.beam,
            "directions": [str(direction) for direction in directions],
            "rounds": args.repeats * len(directions),
            "models": found,
        },
    )


if __name__ == "__main__":
    main()
