"""New languages for a trained model: rows of its embeddings for their tokens, and where its masks are looked up.

fairseq appends a token per language to the dictionary, in the order of ``--langs``. A language that is in the model's list
has its row, even if it was never trained; any other needs a list that is longer, which goes on where the model's ends.
The pieces of text stay.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq.data.multilingual.multilingual_utils import augment_dictionary, get_lang_tok
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor

from neuron_spec import models as models  # registers
from neuron_spec.artifacts import atomic_path, completed_beside, hash_state, hash_text, signature, write_json
from neuron_spec.backends.fairseq.checkpoints import (
    as_start,
    carried_masks,
    data_bin_of,
    flags_of,
    is_specialized,
    masked_directions,
    masks_of,
    read_checkpoint,
    task_args,
    weights_sha256,
)
from neuron_spec.backends.fairseq.data_bin import read_dictionary, shards_of
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.languages import require_fairseq_codes
from neuron_spec.models.neuron_spec_transformer import PLAIN, NeuronSpecTransformer
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks

# Side -> the tensors that have a row per entry of its dictionary; the output's may be the embedding itself.
_ROWS_OF = {
    "encoder": ("encoder.embed_tokens.weight",),
    "decoder": (
        "decoder.embed_tokens.weight",
        "decoder.output_projection.weight",
        "decoder.output_projection.bias",
    ),
}


def add_languages(path: Path, langs: Sequence[str], output: Path, data_bin: Path | None = None) -> None:
    """Write a checkpoint that knows further languages, to start a training from, and a signature beside it.

    All that was there stays as it is, bit for bit. The row of a new token is the mean of the other languages' tokens: no
    language's own, and unlikely where theirs are. Where the output is over these rows too, its softmax has one more
    entry, so that log-probabilities of old languages change by what the new token takes.

    Args:
        data_bin: for the dictionary (default: the one that the checkpoint was trained on).

    Raises:
        ArtifactError: if the checkpoint, a dictionary or the data-bin is missing, or another file is at ``output``.
        ModelError: if the model knows a language already or has its token as a piece, is of another kind, or its dictionary is
            another.
        DirectionError: if one is no language code, or fairseq would part it.
    """
    require_fairseq_codes(langs)
    for lang in langs:
        Direction(lang, lang)  # refuses what is no code
    state = read_checkpoint(path)
    trained = task_args(state, path)
    if known := [lang for lang in langs if lang in trained.langs]:
        raise ModelError(
            "languages that the model knows already: their tokens are there, trained or not",
            where=path,
            got=", ".join(known),
            mend="leave them out; their directions can be profiled and added as they are",
        )
    if len({*langs}) < len(langs):
        raise ModelError("a language is named twice", got=", ".join(langs), expected="each once")
    _require_plain(state, path)
    more = [*trained.langs, *langs]
    symbols = {side: _symbols(trained, path, data_bin, side) for side in _ROWS_OF}
    _require_same_pieces(trained, path, data_bin, langs)
    pieces = {symbol for of in symbols.values() for symbol in of(trained.langs)}
    if taken := {_token(trained, lang, kind) for lang in langs for kind in _kinds(trained)} & pieces:
        raise ModelError(
            "tokens of new languages that are pieces of text already: a language would share its row with one",
            where=path,
            got=", ".join(sorted(taken)),
            mend="name the language by another code",
        )
    signed = signature(
        "add-language",
        inputs={"checkpoint": weights_sha256(state), "masks": hash_state(masks_of(state))},
        parameters={"langs": more},
    )
    if completed_beside(output, signed, what="checkpoint"):
        return
    tokens = {_token(trained, lang, kind) for lang in trained.langs for kind in _kinds(trained)}
    weights = _with_rows(
        state["model"],
        {side: (of(trained.langs), of(more)) for side, of in symbols.items()},
        tokens,
        path,
    )
    if (masked := masked_directions(state, trained.langs)) is not None:
        before = state["model"]["encoder.mask_rows"]
        rows = torch.full((len(more) ** 2,), -1)
        rows[[direction_id(direction, more) for direction in masked]] = before[before >= 0]
        weights |= {f"{side}.mask_rows": rows for side in _ROWS_OF}
    start = as_start(state, _named(state.get("cfg"), more), weights)
    if not state.get("cfg"):
        start |= {"args": _named(state["args"], more), "cfg": None}
    write_json(output.with_suffix(".json"), {"signature": signed, "added": list(langs)})
    with atomic_path(output) as temporary:
        torch.save(start, temporary)


def require_descent(
    masks: NeuronMasks, profile: ActivationCounts, path: Path, data_bin: Path | None = None
) -> None:
    """That a profile is of a checkpoint that comes from the one that masks are of.

    It does if it is the same; if it is specialized and carries just these masks; and if it is the same but for rows of
    languages that were added. The last two may have more languages than the masks' model had.

    Args:
        path: the checkpoint that was profiled.

    Raises:
        ArtifactError: as `add_languages`.
        ModelError: if it does not.
    """
    state = read_checkpoint(path)
    trained = task_args(state, path)
    weights = weights_sha256(state)
    if weights != (profiled := profile.metadata.get("checkpoint_sha256")):
        raise ModelError(
            "the profile is of another checkpoint than --path",
            where=path,
            got=f"weights {weights[:12]}",
            expected=f"weights {str(profiled)[:12]}, as in the profile",
            mend="name the checkpoint that was profiled",
        )
    before = list(masks.metadata.get("langs") or trained.langs)
    if [lang for lang in trained.langs if lang in before] != before:
        raise ModelError(
            "the profile is of a model of other languages than the masks'",
            where=path,
            got=f"languages {','.join(trained.langs)}",
            expected=f"{','.join(before)}, and perhaps others after them",
        )
    symbols = _symbols(trained, path, data_bin, "encoder")
    for what, of, langs in (("masks", masks, before), ("profile", profile, trained.langs)):
        recorded = of.metadata.get("dictionary_sha256")
        if recorded is not None and recorded != (here := hash_text(*symbols(langs))):
            raise ModelError(
                f"the {what} are for another dictionary",
                where=path,
                got=f"sha256 {here[:12]}",
                expected=f"sha256 {recorded[:12]}, as of the {what}",
                mend="name the data-bin of that vocabulary: --data-bin DIR",
            )
    if is_specialized(state):
        carried = carried_masks(state, trained.langs)
        assert carried is not None
        differing = masks.differing(carried) or carried.differing(masks)
        if differing:
            raise ModelError(
                "the profiled checkpoint was specialized with other masks",
                where=path,
                got=f"other masks of {', '.join(differing)}, or none",
                expected="the very masks that directions are added to",
                mend="add to the masks that it carries, or profile the dense checkpoint that these are of",
            )
        return
    made_for = masks.metadata.get("checkpoint_sha256")
    if list(trained.langs) != before:
        of_sides = {side: _symbols(trained, path, data_bin, side) for side in _ROWS_OF}
        pairs = {side: (of(trained.langs), of(before)) for side, of in of_sides.items()}
        weights = weights_sha256({"model": _with_rows(state["model"], pairs, set(), path)})
    if made_for is not None and weights != made_for:
        raise ModelError(
            "the profile is of another model than the masks",
            where=path,
            got=f"a dense checkpoint with weights {weights[:12]}",
            expected=f"weights {made_for[:12]}, or a checkpoint specialized with these masks",
            mend="profile the checkpoint that the masks are of, or one that was specialized with them",
        )


def _require_plain(state: Mapping[str, Any], path: Path) -> None:
    arch = flags_of(state, "model").get("arch")
    model = ARCH_MODEL_REGISTRY.get(arch)
    others = [key for key in state["model"] if key.startswith(("dynamics.", "decoder.adaptive_softmax"))]
    if model not in (*PLAIN, NeuronSpecTransformer) or others:
        raise ModelError(
            "no languages can be added to a checkpoint of this kind",
            where=path,
            got=f"--arch {arch}" + (f" with {others[0]}" if others else ""),
            expected="a transformer of fairseq or neuron_spec_transformer, without adapters, masks that move, or an "
            "adaptive softmax",
        )


def _symbols(trained: argparse.Namespace, path: Path, data_bin: Path | None, side: str) -> Any:
    """What gives a side's dictionary, with the tokens of given languages."""
    file = _dictionary_file(trained, path, data_bin, side)

    def of(langs: Sequence[str]) -> list[str]:
        dictionary = read_dictionary(file)
        style = trained.lang_tok_style or "multilingual"
        extra = getattr(trained, "extra_data", None)
        augment_dictionary(dictionary, list(langs), style, _kinds(trained), extra)
        return list(dictionary.symbols)

    return of


def _dictionary_file(trained: argparse.Namespace, path: Path, data_bin: Path | None, side: str) -> Path:
    own = trained.source_dict if side == "encoder" else trained.target_dict
    if named := trained.fixed_dictionary or own:
        return Path(named)
    pair = Direction.parse(trained.lang_pairs[0])
    first = pair.source if side == "encoder" else pair.target
    folder = data_bin_of(trained, path, data_bin)
    folder = (shards_of(folder) or [folder])[0]
    # Of another corpus the data-bin may lack that language; fairseq's task has one dictionary a side for all.
    files = [folder / f"dict.{lang}.txt" for lang in (first, *trained.langs)]
    if (found := next((file for file in files if file.is_file()), None)) is None:
        raise ArtifactError(
            "the data-bin has no dictionary of the model's languages", where=folder, expected=files[0].name
        )
    return found


def _require_same_pieces(
    trained: argparse.Namespace, path: Path, data_bin: Path | None, langs: Sequence[str]
) -> None:
    """That the data-bin's dictionaries of new languages, if it has any, are the model's."""
    folder = data_bin_of(trained, path, data_bin)
    ours = _dictionary_file(trained, path, data_bin, "encoder").read_bytes()
    for lang in langs:
        file = (shards_of(folder) or [folder])[0] / f"dict.{lang}.txt"
        if file.is_file() and file.read_bytes() != ours:
            raise ModelError(
                "text of a new language has to be in the model's own pieces",
                where=file,
                got="another dictionary",
                expected="the same as the other languages'",
                mend="binarize it with the model's SentencePiece model: neuron-spec data ... --sentencepiece FILE",
            )


def _kinds(trained: argparse.Namespace) -> tuple[str, ...]:
    return LanguageTokens.of(trained).kinds


def _token(trained: argparse.Namespace, lang: str, kind: str) -> str:
    return str(get_lang_tok(lang=lang, lang_tok_style=trained.lang_tok_style or "multilingual", spec=kind))


def _with_rows(
    model: Mapping[str, Tensor],
    symbols: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    tokens: set[str],
    path: Path,
) -> dict[str, Tensor]:
    """A model's tensors with the rows of other symbols: those that stay, and for new ones the mean of ``tokens``.

    Args:
        symbols: side -> those that the model has, and those that it is to have.

    Raises:
        ModelError: if the model has not as many rows as symbols.
    """
    weights = dict(model)
    tied: dict[tuple[int, tuple[int, ...]], Tensor] = {}  # shared embeddings are stored once
    for side, names in _ROWS_OF.items():
        before, after = symbols[side]
        place = {symbol: row for row, symbol in enumerate(before)}
        for name in names:
            if (old := model.get(name)) is None:
                continue
            if len(old) != len(before):
                raise ModelError(
                    "the dictionary is not the model's",
                    where=path,
                    got=f"{len(before)} entries with the language tokens",
                    expected=f"{len(old)}, as {name} has",
                    mend="name the data-bin of the model's vocabulary: --data-bin DIR",
                )
            key = old.data_ptr(), tuple(old.shape)
            if key not in tied:
                mean = old[sorted(place[token] for token in tokens)].float().mean(dim=0).to(old.dtype)
                rows = [old[place[symbol]] if symbol in place else mean for symbol in after]
                tied[key] = torch.stack(rows)
            weights[name] = tied[key]
    return weights


def _named(flags: Any, langs: Sequence[str]) -> Any:
    """A configuration whose languages are these."""
    if isinstance(flags, argparse.Namespace):
        return argparse.Namespace(**_named(vars(flags), langs))
    if isinstance(flags, Mapping):
        named = {key: _named(value, langs) for key, value in flags.items()}
        return named | ({"langs": list(langs), "lang_dict": None} if "langs" in named else {})
    return copy.deepcopy(flags)
