"""Write the frozen files of models of Hugging Face: ``python make_huggingface.py OUTPUT``, with the version that is installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from neuron_spec.backends.huggingface import (
    add_delta,
    delta_parameters,
    direction,
    profile,
    save_delta,
    save_specialized,
    specialize,
    unspecialize,
)
from neuron_spec.neurons.selection import select

import transformers  # isort: skip  (after ours)

TOKENS, WITH_DELTA, WITHOUT = 40, "en-de", "en-fr"
DIRECTIONS = (WITH_DELTA, "de-en", WITHOUT)
INPUTS = {"input_ids": [[5, 9, 12, 2], [7, 30, 2, 1]], "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0]]}
BEFORE = [[2, 6, 8], [2, 31, 17]]  # what the decoder reads


def logits(model: Any, asked: str | None = None) -> list[Any]:
    """Of all files alike: one pass through the model, or a direction of it."""
    inputs = {key: torch.tensor(value) for key, value in INPUTS.items()}
    with torch.no_grad():
        if asked is None:
            out = model(**inputs, decoder_input_ids=torch.tensor(BEFORE))
        else:
            with direction(model, asked):
                out = model(**inputs, decoder_input_ids=torch.tensor(BEFORE))
    found: list[Any] = out.logits.float().tolist()
    return found


def main(output: Path) -> None:
    output.mkdir()
    torch.manual_seed(1)
    config = transformers.M2M100Config(
        vocab_size=TOKENS, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=24, decoder_ffn_dim=20,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=16, dropout=0.0,
        attention_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
    )  # fmt: skip
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    text = {
        one: [
            {
                "input_ids": [*torch.randint(4, TOKENS, (6,)).tolist(), 2],
                "labels": [*torch.randint(4, TOKENS, (5,)).tolist(), 2],
            }
            for _ in range(8)
        ]
        for one in DIRECTIONS
    }
    counts = profile(model, text)
    counts.save(output / "profile.safetensors")
    masks = select(counts, k=80)
    recorded: dict[str, Any] = {"plain": logits(model)}
    specialize(model, masks, dropped_neurons="zero")
    recorded["specialized"] = {one: logits(model, one) for one in DIRECTIONS}
    save_specialized(model, output / "specialized")
    unspecialize(model)
    add_delta(model, WITH_DELTA, masks)
    with torch.no_grad():
        for parameter in delta_parameters(model).values():
            parameter.normal_(0, 0.3)
    recorded["delta"] = {one: logits(model, one) for one in (WITH_DELTA, WITHOUT)}
    save_delta(model, WITH_DELTA, output / "delta.safetensors")
    save_delta(model, WITH_DELTA, output / "delta-bf16.safetensors", dtype=torch.bfloat16)
    (output / "logits.json").write_text(json.dumps(recorded) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
