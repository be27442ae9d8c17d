"""Average checkpoints, make one small enough to ship, check that a shipped one fits a corpus, read a specialized one
of the official code (global_weight, language_mask) into our form, or give one the tokens of further languages.

examples:
  neuron-spec checkpoint average --inputs RUN --num-update-checkpoints 5 --output averaged.pt
  neuron-spec checkpoint shrink --path RUN/checkpoint_last.pt --corpus CORPUS --output dense.pt
  neuron-spec checkpoint check dense.json --corpus CORPUS
  neuron-spec checkpoint import-official --path official.pt --output specialized.pt
  neuron-spec checkpoint add-language xx --path specialized.pt --output wider.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from neuron_spec.arguments import add_output_with_summary, input_file, input_folder, whole_number
from neuron_spec.errors import NeuronSpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    shrink = actions.add_parser("shrink", help="weights only, half precision; writes a signature beside it")
    shrink.add_argument(
        "--path",
        type=input_file("checkpoint"),
        required=True,
        metavar="FILE",
        help="a checkpoint of fairseq-train",
    )
    add_output_with_summary(shrink, mark="file_sha256")
    average = actions.add_parser(
        "average",
        help="the mean of several checkpoints' weights, as fairseq's script makes it; masks are kept",
    )
    average.add_argument(
        "--inputs",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="checkpoints of one training, or its folder; flags are the first's, or the last of the folder's",
    )
    add_output_with_summary(average)
    number = average.add_mutually_exclusive_group()
    number.add_argument(
        "--num-epoch-checkpoints", type=whole_number(2), metavar="N", help="of a folder, the last N of epochs"
    )
    number.add_argument(
        "--num-update-checkpoints",
        type=whole_number(2),
        metavar="N",
        help="of a folder, the last N inside epochs",
    )
    number.add_argument(
        "--num-best-checkpoints",
        type=whole_number(2),
        metavar="N",
        help="of a folder, the best N on validation (fairseq-train --keep-best-checkpoints N)",
    )
    average.add_argument(
        "--checkpoint-upper-bound",
        type=whole_number(1),
        metavar="N",
        help="no epoch, or update, after this one",
    )
    official = actions.add_parser("import-official", help="a specialized checkpoint of the official code")
    official.add_argument(
        "--path", type=input_file("checkpoint"), required=True, metavar="FILE", help="of the official code"
    )
    add_output_with_summary(official)
    official.add_argument(
        "--masks",
        type=input_file("mask file"),
        metavar="FILE",
        help="masks.safetensors, for one that was saved without (see neuron-spec masks import-official)",
    )
    language = actions.add_parser(
        "add-language",
        help="further languages, which the checkpoint's --langs do not have: a row of the embeddings each",
    )
    language.add_argument(
        "langs", metavar="xx,yy", help="their codes; they come after the others, in this order"
    )
    language.add_argument(
        "--path", type=input_file("checkpoint"), required=True, metavar="FILE", help="dense or specialized"
    )
    add_output_with_summary(language)
    language.add_argument(
        "--data-bin",
        type=input_folder("data-bin"),
        metavar="DIR",
        help="for its dictionaries (default: the one that the checkpoint was trained on)",
    )
    check = actions.add_parser(
        "check", help="is a shipped checkpoint whole, and this corpus the one it knows?"
    )
    check.add_argument("signature", type=Path, help="the .json beside the checkpoint")
    for action in (shrink, check):
        action.add_argument(
            "--corpus", type=Path, required=True, metavar="DIR", help="the corpus it was trained on"
        )


def run(args: argparse.Namespace) -> None:
    if args.action == "average":
        _average(args)
        return
    if args.action == "import-official":
        from neuron_spec.backends.fairseq.official import import_checkpoint
        from neuron_spec.neurons.masks import NeuronMasks

        import_checkpoint(args.path, args.output, NeuronMasks.load(args.masks) if args.masks else None)
        print(args.output)
        return
    if args.action == "add-language":
        from neuron_spec.backends.fairseq.growing import add_languages

        add_languages(args.path, args.langs.split(","), args.output, args.data_bin)
        print(args.output)
        return
    from neuron_spec.backends.fairseq import shipping

    if args.action == "shrink":
        shipping.shrink(args.path, args.corpus, args.output)
        print(args.output)
    else:
        shipping.check(args.signature, args.corpus)
        print(args.signature.with_suffix(".pt"))


def _average(args: argparse.Namespace) -> None:
    numbers = {kind: getattr(args, f"num_{kind}_checkpoints") for kind in ("epoch", "update", "best")}
    kind = next((kind for kind, number in numbers.items() if number), None)
    is_folder = len(args.inputs) == 1 and args.inputs[0].is_dir()
    if is_folder != bool(kind) or (args.checkpoint_upper_bound and kind in (None, "best")):
        raise NeuronSpecError(
            "which checkpoints are to be averaged?",
            got=", ".join(map(str, args.inputs)),
            expected="files, or one folder with --num-epoch-checkpoints N or --num-update-checkpoints N, either with "
            "or without --checkpoint-upper-bound, or --num-best-checkpoints N",
        )
    from neuron_spec.backends.fairseq.averaging import average, chosen_checkpoints

    paths = args.inputs
    if kind:
        paths = chosen_checkpoints(paths[0], numbers[kind], kind, args.checkpoint_upper_bound)
    average(paths, args.output)
    print(args.output)
