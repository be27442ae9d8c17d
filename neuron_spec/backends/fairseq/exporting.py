"""Directions of a checkpoint as plain transformers, and such a one as a checkpoint for stock fairseq."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.models.transformer import TransformerModel
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import as_start, load_model, token_flags
from neuron_spec.backends.fairseq.commands import generation_config
from neuron_spec.backends.fairseq.data_bin import require_dictionaries, shards_of
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ModelError
from neuron_spec.export.direction_model import DirectionModel, Side, cut, padded, widest
from neuron_spec.export.folder import CHECKPOINT, PIECES, Pieces
from neuron_spec.models.neuron_spec_transformer import NeuronSpecTransformer
from neuron_spec.neurons.choices import SIDES

_TASK, _ARCH = "translation_multi_simple_epoch", "transformer"
_LIMITS = ("max_source_positions", "max_target_positions")
# Of a task's flags, those that decide which token is which.
_OF_LANGUAGES = (
    *("langs", "lang_tok_style", "encoder_langtok", "decoder_langtok", "langtoks", "langtoks_specs"),
    *("lang_tok_replacing_bos_eos", *_LIMITS),
)


class Exporter:
    """A checkpoint in memory, whose directions can be had one by one."""

    def __init__(self, asked: Asked, missing_direction: str = "error") -> None:
        """Load the checkpoint once.

        Raises:
            ModelError: if a direction has no masks, or the model has parts that no plain transformer has.
        """
        self._asked = asked
        flags = [*token_flags(asked.trained), "--missing-direction", missing_direction]
        cfg = generation_config(asked.path, _folder(asked), asked.directions, flags)
        self._task = tasks.setup_task(cfg.task)
        model, self._saved = load_model(asked.path, self._task)
        self.model: NeuronSpecTransformer = model.float().eval()
        _require_plain(self.model, asked.path)
        self._rows = {of: self._rows_of(of) for of in asked.directions}  # refused before work starts

    def _rows_of(self, direction: Direction) -> dict[str, int]:
        number = direction_id(direction, self._asked.langs)
        return {side.side: side.row_of(number) for side in self.model.sides if side.rows is not None}

    def direction_model(self, direction: Direction) -> DirectionModel:
        """A direction's plain transformer; of a dense checkpoint the model itself."""
        fc1s = self.model.ffn_layers()
        fc1 = next(iter(fc1s.values()))
        return DirectionModel(
            direction=direction,
            weights=cut(
                self.model.state_dict(),
                self._rows[direction],
                dropped_neurons=fc1.dropped_neurons,
                activation=fc1.activation,
            ),
            widths={layer: fc1.out_features for layer, fc1 in fc1s.items()},
            sides=self._sides(direction),
            activation=self.model.cfg.activation_fn,
        )

    def _sides(self, direction: Direction) -> dict[str, Side]:
        task = self._task
        of_source, of_target = task.args.langtoks["main"]
        tags = (
            task.data_manager.get_encoder_langtok(direction.source, direction.target, of_source or None),
            task.data_manager.get_decoder_langtok(direction.target, of_target or None),
        )
        dictionaries = task.source_dictionary, task.target_dictionary
        sides = {}
        for side, name, dictionary, tag in zip(self.model.sides, _LIMITS, dictionaries, tags, strict=True):
            shape: Any = getattr(self.model.cfg, side.side)
            sides[side.side] = Side(
                heads=shape.attention_heads,
                pre_norm=bool(shape.normalize_before),
                embed_scale=float(side.embed_scale),  # type: ignore[attr-defined]
                positions=_positions(side, getattr(task.args, name)),
                symbols=list(dictionary.symbols),
                tag=None if tag is None else dictionary[tag],
            )
        return sides

    def write(self, model: DirectionModel, folder: Path) -> None:
        """A checkpoint that stock fairseq runs, and the dictionaries of its two languages.

        fairseq's transformer has one FFN width for all layers of a side: layers are padded to the widest by neurons
        that emit zero. Flags are in plain dictionaries, so that current torch reads it without ``--user-dir``.
        """
        weights = padded(model.weights, widest(model.kept()))
        flags = {**vars(self._task.args), **_plain(self._saved.model)}
        for side in SIDES:
            layers = [key for key in model.widths if key.startswith(f"{side}.")]
            flags[f"{side}_layers"], flags[f"{side}_layers_to_keep"] = len(layers), None
            flags[f"{side}_ffn_embed_dim"] = len(weights[f"{layers[0]}.fc1.bias"])
        languages = {name: flags[name] for name in _OF_LANGUAGES if name in flags}
        languages |= {name: getattr(self._task.args, name) for name in _LIMITS}
        languages |= {"lang_pairs": [str(model.direction)], "langs": list(self._asked.langs)}
        parser = argparse.ArgumentParser()
        TransformerModel.add_args(parser)
        shape = {action.dest: flags[action.dest] for action in parser._actions if action.dest in flags}
        cfg = {
            "model": {**shape, **languages, "_name": _ARCH, "arch": _ARCH},
            "task": {**languages, "_name": _TASK, "task": _TASK},
        }
        torch.save(as_start(self._asked.state, cfg, weights), folder / CHECKPOINT)
        for lang in {model.direction.source, model.direction.target}:
            self._task.dicts[lang].save(str(folder / f"dict.{lang}.txt"))

    def require_pieces(self, spm: Path) -> None:
        """Raises: ArtifactError if that is no SentencePiece model of the dictionary's pieces."""
        Pieces(spm, known=self._task.source_dictionary.symbols)


def dictionary_files(asked: Asked, direction: Direction) -> list[Path]:
    """Those that a direction's model is written with.

    Raises:
        ArtifactError: if one is missing.
    """
    folder = _folder(asked)
    require_dictionaries(folder, [direction], asked.trained.fixed_dictionary)
    if asked.trained.fixed_dictionary:
        return [Path(asked.trained.fixed_dictionary)]
    return [folder / f"dict.{lang}.txt" for lang in (direction.source, direction.target)]


def stock_command(asked: Asked, direction: Direction, folder: Path) -> list[str]:
    """The words by which stock fairseq translates pieces from standard input with what `Exporter.write` left."""
    tokens = LanguageTokens.of(asked.trained).flags.items()
    return [
        *("fairseq-interactive", str(folder), "--path", str(folder / CHECKPOINT), "--task", _TASK),
        *("-s", direction.source, "-t", direction.target, "--lang-pairs", str(direction)),
        *(word for name, value in tokens for word in (name, *value)),
        *("--bpe", "sentencepiece", "--sentencepiece-model", str(folder / PIECES)),
    ]


def _folder(asked: Asked) -> Path:
    return (shards_of(asked.data_bin) or [asked.data_bin])[0]


def _require_plain(model: NeuronSpecTransformer, where: Path) -> None:
    for side in model.sides:
        if side.rows_buffer != "mask_rows" and side.rows is not None:
            raise ModelError(
                f"a model with {side.parts} cannot be exported: no plain transformer computes what they do",
                where=where,
                expected="a dense checkpoint, or one with masks of neurons, heads or weights",
                mend="translate with neuron-spec translate --path CHECKPOINT, which runs it by fairseq",
            )
        if side.embed_positions is None:  # type: ignore[attr-defined]
            raise ModelError("a model without positional embeddings cannot be exported", where=where)


def _positions(side: Any, limit: int) -> Tensor:
    """float32 ``[P, D]``, from the first token's on: no more than a text may have."""
    embedding, count = side.embed_positions, min(limit, side.max_positions())
    first = embedding.padding_idx + 1
    if isinstance(embedding, LearnedPositionalEmbedding):
        return embedding.weight.detach()[first : first + count].clone()
    assert isinstance(embedding, SinusoidalPositionalEmbedding)
    return embedding.get_embedding(first + count, embedding.embedding_dim, embedding.padding_idx)[first:]


def _plain(flags: Any) -> dict[str, Any]:
    """A checkpoint's flags, of those that are plain values."""
    values = dict(flags) if hasattr(flags, "keys") else vars(flags)
    return {key: value for key, value in values.items() if isinstance(value, str | int | float | None)}
