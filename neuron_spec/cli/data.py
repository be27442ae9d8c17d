"""Prepare a corpus: raw text, SentencePiece model, data-bin and corpus card (corpus.json).

A corpus that is already there, made with the same settings, is left as it is.

examples:
  neuron-spec data toy --output data-toy
  neuron-spec data homeassistant --langs de,nl,es,pt,cs,ru --output data-ha
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from neuron_spec.errors import CorpusError

_DEFAULTS = {
    "toy": {"vocab_size": 500, "valid_size": 200, "test_size": 200},
    "homeassistant": {"vocab_size": 6000, "valid_size": 200, "test_size": 200},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("corpus", choices=_DEFAULTS, help="which corpus")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--langs", metavar="xx,yy", help="languages besides English")
    parser.add_argument("--seed", type=int, default=1, help="of the split, and of the toy text")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="SentencePiece pieces")
    parser.add_argument("--valid-size", type=int, metavar="N", help="validation messages")
    parser.add_argument("--test-size", type=int, metavar="N", help="test messages")
    parser.add_argument("--train-size", type=int, default=3000, metavar="N", help="toy: training sentences")
    parser.add_argument(
        "--sentencepiece",
        type=Path,
        metavar="FILE",
        help="use this model, such as a checkpoint's, and learn none",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="homeassistant: the wheel, if already here"
    )
    parser.add_argument(
        "--downloads",
        type=Path,
        default=Path("downloads"),
        metavar="DIR",
        help="homeassistant: where the wheel goes",
    )


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import CORPUS_CARD, hash_file, require_file
    from neuron_spec.corpora import build, homeassistant, toy

    for name, value in _DEFAULTS[args.corpus].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    available = toy.DEFAULT_LANGS if args.corpus == "toy" else homeassistant.DEFAULT_LANGS
    langs = args.langs.split(",") if args.langs else list(available)
    if build.PIVOT in langs or len(set(langs)) < len(langs):
        raise CorpusError("bad --langs", got=args.langs, expected="languages besides English, each once")
    sizes = {"valid": args.valid_size, "test": args.test_size}
    parameters = {
        "corpus": args.corpus,
        "langs": langs,
        "seed": args.seed,
        "sizes": sizes,
        "vocab_size": args.vocab_size,
    }
    if args.corpus == "toy":
        sizes["train"] = args.train_size
    if args.sentencepiece:
        parameters["sentencepiece"] = hash_file(require_file(args.sentencepiece, "SentencePiece model"))
    if build.is_built(args.output, parameters):
        print(f"{args.output}: complete already", file=sys.stderr)
    else:
        if args.corpus == "toy":
            corpus = toy.read(langs=langs, sizes=sizes, seed=args.seed)
        else:
            wheel = args.wheel or homeassistant.fetch(args.downloads)
            corpus = homeassistant.read(
                wheel, langs=langs, test_size=args.test_size, valid_size=args.valid_size, seed=args.seed
            )
            print(json.dumps({"leak report": corpus.leak}, indent=1), file=sys.stderr)
        build.build(
            corpus,
            args.output,
            vocab_size=args.vocab_size,
            parameters=parameters,
            sentencepiece_model=args.sentencepiece,
        )
    print(args.output / CORPUS_CARD)
