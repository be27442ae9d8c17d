"""Translate and score all directions of a checkpoint with one model load, or score existing logs of
fairseq-generate. BLEU and chrF++ by sacreBLEU, with signatures; off-target and empty rates.

Raw references are scored by default. Flags of fairseq-generate, such as --lenpen, may follow after --: each is heeded
or refused, and --seed (1 unless given) is set anew for each direction, so that sampling can be repeated.

examples:
  neuron-spec evaluate DATA_BIN --path checkpoint.pt --output evaluation
  neuron-spec evaluate --generate-output logs/*/generate-test.txt --output evaluation --official-scoring
  neuron-spec evaluate --generate-output shard-0.txt shard-1.txt --lang-pairs de-en,de-en --output evaluation
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import add_device, add_translating
from neuron_spec.artifacts import (
    CORPUS_CARD,
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
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.languages import say_unknown_families

if TYPE_CHECKING:
    from neuron_spec.scoring.evaluation import Evaluation
    from neuron_spec.scoring.language_id import LanguageIdentifier

_OF_LOGS = {"generate_output", "output", "official_scoring", "lang_pairs", "allow_missing"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin", type=Path, nargs="?", help="data-bin, or folder of its shards; with it, --path"
    )
    parser.add_argument("--path", type=Path, metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "--generate-output",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="logs to score instead, however they were printed; logs of one direction are taken for its shards",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="score logs that lack sentences, such as those that --skip-invalid-size-inputs-valid-test left out",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--gen-subset", default="test", metavar="NAME", help="which set (default %(default)s)"
    )
    parser.add_argument(
        "--lang-pairs",
        metavar="de-en,...",
        help="default: those the checkpoint was trained on; of logs, that of each in "
        "their order, by default as their headers or folders say",
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
    if unheeded := _unheeded(args):
        raise NeuronSpecError(
            "flags that are not heeded here",
            got=", ".join(unheeded),
            mend="leave them out: "
            + ("what was translated, and how, the logs say" if args.generate_output else "they are of logs"),
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


def _unheeded(args: argparse.Namespace) -> list[str]:
    """The flags given that say something of translating where logs are scored, or the other way round."""
    if not args.generate_output:
        return ["--allow-missing"] * args.allow_missing
    names = {"data_bin": "DATA_BIN", "dtype": f"--{args.dtype}"}
    others = sorted(args.given - _OF_LOGS)
    flags = [names.get(name, "--" + name.replace("_", "-")) for name in others]
    return flags + [f"-- {' '.join(args.fairseq_flags)}"] * bool(args.fairseq_flags)


def _score_logs(args: argparse.Namespace) -> None:
    from neuron_spec.scoring.evaluation import evaluate, is_evaluated
    from neuron_spec.scoring.logs import read_generate_outputs, say_how_read, say_where_logs_differ

    # Not parse_directions: shards name one direction several times.
    pairs = [Direction.parse(pair) for pair in args.lang_pairs.split(",")] if args.lang_pairs else None
    logs = read_generate_outputs(args.generate_output, pairs, allow_missing=args.allow_missing)
    say_how_read(logs)
    hashes = {log.outputs.direction: sorted(map(hash_file, log.paths)) for log in logs}
    partial = {str(log.outputs.direction): log.part() for log in logs if log.part()}
    wanted = signature(
        "evaluate",
        inputs={
            str(of): shards[0] if len(shards) == 1 else hash_text(*shards) for of, shards in hashes.items()
        },
        parameters={
            "references": "T lines of the logs",
            "hypotheses": f"{' and '.join(sorted({log.scored for log in logs}))} lines of the logs",
            "official_scoring": args.official_scoring,
            **({"sentences": partial} if partial else {}),
        },
    )
    if is_evaluated(args.output, wanted):
        return
    write_json(args.output / SIGNATURE, wanted)
    scored = evaluate(
        [log.outputs for log in logs],
        signature=wanted,
        official=args.official_scoring,
        off_target_note="logs hold no training text, from which languages are told apart",
    )
    say_where_logs_differ(logs, scored.scores, official=args.official_scoring)
    _write(args.output, scored)


def _translate_and_score(args: argparse.Namespace) -> None:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.generation import require_heeded
    from neuron_spec.corpora.build import card_of, raw_texts
    from neuron_spec.scoring.evaluation import evaluate, is_evaluated
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
    card = card_of(args.data_bin) or {}
    identifier, note = _language_identifier(args.data_bin, card, directions)
    outputs = []
    for direction, (hypotheses, references) in _translate(args, directions, wanted).items():
        sources, references = raw.get(direction, (None, references))
        outputs.append(Outputs(direction, hypotheses, references, sources))
    evaluation = evaluate(
        outputs,
        signature=wanted,
        official=args.official_scoring,
        language_id=identifier,
        off_target_note=note,
        families=card.get("families"),
        tiers=card.get("tiers"),
    )
    _write(args.output, evaluation)


def _write(output: Path, evaluation: Evaluation) -> None:
    from neuron_spec.scoring.evaluation import family_in, write_evaluation

    foreign = {of.direction.foreign: of.direction for of in evaluation.scores if of.direction.foreign}
    say_unknown_families({lang: str(family_in(evaluation.families, of)) for lang, of in foreign.items()})
    write_evaluation(output, evaluation)


def _language_identifier(
    data_bin: Path, card: Mapping[str, Any], directions: Sequence[Direction]
) -> tuple[LanguageIdentifier | None, str | None]:
    """The judge of off-target translations, or why there is none.

    It learns each of the corpus' languages from its own training text, that of the first pair that has any.
    """
    from neuron_spec.corpora.build import raw_file
    from neuron_spec.scoring.language_id import LanguageIdentifier

    if not card:
        return None, f"no {CORPUS_CARD} beside the data-bin, which names the languages to tell apart"
    files: dict[str, Path] = {}
    for pair in (*map(Direction.parse, card["lang_pairs"]), *directions):
        for lang in {pair.source, pair.target} - files.keys():
            with suppress(ArtifactError):
                files[lang] = raw_file(data_bin, "train", pair.source, pair.target, lang)
    langs = dict.fromkeys([*card["langs"], *(direction.target for direction in directions)])
    if missing := [lang for lang in langs if lang not in files]:
        return None, f"no raw training text beside the data-bin, of {', '.join(missing)}"
    return LanguageIdentifier().fit({lang: read_lines(files[lang]) for lang in langs}), None


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
