"""Translate and score all directions of a checkpoint with one model load, or score existing logs of
fairseq-generate. BLEU and chrF++ by sacreBLEU, with signatures; off-target and empty rates.

Raw references are scored by default. Flags of fairseq-generate, such as --lenpen, may follow after --: each is heeded
or refused, and --seed (1 unless given) is set anew for each direction, so that sampling can be repeated.

examples:
  neuron-spec evaluate DATA_BIN --path checkpoint.pt --output evaluation
  neuron-spec evaluate --generate-output logs/*/generate-test.txt --output evaluation --official-scoring
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_spec.arguments import add_device, add_translating
from neuron_spec.artifacts import (
    HYPOTHESES,
    SCORES_JSON,
    SCORES_TABLE,
    SIGNATURE,
    hash_file,
    hash_text,
    read_lines,
    signature,
    write_json,
    write_text,
)
from neuron_spec.directions import ENGLISH, Direction
from neuron_spec.errors import NeuronSpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, nargs="?", help="data-bin, or folder of its shards; with it, --path"
    )
    parser.add_argument("--path", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--generate-output", type=Path, nargs="+", metavar="FILE", help="logs to score instead"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--gen-subset", default="test", metavar="NAME", help="which set (default %(default)s)"
    )
    parser.add_argument(
        "--lang-pairs", metavar="de-en,...", help="default: those the checkpoint was trained on"
    )
    add_translating(parser)
    parser.add_argument(
        "--official-scoring",
        action="store_true",
        help="Moses-detokenize hypotheses and references first, as the official EC30 figures do; with --path it "
        "needs --references data-bin, since they are so scored",
    )
    add_device(parser, max_tokens=None, precision="; translations differ slightly")


def run(args: argparse.Namespace) -> None:
    if bool(args.generate_output) == bool(args.data_bin and args.path):
        raise NeuronSpecError(
            "what is to be evaluated?", expected="DATA_BIN with --path, or --generate-output, and not both"
        )
    if args.path and args.official_scoring and args.references == "raw":
        raise NeuronSpecError(
            "official scoring is of the data-bin's references",
            got="--official-scoring with --references raw, whose scores look official and are not comparable",
            mend="add --references data-bin, or leave out --official-scoring",
        )
    (_score_logs if args.generate_output else _translate_and_score)(args)
    print((args.output / SCORES_TABLE).read_text(encoding="utf-8"), file=sys.stderr)
    print(args.output / SCORES_JSON)


def _score_logs(args: argparse.Namespace) -> None:
    from neuron_spec.scoring.evaluation import evaluate, is_evaluated, write_evaluation
    from neuron_spec.scoring.logs import read_generate_output

    outputs = [read_generate_output(path) for path in args.generate_output]
    hashes = map(hash_file, args.generate_output)
    wanted = signature(
        "evaluate",
        inputs={str(of.direction): sha256 for of, sha256 in zip(outputs, hashes, strict=True)},
        parameters={"references": "T lines of the logs", "official_scoring": args.official_scoring},
    )
    if not is_evaluated(args.output, wanted):
        write_json(args.output / SIGNATURE, wanted)
        write_evaluation(args.output, evaluate(outputs, signature=wanted, official=args.official_scoring))


def _translate_and_score(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.generation import require_heeded
    from neuron_spec.corpora.build import card_of, raw_file, raw_texts
    from neuron_spec.scoring.evaluation import evaluate, is_evaluated, write_evaluation
    from neuron_spec.scoring.language_id import LanguageIdentifier
    from neuron_spec.scoring.metrics import Outputs

    require_heeded(args.fairseq_flags)
    asked = Asked.read(args.path, args.data_bin, args.gen_subset, lang_pairs=args.lang_pairs)
    directions = asked.directions
    raw = raw_texts(args.data_bin, args.gen_subset, directions) if args.references == "raw" else {}
    wanted = signature(
        "evaluate",
        inputs={
            "checkpoint": asked.checkpoint_sha256,
            "masks": asked.masks_sha256,
            "data": asked.data_sha256(),
            "references": hash_text(*(line for d in directions for line in raw[d][1])) if raw else "data-bin",
        },
        parameters={
            **asked.parameters,
            "beam": args.beam,
            "references": args.references,
            "official_scoring": args.official_scoring,
            "fairseq_flags": args.fairseq_flags,
            **({} if args.dtype == "fp32" else {"dtype": args.dtype}),
        },
    )
    if is_evaluated(args.output, wanted):
        return
    outputs = []
    for direction, (hypotheses, references) in _translate(args, directions, wanted).items():
        sources, references = raw.get(direction, (None, references))
        outputs.append(Outputs(direction, hypotheses, references, sources))
    card, identifier = card_of(args.data_bin) or {}, None
    if card:  # it learns each of the corpus' languages from its own training text
        foreign = [lang for lang in card["langs"] if lang != ENGLISH]
        pairs = {lang: foreign[0] if lang == ENGLISH else lang for lang in card["langs"]}
        files = {lang: raw_file(args.data_bin, "train", pair, ENGLISH, lang) for lang, pair in pairs.items()}
        identifier = LanguageIdentifier().fit({lang: read_lines(file) for lang, file in files.items()})
    evaluation = evaluate(
        outputs,
        signature=wanted,
        official=args.official_scoring,
        language_id=identifier,
        families=card.get("families"),
        tiers=card.get("tiers"),
    )
    write_evaluation(args.output, evaluation)


def _translate(
    args: argparse.Namespace, directions: Sequence[Direction], wanted: Mapping[str, Any]
) -> dict[Direction, tuple[list[str], list[str]]]:
    """Hypotheses and the data-bin's references; directions translated before a kill are read back."""
    from neuron_spec.backends.fairseq.generation import Translator

    flags = ["--beam", str(args.beam), "--max-tokens", str(args.max_tokens), *["--cpu"] * args.cpu]
    flags += [*([] if args.dtype == "fp32" else [f"--{args.dtype}"]), *args.fairseq_flags]
    translator = Translator(args.path, args.data_bin, directions, args.gen_subset, flags)
    write_json(args.output / SIGNATURE, wanted)  # from here on the folder is this evaluation's
    texts = {}
    for direction in directions:
        path = args.output / HYPOTHESES / f"{direction}.txt"
        if not path.is_file():
            write_text(path, "".join(f"{line}\n" for line in translator.translate(direction)))
        references = translator.references(direction) if args.references == "data-bin" else []
        texts[direction] = read_lines(path), references
    return texts
