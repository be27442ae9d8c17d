"""The commands that repeat a run, as its artefacts recorded them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from neuron_spec.artifacts import recorded_command, shown_command, signature_in, training_command
from neuron_spec.report.run_folder import PROFILE, Run, Seed
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.systems import DENSE


def script_of(run: Run) -> str | None:
    """The script that makes runs of this layout from this corpus; None if there is none."""
    script = "scripts/experiments/homeassistant.sh" if run.has_seeds else "scripts/quickstart.sh"
    sizes = {"homeassistant": (), "toy": ("--smoke",)}
    if run.card["name"] not in sizes:
        return None
    seeds = ("--seeds", ",".join(str(seed.number) for seed in run.seeds)) if run.has_seeds else ()
    return shlex.join([script, *sizes[run.card["name"]], *seeds, "--run", str(run.folder)])


def commands_of(run: Run, comparisons: Mapping[Path, Comparison]) -> str:
    """One a line, each seed after the other: trainings' as the scripts note them, all others' as signatures have them.

    What was made before signatures recorded commands has none.
    """
    lines = [recorded_command(run.card["signature"], run.folder / "corpus")]
    for seed in run.seeds:
        if seed.number is not None:
            lines.append(f"# seed {seed.number}")
        lines += _of_seed(seed)
    lines += [recorded_command(made.signature, folder) for folder, made in comparisons.items()]
    lines.append(shlex.join(["neuron-spec", "report", str(run.folder)]))
    return "\n".join(line for line in dict.fromkeys(lines) if line)


def _of_seed(seed: Seed) -> list[str | None]:
    others = [name for name in seed.evaluations if name != DENSE]
    masks = [seed.masks_file, *(seed.masks_file.with_name(f"{name}.safetensors") for name in others)]
    files = [seed.folder / PROFILE, *dict.fromkeys(masks)]
    return [
        shown_command(training_command(seed.folder / DENSE)),
        *(recorded_command(signature_in(file, "artefact"), file) for file in files),
        *(shown_command(training_command(seed.folder / name)) for name in others),
        *(
            recorded_command(evaluation.signature, seed.folder / "evaluation" / name)
            for name, evaluation in seed.evaluations.items()
        ),
    ]
