"""EC30's text as a user has it: EC40's training files, NTREX-128 and FLORES-200."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from neuron_spec.artifacts import read_json, write_json
from neuron_spec.corpora.build import TEST, VALID, Pairs
from neuron_spec.corpora.checks import decoded_text, normalize, require_equal
from neuron_spec.corpora.ec30 import LANGUAGES
from neuron_spec.corpora.sharding import ScannedText, in_processes, report_progress, scan
from neuron_spec.errors import CorpusError
from neuron_spec.languages import ENGLISH

# EC40's authors hold out 842 pairs of the one language that NTREX-128 lacks; of a small file, a tenth.
SAMPLED_VALID = 842
_LARGEST_SAMPLED_FRACTION = 0.1


def sides_of(langs: Sequence[str]) -> list[tuple[str, str]]:
    """(language, side) of every training file."""
    return [(lang, side) for lang in langs for side in (ENGLISH, lang)]


@dataclass(frozen=True)
class PlainText:
    """The user's folders: EC40's training text, NTREX-128, FLORES-200."""

    train: Path
    valid: Path
    test: Path

    def train_file(self, lang: str, side: str) -> Path:
        """``en-de.de``, in the folder itself or, as in EC40's repository, in ``EC40-train-set`` below it."""
        name = f"{ENGLISH}-{lang}.{side}"
        below = self.train / "EC40-train-set" / name
        return below if below.is_file() else self.train / name

    def valid_file(self, lang: str) -> Path:
        code = "eng-US" if lang == ENGLISH else LANGUAGES[lang].ntrex  # the English that EC40's authors take
        return self.valid / f"newstest2019-ref.{code}.txt"

    def test_file(self, lang: str, part: str) -> Path:
        """``dev/deu_Latn.dev``; Serbian, which FLORES-200 has in Cyrillic only, as ``srp_Cyrl``."""
        code = "eng_Latn" if lang == ENGLISH else LANGUAGES[lang].flores
        file = self.test / part / f"{code}.{part}"
        cyrillic = self.test / part / f"{code.replace('_Latn', '_Cyrl')}.{part}"
        return cyrillic if lang == "sr" and not file.is_file() else file

    def test_files(self, lang: str) -> list[Path]:
        return [self.test_file(lang, part) for part in ("dev", "devtest")]

    def held_out_files(self, langs: Sequence[str]) -> list[Path]:
        """Of validation and test, English among them."""
        in_ntrex = [ENGLISH, *(lang for lang in langs if LANGUAGES[lang].ntrex)]
        tests = [file for lang in (ENGLISH, *langs) for file in self.test_files(lang)]
        return [*map(self.valid_file, in_ntrex), *tests]


def lines_estimated(file: Path) -> int:
    """From its first million bytes."""
    with file.open("rb") as opened:
        start = opened.read(1 << 20)
    return round(file.stat().st_size * start.count(b"\n") / max(1, len(start)))


class TrainingText:
    """The training pairs of every language, normalised, with the reason why one is unfit.

    Attributes:
        scanned: (language, side) -> its file.
        lines: language -> its pairs, the unfit ones too.
        sampled: language that NTREX-128 lacks -> numbers of the lines held out for its validation.
        is_tokenized: whether most final punctuation stands apart, as Moses' tokenizer leaves it.
    """

    def __init__(
        self, text: PlainText, langs: Sequence[str], *, shards: int, seed: int, workers: int, records: Path
    ) -> None:
        """Scan every file; those scanned before a kill, and not touched since, are not read again.

        Args:
            records: the folder that remembers what was scanned.

        Raises:
            CorpusError: if a file is not UTF-8 text, or the two sides of a language differ in lines.
        """

        def scan_once(side: tuple[str, str]) -> ScannedText:
            file, record = text.train_file(*side), records / f"{'.'.join(side)}.json"
            known = ScannedText(**read_json(record, "record of a scanned file")) if record.is_file() else None
            if known is None or known.path != str(file) or not known.is_current():
                known = scan(file, shards)
                write_json(record, asdict(known))
            report_progress(known.lines)
            return known

        sides = sides_of(langs)
        lines = sum(lines_estimated(text.train_file(*side)) for side in sides)
        scans = dict(in_processes(scan_once, sides, workers=workers, lines=lines, description="check text"))
        self.scanned = {side: scans[side] for side in sides}  # not as they were done
        self.parts = range(shards)
        self.lines, self.sampled = {}, {}
        for lang in langs:
            self.lines[lang] = require_equal(
                {side: scans[lang, side].lines for side in (ENGLISH, lang)},
                f"the two sides of {ENGLISH}-{lang} are not parallel",
                where=text.train_file(lang, lang),
                mend="get the pair again: one of its files is cut short or of another version",
            )
            if not LANGUAGES[lang].ntrex:
                size = min(SAMPLED_VALID, int(_LARGEST_SAMPLED_FRACTION * self.lines[lang]))
                rng = random.Random(f"validation {seed}")
                self.sampled[lang] = frozenset(rng.sample(range(self.lines[lang]), size))

        first = (line.rstrip() for line in islice(scans[langs[0], ENGLISH].part(0), 2000))
        ends = [line[-2:] for line in first if line.endswith((".", "?", "!"))]
        self.is_tokenized = sum(end[0] == " " for end in ends if len(end) == 2) > len(ends) / 2
        self._held_out: dict[str, dict[str, frozenset[bytes]]] = {}  # split -> language -> keys

    def hold_out(self, held_out: Mapping[str, Mapping[str, Pairs]]) -> None:
        """Pairs with a sentence of these, split -> language -> pairs, are unfit from now on."""
        for split, by_lang in held_out.items():
            keys = {lang: frozenset(sentence_key(text) for text, _ in by_lang[lang]) for lang in by_lang}
            english = (english for pairs in by_lang.values() for _, english in pairs)
            self._held_out[split] = {**keys, ENGLISH: frozenset(map(sentence_key, english))}

    def pairs(
        self, lang: str, parts: Iterable[int], only: Collection[int] | None = None
    ) -> Iterator[tuple[int, str, str, str | None]]:
        """(line number, text in the language, English text, fault) of each line of the parts, or of ``only`` some."""
        sampled = self.sampled.get(lang, ())
        sides = [self.scanned[lang, side] for side in (lang, ENGLISH)]
        for part in parts:
            lines = zip(*(side.part(part) for side in sides), strict=True)
            for line, pair in enumerate(lines, start=sides[0].first_lines[part]):
                if only is None or line in only:
                    text, english = map(normalize, pair)
                    fault = "sampled for validation" if line in sampled else self._fault(lang, text, english)
                    yield line, text, english, fault

    def _fault(self, lang: str, text: str, english: str) -> str | None:
        if not (text and english):
            return "empty"
        keys = {ENGLISH: sentence_key(english), lang: sentence_key(text)}
        for split, name in ((TEST, "test"), (VALID, "validation")):
            for code, key in keys.items():
                if key in self._held_out[split][code]:
                    return f"{'English' if code == ENGLISH else 'other side'} of a {name} pair"
        return None


def sentence_key(text: str) -> bytes:
    """Equal for equal sentences, whether tokenised or not."""
    return blake2b("".join(text.replace("@-@", "-").split()).encode(), digest_size=8).digest()


def read_held_out(
    text: PlainText, langs: Sequence[str], training: TrainingText
) -> dict[str, dict[str, Pairs]]:
    """Validation and test pairs by split and language, tokenised if the training text is.

    Raises:
        CorpusError: if a set is not parallel, or holds an empty line.
    """

    def prepared(lang: str, files: Sequence[Path]) -> list[str]:
        prepare = _moses(lang) if training.is_tokenized else normalize
        to_latin = lang == "sr" and any("_Cyrl" in file.name for file in files)
        lines: list[str] = []
        for file in files:
            content = decoded_text(file.read_bytes(), where=file, mend="convert the file, or get it again")
            lines += content.rstrip("\n").split("\n")
        return [prepare(latin(line) if to_latin else line) for line in lines]

    def parallel(lang: str, files: Sequence[Path], english: Sequence[str]) -> Pairs:
        foreign = prepared(lang, files)
        counts = {lang: len(foreign), ENGLISH: len(english)}
        require_equal(counts, "a held-out set is not parallel", where=files[0], mend="get the set again")
        pairs = list(zip(foreign, english, strict=True))
        for number, pair in enumerate(pairs, start=1):
            if not all(pair):
                raise CorpusError("an empty line in a held-out set", where=f"{files[0]}, line {number}")
        return pairs

    held_out: dict[str, dict[str, Pairs]] = {VALID: {}, TEST: {}}
    valid_english = prepared(ENGLISH, [text.valid_file(ENGLISH)])
    test_english = prepared(ENGLISH, text.test_files(ENGLISH))
    for lang in langs:
        if lang in training.sampled:
            lines = training.pairs(lang, training.parts, only=training.sampled[lang])
            held_out[VALID][lang] = [
                (foreign, english) for _, foreign, english, _ in lines if foreign and english
            ]
        else:
            held_out[VALID][lang] = parallel(lang, [text.valid_file(lang)], valid_english)
        held_out[TEST][lang] = parallel(lang, text.test_files(lang), test_english)
    return held_out


def _moses(lang: str) -> Callable[[str], str]:
    """Punctuation normalised, then split off, as EC40's text was: hyphens apart, nothing escaped.

    Raises:
        CorpusError: if sacremoses is not installed.
    """
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError as error:
        raise CorpusError(
            "the training text is tokenised, so the held-out text must be too",
            got="no package sacremoses",
            mend="pip install sacremoses",
        ) from error
    normalizer, tokenizer = MosesPunctNormalizer(lang=lang), MosesTokenizer(lang=lang)
    options = {"aggressive_dash_splits": True, "escape": False, "return_str": True}
    return lambda line: tokenizer.tokenize(normalizer.normalize(normalize(line)), **options)


# Serbian is written in both scripts, letter for letter.
_LATIN_LETTERS = "a b v g d đ e ž z i j k l lj m n nj o p r s t ć u f h c č dž š"
_LATIN = dict(zip("абвгдђежзијклљмнњопрстћуфхцчџш", _LATIN_LETTERS.split(), strict=True))
_LATIN |= {cyrillic.upper(): text.capitalize() for cyrillic, text in _LATIN.items()}


def latin(text: str) -> str:
    """Serbian text in Latin script, as EC40 has it."""
    return "".join(_LATIN.get(char, char) for char in text)
