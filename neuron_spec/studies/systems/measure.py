"""One table of systems: what they score, and what they cost beside the dense model. All of it measured or counted:

- scores and significance: a comparison's, over all its seeds, against its baseline;
- parameters, and those that training moved: counted in one seed's checkpoints, tied ones once;
- bytes a direction: its share of the file of masks, or of the adapters' or bilingual models' parameters;
- seconds until masks are known: as noted by the stages (wall clock, on a machine that may have done other things);
- training and generation speed and peak memory: of one interleaved benchmark (``benchmarks/systems.py``).

What was not measured is shown as ``-``, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from neuron_spec.artifacts import hash_file, load_tensors, read_json, require_file, signature
from neuron_spec.backends.fairseq.checkpoints import masks_of, read_checkpoint, weights_sha256
from neuron_spec.errors import ArtifactError
from neuron_spec.scoring.comparison import Difference
from neuron_spec.scoring.comparison_files import COMPARISON, read_comparison
from neuron_spec.scoring.systems import CONTINUATION, DENSE, RANDOM, SPECIALIZED

# The same computation as the dense model: its speed and memory are theirs.
LIKE_DENSE = (CONTINUATION, "bilingual")
# Which stage's seconds a system waits for; LaSS's are in its masks.
_EXTRACTION = dict.fromkeys((SPECIALIZED, RANDOM), ("profile", "select"))

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
    compared = read_comparison(comparison / f"{COMPARISON}.json")
    scores = {row.system: row for row in Difference.of_groups(compared)}
    timed = read_json(benchmark, "benchmark")["systems"] if benchmark else None
    states = {name: _checkpoints(seed / name, checkpoint) for name in scores}
    directions = len({row.direction for row in compared.directions})
    costs = {
        name: _cost(name, seed, paths, directions, _timed(timed, name, benchmark))
        for name, paths in states.items()
    }
    inputs = {COMPARISON: hash_file(comparison / f"{COMPARISON}.json")}
    if benchmark:
        inputs["benchmark"] = hash_file(benchmark)
    for path in (path for paths in states.values() for path in paths):
        inputs[str(path.parent.relative_to(seed))] = weights_sha256(read_checkpoint(path))
    return Systems(
        baseline=compared.baseline,
        directions=directions,
        seeds=compared.seeds,
        scores=scores,
        costs=costs,
        signature=signature("systems", inputs=inputs, parameters={"seed": seed.name}),
    )


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
    of_system: Mapping[str, Any] = timed[name]
    return of_system


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
    added_bytes = adapters + (masks.stat().st_size if masks else 0)
    if len(paths) > 1:
        added_bytes = model_bytes
    of = timed or {"training": {}, "generation": {}, "peak_bytes": None}
    return Cost(
        parameters=total,
        trained_parameters=trained,
        bytes_per_direction=added_bytes / directions,
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
    files = sorted([*seed.glob(f"masks/{name}.safetensors"), *seed.glob(f"masks/{name}-[0-9]*.safetensors")])
    if len(files) > 1:
        raise ArtifactError(
            "several files of masks for one system",
            where=seed / "masks",
            got=", ".join(path.name for path in files),
            mend="keep the one it was trained with",
        )
    return files[0] if files else None


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
