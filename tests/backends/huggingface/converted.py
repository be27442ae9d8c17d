"""A transformer of fairseq's, pre-norm with sinusoidal positions and shared embeddings, as an M2M-100 of transformers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tiny_models import transformers


def m2m_100(state: dict[str, torch.Tensor], *, heads: int, positions: int = 256) -> Any:
    """Of a checkpoint's weights. Keys are the same but for embeddings; so are the ids of <s>, <pad>, </s>."""
    embeddings = state["encoder.embed_tokens.weight"]

    def sizes(side: str) -> dict[str, int]:
        widths = [
            len(value) for key, value in state.items() if key.startswith(side) and key.endswith("fc1.bias")
        ]
        return {f"{side}_layers": len(widths), f"{side}_ffn_dim": widths[0], f"{side}_attention_heads": heads}

    config = transformers.M2M100Config(
        vocab_size=len(embeddings), d_model=embeddings.size(1), max_position_embeddings=positions,
        scale_embedding=True, dropout=0.0, attention_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
        **sizes("encoder"), **sizes("decoder"),
    )  # fmt: skip
    model = transformers.M2M100ForConditionalGeneration(config)
    left_out = (
        "embed_tokens.weight",
        "output_projection.weight",
        "version",
        "_float_tensor",
        "neuron_mask",
        "mask_rows",
    )
    weights = {f"model.{key}": value for key, value in state.items() if not key.endswith(left_out)}
    weights |= dict.fromkeys(
        (
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ),
        embeddings,
    )
    model.load_state_dict(weights)
    assert math.isclose(model.model.shared.embed_scale, math.sqrt(embeddings.size(1)))
    return model.eval()


def quickstart(folder: Path) -> tuple[Any, Any]:
    """The small dense model that is shipped, trained on real text, and a tokenizer of M2M-100's for it."""
    shipped = Path(__file__).parents[3] / "data" / "quickstart"
    saved = torch.load(shipped / "dense.pt", map_location="cpu", weights_only=False)
    spm = sentencepiece.SentencePieceProcessor(model_file=str(shipped / "sentencepiece.model"))
    pieces = [spm.id_to_piece(i) for i in range(3, spm.vocab_size())]
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    shutil.copyfile(shipped / "sentencepiece.model", folder / "sentencepiece.bpe.model")
    tokenizer = transformers.M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")
    )
    embeddings = saved["model"]["encoder.embed_tokens.weight"]
    wide = torch.zeros(len(vocabulary) + 108, embeddings.size(1))
    wide[: len(vocabulary)] = embeddings[: len(vocabulary)]
    for i, code in enumerate(saved["cfg"]["model"].langs):
        wide[tokenizer.get_lang_id(code)] = embeddings[len(vocabulary) + i]
    return m2m_100({**saved["model"], "encoder.embed_tokens.weight": wide}, heads=2), tokenizer
