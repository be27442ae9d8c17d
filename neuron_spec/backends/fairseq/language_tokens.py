"""Languages and language tokens as fairseq resolves them from flags, whatever the spelling.

A model knows a language by its place in the list and by its token's row of the embeddings: trained with one list or
kind of token and run with another, it reads other rows and says nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from neuron_spec.artifacts import read_text
from neuron_spec.errors import ArtifactError, ModelError

_MAIN = "main"  # fairseq's name for ordinary parallel text


@dataclass(frozen=True)
class LanguageTokens:
    """What fixes direction ids and language tokens.

    Attributes:
        langs: in the order that fixes ids and rows.
        source, target: which token the encoder's and the decoder's text begins with: ``src``, ``tgt``, None, or as
            ``--langtoks`` says of ordinary text.
        style: how a token is written.
        kinds: the kinds of text that have tokens of their own, in the order of their rows (``--langtoks-specs``).
        replacing: tokens stand in the place of bos and eos.
    """

    langs: tuple[str, ...]
    source: str | None
    target: str | None
    style: str
    kinds: tuple[str, ...]
    replacing: bool

    @classmethod
    def of(
        cls, args: argparse.Namespace | Mapping[str, Any], near: str | os.PathLike[str] | None = None
    ) -> Self:
        """Of a task's flags, a command line's or a checkpoint's.

        Args:
            near: the checkpoint that the flags are from, as `languages_of` takes it.

        Raises:
            ArtifactError: if the file of ``--lang-dict`` is missing.
            ModelError: if the flags contradict each other, or name no language.
        """
        values = dict(args) if isinstance(args, Mapping) else vars(args)
        source = values.get("encoder_langtok") or None
        target = "tgt" if values.get("decoder_langtok") else None
        # fairseq writes what it resolved into langtoks, which from then on wins over the two flags.
        if not isinstance(langtoks := values.get("langtoks") or {}, Mapping):
            raise ModelError("--langtoks is no dictionary", where=near, got=repr(langtoks))
        if main := langtoks.get(_MAIN):
            if (source and source != main[0]) or (target and target != main[1]):
                raise ModelError(
                    "flags contradict each other on language tokens",
                    got=f"--encoder-langtok {source}, --decoder-langtok {'on' if target else 'off'}, and "
                    f"tokens {tuple(main)} for the encoder and the decoder, by --langtoks or the checkpoint",
                    mend="give the flags of training, or only one of the two ways",
                )
            source, target = main
        kinds = values.get("langtoks_specs") or (_MAIN,)
        return cls(
            langs=tuple(languages_of(values, near)),
            source=source,
            target=target,
            style=values.get("lang_tok_style") or "multilingual",
            kinds=tuple(kinds.split(",") if isinstance(kinds, str) else kinds),
            replacing=bool(values.get("lang_tok_replacing_bos_eos")),
        )

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """Flag of fairseq -> its value, that give the same; those that are off are left out."""
        flags: dict[str, tuple[str, ...]] = {"--langs": (",".join(self.langs),)}
        if self.source in (None, "src", "tgt") and self.target in (None, "tgt"):
            flags |= {"--encoder-langtok": (self.source,)} if self.source else {}
            flags |= {"--decoder-langtok": ()} if self.target else {}
        else:
            flags["--langtoks"] = (repr({_MAIN: (self.source, self.target)}),)
        flags["--lang-tok-style"] = (self.style,)
        if self.kinds != (_MAIN,):
            flags["--langtoks-specs"] = (",".join(self.kinds),)
        return flags | ({"--lang-tok-replacing-bos-eos": ()} if self.replacing else {})

    def differences(self, other: LanguageTokens) -> dict[str, tuple[str, str]]:
        """Flag -> (as it is here, as it is there), where they would give other ids or tokens."""
        ours, theirs = self.flags, other.flags
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return {name: (_said(name, ours), _said(name, theirs)) for name in names}

    def require(self, trained: LanguageTokens, where: object = None) -> None:
        """Raises: ModelError if a model ``trained`` so would be run by these with other ids or tokens."""
        if differ := trained.differences(self):
            raise ModelError(
                "language flags differ from those the model was trained with",
                where=where,
                got="; ".join(now for _, now in differ.values()),
                expected="; ".join(before for before, _ in differ.values()),
                mend="give the flags of training: direction ids and language tokens follow from them",
            )


def _said(name: str, flags: Mapping[str, tuple[str, ...]]) -> str:
    return " ".join((name, *flags[name])) if name in flags else f"no {name}"


def languages_of(values: Mapping[str, Any], near: str | os.PathLike[str] | None = None) -> list[str]:
    """The languages in the order of their ids: those of ``--langs``, of ``--lang-dict``'s file, or of the pairs, sorted.

    Args:
        near: a checkpoint, which keeps only the path of ``--lang-dict``: a file of that name beside it will do.

    Raises:
        ArtifactError: if the file is missing.
        ModelError: if both flags are given, or no language is named.
    """
    langs, file = values.get("langs"), values.get("lang_dict")
    if langs and file:
        raise ModelError(
            "languages are named twice",
            got=f"--langs {','.join(_parts(langs))} and --lang-dict {file}",
            mend="give one of the two; where the second is a checkpoint's own, --lang-dict '' drops it",
        )
    if langs:
        return [*_parts(langs)]
    if file:
        holds = "the languages", "the languages in the order of training, one a line"
        return read_text(file_of_flag("--lang-dict", file, near, *holds)).split()
    pairs = [*_parts(values.get("lang_pairs") or ())]
    if not pairs:
        raise ModelError("no languages are named", mend="give --langs and --lang-pairs")
    return sorted({lang for pair in pairs for lang in pair.split("-")})


def file_of_flag(flag: str, file: str, near: str | os.PathLike[str] | None, what: str, expected: str) -> Path:
    """The file that a flag names, of which a checkpoint keeps only the path: there, or by that name beside the checkpoint.

    Raises:
        ArtifactError: if it is at neither place.
    """
    places = [Path(file), *([Path(near).with_name(Path(file).name)] if near else [])]
    for place in places:
        if place.is_file():
            return place
    raise ArtifactError(
        f"{what} are in a file that is not there",
        where=near,
        got=f"{flag} {file}",
        expected=expected,
        mend="put the file there again" + (f", or a copy of it at {places[1]}" if near else ""),
    )


def _parts(value: str | Iterable[str]) -> Iterable[str]:
    return value.split(",") if isinstance(value, str) else value
