"""Reading logs of ``fairseq-generate``, however it printed them: texts without pieces and language tokens.

What fairseq prints (``fairseq_cli/generate.py``): ``--remove-bpe`` joins the pieces of S, T and H; ``--bpe`` and
``--tokenizer`` decode S, T and D, and leave H alone; without any of them D is H. So D is what is to be compared with
T, wherever there is one: fairseq before 0.9 prints none.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

from neuron_spec.artifacts import read_text, require_file
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError
from neuron_spec.languages import UNKNOWN, is_code, is_english, language
from neuron_spec.scoring.metrics import DirectionScore, Outputs

_KINDS = {
    "S": "sources",
    "T": "references",
    "H": "hypotheses",
    "D": "decoded hypotheses",
    "P": "scores of tokens",
}
# A concatenated file may have a byte-order mark at the start of any of its parts.
_LOG_LINE = re.compile(r"\ufeff?([STHDP])-([0-9]{1,18})\t(.*)", re.DOTALL)
# What Python's logging, in its own format or in fairseq's, and its warnings wrote to the other stream, within such a
# line.
_RECORDS_IN_LINE = re.compile(
    r"(?m)^(\ufeff?[STHDP]-[^\n]*?)"
    r"((?:(?:[0-9-]{10} [0-9:]{8} \| )?(?:DEBUG|INFO|WARNING|ERROR)(?: \| |:)(?:fairseq|neuron_spec)[^\n]*\n"
    r"|/[^\s:]*\.py:[0-9]+: [A-Za-z]*Warning: [^\n]*\n(?:  [^\n]*\n)?)+)"
)
_CODE = r"[A-Za-z]{2,3}(?:[_-][A-Za-z0-9]{2,4})*"
_HEADER = re.compile(rf"(?<![a-z_])(source|target)_lang['\"]?\s*[=:]\s*['\"]({_CODE}|\w+)['\"]")
_DICTIONARY = re.compile(rf"(?:^\| |\bfairseq\.tasks\.translation(?: \| |:))\[({_CODE}|\w+)\] dictionary: ")
_LOADED = re.compile(r"\bloaded ([0-9,]+) examples from: ")
_REFERENCES_SCORED = re.compile(r"\bscore_reference'?[=:] ?True\b")
# fairseq's own BLEU4 is of tokens; sacreBLEU's line names no order, and parts its figures by spaces.
_SACREBLEU = re.compile(r"Generate \S+ with beam=[0-9]+: BLEU(?!4 )\S* = ([0-9.]+)(?: |$)")

NOTICEABLE_BLEU = 0.1  # the last digit that tables show
_FEW = 10  # so few sentences may all be translated as their references

SENTENCEPIECE, SUBWORD_NMT, WORDS = "sentencepiece", "subword_nmt", "words"
_MARKS = {SENTENCEPIECE: re.compile("\u2581"), SUBWORD_NMT: re.compile(r"\S@@(?= |$)")}
# As fairseq.data.data_utils.post_process.
_JOIN: dict[str, Callable[[str], str]] = {
    SENTENCEPIECE: lambda text: text.replace(" ", "").replace("\u2581", " ").strip(),
    SUBWORD_NMT: lambda text: (text + " ").replace("@@ ", "").rstrip(),
    WORDS: lambda text: text,
}
# What a text may begin with, too: [it], or <br> of HTML, or a word.
_MAY_BE_TEXT = re.compile(r"[\[<][A-Za-z]{2,3}[\]>]|[^\W_]\w*")
# GPT-2's numbers for pieces, and its mark; nothing but its own tables decodes them.
_NUMBERS, _BYTE_LEVEL_MARK = re.compile("[0-9 ]+"), "\u0120"
# Further marks -> what fairseq-generate joins them by: of BERT, of fairseq's own ways, and of what it cannot join.
_OTHER_MARKS = {
    "--bpe bert, as the data were made": re.compile(r"(?<!\S)##[^\s#]"),
    "--post-process wordpiece, if its pieces begin words with _": re.compile(r"(?<!\S)_[^\W_]|[^\W_]_(?!\S)"),
    "--post-process _EOW": re.compile(r"_EOW(?!\S)"),
    "--post-process letter": re.compile(r"(?:\S )*\|(?: \S)*"),
    "another tool: join them in the log, S, T and D": re.compile("</w>|\uffed"),
}


@dataclass(frozen=True)
class LoggedOutputs:
    """One direction as its log, or the logs of its shards, have it.

    Attributes:
        scored: ``D`` or ``H``: the kind of line that the hypotheses are from.
        pieces: kind of line -> the pieces that it still held: ``sentencepiece``, ``subword_nmt``, or ``words``.
        tokens: kinds of lines that language tokens were taken off.
        test_set: how many sentences the test set has, as far as the logs tell.
        sacrebleu: what the log itself says of all that it holds, where that is sacreBLEU's (0-100).
        better_later: sentences whose first hypothesis has a lower score than a later one of ``--nbest``.
    """

    outputs: Outputs
    paths: tuple[Path, ...]
    scored: str
    pieces: dict[str, str]
    tokens: tuple[str, ...]
    test_set: int
    sacrebleu: float | None
    better_later: int

    def part(self) -> str | None:
        """``18 of 20``: how many sentences are scored, where the logs lack some."""
        sentences = len(self.outputs.hypotheses)
        return f"{sentences} of {self.test_set}" if sentences < self.test_set else None

    def reading(self) -> str:
        """How it was read, in words."""
        by_pieces: dict[str, list[str]] = {}
        for kind, pieces in self.pieces.items():
            by_pieces.setdefault(pieces, []).append(kind)
        joined = [f"{of} joined in {', '.join(kinds)}" for of, kinds in by_pieces.items() if of != WORDS]
        tokens = [f"language tokens taken off {', '.join(self.tokens)}"] if self.tokens else []
        part = [f"{part} sentences"] if (part := self.part()) else []
        return "; ".join([f"{self.scored} lines scored against T lines", *joined, *tokens, *part])


def read_generate_output(path: str | Path, *, direction: Direction | None = None) -> Outputs:
    """One whole log, as `read_generate_outputs` reads several."""
    return read_generate_outputs([path], [direction] if direction else None)[0].outputs


def read_generate_outputs(
    paths: Sequence[str | Path],
    directions: Sequence[Direction] | None = None,
    *,
    allow_missing: bool = False,
) -> list[LoggedOutputs]:
    """Read logs of ``fairseq-generate``, each direction's sentences in the order of its test set.

    Logs of one direction are taken for shards and joined. Of ``--nbest`` hypotheses the first is kept.
    Pieces are joined, and language tokens taken off, in each kind of line that has them.

    Args:
        directions: of the logs, in their order. None: as each log's header, or its folder (``.../de-en/``), says.
        allow_missing: read logs that lack some of the sentences; those that have a source, a reference and a
            hypothesis are kept.

    Raises:
        ArtifactError: if a file is missing, has no such lines, is malformed, or lacks sentences; or if two logs of
            one direction have a sentence in common.
        DirectionError: if a direction is not known, or what names it (``directions``, header, folder, language
            tokens) disagrees.
    """
    if directions is not None and len(directions) != len(paths):
        raise DirectionError(
            "logs and their directions do not pair up",
            got=f"{len(directions)} directions, {len(paths)} logs",
            expected="a direction for each log, in their order",
            mend="name the direction of shards once for each of their logs",
        )
    logs: dict[Direction, list[_Log]] = {}
    for path, given in zip(paths, directions or repeat(None, len(paths)), strict=True):
        log = _read(Path(path))
        direction = _direction_of(log, given)
        logs.setdefault(direction, []).append(_with_plain_texts(log, direction))
    return [_joined(direction, shards, allow_missing) for direction, shards in logs.items()]


def say_how_read(logs: Sequence[LoggedOutputs]) -> None:
    """On stderr: which lines were scored, what was done to them, and what a reader of the scores should know."""
    readings: dict[str, list[str]] = {}
    for log in logs:
        outputs = log.outputs
        readings.setdefault(log.reading(), []).append(str(outputs.direction))
        if log.better_later:
            print(
                f"{outputs.direction}: in {log.better_later} sentences a later hypothesis has a higher score than "
                "the first; the first is scored, as fairseq does",
                file=sys.stderr,
            )
        if len(outputs.hypotheses) >= _FEW and outputs.hypotheses == outputs.references:
            print(
                f"{outputs.direction}: every hypothesis is its reference, as --score-reference prints them",
                file=sys.stderr,
            )
    for reading, directions in readings.items():
        print(f"{', '.join(directions)}: {reading}", file=sys.stderr)


def say_where_logs_differ(
    logs: Sequence[LoggedOutputs], scores: Sequence[DirectionScore], *, official: bool = False
) -> None:
    """On stderr, a line for each log whose own sacreBLEU of all its sentences is not ours to the digit shown."""
    for log, ours in zip(logs, scores, strict=True):
        if log.sacrebleu is None or abs(log.sacrebleu - ours.bleu) <= NOTICEABLE_BLEU:
            continue
        reasons = [
            "its tokenizer or case may be another than here",
            *["it is of pieces, joined here"] * (set(log.pieces.values()) != {WORDS}),
            *["its texts have language tokens"] * bool(log.tokens),
            *["official scoring detokenizes first"] * official,
        ]
        print(
            f"{ours.direction}: BLEU {ours.bleu:.2f} ({ours.bleu_signature}); the log's own sacreBLEU line says "
            f"{log.sacrebleu:.2f}: {'; '.join(reasons)}",
            file=sys.stderr,
        )


# One log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Log:
    """``lines``: kind -> sentence -> text; of hypotheses the first."""

    path: Path
    lines: dict[str, dict[int, str]]
    header: Direction | None
    loaded: int
    sacrebleu: float | None
    better_later: int
    pieces: dict[str, str] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()

    @property
    def scored(self) -> str:
        return "D" if self.lines["D"] else "H"


def _read(path: Path) -> _Log:
    text = read_text(require_file(path, "fairseq-generate log"))
    # Where both streams went to one file, a record may stand between a text and the end of its line.
    others = [record for _, records in _RECORDS_IN_LINE.findall(text) for record in records.split("\n")]
    lines = _RECORDS_IN_LINE.sub(r"\1", text).split("\n")
    matches = [(number, line, _LOG_LINE.fullmatch(line)) for number, line in enumerate(lines, start=1)]
    others += [line for _, line, match in matches if match is None]
    is_crlf = all(line.endswith("\r") for _, line, match in matches[:-1] if match)  # the last may have no end
    by_kind: dict[str, dict[int, str]] = {kind: {} for kind in _KINDS}
    best: dict[int, float] = {}
    better_later = set()
    for number, line, match in matches:
        if match is None:
            if re.match(r"\ufeff?[STHDP]-[0-9]{19}", line):
                raise _malformed(path, number, line, "an id of a sentence, of at most 18 digits")
            continue
        kind, sentence, text = match[1], int(match[2]), match[3].removesuffix("\r") if is_crlf else match[3]
        if kind in "HD":
            score, tab, text = text.partition("\t")
            if not tab or (value := _number(score)) is None or value != value:
                raise _malformed(path, number, line, f"'{kind}-<id>', score and text, parted by tabs")
            if kind == "H" and value > best.setdefault(sentence, value):
                better_later.add(sentence)
            by_kind[kind].setdefault(sentence, text)
        elif kind == "P":
            by_kind[kind].setdefault(sentence, text)
        elif sentence in by_kind[kind]:
            raise ArtifactError(
                "a sentence appears twice in a fairseq-generate log",
                where=f"{path}, line {number}",
                got=f"{kind}-{sentence}",
                mend="the log holds several runs or directions: give one file for each",
            )
        else:
            by_kind[kind][sentence] = text
    if not by_kind["H"] or not by_kind["T"]:
        raise ArtifactError(
            "no translations in a fairseq-generate log",
            where=path,
            got=f"{len(by_kind['H'])} H lines, {len(by_kind['T'])} T lines",
            expected="an H and a T line for each sentence",
            mend="give the output of fairseq-generate without --quiet; fairseq-interactive prints no references",
        )
    if any(map(_REFERENCES_SCORED.search, others)):
        raise ArtifactError(
            "a fairseq-generate log of --score-reference has the references for hypotheses",
            where=path,
            mend="generate without --score-reference",
        )
    loaded = [int(match[1].replace(",", "")) for match in map(_LOADED.search, others) if match]
    own = [match[1] for match in map(_SACREBLEU.search, others) if match]
    return _Log(
        path=path,
        lines=by_kind,
        header=_header(others),
        loaded=loaded[0] if len(loaded) in (1, 2) else 0,  # a sharded test set says so part by part
        sacrebleu=_number(own[-1]) if own else None,
        better_later=len(better_later),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _malformed(path: Path, number: int, line: str, expected: str) -> ArtifactError:
    return ArtifactError(
        "malformed fairseq-generate log",
        where=f"{path}, line {number}",
        got=repr(line[:80]),
        expected=expected,
    )


# Its direction --------------------------------------------------------------------------------


def _header(lines: Sequence[str]) -> Direction | None:
    """From the printed flags, be they argparse's or omegaconf's; else from a translation task's dictionaries."""
    for line in lines:
        # The first of each: a tokenizer's own come after the task's.
        found = dict(reversed(_HEADER.findall(line)))
        if len(found) == 2:
            return Direction(found["source"], found["target"])
    named = [match[1] for match in map(_DICTIONARY.search, lines) if match]
    return Direction(*named) if len(named) == 2 else None


def _direction_of(log: _Log, given: Direction | None) -> Direction:
    """As the caller, the header and the folder agree."""
    folder = log.path.resolve().parent.name
    by_whom = {"as given": given, "in its header": log.header, "as its folder is named": _named(folder)}
    named = {who: direction for who, direction in by_whom.items() if direction}
    if not named:
        raise DirectionError(
            "a fairseq-generate log does not tell its direction",
            where=log.path,
            got=f"folder {folder!r}, and no source_lang in the log",
            mend="name the direction: --lang-pairs de-en, or the folder, such as 'de-en/generate-test.txt'",
        )
    (first, direction), *others = named.items()
    for who, other in others:
        if not (_is_same(direction.source, other.source) and _is_same(direction.target, other.target)):
            raise DirectionError(
                "a fairseq-generate log is of another direction",
                where=log.path,
                got=f"{other}, {who}",
                expected=f"{direction}, {first}",
                mend="give the logs and their directions in one order, or move the log to a folder of its own",
            )
    return direction


def _named(folder: str) -> Direction | None:
    """Folders also have names such as ``run-ab``: known languages, or English and what may be one, are a direction."""
    if is_code(folder):  # pt-BR is no direction into Breton
        return None
    parts = folder.split("-")
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    found = [codes for codes in splits if _are_languages(*codes)]
    return Direction(*found[0]) if len(found) == 1 else None


def _are_languages(*codes: str) -> bool:
    if not all(re.fullmatch(_CODE, code) and is_code(code) for code in codes):
        return False
    return all(language(code).family != UNKNOWN for code in codes) or any(map(is_english, codes))


def _is_same(one: str, other: str) -> bool:
    """Whether two codes name one language, of whatever script or country."""
    return language(one).code == language(other).code


# Its texts ------------------------------------------------------------------------------------


def _with_plain_texts(log: _Log, direction: Direction) -> _Log:
    """S, T and the hypotheses to score (`_Log.scored`) without pieces and language tokens."""
    lines, tokens = dict(log.lines), []
    pieces: dict[str, str] = {}
    for kind in ("T", "S", log.scored):
        if not lines[kind]:
            continue
        pieces[kind] = _pieces(log, kind, pieces.get("T", WORDS))
        joined = {sentence: _JOIN[pieces[kind]](text) for sentence, text in lines[kind].items()}
        lines[kind] = _without_language_tokens(log.path, kind, direction, joined)
        if lines[kind] != joined:
            tokens.append(kind)
    return replace(log, lines=lines, pieces=pieces, tokens=tuple(tokens))


def _pieces(log: _Log, kind: str, of_references: str) -> str:
    """What a kind of line still holds: pieces where most lines have their mark, words where none has.

    In between, as in words with a mark of their own in some sentence, the log tells by its P lines. Hypotheses may
    have few marks, but they are printed as the references are, unless they were decoded alone.

    Raises:
        ArtifactError: if it cannot be told, or no rule of text joins such pieces.
    """
    texts = [text for text in log.lines[kind].values() if text.strip()]
    are_numbers = texts and all(map(_NUMBERS.fullmatch, texts))
    if are_numbers or sum(_BYTE_LEVEL_MARK in text for text in texts) > len(texts) / 2:
        raise ArtifactError(
            f"the {kind} lines of a fairseq-generate log hold pieces that only their --bpe can join",
            where=log.path,
            got=repr(texts[0][:80]),
            mend="generate with --bpe gpt2 or hf_byte_bpe, as the data were made",
        )
    for mend, mark in _OTHER_MARKS.items():
        find = mark.fullmatch if mend.endswith("letter") else mark.search
        if 2 * len(found := [text for text in texts if find(text)]) > len(texts):
            raise ArtifactError(
                f"the {kind} lines of a fairseq-generate log hold pieces that are not joined here",
                where=log.path,
                got=repr(found[0][:80]),
                expected="words, or pieces of sentencepiece or subword_nmt",
                mend=f"generate with {mend}",
            )
    marked = {pieces: [text for text in texts if mark.search(text)] for pieces, mark in _MARKS.items()}
    pieces, some = max(marked.items(), key=lambda item: len(item[1]))
    if some and 2 * len(some) >= len(texts):
        return pieces
    if kind == log.scored and of_references != WORDS and _prints_tokens(log) is not False:
        return of_references
    if not some:
        return WORDS
    if (are_pieces := _prints_tokens(log)) is None:
        raise ArtifactError(
            f"the {kind} lines of a fairseq-generate log may be words or pieces",
            where=log.path,
            got=f"{len(some)} of {len(texts)} lines with marks of {pieces}, such as {some[0][:80]!r}; no P lines, "
            "which would tell",
            expected="pieces in most lines, or in none",
            mend="generate with --remove-bpe sentencepiece (or subword_nmt), or with the model's own --bpe",
        )
    return pieces if are_pieces else WORDS


def _prints_tokens(log: _Log) -> bool | None:
    """Whether T, and what is scored, is as the model has it, token by token; None if nothing tells.

    A P line has a score for each token, the end of the sentence included: one more than H has tokens, or two with
    a language token. Of joined pieces it has more, how many differs from sentence to sentence.
    """
    hypotheses, scores = log.lines["H"], log.lines["P"]
    if log.scored == "D" and log.lines["D"] != hypotheses:
        return False  # decoded, and T with it
    more = [len(scores[s].split()) - len(text.split()) for s, text in hypotheses.items() if s in scores]
    if len(more) < 2 or min(more) < 0:
        return None
    return Counter(more).most_common(1)[0][1] >= 0.9 * len(more)


def _without_language_tokens(
    path: Path, kind: str, direction: Direction, texts: dict[int, str]
) -> dict[int, str]:
    """Take off language tokens at either end, such as ``__de__`` or ``[de_DE]``, if every text has one there.

    Raises:
        DirectionError: if they name another language, or only some texts have one.
    """
    languages = (direction.source, direction.target)
    code = "|".join([*map(re.escape, languages), _CODE])
    bare = r"[a-z]{2,3}_(?:[A-Z]{2}|[A-Z][a-z]{3})"  # of mBART-50 and NLLB: en_XX, eng_Latn
    token = rf"(?:__({code})__|\[({code})\]|<(?:2|2_|to[-_]|)({code})>|>>({code})<<|(?<!\S)({bare})(?!\S))"
    for place in (re.compile(rf"^{token}\s*"), re.compile(rf"\s*{token}\Z")):
        is_first = True
        while True:
            found = {sentence: place.search(text) for sentence, text in texts.items() if text.strip()}
            named = {next(filter(None, of.groups())): of[0].strip() for of in found.values() if of}
            if not named:
                break
            if not all(found.values()):
                # See _MAY_BE_TEXT; and what follows a token that all have is text.
                if is_first and any(not _MAY_BE_TEXT.fullmatch(name) for name in named.values()):
                    raise DirectionError(
                        f"only some {kind} lines of a fairseq-generate log have language tokens",
                        where=path,
                        got=f"{sum(map(bool, found.values()))} of {len(found)}, {_listed(named.values())}",
                        expected="all of them, or none",
                        mend="take them off, or put them on, throughout the log",
                    )
                break
            if foreign := [
                name for of, name in named.items() if not any(_is_same(of, to) for to in languages)
            ]:
                raise DirectionError(
                    f"the language tokens in the {kind} lines of a fairseq-generate log are not of its direction",
                    where=path,
                    got=_listed(foreign),
                    expected=f"tokens of {direction.source} or {direction.target}",
                    mend="name the direction that the log is of",
                )
            texts = {sentence: place.sub("", text, count=1) for sentence, text in texts.items()}
            is_first = False
    return texts


def _listed(names: Iterable[str]) -> str:
    first, rest = sorted(names)[:5], sorted(names)[5:]
    return ", ".join(first) + (f" and {len(rest)} more" if rest else "")


# A direction's logs together ------------------------------------------------------------------


def _joined(direction: Direction, logs: Sequence[_Log], allow_missing: bool) -> LoggedOutputs:
    lines: dict[str, dict[int, str]] = {kind: {} for kind in _KINDS}
    home: dict[int, Path] = {}
    for log in logs:
        sentences = {sentence for of_kind in log.lines.values() for sentence in of_kind}
        if shared := sentences & home.keys():
            raise ArtifactError(
                f"two fairseq-generate logs of {direction} have sentences in common",
                where=f"{home[min(shared)]}; {log.path}",
                got=f"{len(shared)}, the first {min(shared)}",
                expected="one log for each direction, or the logs of its shards",
                mend="give the logs of one run; current fairseq-generate ignores --num-shards and translates "
                "everything each time, unless --distributed-world-size and --distributed-rank say which part",
            )
        home |= dict.fromkeys(sentences, log.path)
        for kind, of_kind in log.lines.items():
            lines[kind] |= of_kind
    lines = {kind: of_kind for kind, of_kind in lines.items() if of_kind}
    test_set = max(1 + max(home), *(log.loaded for log in logs))
    common = sorted(set.intersection(*map(set, lines.values())))
    if len(common) < test_set and not (allow_missing and common):
        raise _missing(logs, lines, test_set)
    scored = "D" if "D" in lines else "H"
    hypotheses, references = ([lines[kind][sentence] for sentence in common] for kind in (scored, "T"))
    sources = [lines["S"][sentence] for sentence in common] if "S" in lines else None
    return LoggedOutputs(
        outputs=Outputs(direction, hypotheses, references, sources),
        paths=tuple(log.path for log in logs),
        scored=scored,
        pieces={
            kind: " and ".join(sorted({log.pieces[kind] for log in logs if kind in log.pieces}))
            for kind in ("S", "T", scored)
            if kind in lines
        },
        tokens=tuple(sorted({kind for log in logs for kind in log.tokens})),
        test_set=test_set,
        sacrebleu=logs[0].sacrebleu if len(logs) == 1 else None,
        better_later=sum(log.better_later for log in logs),
    )


def _missing(logs: Sequence[_Log], lines: Mapping[str, Mapping[int, str]], test_set: int) -> ArtifactError:
    kind = min((kind for kind in lines if len(lines[kind]) < test_set), key="HDTSP".index)
    # Not over all ids: the largest may be anything.
    first = next(i for i in range(len(lines[kind]) + 1) if i not in lines[kind])
    return ArtifactError(
        "sentences are missing from a fairseq-generate log",
        where=", ".join(str(log.path) for log in logs),
        got=f"no {kind} line for {test_set - len(lines[kind])} of {test_set} ids, the first {first}",
        expected="every id from 0",
        mend="run again what was cut short; give the logs of all shards together; where fairseq left sentences out, "
        "as --skip-invalid-size-inputs-valid-test does with what is too long, and current versions with the longest "
        "unless --required-batch-size-multiple 1, --allow-missing scores the rest",
    )
