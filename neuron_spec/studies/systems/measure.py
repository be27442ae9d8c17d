"""One table of systems: what they score, and what they cost beside the dense model. All of it measured or counted:

- scores and significance: a comparison's, over all its seeds, against its baseline;
- parameters, and those that training moved: counted in one seed's checkpoints, tied ones once;
- bytes a direction: its share of the file of masks, or of the adapters' or bilingual models' parameters;
- seconds until masks are known: as noted by the stages (wall clock, on a machine that may have done other things);
- training and generation speed and peak memory: of one interleaved benchmark (``benchmarks/systems.py``).

What was not measured is shown as ``-``, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from neuron_spec.backends.fairseq.checkpoints import flags_of, masks_of, read_checkpoint, weights_sha256
from neuron_spec.errors import ArtifactError
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown
from neuron_spec.pages.tables import Cell, csv_text
from neuron_spec.scoring.comparison import Difference
from neuron_spec.scoring.comparison_files import COMPARISON, difference_table, read_comparison
from neuron_spec.scoring.systems import CONTINUATION, DENSE, OTHER, RANDOM, SPECIALIZED

SYSTEMS = "systems"  # .md, .csv, .json

# The same computation as the dense model: its speed and memory are theirs.
LIKE_DENSE = (CONTINUATION, "bilingual")
# Which stage's seconds a system waits for; LaSS's are in its masks.
_EXTRACTION = dict.fromkeys((SPECIALIZED, RANDOM, OTHER), ("profile", "select"))

_ADAPTERS = ".adapter."
_NO_PARAMETERS = ("version", "_float_tensor", "adapter_rows")
# Of a system's scores, in the CSV and the JSON: name -> field.
_SCORES = {
    **{"bleu": "bleu", "chrf": "chrf", "bleu_difference": "difference"},
    **{name: name for name in ("low", "high", "p_value", "wins", "losses")},
    **{name: name for name in ("nll", "nll_difference", "nll_low", "nll_high")},
}


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
class Systems:
    """Systems by name, the comparison's baseline first; ``seeds`` is how many the scores are over."""

    baseline: str
    directions: int
    seeds: int
    scores: dict[str, Difference]
    costs: dict[str, Cost]
    signature: dict[str, Any]

    @property
    def dense(self) -> Cost:
        """What costs are measured by."""
        return self.costs.get(DENSE, self.costs[self.baseline])


# Reading --------------------------------------------------------------------------------------


def read_systems(
    seed: Path, comparison: Path, benchmark: Path | None = None, checkpoint: str = "checkpoint_last.pt"
) -> Systems:
    """Gather what the stages left.

    Args:
        seed: a folder with ``SYSTEM/CHECKPOINT`` of every system compared, ``masks/`` and ``extraction/``.
        comparison: a folder that `neuron-spec compare` wrote.
        benchmark: JSON of ``benchmarks/systems.py``.

    Raises:
        ArtifactError: if a file is missing or damaged, or the benchmark lacks a system.
    """
    comparison_file = comparison / f"{COMPARISON}.json"
    compared = read_comparison(comparison_file)
    scores = {row.system: row for row in Difference.of_groups(compared)}
    timed = read_json(benchmark, "benchmark")["systems"] if benchmark else None
    directions = len({row.direction for row in compared.directions})
    inputs = {COMPARISON: hash_file(comparison_file)}
    if benchmark:
        inputs["benchmark"] = hash_file(benchmark)
    costs = {}
    for name in scores:
        timed_as = DENSE if name in LIKE_DENSE else name
        if timed is not None and timed_as not in timed:
            raise ArtifactError(
                "the benchmark did not time this system",
                where=benchmark,
                got=", ".join(timed),
                expected=timed_as,
                mend="run benchmarks/systems.py again, on the same seed",
            )
        mend = "train it, or name another --seed"
        # Those of its directions, or its only one.
        paths = sorted((seed / name).glob(f"*/{checkpoint}")) or [
            require_file(seed / name / checkpoint, "checkpoint of a compared system", mend)
        ]
        costs[name] = _cost(name, seed, paths, directions, timed and timed[timed_as], inputs)
    return Systems(
        baseline=compared.baseline,
        directions=directions,
        seeds=compared.seeds,
        scores=scores,
        costs=costs,
        signature=signature("systems", inputs=inputs, parameters={"seed": seed.name}),
    )


def _cost(
    name: str,
    seed: Path,
    paths: Sequence[Path],
    directions: int,
    timed: Mapping[str, Any] | None,
    inputs: dict[str, str],
) -> Cost:
    """Also says in ``inputs`` which weights were counted."""
    total = trained = adapters = model_bytes = 0
    for path in paths:
        state = read_checkpoint(path)
        inputs[str(path.parent.relative_to(seed))] = weights_sha256(state)
        parameters = parameters_of(state)
        total += sum(tensor.numel() for tensor in parameters.values())
        trained += sum(tensor.numel() for tensor in trained_of(state, parameters).values())
        sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in parameters.items()}
        adapters += sum(size for key, size in sizes.items() if _ADAPTERS in key)
        model_bytes += sum(sizes.values())
    # ``masks/specialized.safetensors``, or ``masks/lass-0.7.safetensors``.
    masks = sorted([*seed.glob(f"masks/{name}.safetensors"), *seed.glob(f"masks/{name}-[0-9]*.safetensors")])
    if len(masks) > 1:
        raise ArtifactError(
            "several files of masks for one system",
            where=seed / "masks",
            got=", ".join(path.name for path in masks),
            mend="keep the one it was trained with",
        )
    seconds: list[float] = []
    if stages := _EXTRACTION.get(name):
        notes = [seed / "extraction" / f"{stage}.json" for stage in stages]
        if all(note.is_file() for note in notes):
            seconds = [read_json(note, "note of a stage's time")["seconds"] for note in notes]
    elif masks:
        _, metadata = load_tensors(masks[0], "masks")
        seconds = [*(metadata.get("fine_tuning_seconds") or {}).values()]
    of_masks = masks[0].stat().st_size if masks else 0
    training, generation = ((timed or {}).get(what, {}) for what in ("training", "generation"))
    return Cost(
        parameters=total,
        trained_parameters=trained,
        bytes_per_direction=(model_bytes if len(paths) > 1 else adapters + of_masks) / directions,
        extraction_seconds=float(sum(seconds)) if seconds else None,
        training_tokens_per_s=training.get("tokens_per_s"),
        training_ratio=training.get("ratio"),
        generation_tokens_per_s=generation.get("tokens_per_s"),
        generation_ratio=generation.get("ratio"),
        peak_bytes=(timed or {}).get("peak_bytes"),
    )


def parameters_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's parameters, without masks and other buffers; of tied ones the first name alone."""
    buffers = masks_of(dict(state))
    parameters, places = {}, set()
    for key, value in state["model"].items():
        if key in buffers or key.endswith(_NO_PARAMETERS):
            continue
        # What is tied is one storage in the file, and stays one when it is read.
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
        if place not in places:
            places.add(place)
            parameters[key] = value
    return parameters


def trained_of(state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of ``parameters`` that training moved: beside a frozen base, the adapters alone."""
    is_frozen = has_frozen_base(state)
    return {key: value for key, value in parameters.items() if not is_frozen or _ADAPTERS in key}


def has_frozen_base(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of adapters that were trained alone."""
    return flags_of(state, "model").get("base") == "frozen" and any(
        _ADAPTERS in key for key in state["model"]
    )


# The page -------------------------------------------------------------------------------------


def write_systems(output: Path, systems: Systems) -> Path:
    """Write ``systems.csv``, ``.json`` and, last, ``.md``, whose path is returned."""
    scores = {name: row.values(_SCORES) for name, row in systems.scores.items()}
    lines = []
    for name, values in scores.items():
        cells = [*values.values(), *asdict(systems.costs[name]).values()]
        lines.append([name, *(round(cell, 6) if isinstance(cell, float) else cell for cell in cells)])
    header = ["system", *_SCORES, *(field.name for field in fields(Cost))]
    write_text(output / f"{SYSTEMS}.csv", csv_text(header, lines))
    write_json(output / f"{SYSTEMS}.json", {**asdict(systems), "scores": scores})
    table = difference_table(systems.baseline, list(systems.scores.values()))
    sections = [
        Section("Scores", [table]),
        Section("Costs", [_cost_table(systems), Bullets(_notes(systems))]),
    ]
    write_text(output / f"{SYSTEMS}.md", as_markdown(Page("Systems", [], sections)))
    return output / f"{SYSTEMS}.md"


def _cost_table(systems: Systems) -> Table:
    parameters = systems.dense.parameters
    # Name -> field, its unit, decimals.
    columns = {
        "parameters x dense": ("parameters", parameters, 3),
        "trained x dense": ("trained_parameters", parameters, 3),
        "kB a direction": ("bytes_per_direction", 1000, 1),
        "extraction s": ("extraction_seconds", 1, 1),
        "training speed x dense": ("training_ratio", 1, 2),
        "generation speed x dense": ("generation_ratio", 1, 2),
        "peak MB": ("peak_bytes", 1e6, 0),
    }
    rows: list[list[Cell]] = []
    for name, cost in systems.costs.items():
        values = [(getattr(cost, field), unit, decimals) for field, unit, decimals in columns.values()]
        rows.append(
            [name, *(None if of is None else f"{of / unit:.{decimals}f}" for of, unit, decimals in values)]
        )
    return Table(("system", *columns), rows)


def _notes(systems: Systems) -> list[str]:
    dense = systems.dense
    notes = [
        f"Scores: means over {systems.directions} directions and {systems.seeds} seed(s). Interval and p (two-sided): on one "
        "joint draw of sentences for all directions that share them, with these trained models. wins, losses: directions "
        "of all seeds where the difference is significant after Holm's adjustment. comparison.md, beside, has all of it, "
        "t over seeds and the smallest visible difference too.",
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
