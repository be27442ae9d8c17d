"""How to repeat a run: commands as its artefacts recorded them, signatures, parameters, versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import (
    hash_state,
    recorded_command,
    shown_command,
    signature_in,
    training_command,
)
from neuron_spec.pages.page import (
    Block,
    Bullets,
    Code,
    Paragraph,
    Section,
    Table,
    parameters_text,
    plain,
    versions_text,
)
from neuron_spec.pages.tables import Cell
from neuron_spec.report.run_folder import PROFILE, Run
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.systems import DENSE

# The scripts that make runs from a corpus: how they are told its size.
_SIZES = {"homeassistant": (), "toy": ("--smoke",)}
_NO_MASKS = hash_state({})  # of a checkpoint without any


def repeating(run: Run, comparisons: Mapping[Path, Comparison]) -> Section:
    blocks: list[Block] = []
    if (corpus := run.card["name"] if run.card else "") in _SIZES:
        script = ["scripts/experiments/homeassistant.sh" if run.has_seeds else "scripts/quickstart.sh"]
        script += _SIZES[corpus]
        script += ["--seeds", ",".join(str(seed.number) for seed in run.seeds)] if run.has_seeds else []
        blocks.append(Paragraph("Runs of this layout are made by one script, which has more options:"))
        blocks.append(Code(shlex.join([*script, "--run", str(run.folder)])))

    stages = list(_stages(run))
    commands = [command for *_, command in stages]
    commands += [recorded_command(of.signature, folder) for folder, of in comparisons.items()]
    commands.append(shlex.join(["neuron-spec", "report", str(run.folder)]))
    blocks += [
        Paragraph(
            "The stages, as each artefact recorded the command that made it; what was made before commands were "
            "recorded has none here."
        ),
        Code("\n".join(command for command in dict.fromkeys(commands) if command)),
    ]

    signatures = {
        str(place.relative_to(run.folder)): signature
        for place, signature, _ in stages
        if signature is not None
    }
    versions = list(dict.fromkeys(map(versions_text, signatures.values())))
    scores = next(iter(run.seeds[0].evaluations.values())).scores
    metrics = [f"BLEU: `{score.bleu_signature}`" for score in scores]
    metrics += [f"chrF++: `{score.chrf_signature}`" for score in scores]
    details: dict[str, list[Block]] = {
        "Signatures": [
            Paragraph("First 16 digits of each sha256. *Sets*: of which direction keeps which neurons."),
            Table(("artefact", "made by", "what", "sha256"), list(_hash_rows(run, signatures))),
        ],
        "Parameters": [
            Table(
                ("artefact", "parameters"),
                [[name, parameters_text(of.get("parameters", {}))] for name, of in signatures.items()],
                is_text=True,
            )
        ],
        "Versions": [
            Bullets([plain(line) for line in versions if line]),
            Bullets(list(dict.fromkeys(metrics))),
        ],
    }
    return Section(
        "How to repeat it",
        blocks,
        [Section(title, of, is_folded=True) for title, of in details.items()],
    )


def _stages(run: Run) -> Iterator[tuple[Path, Mapping[str, Any] | None, str | None]]:
    """What each stage left, its signature, and its command, where one was recorded; trainings sign nothing."""

    def trained(folder: Path) -> tuple[Path, None, str]:
        return folder, None, shown_command(training_command(folder))

    corpus = run.folder / "corpus"
    if run.card:
        yield corpus, run.card["signature"], recorded_command(run.card["signature"], corpus)
    for seed in run.seeds:
        if seed.number is not None:
            yield seed.folder, None, f"# seed {seed.number}"
        yield trained(seed.folder / DENSE)
        others = [name for name in seed.evaluations if name != DENSE]
        masks = [seed.masks_file, *(seed.masks_file.with_name(f"{name}.safetensors") for name in others)]
        for file in (seed.folder / PROFILE, *dict.fromkeys(masks)):
            if (signature := signature_in(file, "artefact")) is not None:
                yield file, signature, recorded_command(signature, file)
        for name in others:
            yield trained(seed.folder / name)
        for name, evaluation in seed.evaluations.items():
            folder = seed.folder / "evaluation" / name
            yield folder, evaluation.signature, recorded_command(evaluation.signature, folder)


def _hash_rows(run: Run, signatures: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Cell]]:
    for source in run.card["sources"] if run.card else ():
        if "sha256" in source:
            yield ["corpus", "data", source["name"], source["sha256"][:16]]
    sets = {str(seed.masks_file.relative_to(run.folder)): seed.masks.fingerprint for seed in run.seeds}
    for name, signature in signatures.items():
        stage = signature.get("stage")
        if name in sets:
            yield [name, stage, "sets", sets[name][:16]]
        for what, value in signature.get("inputs", {}).items():
            yield [name, stage, f"from {what}", None if value == _NO_MASKS else str(value)[:16]]
        if model := signature.get("parameters", {}).get("sentencepiece"):
            yield [name, stage, "from SentencePiece model", str(model)[:16]]
