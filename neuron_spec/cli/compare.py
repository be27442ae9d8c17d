"""Compare evaluated systems with a baseline, the first one given: differences in BLEU and chrF++, and in
likelihood (lower is better) and COMET where all evaluations have them, per direction, group, tier and family.

A system is NAME=DIR or DIR, a folder that `neuron-spec evaluate` wrote. Several seeds of one system are
NAME=DIR,DIR,...: seed i is compared with the baseline's seed i, a single seed with each.

Would these trained models differ on other sentences too? Per direction sacreBLEU's paired bootstrap, made
two-sided; per group one joint draw of sentences for all directions that share them, with the smallest
difference that could have been seen. Would training again give the same? t over three seeds or more.

examples:
  neuron-spec compare evaluation/dense-continuation evaluation/specialized --output comparison
  neuron-spec compare dense=s1/dense,s2/dense specialized=s1/specialized,s2/specialized
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_spec.arguments import ALPHA, SAMPLES, output_folder, real_number, whole_number
from neuron_spec.errors import NeuronSpecError

if TYPE_CHECKING:
    from neuron_spec.scoring.systems import System


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "systems", nargs="+", metavar="[NAME=]DIR[,DIR...]", help="evaluations, the baseline first"
    )
    parser.add_argument(
        "--output",
        type=output_folder,
        metavar="DIR",
        help="write comparison.md, .csv, .json, .png and .svg here",
    )
    parser.add_argument("--json", action="store_true", help="print the JSON and not the tables")
    parser.add_argument(
        "--bootstrap",
        type=whole_number(1),
        default=SAMPLES,
        metavar="N",
        help="samples of sentences (default %(default)s)",
    )
    parser.add_argument(
        "--alpha",
        type=real_number(lambda value: 0 < value < 1, "a fraction between 0 and 1"),
        default=ALPHA,
        metavar="P",
        help="a win or loss is a two-sided p below it (default %(default)s)",
    )
    parser.add_argument(
        "--common-directions",
        action="store_true",
        help="compare only the directions that all evaluations have",
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.languages import PIVOT, set_pivot
    from neuron_spec.scoring.comparison import compare, comparison_signature
    from neuron_spec.scoring.comparison_files import COMPARISON, as_plain, compared, comparison_markdown
    from neuron_spec.scoring.systems import comparable

    read = _read_systems(args.systems)
    set_pivot({PIVOT: read[0].seeds[0].pivot})
    systems = comparable(read, common_directions=args.common_directions)
    tests = {"samples": args.bootstrap, "alpha": args.alpha}
    if args.output:
        comparison = compared(args.output, systems, **tests)
        print(args.output / f"{COMPARISON}.json", file=sys.stderr)
    else:
        comparison = compare(systems, signature=comparison_signature(systems, **tests), **tests)
    if args.json:
        print(json.dumps(as_plain(comparison), indent=1, ensure_ascii=False))
    else:
        print(comparison_markdown(comparison), end="")


def _read_systems(texts: list[str]) -> list[System]:
    """Read each ``NAME=DIR,DIR``; without a name, the folders' own if they have the same."""
    from neuron_spec.scoring.evaluation import read_evaluation
    from neuron_spec.scoring.systems import System

    folders: list[tuple[str, list[Path]]] = []
    for text in texts:
        name, equals, listed = text.partition("=")
        if "/" in name:  # the sign is part of a folder's name
            name, equals, listed = "", "", text
        parts = (listed if equals else text).split(",")
        of_system = list(map(Path, parts))
        names = {name} if equals else {folder.resolve().name for folder in of_system}
        if not all(parts) or names == {""} or len(names) > 1:
            raise NeuronSpecError(
                "a system without a name or folder",
                got=repr(text),
                expected="NAME=DIR, NAME=DIR,DIR for several seeds, or DIR",
            )
        folders.append((names.pop(), of_system))
    counts = Counter(folder.resolve() for _, of_system in folders for folder in of_system)
    if twice := [str(folder) for folder, count in counts.items() if count > 1]:
        raise NeuronSpecError("an evaluation is given twice", got=", ".join(twice))
    return [System(name, [read_evaluation(folder) for folder in of]) for name, of in folders]
