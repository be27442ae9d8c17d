"""From hypotheses and references to scores: BLEU and chrF++ (0-100), off-target and empty rates (0-1)."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from neuron_spec.artifacts import HYPOTHESES, REFERENCES, SOURCES
from neuron_spec.directions import Direction, as_directions
from neuron_spec.errors import NeuronSpecError
from neuron_spec.languages import language
from neuron_spec.scoring.language_id import LanguageIdentifier

OFFICIAL_TOKENIZER = "13a"
# Scripts in which 13a cannot find the words; every other one is scored with 13a.
_TOKENIZERS = {"Han": "zh", "Japanese": "ja-mecab", "Hangul": "ko-mecab"}
_HAN_OR_KANA = re.compile("[\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Outputs:
    """What a system wrote for one direction: line i of each list is about test sentence i.

    Raises:
        NeuronSpecError: if the lists are empty or of different length, or a text holds a line break; or if the direction,
            by which files are named, is none.
    """

    direction: Direction
    hypotheses: list[str]
    references: list[str]
    sources: list[str] | None = None

    def __post_init__(self) -> None:
        as_directions([self.direction])
        lengths = {len(lines) for lines in self.texts().values()}
        if lengths == {0} or len(lengths) > 1:
            raise NeuronSpecError(
                "hypotheses, references and sources do not belong together",
                where=self.direction,
                got=", ".join(f"{len(lines)} {name}" for name, lines in self.texts().items()),
                expected="one of each per test sentence, and at least one sentence",
            )
        for name, lines in self.texts().items():
            broken = next((i for i, line in enumerate(lines) if "\n" in line), None)
            if broken is not None:
                raise NeuronSpecError(
                    "a line break inside a sentence",
                    where=f"{self.direction}, {name}, sentence {broken}",
                    got=repr(lines[broken]),
                    expected="one line per sentence",
                )

    def texts(self) -> dict[str, list[str]]:
        """Name -> lines, of those that are known."""
        texts = {HYPOTHESES: self.hypotheses, REFERENCES: self.references}
        return texts if self.sources is None else {**texts, SOURCES: self.sources}


@dataclass(frozen=True)
class DirectionScore:
    """Scores of one direction. ``*_tokens`` count words as BLEU's tokenizer sees them.

    ``nll`` is the teacher-forced negative log-likelihood in nats per target token without the language token,
    ``tag_nll`` that token's own, ``bits_per_character`` the former in bits per character of the references; None where
    no model was asked (scored logs, evaluations of earlier versions). ``length_ratio`` is of hypotheses to references in
    words, None without any, and ``brevity_penalty`` BLEU's factor (0-1). ``comet`` is None where it was not asked for.
    """

    direction: Direction
    bleu: float
    chrf: float
    sentences: int
    hypothesis_tokens: int
    reference_tokens: int
    empty_fraction: float
    off_target_fraction: float | None
    language_id_accuracy_fraction: float | None
    bleu_signature: str
    chrf_signature: str
    length_ratio: float | None = None
    brevity_penalty: float | None = None
    nll: float | None = None
    tag_nll: float | None = None
    bits_per_character: float | None = None
    comet: float | None = None

    @property
    def group(self) -> str:
        """``O2M`` out of English, ``M2O`` into it, ``X2Y`` between two other languages."""
        return self.direction.group.code


def score(
    outputs: Outputs, *, language_id: LanguageIdentifier | None = None, tokenizer: str | None = None
) -> DirectionScore:
    """BLEU, chrF++ (word order 2) and the rates of empty and off-target hypotheses.

    A hypothesis is off target if it is not empty and identified as another language than the target;
    the rate means nothing without ``language_id_accuracy_fraction``, the share of the references that
    are identified as the target. Both are None without ``language_id``. ``tokenizer`` is sacreBLEU's;
    by default the one for the target language.

    Raises:
        NeuronSpecError: if a tokenizer is not installed or unknown.
        CorpusError: if ``language_id`` does not know the target language.
    """
    target = outputs.direction.target
    bleu = bleu_metric(target, tokenizer)
    chrf = CHRF(word_order=2)
    bleu_score = bleu.corpus_score(outputs.hypotheses, [outputs.references])
    chrf_score = chrf.corpus_score(outputs.hypotheses, [outputs.references])

    written = [text for text in outputs.hypotheses if text.strip()]
    sentences = len(outputs.hypotheses)
    off_target = accuracy = None
    if language_id is not None:
        accuracy = language_id.accuracy({target: outputs.references})[target]
        off_target = sum(language != target for language in language_id.identify(written)) / sentences
    return DirectionScore(
        direction=outputs.direction,
        bleu=bleu_score.score,
        chrf=chrf_score.score,
        sentences=sentences,
        hypothesis_tokens=bleu_score.sys_len,
        reference_tokens=bleu_score.ref_len,
        empty_fraction=(sentences - len(written)) / sentences,
        off_target_fraction=off_target,
        language_id_accuracy_fraction=accuracy,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        **lengths(bleu_score.sys_len, bleu_score.ref_len),
    )


def say_words_not_found(outputs: Sequence[Outputs]) -> None:
    """Name on stderr the directions whose references are Chinese or Japanese by their letters, but not by their code."""
    for of in outputs:
        text = "".join("".join(of.references).split())
        if language(of.direction.target).script in _TOKENIZERS:
            continue
        if 2 * len(_HAN_OR_KANA.findall(text)) > len(text):
            print(
                f"warning: {of.direction}: BLEU is by {OFFICIAL_TOKENIZER}, which finds no words in such text, and "
                f"means nothing: {of.direction.target} is not known for Chinese (zh) or Japanese (ja)",
                file=sys.stderr,
            )


def lengths(hypothesis_tokens: int, reference_tokens: int) -> dict[str, float | None]:
    """``length_ratio`` and ``brevity_penalty`` of a `DirectionScore`, by BLEU's formula (Papineni et al. 2002)."""
    is_short, has_words = hypothesis_tokens < reference_tokens, hypothesis_tokens > 0
    shortened = math.exp(1 - reference_tokens / hypothesis_tokens) if has_words else 0.0
    return {
        "length_ratio": hypothesis_tokens / reference_tokens if reference_tokens else None,
        "brevity_penalty": shortened if is_short else 1.0,
    }


def bleu_metric(
    target: str, tokenizer: str | None = None, references: Sequence[Sequence[str]] | None = None
) -> BLEU:
    """sacreBLEU's BLEU; with ``references`` it keeps their n-grams; without ``tokenizer`` it has the language's.

    Raises:
        NeuronSpecError: if a package that the tokenizer needs is not installed.
    """
    tokenizer = tokenizer or _TOKENIZERS.get(language(target).script, OFFICIAL_TOKENIZER)
    try:
        return BLEU(tokenize=tokenizer, references=references)
    except RuntimeError as error:
        raise NeuronSpecError(
            "the BLEU tokenizer of a target language is not installed",
            where=f"target language {target}",
            got=f"sacreBLEU tokenizer {tokenizer!r} without its packages",
            mend=f'pip install "sacrebleu[{tokenizer.partition("-")[0]}]"',
        ) from error


def detokenized(outputs: Outputs) -> Outputs:
    """All texts through the Moses detokenizer of their language.

    As the official EC30 figures were scored, with 13a for every language. The references are thereby changed
    too ("9: 30 am"), so scores are comparable with those figures and with no others. Sources, which no figure of theirs
    looks at, are of one kind with the rest.

    Raises:
        NeuronSpecError: if sacremoses is not installed.
    """
    try:
        from sacremoses import MosesDetokenizer
    except ImportError as error:
        raise NeuronSpecError(
            "official scoring needs the Moses detokenizer",
            got="no package sacremoses",
            mend="pip install sacremoses",
        ) from error

    def by_language(lang: str, lines: Sequence[str]) -> list[str]:
        moses = MosesDetokenizer(
            lang=language(lang).code
        )  # its rules for apostrophes and clitics depend on it
        return [moses.detokenize(line.split()) for line in lines]

    source, target = outputs.direction.source, outputs.direction.target
    return replace(
        outputs,
        hypotheses=by_language(target, outputs.hypotheses),
        references=by_language(target, outputs.references),
        sources=outputs.sources and by_language(source, outputs.sources),
    )
