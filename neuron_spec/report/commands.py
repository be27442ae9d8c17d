"""The commands that repeat a run, as far as its artefacts know them.

Signatures hold what each stage was made from, ``complete.txt`` beside a training's checkpoint the very
command. What is in none of them (a device, a file from elsewhere) stands in capitals.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.report.run_folder import DENSE, RANDOM, Run, Seed
from neuron_spec.scoring.comparison import System

_MARK = "complete.txt"  # of scripts/once.sh: the command, then a hash for each input file
_LAST = "checkpoint_last.pt"


def script_of(run: Run) -> str | None:
    """The script that makes runs of this layout from this corpus; None if there is none."""
    script = "scripts/experiments/homeassistant.sh" if run.has_seeds else "scripts/quickstart.sh"
    sizes = {"homeassistant": (), "toy": ("--smoke",)}
    if run.card["name"] not in sizes:
        return None
    seeds = ("--seeds", ",".join(str(seed.number) for seed in run.seeds)) if run.has_seeds else ()
    return _line(script, *sizes[run.card["name"]], *seeds, "--run", run.folder)


def commands_of(run: Run, comparisons: Mapping[Path, Sequence[System]]) -> str:
    """All commands in their order, one a line, each seed after the other.

    Args:
        comparisons: as `run_folder.planned_comparisons` returns them.
    """
    lines = [_data(run)]
    for seed in run.seeds:
        if seed.number is not None:
            lines.append(f"# seed {seed.number}")
        lines += _of_seed(run, seed)
    lines += [_compare(run, *comparison) for comparison in comparisons.items()]
    return "\n".join([*lines, _line("neuron-spec", "report", run.folder)])


def _line(*words: object) -> str:
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    # A substitution of ours has to remain one.
    return word if word.startswith('"$(') else shlex.quote(word)


def _data(run: Run) -> str:
    made = run.card["signature"]["parameters"]
    words = ["neuron-spec", "data", made.get("corpus", run.card["name"]), "--output", run.folder / "corpus"]
    words += ["--langs", ",".join(made.get("langs", run.card["pairs"]["train"]))]
    words += [w for split, size in made.get("sizes", {}).items() for w in (f"--{split}-size", size)]
    for name in ("seed", "vocab_size"):
        if name in made:
            words += [f"--{name.replace('_', '-')}", made[name]]
    if "sentencepiece" in made:
        words += ["--sentencepiece", "SENTENCEPIECE_MODEL"]
    return _line(*words)


def _of_seed(run: Run, seed: Seed) -> list[str]:
    data_bin = run.folder / "corpus" / "data-bin"
    trained = {name: training_of(seed.folder / name) for name in (DENSE, *seed.evaluations)}
    checkpoints = _checkpoints(seed, trained)
    dense = checkpoints[DENSE]
    profile = seed.folder / "profile.safetensors"
    lines = [training_command(seed.folder / DENSE)] if trained[DENSE] else []
    if profile.is_file():
        made = ActivationCounts.load(profile).metadata.get("signature", {}).get("parameters", {})
        lines.append(
            _line("neuron-spec", "profile", data_bin, "--path", dense, "--output", profile, *_profile(made))
        )
    masks = {seed.masks_file: seed.masks}
    drawn = seed.masks_file.with_name(f"{RANDOM}.safetensors")
    if RANDOM in seed.evaluations and drawn.is_file():
        masks[drawn] = NeuronMasks.load(drawn)
    for path, made in masks.items():
        selected = made.metadata.get("signature", {}).get("parameters", {})
        lines.append(_line("neuron-spec", "select", profile, "--output", path, *_select(selected)))
    lines += [training_command(seed.folder / n) for n, words in trained.items() if words and n != DENSE]
    for name, evaluation in seed.evaluations.items():
        made = evaluation.signature.get("parameters", {})
        output = seed.folder / "evaluation" / name
        if "beam" in made:
            lines.append(
                _line(
                    "neuron-spec",
                    "evaluate",
                    data_bin,
                    "--path",
                    checkpoints[name],
                    "--output",
                    output,
                    *_evaluate(made),
                )
            )
        else:
            lines.append(_line("neuron-spec", "evaluate", "--generate-output", "LOGS", "--output", output))
    return lines


def training_of(folder: Path) -> list[str]:
    """The words of the command that trained what is in ``folder``; none if no script of ours did."""
    mark = folder / _MARK
    if not mark.is_file():
        return []
    words = shlex.split(mark.read_text(encoding="utf-8").partition("\n")[0])
    if "--user-dir" in words:  # another place on every machine
        words[words.index("--user-dir") + 1] = '"$(neuron-spec user-dir)"'
    return words


def training_command(folder: Path) -> str:
    """What trained what is in ``folder``; empty if no script of ours did, or it is not finished."""
    return " ".join(map(_quoted, training_of(folder)))


def _checkpoints(seed: Seed, trained: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """System -> the checkpoint that was evaluated, as the scripts name it."""
    dense = _dense_checkpoint(seed, trained)
    # An experiment hands on the last or the best checkpoint of every system alike.
    handed_on = dense.name if dense.parent.name == DENSE else _LAST
    return {DENSE: dense} | {n: seed.folder / n / handed_on for n in seed.evaluations if n != DENSE}


def _dense_checkpoint(seed: Seed, trained: Mapping[str, Sequence[str]]) -> Path:
    for words in trained.values():
        if "--finetune-from-model" in words:
            return Path(words[words.index("--finetune-from-model") + 1])
    own = seed.folder / DENSE / _LAST
    return own if own.is_file() else Path("DENSE_CHECKPOINT")


def conflict_command(run: Run, folder: Path, made: Mapping[str, Any]) -> str:
    """What wrote ``folder``, by its signature."""
    end = ": checkpoint"
    checkpoints = {
        name.removesuffix(end): sha256 for name, sha256 in made["inputs"].items() if name.endswith(end)
    }
    return _interference(run, folder, "conflict", checkpoints, made)


def transfer_command(run: Run, folder: Path, made: Mapping[str, Any]) -> str:
    """What wrote ``folder``, by its signature."""
    parameters = made["parameters"]
    flags: list[object] = ["--lr", parameters["lr"], "--steps", parameters["steps"]]
    flags += ["--train-subset", parameters["train_subset"]]
    flags += ["--normalize-rows"] if parameters["normalize_rows"] else []
    return _interference(run, folder, "transfer", {"checkpoint": made["inputs"]["checkpoint"]}, made, *flags)


def _interference(
    run: Run,
    folder: Path,
    command: str,
    checkpoints: Mapping[str, str],
    made: Mapping[str, Any],
    *flags: object,
) -> str:
    parameters = made["parameters"]
    words = [*_on_data(run, command, checkpoints, parameters["directions"]), *flags]
    if parameters["sentences"] != "all":
        words += ["--sentences", parameters["sentences"]]
    # The same for all checkpoints; without --overlap, the sets that overlap are these.
    masks = {value for name, value in made["inputs"].items() if name.split(": ")[-1] == "masks"}
    for flag, fingerprints in (("--masks", masks), ("--overlap", {parameters["overlap"]} - masks)):
        words += [word for own in fingerprints - {"none"} for word in (flag, _masks_file(run, own))]
    words += ["--gen-subset", parameters["subset"], "--seed", parameters["seed"]]
    return _line(*words, "--output", folder)


def adapt_command(run: Run, folder: Path, found: Mapping[str, Any]) -> str:
    """What wrote ``folder``, by its ``adaptation.json``."""
    updates, directions = found["updates"], found["directions"]
    words = _on_data(run, "adapt", {"checkpoint": found["checkpoint_sha256"]}, directions)
    words += ["--shots", ",".join(next(iter(directions.values()))["shots"])]
    words += ["--steps", updates["steps"], "--lr", updates["rate"], "--optimizer", updates["optimizer"]]
    words += ["--train-max-tokens", updates["max_tokens"], "--seed", updates["seed"]]
    if found["borrow"]:
        words += ["--borrow", ",".join(f"{lang}={lender}" for lang, lender in found["borrow"].items())]
    words += ["--gen-subset", found["subset"], "--references", found["references"], "--output", folder]
    return _line(*words, "--", *found["fairseq_flags"])


def _on_data(
    run: Run, command: str, checkpoints: Mapping[str, str], directions: Iterable[str]
) -> list[object]:
    """How a command on the run's data begins; ``checkpoints``: name -> hash of the weights."""
    paths = [_checkpoint_file(run, sha256) or name.upper() for name, sha256 in checkpoints.items()]
    data_bin = run.folder / "corpus" / "data-bin"
    return ["neuron-spec", command, data_bin, "--path", *paths, "--lang-pairs", ",".join(directions)]


def _checkpoint_file(run: Run, sha256: str) -> Path | None:
    """The checkpoint of the system whose evaluation names these weights; None if none does."""
    for seed in run.seeds:
        trained = {name: training_of(seed.folder / name) for name in (DENSE, *seed.evaluations)}
        for name, evaluation in seed.evaluations.items():
            if evaluation.signature.get("inputs", {}).get("checkpoint") == sha256:
                return _checkpoints(seed, trained)[name]
    return None


def _masks_file(run: Run, fingerprint: str) -> Path:
    known = {seed.masks.fingerprint: seed.masks_file for seed in run.seeds}
    return known.get(fingerprint, Path("MASKS"))


def _profile(made: Mapping[str, Any]) -> list[str]:
    flags = []
    if made.get("subset", "valid") != "valid":
        flags += ["--gen-subset", made["subset"]]
    if made.get("counted", "real tokens") != "real tokens":
        flags.append("--count-padding")
    if (dtype := made.get("dtype", "float32")) != "float32":
        flags.append({"float16": "--fp16", "bfloat16": "--bf16"}.get(dtype, dtype))
    return flags + (["--part", made["part"]] if "part" in made else [])


def _select(made: Mapping[str, Any]) -> list[str]:
    flags = ["--method", made["method"]] if made.get("method", "cumulative") != "cumulative" else []
    ks = {side: set(own.values()) for side, own in made.get("k_percent", {}).items()}
    together = set().union(*ks.values()) if ks else set()
    if len(together) == 1:
        flags += ["--k", f"{together.pop():g}"]
    else:
        for side, own in made.get("k_percent", {}).items():
            if len(ks[side]) == 1:
                flags += [f"--{side}-k", f"{ks[side].pop():g}"]
            else:
                flags += [w for name, k in own.items() for w in ("--k-for", f"{name}:{side}={k:g}")]
    for name in ("fraction_percent", "seed", "only_side"):
        if name in made:
            value = made[name]
            flags += [f"--{name.removesuffix('_percent').replace('_', '-')}"]
            flags += [f"{value:g}" if isinstance(value, float) else str(value)]
    if made.get("neuron_sets", "direction") != "direction":
        flags += ["--neuron-sets", made["neuron_sets"]]
    return flags


def _evaluate(made: Mapping[str, Any]) -> list[str]:
    flags = ["--gen-subset", made["subset"], "--beam", str(made["beam"]), "--references", made["references"]]
    flags += ["--official-scoring"] if made.get("official_scoring") else []
    passed_on = made.get("fairseq_flags", [])
    return flags + (["--", *passed_on] if passed_on else [])


def _compare(run: Run, folder: Path, systems: Sequence[System]) -> str:
    named = [
        f"{system.name}=" + ",".join(str(seed.folder / "evaluation" / system.name) for seed in run.seeds)
        for system in systems
    ]
    return _line("neuron-spec", "compare", *named, "--output", folder)
