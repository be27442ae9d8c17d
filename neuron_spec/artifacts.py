"""Files the pipeline leaves behind: their names, atomic writing, hashes and signatures."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neuron_spec.errors import ArtifactError

ADAPTATION = "adaptation"  # .json, .md, .png, .svg
CONFLICT = "conflict"  # .json, .md, .csv, .png, .svg
CONFLICT_LAYERS = "conflict-layers"  # .png, .svg
CORPUS_CARD = "corpus.json"
SIGNATURE = "signature.json"
SCORES_CSV = "scores.csv"
SCORES_JSON = "scores.json"
SCORES_TABLE = "table.md"
HYPOTHESES = "hypotheses"
REFERENCES = "references"
SOURCES = "sources"
TRANSFER = "transfer"  # .json, .md, .csv, .png, .svg

_PACKAGES = (
    "neuron_spec",
    "torch",
    "numpy",
    "scipy",
    "matplotlib",
    "sacrebleu",
    "sacremoses",
    "sentencepiece",
    "ve-fairseq",
    "fairseq",
    "fairseq-fixed",
)


_COMPARED = ("stage", "inputs", "parameters")  # of two signatures; versions may differ


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place only if the block succeeds."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text, each of which ends with a line break; a carriage return is none."""
    return Path(path).read_bytes().decode("utf-8").split("\n")[:-1]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def require_file(path: str | os.PathLike[str], what: str, mend: str | None = None) -> Path:
    """Return ``path`` as a Path.

    Raises:
        ArtifactError: if it is not a file.
    """
    if not Path(path).is_file():
        raise ArtifactError(f"{what} not found", where=path, mend=mend)
    return Path(path)


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Raises: ArtifactError if the file is missing or not JSON."""
    text = require_file(path, what).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{what} is not valid JSON", where=path, got=str(error)) from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a safetensors file whose header holds ``metadata``, each value as JSON.

    The same content gives the same bytes.
    """
    header = {key: json.dumps(value, sort_keys=True) for key, value in sorted(metadata.items())}
    ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
    with atomic_path(path) as temporary:
        save_file(ordered, temporary, metadata=header)
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file in order; the library writes it in a random one."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def load_tensors(path: str | os.PathLike[str], what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file written by `save_tensors`.

    Raises:
        ArtifactError: if it is missing, truncated, or not such a file.
    """
    require_file(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  (no dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{what} cannot be read",
            where=path,
            got=str(error),
            expected="a safetensors file written by neuron-spec",
            mend="the file is damaged, cut short, or of another kind: make it again",
        ) from error


def hash_file(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_text(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors: names, dtypes, shapes, bytes.

    Unlike a file's hash it survives dropping optimizer state or saving the same weights again.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computed an artefact."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def signature(stage: str, *, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What an artefact was made from: hashes of its inputs, its parameters, the versions."""
    return {"stage": stage, "inputs": dict(inputs), "parameters": dict(parameters), "versions": versions()}


def is_made_from(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether a signature names the same stage, inputs and parameters; versions may differ."""
    if found is None:
        return False
    # A round trip through JSON, so that tuples and lists compare equal.
    plain = json.loads(json.dumps(dict(wanted)))
    return all(found.get(key) == plain[key] for key in _COMPARED)


def is_already_here(
    where: str | os.PathLike[str], found: Mapping[str, Any] | None, wanted: Mapping[str, Any], *, what: str
) -> bool:
    """Whether an artefact was made before, from the same; another one there must not be overwritten.

    Args:
        found: the signature of what is there; None if nothing is, empty if it has none.
        wanted: the signature of what is to be made.
        what: the kind of artefact, for the message.

    Raises:
        ArtifactError: if what is there was made from something else.
    """
    if found is None:
        return False
    if is_made_from(found, wanted):
        return True
    here, asked = (_leaves({key: s[key] for key in _COMPARED if key in s}) for s in (found, wanted))
    differing = [key for key in {**asked, **here} if here.get(key) != asked.get(key)]
    raise ArtifactError(
        f"another {what} is already here",
        where=where,
        got=_some(here, differing) if found else "no signature",
        expected=_some(asked, differing),
        mend="name another --output, or delete what is there",
    )


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings without nesting: ``parameters.k_percent.encoder.en-de`` -> ``95.0``."""
    if not isinstance(value, Mapping) or (name and not value):
        return {name: json.dumps(value, ensure_ascii=False)}
    leaves: dict[str, str] = {}
    for key, inner in value.items():
        leaves |= _leaves(inner, f"{name}.{key}" if name else key)
    return leaves


def _some(leaves: Mapping[str, str], keys: Sequence[str], at_most: int = 4) -> str:
    """A line short enough to read: k alone has a value for each direction and side."""
    shown = ", ".join(f"{key}: {leaves.get(key, 'absent')}" for key in keys[:at_most])
    return shown + (f", and {len(keys) - at_most} more" if len(keys) > at_most else "")
