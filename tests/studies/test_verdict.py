"""The verdict: what the rules say at their bounds, what they say together, and what is read of trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from neuron_spec.artifacts import write_json
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, NeuronSpecError
from neuron_spec.scoring.comparison import ALPHA, Comparison, DirectionComparison, GroupComparison, SeedResult
from neuron_spec.scoring.comparison_files import as_plain
from neuron_spec.statistics import OverSeeds, Uncertainty
from neuron_spec.studies.verdict.measure import (
    RULES,
    conclusions,
    kind_of,
    read_outcomes,
    read_trainings,
    reads_ceiling,
    reads_gain,
    reads_interference,
    reads_loss,
)

DIRECTIONS = ("en-de", "en-ru")


def comparison(baseline: str, systems: Mapping[str, Mapping[str, Sequence[float]]]) -> Comparison:
    """system -> metric -> difference of each seed, alike in all directions but for some scatter about it."""
    found = Comparison(signature={"parameters": {}}, sacrebleu={}, baseline=baseline, alpha=ALPHA)
    counts = {"win": 0, "tie": 0, "loss": 0}
    for system, metrics in systems.items():
        for metric, seeds in metrics.items():
            for number, direction in enumerate(DIRECTIONS):
                shift = 0.5 - number
                results = [
                    SeedResult(*(2.0, 2.0 + d + shift, d + shift), d - 1, d + 1, None, 0.5, 1.0, "tie", "tie")
                    for d in seeds
                ]
                found.directions.append(
                    DirectionComparison(
                        *(system, metric, Direction.parse(direction), "en->x", None, "f"),
                        *(
                            OverSeeds(2.0, None),
                            OverSeeds(2.0, None),
                            OverSeeds.of([r.difference for r in results]),
                        ),
                        *(0.0, 1.0, results),
                    )
                )
            found.groups.append(
                GroupComparison(
                    *(system, metric, "overall", "all", "all", len(DIRECTIONS)),
                    *(OverSeeds(2.0, None), OverSeeds(2.0, None), OverSeeds.of(seeds)),
                    over_sentences=Uncertainty(0.1, fmean(seeds) - 0.2, fmean(seeds) + 0.2, 0.5, 0.28),
                    over_seeds=Uncertainty.over_seeds(seeds, ALPHA),
                    sign_flip_p_value=1.0,
                    results=counts,
                    holm_results=counts,
                )
            )
    return found


def nll(*seeds: float, bleu: float = 0.0) -> dict[str, Sequence[float]]:
    return {"nll": seeds, "bleu": [bleu] * len(seeds), "chrf": [0.0] * len(seeds)}


def write(folder: Path, name: str, made: Comparison) -> None:
    write_json(folder / name / "comparison.json", as_plain(made))


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    folder = tmp_path / "comparisons"
    systems = {
        "specialized": nll(0.002, -0.001, 0.005, bleu=0.4),
        "specialized-70": nll(-0.015, -0.02, -0.011),
        "ceiling": nll(-0.05, -0.04, -0.06, bleu=0.7),
        "dense": nll(0.02, 0.03, 0.02),
    }
    write(folder, "against-dense-continuation", comparison("dense-continuation", systems))
    write(folder, "bilingual-against-dense", comparison("dense", {"bilingual": nll(-0.02)}))
    controls = {"matched-random-70": nll(0.1, 0.2, 0.1), "other-direction-70": nll(0.1, -0.01, 0.2)}
    write(folder, "controls", comparison("specialized-70", controls))
    return folder


# ---------------------------------------------------------------- rules


def test_the_bounds_belong_to_yes_and_no() -> None:
    assert [reads_interference([d]) for d in (-0.011, -0.01, -0.009, -1e-9, 0, 0.1)] == [
        *("yes", "yes", "undecided", "undecided", "no", "no")
    ]
    assert [reads_ceiling([d]) for d in (-0.031, -0.03, -0.029, -0.011, -0.01, 0, 0.1)] == [
        *("yes", "yes", "undecided", "undecided", "no", "no", "no")
    ]
    assert [reads_gain([d]) for d in (-0.011, -0.01, -0.009, -1e-9, 0, 0.1)] == [
        *("yes", "yes", "undecided", "undecided", "no", "no")
    ]
    assert [reads_loss([d]) for d in (-0.1, 0, 1e-9)] == ["no", "no", "yes"]


def test_a_gain_has_to_be_there_in_every_seed_and_not_in_the_mean_alone() -> None:
    assert reads_gain([-0.5, -0.5, -0.009]) == "undecided"
    assert reads_gain([-0.02, -0.01, -0.5]) == "yes"
    assert reads_gain([-0.02, 0.03]) == "no"
    assert reads_loss([0.5, 0.5, -0.001]) == "no"


@pytest.mark.parametrize(
    ("system", "kind"),
    [
        ("specialized", "specialized"),
        ("specialized-70", "specialized"),
        ("specialized-97.5-long", "specialized"),
        ("dense-continuation-long", "dense-continuation"),
        ("shared-core-70", "shared-core"),
        ("long", "long"),
    ],
)
def test_kinds_are_names_without_k_and_length(system: str, kind: str) -> None:
    assert kind_of(system) == kind


# ---------------------------------------------------------------- outcomes


def test_every_pair_that_a_rule_is_for_is_answered_in_the_order_of_the_questions(comparisons: Path) -> None:
    rows = read_outcomes(comparisons).rows
    assert [(row.system, row.reading) for row in rows] == [
        ("bilingual", "yes"),
        ("ceiling", "yes"),
        ("specialized", "no"),
        ("specialized-70", "yes"),
        ("matched-random-70", "yes"),
        ("other-direction-70", "no"),
        ("dense", None),
    ]
    # Each seed is the mean over directions: their scatter is gone.
    assert rows[2].seeds == pytest.approx([0.002, -0.001, 0.005])
    assert rows[2].nll.mean == pytest.approx(0.002)
    assert rows[2].disagree == ["BLEU"]  # +0.4 BLEU where the text got less likely
    assert rows[1].disagree == []
    assert rows[0].over_seeds is None
    assert rows[1].over_seeds is not None


def answers(
    tmp_path: Path, *, bilingual: float, ceiling: float, specialized: float, long: float
) -> list[str]:
    systems = {"ceiling": nll(ceiling), "specialized": nll(specialized)}
    write(tmp_path, "a", comparison("dense-continuation", systems))
    longer = {"ceiling-long": nll(ceiling), "specialized-long": nll(long)}
    write(tmp_path, "b", comparison("dense-continuation-long", longer))
    write(tmp_path, "c", comparison("dense", {"bilingual": nll(bilingual)}))
    return conclusions(read_outcomes(tmp_path))


def test_what_the_answers_say_together(tmp_path: Path) -> None:
    found = answers(tmp_path, bilingual=-0.1, ceiling=-0.05, specialized=0.001, long=-0.02)
    assert found == [
        "There is something to gain, and specialized does not gain it.",
        "specialized-long works.",
    ]
    found = answers(tmp_path, bilingual=0.1, ceiling=0.001, specialized=0.001, long=0.0)
    assert len(found) == 2
    assert all("nothing to cure" in sentence for sentence in found)
    found = answers(tmp_path, bilingual=-0.1, ceiling=-0.02, specialized=-0.001, long=0.01)
    assert found == [
        "Whether specialized gains is undecided.",
        "specialized-long does not gain; whether there is something to gain is undecided.",
    ]


def test_interference_without_a_ceiling_is_no_nothing_to_cure(tmp_path: Path) -> None:
    found = answers(tmp_path, bilingual=-0.1, ceiling=0.0, specialized=0.01, long=0.01)
    assert found == [
        "specialized does not gain, nor would sharing no FFN.",
        "specialized-long does not gain, nor would sharing no FFN.",
    ]


def test_comparisons_without_likelihoods_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no comparison to read"):
        read_outcomes(tmp_path)
    texts = {"specialized": {"bleu": [0.1], "chrf": [0.1]}}
    write(tmp_path, "a", comparison("dense-continuation", texts))
    with pytest.raises(NeuronSpecError, match="without likelihoods"):
        read_outcomes(tmp_path)


@pytest.mark.parametrize(
    ("baseline", "system"),
    [
        ("dense-continuation", "specialized-long"),
        ("specialized", "matched-random-70"),
        ("specialized-70", "matched-random"),
    ],
)
def test_no_rule_is_for_systems_of_another_length_or_k(tmp_path: Path, baseline: str, system: str) -> None:
    write(tmp_path, "a", comparison(baseline, {system: nll(-0.5)}))
    outcomes = read_outcomes(tmp_path)
    assert [(row.question, row.reading) for row in outcomes.rows] == [(None, None)]
    assert conclusions(outcomes) == []
    main(["verdict", str(tmp_path), "--output", str(tmp_path / "v")])
    page = (tmp_path / "v" / "verdict.md").read_text()
    assert "No rule is for what was compared: they are for bilingual - dense, " in page
    assert "One seed" in page and f"| {system} - {baseline} " in page


def test_two_comparisons_of_the_same_systems_are_refused_and_hidden_ones_not_read(tmp_path: Path) -> None:
    write(tmp_path, ".copy", comparison("dense-continuation", {"specialized": nll(-0.5)}))
    write(tmp_path, "a", comparison("dense-continuation", {"specialized": nll(0.1)}))
    assert [row.reading for row in read_outcomes(tmp_path).rows] == ["no"]
    write(tmp_path, "b", comparison("dense-continuation", {"specialized": nll(-0.5)}))
    with pytest.raises(ArtifactError, match="two comparisons of the same systems"):
        read_outcomes(tmp_path)


def shifted(rows: list[dict[str, Any]]) -> None:
    for seed in rows[0]["seeds"]:
        seed["difference"] -= 0.2


def without_a_seed(rows: list[dict[str, Any]]) -> None:
    rows[0]["seeds"].pop()


@pytest.mark.parametrize("change", [shifted, without_a_seed, list.pop, lambda rows: rows.append(rows[0])])
def test_a_comparison_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    plain = as_plain(comparison("dense-continuation", {"specialized": nll(0.1, 0.1)}))
    of_nll = [row for row in plain["directions"] if row["metric"] == "nll"]
    change(of_nll)
    plain["directions"] = [*of_nll, *(row for row in plain["directions"] if row["metric"] != "nll")]
    write_json(tmp_path / "a" / "comparison.json", plain)
    with pytest.raises(ArtifactError, match="not of the form"):
        read_outcomes(tmp_path)


# ---------------------------------------------------------------- trainings


def log(folder: Path, bits: Mapping[int, float], *, as_json: bool = False) -> None:
    lines = []
    for update, value in bits.items():
        lines.append(
            f"2026 | INFO | train_inner | epoch 001: 1 / 9 text_nll_loss=9.9, num_updates={update}, lr=1"
        )
        if as_json:
            row = {"epoch": 1, "valid_text_nll_loss": f"{value}", "valid_num_updates": f"{update}"}
            lines.append(f"2026 | INFO | valid | {json.dumps(row)}")
        else:
            lines.append(
                f"2026 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 7 | nll_loss 6.1 | "
                f"text_nll_loss {value} | tag_nll_loss 3 | num_updates {update} | best_text_nll_loss 0.1"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.log", "a") as file:
        file.write("\n".join(lines) + "\n")


def test_validations_are_read_in_nats_from_both_formats_and_after_resuming(tmp_path: Path) -> None:
    log(tmp_path / "seed-1" / "dense", {10: 4.0, 90: 3.0, 100: 2.9})
    log(tmp_path / "seed-2" / "dense", {10: 4.0, 90: 9.0, 100: 9.9}, as_json=True)
    log(tmp_path / "seed-2" / "dense", {90: 3.0, 100: 2.999}, as_json=True)  # resumed after 10
    trainings = read_trainings([tmp_path / "seed-1", tmp_path / "seed-2"])
    assert trainings.dense["seed-1"] == pytest.approx(
        {u: v * math.log(2) for u, v in {10: 4, 90: 3, 100: 2.9}.items()}
    )
    assert trainings.last_tenth("seed-1") == pytest.approx(0.1 * math.log(2))
    assert trainings.last_tenth("seed-2") == pytest.approx(0.001 * math.log(2))


def test_systems_are_set_against_the_continuation_of_their_length_seed_by_seed(tmp_path: Path) -> None:
    for seed, shift in (("seed-1", 0.0), ("seed-2", 1.0)):
        folder = tmp_path / seed
        log(folder / "dense", {10: 4.0})
        log(folder / "dense-continuation", {5: 3.0 + shift, 10: 2.0 + shift})
        log(folder / "specialized", {5: 3.5 + shift, 10: 2.1 + shift, 15: 1.0})
        log(folder / "specialized-long", {5: 3.0})  # has no continuation of its length
    log(tmp_path / "seed-1" / "ceiling", {5: 2.9, 10: 1.5})  # has only one seed
    log(tmp_path / "seed-2" / "bilingual" / "en-de", {5: 0.1})  # is no system of stage 2
    against = read_trainings([tmp_path / "seed-1", tmp_path / "seed-2"]).against_continuation()
    assert list(against) == [""]
    assert against[""]["specialized"] == pytest.approx({5: 0.5 * math.log(2), 10: 0.1 * math.log(2)})
    assert list(against[""]) == ["ceiling", "specialized"]  # as questions are asked
    assert against[""]["ceiling"] == pytest.approx({5: -0.1 * math.log(2), 10: -0.5 * math.log(2)})


def test_what_is_not_known_of_stage_1_is_not_said(comparisons: Path, tmp_path: Path) -> None:
    log(tmp_path / "seed-1" / "dense", {100: 3.0})
    main(["verdict", str(comparisons), "--seeds", str(tmp_path / "seed-1"), "--output", str(tmp_path / "v")])
    (row,) = (
        line for line in (tmp_path / "v/verdict.md").read_text().splitlines() if line.startswith("| seed-1 ")
    )
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["-", "-"]
    log(tmp_path / "again" / "seed-1" / "dense", {100: 2.0})
    with pytest.raises(NeuronSpecError, match="two seeds of one name"):
        read_trainings([tmp_path / "seed-1", tmp_path / "again" / "seed-1"])
    (tmp_path / "seed-2" / "dense").mkdir(parents=True)
    (tmp_path / "seed-2" / "dense" / "train.log").write_text(
        "2026 | INFO | valid | nll_loss 3 | num_updates 9\n"
    )
    with pytest.raises(ArtifactError, match="without the likelihood of validation text"):
        read_trainings([tmp_path / "seed-2"])


# ---------------------------------------------------------------- the page


def test_the_page(comparisons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = tmp_path / "seed-1"
    log(seed / "dense", {10: 4.0, 90: 3.0, 100: 2.99})
    log(seed / "dense-continuation", {5: 3.0, 10: 2.0})
    log(seed / "specialized", {5: 3.1, 10: 2.1})
    output = tmp_path / "verdict"
    main(["verdict", str(comparisons), "--seeds", str(seed), "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output / "verdict.md")
    page = (output / "verdict.md").read_text()
    assert "- **There is something to gain, and specialized does not gain it.**" in page
    assert "- **specialized-70 works.**" in page
    (line,) = (line for line in page.splitlines() if "| specialized - dense-continuation" in line)
    assert "| no " in line
    assert "+0.002 ± 0.003" in line
    assert "+0.002, -0.001, +0.005" in line
    assert "- specialized - dense-continuation: +0.002 ± 0.003 nats, but +0.40 ± 0.00 BLEU" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| seed-1 "))
    assert "-0.007" in row
    assert "| yes " in row
    for name in ("stage-1", "verdict"):
        assert (output / f"{name}.png").is_file()
        assert f"({name}.png)" in page
    plain = json.loads((output / "verdict.json").read_text())
    assert plain["signature"]["inputs"].keys() == {
        *("against-dense-continuation", "bilingual-against-dense", "controls")
    }
    assert len(plain["outcomes"]) == 7


def test_without_trainings_there_is_no_figure(comparisons: Path, tmp_path: Path) -> None:
    main(["verdict", str(comparisons), "--output", str(tmp_path / "verdict")])
    assert not list((tmp_path / "verdict").glob("*.png"))
    assert "May stage 2 start?" not in (tmp_path / "verdict" / "verdict.md").read_text()


def test_a_seed_without_a_dense_model_is_named(
    comparisons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = ["--seeds", str(tmp_path / "seed-9")]
    assert main(["verdict", str(comparisons), *seeds, "--output", str(tmp_path / "v")]) == 2
    assert "seed-9" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_the_rules_are_those_of_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "bible.md").read_text()
    for bound in (
        "0.01 nats or more",
        "-0.03 nats or below",
        "-0.01 or above",
        "-0.01 nats or below in every seed",
    ):
        assert bound in docs
    assert len(RULES) == 8
