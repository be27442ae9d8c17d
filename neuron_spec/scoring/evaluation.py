"""Evaluations: the scores of one system on several directions, their means over groups of these, and their files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from neuron_spec.artifacts import (
    HYPOTHESES,
    REFERENCES,
    SCORES_CSV,
    SCORES_JSON,
    SCORES_TABLE,
    SIGNATURE,
    SOURCES,
    is_already_here,
    read_json,
    require_file,
    signature,
    signature_in,
    write_json,
    write_text,
)
from neuron_spec.directions import GROUPS, Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError, NeuronSpecError
from neuron_spec.languages import UNKNOWN, language
from neuron_spec.pages.tables import Cell, csv_text, markdown_table, percent
from neuron_spec.scoring.endpoints import SENTENCES, SentenceScores
from neuron_spec.scoring.language_id import LanguageIdentifier
from neuron_spec.scoring.logs import read_text
from neuron_spec.scoring.metrics import OFFICIAL_TOKENIZER, DirectionScore, Outputs, detokenized, score

ALL = "all"


@dataclass(frozen=True)
class GroupMean:
    """Unweighted means over the ``directions`` directions of a group.

    ``kind`` is overall, group, tier or family; ``name`` the tier or family, or the group itself;
    ``group`` is O2M, M2O or X2Y, or ``all`` where they are not told apart.
    """

    kind: str
    name: str
    group: str
    directions: int
    bleu: float
    chrf: float
    empty_fraction: float
    off_target_fraction: float | None


def summarize(
    scores: Sequence[DirectionScore],
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> list[GroupMean]:
    """Means overall, per direction group, and per tier and family of the non-English language.

    Tiers and families are given for each group and for all of it; directions without English have
    neither. A language not in ``families`` has the language table's family. Without ``tiers`` there are
    none; with them, a language not in it has the tier ``unknown``.
    """
    means = []
    for kind, name, group, members in grouped(scores, families, tiers):
        off_target = [s.off_target_fraction for s in members if s.off_target_fraction is not None]
        means.append(
            GroupMean(
                *(kind, name, group, len(members)),
                bleu=fmean(s.bleu for s in members),
                chrf=fmean(s.chrf for s in members),
                empty_fraction=fmean(s.empty_fraction for s in members),
                # A mean over the few directions that have a rate would pass for one over all.
                off_target_fraction=fmean(off_target) if len(off_target) == len(members) else None,
            )
        )
    return means


def grouped(
    scores: Sequence[DirectionScore],
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str, list[DirectionScore]]]:
    """Kind, name, group (see `GroupMean`) and members of every group that `summarize` shows; none is empty."""
    parts = [("overall", ALL, ALL, list(scores))]
    parts += [("group", g.code, g.code, [s for s in scores if s.group == g.code]) for g in GROUPS]
    named = {"family": [family_in(families, s.direction) for s in scores]}
    if tiers:  # not every corpus has any
        named = {"tier": [tier_in(tiers, s.direction) for s in scores], **named}
    for kind, names in named.items():
        for name in sorted({name for name in names if name is not None}):
            members = [s for s, its_name in zip(scores, names, strict=True) if its_name == name]
            parts += [(kind, name, g.code, [s for s in members if s.group == g.code]) for g in GROUPS]
            parts.append((kind, name, ALL, members))
    return (part for part in parts if part[-1])


def tier_in(tiers: Mapping[str, str], direction: Direction) -> str | None:
    """Of the language that is not English; None where neither is."""
    return None if direction.foreign is None else tiers.get(direction.foreign, UNKNOWN)


def family_in(families: Mapping[str, str] | None, direction: Direction) -> str | None:
    """As `tier_in`; the language table's for a language that is not in ``families``."""
    code = direction.foreign
    return None if code is None else (families or {}).get(code, language(code).family)


@dataclass(frozen=True)
class Evaluation:
    """One system on several directions; ``outputs`` and ``scores`` are in the same order.

    ``sentences`` has what is known of each sentence beside its texts, of the directions of which anything is.
    ``off_target_note`` says why there is no off-target rate, where there is none.
    """

    signature: dict[str, Any]
    outputs: list[Outputs]
    scores: list[DirectionScore]
    families: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)
    sentences: dict[Direction, SentenceScores] = field(default_factory=dict)
    off_target_note: str | None = None

    @property
    def summary(self) -> list[GroupMean]:
        return summarize(self.scores, self.families, self.tiers)


def evaluate(
    outputs: Sequence[Outputs],
    *,
    signature: Mapping[str, Any],
    official: bool = False,
    language_id: LanguageIdentifier | None = None,
    off_target_note: str | None = None,
    families: Mapping[str, str] | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score every direction. The evaluation holds the texts as given, before any detokenizing.

    Raises:
        NeuronSpecError: as `score` and `detokenized`.
        DirectionError: if there is no direction, or one is given twice.
    """
    directions = [str(output.direction) for output in outputs]
    if not directions or len(set(directions)) < len(directions):
        raise DirectionError(
            "an evaluation needs each direction once",
            got=", ".join(directions) or "none",
            expected="one or more, each with one file",
        )
    texts = [detokenized(output) if official else output for output in outputs]
    tokenizer = OFFICIAL_TOKENIZER if official else None
    return Evaluation(
        signature=dict(signature),
        outputs=list(outputs),
        scores=[score(text, language_id=language_id, tokenizer=tokenizer) for text in texts],
        families=dict(families or {}),
        tiers=dict(tiers or {}),
        off_target_note=off_target_note,
    )


# ------------------------------------------------------------------ files


def _signatures(scores: Sequence[DirectionScore]) -> dict[str, list[str]]:
    """Metric -> sacreBLEU's signatures."""
    return {m: sorted({getattr(score, f"{m}_signature") for score in scores}) for m in ("bleu", "chrf")}


def scores_table(evaluation: Evaluation) -> str:
    """One evaluation in full: means, tiers and families first, then every direction, then how."""
    names = ("BLEU", "chrF++", "off-target", "empty")
    parts = []
    for title, kinds in (
        ("Directions by group", ("overall", "group")),
        ("Tiers", ("tier",)),
        ("Families of the non-English language", ("family",)),
    ):
        means = [row for row in evaluation.summary if row.kind in kinds]
        if means:
            header = ("mean over", "group", "directions", *names)
            rows = [[row.name, row.group, row.directions, *_means(row)] for row in means]
            parts.append(f"## {title}\n\n" + markdown_table(header, rows))

    directions: list[list[Cell]] = [
        [str(row.direction), row.sentences, *_means(row), percent(row.language_id_accuracy_fraction, 1)]
        for row in evaluation.scores
    ]
    columns = ("direction", "sentences", *names, "references identified")
    signatures = zip(("BLEU", "chrF++"), _signatures(evaluation.scores).values(), strict=True)
    parts += [
        "## Directions\n\n" + markdown_table(columns, directions),
        "\n".join(f"- {metric}: `{each}`" for metric, of_metric in signatures for each in of_metric),
        "Means are unweighted over directions. Off-target: hypotheses identified as another language than\n"
        "the target; judge it by the share of references that are identified as the target.",
    ]
    if evaluation.off_target_note:
        parts.append(f"Off-target is not measured: {evaluation.off_target_note}.")
    return "\n\n".join(parts) + "\n"


def _means(row: DirectionScore | GroupMean) -> list[Cell]:
    return [row.bleu, row.chrf, percent(row.off_target_fraction, 1), percent(row.empty_fraction, 1)]


def write_evaluation(output_dir: str | Path, evaluation: Evaluation) -> None:
    """Write texts, ``table.md``, ``scores.csv`` and, last, ``scores.json``: the mark of completeness."""
    folder = Path(output_dir)
    # Until the end nothing here is complete, whatever an earlier run left.
    (folder / SCORES_JSON).unlink(missing_ok=True)
    for outputs in evaluation.outputs:
        # Their presence says whether sources are known, so none may be left from an earlier run.
        _text_file(folder, SOURCES, outputs.direction).unlink(missing_ok=True)
        for name, lines in outputs.texts().items():
            write_text(_text_file(folder, name, outputs.direction), "".join(line + "\n" for line in lines))
        path = folder / SENTENCES / f"{outputs.direction}.csv"
        path.unlink(missing_ok=True)
        if of_sentences := evaluation.sentences.get(outputs.direction):
            of_sentences.write(path)
    write_text(folder / SCORES_TABLE, scores_table(evaluation))
    families, tiers = evaluation.families, evaluation.tiers
    plain = {
        score.direction: {f.name: getattr(score, f.name) for f in fields(score) if f.name != "direction"}
        for score in evaluation.scores
    }
    rows = [
        [str(d), d.group.code, tier_in(tiers, d), family_in(families, d), *values.values()]
        for d, values in plain.items()
    ]
    header = ("direction", "group", "tier", "family", *next(iter(plain.values())))
    write_text(folder / SCORES_CSV, csv_text(header, rows))
    content = {
        "signature": evaluation.signature,
        "sacrebleu": _signatures(evaluation.scores),
        "directions": {str(direction): values for direction, values in plain.items()},
        "summary": [asdict(mean) for mean in evaluation.summary],
        "families": families,
        "tiers": tiers,
        **({"off_target_note": note} if (note := evaluation.off_target_note) else {}),
    }
    write_json(folder / SCORES_JSON, content)


def is_evaluated(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds the whole evaluation; ``signature.json`` says whose it is before the scores are there.

    Raises:
        ArtifactError: if it is another evaluation's, or unsigned.
    """
    mark = folder / SIGNATURE
    is_unsigned = not mark.is_file() and any((folder / name).exists() for name in (HYPOTHESES, SCORES_JSON))
    signature_here = {} if is_unsigned else signature_in(mark, "signature of an evaluation")
    is_claimed = is_already_here(folder, signature_here, wanted, what="evaluation")
    is_whole = is_claimed and (folder / SCORES_JSON).is_file()
    if is_whole:
        print(f"{folder}: complete already", file=sys.stderr)
    return is_whole


def read_evaluation(output_dir: str | Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        ArtifactError: if the folder holds no complete evaluation, or a file in it is damaged.
    """
    folder = Path(output_dir)
    mend = "run `neuron-spec evaluate` to the end"
    content = read_json(require_file(folder / SCORES_JSON, "complete evaluation", mend), "scores")
    try:
        named = content["directions"].items()
        scores = [DirectionScore(direction=Direction.parse(name), **values) for name, values in named]
        made_from, families, tiers = content["signature"], content["families"], content["tiers"]
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            "scores are not of the form that neuron-spec writes",
            where=folder / SCORES_JSON,
            got=f"{type(error).__name__}: {error}",
            expected=f"directions with {', '.join(f.name for f in fields(DirectionScore)[1:])}",
            mend=mend,
        ) from error
    paths = {s.direction: (folder / SENTENCES / f"{s.direction}.csv", s.sentences) for s in scores}
    sentences = {d: SentenceScores.read(path, n) for d, (path, n) in paths.items() if path.is_file()}
    outputs, note = [_read_outputs(folder, s) for s in scores], content.get("off_target_note")
    return Evaluation(made_from, outputs, scores, families, tiers, sentences, note)


def _read_outputs(folder: Path, of: DirectionScore) -> Outputs:
    has_sources = _text_file(folder, SOURCES, of.direction).is_file()
    texts = {}
    for name in (HYPOTHESES, REFERENCES, *([SOURCES] if has_sources else [])):
        path = require_file(_text_file(folder, name, of.direction), f"{name} of an evaluation")
        *lines, rest = read_text(path).split("\n")
        if rest or len(lines) != of.sentences:
            raise ArtifactError(
                f"{name} of an evaluation are damaged",
                where=path,
                got=f"{len(lines)} lines",
                expected=f"{of.sentences} lines, as {SCORES_JSON} says",
                mend="evaluate again",
            )
        texts[name] = lines
    return Outputs(of.direction, texts[HYPOTHESES], texts[REFERENCES], texts.get(SOURCES))


def _text_file(folder: Path, name: str, direction: Direction) -> Path:
    return folder / name / f"{direction}.txt"


# ------------------------------------------------------------------ of some directions each, put together


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """One system's evaluation of all directions, in the order of the parts, for ``neuron-spec compare``.

    Raises:
        DirectionError: if a direction is in two.
        NeuronSpecError: if they were not translated and scored in the same way.
    """
    names = ["+".join(str(score.direction) for score in part.scores) for part in parts]
    settings = [
        {
            key: value
            for key, value in part.signature["parameters"].items()
            if key not in ("direction", "directions")
        }
        for part in parts
    ]
    for name, of_part in zip(names, settings, strict=True):
        if of_part != settings[0]:
            raise NeuronSpecError(
                "evaluations made in different ways are not one system's",
                where=name,
                got=of_part,
                expected=f"{settings[0]}, as of {names[0]}",
                mend="evaluate all with the same flags",
            )
    scores = [score for part in parts for score in part.scores]
    directions = parse_directions(str(score.direction) for score in scores)
    # Not "data": the hash of all directions' files at once, which no part knows.
    inputs = {
        f"{key} of {name}": value
        for name, part in zip(names, parts, strict=True)
        for key, value in part.signature["inputs"].items()
    }
    parameters = {**settings[0], "directions": [str(direction) for direction in directions]}
    made_from = signature(parts[0].signature["stage"], inputs=inputs, parameters=parameters)
    outputs = [outputs for part in parts for outputs in part.outputs]
    sentences = {direction: of for part in parts for direction, of in part.sentences.items()}
    return replace(parts[0], signature=made_from, outputs=outputs, scores=scores, sentences=sentences)


def join(folders: Sequence[Path], output: Path) -> Evaluation:
    """`joined`, from folders into ``output``; what is complete there is left.

    Raises:
        ArtifactError: if an evaluation is incomplete, or ``output`` holds another.
        DirectionError, NeuronSpecError: as `joined`.
    """
    together = joined([read_evaluation(folder) for folder in folders])
    if not is_evaluated(output, together.signature):
        write_joined(output, together)
    return together


def write_joined(output: Path, together: Evaluation) -> None:
    """Write it as ``neuron-spec evaluate`` would."""
    write_json(output / SIGNATURE, together.signature)
    write_evaluation(output, together)
