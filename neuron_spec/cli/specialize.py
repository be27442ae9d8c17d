"""Go on training from a dense checkpoint, each direction through its own neurons; or without masks, the control. Or from a
specialized one, with masks of more directions that leave its own as they are (neuron-spec masks add).

What the checkpoint knows is read from it: architecture and sizes, languages and language tokens, dictionary, and how it
was trained. Flags of fairseq-train win, from --config and then from after --, and are refused where they contradict
what the checkpoint is. The optimizer begins anew. The fairseq-train line is printed, and run. Run the command again
to resume; what is complete is skipped.

examples:
  neuron-spec specialize DATA_BIN --path dense.pt --masks masks.safetensors --save-dir RUN -- --max-update 2000 --lr 2e-4
  neuron-spec specialize DATA_BIN --path dense.pt --masks none --save-dir CONTROL -- --max-update 2000 --lr 2e-4
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_spec.arguments import add_lang_pairs, input_file, input_folder, output_folder
from neuron_spec.errors import ModelError, NeuronSpecError

if TYPE_CHECKING:
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.neurons.masks import NeuronMasks

_NONE = Path("none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data_bin",
        type=input_folder("data-bin"),
        help="fairseq data-bin, or the folder of its shard0, shard1, ...",
    )
    parser.add_argument(
        "--path",
        type=input_file("checkpoint"),
        required=True,
        metavar="FILE",
        help="the checkpoint to start from",
    )
    parser.add_argument(
        "--masks",
        type=lambda text: _NONE if text == str(_NONE) else input_file("masks")(text),
        required=True,
        metavar="FILE|none",
        help="from neuron-spec select; none: dense continuation, the same without masks",
    )
    parser.add_argument(
        "--save-dir", type=output_folder, required=True, metavar="DIR", help="where checkpoints go"
    )
    add_lang_pairs(
        parser,
        "which directions (default: those of the masks; without masks, those the checkpoint was trained on)",
    )
    parser.add_argument(
        "--config",
        type=input_file("config file"),
        metavar="FILE",
        help="a YAML file whose keys are flags of fairseq-train",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the fairseq-train line, and end"
    )


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from neuron_spec import models as models  # registers, as tasks do
    from neuron_spec import tasks as tasks
    from neuron_spec.artifacts import USER_DIR, shown_command, training_mark, write_text
    from neuron_spec.backends.fairseq.asked import Asked
    from neuron_spec.backends.fairseq.commands import fixed_dictionary_in, train
    from neuron_spec.backends.fairseq.config import keep_config, read_flags
    from neuron_spec.backends.fairseq.continuation import COMMAND, continued_flags
    from neuron_spec.backends.fairseq.data_bin import shards_of
    from neuron_spec.neurons.masks import NeuronMasks
    from neuron_spec.shared import PACKAGE
    from neuron_spec.tasks.neuron_specialization import NeuronSpecializationTask

    if args.path.resolve().parent == args.save_dir.resolve():
        raise NeuronSpecError(
            "a training would go on from what is in its folder, and write over the checkpoint that it begins from",
            where=args.path,
            got=f"--save-dir {args.save_dir}",
            mend="name another --save-dir; to resume, name the checkpoint that the training began from",
        )
    masks: NeuronMasks | None = None if args.masks == _NONE else NeuronMasks.load(args.masks)
    given = [
        *(read_flags(args.config, _processes(args.fairseq_flags)) if args.config else ()),
        *args.fairseq_flags,
    ]
    asked = Asked.read(
        args.path,
        args.data_bin,
        *() if shards_of(args.data_bin) else ("train",),
        lang_pairs=args.lang_pairs or (masks.directions if masks else None),
        fixed_dictionary=fixed_dictionary_in(given),
        through_masks=masks is not None,
    )
    if asked.is_specialized:
        _require_its_masks(asked, masks, args.masks)
    flags, everything = continued_flags(asked, given)
    if not everything.disable_validation:
        asked = asked.of_text(*everything.valid_subset.split(","))
    if masks:
        of_masks = [d for d in asked.directions if d in masks.directions]
        looked_at = asked if everything.missing_direction == "error" else replace(asked, directions=of_masks)
        looked_at.require_masks(masks, args.masks, allow_other_checkpoint=everything.allow_other_checkpoint)

    data = os.pathsep.join(map(str, shards_of(args.data_bin) or [args.data_bin]))
    task = NeuronSpecializationTask.setup_task(argparse.Namespace(**{**vars(everything), "data": data}))
    asked.require_dictionary(task.source_dictionary.symbols, task.target_dictionary.symbols, masks)

    words = [
        *(COMMAND, data),
        *("--user-dir", USER_DIR, *flags, "--lang-pairs", ",".join(asked.names)),
        *("--finetune-from-model", str(args.path)),
        *(("--neuron-masks", str(args.masks)) if masks else ()),
        *("--save-dir", str(args.save_dir), "--no-epoch-checkpoints", *given),
    ]
    print(shown_command(words), flush=True)
    if args.dry_run:
        return
    inputs = [args.path, *([args.masks] if masks else [])]
    mark, made_from = training_mark(args.save_dir, words, inputs)
    if mark.is_file() and mark.read_text(encoding="utf-8") == made_from:
        print(f"{args.save_dir}: complete already", file=sys.stderr)
        return
    rank = _rank()
    if args.config:
        keep_config(args.config, args.save_dir)
    words[words.index(USER_DIR)] = str(PACKAGE)
    train([*words[1:], *rank])
    _require_updates(mark, made_from)
    write_text(mark, made_from)


def _require_updates(mark: Path, made_from: str) -> None:
    """Raises: NeuronSpecError if a training of other flags or inputs had ended here, and none of its checkpoints is newer."""
    last = max((path.stat().st_mtime_ns for path in mark.parent.glob("*.pt")), default=None)
    if last is None or not mark.is_file() or last > mark.stat().st_mtime_ns:
        return
    words, asked = (text.split() for text in (mark.read_text(encoding="utf-8"), made_from))
    if words != asked:
        raise NeuronSpecError(
            "another training is complete here, and no update was made",
            where=mark.parent,
            got=" ".join(word for word in asked if word not in words) or "fewer words",
            expected=" ".join(word for word in words if word not in asked) or "fewer words",
            mend="name another --save-dir, or delete what is there",
        )


def _require_its_masks(asked: Asked, masks: NeuronMasks | None, file: Path) -> None:
    """That a specialized checkpoint goes on with the masks that it carries, perhaps of more directions.

    Raises:
        ModelError: if it does not.
    """
    from neuron_spec.backends.fairseq.checkpoints import carried_masks

    carried = carried_masks(asked.state, asked.langs)
    if masks is None or carried is None:
        raise ModelError(
            "a training begins from a dense checkpoint, and this one carries masks",
            where=asked.path,
            mend="name the dense checkpoint, also to resume: run the same command again; or masks that have the "
            "checkpoint's as they are, and more directions (neuron-spec masks add)",
        )
    if differing := masks.differing(carried):
        raise ModelError(
            "a specialized checkpoint goes on with its own masks, and these are others",
            where=file,
            got=f"other masks of {', '.join(differing)}",
            expected="those of the checkpoint, and perhaps of more directions",
            mend="add directions with neuron-spec masks add, or start from the dense checkpoint",
        )


def _processes(flags: list[str]) -> int:
    """How many train together, over all nodes: as torchrun says, or the flags, or one on each GPU here."""
    import torch

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed-world-size", type=int)
    named = parser.parse_known_args(flags)[0].distributed_world_size
    return int(os.environ.get("WORLD_SIZE") or named or max(1, torch.cuda.device_count()))


def _rank() -> list[str]:
    """Which of the processes this is, for fairseq, which asks torchrun's variables only where each node has many GPUs."""
    # In a SLURM job of one node fairseq would train on every GPU it sees, whatever it is told.
    for name in ("SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST"):
        os.environ.pop(name, None)
    if not (size := os.environ.get("WORLD_SIZE")):
        if (nodes := os.environ.get("SLURM_NNODES", "1")) != "1":
            raise NeuronSpecError(
                "a job of several nodes trains on all of them only where torchrun starts it",
                got=f"{nodes} nodes",
                mend="start the command through torchrun on each node, as docs/recipes.md shows",
            )
        return []
    return [
        *("--distributed-init-method", "env://", "--distributed-no-spawn", "--distributed-world-size", size),
        *("--distributed-rank", os.environ["RANK"], "--device-id", os.environ["LOCAL_RANK"]),
    ]
