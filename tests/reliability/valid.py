"""A small valid file of every format that is read, and the commands that read it."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_run
import torch

from neuron_spec.artifacts import write_json
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.endpoints import SentenceScores
from neuron_spec.scoring.evaluation import evaluate, with_sentences, write_evaluation
from neuron_spec.scoring.metrics import Outputs
from neuron_spec.studies.subnetworks.page import KNOWN

HAS_HUGGINGFACE = importlib.util.find_spec("transformers") is not None
OUTPUT = "new"
PAIRS = "en-qa,qa-en"
_MODEL = "corpus/data-bin --path dense.pt --cpu --lang-pairs en-qa,qa-en --output new"
_SHORT = "--beam 1 -- --max-len-a 0 --max-len-b 3"
_TEXT = "--train text/train --valid text/valid --test text/test --vocab-size 300 --workers 1 --output new"
_WEIGHT_MASKS = "weights.safetensors"
_TO_DE = "eng_Latn-deu_Latn"
_DELTA = f"{_TO_DE}.delta.safetensors"

# What a command is called here -> its words. Outputs are in `OUTPUT`, which is not there before.
COMMANDS = {
    "profile": f"profile {_MODEL}/p.safetensors",
    "select": "select profile.safetensors --output new/m.safetensors",
    "specialize": "specialize corpus/data-bin --path dense.pt --masks masks.safetensors --config config.yaml "
    "--save-dir new --dry-run",
    "masks vote": "masks vote masks.safetensors twin.safetensors --output new/m.safetensors",
    "masks vote weights": f"masks vote {_WEIGHT_MASKS} {_WEIGHT_MASKS} --output new/m.safetensors",
    "masks add": "masks add few.safetensors profile.safetensors --lang-pairs en-qm --output new/m.safetensors",
    "masks import-official": "masks import-official official --path dense.pt --output new/m.safetensors",
    "masks import-activations": "masks import-activations counts --path dense.pt --lang-pairs en-qa,qa-en "
    "--output new/p.safetensors",
    "masks export-official": "masks export-official masks.safetensors --path dense.pt --output new",
    "export": "export --path dense.pt --data-bin corpus/data-bin --direction en-qa --format fairseq --output new",
    "export specialized": "export --path specialized.pt --data-bin corpus/data-bin --direction en-qa "
    "--format fairseq --output new",
    "translate": "translate --path dense.pt --data-bin corpus/data-bin --direction en-qa --input text.txt --cpu "
    "--beam 1 --max-len-b 3 --output new/t.txt",
    "translate export": "translate --path export --direction en-qa --input text.txt --cpu --beam 1 --max-len-b 3 "
    "--output new/t.txt",
    "evaluate": f"evaluate {_MODEL} {_SHORT}",
    "evaluate specialized": f"evaluate {_MODEL} {_SHORT}".replace("dense.pt", "specialized.pt"),
    "evaluate lenpen": f"evaluate {_MODEL} --lenpen-from lenpen.json {_SHORT}",
    "evaluate logs": "evaluate --generate-output logs/de-en/generate-test.txt logs/en-de/generate-test.txt "
    "--output new",
    "compare": "compare run/evaluation/dense run/evaluation/specialized --bootstrap 20 --output new",
    "report": "report run",
    "report published": "report run --published published.csv",
    "sweep": "sweep sweep --output new",
    "systems": "systems systems --comparison run/comparison/against-dense --output new",
    "verdict": "verdict run/comparison --output new",
    "subnetworks": "subnetworks subnetworks --output new",
    "bilingual updates": "bilingual updates corpus/data-bin en-qa --config config.yaml --of 100",
    "bilingual join": "bilingual join run/evaluation/dense --output new",
    "flags": "flags config.yaml",
    "checkpoint shrink": "checkpoint shrink --path dense.pt --corpus corpus --output new/d.pt",
    "checkpoint average": "checkpoint average --inputs dense.pt other.pt --output new/d.pt",
    "checkpoint add-language": "checkpoint add-language xx --path dense.pt --data-bin corpus/data-bin "
    "--output new/d.pt",
    "checkpoint check": "checkpoint check shipped.json --corpus corpus",
    "analyze": "analyze masks.safetensors --permutations 20 --output new",
    # Whose output is there already.
    "analyze again": "analyze masks.safetensors --permutations 20 --output run/analysis",
    "masks export-official again": "masks export-official masks.safetensors --path dense.pt --output official",
    "evaluate again": f"evaluate {_MODEL} --tune-lenpen --tune-sentences 2 {_SHORT}".replace("new", "tuned"),
    "analyze profile": "analyze masks.safetensors --profile profile.safetensors half.safetensors "
    "--permutations 20 --output new",
    "analyze card": "analyze masks.safetensors --corpus-card corpus/corpus.json --permutations 20 --output new",
    "analyze distances": "analyze masks.safetensors --distances distances.csv --permutations 20 --output new",
    "ablate": f"ablate {_MODEL} --masks masks.safetensors --fraction 0.1 --random-draws 1",
    "conflict": f"conflict {_MODEL}",
    "conflict masks": f"conflict {_MODEL} --masks masks.safetensors",
    "conflict overlap": f"conflict {_MODEL} --overlap masks.safetensors",
    "transfer": f"transfer {_MODEL} --lr 0.1 --sentences 4",
    "transfer masks": f"transfer {_MODEL} --lr 0.1 --sentences 4 --masks masks.safetensors",
    "adapt": f"adapt {_MODEL} --shots 0,2 --steps 1 --lr 0.1 {_SHORT}",
    "importance": f"importance {_MODEL}/i.safetensors --sentences 4",
    "prune": f"prune {_MODEL}/m.safetensors --sentences 4 --max-steps 1 --quality-floor 0.5",
    "prune copies": f"prune {_MODEL}/m.safetensors --sentences 4 --max-steps 1 --fine-tune config.yaml --work new/w",
    "lass": f"lass {_MODEL}/m.safetensors --config config.yaml --alpha 0.5 --work new/w",
    "lass again": f"lass {_MODEL}".replace("new", _WEIGHT_MASKS)
    + " --config config.yaml --alpha 0.5 --work new/w",
    "unshare": "unshare --path dense.pt --output new",
    "data existing": "data existing corpus/data-bin --output new",
    "data families": "data existing corpus/data-bin --families families.json --output new",
    "data ec30": "data ec30 --data-bin ec30 --langs de --shards 1 --output new",
    "data text": f"data text {_TEXT}",
    "data text pieces": f"data text {_TEXT} --sentencepiece pieces.model".replace(" --vocab-size 300", ""),
    "translate pieces": "translate --path dense.pt --data-bin corpus/data-bin --spm pieces.model --direction en-qa "
    "--input text.txt --cpu --output new/t.txt",
    "translate export pieces": "translate --path export --spm pieces.model --direction en-qa --input text.txt --cpu "
    "--output new/t.txt",
    "export pieces": "export --path dense.pt --data-bin corpus/data-bin --direction en-qa --format fairseq "
    "--spm pieces.model --output new",
}
_TUNE = (
    f"tune --hf hf --masks hf-masks.safetensors --text parallel/train --updates 2 --cpu --lang-pairs {_TO_DE}"
)
_OF_HUGGINGFACE = {
    "tune": f"{_TUNE} --mode delta --valid parallel/valid --output new",
    "tune joint": f"{_TUNE} --mode joint --output new",
    "tune again": f"{_TUNE} --mode delta --valid parallel/valid --output deltas",
    "tune on": f"{_TUNE} --mode delta --valid parallel/valid --output begun --save-interval-updates 1",
    "tune specialized": f"{_TUNE} --mode joint --output new".replace(
        "--hf hf --masks hf-masks.safetensors", "--hf joint"
    ),
    "profile hf": "profile --hf hf --text parallel/valid --cpu --output new/p.safetensors",
    "translate hf": f"translate --hf hf --direction {_TO_DE} --input text.txt --cpu --output new/t.txt",
    "translate joint": f"translate --hf joint --direction {_TO_DE} --input text.txt --cpu --output new/t.txt",
    "translate delta": f"translate --hf hf --delta {_DELTA} --direction {_TO_DE} --input text.txt --cpu --output new/t.txt",
    "export hf": f"export --hf hf --direction {_TO_DE} --format safetensors --output new",
    "export delta": f"export --hf hf --delta {_DELTA} --all --format safetensors --output new",
    "export joint": "export --hf joint --all --format safetensors --output new",
}
# That they take what is valid is shown elsewhere: two train in processes of their own, one needs the sentences of EC30; and
# masks of weights are refused by what votes on neurons; a training that goes on is complete then.
ELSEWHERE = {"prune copies", "lass", "report published", "masks vote weights", "tune on"}

_OF_MODEL = (
    "profile", "evaluate", "ablate", "conflict", "transfer", "adapt", "importance", "prune", "lass",
)  # fmt: skip
_MASKS = (
    "masks vote", "masks add", "masks export-official", "specialize", "analyze", "ablate", "conflict masks",
    "conflict overlap", "transfer masks", "report", "sweep",
)  # fmt: skip
_OF_EVALUATION = ("compare", "report", "sweep", "bilingual join")
_DATA_BIN = "corpus/data-bin/"
_EC30 = "ec30/shard0/"
_SETS = [
    f"{folder}{split}.{of}"
    for folder, of in ((_DATA_BIN, "qa-en.qa"), (_EC30, "en-de.de"))
    for split in ("train", "valid", "test")
]
_CHECKPOINT = "begun/checkpoints/checkpoint-1"


@dataclass(frozen=True)
class Format:
    """What is damaged together, and who reads it.

    Attributes:
        files: of which a command reads at least one.
        readers: names of `COMMANDS`.
    """

    files: tuple[str, ...]
    readers: tuple[str, ...]


FORMATS = {
    "profile": Format(("profile.safetensors",), ("select", "masks add", "analyze profile")),
    "masks": Format(
        (
            "masks.safetensors", "few.safetensors", "run/masks.safetensors", "sweep/k-90/masks.safetensors",
        ),
        _MASKS,
    ),
    "checkpoint": Format(
        ("dense.pt", "systems/dense/checkpoint_last.pt"),
        (
            *_OF_MODEL, "prune copies", "specialize", "export", "translate", "unshare", "checkpoint shrink",
            "checkpoint average", "checkpoint add-language", "masks export-official", "masks import-official",
            "masks import-activations", "systems",
        ),
    ),
    "specialized checkpoint": Format(("specialized.pt",), ("export specialized", "evaluate specialized")),
    "index": Format(
        tuple(f"{name}.idx" for name in _SETS),
        (*_OF_MODEL, "specialize", "data existing", "data ec30"),
    ),
    "data": Format(
        tuple(f"{name}.bin" for name in _SETS),
        (*_OF_MODEL, "specialize", "data existing", "data ec30"),
    ),
    "dictionary": Format(
        (f"{_DATA_BIN}dict.qa.txt", f"{_EC30}dict.de.txt"),
        (*_OF_MODEL, "specialize", "export", "translate", "checkpoint add-language", "data existing", "data ec30"),
    ),
    "scores": Format(
        ("run/evaluation/specialized/scores.json", "run/evaluation/dense/scores.json",
         "sweep/k-90/evaluation/specialized/scores.json"),
        _OF_EVALUATION,
    ),
    "sentence scores": Format(("run/evaluation/dense/sentences/en-de.csv",), ("compare", "report", "bilingual join")),
    "texts of an evaluation": Format(
        ("run/evaluation/dense/hypotheses/en-de.txt", "sweep/k-90/evaluation/specialized/hypotheses/en-de.txt"),
        _OF_EVALUATION,
    ),
    "comparison": Format(
        ("run/comparison/against-dense/comparison.json", "subnetworks/against-full/comparison.json",
         "subnetworks/shots-5/comparison.json"),
        ("verdict", "systems", "subnetworks"),
    ),
    "card": Format(
        ("corpus/corpus.json", "run/corpus/corpus.json"),
        (
            *_OF_MODEL, "specialize", "report", "analyze card", "checkpoint shrink", "checkpoint check",
            "bilingual updates",
        ),
    ),
    "config": Format(("config.yaml",), ("flags", "specialize", "lass", "prune copies", "bilingual updates")),
    "log": Format(
        ("logs/de-en/generate-test.txt", "logs/en-de/generate-test.txt"), ("evaluate logs",)
    ),
    "export": Format(("export/en-qa/export.json",), ("translate export",)),
    "length penalty": Format(("lenpen.json",), ("evaluate lenpen",)),
    "published scores": Format(("published.csv",), ("report published",)),
    "distances": Format(("distances.csv",), ("analyze distances",)),
    "families": Format(("families.json",), ("data families",)),
    "official masks": Format(("official/en-qa.pt", "official/qa-en.pt"), ("masks import-official",)),
    "official counts": Format(("counts/en-qa/activations.pkl",), ("masks import-activations",)),
    "shipped": Format(("shipped.json",), ("checkpoint check",)),
    "finished page": Format(("run/analysis/analysis.json",), ("analyze again",)),
    "signature": Format(
        ("official/signature.json", "tuned/signature.json"), ("masks export-official again", "evaluate again")
    ),
    "ablation": Format(("run/ablation/ablation.json",), ("report",)),
    "conflict": Format(("run/conflict/conflict.json",), ("report",)),
    "transfer": Format(("run/transfer/transfer.json",), ("report",)),
    "adaptation": Format(("run/adaptation/adaptation.json",), ("report",)),
    "weight masks": Format((_WEIGHT_MASKS,), ("lass again", "masks vote weights")),
    "pieces": Format(
        ("pieces.model",), ("data text pieces", "translate pieces", "translate export pieces", "export pieces"),
    ),
    "text": Format(tuple(f"text/{split}.qa-en.qa" for split in ("train", "valid", "test")), ("data text",)),
}  # fmt: skip
_LOADING = ("tune", "profile hf", "translate hf", "export hf")
_FORMATS_OF_HUGGINGFACE = {
    "hf configuration": Format(("hf/config.json",), _LOADING),
    "hf weights": Format(("hf/model.safetensors",), _LOADING),
    "hf tokenizer": Format(("hf/tokenizer.json",), _LOADING),
    "hf tokenizer's configuration": Format(("hf/tokenizer_config.json",), _LOADING),
    "hf masks": Format(("joint/neuron_masks.safetensors",), ("tune specialized", "translate joint", "export joint")),
    "delta": Format((_DELTA,), ("translate delta", "export delta")),
    "parallel text": Format(
        (f"parallel/train.{_TO_DE}.deu_Latn", f"parallel/valid.{_TO_DE}.deu_Latn"),
        ("tune", "tune joint", "tune again", "profile hf"),
    ),
    "losses": Format(("deltas/losses.json",), ("tune again",)),
    "begun tuning": Format(("begun/signature.json",), ("tune on",)),
    "losses before": Format(("begun/losses-before.json",), ("tune on",)),
    "state of a tuning": Format((f"{_CHECKPOINT}/trainer_state.json",), ("tune on",)),
    "what a tuning is of": Format((f"{_CHECKPOINT}/neuron_training.json",), ("tune on",)),
    "delta of a tuning": Format((f"{_CHECKPOINT}/{_DELTA}",), ("tune on",)),
    "optimizer of a tuning": Format((f"{_CHECKPOINT}/optimizer.pt",), ("tune on",)),
}  # fmt: skip
if HAS_HUGGINGFACE:
    COMMANDS |= _OF_HUGGINGFACE
    FORMATS |= _FORMATS_OF_HUGGINGFACE
    FORMATS["masks"] = Format(
        (*FORMATS["masks"].files, "hf-masks.safetensors"), (*_MASKS, "tune", "tune joint")
    )


def words_of(name: str) -> list[str]:
    return COMMANDS[name].split()


def _run(name: str, output: str | None = None) -> None:
    words = [
        word.replace(OUTPUT, output, 1) if output and word.startswith(OUTPUT) else word
        for word in words_of(name)
    ]
    assert main(words) == 0, name


def write(folder: Path, workshop: Any) -> None:
    """Write all of it into the folder, which is the working directory."""
    shutil.copytree(workshop.data_bin.parent, "corpus")
    workshop = type(workshop)(folder / "corpus/data-bin")
    cfg, task, model = workshop.build()
    workshop.save(Path("dense.pt"), cfg, model)
    workshop.save(Path("other.pt"), cfg, workshop.build(seed=2)[2])
    Path("config.yaml").write_text(
        workshop.fine_tuning(
            **{"warmup-updates": 1, "sampling-method": "temperature", "sampling-temperature": 2}
        )
    )
    Path("text.txt").write_text("ba ko li\n")
    every = COMMANDS["profile"].replace("--lang-pairs en-qa,qa-en ", "")
    assert main(every.replace("new/p", "profile").split()) == 0
    assert main([*every.replace("new/p", "half").split(), "--part", "1/2"]) == 0
    _run("select", "select")
    for name in ("masks", "twin"):
        shutil.copy("select/m.safetensors", f"{name}.safetensors")
        shutil.copy("select/m.json", f"{name}.json")
    masks, profile = NeuronMasks.load("masks.safetensors"), ActivationCounts.load("profile.safetensors")
    masks.of(PAIRS.split(",")).save("few.safetensors")
    model.set_masks(masks, task.langs)
    workshop.save(Path("specialized.pt"), cfg, model)
    _run("masks export-official", "official")
    for row, name in enumerate(profile.names):
        file = Path("counts", name, "activations.pkl")
        file.parent.mkdir(parents=True)
        counts = {
            layer.replace(".layers.", "_layer_"): rows[row].clone() for layer, rows in profile.counts.items()
        }
        file.write_bytes(pickle.dumps(counts))
    _run("export", "export")
    words = (
        COMMANDS["evaluate"].replace("new", "tuned").replace(" -- ", " --tune-lenpen --tune-sentences 2 -- ")
    )
    assert main(words.split()) == 0
    shutil.copy("tuned/lenpen.json", "lenpen.json")
    _run("checkpoint shrink", "shrunk")
    for suffix in ("pt", "json"):
        shutil.copy(f"shrunk/d.{suffix}", f"shipped.{suffix}")
    write_json("families.json", {"qa": "A", "qb": "B", "qm": "A", "en": "Germanic"})
    _write_run(folder / "run")
    _write_sweep(folder / "sweep")
    for system in ("dense", "specialized"):
        place = Path("systems", system, "checkpoint_last.pt")
        place.parent.mkdir(parents=True)
        shutil.copy(f"{system}.pt", place)
    for name in (KNOWN, "shots-0", "shots-5"):
        shutil.copytree("run/comparison/against-dense", f"subnetworks/{name}")
    for name in ("analyze", "ablate", "conflict masks", "transfer masks", "adapt"):
        kind = {"analyze": "analysis", "ablate": "ablation", "adapt": "adaptation"}.get(name, name.split()[0])
        _run(name, f"run/{kind}")
    codes = sorted({code for d in masks.directions for code in (d.source, d.target)})
    rows = [f"{a},{b},{0 if a == b else 2}" for a in codes for b in codes]
    Path("distances.csv").write_text("\n".join(["language,language,distance", *rows]) + "\n")
    Path("published.csv").write_text("system,metric,scope,tier,group,value\ndense,bleu,mean,all,all,1.5\n")
    _write_weight_masks(model)
    _write_text()
    if HAS_HUGGINGFACE:
        _write_huggingface()


def _write_weight_masks(model: Any) -> None:
    """As of a lass whose copies did not move."""
    from neuron_spec.backends.fairseq.config import read_flags
    from neuron_spec.backends.fairseq.fine_tuning import FineTuning
    from neuron_spec.studies.lass.measure import Masking, make_masks
    from neuron_spec.studies.lass.weight_masks import WeightMasks

    flags, directions = [*read_flags(Path("config.yaml")), "--cpu"], parse_directions(PAIRS)
    training = FineTuning(Path("dense.pt"), Path("corpus/data-bin"), directions, flags)
    for direction in directions:
        masks = WeightMasks.by_magnitude(model.state_dict(), direction, 0.5)
        masks.metadata |= {"seconds": 1.0, "signature": training.signature("lass", [direction])}
        masks.save(Path("lass", str(direction), "alpha-0.5.safetensors"))
    make_masks(training, Masking(0.5), Path(_WEIGHT_MASKS), Path("lass"))


def _write_text() -> None:
    """Text of a pair, a SentencePiece model of its pieces, and the same as a data-bin of EC30's."""
    shutil.copytree("corpus/raw", "text")
    shutil.copy("corpus/spm/sentencepiece.model", "pieces.model")
    Path(_EC30).mkdir(parents=True)
    for file in Path("corpus/data-bin").glob("*.qa-en.*"):
        split, _, lang, end = file.name.split(".")
        shutil.copy(file, f"{_EC30}{split}.en-de.{lang.replace('qa', 'de')}.{end}")
    for lang in ("en", "de"):
        shutil.copy(f"corpus/data-bin/dict.{lang.replace('de', 'qa')}.txt", f"{_EC30}dict.{lang}.txt")


def _write_huggingface() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "backends/huggingface"))
    import tiny_models
    import tiny_tokenizers

    from neuron_spec.backends.huggingface import add_delta, save_delta, save_specialized, specialize

    tokenizer = tiny_tokenizers.nllb()
    model = tiny_models.build(vocab_size=tiny_tokenizers.size(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained("hf")
    Path("parallel").mkdir()
    for name, lang in zip(_TO_DE.split("-"), ("en", "de"), strict=True):
        for split in ("train", "valid"):
            text = "".join(f"{line}\n" for line in tiny_tokenizers.TEXT[lang])
            Path(f"parallel/{split}.{_TO_DE}.{name}").write_text(text, encoding="utf-8")
    masks = tiny_models.random_masks(model, directions=[_TO_DE, "deu_Latn-eng_Latn"])
    masks.save("hf-masks.safetensors")
    save_delta(add_delta(model, _TO_DE, masks), _TO_DE, _DELTA)
    save_specialized(
        specialize(tiny_models.build(vocab_size=model.config.vocab_size), masks), "joint", tokenizer
    )
    _run("tune", "deltas")
    _begin_tuning()


def _begin_tuning() -> None:
    """What a training that ended behind its first checkpoint leaves."""
    from unittest import mock

    from neuron_spec.backends.huggingface.training import SpecializedTrainer

    save = SpecializedTrainer._save_checkpoint

    def end(self: Any, *args: Any, **named: Any) -> None:
        save(self, *args, **named)
        raise KeyboardInterrupt

    with mock.patch.object(SpecializedTrainer, "_save_checkpoint", end):
        assert main(words_of("tune on")) == 130


def _write_run(run: Path) -> None:
    systems = {"dense": 0.3, "specialized": 0.25}
    small_run.write_run(run, families={"de": "Germanic", "es": "Romance"}, systems=systems)
    for number, name in enumerate(systems):
        small_run.write_system(
            run / "evaluation" / name, small_run.around_english(["de", "es"]), systems[name]
        )
        _with_likelihoods(run / "evaluation" / name, 2.0 + number / 10)
    words = ["compare", "run/evaluation/dense", "run/evaluation/specialized"]  # as the report makes it
    assert main([*words, "--output", "run/comparison/against-dense"]) == 0
    for name in ("de-en", "en-de"):
        lines = [f"{word} Haus ." for word in ("Das", "Ein", "Kein")]
        small_run.write_log(Path("logs"), small_run.log_of(lines, lines[::-1], lines), name)


def _with_likelihoods(folder: Path, nll: float) -> None:
    from neuron_spec.scoring.evaluation import read_evaluation

    of = read_evaluation(folder)
    tokens = np.arange(1.0, len(of.outputs[0].references) + 1)
    sentences = {each.direction: SentenceScores(nll * tokens, tokens) for each in of.outputs}
    write_evaluation(folder, with_sentences(of, sentences))


def _write_sweep(sweep: Path) -> None:
    references = [f"the {noun} is {state}" for noun in ("lamp", "door") for state in ("on", "off")]
    directions = [Direction("en", "de"), Direction("de", "en")]
    for place, right in (("evaluation/dense", 2), ("k-90/evaluation/specialized", 3)):
        outputs = [Outputs(d, [*references[:right], *["a"] * (4 - right)], references) for d in directions]
        made = {"stage": "evaluate", "inputs": {"checkpoint": "a" * 64, "masks": "b" * 64}, "parameters": {}}
        write_evaluation(sweep / place, evaluate(outputs, signature=made))
    kept = torch.arange(10) < 6
    of = {f"{side}.layers.0": kept.repeat(2, 1) for side in ("encoder", "decoder")}
    ks = {str(d): 90.0 for d in directions}
    metadata = {"k_percent": {"encoder": ks, "decoder": ks}, "checkpoint_sha256": "a" * 64}
    NeuronMasks(directions, of, metadata).save(sweep / "k-90/masks.safetensors")
