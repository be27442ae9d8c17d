"""Directions of a checkpoint as models of their own, without masks: dropped neurons are gone, what they emit is folded
into a bias, and translations are the same. Each is a folder, OUTPUT/en-de, with all that translating needs.

  ctranslate2  for CTranslate2 (pip install 'neuron_spec[export]'): the fastest; layers keep their own widths
  fairseq      a checkpoint that stock fairseq runs, without --user-dir; layers are padded to the widest of their side
  safetensors  the weights, and JSON that describes them, for programs of your own

examples:
  neuron-spec export --path checkpoint.pt --direction en-de --format ctranslate2 --output exported
  neuron-spec export --path checkpoint.pt --all --format ctranslate2 --quantization int8 --output exported
  neuron-spec export --hf FOLDER --direction eng_Latn-deu_Latn --format ctranslate2 --output exported
  neuron-spec export --hf MODEL --delta deltas/*.safetensors --all --format ctranslate2 --output exported
  neuron-spec translate --path exported --direction en-de < text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.arguments import (
    add_missing_direction,
    add_text_resources,
    directions_flag,
    input_file,
    output_folder,
)
from neuron_spec.errors import NeuronSpecError
from neuron_spec.export.folder import (
    EXPORT_JSON,
    FORMATS,
    PIECES,
    QUANTIZATIONS,
    ExportFolder,
)

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.exporting import Exporter
    from neuron_spec.directions import Direction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--path", type=input_file("checkpoint"), metavar="FILE", help="the checkpoint, specialized or dense"
    )
    model.add_argument(
        "--hf",
        metavar="MODEL",
        help="a model of Hugging Face: a folder, its masks beside the weights if it has some, or a name",
    )
    parser.add_argument(
        "--delta",
        nargs="+",
        default=[],
        type=input_file("delta"),
        metavar="FILE",
        help="with --hf: deltas that are merged, each into its own direction's export",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--direction", type=directions_flag, metavar="en-de,...", help="one, or several")
    which.add_argument("--all", action="store_true", help="every direction that it was trained on")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--output", type=output_folder, required=True, metavar="DIR", help="where each direction has a folder"
    )
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="of weights, for CTranslate2 (default float32); with int8 translations differ slightly",
    )
    add_text_resources(
        parser, spm="the SentencePiece model, which is copied (default: the one beside the data-bin)"
    )
    add_missing_direction(parser)


def run(args: argparse.Namespace) -> None:
    if args.quantization and args.format != "ctranslate2":
        raise NeuronSpecError(
            "weights are quantized for CTranslate2 alone",
            got=f"--quantization {args.quantization} with --format {args.format}",
            mend="leave it out, or choose --format ctranslate2",
        )
    if args.format == "ctranslate2":
        from neuron_spec.backends.ctranslate2 import require_ctranslate2

        require_ctranslate2()
    if args.hf:
        _of_huggingface(args)
    elif args.delta:
        raise NeuronSpecError("deltas are of models of Hugging Face", got="--delta", expected="--hf MODEL")
    else:
        _of_fairseq(args)


def _of_huggingface(args: argparse.Namespace) -> None:
    if unheeded := sorted(args.given() & {"data_bin", "missing_direction"}):
        raise NeuronSpecError(
            "flags of a checkpoint of fairseq's",
            got=", ".join(f"--{name.replace('_', '-')}" for name in unheeded),
            mend="leave them out with --hf",
        )
    if args.format == "fairseq":
        raise NeuronSpecError(
            "a model of Hugging Face is no checkpoint for fairseq",
            got="--format fairseq",
            expected="--format ctranslate2 or safetensors",
        )
    from neuron_spec.backends.huggingface.deltas import load_deltas
    from neuron_spec.backends.huggingface.exporting import export
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer
    from neuron_spec.backends.huggingface.specialization import specialization_of
    from neuron_spec.directions import parse_directions

    model, tokenizer = load_model(args.hf, cpu=True), load_tokenizer(args.hf)
    asked = None if args.all else parse_directions(args.direction)
    load_deltas(model, args.delta, asked)
    state = specialization_of(model)
    if args.all and state is None:
        raise NeuronSpecError(
            "a model without masks or deltas does not say its directions",
            got="--all",
            mend="name them with --direction",
        )
    directions = state.directions if asked is None and state else asked or []
    folders = {direction: args.output / str(direction) for direction in directions}
    for direction, folder in folders.items():
        export(
            model,
            tokenizer,
            direction,
            folder,
            format=args.format,
            quantization=args.quantization,
            spm=args.spm,
        )
    if not all((folder / PIECES).is_file() for folder in folders.values()):
        print(f"no {PIECES} beside the tokenizer: to translate text, name one with --spm", file=sys.stderr)
    print(_table(folders), file=sys.stderr)
    print("\n".join(map(str, folders.values())))


def _of_fairseq(args: argparse.Namespace) -> None:
    from neuron_spec.artifacts import completed, require_vacant
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.exporting import Exporter
    from neuron_spec.corpora.build import pieces_model

    asked = Asked.read(args.path, args.data_bin, lang_pairs=args.direction)
    spm = args.spm or pieces_model(asked.data_bin)
    if spm is None:
        print(f"no {PIECES} beside {asked.data_bin}: to translate text, name one with --spm", file=sys.stderr)
    signatures = {direction: _signature(args, asked, direction, spm) for direction in asked.directions}
    folders = {direction: args.output / str(direction) for direction in asked.directions}
    missing = []
    for direction, folder in folders.items():
        if completed(folder / EXPORT_JSON, signatures[direction], what="export", where=folder):
            ExportFolder.read(folder).require_whole()
        else:
            require_vacant(folder)
            missing.append(direction)
    if missing:
        exporter = Exporter(asked, args.missing_direction)
        if spm:
            exporter.require_pieces(spm)
        for direction in missing:
            _export(exporter, direction, folders[direction], args, spm, signatures[direction])
    print(_table(folders), file=sys.stderr)
    if args.format == "fairseq":
        from neuron_spec.artifacts import shown_command
        from neuron_spec.backends.fairseq.exporting import stock_command

        for of_direction in folders.items():
            print(shown_command(stock_command(asked, *of_direction)), file=sys.stderr)
    print("\n".join(map(str, folders.values())))


def _signature(
    args: argparse.Namespace, asked: Asked, direction: Direction, spm: Path | None
) -> dict[str, Any]:
    from neuron_spec.artifacts import hash_file, hash_text, signature
    from neuron_spec.backends.fairseq.checkpoints import flags_of
    from neuron_spec.backends.fairseq.exporting import dictionary_files
    from neuron_spec.backends.fairseq.language_tokens import LanguageTokens

    return signature(
        "export",
        inputs={
            "checkpoint": asked.checkpoint_sha256,
            "checkpoint's masks": asked.masks_sha256,
            "dictionaries": hash_text(*map(hash_file, dictionary_files(asked, direction))),
            "SentencePiece model": hash_file(spm) if spm else "none",
        },
        parameters={
            "direction": str(direction),
            "format": args.format,
            "missing_direction": args.missing_direction,
            # In the checkpoint, beside the weights.
            "dropped_neurons": flags_of(asked.state, "model").get("dropped_neurons", "bias"),
            "tokens": LanguageTokens.of(asked.trained).flags,
            **(
                {"quantization": args.quantization or QUANTIZATIONS[0]}
                if args.format == "ctranslate2"
                else {}
            ),
        },
    )


def _export(
    exporter: Exporter,
    direction: Direction,
    folder: Path,
    args: argparse.Namespace,
    spm: Path | None,
    signed: dict[str, Any],
) -> None:
    """A direction's folder, complete or not there."""
    from functools import partial

    from neuron_spec.backends.ctranslate2.writing import writer
    from neuron_spec.export.direction_model import write_folder

    model = exporter.direction_model(direction)
    write = (
        partial(exporter.write, model)
        if args.format == "fairseq"
        else writer(model, args.format, args.quantization)
    )
    write_folder(model, folder, write, format=args.format, spm=spm, signed=signed)


def _table(folders: dict[Direction, Path]) -> str:
    """What is kept, and how large it is."""
    from neuron_spec.artifacts import read_json

    rows = [("direction", "neurons kept", "parameters", "MB")]
    for direction, folder in folders.items():
        said = read_json(folder / EXPORT_JSON, "export")
        kept, of = (sum(layer[key] for layer in said["neurons"].values()) for key in ("kept", "of"))
        size = sum(file.stat().st_size for file in folder.iterdir())
        rows.append((str(direction), f"{kept} of {of}", f"{said['parameters']:,}", f"{size / 1e6:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
