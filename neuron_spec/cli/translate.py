"""Translate lines of text, in their order, by a checkpoint or by what neuron-spec export made of one.

A line is translated as it is; a blank one stays blank. Without --direction each other line says its own: en-de<TAB>text. Lines
are checked before any is translated, and one that the model could not read whole is refused, never cut.

examples:
  echo "The light is on." | neuron-spec translate --path checkpoint.pt --direction en-de
  neuron-spec translate --path exported --direction en-de --input text.en --output text.de
  neuron-spec translate --hf facebook/nllb-200-distilled-600M --delta de.delta.safetensors \\
    --direction eng_Latn-deu_Latn --input text.eng --output text.deu
  printf 'en-de\\tThe light is on.\\nde-en\\tDas Licht ist an.\\n' | neuron-spec translate --path exported --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_spec.arguments import (
    MISSING_DIRECTION,
    STRONGEST,
    add_beam,
    add_missing_direction,
    add_text_resources,
    input_file,
    output_file,
    real_number,
    whole_number,
)
from neuron_spec.backends.ctranslate2 import require_ctranslate2
from neuron_spec.directions import Direction, did_you_mean
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError, some
from neuron_spec.export.folder import (
    CHECKPOINT,
    EXPORT_JSON,
    PIECES,
    Hypothesis,
    Pieces,
    Search,
    exports_in,
    joined,
)

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.generation import Translator

_COMPOSE = (
    "a direction without masks is translated through those of others, --missing-direction compose, or through all "
    "neurons, --missing-direction dense"
)
_RUN = ("ctranslate2", "fairseq")  # formats that can be run here
_NOT_OF_HUGGINGFACE = {"data_bin", "spm", "missing_direction", "max_len_a", "max_len_b"}
_DATA_BIN_AND_MASKS = {"data_bin": "--data-bin", "missing_direction": "--missing-direction"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = Search()
    not_negative = real_number(lambda x: 0 <= x <= STRONGEST, f"a number from 0 to {STRONGEST}")
    parser.add_argument(
        "--path",
        type=Path,
        metavar="PATH",
        help="a checkpoint, the folder of an export, or one that holds several",
    )
    parser.add_argument(
        "--hf", metavar="MODEL", help="in place of --path: a model of Hugging Face, its folder or name"
    )
    parser.add_argument(
        "--delta",
        nargs="+",
        default=[],
        type=input_file("delta"),
        metavar="FILE",
        help="with --hf: deltas, one of which has to be of --direction",
    )
    parser.add_argument(
        "--direction",
        type=Direction.parse,
        metavar="en-de",
        help="of all lines; without it, each names its own; --hf needs it",
    )
    parser.add_argument(
        "--input",
        type=input_file("text"),
        metavar="FILE",
        help="UTF-8, a sentence a line (default: standard input)",
    )
    parser.add_argument("--output", type=output_file, metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--json",
        action="store_true",
        help="a JSON object a line: direction, source, translation, and, but for --hf, the score: nats a token at "
        "--lenpen 1",
    )
    add_text_resources(
        parser, spm="the SentencePiece model (default: the export's, or the one beside the data-bin)"
    )
    add_missing_direction(parser)
    add_beam(parser)
    parser.add_argument(
        "--lenpen",
        type=not_negative,
        default=defaults.lenpen,
        metavar="X",
        help="length penalty (default %(default)s)",
    )
    parser.add_argument(
        "--max-len-a",
        type=not_negative,
        default=defaults.max_len_a,
        metavar="A",
        help="translations have at most A x the source's tokens + B (default %(default)s)",
    )
    parser.add_argument(
        "--max-len-b",
        type=whole_number(1),
        default=defaults.max_len_b,
        metavar="B",
        help="default %(default)s",
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(1),
        default=defaults.max_tokens,
        metavar="N",
        help="source tokens per batch, of one sentence at least (default %(default)s)",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import require_file

    if (args.path is None) == (args.hf is None):
        raise NeuronSpecError(
            "a model to translate with",
            got="--path and --hf" if args.hf else "none",
            expected="--path PATH, or --hf MODEL",
        )
    if args.path is not None and not args.path.is_dir():
        require_file(args.path, "checkpoint, or folder of exports,")
    if args.output and args.output.exists():
        raise ArtifactError("something is already here", where=args.output, mend="name another --output")
    if args.hf is not None:
        return _write(args, _by_huggingface(args))
    if args.delta:
        raise NeuronSpecError("deltas are of models of Hugging Face", got="--delta", expected="--hf MODEL")
    source: _Exports | _Checkpoint = _Exports(args) if args.path.is_dir() else _Checkpoint(args)
    lines = _directed(_read(args.input), args.direction or source.only, source.known, source.composable)
    asked = list(dict.fromkeys(direction for direction, text in lines if direction and text.strip()))
    pieces = source.segmented(lines, asked)
    found: dict[int, Hypothesis] = {}
    for direction in asked:
        numbers = [n for n, (of, _) in enumerate(lines) if of == direction and pieces[n]]
        hypotheses = source.translated(direction, [pieces[n] for n in numbers])
        found |= zip(numbers, hypotheses, strict=True)
    out = "".join(
        f"{_written(direction, text, found.get(n), as_json=args.json)}\n"
        for n, (direction, text) in enumerate(lines)
    )
    _write(args, out)


def _write(args: argparse.Namespace, out: str) -> None:
    from neuron_spec.artifacts import write_text

    if args.output:
        write_text(args.output, out)
    else:
        sys.stdout.write(out)


def _by_huggingface(args: argparse.Namespace) -> str:
    """The translations of all lines.

    Raises:
        NeuronSpecError: if no direction is given, or a flag is, which is not heeded.
    """
    if args.direction is None:
        raise NeuronSpecError("no direction", where="--hf", expected="--direction, by the tokenizer's codes")
    if unheeded := sorted(args.given() & _NOT_OF_HUGGINGFACE):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unheeded)
        raise NeuronSpecError("flags that --hf does not heed", got=flags, mend="leave them out")
    from neuron_spec.backends.huggingface import translate
    from neuron_spec.backends.huggingface.deltas import load_deltas
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer

    lines = _read(args.input)
    model, tokenizer = load_model(args.hf, cpu=args.cpu), load_tokenizer(args.hf)
    load_deltas(model, args.delta, [args.direction])
    one, tokens = args.direction, {"max_tokens": args.max_tokens} if "max_tokens" in args.given() else {}
    found = translate(
        model, tokenizer, lines, one.source, one.target, beam=args.beam, lenpen=args.lenpen, **tokens
    )
    if not args.json:
        return "".join(f"{line}\n" for line in found)
    values = [
        {"direction": str(one), "source": line, "translation": to}
        for line, to in zip(lines, found, strict=True)
    ]
    return "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)


def _written(direction: Direction | None, text: str, found: Hypothesis | None, *, as_json: bool) -> str:
    translation = joined(found.tokens) if found else ""
    if not as_json:
        return translation
    score = None if found is None or found.score is None else round(found.score, 6)
    values = {
        "direction": str(direction) if direction else None,
        "source": text,
        "translation": translation,
        "score": score,
    }
    return json.dumps(values, ensure_ascii=False)


# Lines -----------------------------------------------------------------------------------------


def _read(file: Path | None) -> list[str]:
    from neuron_spec.corpora.checks import decoded_text

    if file is None and sys.stdin is None:
        raise ArtifactError("standard input is closed", mend="name a text: --input FILE")
    content = file.read_bytes() if file else sys.stdin.buffer.read()
    text = decoded_text(content, where=file or "standard input", mend="convert it to UTF-8")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _directed(
    lines: Sequence[str],
    direction: Direction | None,
    known: Sequence[Direction],
    composable: Sequence[Direction] = (),
) -> list[tuple[Direction | None, str]]:
    """The direction and text of each line; a blank one need not name a direction.

    Raises:
        DirectionError: if one names none, or none that is known.
    """
    if direction is not None:
        if direction not in known:
            raise DirectionError(
                "no such direction here",
                got=str(direction),
                expected=some([*map(str, known)], at_most=40),
                mend=_COMPOSE if direction in composable else did_you_mean(direction, known),
            )
        return [(direction, line) for line in lines]
    by_name = {str(of): of for of in known}
    without_masks = {str(of) for of in composable}
    directed: list[tuple[Direction | None, str]] = []
    bad, mend = (
        [],
        f"if all lines are of one direction, name it: --direction {known[0]}; a folder of exports ",
    )
    mend += "knows the directions that were exported"
    for number, line in enumerate(lines, start=1):
        name, tab, text = line.partition("\t")
        if tab and name in by_name:
            directed.append((by_name[name], text))
        elif not line.strip():
            directed.append((None, line))
        else:
            mend = _COMPOSE if tab and name in without_masks else mend
            bad.append(
                f"line {number}: {f'direction {name!r}' if tab else f'{line[:30]!r}, which has no tab'}"
            )
    if bad:
        raise DirectionError(
            "lines whose direction is not known",
            got=some(bad, between="; "),
            expected=f"{known[0]}<TAB>text, with one of {some([*map(str, known)], at_most=40)}",
            mend=mend,
        )
    return directed


# Models ----------------------------------------------------------------------------------------


class _Source:
    """What lines are translated by.

    Attributes:
        known: the directions that it translates.
        composable: further directions, whose languages it knows, that `--missing-direction` would add.
        only: the direction of lines that name none; None: they have to.
    """

    known: Sequence[Direction]
    composable: Sequence[Direction] = ()
    only: Direction | None = None

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        names = {field.name for field in fields(Search)}
        self.search = Search(**{name: value for name, value in vars(args).items() if name in names})

    def segmented(
        self, lines: Sequence[tuple[Direction | None, str]], asked: Sequence[Direction]
    ) -> list[list[str]]:
        """The pieces of each line, none of a blank one.

        Raises:
            NeuronSpecError: if one has more than its model takes.
        """
        ways = {direction: (self.pieces(direction), self.max_source_tokens(direction)) for direction in asked}
        segmented, bad = [], []
        for number, (direction, text) in enumerate(lines, start=1):
            pieces, most = ways[direction] if direction and text.strip() else (None, 0)
            segmented.append(pieces.of(text) if pieces else [])
            if len(segmented[-1]) > most:
                bad.append(f"line {number}: {len(segmented[-1])} pieces, of at most {most}")
        if bad:
            raise NeuronSpecError(
                "lines too long for the model's positions",
                got=some(bad, between="; "),
                mend="split them into sentences",
            )
        return segmented

    def pieces(self, direction: Direction) -> Pieces:
        raise NotImplementedError

    def max_source_tokens(self, direction: Direction) -> int:
        raise NotImplementedError

    def translated(self, direction: Direction, sentences: Sequence[Sequence[str]]) -> list[Hypothesis]:
        raise NotImplementedError

    def translator(self, asked: Asked) -> Translator:
        """fairseq, with a checkpoint."""
        from neuron_spec.backends.fairseq.generation import Translator

        flags = [*self.search.flags, "--missing-direction", self.args.missing_direction]
        flags += ["--cpu"] * self.args.cpu
        return Translator(asked.path, asked.data_bin, asked.directions, None, flags, asked=asked)


class _Exports(_Source):
    """A folder of exports, or one of them; neither needs the checkpoint."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self._folders = exports_in(args.path)
        if not self._folders:
            raise ArtifactError(
                "no export in the folder",
                where=args.path,
                expected=f"{EXPORT_JSON}, or folders with one",
                mend="make one with neuron-spec export, or name a checkpoint",
            )
        if others := {export.path for export in self._folders.values() if export.format not in _RUN}:
            raise NeuronSpecError(
                "weights as safetensors are for programs of your own",
                where=min(others),
                mend="export it with --format ctranslate2 or fairseq, or name the checkpoint",
            )
        if unheeded := sorted(_DATA_BIN_AND_MASKS[name] for name in args.given() & {*_DATA_BIN_AND_MASKS}):
            raise NeuronSpecError(
                "flags that are of checkpoints", got=", ".join(unheeded), mend="leave them out"
            )
        self.known = list(self._folders)
        if (args.path / EXPORT_JSON).is_file():
            self.only = self.known[0]

    def pieces(self, direction: Direction) -> Pieces:
        folder = self._folders[direction]
        folder.require_whole()
        if self.args.spm:
            return Pieces(self.args.spm, known=folder.source_symbols)
        file = folder.path / PIECES
        if not file.is_file():
            raise ArtifactError(
                "the export has no SentencePiece model",
                where=file.parent,
                mend="name the one of training (NLLB's and M2M-100's is on their hub page, sentencepiece.bpe.model): "
                "--spm FILE",
            )
        return Pieces(file)

    def max_source_tokens(self, direction: Direction) -> int:
        return self._folders[direction].max_source_tokens

    def translated(self, direction: Direction, sentences: Sequence[Sequence[str]]) -> list[Hypothesis]:
        folder = self._folders[direction]
        if folder.format == "fairseq":
            from neuron_spec.backends.fairseq.asked import Asked

            asked = Asked.read(folder.path / CHECKPOINT, folder.path, lang_pairs=[direction])
            translator = self.translator(asked)
            return translator.translate_pieces(direction, sentences)
        require_ctranslate2()
        from neuron_spec.backends.ctranslate2.translation import CTranslate2Translator

        scores, cpu = self.args.json, self.args.cpu
        return CTranslate2Translator(folder, self.search, scores=scores, cpu=cpu).translate_pieces(sentences)


class _Checkpoint(_Source):
    """A checkpoint, run by fairseq."""

    def __init__(self, args: argparse.Namespace) -> None:
        from neuron_spec.backends.fairseq.asked import Asked
        from neuron_spec.backends.fairseq.checkpoints import masked_directions
        from neuron_spec.corpora.build import pieces_model

        super().__init__(args)
        self._asked = Asked.read(args.path, args.data_bin)
        langs = self._asked.langs
        everything = [Direction(s, t) for s in langs for t in langs if s != t]
        masked = masked_directions(self._asked.state, langs)
        if masked is None and args.missing_direction != MISSING_DIRECTION[0]:
            raise NeuronSpecError(
                "a dense checkpoint has no masks to compose",
                where=args.path,
                got=f"--missing-direction {args.missing_direction}",
                mend="leave it out",
            )
        self.known = everything
        if masked and args.missing_direction == MISSING_DIRECTION[0]:
            self.known = masked
            self.composable = [direction for direction in everything if direction not in masked]
        spm: Path | None = args.spm or pieces_model(self._asked.data_bin)
        if spm is None:
            raise ArtifactError(
                "no SentencePiece model beside the data-bin",
                where=self._asked.data_bin,
                mend="name the one that its text was segmented with: --spm FILE",
            )
        self._spm = spm

    def segmented(
        self, lines: Sequence[tuple[Direction | None, str]], asked: Sequence[Direction]
    ) -> list[list[str]]:
        if asked:
            self._translator = self.translator(replace(self._asked, directions=[*asked]))
            self._pieces = Pieces(self._spm, known=self._translator.symbols)
        return super().segmented(lines, asked)

    def pieces(self, direction: Direction) -> Pieces:
        return self._pieces

    def max_source_tokens(self, direction: Direction) -> int:
        return self._translator.max_source_tokens(direction)

    def translated(self, direction: Direction, sentences: Sequence[Sequence[str]]) -> list[Hypothesis]:
        return self._translator.translate_pieces(direction, sentences)
