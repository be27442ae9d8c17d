"""Files the pipeline leaves behind: their names, atomic writing, hashes and signatures."""

from __future__ import annotations

import codecs
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_spec.errors import ArtifactError

if TYPE_CHECKING:  # commands that write no tensors start without torch
    import torch

ADAPTATION = "adaptation"  # .json, .md, .png, .svg
CORPUS_CARD = "corpus.json"
SIGNATURE = "signature.json"
SCORES_CSV = "scores.csv"
SCORES_JSON = "scores.json"
SCORES_TABLE = "table.md"
HYPOTHESES = "hypotheses"
REFERENCES = "references"
SOURCES = "sources"

_PACKAGES = (
    "neuron_spec",
    "torch",
    "numpy",
    "scipy",
    "matplotlib",
    "sacrebleu",
    "sacremoses",
    "sentencepiece",
    "langcodes",
    "ve-fairseq",
    "fairseq",
    "fairseq-fixed",
    "ctranslate2",
    "transformers",
    "tokenizers",
)

_COMPARED = ("stage", "inputs", "parameters")  # of two signatures; versions may differ
_TRAINED = "complete.txt"  # of scripts/once.sh: the command, then a hash for each input file
_POINTER = b"version https://git-lfs.github.com/spec/"
OUTPUT = "OUTPUT"  # in a recorded command
USER_DIR = '"$(neuron-spec user-dir)"'
_HERE = re.sub(r"[^A-Za-z0-9]", "-", platform.node()) or "here"
_RUNNING: ContextVar[str | None] = ContextVar("running", default=None)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place only if the block succeeds.

    What a killed process left there of the same is removed.
    """
    final = Path(path)
    require_place(final, is_folder=False)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    try:
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        if error.errno and error.filename in (None, str(temporary)):
            error.filename = str(final)  # a write that fails names no file, and a user knows no temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_link(link: Path, place: Path) -> None:
    """Write a link to a file or folder, in place of another link if there is one."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(link)
    temporary.symlink_to(place.resolve(), target_is_directory=place.is_dir())
    os.replace(temporary, link)


def require_place(path: str | os.PathLike[str], *, is_folder: bool) -> None:
    """Raises: ArtifactError if a file or folder cannot be at ``path``: one is in the way there, or above it."""
    here = Path(path)
    places = [here.absolute()] if is_folder else []
    for place in (*places, *here.absolute().parents):
        if place.is_symlink() and not place.exists():
            got = "a link that leads nowhere"
        elif place.exists() and not place.is_dir():
            got = "a file"
        else:
            continue
        raise ArtifactError(
            "nothing can be written here"
            if place == here.absolute()
            else "nothing can be written below a file",
            where=here,
            got=got if place == here.absolute() else f"{got}: {place}",
            expected="a folder, or nothing yet",
            mend="name another place to write to",
        )
    if not is_folder and here.exists() and not here.is_file():
        raise ArtifactError(
            "nothing can be written here",
            where=here,
            got="a folder" if here.is_dir() else "a device or pipe, whose place a file would take",
            expected="a file, or nothing yet",
            mend=f"name a file, such as one in it: {here / 'NAME'}" if here.is_dir() else "name a file",
        )


def require_summary_place(path: str | os.PathLike[str], mark: str | None) -> None:
    """That a ``.json`` can be written beside a file.

    Args:
        mark: a key that such a summary of ours has, if one of that name is there; None: whose it is, is asked later.

    Raises:
        ArtifactError: if the file itself is a ``.json``, or another's is there.
    """
    here, beside = Path(path), Path(path).with_suffix(".json")
    if here == beside:
        raise ArtifactError(
            "a summary is written beside this file, as .json, and would take its place",
            where=here,
            mend="name it otherwise, such as .safetensors or .pt",
        )
    if mark is None or not beside.is_file():
        return
    try:
        content = read_json(beside, "file")
    except ArtifactError:
        content = None
    if not isinstance(content, dict) or mark not in content:
        raise ArtifactError(
            "another file is where the summary would be written",
            where=beside,
            expected=f"no file, or a summary, which has {mark}",
            mend="name another place to write to",
        )


def _temporary(final: Path) -> Path:
    """A name beside ``final`` that no other process uses; what ended processes of this machine left there is removed."""
    me = os.getpid()
    ours = re.compile(
        rf"\.{re.escape(final.name)}\.(?:{_HERE}-)?(\d+)\.tmp"
    )  # earlier versions named no machine
    for left in [*final.parent.iterdir()]:
        if (match := ours.fullmatch(left.name)) and (int(match[1]) == me or not _is_running(int(match[1]))):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return final.with_name(f".{final.name}.{_HERE}-{me}.tmp")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def require_writable(path: str | os.PathLike[str]) -> None:
    """That something can be written at a path, before it is computed.

    Raises:
        ArtifactError: as `require_place`.
        OSError: if the disk is full or read-only.
    """
    require_place(path, is_folder=False)
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**12))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def require_vacant(path: str | os.PathLike[str]) -> None:
    """Raises: ArtifactError if something is at ``path``, other than an empty folder, or no folder can be there."""
    if Path(path).is_file() or (Path(path).is_dir() and any(Path(path).iterdir())):
        raise ArtifactError("something is already here", where=path, mend="name another --output")
    require_place(path, is_folder=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; rename it into place only if the block succeeds.

    Raises:
        ArtifactError: if something is there already, other than an empty folder.
    """
    require_vacant(path)
    final = Path(path).resolve()  # where a link to an empty folder leads
    if final.is_dir():
        final.rmdir()
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def completed_beside(output: Path, signature: Mapping[str, Any], *, what: str) -> bool:
    """`completed`, of a file whose signature is written to a ``.json`` beside it before the file itself.

    Raises:
        ArtifactError: if another file is here.
    """
    beside, is_here = output.with_suffix(".json"), output.is_file()
    if completed(beside, signature, what=what, where=output, quiet=not is_here) and is_here:
        return True
    if output.exists() and not beside.is_file():
        raise ArtifactError("another file is already here", where=output, mend="name another --output")
    return False


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text as it is: Python's text mode would turn a carriage return into a line break.

    Split it at line feeds, not with splitlines, which takes further characters for line breaks.

    Raises:
        ArtifactError: if it is a Git-LFS pointer, or not UTF-8.
    """
    content = Path(path).read_bytes()
    refuse_pointer(content, path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        is_utf16 = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        got, mend = (
            ("UTF-16, as Windows PowerShell writes", "iconv -f utf-16 -t utf-8")
            if is_utf16
            else (str(error), None)
        )
        raise ArtifactError("a text is not UTF-8", where=path, got=got, mend=mend) from error


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text, each of which ends with a line break; a carriage return is none.

    Raises:
        ArtifactError: as `read_text`.
    """
    return read_text(path).split("\n")[:-1]


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, _as_json(value))


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def require_file(path: str | os.PathLike[str], what: str, mend: str | None = None) -> Path:
    """Return ``path`` as a Path.

    Raises:
        ArtifactError: if it is not a file, or a Git-LFS pointer.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArtifactError(
            f"not the path of a {what}", got=repr(path)[:80], expected="a string or pathlib.Path"
        )
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else None
        raise ArtifactError(f"{what} not found", where=path, got=got, mend=mend)
    with open(path, "rb") as file:
        refuse_pointer(file.read(len(_POINTER)), path)
    return Path(path)


def refuse_pointer(content: bytes, where: object) -> None:
    """Raises: ArtifactError if a file's content, or its start, is what Git LFS leaves in place of a large file."""
    if content.startswith(_POINTER):
        raise ArtifactError(
            "a Git-LFS pointer stands in place of the file",
            where=where,
            got=f"{_POINTER.decode()}...",
            mend="run `git lfs pull` in the repository that it is from",
        )


def _no_number(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have, in a number's place")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        key = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {key!r} twice")
    return found


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Raises: ArtifactError if the file is missing or not JSON, a key is there twice, or text that no file can hold."""
    content = require_file(path, what).read_bytes()
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_each_once)
        if re.search(rb"\\u[dD][89a-fA-F]", content):  # halves of a character, which are none alone
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise ArtifactError(f"{what} is not valid JSON", where=path, got=str(error)) from error


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write a safetensors file whose header holds ``metadata``, each value as JSON.

    The same content gives the same bytes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {key: json.dumps(value, sort_keys=True) for key, value in sorted(metadata.items())}
    ordered = {key: tensors[key].contiguous() for key in sorted(tensors)}
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; the library's files are for their owner alone
        try:
            save_file(ordered, temporary, metadata=header)
        except SafetensorError as error:
            if (number := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        os.chmod(temporary, mode)
        with open(temporary, "r+b") as file:  # the library writes the metadata in a random order
            size = int.from_bytes(file.read(8), "little")
            written = json.loads(file.read(size))
            written["__metadata__"] = dict(sorted(written.get("__metadata__", {}).items()))
            text = json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
            if len(text) <= size:
                file.seek(8)
                file.write(text.ljust(size))


def load_tensors(path: str | os.PathLike[str], what: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file written by `save_tensors`.

    Raises:
        ArtifactError: if it is missing, truncated, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            metadata = {key: json.loads(value, parse_constant=_no_number) for key, value in said.items()}
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  (no dict)
    # Of a header's JSON, nested deep too; of a dtype that torch has not.
    except (SafetensorError, ValueError, RecursionError, LookupError, AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"{what} cannot be read",
            where=path,
            got=str(error),
            expected="a safetensors file written by neuron-spec",
            mend="the file is damaged, cut short, or of another kind: make it again",
        ) from error


def load_saved(path: str | os.PathLike[str], what: str, *, holds: str, expected: str, mend: str) -> Any:
    """What ``torch.save`` wrote, on the CPU, memory-mapped: tensors and plain values, and nothing that would run code.

    Args:
        holds: what such a file has, for the message.

    Raises:
        ArtifactError: if it is missing, truncated, or not such a file.
    """
    import pickle
    import zipfile

    import torch

    require_file(path, what)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # foreign bytes make the unpickler fail in any way
        raise ArtifactError(
            f"{what} cannot be read",
            where=path,
            # torch's own text for these would have the reader turn weights_only off.
            got=f"no {holds} saved by torch"
            if isinstance(error, (pickle.UnpicklingError, LookupError, EOFError))
            else (str(error) or repr(error)).splitlines()[0],
            expected=expected,
            mend=mend,
        ) from error


def hash_file(path: str | os.PathLike[str]) -> str:
    """Hash of a file; of tensors with a signature, as it would be without the command and commit that made it."""
    if Path(path).suffix == ".safetensors":
        tensors, metadata = load_tensors(path, "artefact")
        signed = metadata.get("signature") or {}
        made_from = without_who_made_it(signed)
        if made_from != signed:
            with tempfile.TemporaryDirectory() as folder:
                save_tensors(f"{folder}/artefact", tensors, {**metadata, "signature": made_from})
                return hash_file(f"{folder}/artefact")
    with open(require_file(path, "file"), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_who_made_it(made: Mapping[str, Any]) -> dict[str, Any]:
    """A signature without command and commit, which change nothing in an artefact."""
    return {key: value for key, value in made.items() if key not in ("command", "commit")}


def hash_text(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def hash_state(state: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors: names, dtypes, shapes, bytes.

    Unlike a file's hash it survives dropping optimizer state or saving the same weights again.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computed an artefact."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


@contextmanager
def running(words: Sequence[str], output: object = None) -> Iterator[None]:
    """Inside the block, what is signed was made by this command.

    Args:
        output: of its words the place where it writes, which is recorded as OUTPUT: an artefact is the same wherever
            it is put, and may be moved.
    """
    places = {str(output): OUTPUT, f"--output={output}": f"--output={OUTPUT}"}
    token = _RUNNING.set(shlex.join([places.get(word, word) for word in words]))
    try:
        yield
    finally:
        _RUNNING.reset(token)


def command_line() -> str | None:
    """The command that is running, as it was typed; None inside other programs, such as a notebook."""
    program = Path(sys.argv[0]).name
    typed = shlex.join([program, *sys.argv[1:]]) if program.startswith(("neuron-spec", "fairseq-")) else None
    return _RUNNING.get() or typed


def recorded_command(signed: Mapping[str, Any] | None, output: object) -> str | None:
    """The command that a signature recorded, writing to ``output``; None if it recorded none."""
    command = (signed or {}).get("command")
    return command and re.sub(rf"(?<=[ =]){OUTPUT}(?= |$)", lambda _: shlex.quote(str(output)), command)


@cache
def commit() -> str | None:
    """The git commit of the checkout that the package runs from, ``-dirty`` where files differ; None outside one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def signature(stage: str, *, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What an artefact was made from: hashes of its inputs, its parameters, the versions; and by which command.

    ``command`` and ``commit`` are left out where they are not known.
    """
    who_made_it = {key: value for key, value in (("command", command_line()), ("commit", commit())) if value}
    made_from = {"stage": stage, "inputs": dict(inputs), "parameters": dict(parameters)}
    return {**made_from, "versions": versions(), **who_made_it}


def is_made_from(existing: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether a signature names the same stage, inputs and parameters; versions may differ."""
    # A round trip through JSON, so that tuples and lists compare equal.
    plain = json.loads(json.dumps(dict(wanted)))
    return isinstance(existing, Mapping) and all(existing.get(key) == plain[key] for key in _COMPARED)


def is_already_here(
    where: str | os.PathLike[str], existing: Mapping[str, Any] | None, wanted: Mapping[str, Any], *, what: str
) -> bool:
    """Whether an artefact was made before, from the same; another one there must not be overwritten.

    Args:
        existing: the signature of what is there; None if nothing is, empty if it has none.
        wanted: the signature of what is to be made.
        what: the kind of artefact, for the message.

    Raises:
        ArtifactError: if what is there was made from something else.
    """
    if existing is None or is_made_from(existing, wanted):
        return existing is not None
    here, asked = (_leaves({key: of[key] for key in _COMPARED if key in of}) for of in (existing, wanted))
    apart = differences(here, asked, order=[*asked, *here].index, at_most=4)
    raise ArtifactError(
        f"another {what} is already here",
        where=where,
        got=apart["got"] if existing else "no signature",
        expected=apart["expected"],
        mend="name another --output, or delete what is there",
    )


def signature_in(path: str | os.PathLike[str], what: str) -> dict[str, Any] | None:
    """The signature that an artefact carries, JSON or tensors; None if it is not there, empty if it has none.

    Raises:
        ArtifactError: if it is damaged.
    """
    if not Path(path).is_file():
        return None
    content = read_json(path, what) if Path(path).suffix == ".json" else load_tensors(path, what)[1]
    if isinstance(content, dict) and Path(path).name != SIGNATURE:
        content = content.get("signature")
    made = dict(content) if isinstance(content, dict) else {}
    if wrong := [key for key in ("inputs", "parameters") if not isinstance(made.get(key, {}), dict)]:
        raise ArtifactError(
            f"the signature of {what} is damaged", where=path, got=f"{wrong[0]}: {made[wrong[0]]!r}"[:200]
        )
    # Of masks, the summary beside them says who made them.
    summary = Path(path).with_suffix(".json")
    if Path(path).suffix == ".safetensors" and made and summary.is_file():
        beside = read_json(summary, "summary")
        if isinstance(beside, dict) and is_made_from(beside.get("signature"), made):
            return dict(beside["signature"])
    return made


def completed(
    path: str | os.PathLike[str],
    wanted: Mapping[str, Any],
    *,
    what: str,
    where: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> bool:
    """Whether an artefact was made before from the same, which is then said.

    Args:
        path: the file that is written last, or first to claim a folder: ``signature.json``.
        where: what to call it, such as its folder; None: the file.
        quiet: say nothing, as of a piece of a whole.

    Raises:
        ArtifactError: if what is there was made from something else, or is damaged; or if it is not there, and could not
            be written either.
        OSError: as `require_writable`.
    """
    if not is_already_here(where or path, signature_in(path, what), wanted, what=what):
        require_writable(path)
        return False
    if not quiet:
        print(f"{where or path}: complete already", file=sys.stderr)
    return True


def claim(
    path: str | os.PathLike[str], signature: Mapping[str, Any], *, what: str, where: object = None
) -> None:
    """Write the signature that makes a folder its own, unless one is there: of two that begin at once, one is first.

    Args:
        path, what, where: as in `completed`.

    Raises:
        ArtifactError: if another has claimed it, since it was looked at.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(_as_json(signature), encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            is_already_here(str(where or path), signature_in(path, what), signature, what=what)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):  # a disk without such links
                raise


def training_command(folder: str | os.PathLike[str]) -> list[str]:
    """The words of the command that trained what is in a folder; none if no script of ours did, or not to the end."""
    mark = Path(folder) / _TRAINED
    if not mark.is_file():
        return []
    try:
        words = shlex.split(read_text(mark).partition("\n")[0])
    except ValueError:  # a quote that does not end
        words = []
    if len(words) < 2:
        return []
    # Another place on every machine; earlier versions remembered it.
    if "--user-dir" in words:
        words[words.index("--user-dir") + 1] = USER_DIR
    else:
        words[2:2] = ["--user-dir", USER_DIR]
    return words


def training_mark(
    folder: str | os.PathLike[str], words: Sequence[object], inputs: Sequence[Path]
) -> tuple[Path, str]:
    """The file that says that a training ended well, and what it holds: the command, and hashes of the files read."""
    hashes = "".join(f"{hash_file(file)}  {file}\n" for file in inputs)
    return Path(folder) / _TRAINED, f"{shlex.join(map(str, words))}\n{hashes}"


def shown_command(words: Sequence[object]) -> str:
    """A command for a shell; the substitution that stands for the user-dir remains one."""
    return " ".join(str(word) if word == USER_DIR else shlex.quote(str(word)) for word in words)


def differences(
    got: Mapping[str, Any],
    expected: Mapping[str, Any],
    order: Callable[[str], Any] | None = None,
    at_most: int | None = None,
) -> dict[str, str]:
    """``got`` and ``expected`` of a message, where two mappings differ; ``order`` is the keys'."""
    keys = [key for key in sorted({*got, *expected}, key=order) if got.get(key) != expected.get(key)]
    more = "" if at_most is None or len(keys) <= at_most else f", and {len(keys) - at_most} more"
    return {
        label: ", ".join(f"{key}: {values.get(key, 'absent')}" for key in keys[:at_most]) + more
        for label, values in (("got", got), ("expected", expected))
    }


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    """Nested mappings without nesting: ``parameters.k_percent.encoder.en-de`` -> ``95.0``."""
    if not isinstance(value, Mapping) or (name and not value):
        return {name: json.dumps(value, ensure_ascii=False)}
    leaves: dict[str, str] = {}
    for key, inner in value.items():
        leaves |= _leaves(inner, f"{name}.{key}" if name else key)
    return leaves
