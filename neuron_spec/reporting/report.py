"""A run's report: one Markdown page with its tables, figures, sample translations and signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_spec.artifacts import CORPUS_CARD, SCORES_JSON, SIGNATURE, read_json, require_file, write_text
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.evaluation import Evaluation, read_evaluation
from neuron_spec.neurons.activations import side_of
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import family_contrast, pairwise_iou, permutation_test
from neuron_spec.neurons.selection import METHODS
from neuron_spec.reporting import figures
from neuron_spec.reporting.tables import comparison_table, markdown_table

REPORT = "report.md"
MASKS = "masks.safetensors"
# The order of the columns; differences are to the first.
SYSTEMS = ("dense", "dense-continuation", "specialized")
_SAMPLES = 3
_PERMUTATIONS = 10_000


def write_report(run: Path) -> Path:
    """Write ``run/report.md`` and ``run/figures`` from what the stages left below ``run``.

    Raises:
        ArtifactError: if the corpus card, the masks or all evaluations are missing.
    """
    card = read_json(run / "corpus" / CORPUS_CARD, "corpus card of the run")
    masks = NeuronMasks.load(run / MASKS)
    evaluations = _evaluations(run)
    families: dict[str, str] = card["families"]
    drawn = _draw(run / "figures", masks, evaluations, families)
    parts = [
        f"# {run.name}: neuron specialization on the {card['name']} corpus",
        _what_it_is(card, evaluations),
        "## Scores\n\n" + _scores(evaluations) + _image(drawn, "scores"),
        "## Specialized neurons\n\n" + _sparsity_table(masks) + _image(drawn, "sparsity"),
        "## Overlap of the sets\n\n" + _overlap_table(masks, families) + _image(drawn, "overlap", "iou"),
        "## Sample translations\n\n" + _samples(evaluations),
        "## The corpus\n\n" + _corpus(card),
        "## How to repeat it\n\n" + _signatures(run, masks, evaluations),
    ]
    write_text(run / REPORT, "\n\n".join(parts) + "\n")
    return run / REPORT


def _evaluations(run: Path) -> dict[str, Evaluation]:
    folders = {name: run / "evaluation" / name for name in SYSTEMS}
    found = {
        name: read_evaluation(folder) for name, folder in folders.items() if (folder / SCORES_JSON).is_file()
    }
    if not found:
        raise ArtifactError(
            "nothing was evaluated in this run",
            where=run / "evaluation",
            expected=f"evaluations in {', '.join(SYSTEMS)}",
            mend="run neuron-spec evaluate into those folders first",
        )
    return found


def _what_it_is(card: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> str:
    train = card["pairs"]["train"]
    first = next(iter(evaluations.values()))
    tests = sorted({score.sentences for score in first.scores})
    return (
        f"{len(first.scores)} directions between English and {', '.join(train)}; "
        f"{sum(train.values()):,} training pairs, {' to '.join(map(str, tests))} test sentences a direction.\n\n"
        "*dense* is the multilingual model that the others start from. *specialized* continues training it "
        "with each direction running through, and updating, only its own FFN neurons. *dense-continuation* is "
        "the control: the same extra updates on the same batches without masks, so that specialization is not "
        "credited with what more training does.\n\n"
        "**What so small a run can show:** that every stage works on this machine, how sparse the sets are, and "
        "whether related languages share neurons. **What it cannot show:** whether specialization helps. One seed, "
        "a small model, minutes of training and test sets this size leave differences of a point or so of BLEU "
        "to chance; the published gains are of models and corpora more than a hundred times larger."
    )


def _scores(evaluations: Mapping[str, Evaluation]) -> str:
    if len(evaluations) == 1:
        (name,) = evaluations
        return f"Only *{name}* was evaluated; its table is in `evaluation/{name}/table.md`.\n"
    return comparison_table(evaluations).replace("## ", "### ") + "\n"


def _draw(
    folder: Path, masks: NeuronMasks, evaluations: Mapping[str, Evaluation], families: Mapping[str, str]
) -> dict[str, str]:
    """Draw the figures; name -> path relative to the report."""
    ious = {layer: pairwise_iou(masks.kept[layer]) for layer in masks.layers}
    bleu = {name: {str(s.direction): s.bleu for s in e.scores} for name, e in evaluations.items()}
    drawn = {
        "scores": figures.scores_bars(bleu, "BLEU", families=families),
        "sparsity": figures.sparsity_per_layer(masks.kept, masks.directions),
        "overlap": figures.iou_over_layers(masks.kept, masks.directions, families=families),
        "iou": figures.iou_heatmaps(ious, masks.directions, families=families),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png")
    return {name: f"{folder.name}/{name}.png" for name in drawn}


_CAPTIONS = {
    "scores": "BLEU of each system, per direction",
    "sparsity": "Neurons dropped per layer, in percent: mean, least and most of each group of directions",
    "overlap": "Overlap (IoU) of the sets per layer, within and between language families",
    "iou": "Pairwise overlap (IoU) of the sets in every layer, languages ordered by family",
}


def _image(drawn: Mapping[str, str], *names: str) -> str:
    return "".join(f"\n![{_CAPTIONS[name]}]({drawn[name]})\n" for name in names).rstrip()


def _sparsity_table(masks: NeuronMasks) -> str:
    rows: list[list[Any]] = []
    for layer, dropped in masks.sparsity().items():
        percent = 100 * dropped
        rows.append([layer, masks.widths[layer], *map(float, (percent.min(), percent.mean(), percent.max()))])
    method = masks.metadata.get("method", "unknown")
    ks = sorted({k for side in masks.metadata.get("k_percent", {}).values() for k in side.values()})
    return (
        f"Sets by `{method}`: {METHODS.get(method, 'not made by neuron-spec select')}"
        + (f"; k = {', '.join(f'{k:g}' for k in ks)}" if ks else "")
        + ". Dropped neurons in percent, over directions.\n\n"
        + markdown_table(("layer", "neurons", "fewest dropped", "mean", "most dropped"), rows)
        + "\n"
    )


def _overlap_table(masks: NeuronMasks, families: Mapping[str, str]) -> str:
    """Encoder layers over directions into English, decoder layers over directions out of it."""
    rows: list[list[Any]] = []
    for layer in masks.layers:
        chosen = [i for i, d in enumerate(masks.directions) if _other(layer, d) is not None]
        names = [families.get(str(_other(layer, masks.directions[i])), "unknown") for i in chosen]
        if len(chosen) < 2:
            continue
        iou = pairwise_iou(masks.kept[layer][chosen])
        try:
            within, between = family_contrast(iou, names)
            p = permutation_test(iou, names, permutations=_PERMUTATIONS, seed=1).p
        except NeuronSpecError:  # fewer than two families, or none with two languages: nothing to contrast
            continue
        rows.append([layer, 100 * within, 100 * between, f"{100 * (within - between):+.1f}", f"{p:.3f}"])
    if not rows:
        return "Too few families among the directions to compare overlap within and between them.\n"
    return (
        "Mean pairwise IoU in percent: encoder layers over directions into English, by source language; decoder "
        "layers over directions out of English, by target language. p: how often families assigned at random "
        "show as large a difference; with few languages it cannot be small (six languages in three families "
        "have 15 groupings, so at least about 0.067).\n\n"
        + markdown_table(("layer", "within families", "between families", "difference", "p"), rows)
        + "\n"
    )


def _other(layer: str, direction: Direction) -> str | None:
    """The language that a side's sets follow, of directions with English on the other side."""
    source, target = direction.source, direction.target
    if side_of(layer) == "encoder":
        return source if target == "en" else None
    return target if source == "en" else None


def _samples(evaluations: Mapping[str, Evaluation]) -> str:
    first = next(iter(evaluations.values()))
    outputs = {name: {o.direction: o for o in e.outputs} for name, e in evaluations.items()}
    parts = []
    for number, reference in enumerate(first.outputs):
        # Other sentences for other directions, spread over the test set.
        count = len(reference.references)
        picked = [
            (number * 7 + i * max(1, count // _SAMPLES)) % count for i in range(_SAMPLES if number < 2 else 1)
        ]
        rows: list[Sequence[Any]] = []
        for index in picked:
            if reference.sources is not None:
                rows.append(("source", reference.sources[index]))
            rows.append(("reference", reference.references[index]))
            rows += [(name, own[reference.direction].hypotheses[index]) for name, own in outputs.items()]
        parts.append(f"**{reference.direction}**\n\n" + markdown_table(("", "text"), rows))
    return "\n\n".join(parts) + "\n\nThe sentences are picked by position, not by quality."


def _corpus(card: Mapping[str, Any]) -> str:
    rows = [
        [lang, card["families"].get(lang, "unknown"), card["tiers"].get(lang, "-"), *counts]
        for lang, counts in (
            (lang, [card["pairs"][split][lang] for split in ("train", "valid", "test")])
            for lang in card["pairs"]["train"]
        )
    ]
    text = markdown_table(("language", "family", "tier", "train", "valid", "test"), rows)
    sources = "\n".join(f"- {source['name']}: {source['licence']}" for source in card["sources"])
    text += f"\n\nSources, with licences:\n\n{sources}"
    if leak := card["leak_report"]:
        rows = [
            [name.replace("_", " "), *(f"{value}" for value in leak[name].values())]
            for name in ("random_split_for_comparison", "components_held_out", "as_built")
        ]
        text += (
            f"\n\nLeak report: percent of test messages with a near duplicate in the training set "
            f"({leak['similarity']}).\n\n"
            + markdown_table(("split", "similarity 0.6 or more", "similarity 0.8 or more"), rows)
        )
    return text


def _signatures(run: Path, masks: NeuronMasks, evaluations: Mapping[str, Evaluation]) -> str:
    rows = [["masks", masks.fingerprint[:16], masks.metadata.get("checkpoint_sha256", "-")[:16]]]
    for name in evaluations:
        inputs = read_json(require_file(run / "evaluation" / name / SIGNATURE, "signature"), "signature")[
            "inputs"
        ]
        rows.append([name, inputs["masks"][:16], inputs["checkpoint"][:16]])
    versions = next(iter(evaluations.values())).signature["versions"]
    return (
        "Each stage is one command; `scripts/quickstart.sh` holds them in order, and `scripts/NN_*.sh` one by one.\n\n"
        + markdown_table(("system", "sha256 of masks", "sha256 of weights"), rows)
        + "\n\nVersions: "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
