"""A small random model of NLLB's kind and its tokenizer, learnt from text files here: nothing is downloaded.

python scripts/huggingface/tiny_model.py --text FILE ... --output DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import neuron_spec.backends.huggingface  # noqa: F401  (before transformers)

import transformers  # isort: skip
from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # isort: skip

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def learn_tokenizer(lines: Iterator[str], pieces: int) -> Any:
    """NLLB's tokenizer, with its 202 languages, and BPE pieces of these lines."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    bpe.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=pieces, special_tokens=SPECIAL, show_progress=False)
    )
    learnt = json.loads(bpe.to_str())["model"]
    return transformers.NllbTokenizer(
        vocab=learnt["vocab"], merges=[tuple(merge) for merge in learnt["merges"]]
    )


def build(tokenizer: Any, *, size: int, ffn: int, layers: int, seed: int) -> Any:
    """M2M100ForConditionalGeneration with random weights, as NLLB's but for its size."""
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer), d_model=size, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=256,
        dropout=0.1, attention_dropout=0.0, activation_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0,
        scale_embedding=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.eos_token_id, init_std=size**-0.5,
    )  # fmt: skip
    transformers.set_seed(seed)
    return transformers.M2M100ForConditionalGeneration(config)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", nargs="+", type=Path, required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, default in (("pieces", 1000), ("size", 32), ("ffn", 128), ("layers", 2), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default %(default)s")
    args = parser.parse_args(arguments)
    lines = (line for file in args.text for line in file.read_text(encoding="utf-8").splitlines())
    tokenizer = learn_tokenizer(lines, args.pieces)
    model = build(tokenizer, size=args.size, ffn=args.ffn, layers=args.layers, seed=args.seed)
    tokenizer.save_pretrained(args.output)
    model.save_pretrained(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
