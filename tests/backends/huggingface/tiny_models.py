"""Tiny random models of transformers, and text as tokens for them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import neuron_spec.backends.huggingface  # noqa: F401  (before transformers)

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched
transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")

from neuron_spec.backends.huggingface.ffns import ffns  # noqa: E402
from neuron_spec.directions import parse_directions  # noqa: E402
from neuron_spec.neurons.masks import NeuronMasks  # noqa: E402

DIRECTIONS = ["en-de", "de-en", "en-fr"]
VOCABULARY = 60
PAD, EOS = 1, 2
_SHAPE = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "dropout": 0.0, "attention_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "bos_token_id": 0,
    "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS, "forced_eos_token_id": None,
}  # fmt: skip
KINDS = {
    "m2m_100": ("M2M100", {}),
    "bart": ("Bart", {"activation_function": "relu"}),
    "mbart": ("MBart", {"activation_function": "relu"}),
    "marian": ("Marian", {"activation_function": "relu", "decoder_vocab_size": VOCABULARY}),
}
_HEAD = {"Marian": "MarianMTModel"}


def build(kind: str = "m2m_100", *, seed: int = 1, **config: Any) -> Any:
    """A model in eval mode, whose biases are not zero."""
    name, more = KINDS[kind]
    shape = getattr(transformers, f"{name}Config")(**{**_SHAPE, **more, **config})
    torch.manual_seed(seed)
    model = getattr(transformers, _HEAD.get(name, f"{name}ForConditionalGeneration"))(shape)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("fc1.bias", "fc2.bias")):
                parameter.uniform_(-0.3, 0.3)
            elif (
                key.endswith("weight") and parameter.dim() == 2 and "embed" not in key and "shared" not in key
            ):
                parameter.normal_(0, 0.2)
    return model.eval()


def t5(*, gated: bool = True) -> Any:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=PAD,
        eos_token_id=EOS, decoder_start_token_id=PAD, feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=False, dropout_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    return transformers.T5ForConditionalGeneration(config).eval()


def random_masks(
    model: Any, *, kept: float = 0.6, seed: int = 1, directions: Any = DIRECTIONS
) -> NeuronMasks:
    generator = torch.Generator().manual_seed(seed)
    named = parse_directions(directions)
    sizes = {key: ffn.width for key, ffn in ffns(model).items()}
    return NeuronMasks(
        named,
        {key: torch.rand(len(named), width, generator=generator) < kept for key, width in sizes.items()},
    )


def rows(count: int, *, seed: int = 1, longest: int = 12) -> list[dict[str, list[int]]]:
    """Pairs as tokens, of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def sentence() -> list[int]:
        length = int(torch.randint(2, longest, (1,), generator=generator))
        return [*torch.randint(4, VOCABULARY, (length,), generator=generator).tolist(), EOS]

    return [{"input_ids": sentence(), "labels": sentence()} for _ in range(count)]


def batch(count: int = 6, *, seed: int = 1, **padding: int) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask``, ``labels``; ``source`` and ``target`` say how much more padding there is."""
    from neuron_spec.backends.huggingface.text import Example, collated

    examples = [Example(row["input_ids"], row["labels"], i) for i, row in enumerate(rows(count, seed=seed))]
    inputs = collated(examples, padding=PAD)
    pad = torch.nn.functional.pad
    more, of_target = padding.get("source", 0), padding.get("target", 0)
    return {
        "input_ids": pad(inputs["input_ids"], (0, more), value=PAD),
        "attention_mask": pad(inputs["attention_mask"], (0, more), value=0),
        "labels": pad(inputs["labels"], (0, of_target), value=-100),
    }
