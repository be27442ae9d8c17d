"""Prepare a corpus: raw text, SentencePiece model, data-bin and corpus card (corpus.json).

A corpus that is already there, made with the same settings, is left as it is.

examples:
  neuron-spec data toy --output data-toy
  neuron-spec data homeassistant --langs de,nl,es,pt,cs,ru --output data-ha
  neuron-spec data iwslt14 --archive 2014-01.tgz --output data-iwslt14
  neuron-spec data ec30 --data-bin ec30/fairseq-data-bin-sharded --output data-ec30
  neuron-spec data ec30 --plain EC40_dataset --valid NTREX/NTREX-128 --test flores200_dataset \\
    --output data-ec30 --workers 8 --estimate
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CORPUS_CARD, hash_file, require_file
from neuron_spec.errors import CorpusError
from neuron_spec.languages import is_english, require_fairseq_codes

# Of flags that are not given.
_DEFAULTS: dict[str, dict[str, int | str]] = {
    "toy": {"vocab_size": 500, "valid_size": 200, "test_size": 200},
    "homeassistant": {"vocab_size": 6000, "valid_size": 200, "test_size": 200},
    "iwslt14": {"vocab_size": 30000, "split": "talk"},
    "ec30": {"vocab_size": 64000, "shards": 5},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    path = partial(parser.add_argument, type=Path)
    number = partial(parser.add_argument, type=int, metavar="N")
    parser.add_argument("corpus", choices=_DEFAULTS, help="which corpus")
    path("--output", required=True, metavar="DIR")
    parser.add_argument("--langs", metavar="xx,yy", help="languages besides English")
    parser.add_argument("--seed", type=int, default=1, help="of the split, and of the toy text")
    number("--vocab-size", help="SentencePiece pieces")
    number("--valid-size", help="validation messages")
    number("--test-size", help="test messages")
    number("--train-size", default=3000, help="toy: training sentences")
    path("--sentencepiece", metavar="FILE", help="use this model, such as a checkpoint's, and learn none")
    path("--wheel", metavar="FILE", help="homeassistant: the wheel, if already here")
    path("--downloads", default=Path("downloads"), metavar="DIR", help="homeassistant: where the wheel goes")
    path("--archive", metavar="FILE", help="iwslt14: your copy of 2014-01.tgz, or its folder")
    parser.add_argument(
        "--split",
        choices=("talk", "lass"),
        help="iwslt14: validate on whole talks (the default), or on every 23rd line as the literature does",
    )
    ec30 = parser.add_argument_group("ec30", "a downloaded data-bin, or built from text")
    ec30.add_argument("--data-bin", type=Path, metavar="DIR", help="the downloaded folder that holds shard0")
    ec30.add_argument("--plain", type=Path, metavar="DIR", help="EC40's text: en-de.de, en-de.en ...")
    ec30.add_argument("--valid", type=Path, metavar="DIR", help="NTREX-128: newstest2019-ref.deu.txt ...")
    ec30.add_argument("--test", type=Path, metavar="DIR", help="FLORES-200: dev/deu_Latn.dev, devtest/ ...")
    ec30.add_argument("--shards", type=int, metavar="N", help="parts of the training text (default: 5)")
    ec30.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    ec30.add_argument("--estimate", action="store_true", help="print disk and time needed, and stop")


def run(args: argparse.Namespace) -> None:
    for name, value in _DEFAULTS[args.corpus].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    langs = args.langs and args.langs.split(",")
    require_fairseq_codes(langs or ())
    if langs and (any(map(is_english, langs)) or len(set(langs)) < len(langs)):
        raise CorpusError("bad --langs", got=args.langs, expected="languages besides English, each once")
    if args.sentencepiece:
        require_file(args.sentencepiece, "SentencePiece model")
    build = _build_ec30 if args.corpus == "ec30" else _build_small
    if build(args, langs):
        print(args.output / CORPUS_CARD)


def _build_small(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """A corpus that fits into memory: read, unless it is there, and built."""
    from neuron_spec.corpora import build, homeassistant, iwslt14, toy

    modules = {"toy": toy, "homeassistant": homeassistant, "iwslt14": iwslt14}
    langs = asked_langs or list(modules[args.corpus].DEFAULT_LANGS)
    sizes = {"valid": args.valid_size, "test": args.test_size}
    parameters: dict[str, Any] = {"corpus": args.corpus, "langs": langs, "seed": args.seed}
    options: dict[str, Any]
    if args.corpus == "iwslt14":
        if args.valid_size or args.test_size:
            raise CorpusError("iwslt14 has given test sets, and --split says how to validate")
        archive = iwslt14.require_archive(args.archive)
        options = {"archive": archive, "split": args.split}
        given = {"split": args.split, "archive": iwslt14.fingerprint(archive, langs)}
        parameters |= {"vocab_size": args.vocab_size, **given}
    elif args.corpus == "toy":
        options = {"sizes": sizes | {"train": args.train_size}}
        parameters |= {**options, "vocab_size": args.vocab_size}
    else:
        options = {"sizes": sizes, "wheel": args.wheel, "downloads": args.downloads}
        parameters |= {"sizes": sizes, "vocab_size": args.vocab_size}
    if args.sentencepiece:
        parameters["sentencepiece"] = hash_file(args.sentencepiece)
    if not build.is_built(args.output, parameters):
        corpus = modules[args.corpus].read(langs=langs, seed=args.seed, **options)
        if corpus.leak:
            print(json.dumps({"leak report": corpus.leak}, indent=1), file=sys.stderr)
        build.build(
            corpus,
            args.output,
            vocab_size=args.vocab_size,
            parameters=parameters,
            sentencepiece_model=args.sentencepiece,
        )
    return True


def _build_ec30(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """EC30: checked where it lies, or built from text; False where that is only estimated."""
    from neuron_spec.corpora import ec30, ec30_plain
    from neuron_spec.corpora.ec30_text import PlainText

    langs = ec30.choose(asked_langs)
    workers = args.workers or len(os.sched_getaffinity(0))
    if args.shards < 1 or workers < 1:
        raise CorpusError("bad --shards or --workers", got=f"{args.shards}, {workers}", expected="1 or more")
    if (args.data_bin is None) == (args.plain is None):
        raise CorpusError(
            "where is EC30?",
            got="both --data-bin and --plain" if args.plain else "neither --data-bin nor --plain",
            expected="--data-bin DIR of the downloaded data-bin, or --plain DIR of EC40's text",
            mend="data/README.md says where both are",
        )
    if args.data_bin is not None:
        ec30.adopt_data_bin(args.data_bin, args.output, langs=langs, shards=args.shards)
        return True
    if args.valid is None or args.test is None:
        raise CorpusError("--plain needs --valid and --test", mend="data/README.md says where to get them")
    text = PlainText(args.plain, args.valid, args.test)
    plan = ec30_plain.plan(text, langs=langs, workers=workers, learns_pieces=not args.sentencepiece)
    print(plan.text, file=sys.stdout if args.estimate else sys.stderr)
    if not args.estimate:
        ec30_plain.build(
            text,
            args.output,
            langs=langs,
            vocab_size=args.vocab_size,
            workers=workers,
            shards=args.shards,
            seed=args.seed,
            sentencepiece_model=args.sentencepiece,
        )
    return not args.estimate
