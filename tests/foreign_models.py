"""Small models of the kinds that the field publishes, trained by stock fairseq with the flags that they were trained with."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from fairseq import checkpoint_utils

from neuron_spec import models, tasks
from neuron_spec.backends.fairseq.checkpoints import flags_of, read_checkpoint

PAIRS = "en-qa,qa-en,en-qb,qb-en"
# As many as M2M-100's, those of the toy corpus among them; sorted, as where no list is given.
LANGS = sorted(["en", "qa", "qb", "qm", *(f"x{one}{two}" for one in "abcdefgh" for two in "abcdefghijkl")])


def fairseq(command: str, *words: object) -> None:
    """A command of fairseq's, in this process, where unless told otherwise it prepares its batches too.

    A process that does is waited for, five seconds, when the command is done with it.
    """
    module = importlib.import_module(f"fairseq_cli.{command}")
    assert models and tasks  # registered, as by --user-dir
    vars(checkpoint_utils.save_checkpoint).pop("best", None)  # of a training before, in this process
    with mock.patch.object(sys, "argv", [f"fairseq-{command}", "--num-workers=0", *map(str, words)]):
        module.cli_main()


def shape(layers: int, **others: object) -> list[str]:
    sizes = {"layers": layers, "embed-dim": 16, "ffn-embed-dim": 32, "attention-heads": 2, **others}
    return [f"--{side}-{name}={size}" for side in ("encoder", "decoder") for name, size in sizes.items()]


def train(data_bin: Path, save_dir: Path, arch: str, *flags: object, pairs: object = PAIRS) -> Path:
    """Three updates of stock fairseq."""
    fairseq(
        "train", data_bin, "--task", "translation_multi_simple_epoch", "--arch", arch, "--lang-pairs", pairs,
        "--save-dir", save_dir, "--max-update", 3, "--max-tokens", 500, "--cpu", "--disable-validation",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.2, "--dropout", 0.3,
        "--optimizer", "adam", "--adam-eps", 1e-6, "--adam-betas", "(0.9, 0.98)", "--lr", 3e-3,
        "--lr-scheduler", "inverse_sqrt", "--warmup-updates", 2, "--sampling-method", "temperature",
        "--sampling-temperature", 5, "--update-freq", 2, "--seed", 222, "--num-workers", 0,
        "--no-epoch-checkpoints", *flags,
    )  # fmt: skip
    return save_dir / "checkpoint_last.pt"


def fixed_dictionary(data_bin: Path, file: Path, langs: Sequence[str] = LANGS) -> Path:
    """As M2M-100's ``model_dict.txt``: the pieces of the data-bin, all language tokens, and what fills it up."""
    more = [*(f"__{lang}__ 1" for lang in langs), *(f"madeupword{number:04d} 0" for number in range(8))]
    file.write_text((data_bin / "dict.en.txt").read_text() + "\n".join(more) + "\n")
    return file


def m2m(data_bin: Path, folder: Path) -> Path:
    """M2M-100's shape at tiny width: 12+12 layers, layer drop, a hundred languages by ``--lang-dict``, 2020's format."""
    folder.mkdir()
    (folder / "langs.txt").write_text("\n".join(LANGS) + "\n")
    dense = train(
        data_bin, folder / "train", "transformer_wmt_en_de_big", *shape(12, layerdrop=0.05),
        "--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings",
        "--encoder-langtok", "src", "--decoder-langtok", "--lang-dict", folder / "langs.txt",
        "--fixed-dictionary", fixed_dictionary(data_bin, folder / "model_dict.txt"), "--attention-dropout", 0.1,
    )  # fmt: skip
    state = read_checkpoint(dense)
    flags = flags_of(state, "model")
    # A model trained on all pairs; the files are where it was trained.
    flags["lang_pairs"] = ",".join(f"{one}-{two}" for one in LANGS for two in LANGS if one != two)
    flags |= {"lang_dict": "/elsewhere/langs.txt", "fixed_dictionary": "/elsewhere/model_dict.txt"}
    of_later_years = {
        "_name",
        "no_seed_provided",
        "amp",
        "batch_size",
        "max_valid_steps",
        "grouped_shuffling",
    }
    weights = state["model"] | {f"{side}.version": torch.tensor([3.0]) for side in ("encoder", "decoder")}
    weights |= {f"{side}.embed_positions._float_tensor": torch.zeros(1) for side in ("encoder", "decoder")}
    path = folder / "m2m.pt"
    torch.save(
        {
            "args": argparse.Namespace(**{k: v for k, v in flags.items() if k not in of_later_years}),
            "model": weights,
            "optimizer_history": state["optimizer_history"],
            "extra_state": state["extra_state"],
            "last_optimizer_state": state["last_optimizer_state"],
        },
        path,
    )
    return path


def mbart(data_bin: Path, folder: Path, activation: str = "relu") -> Path:
    """As mBART is fine-tuned: learned positions, normalized embeddings, tokens such as ``[en]``, languages in a file."""
    folder.mkdir()
    (folder / "langs.txt").write_text("qm\nen\nqb\nqa\n")
    return train(
        data_bin, folder, "mbart_base", *shape(2), "--encoder-normalize-before", "--decoder-normalize-before",
        "--layernorm-embedding", "--activation-fn", activation, "--lang-tok-style", "mbart",
        "--encoder-langtok", "src", "--decoder-langtok", "--lang-dict", folder / "langs.txt",
        "--max-source-positions", 512, "--max-target-positions", 256,
    )  # fmt: skip


def ec40(data_bin: Path, folder: Path) -> Path:
    """As models of EC40 and of zero-shot translation: the target's token on the source side, none on the other."""
    return train(
        data_bin, folder, "transformer_vaswani_wmt_en_de_big", *shape(2), "--share-decoder-input-output-embed",
        "--encoder-langtok", "tgt", "--langs", "en,qb,qa,qm",
    )  # fmt: skip
