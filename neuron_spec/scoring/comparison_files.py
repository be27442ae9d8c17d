"""A comparison's files, ``comparison.md``, ``.csv``, ``.json`` and the figure, and differences as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuron_spec.arguments import ALPHA, SAMPLES
from neuron_spec.artifacts import SCORES_JSON, completed, read_json, write_json, write_text
from neuron_spec.directions import GROUPS, Direction, is_direction
from neuron_spec.errors import ArtifactError
from neuron_spec.forms import form_of, require_form, well_formed
from neuron_spec.pages.page import (
    Block,
    Bullets,
    Page,
    Paragraph,
    Section,
    Table,
    as_markdown,
    plain,
    write_pictures,
)
from neuron_spec.pages.tables import Cell, bounds, counted, csv_text, fixed, shown_p, signed
from neuron_spec.scoring.bootstrap import BOOTSTRAP_SEED
from neuron_spec.scoring.comparison import (
    FEW_SENTENCES,
    LOSS,
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
    is_same_score,
)
from neuron_spec.scoring.endpoints import ENDPOINTS, NLL, OF_TEXTS, Endpoint
from neuron_spec.scoring.systems import System
from neuron_spec.statistics import FEWEST_SEEDS, POWER, OverSeeds, Uncertainty

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
        ArtifactError: if another comparison is there, or of other scores than the systems'.
        NeuronSpecError: as `compare`.
    """
    samples = SAMPLES if samples is None else samples
    path = folder / f"{COMPARISON}.json"
    signature = comparison_signature(systems, samples=samples, alpha=alpha)
    if not completed(path, signature, what="comparison", where=folder):
        write_comparison(folder, compare(systems, signature=signature, samples=samples, alpha=alpha))
    comparison = read_comparison(path)
    with well_formed("a comparison", path):  # rows of what is not compared
        _require_scores_of(comparison, systems)
    return comparison


def _require_scores_of(comparison: Comparison, systems: Sequence[System]) -> None:
    """A signature is of texts; that the scores beside them are those that were compared is seen here.

    Raises:
        ArtifactError: if not.
    """
    of_name = {system.name: system for system in systems}
    at = {str(score.direction): number for number, score in enumerate(systems[0].seeds[0].scores)}
    for row in comparison.directions:
        for number, seed in enumerate(row.seeds):
            for name, compared_score in ((comparison.baseline, seed.baseline), (row.system, seed.score)):
                system = of_name[name]
                i = number % len(system.seeds)
                stored = getattr(system.seeds[i].scores[at[str(row.direction)]], row.metric)
                if not is_same_score(stored, compared_score):
                    raise ArtifactError(
                        "scores of an evaluation are not those that were compared",
                        where=f"{system.label(i)}, {row.direction}, {row.metric}",
                        got=f"{stored} in {SCORES_JSON}",
                        expected=f"{compared_score}, as in {COMPARISON}.json, of the same texts",
                        mend="evaluate again: its files were changed; or delete the comparison, if it was",
                    )


_FORM = form_of(
    Comparison,
    but={
        "directions": [
            form_of(DirectionComparison, but={"direction": is_direction, "seeds": [form_of(SeedResult), 1]}),
            1,
        ],
        "groups": [form_of(GroupComparison), 1],
    },
)


def read_comparison(path: Path) -> Comparison:
    """Read a ``comparison.json``.

    Those of earlier versions have no joint interval; what they called p over directions was a sign-flip test's.

    Raises:
        ArtifactError: if it is missing or not of the form that neuron-spec writes.
    """
    content = read_json(path, "comparison")
    if isinstance(content, dict) and isinstance(groups := content.get("groups"), list):
        for row in groups:
            if (
                isinstance(row, dict) and "interval" in row
            ):  # of an earlier version: over directions, as if a sample
                del row["interval"]
                row |= {
                    "sign_flip_p_value": row.pop("p_value", None),
                    "over_sentences": None,
                    "over_seeds": None,
                }
    require_form(content, _FORM, "a comparison", path, mend="delete its folder; it is made again")
    for row in (*content["directions"], *content["groups"]):
        row |= {name: OverSeeds(**row[name]) for name in ("baseline", "score", "difference")}
    for row in content["directions"]:
        row["direction"] = Direction.parse(row["direction"])
        row["seeds"] = [SeedResult(**seed) for seed in row["seeds"]]
    for row in content["groups"]:
        for name in ("over_sentences", "over_seeds"):
            row[name] = row[name] and Uncertainty(**row[name])
    content["directions"] = [DirectionComparison(**row) for row in content["directions"]]
    content["groups"] = [GroupComparison(**row) for row in content["groups"]]
    return Comparison(**content)


def as_plain(comparison: Comparison) -> dict[str, Any]:
    """What ``comparison.json`` holds."""
    plain = asdict(comparison)
    for row in plain["directions"]:
        row["direction"] = str(Direction(**row["direction"]))
    return plain


# Tables --------------------------------------------------------------------------------------


def spread(of: OverSeeds, decimals: int = 1) -> str:
    """``16.5``, or ``16.5 ± 0.3`` over several seeds."""
    return f"{of.mean:.{decimals}f}" + ("" if of.std is None else f" ± {of.std:.{decimals}f}")


def group_cells(kind: str, name: str, group: str) -> list[Cell]:
    """What a mean is over: a tier, a family or all languages; and of which directions."""
    arrows = {each.code: each.arrow for each in GROUPS}
    return ["all languages" if kind in ("overall", "group") else name, arrows.get(group, group)]


def difference_cells(row: Difference) -> list[Cell]:
    """Difference in BLEU, interval and p; unknown ones are None."""
    return [
        signed(row.difference),
        _between(row.low, row.high),
        None if row.p_value is None else shown_p(row.p_value),
    ]


def nll_cells(row: Difference) -> list[Cell]:
    """NLL, its difference and interval; unknown ones are None."""
    difference = signed(row.nll_difference, NLL.decimals)
    return [fixed(row.nll, NLL.decimals), difference, _between(row.nll_low, row.nll_high, NLL.decimals)]


def _between(low: float | None, high: float | None, decimals: int = 2) -> Cell:
    return None if low is None or high is None else bounds(low, high, decimals)


def difference_table(
    baseline: str, rows: Sequence[Difference], further: Mapping[str, Sequence[Cell]] | None = None
) -> Table:
    """A line for each system; likelihoods first where they are known.

    Args:
        further: name of a column -> its cells.
    """
    columns: dict[str, Sequence[Cell]] = {"system": [row.system for row in rows]}
    if any(row.nll is not None for row in rows):
        columns[f"{NLL.title} - {baseline}"] = [signed(row.nll_difference, NLL.decimals) for row in rows]
        columns[f"95% interval, {NLL.title}"] = [
            _between(row.nll_low, row.nll_high, NLL.decimals) for row in rows
        ]
    columns |= {
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
    """Of each system the groups by likelihood and BLEU, the rest folded; then how to read them."""
    sections = []
    first = [endpoint for endpoint in comparison.endpoints if endpoint in (NLL, OF_TEXTS[0])]
    for system in comparison.systems:
        blocks: list[Block] = [_groups(comparison, system, endpoint) for endpoint in first]
        details = []
        for endpoint in comparison.endpoints:
            if endpoint not in first:
                means = _groups(comparison, system, endpoint)
                details.append(Section(f"{endpoint.title}, means", [means], is_folded=True))
        details.append(Section("Seeds, signs and counts", [_further(comparison, system)], is_folded=True))
        for endpoint in comparison.endpoints:
            every: list[Block] = [_directions(comparison, system, endpoint)]
            if comparison.is_noise(system, endpoint):
                every.insert(0, Paragraph(f"**{_NOISE}.**"))
            details.append(Section(f"{endpoint.title}, every direction", every, is_folded=True))
        sections.append(Section(f"{system} against {comparison.baseline}", blocks, details))
    notes = [Bullets(_notes(comparison))]
    left_out = [
        Paragraph(f"{ENDPOINTS[key].title} is left out: {plain(reason)}.")
        for key, reason in comparison.left_out.items()
    ]
    return [
        *sections,
        *([Section("Not compared", left_out)] if left_out else []),
        Section("How to read this", notes, is_folded=True),
    ]


_NOISE = "No direction differs after Holm's adjustment: none of the differences below can be told from noise"


def _groups(comparison: Comparison, system: str, endpoint: Endpoint) -> Table:
    rows = [row for row in comparison.groups if (row.system, row.metric) == (system, endpoint.key)]
    lower = " (lower is better)" if endpoint.lower_is_better else ""
    columns: dict[str, list[Cell]] = {
        f"{endpoint.title}{lower}: mean over": [
            group_cells(row.kind, row.name, row.group)[0] for row in rows
        ],
        "group": [group_cells(row.kind, row.name, row.group)[1] for row in rows],
        comparison.baseline: [spread(row.baseline, endpoint.decimals) for row in rows],
        system: [spread(row.score, endpoint.decimals) for row in rows],
        "difference": [signed_over_seeds(row.difference, endpoint) for row in rows],
        "95 % interval": [interval_cell(row.over_sentences, endpoint) for row in rows],
        "p": [_p(row.over_sentences) for row in rows],
        "smallest visible": [visible_cell(row.over_sentences, endpoint) for row in rows],
    }
    if any(row.over_seeds for row in rows):
        columns["95 % interval, t over seeds"] = [interval_cell(row.over_seeds, endpoint) for row in rows]
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


def _further(comparison: Comparison, system: str) -> Table:
    """What the groups' own tables leave out, of every endpoint."""
    rows = [
        (endpoint, row)
        for endpoint in comparison.endpoints
        for row in comparison.groups
        if (row.system, row.metric) == (system, endpoint.key)
    ]
    columns: dict[str, list[Cell]] = {
        "endpoint": [endpoint.title for endpoint, _ in rows],
        "mean over": [group_cells(row.kind, row.name, row.group)[0] for _, row in rows],
        "group": [group_cells(row.kind, row.name, row.group)[1] for _, row in rows],
        "directions": [row.directions for _, row in rows],
    }
    if any(row.over_seeds for _, row in rows):
        columns["p, t over seeds"] = [_p(row.over_seeds) for _, row in rows]
        columns["smallest visible over seeds"] = [visible_cell(row.over_seeds, at) for at, row in rows]
    columns |= {
        "sign-flip over directions": [shown_p(row.sign_flip_p_value) for _, row in rows],
        "win/tie/loss": ["/".join(map(str, row.results.values())) for _, row in rows],
        "after Holm": ["/".join(map(str, row.holm_results.values())) for _, row in rows],
    }
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


def interval_cell(of: Uncertainty | None, endpoint: Endpoint) -> Cell:
    return None if of is None else bounds(of.low, of.high, endpoint.decimals)


def _p(of: Uncertainty | None) -> Cell:
    return None if of is None else shown_p(of.p_value)


def visible_cell(of: Uncertainty | None, endpoint: Endpoint) -> Cell:
    return None if of is None else f"{of.smallest_visible:.{endpoint.decimals}f}"


def signed_over_seeds(of: OverSeeds, endpoint: Endpoint) -> str:
    """``+0.25``, or ``+0.25 ± 0.10`` over several seeds."""
    decimals = endpoint.decimals
    return f"{of.mean:+z.{decimals}f}" + ("" if of.std is None else f" ± {of.std:.{decimals}f}")


def _directions(comparison: Comparison, system: str, endpoint: Endpoint) -> Table:
    header = ["direction", "family", comparison.baseline, system, "difference", "95 % interval"]
    p_values = {"p_value": "p", "holm_p_value": "Holm p"}
    if endpoint in OF_TEXTS:
        p_values = {"sacrebleu_p_value": "sacreBLEU's p", **p_values}
    return Table(
        (*header, *p_values.values(), "result"),
        [
            [
                str(row.direction),
                row.family,
                spread(row.baseline, endpoint.decimals),
                spread(row.score, endpoint.decimals),
                signed_over_seeds(row.difference, endpoint),
                bounds(row.low, row.high, endpoint.decimals),
                *(", ".join(shown_p(getattr(seed, p)) for seed in row.seeds) for p in p_values),
                row.seeds[0].result if len(row.seeds) == 1 else _counted([seed.result for seed in row.seeds]),
            ]
            for row in comparison.directions
            if (row.system, row.metric) == (system, endpoint.key)
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
    has_nll = NLL in comparison.endpoints
    notes = [
        f"Difference: system minus {plain(comparison.baseline)}."
        + (f" {NLL.title}: {NLL.unit}; a negative difference is a gain." if has_nll else ""),
        "Which endpoint decides is chosen before a run"
        + (": likelihood and BLEU can differ in sign within noise." if has_nll else "."),
        "**Means** ask about sentences: on other test sentences of this kind, would these trained models, together, "
        f"still differ? p (two-sided) and interval are of {samples} joint draws of sentences for all directions and "
        f"seeds of a mean. {_together(comparison)}",
        f"**Smallest visible**: a true difference that such a comparison calls significant (p < {alpha:g}) in "
        f"{100 * POWER:.0f} % of cases, from the draws' standard error. A smaller one may be there and not be seen: "
        "then no significance says nothing.",
        "Directions are no sample. **Sign-flip over directions**: are the directions' differences of one sign? They "
        "share a model and often sentences, so that it says little of other directions, and nothing of other "
        "trainings. With n directions it is never below 2 / 2^n. No p of a mean is adjusted for their number.",
        "**Directions** ask about sentences one by one: p and interval are of the samples of sacreBLEU's paired "
        f"bootstrap (seed {BOOTSTRAP_SEED}). win, loss: p < {alpha:g}; Holm p is adjusted over the {directions} "
        "directions.",
        "A direction's p is ours and two-sided: how often a resampled difference is as far from their mean as the true "
        "one from 0. sacreBLEU's own, beside it, is one-sided in effect: two equally good systems had it below 0.05 in "
        "11 % of measured cases, and p in 5 %. "
        f"Of {directions} directions without any difference, about {alpha * directions:.1f} show as win or loss.",
    ]
    notes += _notes_on_seeds(comparison)
    smallest = min(1.0, directions / (samples + 1))
    if smallest >= alpha:
        notes.append(
            f"No Holm p can be below {alpha:g} with {samples} samples for {directions} directions: the smallest is "
            f"{smallest:.3f}. More --bootstrap would tell."
        )
    for metric, signatures in comparison.sacrebleu.items():
        notes += [f"{ENDPOINTS[metric].title}: `{signature}`" for signature in signatures]
    return notes


def _together(comparison: Comparison) -> str:
    """How directions share draws."""
    if not comparison.draws:
        return "This comparison is of an earlier version, and has none of it: make it again."
    texts = []
    for size, times in sorted(Counter(map(len, comparison.draws)).items(), reverse=True):
        often = "" if times == 1 else f"{times} times "
        if size > 1:
            texts.append(
                f"Drawn together, as their test sets are the same sentences: {often}{size} directions."
            )
        else:
            texts.append(
                f"Drawn by {'itself' if times == 1 else 'themselves'}: {counted(times, 'direction')}."
            )
    if comparison.partly_shared:
        texts.append(
            f"Test sets share some of their sentences in {', '.join(map(plain, comparison.partly_shared))} but are not "
            "one: they are drawn as if they shared none, which makes intervals too narrow."
        )
    if comparison.unknown_sources:
        texts.append(
            f"Sources of {', '.join(comparison.unknown_sources)} are not known: what these share on that side is not "
            "seen."
        )
    if comparison.few_sentences:
        texts.append(
            f"Fewer than {FEW_SENTENCES} test sentences: {', '.join(comparison.few_sentences)}. p is too small and "
            "intervals are too narrow there: of equal systems p is below 0.05 in 15 % of tests of 5 sentences, 10 % of 10, "
            "7 % of 20."
        )
    return " ".join(texts)


def _notes_on_seeds(comparison: Comparison) -> list[str]:
    if comparison.seeds == 1:
        return ["One seed: how much a training run differs from the next is not in any of these figures."]
    if any(row.over_seeds for row in comparison.groups):
        of_t = (
            "**t over seeds** asks about training: would training again give the same difference? Its interval and p "
            "are Student's t of the seeds' mean differences, each over its directions; what chance sentences add is the "
            "same in all of them. With few seeds only large differences are visible to it."
        )
    else:
        of_t = (
            f"No t over seeds: it takes {FEWEST_SEEDS} or more, each with trainings of its own on both sides. How much "
            "training again would change is not in any interval."
        )
    return ["±: sample standard deviation over seeds. Wins, ties and losses count each seed.", of_t]
