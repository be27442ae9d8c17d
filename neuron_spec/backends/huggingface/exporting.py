"""A direction of a model of transformers as a plain transformer, for CTranslate2 or as safetensors.

M2M-100, NLLB and mBART: what our export is made of, sources that begin with a language token and end with </s>, and
targets that begin after a </s>, is what they are; of others that is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuron_spec.artifacts import completed, hash_file, hash_text, require_vacant, signature
from neuron_spec.backends.ctranslate2.writing import writer
from neuron_spec.backends.huggingface.deltas import delta_sha256, merge_delta
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.backends.huggingface.loading import require_transformers
from neuron_spec.backends.huggingface.specialization import specialization_of, weights_sha256
from neuron_spec.backends.huggingface.text import language_token, pieces_model, use_languages
from neuron_spec.directions import Direction, as_directions
from neuron_spec.errors import ModelError
from neuron_spec.export.direction_model import NEURON_MASK, DirectionModel, Side, cut, write_folder
from neuron_spec.export.folder import EXPORT_JSON, QUANTIZATIONS, ExportFolder, Pieces
from neuron_spec.neurons.choices import SIDES

KINDS = ("m2m_100", "mbart")
_SAMPLE = "a"


def direction_model(model: Any, tokenizer: Any, asked: Direction | str) -> DirectionModel:
    """A direction's plain transformer, of a model with masks, with deltas, or plain.

    Raises:
        ModelError: if it is of another kind than M2M-100, NLLB or mBART, or its sources are made otherwise.
        DirectionError: if the direction has no masks, or a language no token.
    """
    require_transformers()
    (one,) = as_directions([asked])
    config = model.config
    if config.model_type not in KINDS or config.decoder_start_token_id != config.eos_token_id:
        raise ModelError(
            "models of this kind cannot be exported",
            got=f"{config.model_type}, which starts with token {config.decoder_start_token_id}",
            expected=f"{' or '.join(KINDS)} (NLLB is m2m_100), which start with </s>",
        )
    _require_sources(tokenizer, one)
    state = specialization_of(model)
    if state is not None and one in state.deltas:
        return direction_model(merge_delta(model, one), tokenizer, one)
    weights = _weights(model)
    rows = dict.fromkeys(SIDES, 0 if state is None else state.row(one))
    if state is not None and state.masks is not None:
        weights |= {f"{key}.fc1.{NEURON_MASK}": kept for key, kept in state.masks.kept.items()}
    symbols = _symbols(model, tokenizer)
    return DirectionModel(
        direction=one,
        weights=cut(weights, rows, dropped_neurons="bias" if state is None else state.dropped_neurons),
        widths={key: ffn.width for key, ffn in ffns(model).items()},
        sides={
            side: Side(
                heads=getattr(config, f"{side}_attention_heads"),
                pre_norm=True,
                embed_scale=config.d_model**0.5 if config.scale_embedding else 1.0,
                positions=_positions(stack.embed_positions, config.max_position_embeddings),
                symbols=symbols,
                tag=language_token(tokenizer, code),
            )
            for side, stack, code in zip(
                SIDES, (model.get_encoder(), model.get_decoder()), (one.source, one.target), strict=True
            )
        },
        activation=config.activation_function,
    )


def export(
    model: Any,
    tokenizer: Any,
    asked: Direction | str,
    folder: str | os.PathLike[str],
    *,
    format: str = "ctranslate2",
    quantization: str | None = None,
    spm: Path | None = None,
) -> None:
    """Write a direction's folder, as ``neuron-spec export`` does; leave it if it is complete.

    Args:
        format: ``ctranslate2`` or ``safetensors``.
        quantization: of weights, for CTranslate2: ``float32``, ``float16`` or ``int8``.
        spm: the SentencePiece model; None: the tokenizer's, if it is beside it.

    Raises:
        ModelError, DirectionError: as `direction_model`; or if there is no such format or quantization.
        ArtifactError: if something else is there, or the SentencePiece model is of another vocabulary.
    """
    if format not in ("ctranslate2", "safetensors"):
        raise ModelError("no such format", got=repr(format), expected="ctranslate2 or safetensors")
    if quantization is not None and (format != "ctranslate2" or quantization not in QUANTIZATIONS):
        raise ModelError(
            "no such quantization",
            got=f"{quantization!r} of {format}",
            expected=f"of ctranslate2, {', '.join(QUANTIZATIONS)}",
        )
    (one,) = as_directions([asked])
    folder, spm = Path(folder), spm or pieces_model(tokenizer)
    state = specialization_of(model)
    masks = None if state is None or state.masks is None else state.masks.of([one]).fingerprint
    signed = signature(
        "export",
        inputs={
            "weights": weights_sha256(model),
            "delta": delta_sha256(model, one) if state is not None and one in state.deltas else "none",
            "masks": masks or "none",
            "vocabulary": hash_text(*_symbols(model, tokenizer)),
            "SentencePiece model": hash_file(spm) if spm else "none",
        },
        parameters={
            "direction": str(one),
            "format": format,
            "dropped_neurons": "bias" if state is None else state.dropped_neurons,
            **({"quantization": quantization or "float32"} if format == "ctranslate2" else {}),
        },
    )
    if completed(folder / EXPORT_JSON, signed, what="export", where=folder):
        ExportFolder.read(folder).require_whole()
        return
    require_vacant(folder)
    made = direction_model(model, tokenizer, one)
    if spm:
        Pieces(spm, known=made.sides["encoder"].symbols)
    write = writer(made, format, quantization)
    write_folder(made, folder, write, format=format, spm=spm, signed=signed, scores_tag=False)


def _weights(model: Any) -> dict[str, Tensor]:
    """By fairseq's keys, float32, on the CPU; tied ones share their memory."""
    moved: dict[tuple[int, torch.Size], Tensor] = {}
    weights: dict[str, Tensor] = {}
    state: Mapping[str, Tensor] = model.state_dict()
    for key, value in state.items():
        name = key.removeprefix("model.")
        if name == "shared.weight" or ".deltas." in name:
            continue
        if name == "final_logits_bias":
            if bool(value.any()):
                weights["decoder.output_projection.bias"] = value.flatten().float().cpu()
            continue
        place = value.data_ptr(), value.shape
        plain = moved.setdefault(place, value.detach().float().cpu())
        weights["decoder.output_projection.weight" if name == "lm_head.weight" else name] = plain
    return weights


def _positions(embedding: Any, limit: int) -> Tensor:
    """float32 ``[P, D]``, from the first token's on."""
    table = embedding.weights if hasattr(embedding, "weights") else embedding.weight
    first = embedding.offset if not hasattr(embedding, "weights") else embedding.padding_idx + 1
    return table.detach()[first : first + limit].float().cpu()


def _symbols(model: Any, tokenizer: Any) -> list[str]:
    """What the rows of the embedding stand for; those that the tokenizer knows nothing of have a name each."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))
    seen: set[str] = set()
    symbols = []
    for i, token in enumerate(tokens):
        symbols.append(f"<unused {i}>" if token is None or token in seen else token)
        seen.add(symbols[-1])
    return symbols


def _require_sources(tokenizer: Any, one: Direction) -> None:
    """Raises: ModelError if sources are not a language token, pieces and </s>, or targets are not."""
    use_languages(tokenizer, one)
    encoded = tokenizer([_SAMPLE], text_target=[_SAMPLE])
    for ids, code in ((encoded["input_ids"][0], one.source), (encoded["labels"][0], one.target)):
        tag, *_, end = tokenizer.convert_ids_to_tokens(ids)
        if tag != language_token(tokenizer, code) or end != tokenizer.eos_token:
            raise ModelError(
                "a tokenizer that puts language tokens elsewhere",
                got=" ".join(tokenizer.convert_ids_to_tokens(ids)),
                expected=f"{language_token(tokenizer, code)} ... {tokenizer.eos_token}",
                mend="of NLLB, load it without legacy_behaviour",
            )
