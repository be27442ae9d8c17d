"""A comparison's files, ``comparison.md``, ``.csv``, ``.json`` and the figure, and differences as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import completed, read_json, write_json, write_text
from neuron_spec.directions import GROUPS, Direction
from neuron_spec.errors import ArtifactError
from neuron_spec.pages.page import Bullets, Page, Section, Table, as_markdown, plain, write_pictures
from neuron_spec.pages.tables import Cell, bounds, csv_text, shown_p, signed
from neuron_spec.scoring.bootstrap import BOOTSTRAP_SEED
from neuron_spec.scoring.comparison import (
    ALPHA,
    LOSS,
    METRICS,
    SAMPLES,
    TIE,
    WIN,
    Comparison,
    Difference,
    DirectionComparison,
    GroupComparison,
    SeedResult,
    compare,
    comparison_signature,
    counted_results,
)
from neuron_spec.scoring.systems import System
from neuron_spec.statistics import FEWEST_DIRECTIONS, OverSeeds

COMPARISON = "comparison"  # .md, .csv, .json, .png, .svg


def write_comparison(output_dir: str | Path, comparison: Comparison) -> None:
    """Write ``comparison.png``, ``.svg``, ``.md``, ``.csv`` and, last, ``.json``: the mark of completeness."""
    # Drawing is slow to import.
    from neuron_spec.pages.style import drawn
    from neuron_spec.scoring.figures import score_differences

    path = Path(output_dir) / COMPARISON
    write_pictures(path.parent, [drawn(COMPARISON, "", score_differences(comparison))])
    write_text(path.with_suffix(".md"), comparison_markdown(comparison))
    rows = [
        {
            "system": row.system,
            "baseline_system": comparison.baseline,
            "metric": row.metric,
            "direction": str(row.direction),
            "group": row.group,
            "tier": row.tier,
            "family": row.family,
            "seed": number,
            **asdict(seed),
        }
        for row in comparison.directions
        for number, seed in enumerate(row.seeds, start=1)
    ]
    write_text(path.with_suffix(".csv"), csv_text(list(rows[0]), [list(row.values()) for row in rows]))
    write_json(path.with_suffix(".json"), as_plain(comparison))


def compared(
    folder: Path, systems: Sequence[System], *, samples: int | None = None, alpha: float = ALPHA
) -> Comparison:
    """The comparison in ``folder``, made now if it is not there; ``systems`` as `comparable` returns them.

    Raises:
        ArtifactError: if another comparison is there.
        NeuronSpecError: as `compare`.
    """
    samples = SAMPLES if samples is None else samples
    path = folder / f"{COMPARISON}.json"
    signature = comparison_signature(systems, samples=samples, alpha=alpha)
    if not completed(path, signature, what="comparison", where=folder):
        write_comparison(folder, compare(systems, signature=signature, samples=samples, alpha=alpha))
    return read_comparison(path)


def read_comparison(path: Path) -> Comparison:
    """Read a ``comparison.json``.

    Raises:
        ArtifactError: if it is missing or not of the form that neuron-spec writes.
    """
    content = read_json(path, "comparison")
    try:
        for row in (*content["directions"], *content["groups"]):
            row |= {name: OverSeeds(**row[name]) for name in ("baseline", "score", "difference")}
        for row in content["directions"]:
            row["direction"] = Direction.parse(row["direction"])
            row["seeds"] = [SeedResult(**seed) for seed in row["seeds"]]
        for row in content["groups"]:
            row["interval"] = row["interval"] and tuple(row["interval"])
        content["directions"] = [DirectionComparison(**row) for row in content["directions"]]
        content["groups"] = [GroupComparison(**row) for row in content["groups"]]
        return Comparison(**content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            "a comparison is not of the form that neuron-spec writes",
            where=path,
            got=f"{type(error).__name__}: {error}",
            mend="delete its folder; it is made again",
        ) from error


def as_plain(comparison: Comparison) -> dict[str, Any]:
    """What ``comparison.json`` holds."""
    plain = asdict(comparison)
    for row in plain["directions"]:
        row["direction"] = str(Direction(**row["direction"]))
    return plain


# Tables --------------------------------------------------------------------------------------


def spread(of: OverSeeds) -> Cell:
    """``16.5``, or ``16.5 ± 0.3`` over several seeds."""
    return of.mean if of.std is None else f"{of.mean:.1f} ± {of.std:.1f}"


def group_cells(kind: str, name: str, group: str) -> list[Cell]:
    """What a mean is over: a tier, a family or all languages; and of which directions."""
    arrows = {each.code: each.arrow for each in GROUPS}
    return ["all languages" if kind in ("overall", "group") else name, arrows.get(group, group)]


def difference_cells(row: Difference) -> list[Cell]:
    """Difference in BLEU, interval and p; unknown ones are None."""
    return [
        signed(row.difference),
        None if row.low is None or row.high is None else bounds(row.low, row.high),
        None if row.p_value is None else shown_p(row.p_value),
    ]


def difference_table(
    baseline: str, rows: Sequence[Difference], further: Mapping[str, Sequence[Cell]] | None = None
) -> Table:
    """A line for each system.

    Args:
        further: name of a column -> its cells.
    """
    columns: dict[str, Sequence[Cell]] = {
        "system": [row.system for row in rows],
        "BLEU": [spread(OverSeeds(row.bleu, row.bleu_std)) for row in rows],
        "chrF++": [row.chrf for row in rows],
    }
    differences = zip(*map(difference_cells, rows), strict=True)
    columns |= zip((f"BLEU - {baseline}", "95% interval", "p"), differences, strict=True)
    columns |= {"wins": [row.wins for row in rows], "losses": [row.losses for row in rows], **(further or {})}
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


# comparison.md -------------------------------------------------------------------------------


def comparison_markdown(comparison: Comparison) -> str:
    """What `sections_of` gives, each a page."""
    pages = (Page(section.title, section.blocks, section.sections) for section in sections_of(comparison))
    return "\n".join(map(as_markdown, pages))


def sections_of(comparison: Comparison) -> list[Section]:
    """Of each system the groups, then every direction; then how to read them."""
    sections = []
    for system in comparison.systems:
        bleu, chrf = (_groups(comparison, system, metric) for metric in METRICS)
        details = [Section("chrF++, means", [chrf], is_folded=True)]
        for metric, title in METRICS.items():
            table = _directions(comparison, system, metric)
            details.append(Section(f"{title}, every direction", [table], is_folded=True))
        sections.append(Section(f"{system} against {comparison.baseline}", [bleu], details))
    return [*sections, Section("How to read this", [Bullets(_notes(comparison))], is_folded=True)]


def _groups(comparison: Comparison, system: str, metric: str) -> Table:
    header = (f"{METRICS[metric]}: mean over", "group", comparison.baseline, system, "difference")
    return Table(
        (*header, "95 % interval", "p", "win/tie/loss", "after Holm", "directions"),
        [
            [
                *group_cells(row.kind, row.name, row.group),
                spread(row.baseline),
                spread(row.score),
                _signed(row.difference),
                row.interval and bounds(*row.interval),
                shown_p(row.p_value),
                "/".join(map(str, row.results.values())),
                "/".join(map(str, row.holm_results.values())),
                row.directions,
            ]
            for row in comparison.groups
            if (row.system, row.metric) == (system, metric)
        ],
    )


def _signed(of: OverSeeds) -> str:
    """``+0.25``, or ``+0.25 ± 0.10`` over several seeds."""
    return f"{of.mean:+z.2f}" + ("" if of.std is None else f" ± {of.std:.2f}")


def _directions(comparison: Comparison, system: str, metric: str) -> Table:
    header = ("direction", "family", comparison.baseline, system, "difference", "95 % interval")
    return Table(
        (*header, "sacreBLEU's p", "p", "Holm p", "result"),
        [
            [
                str(row.direction),
                row.family,
                spread(row.baseline),
                spread(row.score),
                _signed(row.difference),
                bounds(row.low, row.high),
                *(
                    ", ".join(shown_p(getattr(seed, p)) for seed in row.seeds)
                    for p in ("sacrebleu_p_value", "p_value", "holm_p_value")
                ),
                row.seeds[0].result if len(row.seeds) == 1 else _counted([seed.result for seed in row.seeds]),
            ]
            for row in comparison.directions
            if (row.system, row.metric) == (system, metric)
        ],
    )


def _counted(results: Sequence[str]) -> str:
    """``2 wins, 1 tie, 0 losses``."""
    plural = {WIN: "wins", TIE: "ties", LOSS: "losses"}
    counts = counted_results(results).items()
    return ", ".join(f"{count} {result if count == 1 else plural[result]}" for result, count in counts)


def _notes(comparison: Comparison) -> list[str]:
    alpha, parameters = comparison.alpha, comparison.signature["parameters"]
    directions, samples = len(parameters["directions"]), parameters["bootstrap"]
    notes = [
        f"Difference: system minus {plain(comparison.baseline)}.",
        "**Directions** ask about sentences: on other test sentences of this kind, would these trained models "
        f"still differ? p and interval are of the samples of sacreBLEU's paired bootstrap ({samples}, seed "
        f"{BOOTSTRAP_SEED}). win, loss: p < {alpha:g}; Holm p is adjusted over the {directions} directions.",
        "p is ours and two-sided: how often a resampled difference is as far from their mean as the true one from 0. "
        "sacreBLEU's own, beside it, is one-sided in effect: two equally good systems had it below 0.05 in 11 % of "
        "measured cases, and p in 5 %. "
        f"Of {directions} directions without any difference, about {alpha * directions:.1f} show as win or loss.",
        "**Groups** ask about directions: is the system better over directions like these? p is of a two-sided "
        "sign-flip test on the directions' differences, the interval of a bootstrap over directions; both take "
        "directions as independent, though they share one model and often sentences, and are not adjusted "
        "for the number of groups. With n directions p is never below 2 / 2^n: "
        f"groups of fewer than {FEWEST_DIRECTIONS} cannot reach 0.05, and show no interval. That of a dozen is "
        "still somewhat narrow.",
    ]
    notes.append(
        "±: sample standard deviation over seeds. Wins, ties and losses count each seed. A group's p is of its "
        "directions' means over seeds."
        if comparison.seeds > 1
        else "One seed: how much a training run differs from the next is not in any of these figures."
    )
    smallest = min(1.0, directions / (samples + 1))
    if smallest >= alpha:
        notes.append(
            f"No Holm p can be below {alpha:g} with {samples} samples for {directions} directions: the smallest is "
            f"{smallest:.3f}. More --bootstrap would tell."
        )
    for metric, signatures in comparison.sacrebleu.items():
        notes += [f"{METRICS[metric]}: `{signature}`" for signature in signatures]
    return notes
