"""Home Assistant's interface messages: a real, built-in corpus of human translations.

The PyPI wheel holds one JSON file per component and language, aligned by key path with English.
Apache-2.0; read at run time, never redistributed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from neuron_spec.corpora import splitting
from neuron_spec.corpora.build import TEST, TRAIN, VALID, Corpus
from neuron_spec.corpora.checks import fault_of_pair, fault_of_text, normalize
from neuron_spec.corpora.wheels import Wheel
from neuron_spec.errors import CorpusError
from neuron_spec.languages import ENGLISH

WHEEL = Wheel("homeassistant", "2026.2.3", "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c")
DEFAULT_LANGS = ("de", "nl", "es", "pt", "cs", "ru")
# Codes hold no hyphen (directions are written de-en), so these locales get the plain code.
_LOCALES = {"zh": "zh-Hans", "sr": "sr-Latn"}

_PATH = re.compile(r"homeassistant/components/(?P<component>[^/]+)/translations/(?P<locale>[^/]+)\.json")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_PLACEHOLDER = re.compile(r"\{([^{},]*)\}")
_WORDS = range(3, 61)
_TEST_WORDS = 5


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, str):
            yield (*path, key), value


def _message(raw: str, english_names: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """A message without markup, ``{host}`` in it as ``{1}``, and the names in their order.

    Args:
        english_names: those of the English message, by which placeholders are numbered; None: its own.

    Returns:
        An empty text where it is not one plain line (ICU plural, several lines) or has a name that is not
        in the English message.
    """
    text = normalize(_LINK.sub(r"\1", raw).replace("`", "").replace("**", ""))
    names = list(dict.fromkeys(_PLACEHOLDER.findall(text)))
    order = names if english_names is None else english_names
    if "\n" in raw.strip() or "{" in _PLACEHOLDER.sub("", text) or not set(names) <= set(order):
        return "", names
    return _PLACEHOLDER.sub(lambda match: f"{{{order.index(match[1]) + 1}}}", text), names


def _fault_of_translation(english: str, text: str, earlier: str | None) -> str | None:
    """Args: earlier: another translation of the same English message."""
    if not text:
        return "empty, several lines, plural or other placeholders"
    if Counter(_PLACEHOLDER.findall(english)) != Counter(_PLACEHOLDER.findall(text)):
        return "other placeholders"
    if fault := fault_of_text(_PLACEHOLDER.sub("", text)) or fault_of_pair(english, text):
        return fault
    if earlier is not None:
        return "same English again" if earlier == text else "another translation of the same English"
    return None


class _Messages:
    """Clean messages, and how many were dropped and why."""

    def __init__(self, wheel: Path, langs: Sequence[str]) -> None:
        self.components: dict[str, set[str]] = {}  # English message -> components
        self.translations: dict[str, dict[str, str]] = {}  # English message -> language -> text
        self.dropped: dict[str, Counter[str]] = {lang: Counter() for lang in (ENGLISH, *langs)}
        lang_of = {_LOCALES.get(lang, lang): lang for lang in self.dropped}
        files: dict[str, dict[str, str]] = {}  # component -> language -> name in the wheel
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if (match := _PATH.fullmatch(name)) and match["locale"] in lang_of:
                    files.setdefault(match["component"], {})[lang_of[match["locale"]]] = name
            if absent := sorted(set(langs).difference(*files.values())):
                raise CorpusError("languages that Home Assistant does not have", got=", ".join(absent))
            for component, names in tqdm(files.items(), desc="read components", mininterval=1):
                if ENGLISH in names:
                    trees = {lang: json.loads(archive.read(name)) for lang, name in names.items()}
                    self._add(component, {lang: dict(_leaves(tree)) for lang, tree in trees.items()})

    def _add(self, component: str, texts: Mapping[str, Mapping[tuple[str, ...], str]]) -> None:
        """Args: texts: language -> key path -> message."""
        for path, raw in texts[ENGLISH].items():
            english, names = _message(raw)
            if not english:
                fault: str | None = "empty, several lines or plural"
            elif len(english.split()) not in _WORDS:
                fault = f"not {_WORDS.start} to {_WORDS.stop - 1} words"
            else:
                fault = fault_of_text(_PLACEHOLDER.sub("", english))
            if fault:
                self.dropped[ENGLISH][fault] += 1
                continue
            self.components.setdefault(english, set()).add(component)
            translations = self.translations.setdefault(english, {})
            for lang, of_lang in texts.items():
                if lang != ENGLISH and path in of_lang:
                    text, _ = _message(of_lang[path], names)
                    if fault := _fault_of_translation(english, text, translations.get(lang)):
                        self.dropped[lang][fault] += 1
                    else:
                        translations[lang] = text


def read(
    wheel: Path | None,
    *,
    langs: Sequence[str] = DEFAULT_LANGS,
    sizes: Mapping[str, int],
    seed: int,
    downloads: Path = Path(),
) -> Corpus:
    """Read, clean and split.

    Split by English message, the same for every language and direction: else the English side of
    ``de-en`` would be trained on while ``es-en`` is tested. Test and validation messages come from
    whole components held out, have at least 5 words, no placeholder, and exist in all ``langs``.

    Args:
        wheel: None: it is downloaded into ``downloads``, unless it is there.
        sizes: how many messages are for ``test`` and ``valid``.

    Raises:
        CorpusError: not the pinned wheel, or none to be had, an unknown language, or too few messages for
            the splits.
    """
    wheel = WHEEL.require(wheel, downloads)
    collected = _Messages(wheel, langs)
    messages = {en: texts for en, texts in collected.translations.items() if texts}
    eligible = [
        en
        for en, texts in messages.items()
        if len(texts) == len(langs) and len(en.split()) >= _TEST_WORDS and not _PLACEHOLDER.search(en)
    ]
    splits = splitting.hold_out_groups(
        {en: collected.components[en] for en in messages},
        eligible,
        sizes={split: sizes[split] for split in (TEST, VALID)},
        seed=seed,
    )
    # English near duplicates, and messages that share a whole translation, leak an answer.
    splits[VALID] = splitting.without_near_duplicates(splits[VALID], splits[TEST])
    held_out = splits[TEST] + splits[VALID]
    answers = {(lang, messages[en][lang].casefold()) for en in held_out for lang in langs}
    train = [
        en
        for en in splitting.without_near_duplicates(splits[TRAIN], held_out)
        if not any((lang, text.casefold()) in answers for lang, text in messages[en].items())
    ]
    shuffled = sorted(messages, key=lambda en: splitting.shuffle_key(seed, en))
    random_split = shuffled[sizes[TEST] :], shuffled[: sizes[TEST]]
    leak = {
        "similarity": "character-4-gram Jaccard on the English side",
        "random_split_for_comparison": splitting.leak_report(*random_split),
        "components_held_out": splitting.leak_report(splits[TRAIN], splits[TEST]),
        "as_built": splitting.leak_report(train, splits[TEST]),
        "train_messages_dropped_as_near_duplicates": len(splits[TRAIN]) - len(train),
    }
    assert not set(splits[TEST]) & set(train)
    splits[TRAIN] = train

    pairs = {
        split: {lang: [(messages[en][lang], en) for en in chosen if lang in messages[en]] for lang in langs}
        for split, chosen in splits.items()
    }
    # Natural tiers (ours): by the number of training pairs against the richest language's.
    trained = {lang: len(of_lang) for lang, of_lang in pairs[TRAIN].items()}
    high, medium = (fraction * max(trained.values()) for fraction in (0.75, 0.35))
    return Corpus(
        name="homeassistant",
        pairs=pairs,
        tiers={
            lang: "high" if size >= high else "medium" if size >= medium else "low"
            for lang, size in trained.items()
        },
        sources=[
            {
                "name": f"{WHEEL} (PyPI wheel)",
                "sha256": WHEEL.sha256,
                "licence": "Apache-2.0",
                "parts": "homeassistant/components/*/translations/*.json",
            }
        ],
        cleaning={lang: dict(counter.most_common()) for lang, counter in collected.dropped.items()},
        leak=leak,
    )
