"""How valid files are damaged, in words: one table over all formats that are read."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Damage:
    """A way to damage the files of a format.

    Attributes:
        format: of `valid.FORMATS`.
        words: what it is.
        change: makes it of a valid file.
        unread: readers that do not look at what is damaged, and so are not asked.
        hidden: the message names another file, such as the folder of a data-bin, or the first of two that differ.
    """

    format: str
    words: str
    change: Change
    unread: tuple[str, ...] = ()
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.format}: {self.words}"

    def names(self, files: Sequence[str]) -> set[str]:
        """Of which a message has one: of a data-bin the other half may be named, of what is finished its folder."""
        if self.hidden:
            return {""}
        if self.format in _BY_FOLDER:
            return {str(Path(file).parent) for file in files}
        return {Path(file).name.removesuffix(".idx").removesuffix(".bin") for file in files}


# Ways to change a file -------------------------------------------------------------------------


def content(change: Callable[[bytes], bytes]) -> Change:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def text(change: Callable[[str], str]) -> Change:
    """``\udce4`` in what ``change`` returns is a byte that is no UTF-8."""
    return content(lambda of: change(of.decode()).encode(errors="surrogateescape"))


def plain(change: Callable[[Any], Any]) -> Change:
    """Of JSON: the value that ``change`` returns, or, where it returns None, the one that it changed."""

    def apply(path: Path) -> None:
        value = json.loads(path.read_text(encoding="utf-8"))
        new = change(value)
        path.write_text(json.dumps(value if new is None else new), encoding="utf-8")

    return apply


def tensors(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    """Of safetensors: ``change`` is given the tensors, and the header's metadata without their JSON."""

    def apply(path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            of = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(of, metadata)
        header = {key: json.dumps(value) for key, value in metadata.items()}
        safetensors.torch.save_file(
            {key: value.clone().contiguous() for key, value in of.items()}, path, header
        )

    return apply


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Of safetensors: the header itself, of which the library checks what it knows."""

    def apply(of: bytes) -> bytes:
        size = int.from_bytes(of[:8], "little")
        said = json.loads(of[8 : 8 + size])
        change(said)
        new = json.dumps(said).encode()
        return len(new).to_bytes(8, "little") + new + of[8 + size :]

    return content(apply)


def state(change: Callable[[dict[str, Any]], object]) -> Change:
    """Of a checkpoint: the value that ``change`` returns, or, where it returns None, the one that it changed."""

    def apply(path: Path) -> None:
        value = torch.load(path, weights_only=False)
        new = change(value)
        torch.save(value if new is None else new, path)

    return apply


def at(*keys: str | int, to: Any = None, without: bool = False) -> Callable[[Any], None]:
    """Set, or take away, what stands below these keys; ``"*"`` is the first key of a mapping."""

    def change(value: Any) -> None:
        *before, last = keys
        for key in before:
            value = value[next(iter(value)) if key == "*" else key]
            value = vars(value) if isinstance(value, argparse.Namespace) else value
        last = next(iter(value)) if last == "*" else last
        if without:
            del value[last]
        else:
            value[last] = to

    return change


def _first(of: dict[str, Any], end: str = "") -> str:
    return next(key for key in of if key.endswith(end))


# Of any file -----------------------------------------------------------------------------------

_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
_ANY: dict[str, Change] = {
    "empty": content(lambda of: b""),
    "one byte": content(lambda of: of[:1]),
    "cut in the middle": content(lambda of: of[: len(of) // 2]),
    "zero bytes of its length": content(lambda of: bytes(len(of))),
    "bytes that are no text": content(lambda of: bytes(range(256)) * 8),
    "compressed by gzip": content(lambda of: gzip.compress(of, mtime=0)),
    "a Git-LFS pointer": content(lambda of: _POINTER),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir())[1],
    "gone": lambda path: path.unlink(),
}
# Of what the folder is named: transformers reads a model's files together.
_BY_FOLDER = (
    "signature", "finished page", "hf configuration", "hf weights", "hf tokenizer", "hf tokenizer's configuration", "losses",
    "begun tuning", "what a tuning is of",
)  # fmt: skip
# Where such a thing is valid, or is nobody's to see.
_IS_VALID = {
    ("texts of an evaluation", "zero bytes of its length"),
    ("sentence scores", "gone"),
    ("sentence scores", "a folder in its place"),
    *((name, what) for name in ("finished page", "signature", "ablation", "conflict", "transfer", "adaptation")
      for what in ("gone", "a folder in its place")),
    ("card", "gone"), ("card", "a folder in its place"),  # a data-bin made elsewhere
    ("families", "an empty mapping"),
    *((name, what) for name in ("losses", "hf masks", "weight masks", "begun tuning", "losses before", "state of a tuning")
      for what in ("gone", "a folder in its place")),  # then nothing is complete, or begun, or it is a plain model
    *((name, "compressed by gzip") for name in ("text", "parallel text")),
    ("data", "bytes that are no text"), ("data", "zero bytes of its length"),  # below, with its length
}  # fmt: skip


# Who does without a file that is gone.
_DOES_WITHOUT = {"masks": ("sweep",), "dictionary": ("checkpoint add-language",)}


def _of_any() -> Iterator[Damage]:
    from valid import FORMATS

    for name in FORMATS:
        for words, change in _ANY.items():
            if (name, words) not in _IS_VALID and name not in _READ_ALIKE:
                is_absent = words in ("gone", "a folder in its place")
                unread = _DOES_WITHOUT.get(name, ()) if is_absent else ()
                yield Damage(name, words, change, unread, hidden=is_absent)


# Of JSON ---------------------------------------------------------------------------------------

# By the one loader that reads the page of an ablation, and a report takes a while.
_READ_ALIKE = ("conflict", "transfer")
_DEEP = b"[" * 100_000
_VALUES: dict[str, Change] = {
    "a list": plain(lambda of: [of]),
    "a number": plain(lambda of: 5),
    "null": content(lambda of: b"null"),
    "text": plain(lambda of: "de-en"),
    "an empty mapping": plain(lambda of: {}),
    "nested 100,000 deep": content(lambda of: _DEEP),
    "a number of 10,000 digits": content(lambda of: b'{"a": ' + b"9" * 10_000 + b"}"),
    "NaN": content(lambda of: b'{"a": NaN}'),
    "Latin-1": content(lambda of: '{"ä": 1}'.encode("latin-1")),
    "UTF-16": content(lambda of: of.decode().encode("utf-16")),
    "two values": content(lambda of: of + of),
}
_JSON = (
    "scores", "comparison", "card", "export", "length penalty", "families", "shipped", "finished page", "signature", "ablation",
    "adaptation", "hf configuration", "hf tokenizer", "hf tokenizer's configuration", "losses", "begun tuning",
    "losses before", "what a tuning is of",
)  # fmt: skip


def _of_json() -> Iterator[Damage]:
    from valid import FORMATS

    for name in _JSON:
        for words, change in _VALUES.items():
            if name in FORMATS and (name, words) not in _IS_VALID:
                yield Damage(name, words, change)


# Of each format --------------------------------------------------------------------------------

_COUNTED = "encoder.layers.0"


def _profile() -> Iterator[Damage]:
    def of(words: str, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Damage:
        return Damage("profile", words, tensors(change))

    yield of("a negative count", lambda t, m: t[_COUNTED].__setitem__((0, 0), -1))
    yield of("a count of 2^62", lambda t, m: t[_COUNTED].__setitem__((0, 0), 2**62))
    yield of(
        "a count above the tokens", lambda t, m: t[_COUNTED].__setitem__((0, 0), t["tokens.encoder"][0] + 1)
    )
    yield of("negative tokens", lambda t, m: t["tokens.decoder"].__setitem__(0, -1))
    yield of("2^62 tokens", lambda t, m: t["tokens.decoder"].fill_(2**62))
    yield of("tokens as floats", lambda t, m: t.update({"tokens.encoder": t["tokens.encoder"].double()}))
    yield of(
        "tokens of one direction less", lambda t, m: t.update({"tokens.encoder": t["tokens.encoder"][1:]})
    )
    yield of("tokens as a matrix", lambda t, m: t.update({"tokens.encoder": t["tokens.encoder"][None]}))
    yield of("no tokens of the decoder", lambda t, m: t.pop("tokens.decoder"))
    yield of("counts as floats", lambda t, m: t.update({_COUNTED: t[_COUNTED].float()}))
    yield of("counts as int32", lambda t, m: t.update({_COUNTED: t[_COUNTED].int()}))
    yield of("counts of one direction less", lambda t, m: t.update({_COUNTED: t[_COUNTED][1:]}))
    yield of("counts of three axes", lambda t, m: t.update({_COUNTED: t[_COUNTED][..., None]}))
    yield of("a layer without neurons", lambda t, m: t.update({_COUNTED: t[_COUNTED][:, :0]}))
    yield of("the encoder alone", lambda t, m: [t.pop(k) for k in [*t] if k.startswith("decoder")])
    yield of("the decoder alone", lambda t, m: [t.pop(k) for k in [*t] if k.startswith("encoder")])
    yield of("no layers", lambda t, m: [t.pop(k) for k in [*t] if "layers" in k])
    yield of("the first layer missing", lambda t, m: t.pop(_COUNTED))
    yield of("a gap between layers", lambda t, m: t.update({"encoder.layers.7": t.pop("encoder.layers.1")}))
    yield of("a site of no transformer", lambda t, m: t.update({"encoder.blocks.0": t[_COUNTED]}))
    yield of("heads beside neurons", lambda t, m: t.update({f"{_COUNTED}.self_attn": t[_COUNTED]}))
    yield of(
        "a layer's number with a zero before it",
        lambda t, m: t.update({"encoder.layers.01": t.pop("encoder.layers.1")}),
    )
    yield of("tokens of a third side", lambda t, m: t.update({"tokens.middle": t["tokens.encoder"]}))
    yield from _directions("profile")


def _directions(name: str) -> Iterator[Damage]:
    for words, value in {
        "as text": "en-qa", "as a number": 6, "as a mapping": {"en-qa": 1}, "as null": None, "none": [],
        "of numbers": [1, 2, 3, 4, 5, 6], "of lists": [["en", "qa"]] * 6, "one less": ["en-qa"],
        "one twice": ["en-qa"] * 6, "that are none": ["english", *"abcde"],
        "that leave their folder": [f"../../x{n}-en" for n in range(6)],
        "with null among them": ["en-qa", None, "qa-en", "en-qb", "qb-en", "en-qm"],
    }.items():  # fmt: skip
        yield Damage(
            name, f"directions {words}", tensors(lambda t, m, value=value: m.update(directions=value))
        )
    yield Damage(name, "no directions", tensors(lambda t, m: m.pop("directions")))
    yield Damage(name, "a signature that is text", tensors(lambda t, m: m.update(signature="made")))
    yield Damage(name, "a signature that is a list", tensors(lambda t, m: m.update(signature=[1])))
    yield Damage(
        name, "a checkpoint's hash that is a number", tensors(lambda t, m: m.update(checkpoint_sha256=5))
    )
    yield Damage(name, "metadata that is no JSON", header(at("__metadata__", "langs", to="{")))
    yield Damage(name, "metadata nested deep", header(at("__metadata__", "langs", to="[" * 20_000)))
    yield Damage(name, "metadata of 10,000 digits", header(at("__metadata__", "langs", to="9" * 10_000)))
    yield Damage(name, "metadata of NaN", header(at("__metadata__", "langs", to="NaN")))
    yield Damage(name, "no metadata", header(at("__metadata__", without=True)))
    yield Damage(
        name, "a header's length beyond the file", content(lambda of: (2**40).to_bytes(8, "little") + of[8:])
    )
    yield Damage(
        name, "a dtype that nobody has", header(lambda h: h[_first(h, "layers.0")].update(dtype="I7"))
    )
    yield Damage(
        name,
        "offsets beyond the file",
        header(lambda h: h[_first(h, "layers.0")].update(data_offsets=[0, 10**9])),
    )
    yield Damage(
        name,
        "a tensor of 2^60 elements",
        header(lambda h: h[_first(h, "layers.0")].update(shape=[2**30, 2**30])),
    )
    yield Damage(name, "the last byte missing", content(lambda of: of[:-1]))


def _masks() -> Iterator[Damage]:
    def of(words: str, change: Callable[[dict[str, Any], dict[str, Any]], object], *unread: str) -> Damage:
        return Damage("masks", words, tensors(change), unread)

    yield of("no widths", lambda t, m: m.pop("widths"))
    for words, value in {
        "text": "wide", "a list": [48, 48], "null": None, "empty": {}, "of text": {_COUNTED: "48"},
        "of null": {_COUNTED: None}, "negative": {_COUNTED: -48}, "of fractions": {_COUNTED: 48.5},
        "of 2^70": {_COUNTED: 2**70}, "true": {_COUNTED: True}, "zero": {_COUNTED: 0},
    }.items():  # fmt: skip
        yield of(
            f"widths {words}",
            lambda t, m, value=value: m.update(
                widths={**m["widths"], **value} if isinstance(value, dict) and value else value
            ),
        )
    yield of("a width that the bits do not have", lambda t, m: m["widths"].update({_COUNTED: 100}))
    yield of("a site without widths", lambda t, m: m["widths"].pop(_COUNTED))
    yield of("bits as int64", lambda t, m: t.update({_COUNTED: t[_COUNTED].long()}))
    yield of("bits as floats", lambda t, m: t.update({_COUNTED: t[_COUNTED].float()}))
    yield of("bits as bools", lambda t, m: t.update({_COUNTED: t[_COUNTED].bool()}))
    yield of("bits of one direction less", lambda t, m: t.update({_COUNTED: t[_COUNTED][1:]}))
    yield of("bits without directions", lambda t, m: t.update({_COUNTED: t[_COUNTED][0]}))
    yield of("bits beyond the width set", _beyond)
    yield of("a layer missing", lambda t, m: (t.pop(_COUNTED), m["widths"].pop(_COUNTED)),
             "masks vote", "analyze", "report", "sweep")  # masks of fewer layers are no fault of theirs  # fmt: skip
    yield of(
        "a site of no transformer",
        lambda t, m: (t.update(x=t[_COUNTED]), m["widths"].update(x=m["widths"][_COUNTED])),
    )
    yield of("another format", lambda t, m: m.update(format=99))
    yield of("no format", lambda t, m: m.pop("format"))
    yield of("no tensors at all", lambda t, m: (t.clear(), m.update(widths={})))
    yield of("k's that are a list", lambda t, m: m.update(k_percent=[90]))
    yield of(
        "k's that are text", lambda t, m: m.update(k_percent={"encoder": {"en-qa": "many"}, "decoder": {}})
    )
    yield of("k's of 1000", lambda t, m: m.update(k_percent={"encoder": {"en-qa": 1000}, "decoder": {}}))
    yield of("k's by no side", lambda t, m: m.update(k_percent={"encoder": 95}))
    yield of("a method that is a number", lambda t, m: m.update(method=5))
    yield of("sets of a kind that nobody has", lambda t, m: m.update(neuron_sets=[1]))
    yield of("languages that are a number", lambda t, m: m.update(langs=5))
    yield of("a dictionary's hash that is a list", lambda t, m: m.update(dictionary_sha256=["a"]))
    yield from _directions("masks")


def _beyond(t: dict[str, Any], m: dict[str, Any]) -> None:
    """Sets a bit of padding where there is one: widths of a multiple of 8 have none."""
    m["widths"][_COUNTED] -= 3
    t[_COUNTED] |= 7


_MODEL = "encoder.layers.0.fc1.weight"


def _checkpoint() -> Iterator[Damage]:
    # What only moves weights about, or does not run them.
    moved = (
        "checkpoint shrink", "checkpoint average", "unshare", "masks export-official", "masks import-official",
        "masks import-activations", "systems", "specialize", "checkpoint add-language",
    )  # fmt: skip

    def of(words: str, change: Callable[[dict[str, Any]], object], *unread: str) -> Damage:
        return Damage("checkpoint", words, state(change), unread)

    yield of("a list", lambda s: [s])
    yield of("a tensor", lambda s: torch.zeros(3))
    yield of("an empty mapping", lambda s: {})
    yield of("weights alone", lambda s: s["model"])
    yield of("no weights", at("model", without=True))
    yield of("weights that are a list", at("model", to=[1, 2]))
    yield of("weights that are text", at("model", to="weights"))
    yield of("weights that are none", at("model", to={}))
    yield of("a weight that is text", at("model", _MODEL, to="x"))
    yield of("a weight that is a list", at("model", _MODEL, to=[1.0]))
    yield of("a weight that is null", at("model", _MODEL, to=None))
    yield of("a weight named by a number", lambda s: s["model"].update({5: torch.zeros(2)}))
    yield of(
        "a weight of no axes",
        lambda s: s["model"].update({_MODEL: torch.tensor(1.0)}),
        "checkpoint shrink",
        "systems",
        "specialize",
    )
    yield of("a weight of whole numbers", lambda s: s["model"].update({_MODEL: s["model"][_MODEL].long()}))
    yield of("a sparse weight", lambda s: s["model"].update({_MODEL: s["model"][_MODEL].to_sparse()}))
    yield of(
        "a weight on no device", lambda s: s["model"].update({_MODEL: torch.empty(48, 16, device="meta")})
    )
    for name, value in (("NaN", float("nan")), ("infinity", float("inf"))):
        yield of(
            f"{name} among the weights",
            lambda s, value=value: s["model"][_MODEL].view(-1).__setitem__(3, value),
        )
    yield of("no configuration", lambda s: s.update(cfg=None, args=None))
    for key in ("cfg",):
        for words, value in {
            "a list": [1],
            "text": "cfg",
            "a number": 7,
            "an empty list of pairs": [()],
        }.items():
            yield of(f"a configuration that is {words}", at(key, to=value))
    for part in ("task", "model"):
        for words, value in {"null": None, "a list": [1], "text": "x", "a number": 3}.items():
            yield of(
                f"{part} of the configuration that is {words}",
                at("cfg", part, to=value),
                *(() if part == "task" else _NO_MODEL_FLAGS),
            )
        yield of(
            f"no {part} in the configuration",
            at("cfg", part, without=True),
            *(() if part == "task" else _NO_MODEL_FLAGS),
        )
    for flag, values in {
        "lang_pairs": {"a number": 5, "null": None, "of numbers": [1, 2], "a mapping": {"a": 1}, "none": [], "no directions": "english,x", "with an unknown language": "en-xx"},
        "langs": {"a number": 5, "of numbers": [1, 2, 3, 4], "a mapping of numbers": {1: 2}, "one twice": ["en", "en", "qa", "qb"], "that are none": ["../x", "en", "qa", "qb"]},
        "langtoks": {"a list": [1], "text": "src", "of numbers": {"main": 5}, "of one": {"main": ["src"]}, "of numbers in pairs": {"main": [1, 2]}},
        "langtoks_specs": {"a number": 5, "of numbers": [1]},
        "lang_tok_style": {"a list": ["mbart"], "none that there is": "martian"},
        "encoder_langtok": {"a number": 5, "none that there is": "both"},
        "lang_dict": {"a number": 5, "a file that is gone": "gone.txt"},
        "fixed_dictionary": {"a number": 5, "a file that is gone": "gone.txt"},
        "max_source_positions": {"text": "x", "negative": -5, "a list": [1]},
    }.items():  # fmt: skip
        for words, value in values.items():
            yield of(f"{flag.replace('_', '-')} {words}", at("cfg", "task", flag, to=value), *_NO_TASK_FLAGS)
    for words, change in {
        "a number of layers that is text": at("cfg", "model", "encoder_layers", to="many"),
        "no heads": at("cfg", "model", "encoder_attention_heads", to=0),
        "a width that is null": at("cfg", "model", "encoder_embed_dim", to=None),
        "negative width": at("cfg", "model", "decoder_ffn_embed_dim", to=-4),
        "an activation that there is not": at("cfg", "model", "activation_fn", to="sine"),
        "an activation that is a number": at("cfg", "model", "activation_fn", to=5),
        "10^12 layers": at("cfg", "model", "decoder_layers", to=10**12),
        "a dropout of 5": at("cfg", "model", "dropout", to=5),
        "a dropout that is text": at("cfg", "model", "attention_dropout", to="much"),
    }.items():  # fmt: skip
        yield of(words, change)
    ran = tuple(name for name in moved if name not in ("unshare",))
    for words, change in {
        "an architecture that there is not": _of_mars,
        "an architecture that is a number": at("cfg", "model", "arch", to=5),
        "more layers than there are": at("cfg", "model", "encoder_layers", to=5),
        "fewer layers than there are": at("cfg", "model", "encoder_layers", to=1),
        "10^9 layers' width": at("cfg", "model", "encoder_ffn_embed_dim", to=7),
        "heads that do not divide": at("cfg", "model", "decoder_attention_heads", to=3),
        "a missing weight": at("model", _MODEL, without=True),
        "a missing layer": lambda s: [s["model"].pop(k) for k in [*s["model"]] if "decoder.layers.1." in k],
        "a layer too many": lambda s: s["model"].update({k.replace("layers.1.", "layers.2."): v for k, v in s["model"].items() if "encoder.layers.1." in k}),
        "a weight too narrow": lambda s: s["model"].update({_MODEL: s["model"][_MODEL][:, :3].clone()}),
        "embeddings of fewer symbols": lambda s: s["model"].update({k: v[:50].clone() for k, v in s["model"].items() if "embed_tokens" in k or "output_projection" in k}),
        "keys with a prefix": lambda s: s.update(model={f"module.{k}": v for k, v in s["model"].items()}),
    }.items():  # fmt: skip
        yield Damage(
            "checkpoint", words, state(change), (*ran, "unshare", "lass", "prune copies"), hidden=True
        )
    yield Damage("checkpoint", "a pickle of a command", content(lambda of: b"cposix\nsystem\n(S'true'\ntR."))
    yield Damage("checkpoint", "a zip of something else", _zip)
    yield Damage("checkpoint", "flipped bytes in its index", content(lambda of: of[:-60] + bytes(60)))


def _of_mars(s: dict[str, Any]) -> None:
    for name in ("arch", "_name"):
        at("cfg", "model", name, to="transformer_of_mars")(s)


_NO_MODEL_FLAGS = (
    "masks export-official", "masks import-official", "masks import-activations", "checkpoint shrink",
    "checkpoint add-language", "specialize",
)  # fmt: skip
_NO_TASK_FLAGS = ("checkpoint shrink", "systems", "masks export-official")


def _zip(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.txt", "x")


_INDEX = 26  # bytes before the sizes: magic, version, kind, numbers of sentences and documents


def _index() -> Iterator[Damage]:
    def of(words: str, change: Callable[[bytes], bytes], hidden: bool = False) -> Damage:
        return Damage("index", words, content(change), hidden=hidden)

    def put(start: int, value: bytes) -> Callable[[bytes], bytes]:
        return lambda of: of[:start] + value + of[start + len(value) :]

    yield of("another magic", put(0, b"TNTIDX\0\0\0"))
    yield of("a magic that nobody has", put(0, b"XXXIDX\0\0\0"))
    yield of("version 2", put(9, struct.pack("<Q", 2)))
    yield of("a kind of numbers that there is not", put(17, b"\x63"))
    yield of("kind 0", put(17, b"\x00"))
    yield of("numbers of 8 bytes", put(17, b"\x05"))
    yield of("2^62 sentences", put(18, struct.pack("<Q", 2**62)))
    yield of("2^64 - 1 sentences", put(18, struct.pack("<Q", 2**64 - 1)))
    yield of(
        "one sentence more than there is",
        lambda of: put(18, struct.pack("<Q", struct.unpack("<Q", of[18:26])[0] + 1))(of),
    )
    yield of(
        "one sentence less", lambda of: put(18, struct.pack("<Q", struct.unpack("<Q", of[18:26])[0] - 1))(of)
    )
    yield of("no sentences", put(18, struct.pack("<Q", 0)))
    for size in (5000, 0, -1, -(2**31), 2**31 - 1):
        yield of(f"a sentence of {size} tokens", put(_INDEX, struct.pack("<i", size)))
    yield of("garbled places", lambda of: of[:-16] + bytes([255] * 16))
    yield of("places that begin late", lambda of: of[:-8] + struct.pack("<q", 2**40))
    yield of("the last byte missing", lambda of: of[:-1])
    yield of("bytes too many", lambda of: of + bytes(8))


def _data() -> Iterator[Damage]:
    def of(words: str, change: Callable[[bytes], bytes], *unread: str) -> Damage:
        return Damage("data", words, content(change), unread)

    yield of("the last byte missing", lambda of: of[:-1])
    yield of("a byte too many", lambda of: of + b"x")
    yield of("twice as long", lambda of: of + of)
    # "bytes that are no text" and the like, with the right length.
    yield of("numbers beyond the dictionary", lambda of: b"\xf0\xff" * (len(of) // 2))
    yield of("one number beyond the dictionary", lambda of: b"\xf0\xff" + of[2:])
    yield of("its last number beyond the dictionary", lambda of: of[:-2] + b"\xf0\xff")


def _dictionary() -> Iterator[Damage]:
    def of(
        words: str, change: Callable[[str], str], hidden: bool = False, unread: tuple[str, ...] = ()
    ) -> Damage:
        return Damage("dictionary", words, text(change), unread, hidden)

    yield of("a piece without a count", lambda t: t.replace("\n", " x y\n", 1).replace(" 1 x y", ""))
    yield of("a count that is text", lambda t: re.sub(r" \d+\n", " many\n", t, count=1))
    yield of("a piece twice", lambda t: t.splitlines(keepends=True)[0] + t)
    yield of("a line cut", lambda t: t[: len(t) // 2].rsplit(" ", 1)[0])
    yield of(
        "half of its pieces", lambda t: "".join(t.splitlines(True)[: len(t.splitlines()) // 2]), hidden=True
    )
    yield of("one piece more", lambda t: t + "new 1\n", hidden=True)
    yield of(
        "two pieces in another order",
        lambda t: "".join([*t.splitlines(True)[:-2], *t.splitlines(True)[:-3:-1]]),
        hidden=True,
        unread=(
            "checkpoint add-language",
        ),  # which looks at one language's, and knows how many pieces there were
    )
    yield of("an empty line in it", lambda t: t.replace("\n", "\n\n", 1))
    yield of("UTF-16", lambda t: t.encode("utf-16").decode("latin-1"))


def _evaluations() -> Iterator[Damage]:
    def of(words: str, *keys: str | int, **how: Any) -> Damage:
        return Damage("scores", words, plain(at(*keys, **how)))

    for key in ("directions", "signature", "families", "tiers"):
        yield of(f"no {key}", key, without=True)
        for words, value in {"a list": [1], "text": "x", "null": None, "a number": 3}.items():
            yield of(f"{key} that are {words}", key, to=value)
    yield of("no direction", "directions", to={})
    yield of("a direction that is none", "directions", "english", to={})
    yield of("a direction of another folder", "directions", "../../x-en", to={})
    yield of("a direction that is a list", "directions", "*", to=[1])
    yield of("a direction that is null", "directions", "*", to=None)
    yield of("a figure that nobody knows", "directions", "*", "rouge", to=3.0)
    for key in ("bleu", "chrf", "sentences", "hypothesis_tokens", "reference_tokens", "bleu_signature"):
        yield of(f"no {key}", "directions", "*", key, without=True)
    for key in ("bleu", "chrf", "nll", "sentences", "hypothesis_tokens", "empty_fraction"):
        for words, value in {"text": "high", "a list": [1], "true": True, "10^400": 10**400}.items():
            yield of(f"{key} that is {words}", "directions", "*", key, to=value)
    yield of("a BLEU of null", "directions", "*", "bleu", to=None)
    yield of("a BLEU of -3", "directions", "*", "bleu", to=-3.0)
    yield of("a BLEU of 250", "directions", "*", "bleu", to=250.0)
    yield of("a fraction above 1", "directions", "*", "empty_fraction", to=1.5)
    yield of("-4 sentences", "directions", "*", "sentences", to=-4)
    yield of("a fraction of a sentence", "directions", "*", "sentences", to=1.5)
    yield of("sacreBLEU's signature that is a number", "directions", "*", "bleu_signature", to=5)
    yield of("a family that is a number", "families", "de", to=5)
    yield of("a tier that is a list", "tiers", to={"de": []})
    yield of("parameters that are a list", "signature", "parameters", to=[1])
    yield of("inputs that are text", "signature", "inputs", to="x")
    yield of("a pivot that is a number", "pivot", to=5)
    yield of("a note that is a list", "off_target_note", to=[1])
    yield Damage(
        "scores", "NaN for BLEU", text(lambda t: re.sub(r'"bleu": [\d.]+', '"bleu": NaN', t, count=1))
    )
    yield Damage(
        "scores",
        "Infinity for BLEU",
        text(lambda t: re.sub(r'"bleu": [\d.]+', '"bleu": Infinity', t, count=1)),
    )
    yield Damage(
        "scores", "1e999 for BLEU", text(lambda t: re.sub(r'"bleu": [\d.]+', '"bleu": 1e999', t, count=1))
    )
    for words, change in {
        "a line less": lambda t: t[: t.rstrip("\n").rindex("\n") + 1],
        "a line more": lambda t: t + "x\n",
        "no line break at its end": lambda t: t.rstrip("\n"),
    }.items():
        yield Damage("texts of an evaluation", words, text(change))
    for words, change in {
        "a line less": lambda t: t[: t.rstrip("\n").rindex("\n") + 1],
        "a line more": lambda t: t + "1.0,2.0\n",
        "a cell less": lambda t: re.sub(r",[\d.]+\n", "\n", t[::-1][::-1], count=2),
        "text for a number": lambda t: re.sub(r"\n[\d.]+,", "\nhigh,", t, count=1),
        "NaN for a number": lambda t: re.sub(r"\n[\d.]+,", "\nnan,", t, count=1),
        "1e999 for a number": lambda t: re.sub(r"\n[\d.]+,", "\n1e999,", t, count=1),
        "a column that nobody knows": lambda t: t.replace("text_nll", "text_ppl", 1),
        "a column twice": lambda t: t.replace("text_tokens", "text_nll", 1),
        "-1 tokens": lambda t: re.sub(r",[\d.]+\n", ",-1.0\n", t, count=1),
        "a header alone": lambda t: t.partition("\n")[0] + "\n",
    }.items():
        yield Damage("sentence scores", words, text(change))


def _comparison() -> Iterator[Damage]:
    def of(words: str, *keys: str | int, **how: Any) -> Damage:
        return Damage("comparison", words, plain(at(*keys, **how)))

    for key in ("directions", "groups", "signature", "baseline", "alpha"):
        yield of(f"no {key}", key, without=True)
    for key in ("directions", "groups"):
        for words, value in {
            "a number": 3,
            "a mapping": {"a": 1},
            "of text": ["x"],
            "null": None,
            "empty": [],
        }.items():
            yield of(f"{key} {words}", key, to=value)
        for words, value in {"text": "x", "a list": [1], "null": None}.items():
            yield of(f"a difference of {key} that is {words}", key, 0, "difference", to=value)
        yield of(f"no system in {key}", key, 0, "system", without=True)
        yield of(f"a system of {key} that is a number", key, 0, "system", to=5)
        yield of(f"a mean of {key} that is text", key, 0, "difference", "mean", to="x")
        yield of(f"a mean of {key} that is null", key, 0, "score", "mean", to=None)
    yield of("a direction that is none", "directions", 0, "direction", to="english")
    yield of("a baseline that is a list", "baseline", to=[1])
    yield of("an alpha that is text", "alpha", to="one")
    yield of("a key that nobody knows", "colour", to=3)


def _card() -> Iterator[Damage]:
    every = ("profile", "evaluate", "ablate", "conflict", "transfer", "adapt", "importance", "prune", "lass", "specialize")  # fmt: skip

    def of(words: str, *keys: str | int, unread: tuple[str, ...] = (), **how: Any) -> Damage:
        return Damage("card", words, plain(at(*keys, **how)), unread)

    of_report = (*every, "analyze card", "checkpoint shrink", "checkpoint check", "bilingual updates")
    del of_report
    for key in ("families", "pairs", "lang_pairs", "langs", "sources", "tiers", "signature", "name"):
        for words, value in {"a number": 3, "text": "x", "null": None}.items():
            if (key, words) != ("name", "text"):
                yield of(f"{key} {words}", key, to=value)
    yield of("families of numbers", "families", "*", to=5)
    yield of("pairs of text", "pairs", "train", "*", to="many")
    yield of("pairs of true", "pairs", "train", "*", to=True)
    yield of("-5 pairs", "pairs", "train", "*", to=-5)
    yield of("training pairs that are a list", "pairs", "train", to=[1])
    yield of("directions that are none", "lang_pairs", to=["english"])
    yield of("directions of numbers", "lang_pairs", to=[1, 2])
    yield of("a source without a licence", "sources", to=[{"name": "x"}])
    yield of("sources of text", "sources", to=["x"])
    yield of("a pivot that is a number", "pivot", to=5)
    yield of("a pivot that is a list", "pivot", to=["en"])


def _config() -> Iterator[Damage]:
    def of(words: str, line: str) -> Damage:
        return Damage("config", words, text(lambda t: t + line + "\n"))

    yield of("no YAML", "a: [")
    yield of("a tab before a key", "\tlr: 1")
    yield of("a tag of Python", "seed: !!python/object/apply:os.system [true]")
    yield of("a tag of a number that is none", "seed: !!int x")
    yield of("a tag of a float that is none", "seed: !!float x")
    yield of("a date", "seed: 2024-01-01")
    yield of("a date that is none", "seed: 2024-13-45")
    yield of("a number of 5,000 digits", "seed: " + "9" * 5000)
    yield of("a number by sexagesimals beyond measure", "seed: " + ":".join(["59"] * 400))
    yield of("a list for a value", "seed: [1, 2]")
    yield of("a mapping for a value", "seed: {a: 1}")
    yield of("nothing for a value", "seed:")
    yield of("a number for a key", "5: 6")
    yield of("a list for a key", "[1, 2]: 6")
    yield of("a mapping for a key", "{a: 1}: 6")
    yield of("a key twice", "lr: 0.5")
    yield of("an unknown flag", "learning-rates: 0.5")
    yield of("a value of another kind", "max-update: many")
    yield of("a choice that there is not", "optimizer: gradient")
    yield of("a flag that loads code", "user-dir: /nowhere")
    yield of("a flag that ends the parser", "help: true")
    yield of("aliases beyond measure", "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]")
    yield of("bytes of infinity", "lr-scheduler: .inf")
    yield of("two documents", "---\nlr: 1")
    yield of("tokens-per-update beside update-freq", "tokens-per-update: 1000\nupdate-freq: 2")
    yield of("tokens-per-update of text", "tokens-per-update: many")
    yield of("tokens-per-update of 0", "tokens-per-update: 0")
    yield of("binary data", "seed: !!binary aGVsbG8=")
    yield of("a set", "seed: !!set {a}")
    yield Damage("config", "a list of flags", content(lambda of: b"- lr\n- 1\n"))
    yield Damage("config", "one word", content(lambda of: b"lr\n"))
    yield Damage("config", "nested deep", content(lambda of: b"[" * 5000))
    yield Damage("config", "Latin-1", content(lambda of: of + "# ä\n".encode("latin-1")))


def _log() -> Iterator[Damage]:
    def of(words: str, change: Callable[[str], str]) -> Damage:
        return Damage("log", words, text(change))

    yield of("an id of 11 digits", lambda t: t.replace("H-0\t", "H-99999999999\t"))
    yield of("an id of 18 digits", lambda t: t.replace("H-0\t", f"H-{10**17}\t"))
    yield of("an id of 40 digits", lambda t: t.replace("H-0\t", f"H-{10**40}\t"))
    yield of("a negative id", lambda t: t.replace("H-0\t", "H--3\t").replace("D-0\t", "D--3\t"))
    yield of("a score that is text", lambda t: t.replace("H-0\t-0.5", "H-0\thigh"))
    yield of(
        "a score that is NaN", lambda t: t.replace("H-0\t-0.5", "H-0\tnan").replace("D-0\t-0.5", "D-0\tnan")
    )
    yield of("no score", lambda t: t.replace("H-0\t-0.5\t", "H-0\t"))
    yield of("a reference twice", lambda t: t + "T-0\tDas Haus .\n")
    yield of("no references", lambda t: re.sub(r"T-.*\n", "", t))
    yield of("no hypotheses", lambda t: re.sub(r"[HD]-.*\n", "", t))
    yield of("a hypothesis missing", lambda t: re.sub(r"[HD]-1.*\n", "", t))
    yield of("a reference missing", lambda t: re.sub(r"T-1.*\n", "", t))
    yield of("the first sentence missing", lambda t: re.sub(r".-0\t.*\n", "", t))
    yield of("cut in a line", lambda t: t[: t.index("H-1") + 5])
    yield of("tabs turned to blanks", lambda t: t.replace("\t", " "))
    yield of("more sentences loaded than are there", lambda t: "loaded 99 examples from: x\n" + t)
    yield of("a header of other languages", lambda t: "{'source_lang': 'pt', 'target_lang': 'ru'}\n" + t)
    yield Damage("log", "UTF-16", content(lambda of: of.decode().encode("utf-16")))


def _others() -> Iterator[Damage]:
    def of(name: str, words: str, *keys: str | int, **how: Any) -> Damage:
        return Damage(name, words, plain(at(*keys, **how)))

    yield of("export", "no seal", "sha256", without=True)
    for key in ("format", "direction", "files", "source_tag"):
        yield of("export", f"no {key}", key, without=True)
        yield of("export", f"{key} that is a number", key, to=5)
    for key in ("lenpen", "grid", "signature"):
        yield of("length penalty", f"no {key}", key, without=True)
        for words, value in {"text": "x", "a number": 77, "null": None}.items():
            yield of("length penalty", f"{key} that is {words}", key, to=value)
    yield Damage(
        "length penalty",
        "an infinite penalty",
        text(lambda t: re.sub(r'"lenpen": [-\d.]+', '"lenpen": 1e999', t)),
    )
    yield Damage(
        "length penalty",
        "a penalty of 10^9",
        text(lambda t: re.sub(r'"lenpen": [-\d.]+', '"lenpen": 1e9', t)),
    )
    for words, change in {
        "another header": lambda t: t.replace("system", "model", 1),
        "a cell less": lambda t: t.replace(",1.5", "", 1),
        "text for a figure": lambda t: t.replace("1.5", "high"),
        "NaN for a figure": lambda t: t.replace("1.5", "nan"),
        "infinity for a figure": lambda t: t.replace("1.5", "inf"),
        "a system that there is not": lambda t: re.sub(r"\n[^,]+,", "\nours,", t, count=1),
        "a figure twice": lambda t: t + t.splitlines()[1] + "\n",
        "a direction that is none": lambda t: t.replace("mean,all", "english,all"),
        "a cell more": lambda t: t.replace("1.5", "1.5,6"),
        "Latin-1": lambda t: t + "\udce4",
    }.items():
        yield Damage("published scores", words, text(change))
    for words, change in {
        "another header": lambda t: t.replace("language", "lang", 1),
        "a cell less": lambda t: t.replace("qa,2", "qa", 1),
        "a distance that is text": lambda t: t.replace(",2", ",far", 1),
        "a distance below 0": lambda t: t.replace(",2", ",-2", 1),
        "NaN": lambda t: t.replace(",2", ",nan", 1),
        "infinity": lambda t: t.replace(",2", ",inf", 1),
        "another distance the other way round": lambda t: t.replace("en,qa,2", "en,qa,4", 1),
        "a pair missing": lambda t: re.sub(r".*qa.*\n", "", t),
        "a language's distance from itself": lambda t: t.replace("en,en,0", "en,en,2"),
        "a quote that does not end": lambda t: t.replace("en,qa", '"en,qa', 1),
        "a zero byte": lambda t: t.replace("en,qa", "en\0,qa", 1),
        "a cell of 200,000 characters": lambda t: t + f"{'x' * 200_000},en,2\n",
        "Latin-1": lambda t: t + "\udce4",
    }.items():
        yield Damage("distances", words, text(change))
    for words, value in {"a number": 5, "null": None, "a list": ["A"], "empty": ""}.items():
        yield of("families", f"a family that is {words}", "qa", to=value)
    for key in ("file_sha256", "raw_sha256"):
        yield of("shipped", f"no {key}", key, without=True)
        for words, value in {"a number": 5, "null": None, "a list": [1]}.items():
            yield of("shipped", f"{key} that is {words}", key, to=value)
    for name in ("ablation", "conflict", "transfer"):
        for words, value in {"text": "x", "null": None, "a list": [1]}.items():
            yield of(name, f"a signature that is {words}", "signature", to=value)
        yield of(name, "no signature", "signature", without=True)
        yield Damage(name, "its signature alone", plain(lambda of: {"signature": of["signature"]}))
        yield Damage(name, "text for every number", text(lambda t: re.sub(r"(?<=: )-?\d+\.\d+", '"x"', t)))
    for keys in (
        ("ablation", "groups", "*", "own"), ("ablation", "groups", "*", "directions"), ("ablation", "intact", "*"),
        ("ablation", "switched_off", "*", "held_by_others"), ("conflict", "checkpoints", "*", "groups", "*", "kinds", "*", "mean"),
        ("conflict", "checkpoints", "*", "groups", "*", "parameters"), ("conflict", "checkpoints", "*", "overlap"),
        ("transfer", "parameter_norm"), ("transfer", "groups", "*", "harmed_fraction"), ("transfer", "families", "*", "p"),
        ("transfer", "signature", "parameters", "steps"),
    ):  # fmt: skip
        name, *place = keys
        yield of(name, f"{' '.join(place)} that is text", *place, to="x")
        yield of(name, f"{' '.join(place)} that is true", *place, to=True)
        yield of(name, f"no {' '.join(place)}", *place, without=True)
    for words, value in {"text": "x", "null": None, "a list": [1]}.items():
        yield of("finished page", f"a signature that is {words}", "signature", to=value)
    yield of("finished page", "no signature", "signature", without=True)
    for key in ("stage", "inputs", "parameters"):
        yield of("finished page", f"a signature without {key}", "signature", key, without=True)
        yield of("signature", f"no {key}", key, without=True)
        yield of("signature", f"{key} that is a list", key, to=[1])
    yield of("signature", "another parameter", "parameters", "colour", to="red")
    for key in ("directions", "updates", "borrowed"):
        yield of("adaptation", f"no {key}", key, without=True)
        for words, value in {"text": "x", "null": None, "a list": [1]}.items():
            yield of("adaptation", f"{key} that is {words}", key, to=value)
    name, end = "official masks", "fc1.weight"
    for words, change in {
        "a list": lambda s: [s],
        "an empty mapping": lambda s: {},
        "a mask of floats": lambda s: s.update({_first(s, end): s[_first(s, end)].float()}),
        "a mask of one axis": lambda s: s.update({_first(s, end): s[_first(s, end)][:, 0].clone()}),
        "a mask that is text": lambda s: s.update({_first(s, end): "x"}),
        "a layer missing": lambda s: s.pop(_first(s, end)),
        "single weights": lambda s: s[_first(s, end)].view(-1).__setitem__(0, ~s[_first(s, end)].view(-1)[0]),
        "a name of no layer": lambda s: s.update({"x": s.pop(_first(s, end))}),
        "a sparse mask": lambda s: s.update({_first(s, end): s[_first(s, end)].to_sparse()}),
    }.items():
        yield Damage(name, words, state(change))
    for words, change in {
        "a list": lambda of: [of],
        "a count below 0": lambda of: of[_first(of)].__setitem__(0, -1),
        "a count of 2^62": lambda of: of[_first(of)].__setitem__(0, 2**62),
        "counts of floats": lambda of: of.update({_first(of): of[_first(of)].float()}),
        "counts that are text": lambda of: of.update({_first(of): "x"}),
        "a layer missing": lambda of: of.__delitem__(_first(of)),
        "a name of no layer": lambda of: of.update(x=of.pop(_first(of))),
    }.items():
        is_of_two = words == "a layer missing"  # and the message names the other
        yield Damage("official counts", words, partial(_pickled, change), hidden=is_of_two)
    yield Damage(
        "official counts", "a pickle of a command", content(lambda of: b"cposix\nsystem\n(S'true'\ntR.")
    )


# Of models of Hugging Face, tuning and deltas -----------------------------------------------------

_INTO = f"{_COUNTED}.fc1.weight"


def _delta() -> Iterator[Damage]:
    def of(words: str, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Damage:
        return Damage("delta", words, tensors(change))

    for key in ("direction", "widths", "base", "format"):
        yield of(f"no {key}", lambda t, m, key=key: m.pop(key))
        for words, value in {"a number": 5, "null": None, "a list": [1], "text": "x"}.items():
            yield of(f"{key} that is {words}", lambda t, m, key=key, value=value: m.update({key: value}))
    yield of("a direction of another folder", lambda t, m: m.update(direction="../../x-en"))
    yield Damage(
        "delta",
        "a direction that the model has no language of",
        tensors(lambda t, m: m.update(direction="aa-bb")),
        hidden=True,
    )
    for words, value in {
        "text": "48",
        "null": None,
        "0": 0,
        "-48": -48,
        "48.5": 48.5,
        "2^70": 2**70,
        "100": 100,
    }.items():
        yield of(f"a width of {words}", lambda t, m, value=value: m["widths"].update({_COUNTED: value}))
    yield of("a width less", lambda t, m: m["widths"].pop(_COUNTED))
    yield of("a base of other weights", lambda t, m: m["base"].update(weights_sha256="0" * 64))
    yield of("a base's name that is a list", lambda t, m: m["base"].update(name=[1], weights_sha256="0" * 64))
    yield of("bits as int64", lambda t, m: t.update({f"{_COUNTED}.neurons": t[f"{_COUNTED}.neurons"].long()}))
    yield of(
        "bits as floats", lambda t, m: t.update({f"{_COUNTED}.neurons": t[f"{_COUNTED}.neurons"].float()})
    )
    yield of(
        "bits of two axes", lambda t, m: t.update({f"{_COUNTED}.neurons": t[f"{_COUNTED}.neurons"][None]})
    )
    yield of("bits of no axis", lambda t, m: t.update({f"{_COUNTED}.neurons": t[f"{_COUNTED}.neurons"][0]}))
    yield of(
        "a byte of bits less", lambda t, m: t.update({f"{_COUNTED}.neurons": t[f"{_COUNTED}.neurons"][1:]})
    )
    yield of(
        "a byte of bits more",
        lambda t, m: t.update(
            {f"{_COUNTED}.neurons": torch.cat([t[f"{_COUNTED}.neurons"], torch.zeros(1, dtype=torch.uint8)])}
        ),
    )
    yield of("no bits of a layer", lambda t, m: t.pop(f"{_COUNTED}.neurons"))
    yield of("no weights of a layer", lambda t, m: t.pop(_INTO))
    yield of("weights as int64", lambda t, m: t.update({_INTO: t[_INTO].long()}))
    yield of("weights of a neuron less", lambda t, m: t.update({_INTO: t[_INTO][1:]}))
    yield of("weights of one axis", lambda t, m: t.update({_INTO: t[_INTO][:, 0]}))
    yield of("a weight that is NaN", lambda t, m: t[_INTO].view(-1).__setitem__(0, float("nan")))
    yield of("a weight that is infinite", lambda t, m: t[_INTO].view(-1).__setitem__(0, float("inf")))
    yield of("a tensor of no layer", lambda t, m: t.update(x=torch.zeros(2)))
    yield of(
        "a layer too many",
        lambda t, m: t.update(
            {k.replace("layers.0", "layers.7"): v for k, v in t.items() if "encoder.layers.0" in k}
        ),
    )
    yield of("no tensors", lambda t, m: t.clear())
    yield Damage("delta", "metadata that is no JSON", header(at("__metadata__", "widths", to="{")))
    yield Damage("delta", "no metadata", header(at("__metadata__", without=True)))
    yield Damage("delta", "the last byte missing", content(lambda of: of[:-1]))


def _huggingface() -> Iterator[Damage]:
    def of(name: str, words: str, *keys: str | int, **how: Any) -> Damage:
        return Damage(name, words, plain(at(*keys, **how)))

    name = "hf configuration"
    for words, value in {
        "none that there is": "martian",
        "a number": 5,
        "null": None,
        "of no encoder-decoder": "gpt2",
    }.items():
        yield of(name, f"a kind of model {words}", "model_type", to=value)
    yield of(name, "no kind of model", "model_type", without=True)
    for key in (
        "d_model",
        "encoder_layers",
        "encoder_ffn_dim",
        "decoder_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ):
        for words, value in {
            "text": "many",
            "a list": [2],
            "null": None,
            "-2": -2,
            "0": 0,
            "a fraction": 2.5,
            "10^12": 10**12,
        }.items():
            yield of(name, f"{key} that is {words}", key, to=value)
    yield of(name, "an activation that there is not", "activation_function", to="sine")
    yield of(name, "an activation that is a number", "activation_function", to=5)
    yield of(name, "another width", "encoder_ffn_dim", to=64)
    yield of(name, "a layer more", "encoder_layers", to=3)
    yield of(name, "a layer less", "decoder_layers", to=1)
    yield of(name, "a padding token of text", "pad_token_id", to="x")
    yield of(name, "a quantization", "quantization_config", to={"quant_method": "gptq", "bits": 4})
    name = "hf weights"
    for words, change in {
        "a missing weight": lambda t, m: t.pop("model.encoder.layers.0.fc1.weight"),
        "a layer less": lambda t, m: [t.pop(k) for k in [*t] if "decoder.layers.1" in k],
        "a weight of another shape": lambda t, m: t.update(
            {"model.encoder.layers.0.fc1.weight": t["model.encoder.layers.0.fc1.weight"][:40]}
        ),
        "NaN": lambda t, m: t["model.encoder.layers.0.fc1.weight"].view(-1).__setitem__(0, float("nan")),
        "no weights": lambda t, m: t.clear(),
    }.items():
        yield Damage(name, words, _plain_tensors(change))
    yield Damage(name, "the last byte missing", content(lambda of: of[:-1]))
    yield Damage(name, "a pickle of a command", content(lambda of: b"cposix\nsystem\n(S'true'\ntR."))
    name = "hf tokenizer"
    for key in ("model", "pre_tokenizer"):
        yield of(name, f"a {key} that is text", key, to="x")
    yield of(name, "no model", "model", without=True)
    yield of(name, "a vocabulary that is a list", "model", "vocab", to=[1])
    yield of(name, "numbers of pieces that are text", "model", "vocab", "*", to="x")
    beyond = plain(at("model", "vocab", "▁", to=10**6))
    yield Damage(name, "numbers of pieces beyond the model's", beyond, unread=("export hf",), hidden=True)
    yield of(name, "merges of what there is not", "model", "merges", to=[["zq", "qz"]])
    name = "hf tokenizer's configuration"
    yield of(name, "a class that is a number", "tokenizer_class", to=5)
    yield of(name, "an unknown piece that is a list", "unk_token", to=[1])
    for name in ("losses", "begun tuning"):
        keys = ("signature",) if name == "losses" else ()
        yield of(name, "no stage", *keys, "stage", without=True)
        for key in ("inputs", "parameters"):
            for words, value in {
                "text": "x",
                "a list": [1],
                "null": None,
                "of others": {"colour": "red"},
            }.items():
                yield of(name, f"{key} that are {words}", *keys, key, to=value)
    for words, value in {"text": "x", "null": None, "a list": [1]}.items():
        yield of("losses before", f"a loss that is {words}", "*", to=value)
    yield of("losses before", "a direction less", "*", without=True)
    for words, value in {"text": "x", "null": None, "-1": -1, "a list": [1], "none left": 5}.items():
        yield of("state of a tuning", f"a number of updates that is {words}", "global_step", to=value)
    yield of("what a tuning is of", "another text", "text_sha256", to="0" * 64)
    yield of("what a tuning is of", "no seed", "seed", without=True)
    name = "parallel text"
    for words, change in {
        "a line less": lambda t: t[: t.rstrip("\n").rindex("\n") + 1],
        "a line more": lambda t: t + "x\n",
    }.items():
        yield Damage(name, words, text(change))
    yield Damage(name, "Latin-1", content(lambda of: of + "ä".encode("latin-1")))
    yield Damage(name, "UTF-16", content(lambda of: of.decode().encode("utf-16")))


def _plain_tensors(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Change:
    """As `tensors`, of a file whose metadata are no JSON."""

    def apply(path: Path) -> None:
        of = safetensors.torch.load_file(path)
        change(of, {})
        safetensors.torch.save_file({key: value.clone() for key, value in of.items()}, path, {"format": "pt"})

    return apply


def _text() -> Iterator[Damage]:
    for words, change in {
        "a line less": lambda t: t[: t.rstrip("\n").rindex("\n") + 1],
        "a line more": lambda t: t + "x\n",
        "blank lines alone": lambda t: "\n" * t.count("\n"),
    }.items():
        yield Damage("text", words, text(change))
    yield Damage("text", "Latin-1", content(lambda of: of + "ä".encode("latin-1")))
    yield Damage("text", "UTF-16", content(lambda of: of.decode().encode("utf-16")))


def _weight_masks() -> Iterator[Damage]:
    def of(words: str, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Damage:
        return Damage("weight masks", words, tensors(change))

    yield of("no shapes", lambda t, m: m.pop("shapes"))
    for words, value in {
        "text": "wide",
        "a list": [48],
        "null": None,
        "of text": {_INTO: "x"},
        "of one number": {_INTO: [48]},
        "negative": {_INTO: [-48, 16]},
        "of 2^70": {_INTO: [2**70, 16]},
    }.items():
        yield of(
            f"shapes {words}",
            lambda t, m, value=value: m.update(
                shapes={**m["shapes"], **value} if isinstance(value, dict) else value
            ),
        )
    yield of("bits as int64", lambda t, m: t.update({_INTO: t[_INTO].long()}))
    yield of("a matrix less", lambda t, m: t.pop(_INTO))
    yield of("a direction more", lambda t, m: m["directions"].append("en-qb"))
    yield of("seconds that are text", lambda t, m: m.update(fine_tuning_seconds={"en-qa": "long"}))
    yield of("seconds that are a list", lambda t, m: m.update(fine_tuning_seconds=[1]))
    yield of("no signature", lambda t, m: m.pop("signature"))
    yield of("another format", lambda t, m: m.update(format="weight masks 9"))
    yield of("masks of neurons", lambda t, m: m.update(format=1))


def _pickled(change: Callable[[Any], Any], path: Path) -> None:
    import pickle

    value = pickle.loads(path.read_bytes())
    new = change(value)
    path.write_bytes(pickle.dumps(value if new is None else new))


def every_damage() -> list[Damage]:
    from valid import HAS_HUGGINGFACE

    of = (
        _of_any, _of_json, _profile, _masks, _checkpoint, _index, _data, _dictionary, _evaluations, _comparison, _card,
        _config, _log, _others, _text, _weight_masks, *((_delta, _huggingface) if HAS_HUGGINGFACE else ()),
    )  # fmt: skip
    return [damage for part in of for damage in part()]


def restore(path: Path, kept: Path) -> None:
    """The valid file in its place again."""
    if path.is_dir():
        shutil.rmtree(path)
    shutil.copy2(kept, path)
