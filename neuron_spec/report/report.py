"""A run's report: one page with its scores, sets, sample translations, corpus and signatures.

Every statement about a result is made from the numbers.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

from neuron_spec.artifacts import CORPUS_CARD, write_text
from neuron_spec.languages import is_english, is_pivot, language
from neuron_spec.pages.html import as_html
from neuron_spec.pages.page import (
    FIGURES,
    Block,
    Bullets,
    Page,
    Paragraph,
    Section,
    Table,
    as_markdown,
    pictures,
    plain,
    write_pictures,
)
from neuron_spec.pages.tables import Cell, counted
from neuron_spec.report.repeating import repeating
from neuron_spec.report.run_folder import Run, planned_comparisons, read_run
from neuron_spec.report.scores import differences, findings, scores
from neuron_spec.report.sets import of_first_seed, sets
from neuron_spec.scoring import zero_shot
from neuron_spec.scoring.comparison import Comparison
from neuron_spec.scoring.comparison_files import compared
from neuron_spec.scoring.published import Published, published_section, read_published
from neuron_spec.scoring.systems import (
    CONTINUATION,
    DENSE,
    DYNAMIC,
    FULL,
    FULL_LONGER,
    OTHER,
    RANDOM,
    SPECIALIZED,
    STATIC,
)
from neuron_spec.studies import STUDIES

REPORT, REPORT_HTML = "report.md", "report.html"
_SAMPLES = 3  # test sentences of each direction
_PUBLISHED_PAIRS = 61_000_000  # of EC30, in the paper
_ABOUT = {
    DENSE: "the multilingual model that the others start from",
    CONTINUATION: "the control: the same extra updates on the same batches without masks, so that "
    "specialization is not credited with what more training does",
    SPECIALIZED: "continues training with each direction running through, and updating, only its own FFN neurons",
    RANDOM: "as *specialized*, through as many neurons drawn at random: what sparsity alone does",
    OTHER: "as *specialized*, through the sets of another direction, of another family where possible: whether it "
    "matters whose they are",
    FULL: "goes on training from the dense model, with all its units",
    FULL_LONGER: "the control for episodes: as *full*, with as many gradients as they take",
    STATIC: "goes on training, each direction through its own neurons and attention heads",
    DYNAMIC: "as *static*, with masks that move with the model",
    **{f"meta-{name}": f"as *{name}*, by episodes of meta-learning" for name in (FULL, STATIC, DYNAMIC)},
}


def write_report(folder: Path, published: Path | None = None) -> list[Path]:
    """Write ``report.md``, ``figures/*.png`` and ``report.html`` into a run's folder; return the two pages.

    Comparisons of the run's systems that are not there yet are made, and kept in it.

    Args:
        published: a file of published scores (``results/published/ec30.csv``) to set beside the run's.

    Raises:
        ArtifactError: if the folder is not a finished run, or holds comparisons of something else.
        NeuronSpecError: if its evaluations cannot be compared, or not with the published scores.
    """
    return copy_context().run(_write_report, folder, published)  # whose pivot the card decides


def _write_report(folder: Path, published: Path | None) -> list[Path]:
    run, published_scores = read_run(folder), read_published(published) if published else None
    if not run.card:
        print(f"left out: {_no_card(run)}", file=sys.stderr)
    comparisons = {path: compared(path, systems) for path, systems in planned_comparisons(run).items()}
    page = Page(
        f"{run.folder.resolve().name}: neuron specialization"
        + (f" on the {run.card['name']} corpus" if run.card else ""),
        _what_it_is(run, comparisons),
        [
            scores(run, comparisons),
            *differences(comparisons),
            *(_beside_published(run, published_scores) if published_scores else ()),
            *_zero_shot(run),
            *sets(run),
            *_of_studies(run),
            _samples(run),
            *([_corpus(run)] if run.card else []),
            repeating(run, comparisons),
        ],
    )
    write_pictures(folder / FIGURES, pictures(page), ["png"])
    write_text(folder / REPORT_HTML, as_html(page))
    write_text(folder / REPORT, as_markdown(page))
    return [folder / REPORT, folder / REPORT_HTML]


def _beside_published(run: Run, published_scores: Published) -> Iterator[Section]:
    for seed in run.seeds:
        section = published_section(seed.evaluations, published_scores)
        is_alone = len(run.seeds) == 1
        yield section if is_alone else replace(section, title=f"{section.title}, seed {seed.number}")


def _zero_shot(run: Run) -> Iterator[Section]:
    if folders := run.holding(f"zero-shot/*/{zero_shot.TABLE_CSV}"):
        yield zero_shot.section(folders)


def _of_studies(run: Run) -> Iterator[Section]:
    """Those of the studies that left something in the run, in the order of the list."""
    for study in STUDIES:
        if study.leaves and (folders := run.holding(study.leaves)):
            page = importlib.import_module(study.module(study.page_module))
            if (section := page.section(folders)) is not None:
                yield section


def _what_it_is(run: Run, comparisons: Mapping[Path, Comparison]) -> list[Block]:
    tested = run.seeds[0].evaluations[run.systems[0]].scores
    tests = sorted({score.sentences for score in tested})
    sentences = f"{tests[0]}" if len(tests) == 1 else f"{tests[0]} to {tests[-1]}"
    named = [code for score in tested for code in (score.direction.source, score.direction.target)]
    codes = dict.fromkeys(run.card["langs"] if run.card and "langs" in run.card else named)
    around = [code for code in codes if is_pivot(code)]
    of = [language(code).name if is_english(code) else _named(code) for code in around]
    others = plain(", ".join(_named(code) for code in codes if code not in around))
    what = (
        f"{counted(len(tested), 'direction')} between {plain(', '.join(of))} and "
        if all(score.direction.foreign for score in tested)
        else f"{counted(len(tested), 'direction')} of {''.join(f'{plain(name)}, ' for name in of)}"
    ) + others
    pairs = sum(run.card["pairs"]["train"].values()) if run.card else None
    what += ";" if pairs is None else f"; {pairs:,} training pairs,"
    what += f" {sentences} test sentences a direction"
    what += f"; seeds {', '.join(str(seed.number) for seed in run.seeds)}." if run.has_seeds else "."
    systems = [
        f"**{plain(name)}**" + (f": {_ABOUT[name]}" if name in _ABOUT else "") + "." for name in run.systems
    ]
    left_out = [f"Left out: {plain('; '.join(run.left_out))}."] if run.left_out else []
    left_out += [] if run.card else [f"Left out: {plain(_no_card(run))}."]
    texts = [*left_out, *findings(comparisons), _reach(run, pairs)]
    return [Paragraph(what), Bullets(systems), *map(Paragraph, texts)]


def _named(code: str) -> str:
    """``de``, but ``German (deu_Latn)``: what a code of more parts stands for, where that is known."""
    of = language(code)
    return code if code in (of.code, of.name) or of.name == of.code else f"{of.name} ({code})"


def _no_card(run: Run) -> str:
    return (
        f"the corpus, as there is no {CORPUS_CARD} in {run.folder.name}/corpus; neuron-spec data existing DATA_BIN "
        f"--output {run.folder.name}/corpus makes one"
    )


def _reach(run: Run, pairs: int | None) -> str:
    """What a run of this size can show, and what not; ``pairs`` is None where that is not known."""
    text = "**What this cannot show:** "
    if pairs is not None and pairs < _PUBLISHED_PAIRS / 2:
        text += (
            f"the published gains are of far larger models, trained on {_PUBLISHED_PAIRS // 10**6} million sentence "
            f"pairs; these were trained on {pairs:,}. "
        )
    if len(run.seeds) == 1:
        return text + (
            "There is one seed: how much one training differs from the next is not in any figure here, so "
            "that a difference of a point or so of BLEU may be chance, whatever its interval. How sparse the sets "
            "are and whether related languages share neurons can be seen, for this model."
        )
    return text + (
        f"The spread over {len(run.seeds)} seeds is itself an estimate from {len(run.seeds)} values; "
        "corpus and size of the model are the same in all."
    )


def _samples(run: Run) -> Section:
    outputs = {
        name: {of.direction: of for of in evaluation.outputs}
        for name, evaluation in run.seeds[0].evaluations.items()
    }
    sections = []
    for number, reference in enumerate(outputs[run.systems[0]].values()):
        # Other sentences for other directions, spread over the test set.
        count = len(reference.references)
        picked = dict.fromkeys((number * 7 + i * max(1, count // _SAMPLES)) % count for i in range(_SAMPLES))
        tables = []
        for index in picked:
            rows = [("source", reference.sources[index])] if reference.sources is not None else []
            rows.append(("reference", reference.references[index]))
            rows += [
                (name, by_direction[reference.direction].hypotheses[index])
                for name, by_direction in outputs.items()
                if reference.direction in by_direction
            ]
            tables.append(Table(("", f"test sentence {index + 1}"), rows, is_text=True))
        sections.append(Section(str(reference.direction), tables, is_folded=number > 1))
    text = "Picked by position in the test set, not by quality"
    return Section("Sample translations", [Paragraph(f"{text}{of_first_seed(run)}.")], sections)


def _corpus(run: Run) -> Section:
    card = run.card
    assert card is not None
    splits = [split for split in ("train", "valid", "test") if card["pairs"].get(split)]
    names = dict.fromkeys(name for split in splits for name in card["pairs"][split])
    is_by_pair = any("-" in name for name in names)
    seen: set[str] = set()
    rows: list[list[Cell]] = []
    for name in names:
        turned = "-".join(reversed(name.split("-")))  # a held-out set may be named the other way
        if is_by_pair and turned in seen:
            continue
        seen.add(name)
        numbers = [(of := card["pairs"][split]).get(name, of.get(turned)) for split in splits]
        counts = [None if number is None else f"{number:,}" for number in numbers]
        if is_by_pair:
            families = dict.fromkeys(map(run.family, name.split("-")))
            rows.append([name, ", ".join(families), *counts])
        else:
            rows.append([name, language(name).name, run.family(name), card["tiers"].get(name), *counts])
    header = ("pair", "families") if is_by_pair else ("code", "language", "family", "tier")
    blocks: list[Block] = [
        Paragraph(
            "Sentence pairs of each pair of languages."
            if is_by_pair
            else "Sentence pairs with English of each language."
        ),
        Table((*header, *splits), rows),
        Paragraph("Sources, with licences:"),
        Bullets([f"{plain(source['name'])}: {plain(source['licence'])}" for source in card["sources"]]),
    ]
    if leak := card["leak_report"]:
        measured = {name: values for name, values in leak.items() if isinstance(values, Mapping)}
        measures = next(iter(measured.values()))
        blocks += [
            Paragraph(f"Leak report: what is held out and also trained on ({plain(leak['similarity'])})."),
            Table(
                ("measure", *(name.replace("_", " ") for name in measured)),
                [
                    [measure.replace("_", " "), *(values[measure] for values in measured.values())]
                    for measure in measures
                ],
            ),
        ]
    return Section("The corpus", blocks)
