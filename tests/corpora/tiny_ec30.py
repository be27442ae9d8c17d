"""EC30 in miniature: the files of EC40, NTREX-128 and FLORES-200 by their real names, with invented text.

    python tests/corpora/tiny_ec30.py OUTPUT_DIR      # writes the three folders and prints their paths

The same every time. Each language says the same simple sentences with words of its own, in its own script;
languages of one family have most words in common.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron_spec.corpora.ec30 import LANGUAGES, EC30Language
from neuron_spec.corpora.ec30_text import latin

TIER_PAIRS = {"high": 600, "medium": 400, "low": 300}
VALID, DEV, DEVTEST = 40, 31, 30
SEED = 30

# What every language's training text holds besides clean pairs, so that every rule of cleaning has work.
FAULTY = 4  # pairs: an empty side, too long, too uneven, English of a test pair

_WORDS = """
dog cat horse farmer teacher singer river garden house bridge market forest lamp book boat coin
sees follows helps finds paints guards lifts needs carries remembers
small big red green new dark quiet strong tall white old happy
"""
_NOUNS, _VERBS, _ADJECTIVES = map(str.split, _WORDS.strip().splitlines())

# Consonants and vowels of each script (for Ethiopic: syllables) that words are made of.
_SCRIPTS = {
    "Cyrl": ("бвгджзклмнпрстфх", "аеиоу"),
    "Deva": ("कखगचजटडतदनपबमरलस", "ािीुे"),
    "Beng": ("কখগচজটডতদনপবমরলস", "ািীুে"),
    "Knda": ("ಕಖಗಚಜಟಡತದನಪಬಮರಲಸ", "ಾಿೀುೆ"),
    "Gujr": ("કખગચજટડતદનપબમરલસ", "ાિીુે"),
    "Arab": ("بتجحدرزسشصطعفقكل", "اوي"),
    "Hebr": ("בגדהזחטכלמנספצקר", "אוי"),
    "Ethi": ("ለመረሰቀበተነከወዘየደገጠፈ", "ሉሙሪሳቁቢታኑ"),
    "Latn": ("bdfghjklmnprstvz", "aeiou"),
}
_OWN_FRACTION = 0.3  # of a language's words; the others are its family's


def word(english: str, language: EC30Language) -> str:
    """The language's word: the family's syllables in the language's letters, or syllables of its own."""
    of_language = random.Random(f"{language.code} {english}")
    source = (
        of_language if of_language.random() < _OWN_FRACTION else random.Random(f"{language.family} {english}")
    )
    consonants, vowels = _SCRIPTS[language.flores.rpartition("_")[2]]
    syllables = [(source.random(), source.random()) for _ in range(source.randint(2, 3))]
    return "".join(consonants[int(c * len(consonants))] + vowels[int(v * len(vowels))] for c, v in syllables)


def english_sentences(count: int, seed: str) -> list[str]:
    """Distinct sentences of 6 to 11 words."""
    rng = random.Random(f"{SEED} {seed}")
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        phrases = [
            [rng.choice(("the", "a", "this", "every")), rng.choice(_ADJECTIVES), rng.choice(_NOUNS)]
            for _ in range(2)
        ]
        words = [*phrases[0], rng.choice(_VERBS), *phrases[1]]
        if rng.random() < 0.5:
            words += [rng.choice(("near", "behind", "below", "with")), "the", rng.choice(_NOUNS)]
        if rng.random() < 0.4:
            words.append(rng.choice(("today", "often", "never")))
        sentences[" ".join(words)] = None
    return list(sentences)


def translated(sentence: str, language: EC30Language) -> str:
    return " ".join(word(english, language) for english in sentence.split())


@dataclass(frozen=True)
class TinyEC30:
    """The folders that were written, in the shape of `neuron_spec.corpora.ec30_text.PlainText`."""

    train: Path
    valid: Path
    test: Path


def write(output: Path, *, langs: Sequence[str] = tuple(LANGUAGES), punctuation: str = "") -> TinyEC30:
    """Write ``EC40_dataset``, ``NTREX-128`` and ``flores200_dataset`` below ``output``.

    Args:
        punctuation: the end of every sentence; where given, it stands apart in the training text, as in EC40's.
    """
    folders = TinyEC30(output / "EC40_dataset", output / "NTREX-128", output / "flores200_dataset")
    held_out = english_sentences(VALID + DEV + DEVTEST, "held out")
    valid, dev, devtest = held_out[:VALID], held_out[VALID : VALID + DEV], held_out[VALID + DEV :]
    end = f" {punctuation}" if punctuation else ""

    _write(folders.valid / "newstest2019-ref.eng-US.txt", valid, punctuation)
    _write(folders.valid / "newstest2019-src.eng.txt", valid, punctuation)
    for part, sentences in (("dev", dev), ("devtest", devtest)):
        _write(folders.test / part / f"eng_Latn.{part}", sentences, punctuation)
    for language in (LANGUAGES[lang] for lang in langs):
        if language.ntrex:
            texts = [translated(sentence, language) for sentence in valid]
            _write(folders.valid / f"newstest2019-ref.{language.ntrex}.txt", texts, punctuation)
        for part, sentences in (("dev", dev), ("devtest", devtest)):
            texts = [translated(sentence, language) for sentence in sentences]
            code = language.flores
            if language.code == "sr":  # FLORES-200 has it in Cyrillic only
                code, texts = "srp_Cyrl", [cyrillic(text) for text in texts]
            _write(folders.test / part / f"{code}.{part}", texts, punctuation)
        pairs = training_pairs(language, dev[0])
        for side, name in enumerate((language.code, "en")):
            _write(folders.train / f"en-{language.code}.{name}", [pair[side] for pair in pairs], end)
    return folders


def training_pairs(language: EC30Language, test_sentence: str) -> list[tuple[str, str]]:
    """(text in the language, English text), the last `FAULTY` of them unfit."""
    held_out = set(english_sentences(VALID + DEV + DEVTEST, "held out"))
    count = TIER_PAIRS[language.tier] - FAULTY
    english = [s for s in english_sentences(count + len(held_out), language.code) if s not in held_out][
        :count
    ]
    pairs = [(translated(sentence, language), sentence) for sentence in english]
    text, sentence = pairs[0]
    return [
        *pairs,
        (text, ""),
        (" ".join([text] * 60), " ".join([sentence] * 60)),
        (text, " ".join([sentence] * 5)),
        (text, test_sentence),
    ]


_CYRILLIC = {latin(char): char for char in "абвгдезијклмнопрстуфх"}


def cyrillic(text: str) -> str:
    """Invented Serbian, which has no two-letter sounds, in Cyrillic script."""
    return "".join(_CYRILLIC.get(char, char) for char in text)


def _write(path: Path, lines: Sequence[str], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}{end if line else ''}\n" for line in lines), encoding="utf-8")


def downloaded(built: Path, output: Path) -> Path:
    """A data-bin of ours as EC30's authors ship theirs: ``ec30/fairseq-data-bin-sharded``, files ``en-de``.

    Returns:
        ``output/ec30``.
    """
    tree = output / "ec30" / "fairseq-data-bin-sharded"
    for shard in sorted((built / "data-bin").glob("shard*")):
        (tree / shard.name).mkdir(parents=True)
        for file in shard.iterdir():
            split, pair, *rest = file.name.split(".")
            name = ".".join((split, "-".join(reversed(pair.split("-"))), *rest)) if "-" in pair else file.name
            shutil.copyfile(file, tree / shard.name / name)
    return output / "ec30"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    folders = write(parser.parse_args().output)
    print(folders.train, folders.valid, folders.test, sep="\n")


if __name__ == "__main__":
    main()
