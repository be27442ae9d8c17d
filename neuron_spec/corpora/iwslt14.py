"""IWSLT 2014: TED talks between English and eight languages, the paper's small benchmark.

The text is WIT3's release 2014-01 (CC BY-NC-ND 4.0): read from the user's copy, never redistributed.
Preparation as in the literature (LaSS, after fairseq's script for de-en), with these differences:

- lengths count our tokens, words and punctuation marks, where the literature counts those of Moses;
- the text itself stays untokenised, and typographic apostrophes of the test sets stay what they are;
- the joint BPE is learnt on all languages; the script in use learns it on the last pair only;
- by default whole talks are held out for validation, the same in every pair. The pairs translate the
  same talks, so the literature's every 23rd line is in another pair's training text, as English target.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.sax.saxutils import unescape

from tqdm import tqdm

from neuron_spec.artifacts import hash_file, hash_text, refuse_pointer, require_file
from neuron_spec.corpora import splitting
from neuron_spec.corpora.build import SPLITS, TEST, TRAIN, VALID, Corpus
from neuron_spec.corpora.checks import decoded_text, fault_of_lengths, normalize, require_known
from neuron_spec.errors import CorpusError, some
from neuron_spec.languages import ENGLISH

RELEASE = "2014-01"
LICENCE = "CC BY-NC-ND 4.0"
DEFAULT_LANGS = ("fa", "pl", "ar", "he", "nl", "de", "it", "es")
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
WAYS_TO_SPLIT = ("talk", "lass")

_DOWNLOAD = (
    f"download {RELEASE}.tgz, Google Drive file 1GnBarJIbNgEIIDvUyKDtLmv35Qcxg6Ed (WIT3, {LICENCE}), "
    f"and pass --archive {RELEASE}.tgz, or the folder it unpacks to"
)
_FEWER = f"name only the languages that it holds with --langs, or {_DOWNLOAD}"
_MOST_TOKENS = 175
_LENGTH_RATIO = 1.5
_VALID_EVERY = 23
_LARGEST = 2**30  # bytes; the largest file of the release has some 30 million

_HEAD = "url|keywords|speaker|talkid|title|description|reviewer|translator"
_HEAD_LINE = re.compile(rf"<(?P<tag>{_HEAD})\b[^>]*>(?P<text>.*?)(?:</(?P=tag)>)?")
# Read by pattern: the release's files are not all well-formed XML, they hold bare ampersands.
_MARKUP = re.compile(
    r"<doc\b|<talkid>(?P<talk>[^<]*)</talkid>"
    r"|<seg\b[^>]*>(?P<text>(?:(?!</?seg\b).)*)</seg>|(?P<broken></?seg\b)",
    re.DOTALL,
)
_QUOTES = {"&quot;": '"', "&apos;": "'"}


class _Line(NamedTuple):
    """One side of a segment."""

    talk: str  # TED's id of the talk, the same in every language; "" where the file does not say
    text: str


class _Segment(NamedTuple):
    talk: str
    text: str
    english: str


_Splits = dict[str, dict[str, list[_Segment]]]  # split -> language


@dataclass
class _Pair:
    """What the release holds of one language, without unfit training segments and empty test segments."""

    train: list[_Segment]
    tests: dict[str, list[_Segment]]  # test set -> segments
    sha256: str
    dropped: Counter[str]  # reason -> segments

    @property
    def test(self) -> list[_Segment]:
        return [segment for segments in self.tests.values() for segment in segments]


def _fault(what: str, *, mend: str = _DOWNLOAD, **parts: object) -> CorpusError:
    """Of the user's copy, which is mended by another one."""
    return CorpusError(what, mend=mend, **parts)


def require_archive(archive: Path | None) -> Path:
    """The user's copy of the release.

    Raises:
        CorpusError: if none is named or it is not there; says where to get it, and its licence.
    """
    if archive is None:
        raise _fault(f"iwslt14 reads your own copy of WIT3's release {RELEASE}")
    if not archive.exists():
        raise _fault(f"WIT3's release {RELEASE} not found", where=archive)
    return archive if archive.is_dir() else require_file(archive, "archive")


def fingerprint(archive: Path, langs: Sequence[str]) -> str:
    """Hash of the archive, or of what a folder holds of these languages.

    Raises:
        CorpusError: if a folder cannot be read.
    """
    if archive.is_file():
        return hash_file(archive)
    return hash_text(*(_hash(files) for _, _, files in _packed_pairs(archive, langs)))


def read(
    archive: Path, *, langs: Sequence[str] = DEFAULT_LANGS, split: str = "talk", seed: int = 1
) -> Corpus:
    """Read, clean and split. Case is kept; the xx-en text serves both directions.

    Args:
        archive: ``2014-01.tgz``, or a folder that holds ``texts/de/en/de-en.tgz`` or ``de-en/``.
        langs: out of `DEFAULT_LANGS`.
        split: ``talk`` (ours) holds out whole talks for validation, at least one segment in 23 of each
            language, and trains on no talk that is in any language's test sets. ``lass`` is the
            literature's: every 23rd training segment is for validation.
        seed: of the choice of talks; ``lass`` has no choice.

    Raises:
        CorpusError: a language or way to split that there is not, a copy that is cut short or
            incomplete, a file that cannot be read, sides of unequal numbers of segments, too few talks.
    """
    require_known(langs, DEFAULT_LANGS, "languages that iwslt14 does not have")
    if split not in WAYS_TO_SPLIT:
        raise CorpusError("no such way to split iwslt14", got=split, expected=" or ".join(WAYS_TO_SPLIT))
    packed = _packed_pairs(require_archive(archive), langs)
    bar = tqdm(packed, desc="read pairs", total=len(langs), mininterval=1)
    read_pairs = {lang: _read_pair(lang, where, files) for lang, where, files in bar}
    pairs = {lang: read_pairs[lang] for lang in langs}  # not as they lie in the archive

    every_23rd = _split(pairs, lambda number, _: number % _VALID_EVERY == 0)
    splits = every_23rd
    if split == "talk":
        # A pair's training text holds none of its own test talks, but where it lacks a test set it may hold
        # the talks of that set, whose English another pair is tested on.
        talks = {segment.talk for pair in pairs.values() for segment in pair.test} - {""}
        for pair in pairs.values():
            train = [segment for segment in pair.train if segment.talk not in talks]
            pair.dropped["train: in a talk of the test sets"] = len(pair.train) - len(train)
            pair.train = train
        sizes = {lang: Counter(segment.talk for segment in pair.train) for lang, pair in pairs.items()}
        if nameless := [lang for lang, talk_sizes in sizes.items() if "" in talk_sizes]:
            raise CorpusError(
                "training text without talk ids",
                where=f"train.tags.{nameless[0]}-{ENGLISH}.{nameless[0]}",
                expected="a line <talkid>...</talkid> at the head of each talk",
                mend="--split lass needs none",
            )
        held_out = splitting.groups_to_hold_out(sizes, fraction=1 / _VALID_EVERY, seed=seed)
        splits = _split(pairs, lambda _, segment: segment.talk in held_out)
    leak = {
        "similarity": "talks by their ids; English segments the same to the letter, in any pair's training text",
        **{f"{name}_if_every_23rd_line": counts for name, counts in _leak_report(every_23rd).items()},
        **{f"{name}_as_built": counts for name, counts in _leak_report(splits).items()},
    }
    return Corpus(
        name="iwslt14",
        pairs={
            name: {lang: [(text, english) for _, text, english in splits[name][lang]] for lang in langs}
            for name in SPLITS
        },
        sources=[
            {
                "name": f"WIT3 {RELEASE}, {lang}-{ENGLISH}",
                "sha256": pair.sha256,
                "licence": LICENCE,
                "test_sets": ", ".join(f"{name} ({len(segments)})" for name, segments in pair.tests.items()),
                "absent_test_sets": ", ".join(name for name in TEST_SETS if name not in pair.tests) or "none",
                "test_sets_without_talk_ids": ", ".join(
                    name for name, segments in pair.tests.items() if not all(s.talk for s in segments)
                )
                or "none",
            }
            for lang, pair in pairs.items()
        ],
        cleaning={lang: dict(pair.dropped.most_common()) for lang, pair in pairs.items()},
        leak=leak,
    )


# --- Files -------------------------------------------------------------------------------------------


def _packed_pairs(archive: Path, langs: Sequence[str]) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """For each language: the language, where its files are, and the files by name.

    Nothing is unpacked to disk and names in an archive are only compared, so none can lead elsewhere.
    """
    if archive.is_file():
        yield from _pairs_in_archive(archive, langs)
        return
    for lang in langs:
        pair = f"{lang}-{ENGLISH}"
        roots = (archive, archive / "texts", archive / RELEASE / "texts")
        for place in (place for root in roots for place in (root / lang / ENGLISH / pair, root / pair)):
            packed = place.with_name(f"{pair}.tgz")
            if place.is_dir():
                present = [name for name in sorted(_file_names(lang)) if (place / name).is_file()]
                yield lang, str(place), {name: (place / name).read_bytes() for name in present}
                break
            if packed.is_file():
                yield lang, str(packed), _unpack(packed.read_bytes(), str(packed), lang)
                break
        else:
            raise _fault(
                f"the folder holds no {pair} text",
                where=archive,
                got=some(sorted(path.name for path in archive.iterdir())),
                expected=f"texts/{lang}/{ENGLISH}/{pair}.tgz, {pair}.tgz or {pair}/",
                mend=_FEWER,
            )


def _pairs_in_archive(archive: Path, langs: Sequence[str]) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    wanted = {f"texts/{lang}/{ENGLISH}/{lang}-{ENGLISH}.tgz": lang for lang in langs}
    others = []
    with gzip.open(archive) as whole:
        for name, file in _members(whole, str(archive)):
            if lang := wanted.pop("/".join(PurePosixPath(name).parts[-4:]), None):
                where = f"{archive}: {name}"
                yield lang, where, _unpack(_read_all(file, where), where, lang)
            else:
                others.append(name)
            if not wanted:
                return
    raise _fault(
        "the archive lacks some languages",
        where=archive,
        got=some(others),
        expected=", ".join(f"{RELEASE}/{path}" for path in wanted),
        mend=_FEWER,
    )


def _sides(lang: str) -> dict[str, tuple[str, str]]:
    """``train`` and every test set -> the files of the language and of English."""
    pair = f"{lang}-{ENGLISH}"
    patterns = {name: f"IWSLT14.{name}.{pair}.{{}}.xml" for name in TEST_SETS}
    patterns = {TRAIN: f"train.tags.{pair}.{{}}", **patterns}
    return {name: (pattern.format(lang), pattern.format(ENGLISH)) for name, pattern in patterns.items()}


def _file_names(lang: str) -> list[str]:
    return [name for sides in _sides(lang).values() for name in sides]


def _unpack(data: bytes, where: str, lang: str) -> dict[str, bytes]:
    """The files of one language out of its own archive, such as ``de-en/train.tags.de-en.de``."""
    wanted = {(f"{lang}-{ENGLISH}", name) for name in _file_names(lang)}
    files, others = {}, []
    refuse_pointer(data, where)
    # Through gzip, which knows where its data end: a tar file cut between two files would seem complete.
    for member, file in _members(gzip.GzipFile(fileobj=io.BytesIO(data)), where):
        path = PurePosixPath(member)
        if path.parts[-2:] in wanted:
            files[path.name] = _read_all(file, f"{where}: {member}")
        else:
            others.append(member)
    if not files:
        raise _fault(
            "the archive holds none of the files it should",
            where=where,
            got=some(others),
            expected=f"{lang}-{ENGLISH}/train.tags.{lang}-{ENGLISH}.{lang} and others",
        )
    return files


def _members(file: io.BufferedIOBase, where: str) -> Iterator[tuple[str, io.BufferedIOBase]]:
    """Name and content of each plain file in a tar file, in one pass; links are left out."""
    with _readable(where), tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.isreg() and (content := archive.extractfile(member)):
                yield member.name, content  # type: ignore[misc]


def _read_all(file: io.BufferedIOBase, where: str) -> bytes:
    with _readable(where):
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        expected = f"at most {_LARGEST} bytes"
        raise _fault("far larger than any file of the release", where=where, expected=expected)
    return data


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _fault(
            "the archive cannot be read: damaged, cut short, or no archive at all",
            where=where,
            got=str(error),
            expected="a gzipped tar file",
            mend=f"{_DOWNLOAD}; a file of a few kilobytes is a web page that Google Drive gave instead",
        ) from error


def _hash(files: Mapping[str, bytes]) -> str:
    """The same however the files were packed."""
    return hash_text(*(f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files)))


# --- Text --------------------------------------------------------------------------------------------


def _read_pair(lang: str, where: str, files: Mapping[str, bytes]) -> _Pair:
    segments = {}
    for name, sides in _sides(lang).items():
        present = [side for side in sides if side in files]
        if len(present) == 1:
            raise _fault(
                "only one side of a file is there", where=where, got=present[0], expected=" and ".join(sides)
            )
        if present:
            segments[name] = _read_sides(sides, where, files)
    if missing := "training text" if TRAIN not in segments else "test set" if len(segments) == 1 else None:
        raise _fault(
            f"no {missing} of {lang}-{ENGLISH}",
            where=where,
            got=some(sorted(files)),
            expected=f"some of {', '.join(_file_names(lang))}",
        )
    pair = _Pair([], {}, _hash(files), Counter())
    for segment in segments.pop(TRAIN):
        sides = segment.text, segment.english
        if fault := fault_of_lengths(*sides, most_tokens=_MOST_TOKENS, ratio=_LENGTH_RATIO):
            pair.dropped[f"train: {fault}"] += 1
        else:
            pair.train.append(segment)
    for name, uncleaned in segments.items():
        pair.tests[name] = [segment for segment in uncleaned if segment.text and segment.english]
    if empty := sum(map(len, segments.values())) - len(pair.test):
        pair.dropped["test: empty"] = empty
    return pair


def _read_sides(sides: tuple[str, str], where: str, files: Mapping[str, bytes]) -> list[_Segment]:
    """Two files, aligned."""
    parse = _parse_xml if sides[0].endswith(".xml") else _parse_tagged
    mend = f"the file was converted on its way: {_DOWNLOAD}"
    theirs, english = (
        parse(decoded_text(files[side], where=f"{where}: {side}", mend=mend), f"{where}: {side}")
        for side in sides
    )
    both = f"{where}: {' and '.join(sides)}"
    if len(theirs) != len(english):
        one, other = (Counter(line.talk for line in lines) for lines in (theirs, english))
        talk = next((talk for talk in one | other if talk and one[talk] != other[talk]), None)
        first = f", first in talk {talk}: {one[talk]} and {other[talk]}" if talk else ""
        raise _fault(
            "the two sides have unequal numbers of segments",
            where=both,
            got=f"{len(theirs)} and {len(english)}{first}",
            expected="one segment for each segment",
        )
    segments = []
    for number, (line, english_line) in enumerate(zip(theirs, english, strict=True), start=1):
        talk, english_talk = line.talk, english_line.talk
        if talk != english_talk and talk and english_talk:
            raise _fault(
                "the two sides are not of the same talk",
                where=f"{both}, segment {number}",
                got=f"talks {talk} and {english_talk}",
            )
        segments.append(_Segment(talk or english_talk, normalize(line.text), normalize(english_line.text)))
    return segments


def _parse_tagged(text: str, where: str) -> list[_Line]:
    """Lines of ``train.tags.*``: each talk has a head of tag lines; title and description are text."""
    talks: list[tuple[list[str], list[str]]] = []  # ids, lines
    in_head = False
    # Not splitlines: talks hold other characters that it takes for the end of a line.
    for line in text.removesuffix("\n").split("\n"):
        line = line.strip()
        head = _HEAD_LINE.fullmatch(line)
        if not talks or (head and not in_head):
            talks.append(([], []))
        in_head = bool(head) or (in_head and not line)
        ids, lines = talks[-1]
        if head is None:
            lines.append(line)
        elif head["tag"] == "talkid":
            ids.append(head["text"].strip())
        elif head["tag"] in ("title", "description"):
            lines.append(head["text"])
    return [_Line(ids[0] if ids else "", line) for ids, lines in talks for line in lines]


def _parse_xml(text: str, where: str) -> list[_Line]:
    """Segments of ``IWSLT14.*.xml``."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise CorpusError(
            "a document type or entity is declared", where=where, expected="neither, as in the release"
        )
    lines: list[_Line] = []
    talk = ""
    for match in _MARKUP.finditer(text):
        if match["broken"]:
            line = text.count("\n", 0, match.start()) + 1
            raise _fault(
                "a <seg> is opened and not closed, or closed and not opened",
                where=f"{where}, line {line}",
                got=f"{text[match.start() :].splitlines()[0][:60]!r}, after {len(lines)} segments",
                expected='<seg id="1"> text </seg>',
            )
        if match["text"] is not None:
            lines.append(_Line(talk, unescape(match["text"], _QUOTES)))
        else:
            talk = (match["talk"] or "").strip()  # a new document, or the id in it
    if not lines:
        raise CorpusError("no <seg> in a test set", where=where, expected='<seg id="1"> text </seg>')
    return lines


# --- Splits ------------------------------------------------------------------------------------------


def _split(pairs: Mapping[str, _Pair], is_for_validation: Callable[[int, _Segment], bool]) -> _Splits:
    """Args: is_for_validation: of a training segment's number, from 1, and the segment."""
    splits: _Splits = {TRAIN: {}, VALID: {}, TEST: {lang: pair.test for lang, pair in pairs.items()}}
    for lang, pair in pairs.items():
        splits[TRAIN][lang], splits[VALID][lang] = [], []
        for number, segment in enumerate(pair.train, start=1):
            splits[VALID if is_for_validation(number, segment) else TRAIN][lang].append(segment)
    return splits


def _leak_report(splits: _Splits) -> dict[str, dict[str, int]]:
    """For each held-out split: how many talks and distinct English segments, and how many are trained on."""
    segments = {split: [s for of_lang in splits[split].values() for s in of_lang] for split in SPLITS}
    talks = {split: {s.talk for s in of_split} - {""} for split, of_split in segments.items()}
    english = {split: {s.english for s in of_split} for split, of_split in segments.items()}
    report = {}
    for split in (VALID, TEST):
        trained = english[split] & english[TRAIN]
        report[split] = {
            "talks": len(talks[split]),
            "talks_in_train": len(talks[split] & talks[TRAIN]),
            "english_segments": len(english[split]),
            "english_segments_in_train": len(trained),
            "of_which_5_words_or_more": sum(len(text.split()) >= 5 for text in trained),
        }
    return report
