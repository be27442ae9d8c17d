"""Small runs of made-up systems, in both layouts, for tests of what is made of whole runs."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from neuron_spec.artifacts import signature, write_json
from neuron_spec.directions import Direction
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.evaluation import evaluate, write_evaluation
from neuron_spec.scoring.metrics import Outputs

CODES = {"de": "Germanic", "nl": "Germanic", "es": "Romance", "pt": "Romance"}
WORDS = ["ba", "ko", "li", "mu", "pe", "na", "ro", "ti"]
LAYERS = [f"{side}.layers.{number}" for side in ("encoder", "decoder") for number in range(2)]
# Of en-de.
REFERENCES = [
    "Das Haus ist heute sehr alt .",
    "Die Katze schläft auf dem Sofa .",
    "Wir fahren morgen mit dem Zug nach Berlin .",
    "Er hat das Licht im Bad ausgeschaltet .",
]
HYPOTHESES = [
    "Das Haus ist heute alt .",
    "Die Katze liegt auf dem Sofa .",
    "Wir fahren mit dem Zug nach Berlin .",
    "Das Licht im Bad ist aus .",
]
EVIL = "<script>alert(1)</script>"


def around_english(codes):
    return [d for code in codes for d in (Direction("en", code), Direction(code, "en"))]


def write_card(folder: Path, families) -> None:
    write_json(
        folder / "corpus" / "corpus.json",
        {
            "name": "toy",
            "langs": ["en", *families],
            "lang_pairs": [str(d) for d in around_english(families)],
            "families": {**families, "en": "Germanic"},
            "tiers": dict.fromkeys(families, "high"),
            "sources": [{"name": f"text {EVIL}", "licence": "MIT", "sha256": "ab" * 32}],
            "pairs": {split: dict.fromkeys(families, 1200) for split in ("train", "valid", "test")},
            "leak_report": {},
            "signature": signature(
                "data", inputs={}, parameters={"corpus": "toy", "langs": list(families), "seed": 3}
            ),
        },
    )


def log_of(hypotheses, references, sources=None, order=None):
    lines = []
    for i in order or range(len(hypotheses)):
        lines += [f"S-{i}\t{sources[i]}"] if sources else []
        lines += [f"T-{i}\t{references[i]}", f"H-{i}\t-0.5\t{hypotheses[i]}"]
        lines += [f"D-{i}\t-0.5\t{hypotheses[i]}", f"P-{i}\t-0.1 -0.2"]
    return "\n".join(lines) + "\nGenerate test with beam=5: BLEU4 = 1.0\n"


def write_log(folder, text, direction="en-de"):
    path = folder / direction / "generate-test.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_masks(path: Path, directions, *, keep_all=False) -> None:
    generator = torch.Generator().manual_seed(1)
    kept = {layer: torch.rand(len(directions), 40, generator=generator) < 0.8 for layer in LAYERS}
    if keep_all:
        kept = {layer: torch.ones_like(rows) for layer, rows in kept.items()}
    made = signature(
        "select",
        inputs={"profile": "cd" * 32},
        parameters={
            "k_percent": {side: {str(d): 90.0 for d in directions} for side in ("encoder", "decoder")}
        },
    )
    metadata = {"method": "cumulative", "signature": made, "k_percent": made["parameters"]["k_percent"]}
    NeuronMasks(directions, kept, metadata).save(path)


def write_system(folder: Path, directions, share: float, seed=0) -> None:
    """Each word is replaced with probability ``share``; the first hypothesis attacks the page."""
    outputs = []
    for direction in directions:
        words = random.Random(str(direction))
        references = [" ".join(words.choices(WORDS, k=7)) for _ in range(12)]
        chance = random.Random(f"{direction} {share} {seed}")
        written = [
            " ".join(chance.choice(WORDS) if chance.random() < share else w for w in line.split())
            for line in references
        ]
        written[0] = f"{EVIL} {written[0]}"
        outputs.append(Outputs(direction, written, references, [line.upper() for line in references]))
    made = signature(
        "evaluate",
        inputs={"checkpoint": f"{0xEF - seed:x}" * 32, "masks": "e3b0"},
        parameters={
            "subset": "test",
            "beam": 5,
            "references": "raw",
            "directions": [str(d) for d in directions],
        },
    )
    families = {**CODES, "en": "Germanic"}
    write_evaluation(folder, evaluate(outputs, signature=made, families=families, tiers={"de": "high"}))


SYSTEMS = {"dense": 0.3, "dense-continuation": 0.28, "specialized": 0.25}


def write_run(folder: Path, *, families=CODES, directions=None, systems=SYSTEMS, **masks) -> Path:
    directions = directions or around_english(families)
    write_card(folder, families)
    write_masks(folder / "masks.safetensors", directions, **masks)
    for name, share in systems.items():
        write_system(folder / "evaluation" / name, directions, share)
    return folder


def write_experiment(folder: Path, seeds) -> Path:
    """``seeds``: number -> system -> share of words replaced."""
    write_card(folder, CODES)
    directions = around_english(CODES)
    for number, systems in seeds.items():
        of = folder / f"seed-{number}"
        for name in ("specialized", "matched-random"):
            write_masks(of / "masks" / f"{name}.safetensors", directions)
        for name, share in systems.items():
            write_system(of / "evaluation" / name, directions, share, seed=number)
    return folder
