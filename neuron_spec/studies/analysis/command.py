"""Analyze the specialized neurons of a mask file: overlap over layers and language families (IoU, its chance
level, and adjusted IoU, which is corrected for the size of the sets), sparsity, dendrograms, and, given profiles
on other data, whether the same neurons would be selected again.

Writes analysis.json, analysis.md, iou.csv and figures (PNG and SVG).

examples:
  neuron-spec analyze masks.safetensors --output analysis
  neuron-spec analyze masks.safetensors --profile half-1.safetensors half-2.safetensors --output analysis
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from neuron_spec.arguments import PERMUTATIONS, input_file, output_folder, seed, whole_number
from neuron_spec.neurons.choices import GROUPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("masks", type=input_file("mask file"), help="masks.safetensors")
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--profile",
        type=input_file("profile"),
        nargs="+",
        default=[],
        metavar="FILE",
        help="profiles of the same checkpoint on other data, to select again from; the first is the reference",
    )
    parser.add_argument(
        "--group",
        choices=GROUPS,
        default="own",
        help="which directions are compared: "
        + "; ".join(f"{name}: {what}" for name, what in GROUPS.items()),
    )
    parser.add_argument(
        "--distances",
        type=Path,
        metavar="FILE",
        help="distances between languages, a CSV file with the header language,language,distance "
        "(default: edges in the family tree of the language table)",
    )
    parser.add_argument(
        "--corpus-card",
        type=Path,
        metavar="FILE",
        help="corpus.json whose families, and pivot, hold instead of those of the language table, and English",
    )
    parser.add_argument(
        "--permutations",
        type=whole_number(1),
        default=PERMUTATIONS,
        metavar="N",
        help="relabellings per test; all of them where there are no more (default %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="of random relabellings")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import hash_file, signature
    from neuron_spec.corpora.build import read_card
    from neuron_spec.errors import NeuronSpecError
    from neuron_spec.languages import ENGLISH, PIVOT, language, pivot, say_unknown_families, set_pivot
    from neuron_spec.neurons.activations import ActivationCounts
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.studies.analysis.measure import (
        Question,
        pairs_compared,
        read_distances,
        read_families,
        select_from_profiles,
    )
    from neuron_spec.studies.analysis.page import PAGE, write_analysis

    if len(set(args.profile)) < len(args.profile):
        raise NeuronSpecError("--profile names a file twice", got=", ".join(map(str, args.profile)))
    families = read_families(args.corpus_card) if args.corpus_card else None
    set_pivot(read_card(args.corpus_card) if args.corpus_card else None)
    masks = NeuronMasks.load(args.masks)
    masks.require_neurons(args.masks)
    question = Question(
        masks,
        {str(path): ActivationCounts.load(path) for path in args.profile},
        args.group,
        families,
        permutations=args.permutations,
        seed=args.seed,
    )
    if args.distances:
        question = replace(question, distances=read_distances(args.distances, pairs_compared(question)))
    again = select_from_profiles(question)

    codes = sorted({code for d in question.masks.directions for code in (d.source, d.target)})
    made = signature(
        "analyze",
        inputs={
            "masks": hash_file(args.masks),
            **{f"profile {number}": hash_file(path) for number, path in enumerate(args.profile, start=1)},
            "distances": hash_file(args.distances) if args.distances else "family tree of the language table",
        },
        parameters={
            "group": args.group,
            "permutations": args.permutations,
            "seed": args.seed,
            **({PIVOT: pivot()} if pivot() != ENGLISH else {}),
            "languages": {code: f"{question.family(code)}, {language(code).lineage}" for code in codes},
        },
    )
    say_unknown_families({code: question.family(code) for code in codes})
    PAGE.make(args.output, made, lambda: write_analysis(args.output, question, again, made))
