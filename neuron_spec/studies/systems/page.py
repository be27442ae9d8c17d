"""One table of systems: what they score, and what they cost beside the dense model. All of it measured or counted:

- scores and significance: a comparison's, over all its seeds, against its baseline;
- parameters, and those that training moved: counted in one seed's checkpoints, tied ones once;
- bytes a direction: its share of the file of masks, or of the adapters' or bilingual models' parameters;
- seconds until masks are known: as noted by the stages (wall clock, on a machine that may have done other things);
- training and generation speed and peak memory: of one interleaved benchmark (``benchmarks/systems.py``).

What was not measured is shown as ``-``, never guessed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from neuron_spec.artifacts import (
    hash_file,
    load_tensors,
    read_json,
    require_file,
    signature,
    write_json,
    write_text,
)
from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint, weights_sha256
from neuron_spec.errors import ArtifactError
from neuron_spec.pages.tables import Cell, markdown_table, shown_p
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.comparison_files import COMPARISON, read_comparison
from neuron_spec.scoring.evaluation import ALL

SYSTEMS = "systems"  # .md, .csv, .json
DENSE = "dense"
# The same computation as the dense model: its speed and memory are theirs.
LIKE_DENSE = ("dense-continuation", "bilingual")
# Which stage's seconds a system waits for; LaSS's are in its masks.
_EXTRACTION = {"specialized": ("profile", "select"), "matched-random": ("profile", "select")}

_ADAPTERS = ".adapter."
_NO_PARAMETERS = ("version", "_float_tensor", "adapter_rows")


@dataclass(frozen=True)
class Cost:
    """What a system costs; None = not measured, or not a cost that it has.

    Attributes:
        parameters: of all its models together.
        trained_parameters: those that its last training moved.
        bytes_per_direction: of masks, adapters or models, that a direction has beyond the dense model.
        extraction_seconds: until every direction's masks are known, from the dense model.
        training_ratio, generation_ratio: tokens per second over the dense model's.
        peak_bytes: of training.
    """

    parameters: int
    trained_parameters: int
    bytes_per_direction: float
    extraction_seconds: float | None
    training_tokens_per_s: float | None
    training_ratio: float | None
    generation_tokens_per_s: float | None
    generation_ratio: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Score:
    """Means over directions and seeds, BLEU and chrF++ 0-100; ``low``, ``high`` bound the BLEU difference (95 %).

    ``wins`` and ``losses`` count directions of all seeds, after Holm's adjustment. The baseline has no difference.
    """

    bleu: float
    chrf: float
    bleu_difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    wins: int | None = None
    losses: int | None = None


@dataclass(frozen=True)
class Table:
    """Systems by name, the comparison's baseline first; ``seeds`` is how many the scores are over."""

    baseline: str
    directions: int
    seeds: int
    scores: dict[str, Score]
    costs: dict[str, Cost]
    signature: dict[str, Any]


# Reading --------------------------------------------------------------------------------------


def read_systems(
    seed: Path, comparison: Path, benchmark: Path | None = None, checkpoint: str = "checkpoint_last.pt"
) -> Table:
    """Gather what the stages left.

    Args:
        seed: a folder with ``SYSTEM/CHECKPOINT`` of every system compared, ``masks/`` and ``extraction/``.
        comparison: a folder that `neuron-spec compare` wrote.
        benchmark: JSON of ``benchmarks/systems.py``.

    Raises:
        ArtifactError: if a file is missing or damaged, or the benchmark lacks a system.
    """
    found = read_comparison(comparison / f"{COMPARISON}.json")
    scores = _scores(found)
    timed = read_json(benchmark, "benchmark")["systems"] if benchmark else None
    states = {name: _checkpoints(seed / name, checkpoint) for name in scores}
    directions = len({row.direction for row in found.directions})
    costs = {
        name: _cost(name, seed, paths, directions, _timed(timed, name, benchmark))
        for name, paths in states.items()
    }
    inputs = {COMPARISON: hash_file(comparison / f"{COMPARISON}.json")}
    if benchmark:
        inputs["benchmark"] = hash_file(benchmark)
    for path in (path for paths in states.values() for path in paths):
        inputs[str(path.parent.relative_to(seed))] = weights_sha256(read_checkpoint(path))
    return Table(
        baseline=found.baseline,
        directions=directions,
        seeds=max(len(row.seeds) for row in found.directions),
        scores=scores,
        costs=costs,
        signature=signature(SYSTEMS, inputs=inputs, parameters={"seed": seed.name}),
    )


def _scores(found: Comparison) -> dict[str, Score]:
    overall = [row for row in found.groups if row.kind == "overall" and row.group == ALL]
    bleu = {row.system: row for row in overall if row.metric == "bleu"}
    chrf = {row.system: row for row in overall if row.metric == "chrf"}
    first = next(iter(bleu))
    scores = {found.baseline: Score(bleu[first].baseline.mean, chrf[first].baseline.mean)}
    for name, row in bleu.items():
        low, high = row.interval or (None, None)
        scores[name] = Score(
            bleu=row.score.mean,
            chrf=chrf[name].score.mean,
            bleu_difference=row.difference.mean,
            low=low,
            high=high,
            p_value=row.p_value,
            wins=row.holm_results.get("win", 0),
            losses=row.holm_results.get("loss", 0),
        )
    return scores


def _checkpoints(folder: Path, name: str) -> list[Path]:
    """A system's checkpoint, or those of its directions."""
    of_directions = sorted(folder.glob(f"*/{name}"))
    if of_directions:
        return of_directions
    return [
        require_file(folder / name, "checkpoint of a compared system", "train it, or name another --seed")
    ]


def _timed(timed: Mapping[str, Any] | None, name: str, where: Path | None) -> Mapping[str, Any] | None:
    if timed is None:
        return None
    name = DENSE if name in LIKE_DENSE else name
    if name not in timed:
        raise ArtifactError(
            "the benchmark did not time this system",
            where=where,
            got=", ".join(timed),
            expected=name,
            mend="run benchmarks/systems.py again, on the same seed",
        )
    found: Mapping[str, Any] = timed[name]
    return found


def _cost(name: str, seed: Path, paths: list[Path], directions: int, timed: Mapping[str, Any] | None) -> Cost:
    total = trained = adapters = model_bytes = 0
    for path in paths:
        state = read_checkpoint(path)
        parameters = parameters_of(state)
        total += _count(parameters.values())
        trained += _count(trained_of(state, parameters).values())
        adapters += _bytes(value for key, value in parameters.items() if _ADAPTERS in key)
        model_bytes += _bytes(parameters.values())
    masks = _mask_file(seed, name)
    own = adapters + (masks.stat().st_size if masks else 0)
    if len(paths) > 1:
        own = model_bytes
    of = timed or {"training": {}, "generation": {}, "peak_bytes": None}
    return Cost(
        parameters=total,
        trained_parameters=trained,
        bytes_per_direction=own / directions,
        extraction_seconds=_extraction_seconds(seed, name, masks),
        training_tokens_per_s=of["training"].get("tokens_per_s"),
        training_ratio=of["training"].get("ratio"),
        generation_tokens_per_s=of["generation"].get("tokens_per_s"),
        generation_ratio=of["generation"].get("ratio"),
        peak_bytes=of["peak_bytes"],
    )


def parameters_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's parameters, without masks and other buffers; of tied ones the first name alone."""
    buffers = masks_of(dict(state))
    found, seen = {}, set()
    for key, value in state["model"].items():
        if key in buffers or key.endswith(_NO_PARAMETERS):
            continue
        # What is tied is one storage in the file, and stays one when it is read.
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
        if place not in seen:
            seen.add(place)
            found[key] = value
    return found


def trained_of(state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``parameters`` that training moved: beside a frozen base, the adapters alone."""
    is_frozen = has_frozen_base(state)
    return {key: value for key, value in parameters.items() if not is_frozen or _ADAPTERS in key}


def has_frozen_base(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of adapters that were trained alone."""
    flags = state["cfg"]["model"]
    flags = dict(flags) if isinstance(flags, dict) else vars(flags)
    return flags.get("base") == "frozen" and any(_ADAPTERS in key for key in state["model"])


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mask_file(seed: Path, name: str) -> Path | None:
    """``masks/specialized.safetensors``, or ``masks/lass-0.7.safetensors``.

    Raises:
        ArtifactError: if there are several, of which one was trained with.
    """
    found = sorted([*seed.glob(f"masks/{name}.safetensors"), *seed.glob(f"masks/{name}-[0-9]*.safetensors")])
    if len(found) > 1:
        raise ArtifactError(
            "several files of masks for one system",
            where=seed / "masks",
            got=", ".join(path.name for path in found),
            mend="keep the one it was trained with",
        )
    return found[0] if found else None


def _extraction_seconds(seed: Path, name: str, masks: Path | None) -> float | None:
    if stages := _EXTRACTION.get(name):
        notes = [seed / "extraction" / f"{stage}.json" for stage in stages]
        if not all(note.is_file() for note in notes):
            return None
        return float(sum(read_json(note, "note of a stage's time")["seconds"] for note in notes))
    if masks is None:
        return None
    _, metadata = load_tensors(masks, "masks")
    seconds: Mapping[str, float] | None = metadata.get("fine_tuning_seconds")
    return sum(seconds.values()) if seconds else None


# Showing --------------------------------------------------------------------------------------


def write_systems(output: Path, table: Table) -> Path:
    """Write ``systems.csv``, ``.json`` and, last, ``.md``, whose path is returned."""
    write_text(output / f"{SYSTEMS}.csv", _as_csv(table))
    write_json(output / f"{SYSTEMS}.json", asdict(table))
    write_text(output / f"{SYSTEMS}.md", as_markdown(table))
    return output / f"{SYSTEMS}.md"


def _as_csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", *(field.name for of in (Score, Cost) for field in fields(of))])
    for name, score in table.scores.items():
        cells = [*asdict(score).values(), *asdict(table.costs[name]).values()]
        writer.writerow([name, *(round(cell, 6) if isinstance(cell, float) else cell for cell in cells)])
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """The page ``systems.md``."""
    parts = ["# Systems", "## Scores", _score_table(table), "## Costs", _cost_table(table)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in _notes(table))]) + "\n"


def _score_table(table: Table) -> str:
    rows: list[list[Cell]] = [
        [
            name,
            score.bleu,
            score.chrf,
            _shown(score.bleu_difference, "+.2f"),
            None if score.low is None else f"{score.low:+.2f} to {score.high:+.2f}",
            None if score.p_value is None else shown_p(score.p_value),
            score.wins,
            score.losses,
        ]
        for name, score in table.scores.items()
    ]
    header = ("system", "BLEU", "chrF++", f"BLEU - {table.baseline}", "95% interval", "p", "wins", "losses")
    return markdown_table(header, rows)


def _cost_table(table: Table) -> str:
    dense = table.costs.get(DENSE, table.costs[table.baseline])
    rows: list[list[Cell]] = [
        [
            name,
            f"{cost.parameters / dense.parameters:.3f}",
            f"{cost.trained_parameters / dense.parameters:.3f}",
            f"{cost.bytes_per_direction / 1000:.1f}",
            _shown(cost.extraction_seconds, ".1f"),
            _shown(cost.training_ratio, ".2f"),
            _shown(cost.generation_ratio, ".2f"),
            _shown(None if cost.peak_bytes is None else cost.peak_bytes / 1e6, ".0f"),
        ]
        for name, cost in table.costs.items()
    ]
    header = (
        *("system", "parameters x dense", "trained x dense", "kB a direction", "extraction s"),
        *("training speed x dense", "generation speed x dense", "peak MB"),
    )
    return markdown_table(header, rows)


def _shown(value: float | None, form: str) -> Cell:
    return None if value is None else format(value, form)


def _notes(table: Table) -> list[str]:
    dense = table.costs.get(DENSE, table.costs[table.baseline])
    notes = [
        f"Scores: means over {table.directions} directions and {table.seeds} seed(s). p: two-sided sign-flip test over "
        "directions. wins, losses: directions of all seeds where the difference is significant over sentences, after "
        "Holm's adjustment. comparison.md, beside, has all of it.",
        f"Dense: {dense.parameters:,} parameters. Tied ones are counted once; a bilingual system is all its models.",
        "kB a direction: the file of masks over its directions, the adapters' parameters over all directions, or a "
        "bilingual model's; none is in a dense model.",
        "Extraction: seconds of wall clock from the dense model to every direction's masks, fine-tuning of LaSS "
        "without its processes' starts. Not taken in turns: read it for its size.",
    ]
    if dense.training_tokens_per_s:
        notes.append(
            f"Speeds: medians of rounds taken in turns; dense trains {dense.training_tokens_per_s:,.0f} target tokens/s "
            f"and generates {dense.generation_tokens_per_s:,.0f} tokens/s. Dense continuation and bilingual models "
            "compute as the dense model, and have its figures. Peak: of two updates; on the CPU what the process "
            "grew by, on a GPU what torch allocated."
        )
    return notes
