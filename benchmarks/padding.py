"""What batches of one direction cost beside fairseq's, which mix directions: batches and padding.

  mixed            fairseq's own: all sentences by source, then target length
  one direction    ours: each direction's sentences in turns (neuron_spec/backends/fairseq/batches.py)
  fairseq's order  each direction's sentences by source, then target length: what the turns are there for

A position is a place in a batch on either side, padding or not. Batches hold a multiple of 8 sentences or
fewer than 8, fairseq's default.

Without --data-bin the lengths are drawn. A third of the directions each has --sentences, a fifth and a
fiftieth of it: the tiers of EC30 (5M, 1M, 100k), but smaller. Source lengths are log-normal with median 25
and sigma 0.6; target = source x a log-normal ratio with sigma 0.2, whose median is itself drawn per
direction, log-normal with sigma 0.15; both are rounded and clipped to 2..250.

With --data-bin, which also needs --langs and --lang-pairs, the lengths are those of its training set, as the
task samples it in the first epoch. Other flags go to fairseq.

examples:
  python benchmarks/padding.py
  python benchmarks/padding.py --data-bin DIR --langs en,de,nl --lang-pairs DIR/lang_pairs.txt \\
    --encoder-langtok src --decoder-langtok --sampling-method temperature --sampling-temperature 2
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import numpy as np
from fairseq import options, tasks
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from neuron_spec import tasks as our_tasks  # registers
from neuron_spec.backends.fairseq.batches import cut, in_turns, padding_percent

MAX_TOKENS = (1000, 2000, 4000, 8000, 16384)
DIRECTIONS = (2, 12, 24, 60, 300)
MULTIPLE = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data-bin", type=Path, metavar="DIR", help="measure this corpus")
    parser.add_argument(
        "--sentences",
        type=int,
        default=100_000,
        metavar="N",
        help="of a large direction (default %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=measuring.RESULTS, metavar="DIR", help="where the JSON goes"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.set_defaults(device="cpu")
    args, fairseq_flags = parser.parse_known_args()
    if fairseq_flags and not args.data_bin:
        parser.error(f"without --data-bin, what is {' '.join(fairseq_flags)}?")

    rows = []
    for indices, lengths, owner in corpora(args, fairseq_flags):
        rows += compare(indices, lengths, owner)
    measuring.print_table(
        "Batches, percent of padding (source / target), and the ratio to mixed in batches and in positions",
        [
            "directions",
            "sentences",
            "max-tokens",
            *("mixed", "padding"),
            *("one direction", "padding", "batches", "positions"),
            *("fairseq's order: padding", "batches", "positions"),
        ],
        [cells(row) for row in rows],
    )
    measuring.save(
        args, "padding-data-bin" if args.data_bin else "padding", {"seed": args.seed, "rows": rows}
    )


def corpora(
    args: argparse.Namespace, fairseq_flags: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices in fairseq's order, the lengths of source and target, and the number of the direction."""
    if args.data_bin:
        yield of_data_bin(args.data_bin, fairseq_flags)
        return
    for directions in DIRECTIONS:
        yield drawn(directions, args.sentences, np.random.default_rng(args.seed))


def drawn(
    directions: int, sentences: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tiers = [sentences, max(1, sentences // 5), max(1, sentences // 50)]
    owner = np.repeat(
        np.arange(directions), [tiers[number * 3 // directions] for number in range(directions)]
    )
    ratio = np.exp(rng.normal(0, 0.15, directions)[owner] + rng.normal(0, 0.2, len(owner)))
    source = 25 * np.exp(rng.normal(0, 0.6, len(owner)))
    sizes = np.stack([source, source * ratio], axis=1).round().clip(2, 250).astype(np.int64)
    indices = rng.permutation(len(owner))
    indices = indices[np.lexsort((sizes[indices, 1], sizes[indices, 0]))]
    return indices, sizes[indices], owner[indices]


def of_data_bin(data_bin: Path, fairseq_flags: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert our_tasks
    logging.disable(logging.INFO)
    given = [str(data_bin), "--task", "neuron_specialization", "--arch", "transformer"]
    given += ["--max-source-positions", "1024", "--max-target-positions", "1024", *fairseq_flags]
    flags = options.parse_args_and_arch(options.get_training_parser(), input_args=given)
    task = tasks.setup_task(convert_namespace_to_omegaconf(flags).task)
    task.load_dataset("train")
    dataset: Any = task.dataset("train")
    with data_utils.numpy_seed(flags.seed):
        indices = dataset.ordered_indices()
    most = (flags.max_source_positions, flags.max_target_positions)
    indices = task.filter_indices_by_size(indices, dataset, most, ignore_invalid_inputs=True)
    return indices, dataset.sizes[indices], dataset.owner(indices)


def compare(indices: np.ndarray, lengths: np.ndarray, owner: np.ndarray) -> Iterator[dict[str, Any]]:
    starts = np.flatnonzero(np.diff(np.sort(owner), prepend=-1))
    kinds = {
        "mixed": (slice(None), [0]),
        "one_direction": (in_turns(owner, lengths), starts),
        "fairseqs_order": (np.argsort(owner, kind="stable"), starts),
    }
    ordered = {kind: (indices[order], lengths[order], begin) for kind, (order, begin) in kinds.items()}
    tokens = lengths.sum(axis=0)
    for max_tokens in MAX_TOKENS:
        found = {}
        for kind, (own, sides, begin) in ordered.items():
            batches = cut(own, sides, begin, max_tokens=max_tokens, required_batch_size_multiple=MULTIPLE)
            percent = np.array(padding_percent(sides, batches))
            found[kind] = len(batches), percent, float((tokens / (1 - percent / 100)).sum())
        mixed_batches, _, mixed_positions = found["mixed"]
        row: dict[str, Any] = {"directions": len(starts), "sentences": len(indices), "max_tokens": max_tokens}
        for kind, (count, (source, target), positions) in found.items():
            row[kind] = {
                "batches": count,
                "source_padding_percent": round(source, 2),
                "target_padding_percent": round(target, 2),
                "batches_ratio": round(count / mixed_batches, 3),
                "positions_ratio": round(positions / mixed_positions, 3),
            }
        yield row


def cells(row: dict[str, Any]) -> list[str]:
    def padding(kind: str) -> str:
        return f"{row[kind]['source_padding_percent']:.1f} / {row[kind]['target_padding_percent']:.1f}"

    def ratios(kind: str) -> list[str]:
        return [f"{row[kind][name]:.3f}" for name in ("batches_ratio", "positions_ratio")]

    return [
        str(row["directions"]),
        f"{row['sentences']:,}",
        str(row["max_tokens"]),
        *(f"{row['mixed']['batches']:,}", padding("mixed")),
        *(f"{row['one_direction']['batches']:,}", padding("one_direction"), *ratios("one_direction")),
        *(padding("fairseqs_order"), *ratios("fairseqs_order")),
    ]


if __name__ == "__main__":
    main()
