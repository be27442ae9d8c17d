"""Hypothesis strategies for what is read: valid files of every format, and files damaged in their bytes or structure."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

CODES = ("en", "de", "nl", "pt_BR", "zho_Hans", "tlh")
directions = st.lists(
    st.tuples(st.sampled_from(CODES), st.sampled_from(CODES)).filter(lambda pair: pair[0] != pair[1]),
    min_size=1, max_size=4, unique=True,
).map(lambda pairs: ["-".join(pair) for pair in pairs])  # fmt: skip
_NUMBERS = st.one_of(
    st.integers(-3, 100), st.floats(), st.sampled_from([-1, 0, 2**31, 2**62, 2**64, 10**400, 0.5, 1e308])
)
# Whatever JSON may hold, and a little that it may not.
anything = st.recursive(
    st.none()
    | st.booleans()
    | _NUMBERS
    | st.text(max_size=8)
    | st.sampled_from(["en-de", "../x-en", "", "95"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Some bytes changed, put in, taken out, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.sampled_from(["change", "insert", "delete", "cut", "repeat"]))
        if how == "change" and changed:
            changed[place] = draw(st.integers(0, 255))
        elif how == "insert":
            changed[place:place] = draw(st.binary(min_size=1, max_size=6))
        elif how == "delete":
            del changed[place : place + draw(st.integers(1, 8))]
        elif how == "cut":
            del changed[place:]
        else:
            changed[place:place] = changed[place : place + draw(st.integers(1, 40))]
    return bytes(changed)


@st.composite
def damaged_value(draw: Any, value: Any) -> Any:
    """Plain values, one of them anywhere inside replaced, taken away or renamed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key, new = draw(st.sampled_from([*value])), dict(value)
        how = draw(st.integers(0, 5))
        if how == 0:
            del new[key]
        elif how == 1:
            new[draw(st.text(max_size=5))] = new.pop(key)
        else:
            new[key] = draw(damaged_value(value[key]))
        return new
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        place, new = draw(st.integers(0, len(value) - 1)), list(value)
        new[place] = draw(damaged_value(value[place]))
        return new
    return draw(anything)


def written(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    header = {key: json.dumps(value) for key, value in metadata.items()}
    return safetensors.torch.save({key: value.clone() for key, value in tensors.items()}, header)


@st.composite
def damaged_tensors(draw: Any, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> bytes:
    """The metadata, or one of the tensors, damaged."""
    if draw(st.booleans()):
        changed = draw(damaged_value(metadata))
        return written(tensors, changed if isinstance(changed, dict) else {"directions": changed})
    key, new = draw(st.sampled_from([*tensors])), dict(tensors)
    how = draw(st.sampled_from(["dtype", "value", "shape", "name", "gone"]))
    if how == "dtype":
        new[key] = new[key].to(
            draw(st.sampled_from([torch.float32, torch.int32, torch.int64, torch.uint8, torch.bool]))
        )
    elif how == "value" and new[key].numel():
        flat = new[key].flatten().clone()
        flat[draw(st.integers(0, len(flat) - 1))] = draw(st.sampled_from([-1, 1, 7, 100, 127]))
        new[key] = flat.view(new[key].shape)
    elif how == "shape":
        new[key] = draw(
            st.sampled_from([new[key][:0], new[key][..., :0], new[key][None], new[key].flatten()])
        )
    else:
        moved = new.pop(key)
        if how == "name":
            new[
                draw(
                    st.sampled_from(["x", "encoder.layers.9", "tokens.encoder", "decoder.layers.0.self_attn"])
                )
            ] = moved
    return written(new, metadata)


@dataclass(frozen=True)
class Kind:
    """A format: valid contents, what damages them, and how a file of it is read.

    Attributes:
        valid: gives what `damaged` takes, and `as_bytes` writes.
        read: of a path; what it returns tells two contents apart.
    """

    name: str
    valid: Callable[[], st.SearchStrategy[Any]]
    as_bytes: Callable[[Any], bytes]
    damaged: Callable[[Any], st.SearchStrategy[bytes]]
    read: Callable[[Path], Any]
    file: str = "file"


# Of tensors ------------------------------------------------------------------------------------


@st.composite
def profiles(draw: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    names = draw(directions)
    tokens = {
        f"tokens.{side}": torch.tensor([draw(st.integers(0, 50)) for _ in names])
        for side in ("encoder", "decoder")
    }
    tensors = dict(tokens)
    for side in ("encoder", "decoder"):
        for layer in range(draw(st.integers(1, 2))):
            width = draw(st.integers(1, 5))
            rows = [
                [draw(st.integers(0, int(most))) for _ in range(width)] for most in tokens[f"tokens.{side}"]
            ]
            tensors[f"{side}.layers.{layer}"] = torch.tensor(rows)
    metadata = {
        "directions": names,
        "checkpoint_sha256": "a" * 64,
        "langs": [*CODES],
        "signature": {"stage": "profile"},
    }
    return tensors, metadata


@st.composite
def masks(draw: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from neuron_spec.neurons.by_direction import pack

    names = draw(directions)
    widths = {f"{side}.layers.0": draw(st.integers(1, 12)) for side in ("encoder", "decoder")}
    rows = {
        site: torch.tensor([[draw(st.booleans()) for _ in range(width)] for _ in names])
        for site, width in widths.items()
    }
    ks = {side: dict.fromkeys(names, 95.0) for side in ("encoder", "decoder")}
    metadata = {"directions": names, "widths": widths, "format": 1, "k_percent": ks, "method": "cumulative"}
    return {site: pack(kept) for site, kept in rows.items()}, metadata


@st.composite
def weight_masks(draw: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    names, rows, width = draw(directions), draw(st.integers(1, 3)), draw(st.integers(1, 4)) * 8
    key = "encoder.layers.0.fc1.weight"
    bits = torch.tensor(
        [[[draw(st.integers(0, 255)) for _ in range(width // 8)] for _ in range(rows)] for _ in names]
    )
    metadata = {"directions": names, "shapes": {key: [rows, width]}, "format": "weight masks 1"}
    return {key: bits.to(torch.uint8)}, metadata


def _of_profile(path: Path) -> Any:
    from neuron_spec.neurons.activations import ActivationCounts

    profile = ActivationCounts.load(path)
    return {**profile.counts, **{f"tokens.{side}": of for side, of in profile.tokens.items()}}, profile.names


def _of_masks(path: Path) -> Any:
    from neuron_spec.neurons.by_direction import pack
    from neuron_spec.neurons.masks import NeuronMasks

    read = NeuronMasks.load(path)
    return {site: pack(kept) for site, kept in read.kept.items()}, read.names


def _of_weight_masks(path: Path) -> Any:
    from neuron_spec.studies.lass.weight_masks import WeightMasks

    read = WeightMasks.load(path)
    return read.packed, read.names


def _damaged_tensors(value: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged_tensors(*value), damaged_bytes(written(*value)))


# Of checkpoints --------------------------------------------------------------------------------


@st.composite
def checkpoints(draw: Any) -> dict[str, Any]:
    names = draw(directions)
    langs = sorted({code for name in names for code in name.split("-")})
    weights = {
        f"{side}.layers.0.{name}": torch.zeros(shape)
        for side in ("encoder", "decoder")
        for name, shape in (("fc1.weight", (3, 2)), ("fc1.bias", (3,)), ("fc2.weight", (2, 3)))
    }
    task = {"_name": "neuron_specialization", "lang_pairs": names, "langs": langs, "encoder_langtok": "src"}
    cfg = {"task": task, "model": {"arch": "transformer"}}
    return {
        "model": weights,
        "cfg": cfg,
        "args": None,
        "extra_state": {},
        "optimizer_history": [{"num_updates": 1}],
    }


def _saved(state: Any) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@st.composite
def _damaged_state(draw: Any, state: dict[str, Any]) -> bytes:
    how = draw(st.integers(0, 2))
    if how == 0:
        return draw(damaged_bytes(_saved(state)))
    if how == 1:
        changed = {**state, "cfg": draw(damaged_value(state["cfg"]))}
    else:
        rest = draw(damaged_value({key: value for key, value in state.items() if key != "model"}))
        changed = {"model": state["model"], **rest} if isinstance(rest, dict) else rest
    return _saved(changed)


def _of_checkpoint(path: Path) -> Any:
    from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, task_args

    state = read_checkpoint(path)
    args = task_args(state, path)
    return state["model"], args.lang_pairs


# Of JSON and text ------------------------------------------------------------------------------


def _as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _damaged_json(value: Any) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged_value(value).map(_as_json), damaged_bytes(_as_json(value)))


@st.composite
def evaluations(draw: Any) -> dict[str, Any]:
    points, count = st.floats(0, 100), st.integers(1, 99)
    figures = {
        name: {
            "bleu": draw(points), "chrf": draw(points), "sentences": 2, "hypothesis_tokens": draw(count),
            "reference_tokens": draw(count), "empty_fraction": draw(st.floats(0, 1)), "off_target_fraction": None,
            "language_id_accuracy_fraction": None, "bleu_signature": "b", "chrf_signature": "c", "nll": draw(points),
        }
        for name in draw(directions)
    }  # fmt: skip
    made = {"stage": "evaluate", "inputs": {}, "parameters": {}}
    return {"directions": figures, "signature": made, "families": {"de": "Germanic"}, "tiers": {}}


def _of_evaluation(path: Path) -> Any:
    from neuron_spec.scoring.evaluation import read_evaluation

    for name in () if (path.parent / "hypotheses").is_dir() else _all_names():
        for kind in ("hypotheses", "references"):
            file = path.parent / kind / f"{name}.txt"
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                file.write_text("a\nb\n")
    read = read_evaluation(path.parent)
    return {str(score.direction): score.bleu for score in read.scores}


def _all_names() -> list[str]:
    return [f"{a}-{b}" for a in CODES for b in CODES if a != b]


@st.composite
def cards(draw: Any) -> dict[str, Any]:
    names = draw(directions)
    langs = sorted({code for name in names for code in name.split("-")})
    pairs = {split: dict.fromkeys(names, draw(st.integers(0, 99))) for split in ("train", "valid")}
    sources = [{"name": "text", "licence": "MIT"}]
    return {
        "name": "toy", "langs": langs, "lang_pairs": names, "pairs": pairs, "families": dict.fromkeys(langs, "A"),
        "tiers": {}, "sources": sources, "leak_report": {}, "raw_sha256": {}, "signature": {}, "pivot": "en",
    }  # fmt: skip


def _of_card(path: Path) -> Any:
    from neuron_spec.corpora.build import read_card

    return read_card(path, "lang_pairs", "pairs")


def _of_comparison(path: Path) -> Any:
    from neuron_spec.scoring.comparison_files import as_plain, read_comparison

    return as_plain(read_comparison(path))


@st.composite
def comparisons(draw: Any) -> dict[str, Any]:
    seeds = {"mean": draw(st.floats(-5, 5)), "std": None}
    row = {
        "system": "s", "metric": "bleu", "group": "O2M", "baseline": seeds, "score": seeds, "difference": seeds,
    }  # fmt: skip
    seed = {
        "baseline": 1.0, "score": 2.0, "difference": 1.0, "low": 0.5, "high": 2.0, "sacrebleu_p_value": None,
        "p_value": 0.5, "holm_p_value": 0.5, "result": "tie", "holm_result": "tie",
    }  # fmt: skip
    of_direction = {"tier": None, "family": None, "low": 0.5, "high": 2.0, "seeds": [seed]}
    of_group = {
        "kind": "overall", "name": "all", "directions": 1, "over_sentences": None, "over_seeds": None,
        "sign_flip_p_value": 0.5, "results": {"tie": 1}, "holm_results": {"tie": 1},
    }  # fmt: skip
    rows = [{**row, **of_direction, "direction": name} for name in draw(directions)]
    return {
        "signature": {}, "sacrebleu": {"bleu": ["x"]}, "baseline": "d", "alpha": 0.05, "directions": rows,
        "groups": [{**row, **of_group}],
    }  # fmt: skip


@st.composite
def configs(draw: Any) -> bytes:
    values = {
        "lr": draw(st.floats(0.001, 1)),
        "max-update": draw(st.integers(1, 99)),
        "optimizer": "adam",
        "fp16": True,
    }
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()).encode()


_YAML = [
    "!!int x",
    "!!python/name:os.system",
    "&a",
    "*a",
    ": ",
    "- ",
    "{",
    "[",
    "2024-13-99",
    "1:2:3:4",
    "\t",
    "!!binary x",
    "<<: ",
    "? ",
]


@st.composite
def _damaged_config(draw: Any, content: bytes) -> bytes:
    lines = draw(damaged_bytes(content)) if draw(st.booleans()) else content
    place = draw(st.integers(0, len(lines)))
    return lines[:place] + draw(st.sampled_from(_YAML)).encode() + lines[place:]


def _of_config(path: Path) -> Any:
    from neuron_spec.backends.fairseq.config import keep_config

    # All but what fairseq's parser, which takes a second, says of its flags.
    keep_config(path, path.parent / "kept")
    return (path.parent / "kept" / "config.yaml").read_bytes()


@st.composite
def logs(draw: Any) -> bytes:
    words, lines = st.text("abc de", min_size=1, max_size=8), []
    for number in range(draw(st.integers(1, 4))):
        source, reference, hypothesis = draw(words), draw(words), draw(words)
        lines += [f"S-{number}\t{source}", f"T-{number}\t{reference}", f"H-{number}\t-0.5\t{hypothesis}"]
    return "".join(f"{line}\n" for line in lines).encode()


def _of_log(path: Path) -> Any:
    from neuron_spec.directions import Direction
    from neuron_spec.scoring.logs import read_generate_output

    return read_generate_output(path, direction=Direction("en", "de"))


# Of data-bins ----------------------------------------------------------------------------------


@st.composite
def indices(draw: Any) -> bytes:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    starts = [2 * sum(sizes[:number]) for number in range(len(sizes))]
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 8, len(sizes))
    return head + struct.pack(f"<{len(sizes)}i", *sizes) + struct.pack(f"<{len(sizes)}q", *starts)


def _of_index(path: Path) -> Any:
    from neuron_spec.backends.fairseq.data_bin import check_complete

    content, data = path.read_bytes(), path.with_suffix(".bin")
    if len(content) >= 26:  # as long as a valid one says, so that its own faults are found
        count = min(struct.unpack("<Q", content[18:26])[0], 99)
        sizes = content[26 : 26 + 4 * count]
        total = sum(struct.unpack(f"<{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4]))
        data.write_bytes(b"\x05\x00" * max(0, min(total, 10_000)))
    return check_complete(path, symbols=9)


@st.composite
def dictionaries(draw: Any) -> bytes:
    pieces = draw(st.lists(st.text("abc▁ä", min_size=1, max_size=4), min_size=1, max_size=9, unique=True))
    return "".join(f"{piece} {number}\n" for number, piece in enumerate(pieces)).encode()


def _of_dictionary(path: Path) -> Any:
    from neuron_spec.backends.fairseq.data_bin import read_dictionary

    return read_dictionary(path).symbols


def _signed(path: Path) -> Any:
    from neuron_spec.artifacts import is_made_from, signature_in

    made = signature_in(path, "thing")
    is_made_from(made, {"stage": "s", "inputs": {}, "parameters": {}})
    return made


@st.composite
def signatures(draw: Any) -> dict[str, Any]:
    return {
        "stage": "s",
        "inputs": {"data": "a" * 8},
        "parameters": {"directions": draw(directions), "k": [95]},
    }


def _same(content: Any) -> Any:
    return content


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value)


KINDS = [
    Kind("profile", profiles, lambda value: written(*value), _damaged_tensors, _of_profile, "p.safetensors"),
    Kind("masks", masks, lambda value: written(*value), _damaged_tensors, _of_masks, "m.safetensors"),
    Kind(
        "weight masks",
        weight_masks,
        lambda value: written(*value),
        _damaged_tensors,
        _of_weight_masks,
        "w.safetensors",
    ),
    Kind("checkpoint", checkpoints, _saved, _damaged_state, _of_checkpoint, "c.pt"),
    Kind("evaluation", evaluations, _as_json, _damaged_json, _of_evaluation, "scores.json"),
    Kind("comparison", comparisons, _as_json, _damaged_json, _of_comparison, "comparison.json"),
    Kind("corpus card", cards, _as_json, _damaged_json, _of_card, "corpus.json"),
    Kind("signature", signatures, _as_json, _damaged_json, _signed, "signature.json"),
    Kind("configuration", configs, _same, _damaged_config, _of_config, "config.yaml"),
    Kind("log", logs, _same, damaged_bytes, _of_log, "generate-test.txt"),
    Kind("index", indices, _same, damaged_bytes, _of_index, "valid.en-de.en.idx"),
    Kind("dictionary", dictionaries, _same, damaged_bytes, _of_dictionary, "dict.en.txt"),
]
