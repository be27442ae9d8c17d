"""Translate and score all directions of a checkpoint with one model load, or score existing logs of
fairseq-generate. BLEU and chrF++ by sacreBLEU, with signatures; off-target and empty rates; length ratio; the likelihood
that the checkpoint gives to the references; COMET, if you have it.

Raw references are scored by default. Flags of fairseq-generate, such as --max-len-a, may follow after --: each is heeded
or refused, and --seed (1 unless given) is set anew for each direction, so that sampling can be repeated. What lacks in a
complete evaluation, such as COMET, is added to it.

--zero-shot is of directions that share no training data, between two languages whose test sets are translations of the same
lines: those of all languages but English, or --lang-pairs. A specialized checkpoint runs through composed sets and through
all neurons, an evaluation each in the folders composed and dense-neurons, and zero-shot.csv sets them side by side.

examples:
  neuron-spec evaluate DATA_BIN --path checkpoint.pt --output evaluation
  neuron-spec evaluate DATA_BIN --path baseline.pt --output baseline --tune-lenpen
  neuron-spec evaluate DATA_BIN --path checkpoint.pt --output evaluation --lenpen-from baseline
  neuron-spec evaluate DATA_BIN --path checkpoint.pt --output zero-shot --zero-shot
  neuron-spec evaluate --generate-output logs/*/generate-test.txt --output evaluation --official-scoring
  neuron-spec evaluate --generate-output shard-0.txt shard-1.txt --lang-pairs de-en,de-en --output evaluation
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_device,
    add_lang_pairs,
    add_translating,
    input_file,
    input_folder,
    output_folder,
    whole_number,
)
from neuron_spec.artifacts import (
    CORPUS_CARD,
    HYPOTHESES,
    SCORES_JSON,
    SCORES_TABLE,
    SIGNATURE,
    completed,
    hash_file,
    hash_text,
    read_lines,
    signature,
    signature_in,
    write_text,
)
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.languages import say_unknown_families

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.generation import Translator
    from neuron_spec.scoring.comet import Comet
    from neuron_spec.scoring.evaluation import Evaluation
    from neuron_spec.scoring.language_id import LanguageIdentifier
    from neuron_spec.scoring.length_penalty import LengthPenalty

_OF_LOGS = {
    *("generate_output", "output", "official_scoring", "lang_pairs", "allow_missing"),
    *("comet", "comet_program"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin",
        type=input_folder("data-bin"),
        nargs="?",
        help="data-bin, or folder of its shards; with it, --path",
    )
    parser.add_argument("--path", type=input_file("checkpoint"), metavar="FILE", help="the checkpoint")
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
    parser.add_argument("--output", type=output_folder, required=True, metavar="DIR")
    parser.add_argument(
        "--gen-subset", default="test", metavar="NAME", help="which set (default %(default)s)"
    )
    add_lang_pairs(
        parser,
        "default: those the checkpoint was trained on; of logs, that of each in "
        "their order, by default as their headers or folders say",
    )
    add_translating(parser)
    parser.add_argument(
        "--official-scoring",
        action="store_true",
        help="Moses-detokenize hypotheses and references first, as the official EC30 figures do; with --path it "
        "needs --references data-bin, since they are so scored",
    )
    parser.add_argument(
        "--no-likelihood",
        dest="likelihood",
        action="store_false",
        help="do not run the checkpoint over the references too",
    )
    parser.add_argument(
        "--zero-shot",
        action="store_true",
        help="directions without training data, with composed sets and with all neurons",
    )
    lenpen = parser.add_mutually_exclusive_group()
    lenpen.add_argument(
        "--tune-lenpen",
        action="store_true",
        help="choose the length penalty of beam search, one for all directions, by BLEU on validation text",
    )
    lenpen.add_argument(
        "--lenpen-from",
        type=Path,
        metavar="DIR",
        help="the length penalty that another evaluation chose: the baseline's, for all systems compared with it",
    )
    parser.add_argument(
        "--tune-subset", metavar="NAME", help="with --tune-lenpen, which set to choose by (default valid)"
    )
    parser.add_argument(
        "--tune-sentences",
        type=whole_number(1),
        metavar="N",
        help="with --tune-lenpen, at most so many of each direction, spread over its set (default 200)",
    )
    parser.add_argument(
        "--comet",
        metavar="MODEL",
        help="score by COMET too, such as Unbabel/wmt22-comet-da, or a checkpoint's file",
    )
    parser.add_argument(
        "--comet-program",
        type=Path,
        metavar="FILE",
        help="unbabel-comet's comet-score, in an environment of its own (default: the one on the PATH)",
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
    if args.zero_shot:
        _score_zero_shot(args)
        return
    (_score_logs if args.generate_output else _translate_and_score)(args)
    print((args.output / SCORES_TABLE).read_text(encoding="utf-8"), file=sys.stderr)
    print(args.output / SCORES_JSON)


def _unheeded(args: argparse.Namespace) -> list[str]:
    """The flags given that say something of translating where logs are scored, or the other way round."""
    if not args.generate_output:
        return ["--allow-missing"] * args.allow_missing
    names = {"data_bin": "DATA_BIN", "likelihood": "--no-likelihood", "dtype": f"--{args.dtype}"}
    others = sorted(
        args.given() - _OF_LOGS - ({"cpu"} if args.comet else set())
    )  # COMET's own model heeds it
    flags = [names.get(name, "--" + name.replace("_", "-")) for name in others]
    return flags + [f"-- {' '.join(args.fairseq_flags)}"] * bool(args.fairseq_flags)


def _score_logs(args: argparse.Namespace) -> None:
    from neuron_spec.scoring.evaluation import claim_evaluation, evaluate, is_evaluated, without_additions
    from neuron_spec.scoring.logs import read_generate_outputs, say_how_read, say_where_logs_differ

    comet = _comet(args)
    # Not parse_directions: shards name one direction several times.
    given = args.lang_pairs
    pairs = None if given is None else [Direction.parse(pair) for pair in given.split(",")]
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
            **({"comet": comet.name} if comet else {}),
        },
    )
    if comet:
        without = [log.outputs.direction for log in logs if log.outputs.sources is None]
        comet.require_sources(without, "score logs that have S lines")
    if is_evaluated(args.output, wanted):
        return
    evaluation = _complete(args.output)
    if evaluation is None:
        claim_evaluation(args.output, made_from := without_additions(wanted))
        evaluation = evaluate(
            [log.outputs for log in logs],
            signature=made_from,
            official=args.official_scoring,
            off_target_note="logs hold no training text, from which languages are told apart",
        )
        say_where_logs_differ(logs, evaluation.scores, official=args.official_scoring)
        _write(args.output, evaluation)
    _add_comet(args, comet, evaluation, wanted)


def _score_zero_shot(args: argparse.Namespace) -> None:
    """An evaluation for each way to choose neurons, and the table of all."""
    from neuron_spec.backends.fairseq import zero_shot
    from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, task_args
    from neuron_spec.backends.fairseq.commands import missing_direction_in
    from neuron_spec.backends.fairseq.generation import require_heeded
    from neuron_spec.corpora.build import card_of
    from neuron_spec.languages import set_pivot
    from neuron_spec.scoring.zero_shot import ALL_NEURONS, COMPOSED, TABLE_CSV, TABLE_MD, write_table

    require_heeded(args.fairseq_flags)
    if args.tune_lenpen:
        raise NeuronSpecError(
            "a length penalty is not chosen on directions without training data",
            got="--tune-lenpen with --zero-shot",
            mend="choose it on the trained ones, and name that evaluation: --lenpen-from DIR",
        )
    set_pivot(card_of(args.data_bin))
    state = read_checkpoint(args.path)
    trained = task_args(state, args.path)
    directions = zero_shot.zero_shot_directions(state, args.path, args.data_bin, args.lang_pairs)
    chosen, others = missing_direction_in(args.fairseq_flags)
    is_dense = zero_shot.own_directions(state, trained.langs) is None
    ways = {COMPOSED: "compose", ALL_NEURONS: "dense"}
    if is_dense:
        ways = {ALL_NEURONS: ""}
    elif chosen is not None:
        ways = {name: way for name, way in ways.items() if way == chosen}
    if (chosen is not None and is_dense) or not ways:
        raise NeuronSpecError(
            "there is nothing to compose" if is_dense else "directions without training data have no sets",
            where=args.path,
            got=f"--missing-direction {chosen}" + (", and a dense checkpoint" if is_dense else ""),
            mend="leave it out" + ("" if is_dense else ", or say compose or dense"),
        )
    if COMPOSED in ways:
        zero_shot.require_composable(state, trained.langs, directions)
    raw = args.references == "raw"
    with zero_shot.zero_shot_corpus(
        args.data_bin, args.gen_subset, directions, trained.langs, raw=raw
    ) as data_bin:
        for name, way in ways.items():
            of_way = copy(args)
            of_way.output, of_way.lang_pairs = args.output / name, ",".join(map(str, directions))
            of_way.fairseq_flags = [*others, *(["--missing-direction", way] if way else [])]
            _translate_and_score(of_way, data_bin)
    write_table(args.output)
    print((args.output / TABLE_MD).read_text(encoding="utf-8"), file=sys.stderr)
    print(args.output / TABLE_CSV)


def _translate_and_score(args: argparse.Namespace, zero_shot: Path | None = None) -> None:
    """With ``zero_shot``, of that data-bin, which is made of the given one's."""
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.commands import fixed_dictionary_in
    from neuron_spec.backends.fairseq.data_bin import files_of
    from neuron_spec.backends.fairseq.generation import Translator, require_heeded
    from neuron_spec.backends.fairseq.likelihood import Likelihoods
    from neuron_spec.corpora.binarize import sentences_in
    from neuron_spec.corpora.build import card_of, raw_texts
    from neuron_spec.scoring.evaluation import (
        LIKELIHOOD,
        add,
        claim_evaluation,
        evaluate,
        is_evaluated,
        with_sentences,
        without_additions,
    )
    from neuron_spec.scoring.metrics import Outputs
    from neuron_spec.scoring.zero_shot import require_same_beside

    data_bin = zero_shot or args.data_bin
    require_heeded(args.fairseq_flags)
    if args.likelihood and "--retain-dropout" in args.fairseq_flags:
        raise NeuronSpecError(
            "under dropout a likelihood is another one each time",
            got="--retain-dropout",
            mend="add --no-likelihood before the --",
        )
    comet = _comet(args)
    asked = Asked.read(
        args.path,
        data_bin,
        args.gen_subset,
        lang_pairs=args.lang_pairs,
        fixed_dictionary=fixed_dictionary_in(args.fairseq_flags),
    )
    directions = asked.directions
    raw = raw_texts(data_bin, args.gen_subset, directions) if args.references == "raw" else {}
    for direction, lines in raw.items():
        index = next(of for of in files_of(data_bin, args.gen_subset, [direction]) if of.suffix == ".idx")
        if any(len(of_side) != sentences_in(index) for of_side in lines):
            raise ArtifactError(
                "the raw text is not that of the data-bin",
                where=index,
                got=f"{' and '.join(str(len(of_side)) for of_side in lines)} lines of {direction} beside it",
                expected=f"{sentences_in(index)} sentences",
                mend="put the text back that was binarized, or score the data-bin's: --references data-bin",
            )
    if comet and not raw:
        comet.require_sources(directions, "score the raw text: leave out --references data-bin")
    lenpen = _length_penalty(args, asked)
    wanted = signature(
        "evaluate",
        inputs={
            **_of_model_and_text(asked, args.gen_subset, raw),
            **({"length penalty": lenpen.sha256} if lenpen else {}),
        },
        parameters={
            **asked.parameters,
            **_of_translating(args),
            **({"lenpen": lenpen.value} if lenpen else {}),
            **({LIKELIHOOD: True} if args.likelihood else {}),
            **({"comet": comet.name} if comet else {}),
            **({"zero_shot": True} if zero_shot else {}),
        },
    )
    if zero_shot:
        require_same_beside(args.output, wanted)
    if is_evaluated(args.output, wanted):
        return
    evaluation, likelihoods = _complete(args.output), None
    lacks_likelihood = args.likelihood and not (
        evaluation and evaluation.signature["parameters"].get(LIKELIHOOD)
    )
    if evaluation is None or lacks_likelihood:
        flags = [*_flags_of_fairseq(args), *(["--lenpen", str(lenpen.value)] if lenpen else [])]
        translator = Translator(args.path, data_bin, directions, args.gen_subset, flags)
        if lacks_likelihood:
            likelihoods = Likelihoods(asked, translator, flags=flags, max_tokens=args.max_tokens)
    if evaluation is None:
        card = card_of(data_bin) or {}
        identifier, note = _language_identifier(data_bin, card, directions)
        claim_evaluation(args.output, made_from := without_additions(wanted))
        outputs = []
        for direction, (hypotheses, references) in _translate(args, directions, translator).items():
            sources, references = raw.get(direction, (None, references))
            outputs.append(Outputs(direction, hypotheses, references, sources))
        evaluation = evaluate(
            outputs,
            signature=made_from,
            official=args.official_scoring,
            language_id=identifier,
            off_target_note=note,
            families=card.get("families"),
            tiers=card.get("tiers"),
        )
        _write(args.output, evaluation)
    if likelihoods:
        sentences = likelihoods.measure(evaluation.sentences, args.output)
        evaluation = with_sentences(evaluation, sentences, official=args.official_scoring)
        evaluation = add(args.output, evaluation, wanted, LIKELIHOOD)
    _add_comet(args, comet, evaluation, wanted)


def _complete(folder: Path) -> Evaluation | None:
    """The evaluation that a folder holds, if it is complete but for what is to be added."""
    from neuron_spec.scoring.evaluation import read_evaluation

    return read_evaluation(folder) if (folder / SCORES_JSON).is_file() else None


def _write(output: Path, evaluation: Evaluation) -> None:
    from neuron_spec.scoring.evaluation import family_in, write_evaluation
    from neuron_spec.scoring.metrics import say_words_not_found

    foreign = {of.direction.foreign: of.direction for of in evaluation.scores if of.direction.foreign}
    say_words_not_found(evaluation.outputs)
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


def _of_model_and_text(
    asked: Asked, subset: str, raw: Mapping[Direction, tuple[Sequence[str], Sequence[str]]]
) -> dict[str, str]:
    """Inputs of a signature."""
    lines = (line for _, references in raw.values() for line in references)
    return {
        "checkpoint": asked.checkpoint_sha256,
        "masks": asked.masks_sha256,
        "data": asked.data_sha256(subset),
        "references": hash_text(*lines) if raw else "data-bin",
    }


def _of_translating(args: argparse.Namespace) -> dict[str, Any]:
    """Parameters of a signature."""
    return {
        "beam": args.beam,
        "references": args.references,
        "official_scoring": args.official_scoring,
        "fairseq_flags": args.fairseq_flags,
        **({} if args.dtype == "fp32" else {"dtype": args.dtype}),
    }


def _flags_of_fairseq(args: argparse.Namespace) -> list[str]:
    flags = ["--beam", str(args.beam), "--max-tokens", str(args.max_tokens), *["--cpu"] * args.cpu]
    return [*flags, *([] if args.dtype == "fp32" else [f"--{args.dtype}"]), *args.fairseq_flags]


def _translate(
    args: argparse.Namespace, directions: Sequence[Direction], translator: Translator
) -> dict[Direction, tuple[list[str], list[str]]]:
    """Hypotheses and the data-bin's references; directions translated before a kill are read back."""
    texts = {}
    for direction in directions:
        path = args.output / HYPOTHESES / f"{direction}.txt"
        if not path.is_file():
            write_text(path, "".join(f"{line}\n" for line in translator.translate(direction)))
        references = translator.references(direction) if args.references == "data-bin" else []
        texts[direction] = read_lines(path), references
    return texts


def _length_penalty(args: argparse.Namespace, asked: Asked) -> LengthPenalty | None:
    """That chosen by validation text, now or before; None: what fairseq's flags say."""
    from neuron_spec.backends.fairseq.data_bin import data_sha256
    from neuron_spec.backends.fairseq.tuning import choose_length_penalty
    from neuron_spec.corpora.build import raw_texts
    from neuron_spec.scoring.length_penalty import LENPEN_JSON, LengthPenalty

    if not args.tune_lenpen and (args.tune_subset or args.tune_sentences):
        raise NeuronSpecError(
            "nothing is chosen by validation text",
            got="--tune-subset" if args.tune_subset else "--tune-sentences",
            mend="add --tune-lenpen, or leave it out",
        )
    if not (args.tune_lenpen or args.lenpen_from):
        return None
    given = [flag for flag in args.fairseq_flags if flag.partition("=")[0] in ("--lenpen", "--unnormalized")]
    if given:
        raise NeuronSpecError(
            "two length penalties",
            got=f"{'--tune-lenpen' if args.tune_lenpen else '--lenpen-from'} and {', '.join(given)}",
            mend="leave out one of the two",
        )
    if args.lenpen_from:
        chosen = LengthPenalty.read(args.lenpen_from)
        made = chosen.signature["parameters"]
        of_tuning = data_sha256(args.data_bin, made["subset"], parse_directions(made["directions"]))
        chosen.require_same(args.beam, of_tuning, where=args.lenpen_from)
        return chosen
    subset, sentences = args.tune_subset or "valid", args.tune_sentences or 200
    if subset == args.gen_subset:
        raise NeuronSpecError(
            "a length penalty chosen by the text that is scored",
            got=f"--tune-subset {subset}, which is --gen-subset",
            expected="validation text",
        )
    asked = asked.of_text(subset)
    raw = raw_texts(args.data_bin, subset, asked.directions) if args.references == "raw" else {}
    wanted = signature(
        "lenpen",
        inputs=_of_model_and_text(asked, subset, raw),
        parameters={**asked.parameters, **_of_translating(args), "sentences": sentences},
    )
    path = args.output / LENPEN_JSON
    if not completed(path, wanted, what="length penalty", quiet=True):
        # Before any work: translations by fairseq's own penalty are another evaluation's.
        here = signature_in(args.output / SIGNATURE, "signature of an evaluation") or {}
        if here and "lenpen" not in here.get("parameters", {}):
            raise ArtifactError(
                "another evaluation is already here",
                where=args.output,
                got="no chosen length penalty",
                expected="one chosen by --tune-lenpen",
                mend="name another --output, or delete what is there",
            )
        references = {direction: lines for direction, (_, lines) in raw.items()}
        flags = _flags_of_fairseq(args)
        chosen = choose_length_penalty(
            asked, references, flags=flags, sentences=sentences, official=args.official_scoring,
            signature=wanted,
        )  # fmt: skip
        chosen.write(path)
        chosen.say()
    return LengthPenalty.read(path)


def _comet(args: argparse.Namespace) -> Comet | None:
    from neuron_spec.scoring.comet import Comet

    if args.comet:
        return Comet.find(args.comet, args.comet_program, cpu=args.cpu)
    if args.comet_program:
        raise NeuronSpecError(
            "COMET with which model?",
            got=f"--comet-program {args.comet_program} alone",
            mend="add --comet MODEL, such as Unbabel/wmt22-comet-da",
        )
    return None


def _add_comet(
    args: argparse.Namespace, comet: Comet | None, evaluation: Evaluation, wanted: Mapping[str, Any]
) -> None:
    from neuron_spec.scoring.endpoints import COMET, SentenceScores
    from neuron_spec.scoring.evaluation import add, with_sentences
    from neuron_spec.scoring.metrics import detokenized

    if comet is None or evaluation.signature["parameters"].get(COMET.key):
        return
    texts = [detokenized(of) if args.official_scoring else of for of in evaluation.outputs]
    sentences = dict(evaluation.sentences)
    for direction, scores in comet.score(texts).items():
        sentences[direction] = replace(sentences.get(direction, SentenceScores()), comet=scores)
    evaluation = with_sentences(evaluation, sentences, official=args.official_scoring)
    add(args.output, evaluation, wanted, COMET.key, **comet.versions)
