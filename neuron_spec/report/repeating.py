"""How to repeat a run: commands, signatures, parameters, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import hash_state, signature_in
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
from neuron_spec.report.commands import commands_of, script_of
from neuron_spec.report.run_folder import PROFILE, Run
from neuron_spec.scoring.comparison import Comparison

_NO_MASKS = hash_state({})  # of a checkpoint without any


def repeating(run: Run, comparisons: Mapping[Path, Comparison]) -> Section:
    signatures = list(_signed_artefacts(run))
    versions = dict.fromkeys(versions_text(made) for _, made in signatures)
    return Section(
        "How to repeat it",
        [
            *_script(run),
            Paragraph(
                "The stages, as each artefact recorded the command that made it; what was made before commands were "
                "recorded has none here."
            ),
            Code(commands_of(run, comparisons)),
        ],
        [
            Section(
                "Signatures",
                [
                    Paragraph(
                        "First 16 digits of each sha256. *Sets*: of which direction keeps which neurons."
                    ),
                    Table(("artefact", "made by", "what", "sha256"), list(_hash_rows(run, signatures))),
                ],
                is_folded=True,
            ),
            Section(
                "Parameters",
                [
                    Table(
                        ("artefact", "parameters"),
                        [[name, parameters_text(made.get("parameters", {}))] for name, made in signatures],
                        is_text=True,
                    )
                ],
                is_folded=True,
            ),
            Section(
                "Versions",
                [Bullets([plain(line) for line in versions if line]), _metrics(run)],
                is_folded=True,
            ),
        ],
    )


def _script(run: Run) -> list[Block]:
    if (script := script_of(run)) is None:
        return []
    text = "Runs of this layout are made by one script, which has more options:"
    return [Paragraph(text), Code(script)]


def _metrics(run: Run) -> Bullets:
    scores = next(iter(run.seeds[0].evaluations.values())).scores
    lines = [f"BLEU: `{score.bleu_signature}`" for score in scores]
    lines += [f"chrF++: `{score.chrf_signature}`" for score in scores]
    return Bullets(list(dict.fromkeys(lines)))


def _signed_artefacts(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path below the run -> signature, in the order of the stages."""
    yield "corpus", run.card["signature"]
    for seed in run.seeds:
        if (made := signature_in(seed.folder / PROFILE, "profile")) is not None:
            yield str((seed.folder / PROFILE).relative_to(run.folder)), made
        yield str(seed.masks_file.relative_to(run.folder)), seed.masks.metadata.get("signature", {})
        for name, evaluation in seed.evaluations.items():
            folder = seed.folder / "evaluation" / name
            yield str(folder.relative_to(run.folder)), evaluation.signature


def _hash_rows(run: Run, signatures: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[list[Cell]]:
    for source in run.card["sources"]:
        if "sha256" in source:
            yield ["corpus", "data", source["name"], source["sha256"][:16]]
    sets = {str(seed.masks_file.relative_to(run.folder)): seed.masks.fingerprint for seed in run.seeds}
    for name, made in signatures:
        if name in sets:
            yield [name, made.get("stage"), "sets", sets[name][:16]]
        for what, value in made.get("inputs", {}).items():
            yield [name, made.get("stage"), f"from {what}", None if value == _NO_MASKS else str(value)[:16]]
        if given := made.get("parameters", {}).get("sentencepiece"):
            yield [name, made.get("stage"), "from SentencePiece model", str(given)[:16]]
