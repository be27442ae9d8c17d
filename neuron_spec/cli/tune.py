"""Train a model of Hugging Face on parallel text: specialized neurons of all directions, or deltas of some.

  joint   the paper's stage 2: with --masks, a batch runs through its direction's neurons, which it alone updates, and
          all else is shared and moves; without masks everything does. OUTPUT is a model, with its masks beside it.
  delta   the model stays as it is, and each direction of the text adds to its own neurons alone; every other direction
          translates bit for bit as before. OUTPUT has a file for each: eng_Latn-deu_Latn.delta.safetensors.

losses.json, written last, has the loss of --valid before and after, for each of its directions: nats a target token
without the language token. Run again to go on after a kill. With several GPUs: torchrun --nproc-per-node N -m neuron_spec
tune ...

examples:
  neuron-spec tune --hf facebook/nllb-200-distilled-600M --mode delta --masks masks.safetensors \\
    --text eng_Latn-deu_Latn=train.eng,train.deu --lang-pairs eng_Latn-deu_Latn --valid text/dev --output deltas
  neuron-spec tune --hf facebook/nllb-200-distilled-600M --mode joint --masks masks.safetensors \\
    --text text/train --valid text/dev --temperature 2 --output specialized --bf16
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from neuron_spec.arguments import input_file, learning_rate, output_folder, real_number, whole_number
from neuron_spec.errors import NeuronSpecError, in_file

LOSSES = "losses.json"
DTYPES = ("fp32", "bf16", "fp16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number = whole_number(1)
    parser.add_argument("--hf", required=True, metavar="MODEL", help="the folder or name of a model")
    parser.add_argument(
        "--mode", choices=("joint", "delta"), required=True, help="what is trained: see above"
    )
    parser.add_argument(
        "--masks", type=input_file("mask file"), metavar="FILE", help="which neurons are each direction's own"
    )
    for name, what in (("text", "training text"), ("valid", "held-out text, of any directions")):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            required=name == "text",
            metavar="FILES",
            help=f"{what}: parallel files, as of neuron-spec profile --text",
        )
    parser.add_argument(
        "--lang-pairs",
        metavar="PAIRS",
        help="directions to train, such as eng_Latn-deu_Latn (default: both of each pair of --text)",
    )
    parser.add_argument(
        "--output", type=output_folder, required=True, metavar="DIR", help="where everything goes"
    )
    parser.add_argument("--updates", type=number, default=1000, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--lr",
        type=learning_rate,
        metavar="X",
        help="peak, then linearly to 0 (default: joint 1e-4, delta 1e-3)",
    )
    parser.add_argument(
        "--warmup-updates", type=whole_number(0), metavar="N", help="default: a tenth of the updates"
    )
    parser.add_argument(
        "--max-tokens",
        type=number,
        default=4000,
        metavar="N",
        help="of a batch, with padding (default %(default)s)",
    )
    parser.add_argument(
        "--update-freq",
        type=number,
        default=1,
        metavar="N",
        help="batches of an update (default %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=real_number(lambda x: 1 <= x < float("inf"), "1 or more"),
        default=1.0,
        metavar="T",
        help="draw more of small directions: n pairs as n ** (1/T) (default %(default)s)",
    )
    parser.add_argument(
        "--label-smoothing",
        type=real_number(lambda x: 0 <= x < 1, "a fraction below 1"),
        default=0.1,
        metavar="X",
        help="default %(default)s",
    )
    parser.add_argument(
        "--save-interval-updates", type=number, default=500, metavar="N", help="default %(default)s"
    )
    parser.add_argument("--seed", type=number, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights stay in 32 bits")
    parser.add_argument(
        "--delta-dtype",
        choices=DTYPES,
        help="with --mode delta: of the files' weights, bf16 or fp16 for half the size; the losses after training are of the "
        f"deltas as they are in the files (default {DTYPES[0]})",
    )
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")


def run(args: argparse.Namespace) -> None:
    if args.mode == "delta" and args.masks is None:
        raise NeuronSpecError(
            "a delta needs to know which neurons are its direction's own", expected="--masks FILE",
            mend="make one with neuron-spec profile --hf and neuron-spec select",
        )  # fmt: skip
    if args.mode == "joint" and args.delta_dtype:
        raise NeuronSpecError(
            "no deltas are written with --mode joint", got=f"--delta-dtype {args.delta_dtype}", mend="leave it out"
        )  # fmt: skip
    from neuron_spec.artifacts import (
        SIGNATURE,
        completed,
        hash_text,
        is_already_here,
        read_json,
        signature,
        signature_in,
        write_json,
    )
    from neuron_spec.backends.huggingface import add_delta, specialize, weights_sha256
    from neuron_spec.backends.huggingface.deltas import restore_delta, save_delta
    from neuron_spec.backends.huggingface.directed_text import DirectedText
    from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer
    from neuron_spec.backends.huggingface.specialization import config_sha256
    from neuron_spec.backends.huggingface.text import of_files
    from neuron_spec.backends.huggingface.training import (
        DELTA,
        SpecializedTrainer,
        TextLoss,
        require_checkpoint,
        text_loss,
    )
    from neuron_spec.forms import require_form
    from neuron_spec.neurons import counting
    from neuron_spec.neurons.masks import NeuronMasks

    claim = args.output / SIGNATURE
    _require_ours(args.output, claim)
    text = of_files(args.text, args.lang_pairs)
    valid = of_files(args.valid, flag="--valid") if args.valid else {}
    model, tokenizer = load_model(args.hf, cpu=args.cpu), load_tokenizer(args.hf)
    base = weights_sha256(model)
    masks = None if args.masks is None else NeuronMasks.load(args.masks)
    if args.mode == "delta":
        assert masks is not None
        with in_file(args.masks):
            for one in text:
                add_delta(model, one, masks)
    elif masks is not None:
        with in_file(args.masks):
            specialize(model, masks)
        if without := [str(one) for one in valid if one not in masks.directions]:
            print(f"not measured, having no masks: {', '.join(without)}", file=sys.stderr)
            valid = {one: pairs for one, pairs in valid.items() if one in masks.directions}
    training = DirectedText(text, tokenizer, model)
    held_out = DirectedText(valid, tokenizer, model) if valid else None
    trainer = SpecializedTrainer(
        model, _arguments(args), training, max_tokens=args.max_tokens, temperature=args.temperature,
        processing_class=tokenizer,
    )  # fmt: skip
    names = ("mode", "updates", "lr", "warmup_updates", "label_smoothing", "bf16")
    signed = signature(
        "tune",
        inputs={
            "weights": base,
            "config": config_sha256(model),
            "valid": hash_text("" if held_out is None else held_out.sha256),
        },
        parameters={
            **trainer.trained_on(),
            **{name: getattr(args, name) for name in names},
            **({"delta_dtype": args.delta_dtype or DTYPES[0]} if args.mode == "delta" else {}),
        },
    )
    if completed(args.output / LOSSES, signed, what="training", where=args.output):
        return

    def measured() -> dict[str, Any]:
        found: dict[Any, TextLoss] = (
            {} if held_out is None else text_loss(model, held_out, max_tokens=args.max_tokens)
        )
        return {str(one): round(loss.per_token, 6) for one, loss in found.items()}

    is_first, before = trainer.is_world_process_zero(), args.output / "losses-before.json"
    # From here on the folder is this training's: with another model or other flags nothing in it goes on.
    if (
        not is_already_here(args.output, signature_in(claim, "training"), signed, what="training")
        and is_first
    ):
        write_json(claim, signed)
    # Before anything moved; a training that goes on has it from then.
    checkpoints = [*(args.output / "checkpoints").glob("checkpoint-*/trainer_state.json")]
    if before.is_file():
        measured_of = map(str, () if held_out is None else held_out.directions)
        require_form(
            read_json(before, "losses"), dict.fromkeys(measured_of, float), "losses before training", before
        )
    for checkpoint in checkpoints:
        require_checkpoint(checkpoint.parent, args.updates)
    if not before.is_file() and not checkpoints and is_first:
        write_json(before, measured())
    trainer.train(resume_from_checkpoint=bool(checkpoints))
    if args.mode == "joint":
        trainer.save_model(str(args.output))
    if not is_first:
        return
    for one in text if args.mode == "delta" else ():
        file = args.output / f"{one}{DELTA}"
        save_delta(model, one, file, dtype=counting.DTYPES[args.delta_dtype or DTYPES[0]])
        restore_delta(model, file)  # what is measured is what others load
    started, ended = read_json(before, "losses"), measured()
    write_json(
        args.output / LOSSES,
        {
            "before": started,
            "after": ended,
            "trained_directions": list(map(str, text)),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "signature": signed,
        },
    )
    before.unlink()
    for name, loss in ended.items():
        print(f"{name}  {started[name]:.4f} -> {loss:.4f}", file=sys.stderr)
    print(args.output)


def _require_ours(folder: Path, claim: Path) -> None:
    """Raises: ArtifactError if a folder holds something, such as the model that is to be tuned, and no training of ours."""
    from neuron_spec.artifacts import require_vacant

    is_ours = claim.is_file() or (folder / LOSSES).is_file()
    if not is_ours and any(path.is_file() for path in folder.rglob("*")):
        require_vacant(folder)


def _arguments(args: argparse.Namespace) -> Any:
    from neuron_spec.backends.huggingface.training import Seq2SeqTrainingArguments

    if args.lr is None:
        args.lr = {"joint": 1e-4, "delta": 1e-3}[args.mode]
    if args.warmup_updates is None:
        args.warmup_updates = args.updates // 10
    checkpointing = "activation_checkpointing"  # of transformers 6; until 5.24 it had the other name alone
    if not hasattr(Seq2SeqTrainingArguments, checkpointing):
        checkpointing = "gradient_checkpointing"
    return Seq2SeqTrainingArguments(
        str(args.output / "checkpoints"),
        max_steps=args.updates,
        learning_rate=args.lr,
        warmup_steps=args.warmup_updates,
        gradient_accumulation_steps=args.update_freq,
        label_smoothing_factor=args.label_smoothing,
        save_strategy="steps",
        save_steps=args.save_interval_updates,
        save_total_limit=1,
        logging_steps=min(100, max(1, args.updates // 10)),
        adam_beta2=0.98,
        seed=args.seed,
        bf16=args.bf16,
        use_cpu=args.cpu,
        report_to=[],
        **({checkpointing: True} if args.gradient_checkpointing else {}),
    )
