"""The report of whole runs in both layouts, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import (
    CODES,
    EVIL,
    LAYERS,
    SYSTEMS,
    around_english,
    write_card,
    write_experiment,
    write_masks,
    write_run,
    write_system,
)

from neuron_spec.artifacts import running, shown_command, signature, training_command, write_json
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError
from neuron_spec.languages import pivot
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pairs import Compared
from neuron_spec.pages import style
from neuron_spec.report.report import write_report
from neuron_spec.report.run_folder import planned_comparisons, read_run
from neuron_spec.report.scores import _verdict
from neuron_spec.scoring import comparison_files
from neuron_spec.scoring.comparison import GroupComparison
from neuron_spec.scoring.comparison_files import as_plain, compared, read_comparison
from neuron_spec.statistics import OverSeeds, Uncertainty
from neuron_spec.studies.ablation.measure import Ablation
from neuron_spec.studies.ablation.page import write_ablation
from neuron_spec.studies.conflict.measure import Cell, Conflict
from neuron_spec.studies.conflict.page import write_conflict
from neuron_spec.studies.transfer.measure import Transfer
from neuron_spec.studies.transfer.page import write_transfer

DRAW = style.rendered


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few samples, and no drawing, which the runs of the whole module have."""
    monkeypatch.setattr(comparison_files, "SAMPLES", 60)
    monkeypatch.setattr(style, "rendered", lambda figure, kind: b"a drawing")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run and what `write_report` made of it; tests that change it copy it first."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_files, "SAMPLES", 60)
        write_report(folder)
    return folder


@pytest.fixture
def run(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run"))


# ---------------------------------------------------------------- one run


@pytest.mark.slow
def test_both_pages_and_their_figures(written):
    text, markup = ((written / f"report.{kind}").read_text() for kind in ("md", "html"))
    figures = re.findall(r"\]\(figures/(.*?)\.png\)", text)
    assert {"scores", "against-dense-continuation", "sparsity", "overlap", "iou"} <= set(figures)
    assert all((written / "figures" / f"{name}.png").stat().st_size > 5000 for name in figures)
    assert markup.count("data:image/") == len(figures)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == re.findall(r"<h2>(.*?)</h2>", markup)
    assert titles == [
        "Scores", "Differences", "Specialized neurons", "Overlap of the sets", "Sample translations",
        "The corpus", "How to repeat it",
    ]  # fmt: skip


def test_scores_are_those_of_the_evaluations(written):
    means = {
        name: next(r for r in read_run(written).seeds[0].evaluations[name].summary if r.kind == "overall")
        for name in SYSTEMS
    }
    expected = [f"{means[name].bleu:.1f}" for name in SYSTEMS]
    row = next(line for line in (written / "report.md").read_text().splitlines() if "| all languages" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["all languages", "all", *expected, "8"]


def test_translations_cannot_become_markup(written):
    markup = (written / "report.html").read_text()
    assert markup.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in markup
    assert EVIL not in (written / "report.md").read_text()


def test_the_report_is_the_same_again_and_keeps_its_comparison(written, run, monkeypatch):
    monkeypatch.setattr(style, "rendered", DRAW)
    monkeypatch.setattr(comparison_files, "compare", None)  # not called
    write_report(run)
    for path in (path for path in run.rglob("*") if path.is_file()):
        before = (written / path.relative_to(run)).read_bytes()
        assert path.read_bytes() == before.replace(bytes(written), bytes(run)), path


def test_a_comparison_of_other_scores_is_refused_before_anything_is_written(run):
    write_system(run / "evaluation" / "specialized", around_english(CODES), 0.6)
    before = (run / "report.html").read_bytes()
    with pytest.raises(ArtifactError, match="another comparison is already here"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_the_comparison_is_the_one_that_compare_makes(run):
    (folder, systems), *_ = planned_comparisons(read_run(run)).items()
    assert [system.name for system in systems] == ["dense-continuation", "specialized", "dense"]
    content = json.loads((folder / "comparison.json").read_text())
    again = json.loads(json.dumps(as_plain(read_comparison(folder / "comparison.json"))))
    assert again == content
    assert as_plain(compared(folder, systems)) == as_plain(read_comparison(folder / "comparison.json"))


def test_the_command_prints_both_paths(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.md"), str(run / "report.html")]


def test_only_one_system_has_nothing_to_compare(tmp_path):
    text = write_report(write_run(tmp_path / "run", systems={"dense": 0.3}))[0].read_text()
    assert "Only *dense* was evaluated" in text
    assert "## Differences" not in text
    assert not list((tmp_path / "run").glob("comparison*"))


def test_one_direction_has_no_overlap(tmp_path):
    text = write_report(write_run(tmp_path / "run", directions=[Direction("de", "en")]))[0].read_text()
    assert "overlap needs a pair of directions" in text
    assert "figures/iou.png" not in text
    assert "1 direction between" in text


def test_languages_without_family_and_two_of_them(tmp_path):
    families = {"xa": "unknown", "xb": "unknown"}
    text = write_report(write_run(tmp_path / "run", families=families))[0].read_text()
    assert "no family structure to test" in text
    assert "| encoder.layers.0 |" in text
    assert "| xa   | xa       | unknown |" in text


def test_sets_without_sparsity_are_said_to_change_nothing(tmp_path):
    text = write_report(write_run(tmp_path / "run", keep_all=True))[0].read_text()
    assert "No direction drops any neuron" in text


def test_directions_without_english(tmp_path):
    directions = [Direction("de", "nl"), Direction("nl", "de")]
    text = write_report(write_run(tmp_path / "run", directions=directions))[0].read_text()
    assert "2 directions of English, de, nl, es, pt" in text
    assert "x→y" in text


def write_small_ablation(run: Path) -> torch.Tensor:
    """``ablation-5`` in a run; returns the changes of the loss."""
    directions = around_english(["de", "es"])
    change = torch.rand(4, 4, dtype=torch.float64)
    ablation = Ablation(
        directions, [100] * 4, [str(d) for d in directions], list(range(4)), torch.ones(4).double(),
        1 + change, 1 + change[:2] / 2, CODES,
    )  # fmt: skip
    made = signature("ablate", inputs={}, parameters={"ablate": "distinctive", "checkpoint": "dense"})
    switched = {layer: {"neurons": 40, "switched_off": 2, "held_by_others": {}} for layer in LAYERS}
    write_ablation(run / "ablation-5", ablation, switched, made, seed=1)
    return change


def test_an_ablation_is_shown(run):
    change = write_small_ablation(run)
    text = write_report(run)[0].read_text()
    assert "## Ablation\n" in text
    assert "figures/ablation-ablation-5.png" in text
    own = change.diagonal()[[0, 2]].mean()
    assert f"| en->x     |          2 | {own:+.3f} |" in text


# ---------------------------------------------------------------- several seeds

ALL = {**SYSTEMS, "matched-random": 0.35, "other-direction": 0.32}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "experiment"
    write_experiment(folder, {2: ALL, 1: ALL, 10: {"dense": 0.3}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison_files, "SAMPLES", 60)
        write_report(folder)
    return folder


@pytest.mark.slow
def test_seeds_are_put_together_and_unfinished_ones_named(experiment):
    text = (experiment / "report.md").read_text()
    assert "seeds 1, 2." in text
    left_out = "Left out: seed-10, where dense-continuation, specialized, matched-random, other-direction is not evaluated yet."
    assert left_out in text
    run = read_run(experiment)
    assert [seed.number for seed in run.seeds] == [1, 2]
    bleu = [seed.evaluations["dense"].summary[0].bleu for seed in run.seeds]
    assert f"{OverSeeds.of(bleu).mean:.1f} ± {OverSeeds.of(bleu).std:.1f}" in text


def test_where_nothing_is_specialized_the_sets_are_the_static_ones(tmp_path):
    folder = write_experiment(tmp_path / "run", {1: {"full": 0.3, "static": 0.28, "meta-static": 0.27}})
    masks = folder / "seed-1" / "masks"
    with pytest.raises(ArtifactError, match=r"not found(.|\n)*static\.safetensors"):
        write_report(folder)
    for ending in ("safetensors", "json"):
        (masks / f"specialized.{ending}").rename(masks / f"static.{ending}")
    text = write_report(folder)[0].read_text()
    assert "as *static*, by episodes" in text
    assert (folder / "comparison-seeds-1" / "against-full" / "comparison.json").is_file()


def test_comparisons_stand_where_the_experiment_puts_them(experiment):
    root = experiment / "comparison-seeds-1-2"
    assert {path.name for path in root.iterdir()} == {
        *("against-dense-continuation", "against-matched-random", "against-other-direction")
    }
    parameters = read_comparison(root / "against-dense-continuation" / "comparison.json").signature[
        "parameters"
    ]
    assert parameters["systems"] == ["specialized", "matched-random", "other-direction", "dense"]
    text = (experiment / "report.md").read_text()
    assert "**specialized against dense-continuation, BLEU:**" in text
    assert "**specialized against matched-random, BLEU:**" in text
    assert "**specialized against other-direction, BLEU:**" in text
    assert "whether it matters whose they are" in text


def test_every_seed_has_its_overlap_figure(experiment):
    names = {path.stem for path in (experiment / "figures").iterdir()}
    assert {"overlap", "overlap-seed-2", "against-matched-random"} <= names


def test_no_page_for_an_experiment_without_a_whole_seed(tmp_path):
    folder = write_experiment(tmp_path / "e", {1: {"dense": 0.3}, 2: {"specialized": 0.3}})
    with pytest.raises(ArtifactError, match="no seed has all systems"):
        write_report(folder)


# ---------------------------------------------------------------- what is refused


def test_other_folders_are_refused_with_what_was_looked_for(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "k-95").mkdir()
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "seed-N/evaluation/SYSTEM/scores.json" in error
    assert "k-95" in error
    assert "neuron-spec sweep" in error


def test_two_layouts_in_one_folder_are_refused(run):
    shutil.copytree(run / "evaluation", run / "seed-1" / "evaluation")
    with pytest.raises(ArtifactError, match="two runs in one folder"):
        write_report(run)


def test_a_run_without_masks_is_refused(run):
    (run / "masks.safetensors").unlink()
    with pytest.raises(ArtifactError, match="not found"):
        write_report(run)


def test_a_run_without_a_card_has_a_report_that_leaves_the_corpus_out(run, capsys):
    with_card = write_report(run)[0].read_text()
    (run / "corpus" / "corpus.json").unlink()
    text = write_report(run)[0].read_text()
    assert "## The corpus" in with_card and "## The corpus" not in text
    for said in (text, capsys.readouterr().err):
        assert f"neuron-spec data existing DATA_BIN --output {run.name}/corpus" in said
    assert "training pairs" not in text.partition("## ")[0]
    assert "between English and de, nl, es, pt" in text
    # Families are the evaluations' own, so that scores and sets stay as they were.
    start, end = "## Scores", "## Sample translations"
    assert (
        text[text.index(start) : text.index(end)] == with_card[with_card.index(start) : with_card.index(end)]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "no lang_pairs"),
        ({"families": ["de"]}, "families: ['de']"),
        ({"pairs": {"train": {"de": "many"}}}, "pairs.train.de: 'many'"),
        ({"pairs": {"test": {"de": 3}}}, "pairs: no train"),
        ({"sources": [{"name": "mine"}]}, "sources[0]: no licence"),
    ],
)
def test_a_damaged_card_is_refused(run, change, said):
    card = run / "corpus" / "corpus.json"
    write_json(card, {**json.loads(card.read_text()), **change} if change else {"name": "toy"})
    with pytest.raises(ArtifactError, match="not a corpus card") as refusal:
        write_report(run)
    assert said in str(refusal.value) and "neuron-spec data existing" in str(refusal.value)


def test_a_corpus_of_pairs_around_another_language(run):
    path = run / "corpus" / "corpus.json"
    card = json.loads(path.read_text())
    pairs = {f"en-{code}": 1200 for code in ("de", "nl", "es", "pt")}
    write_json(path, {**card, "pivot": "pt", "pairs": {"train": pairs, "test": {"de-en": 7}}})
    text = write_report(run)[0].read_text()
    assert "8 directions of pt, en, de, nl, es; 4,800 training pairs" in text
    print(text[text.index("## The corpus") :][:900])
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "| en-de | Germanic | 1,200 | 7 |" in rows and "| en-pt | Germanic, Romance | 1,200 | - |" in rows
    groups = {cell for row in rows for cell in row.split(" | ") if "→" in cell and "x" in cell}
    assert groups == {"pt→x", "x→pt", "x→y"}
    assert pivot() == "en", "what a report sets ends with it"


def test_a_run_of_the_published_size_is_not_called_small(run):
    words = "the published gains are of far larger models"
    assert words in write_report(run)[0].read_text()
    card = json.loads((run / "corpus" / "corpus.json").read_text())
    card["pairs"]["train"] = dict.fromkeys(card["pairs"]["train"], 20_000_000)
    write_json(run / "corpus" / "corpus.json", card)
    assert words not in write_report(run)[0].read_text()


def test_systems_on_different_directions_are_refused(run):
    shutil.rmtree(run / "comparison")
    write_system(run / "evaluation" / "dense", around_english(["de"]), 0.3)
    with pytest.raises(DirectionError):
        write_report(run)


# ---------------------------------------------------------------- what it claims


def overall(key: str, difference: float, p: float, seeds: list[float]) -> GroupComparison:
    of = OverSeeds(difference, None)
    joint, t = Uncertainty(0.1, 0.0, 1.0, p, 0.28), Uncertainty.over_seeds(seeds, 0.05)
    return GroupComparison("s", key, "overall", "all", "all", 8, of, of, of, joint, t, 1.0, {}, {})


def test_scores_that_are_all_zero_are_not_the_finest_of_measurements():
    row = replace(overall("bleu", 0.0, 1.0, [0.0]), over_sentences=Uncertainty(0.0, 0.0, 0.0, 1.0, 0.001))
    said = _verdict(row, [0.0], 0.05)
    assert "all zero, they say nothing" in said and "could hardly" not in said


@pytest.mark.parametrize(
    ("key", "difference", "p", "seeds", "said"),
    [
        ("bleu", 0.5, 0.2, [0.5], "a true difference below 0.28 could hardly have been seen"),
        ("bleu", 0.5, 0.01, [0.5], "better by more than chance, in this one training"),
        ("nll", 0.5, 0.01, [0.5], "worse by more than chance, in this one training"),
        ("nll", -0.5, 0.01, [-0.5], "better by more than chance, in this one training"),
        ("bleu", -0.5, 0.01, [-0.4, -0.6], "worse by more than chance, and all 2 seeds agree"),
        ("bleu", 0.5, 0.01, [1.2, -0.2], "but they do not agree"),
        ("bleu", 0.5, 0.05, [0.5, 0.5], "not more than the choice of test sentences can give"),
        ("bleu", 0.5, 0.01, [0.4, 0.5, 0.6], "and so over trainings, by t over 3 seeds"),
        ("bleu", 0.5, 0.01, [0.1, 0.2, 1.2], "and not so over trainings, by t over 3 seeds"),
    ],
)
def test_the_verdict_claims_no_more_than_the_numbers(key, difference, p, seeds, said):
    assert said in _verdict(overall(key, difference, p, seeds), seeds, 0.05)


# ---------------------------------------------------------------- commands


def test_commands_are_those_that_made_the_artefacts(tmp_path):
    run = tmp_path / "run"
    place = tmp_path / "before it was moved"
    with running(["neuron-spec", "data", "toy", "--output", str(place)], place):
        write_card(run, CODES)
    with running(["neuron-spec", "select", "a profile.safetensors", "--k", "90"]):
        write_masks(run / "masks.safetensors", around_english(CODES))
    with running(["neuron-spec", "evaluate", "data-bin", "--path", "my/dense.pt"]):
        write_system(run / "evaluation" / "dense", around_english(CODES), 0.3)
    mark = run / "dense" / "complete.txt"
    mark.parent.mkdir()
    mark.write_text(
        "fairseq-train data --user-dir /somewhere/neuron_spec --finetune-from-model my/dense.pt "
        "--adam-betas \\(0.9\\,0.98\\) \nabc  my/dense.pt\n"
    )
    text = write_report(run)[0].read_text()
    assert "/somewhere" not in text
    (listed,) = re.findall(r"```bash\n(neuron-spec data[\s\S]*?)\n```", text)
    assert listed.splitlines() == [
        f"neuron-spec data toy --output {run}/corpus",
        """fairseq-train data --user-dir "$(neuron-spec user-dir)" --finetune-from-model my/dense.pt """
        """--adam-betas '(0.9,0.98)'""",
        "neuron-spec select 'a profile.safetensors' --k 90",
        "neuron-spec evaluate data-bin --path my/dense.pt",
        f"neuron-spec report {run}",
    ]


def test_what_recorded_no_command_is_listed_without_one(written):
    text = (written / "report.md").read_text()
    assert f"```bash\nneuron-spec report {written}\n```" in text


def test_a_system_that_no_script_trained_has_no_command(tmp_path):
    assert training_command(tmp_path) == []


@pytest.mark.parametrize("words", ["DATA --task t", "DATA --user-dir /elsewhere/neuron_spec --task t"])
def test_a_training_is_shown_with_the_user_dir_of_any_machine(tmp_path, words):
    (tmp_path / "complete.txt").write_text(f"fairseq-train {words}\nsome hash  dense.pt\n")
    shown = shown_command(training_command(tmp_path))
    assert shown == 'fairseq-train DATA --user-dir "$(neuron-spec user-dir)" --task t'


# ---------------------------------------------------------------- interference, adaptation, moving masks

FOUR_DIRECTIONS = [Direction("en", code) for code in CODES]
INPUTS = {"checkpoint": "ef" * 32, "checkpoint's masks": "none", "data": "ab" * 32}


def asked(run: Path, **more) -> dict[str, object]:
    return {
        "subset": "valid",
        "directions": [str(d) for d in FOUR_DIRECTIONS],
        "seed": 3,
        "overlap": NeuronMasks.load(run / "masks.safetensors").fingerprint,
        "families": CODES,
        **more,
    }


CONFLICT = ["neuron-spec", "conflict", "data-bin", "--path", "dense.pt", "best.pt"]
TRANSFER = ["neuron-spec", "transfer", "data-bin", "--lr", "0.0123456789", "--normalize-rows"]


def write_interference(run: Path) -> None:
    ours = Compared(FOUR_DIRECTIONS, CODES)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    cell = Cell("encoder", 0, "fc1")
    one = Conflict({cell: gradients @ gradients.T}, torch.full((4, 2), 9), {cell: 20})
    inputs = {f"{name}: {what}": value for name in ("dense", "best") for what, value in INPUTS.items()}
    inputs["best: checkpoint"] = "aa" * 32
    with running(CONFLICT):
        made = signature("conflict", inputs=inputs, parameters=asked(run, sentences=100))
    write_conflict(run / "conflict", ours, {"dense": one, "best": one}, made, seed=1)
    step = {"lr": 0.0123456789, "steps": 2, "train_subset": "train", "sentences": 50, "normalize_rows": True}
    with running(TRANSFER):
        made = signature("transfer", inputs=INPUTS, parameters=asked(run, **step))
    after = 1 + torch.randn(4, 4, generator=generator, dtype=torch.float64) / 10
    transfer = Transfer([9] * 4, torch.ones(4).double(), after, 5.0)
    write_transfer(run / "transfer-2", ours, transfer, made, seed=1)


def adaptation_json(**changed) -> dict[str, object]:
    scores = {"0": {"bleu": 10.0, "chrf": 20.0}, "20": {"bleu": 11.0, "chrf": 22.0}}
    better = {"0": {"bleu": 20.0, "chrf": 30.0}, "20": {"bleu": 23.0, "chrf": 34.0}}
    return {
        "checkpoint_sha256": "ef" * 32,
        "updates": {"steps": 5, "rate": 0.0123456789, "optimizer": "adam", "max_tokens": 400, "seed": 7},
        "subset": "test",
        "fairseq_flags": ["--beam", "4"],
        "references": "raw",
        "borrow": {"nl": "de"},
        "borrowed": {"en-nl": "en-de"},
        "directions": {
            "en-nl": {"in_training": False, "shots": scores},
            "en-es": {"in_training": False, "shots": better},
        },
        **changed,
    }


def test_conflict_and_transfer_are_shown_with_the_commands_that_made_them(run):
    write_interference(run)
    text = write_report(run)[0].read_text()
    content = json.loads((run / "conflict" / "conflict.json").read_text())
    own = content["checkpoints"]["dense"]["groups"]["all parameters"]["kinds"]["en->x"]
    (row,) = re.findall(r"\| dense +\| en->x .*", text)
    assert f"| {own['mean']:+.2f} | {100 * own['conflict_fraction']:.0f}% " in re.sub(" +", " ", row)
    assert {"conflict-conflict", "conflict-conflict-layers", "transfer-2-transfer"} <= {
        path.stem for path in (run / "figures").iterdir()
    }
    for command in CONFLICT, TRANSFER:
        assert f"```bash\n{shlex.join(command)}\n```" in text


def test_an_adaptation_is_shown_with_the_command_that_made_it(run):
    command = "neuron-spec adapt data-bin --lr 0.0123456789"
    write_json(run / "adaptation-few" / "adaptation.json", adaptation_json(command=command))
    text = write_report(run)[0].read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "shots |" in line or line.startswith("| mean ")
    ]
    assert rows[0] == [
        "direction", "BLEU, 0 shots", "BLEU, 20 shots", "chrF++, 0 shots", "chrF++, 20 shots",
    ]  # fmt: skip
    assert rows[1] == ["mean", "15.0", "17.0", "25.0", "28.0"]
    assert "en-nl through those of en-de" in text
    assert "Again:\n\n```bash\nneuron-spec adapt data-bin --lr 0.0123456789\n```" in text


def test_an_adaptation_of_an_earlier_version_is_refused(run):
    content = adaptation_json()
    del content["borrow"]
    write_json(run / "adaptation" / "adaptation.json", content)
    with pytest.raises(ArtifactError, match=r"adaptation[\s\S]*no borrow"):
        write_report(run)


def write_moving_masks(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.log").write_text(
        "| INFO | train_inner | num_updates=10, mask_churn=0.02, mask_kept_fraction=0.7, mask_overlap=0.9\n"
        "| INFO | train_inner | num_updates=20, mask_churn=0.01, mask_kept_fraction=0.7, mask_overlap=0.8\n"
    )
    (folder / "complete.txt").write_text("fairseq-train data --task neuron_spec_dynamic\n")


def test_masks_that_moved_are_shown_in_every_layout(run, experiment, tmp_path):
    seeds = Path(shutil.copytree(experiment, tmp_path / "experiment"))
    for folder, name in ((run, "dynamic"), (seeds / "seed-2", "seed-2/dynamic")):
        write_moving_masks(folder / "dynamic")
        text = write_report(run if folder == run else seeds)[0].read_text()
        row = re.sub(" +", " ", text[text.index("## Masks that moved") :])
        assert f"| {name} | 20 | 2.0 to 1.0 | 70.0 to 70.0 | 90.0 to 80.0 |" in row
        assert "](figures/churn.png)" in text and " --task neuron_spec_dynamic\n" in text


def test_a_log_of_masks_that_stay_adds_nothing(written, run):
    (run / "specialized").mkdir()
    (run / "specialized" / "train.log").write_text("| INFO | train_inner | num_updates=10, loss=4.5\n")
    write_report(run)
    before, after = ((folder / "report.md").read_text() for folder in (written, run))
    assert after == before.replace(str(written), str(run))


@pytest.mark.slow
def test_a_report_needs_no_fairseq():
    code = "import sys, neuron_spec.report.report; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("study", ["ablation", "conflict", "transfer"])
def test_the_page_of_a_study_needs_no_fairseq(study):
    code = f"import sys, neuron_spec.studies.{study}.page; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- one page language


def test_a_studys_own_page_and_its_section_in_a_report_say_the_same(run):
    write_small_ablation(run)
    write_interference(run)
    blocks = set(write_report(run)[0].read_text().split("\n\n"))
    for page in ("ablation-5/ablation.md", "conflict/conflict.md", "transfer-2/transfer.md"):
        said, how = (run / page).read_text().split("\n## How it was made\n")
        own = [block for block in said.strip().split("\n\n") if not block.startswith(("#", "!["))]
        assert sum(block.startswith("|") for block in own) >= 1
        assert set(own) <= blocks, page
        assert "| sha256" in how and "Versions: " in how


FIXED_FIRST = ["Scores", "Differences", "Specialized neurons", "Overlap of the sets"]
FIXED_LAST = ["Sample translations", "The corpus", "How to repeat it"]


def test_the_kept_report_of_the_quickstart_has_the_headings_of_today(run):
    """Fails where ``results/quickstart/report.md`` was made by other code: run ``scripts/quickstart.sh`` and keep it."""
    write_small_ablation(run)
    write_interference(run)
    write_json(run / "adaptation" / "adaptation.json", adaptation_json())
    write_moving_masks(run / "dynamic")
    of_all = level_2(write_report(run)[0])
    studies = ["Masks that moved", "Ablation", "Gradient conflict", "Transfer between directions"]
    assert of_all == [*FIXED_FIRST, *studies, "Adaptation to few training sentences", *FIXED_LAST]

    kept = level_2(Path(__file__).parents[2] / "results" / "quickstart" / "report.md")
    assert kept == [title for title in of_all if title in kept], "another order, or a heading that is gone"
    assert set(FIXED_FIRST + FIXED_LAST) <= set(kept)


def level_2(page: Path) -> list[str]:
    return re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
