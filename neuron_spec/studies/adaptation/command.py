"""Adapt a checkpoint to directions with few training sentences, and score it: BLEU and chrF++ against shots.

The model must have been trained with --langs that hold the new language, so that it has its token, and with
--lang-pairs that leave it out. What is complete is skipped. A specialized model has no masks for a new direction:
--borrow cs=ru takes those of a relative's; --missing-direction compose|dense, after -- as any flag of
fairseq-generate, says what a direction does that borrows none.

OUTPUT/all/20 is one evaluation of all directions at 20 shots, for neuron-spec compare.

examples:
  neuron-spec adapt DATA_BIN --path checkpoint.pt --lang-pairs cs-en,en-cs --shots 0,20,100,1000 \\
    --steps 20 --lr 0.1 --output adaptation
  neuron-spec adapt DATA_BIN --path specialized.pt --lang-pairs cs-en,en-cs --borrow cs=ru --lr 0.1 \\
    --output adaptation-borrowed
  neuron-spec compare dense=adaptation/all/20 specialized=adaptation-borrowed/all/20
"""

from __future__ import annotations

import argparse
import sys

from neuron_spec.arguments import (
    add_device,
    add_translating,
    input_file,
    input_folder,
    learning_rate,
    output_folder,
    seed,
    whole_number,
    whole_numbers,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=input_folder("data-bin"), help="with the training and test sets of the directions"
    )
    parser.add_argument(
        "--path", type=input_file("checkpoint"), required=True, metavar="FILE", help="the checkpoint"
    )
    parser.add_argument("--lang-pairs", required=True, metavar="cs-en,...", help="directions to adapt to")
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--shots",
        type=whole_numbers("a list of numbers such as 0,20,100"),
        default="0,20,100,1000",
        metavar="N,...",
        help="numbers of training sentences, the smaller part of the larger (default %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        default=20,
        metavar="N",
        help="updates, for any shots (default %(default)s)",
    )
    parser.add_argument(
        "--lr",
        type=learning_rate,
        required=True,
        metavar="X",
        help="learning rate, for the mean loss per token of the text",
    )
    parser.add_argument(
        "--optimizer", choices=("sgd", "adam"), default="sgd", help="of the updates (default %(default)s)"
    )
    parser.add_argument(
        "--borrow",
        type=_lenders,
        default={},
        metavar="LANG=LENDER,...",
        help="run directions of a language without masks through those of another: nl=de takes en-de's for en-nl",
    )
    parser.add_argument(
        "--train-max-tokens",
        type=whole_number(1),
        default=1000,
        metavar="N",
        help="tokens of an update's batch (default %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="which sentences; dropout")
    parser.add_argument(
        "--gen-subset", default="test", metavar="NAME", help="which set to score (default %(default)s)"
    )
    add_translating(parser)
    add_device(parser, max_tokens=None)


def _lenders(text: str) -> dict[str, str]:
    pairs = [part.split("=") for part in text.split(",")]
    languages = [pair[0] for pair in pairs]
    if not all(len(pair) == 2 and all(pair) for pair in pairs) or len(set(languages)) < len(languages):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as nl=de,it=es, each language once")
    return dict(pairs)


def run(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.generation import OURS, require_heeded
    from neuron_spec.corpora.build import card_of, raw_texts
    from neuron_spec.directions import parse_directions
    from neuron_spec.studies.adaptation.measure import Adaptation, Test, Updates
    from neuron_spec.studies.adaptation.page import write_adaptation

    require_heeded(args.fairseq_flags, but=OURS | {"fixed_dictionary"})  # training goes by the checkpoint's
    directions = parse_directions(args.lang_pairs)
    updates = Updates(args.steps, args.lr, args.optimizer, args.train_max_tokens, args.seed)
    texts = raw_texts(args.data_bin, args.gen_subset, directions) if args.references == "raw" else {}
    flags = ["--beam", str(args.beam), "--max-tokens", str(args.max_tokens)]
    flags += [*(["--cpu"] if args.cpu else []), *args.fairseq_flags]
    card = card_of(args.data_bin) or {}
    test = Test(args.gen_subset, texts, flags, card.get("families"), card.get("tiers"))
    adaptation = Adaptation(args.path, args.data_bin, directions, args.shots, updates, test, args.borrow)
    results = adaptation.run(args.output)
    scores = [of.scores[0] for curve in results.values() for of in curve.values()]
    signatures = [*(score.bleu_signature for score in scores), *(score.chrf_signature for score in scores)]
    page = write_adaptation(args.output, list(dict.fromkeys(signatures)))
    print(page.read_text(encoding="utf-8"), file=sys.stderr)
    print(page)
