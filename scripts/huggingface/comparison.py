"""Ways to tune two directions of a multilingual model: what they gain there, do to the others, cost and keep.

A small model of NLLB's kind is trained here on real text, Home Assistant's messages, between English and German, Spanish
and, on 1,000 pairs only, Estonian. From that base each system is tuned on all Estonian text, both ways, for the same
updates on the same batches:

  full, full-all       every weight; on the tuned directions' text, or on all directions' text again (replay)
  lora                 peft's, rank 8, on every Linear of attention and FFN
  adapters             a bottleneck after each FFN, of its own for each direction, the base frozen
  joint, joint-all     specialized neurons, k = 95 (the paper's stage 2); on the same two texts
  delta-95, delta-50   the base frozen, a delta on each direction's own neurons, k = 95 and 50
  delta-50-random      the same on as many neurons drawn at random

Each learning rate of a system's grid is tried; the one with the lowest loss of the tuned directions' validation text is
read on test text. Run again to resume. Needs the extras huggingface and comparison (peft):
pip install -e '.[huggingface,comparison]'.

  neuron-spec data homeassistant --langs de,es,et --vocab-size 3000 --valid-size 300 --test-size 400 --output CORPUS
  python scripts/huggingface/comparison.py CORPUS --run DIR [--seeds 1,2] [--results FILE.csv] [--smoke]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny_model
import torch
from torch import nn

from neuron_spec.artifacts import write_json, write_text
from neuron_spec.backends.huggingface import add_delta, delta_parameters, profile, specialize
from neuron_spec.backends.huggingface.directed_text import DirectedText
from neuron_spec.backends.huggingface.ffns import ffns
from neuron_spec.backends.huggingface.loading import load_model, load_tokenizer
from neuron_spec.backends.huggingface.training import SpecializedTrainer, freeze_all_but, text_loss
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.selection import matched_random, select

import transformers  # isort: skip  (after ours)

CODES = {"en": "eng_Latn", "de": "deu_Latn", "es": "spa_Latn", "et": "est_Latn"}
TUNED = ("eng_Latn-est_Latn", "est_Latn-eng_Latn")
FEW = 1000  # pairs of the tuned directions in the base's text
HIGH, LOW = (0.003, 0.01), (0.001, 0.003)  # grids of learning rates
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class System:
    """Args: prepare: from a model, and the masks of each k, to what is trained: all other weights are frozen."""

    rates: Sequence[float]
    prepare: Callable[[Any, Mapping[str, NeuronMasks]], None]
    replays: bool = False  # trains on all directions' text
    follows: Callable[[Any, str | None], None] = field(
        default=lambda model, asked: None
    )  # routing of its own


# What is trained ------------------------------------------------------------------------------


def _lora(model: Any, _: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    linears = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=linears), model)


class Bottleneck(nn.Module):
    """``fc2`` and behind it a residual bottleneck of the running direction (Bapna and Firat, 2019)."""

    def __init__(self, fc2: nn.Linear, size: int) -> None:
        super().__init__()
        self.fc2, self.running = fc2, None
        width = fc2.out_features
        self.of = nn.ModuleDict()
        for name in TUNED:
            down, up = nn.Linear(width, size), nn.Linear(size, width)
            nn.init.zeros_(up.weight), nn.init.zeros_(up.bias)
            self.of[name] = nn.Sequential(nn.LayerNorm(width), down, nn.ReLU(), up)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(hidden)
        return out + self.of[self.running](out) if self.running in self.of else out


def _adapters(model: Any, _: Any, size: int = 64) -> None:
    found = ffns(model)
    for ffn in found.values():
        ffn.layer.fc2 = Bottleneck(ffn.layer.fc2, size)
    freeze_all_but(model, {name for name, _ in model.named_parameters() if ".fc2.of." in name})


def _follow_adapters(model: Any, asked: str | None) -> None:
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.running = asked


def _joint(model: Any, masks: Mapping[str, NeuronMasks]) -> None:
    specialize(model, masks["95"])


def _delta(k: str) -> Callable[[Any, Mapping[str, NeuronMasks]], None]:
    def prepare(model: Any, masks: Mapping[str, NeuronMasks]) -> None:
        for name in TUNED:
            add_delta(model, name, masks[k])
        freeze_all_but(model, {*delta_parameters(model)})

    return prepare


SYSTEMS = {
    "full": System(LOW, lambda model, masks: None),
    "full-all": System(LOW, lambda model, masks: None, replays=True),
    "lora": System(HIGH, _lora),
    "delta-95": System(HIGH, _delta("95")),
    "delta-50": System(HIGH, _delta("50")),
    "delta-50-random": System(HIGH, _delta("50-random")),
    "adapters": System(HIGH, _adapters, follows=_follow_adapters),
    "joint": System(LOW, _joint),
    "joint-all": System(LOW, _joint, replays=True),
}


class Trainer(SpecializedTrainer):
    """With what a system has of its own to route."""

    follows: Callable[[Any, str | None], None] = staticmethod(lambda model, asked: None)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.follows(self.model, inputs["direction"])
        return super().compute_loss(model, inputs, *args, **kwargs)


# Text, base, masks ----------------------------------------------------------------------------


def read(args: Any, split: str, few: int | None = None) -> dict[str, Pairs]:
    """Direction -> pairs; of the tuned ones the first ``few``, and of all the first ``args.pairs``."""
    found = {}
    for lang in list(CODES)[1:]:
        sides = [
            (args.corpus / "raw" / f"{split}.{lang}-en.{side}").read_text(encoding="utf-8").splitlines()
            for side in (lang, "en")
        ]
        pairs = list(zip(*sides, strict=True))[: args.pairs]
        for name, of in (
            (f"{CODES[lang]}-{CODES['en']}", pairs),
            (f"{CODES['en']}-{CODES[lang]}", [pair[::-1] for pair in pairs]),
        ):
            found[name] = of[:few] if name in TUNED else of
    return found


def arguments(folder: Path, args: Any, seed: int, **more: Any) -> Any:
    return transformers.Seq2SeqTrainingArguments(
        str(folder), use_cpu=not torch.cuda.is_available(), seed=seed, report_to=[], logging_steps=50,
        dataloader_pin_memory=False, disable_tqdm=True, label_smoothing_factor=0.1, adam_beta2=0.98, **more,
    )  # fmt: skip


def make_base(args: Any, seed: int, folder: Path) -> Path:
    """The base: a random model of NLLB's kind, trained on all directions, temperature 2."""
    base, untrained = folder / "base", folder / "untrained"
    if (base / "complete.json").is_file():
        return base
    text = read(args, "train", FEW)
    lines = [line for pairs in read(args, "train").values() for pair in pairs for line in pair]
    tokenizer = tiny_model.learn_tokenizer(iter(lines), args.pieces)
    transformers.set_seed(seed)
    model = tiny_model.build(tokenizer, size=64, ffn=256, layers=2, seed=seed)
    tokenizer.save_pretrained(untrained)
    model.save_pretrained(untrained)
    model, tokenizer = load_model(untrained), load_tokenizer(untrained)
    training = arguments(
        base, args, seed, max_steps=args.base_updates, learning_rate=0.005, warmup_steps=args.base_updates // 10,
        save_steps=200, save_total_limit=1,
    )  # fmt: skip
    trainer = SpecializedTrainer(
        model, training, DirectedText(text, tokenizer, model), max_tokens=args.max_tokens, temperature=2
    )
    trainer.train(resume_from_checkpoint=any(base.glob("checkpoint-*")))
    tokenizer.save_pretrained(base)
    model.save_pretrained(base)
    write_json(base / "complete.json", {"log": trainer.state.log_history})
    return base


def make_masks(base: Path, args: Any) -> dict[str, NeuronMasks]:
    """Of each k, from validation text of all directions."""
    file = base / "profile.safetensors"
    if not file.is_file():
        profile(load_model(base), read(args, "valid"), load_tokenizer(base)).save(file)
    from neuron_spec.neurons.activations import ActivationCounts

    counts = ActivationCounts.load(file)
    masks = {k: select(counts, k=float(k)) for k in ("95", "50")}
    return {**masks, "50-random": matched_random(masks["50"], seed=1)}


# Tuning ---------------------------------------------------------------------------------------


def losses(model: Any, system: System, text: DirectedText) -> dict[str, float]:
    """Nats a token of each direction; a system of parts per direction runs through those of the direction."""
    found = {}
    for one in text.directions:
        system.follows(model, str(one))
        found |= {str(k): v.per_token for k, v in text_loss(model, text.of([one])).items()}
    return found


def tune(
    name: str, rate: float, base: Path, masks: Any, text: Mapping[str, DirectedText], args: Any, seed: int
) -> dict[str, Any]:
    system, model = SYSTEMS[name], load_model(base)
    system.prepare(model, masks)
    trained = [p for p in model.parameters() if p.requires_grad]
    folder = base.parent / name / f"lr-{rate}"
    training = arguments(
        folder,
        args,
        seed,
        max_steps=args.updates,
        learning_rate=rate,
        warmup_steps=args.updates // 10,
        save_strategy="no",
    )
    trainer = Trainer(model, training, text["all" if system.replays else "tuned"], max_tokens=args.max_tokens)
    trainer.follows = system.follows
    trainer.train()
    count = sum(p.numel() for p in trained)
    return {
        "system": name, "rate": rate, "parameters": count,
        "valid": losses(model, system, text["valid"]), "test": losses(model, system, text["test"]),
    }  # fmt: skip


def speeds(base: Path, masks: Any, text: Mapping[str, DirectedText], args: Any) -> dict[str, float]:
    """Each system's updates a second against those of full, the median of rounds in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    trainers = {}
    for name, system in SYSTEMS.items():
        model = load_model(base)
        system.prepare(model, masks)
        trainers[name] = model, system
    for round_ in range(args.rounds + 1):
        for name, (model, system) in trainers.items():
            training = arguments(
                base.parent / "speed", args, 1, max_steps=4, learning_rate=1e-5, save_strategy="no"
            )
            trainer = Trainer(model, training, text["tuned"], max_tokens=args.max_tokens)
            trainer.follows = system.follows
            start = time.perf_counter()
            trainer.train()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    ratios = {name: sorted(f / s for f, s in zip(seconds["full"], of)) for name, of in seconds.items()}
    return {name: of[len(of) // 2] for name, of in ratios.items()} | {
        "updates_per_second_of_full": 4 / sorted(seconds["full"])[len(seconds["full"]) // 2]
    }


def rows_of(
    folder: Path, before: Mapping[str, Mapping[str, float]], speed: Mapping[str, float]
) -> Iterator[list[Any]]:
    """The table's rows of a seed, without it."""
    yield ["base", "", f"{mean(before['test'], tuned=True):.3f}", *[""] * 6]
    for name, system in SYSTEMS.items():
        tried = [
            json.loads((folder / name / f"lr-{rate}" / "outcome.json").read_text()) for rate in system.rates
        ]
        best = min(tried, key=lambda one: mean(one["valid"], tuned=True))
        change = {key: value - before["test"][key] for key, value in best["test"].items()}
        others = [value for key, value in change.items() if key not in TUNED]
        yield [
            name, best["rate"], f"{mean(best['test'], tuned=True):.3f}", f"{mean(change, tuned=True):+.3f}",
            f"{mean(change, tuned=False):+.3f}", f"{max(others):+.3f}", best["parameters"], 4 * best["parameters"],
            f"{speed[name]:.2f}",
        ]  # fmt: skip


def mean(of: Mapping[str, float], *, tuned: bool) -> float:
    values = [value for key, value in of.items() if (key in TUNED) == tuned]
    return sum(values) / len(values)


COLUMNS = (
    "seed", "system", "learning_rate", "tuned_nats", "tuned_change", "others_change", "others_worst_change",
    "trained_parameters", "trained_bytes", "speed_against_full",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="where everything goes")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--results", type=Path, metavar="FILE", help="copy the table there")
    parser.add_argument("--smoke", action="store_true", help="few updates and pairs: does it run")
    args = parser.parse_args()
    args.base_updates, args.updates, args.max_tokens, args.pieces, args.rounds, args.pairs = (
        (1200, 200, 2000, 2000, 3, None) if not args.smoke else (4, 2, 500, 500, 1, 200)
    )
    table = []
    for seed in map(int, args.seeds.split(",")):
        folder = args.run / f"seed-{seed}"
        base = make_base(args, seed, folder)
        masks, model, tokenizer = make_masks(base, args), load_model(base), load_tokenizer(base)
        everything = DirectedText(read(args, "train"), tokenizer, model)
        text = {"all": everything, "tuned": everything.of(TUNED)}
        text |= {split: DirectedText(read(args, split), tokenizer, model) for split in ("valid", "test")}
        plain = System((), lambda model, masks: None)
        before = {split: losses(model, plain, text[split]) for split in ("valid", "test")}
        write_json(folder / "base.json", before)
        for name, system in SYSTEMS.items():
            for rate in system.rates:
                outcome = folder / name / f"lr-{rate}" / "outcome.json"
                if not outcome.is_file():
                    write_json(outcome, tune(name, rate, base, masks, text, args, seed))
                    print(outcome, flush=True)
        if not (folder / "speed.json").is_file():
            write_json(folder / "speed.json", speeds(base, masks, text, args))
        speed = json.loads((folder / "speed.json").read_text())
        table += [[seed, *row] for row in rows_of(folder, before, speed)]
    lines = [",".join(map(str, row)) for row in (COLUMNS, *table)]
    for path in (args.run / "comparison.csv", *([args.results] if args.results else [])):
        write_text(path, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
