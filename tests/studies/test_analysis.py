import csv
import json
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from neuron_spec.artifacts import signature
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError
from neuron_spec.languages import LINEAGE_LEVELS, UNKNOWN, _language_table, language, tree_distance
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import adjusted_iou, chance_iou, pairwise_iou
from neuron_spec.neurons.selection import ks_per_direction, select
from neuron_spec.studies.analysis.measure import (
    Question,
    analyze,
    pairs_compared,
    read_distances,
    read_families,
    select_from_profiles,
)
from neuron_spec.studies.analysis.page import PAGE, _pairs_csv, draw, write_analysis

LAYERS = [f"{side}.layers.{number}" for side in ("encoder", "decoder") for number in range(2)]
CODES = ["de", "nl", "es", "pt", "cs", "ru"]


def around_english(codes):
    return [d for code in codes for d in (Direction("en", code), Direction(code, "en"))]


def planted(directions, ffn_dim=120):
    """Each direction takes half its neurons from its family, on the side where its languages differ."""
    generator = torch.Generator().manual_seed(0)
    sets = {}

    def drawn(name, share):
        if name not in sets:
            sets[name] = torch.rand(ffn_dim, generator=generator) < share
        return sets[name]

    kept = {}
    for layer in LAYERS:
        side = "source" if layer.startswith("encoder") else "target"
        codes = [getattr(direction, side) for direction in directions]
        kept[layer] = torch.stack(
            [drawn(f"{layer} {language(code).family}", 0.5) | drawn(f"{layer} {code}", 0.2) for code in codes]
        )
    return NeuronMasks(directions, kept)


def ask(codes=CODES, **more):
    return Question(planted(around_english(codes)), **more)


def profile(seed):
    made = ActivationCounts.zeros(around_english(CODES), dict.fromkeys(LAYERS, 40))
    generator = torch.Generator().manual_seed(seed)
    for counts in made.counts.values():
        counts += torch.randint(0, 1000, counts.shape, generator=generator)
    for tokens in made.tokens.values():
        tokens += 1000
    return made


def asked_of_profiles(*profiles):
    first = profiles[0]
    masks = select(first, ks_per_direction(first.directions))
    return Question(masks, {f"half {number}": made for number, made in enumerate(profiles, start=1)})


def results(found):
    """Every part of an analysis that may not be computable."""
    for side in found["sides"].values():
        for part in (*side["layers"].values(), side["mean_over_layers"]):
            yield part["chance_percent"]
            for of in (part, part["adjusted"]):
                yield from (of[name] for name in ("iou_percent", "families", "language_distances"))


# The family tree


def test_every_language_of_the_table_has_a_lineage():
    for code, row in _language_table().items():
        assert row.lineage != UNKNOWN, code
        assert 1 <= len(row.lineage.split("/")) <= LINEAGE_LEVELS, code


def test_languages_of_one_family_are_related():
    for one, other in combinations(_language_table().values(), 2):
        # Kannada is Dravidian, and Indo-Aryan in the papers' grouping.
        if one.family == other.family and "kn" not in (one.code, other.code):
            assert tree_distance(one.code, other.code) < 8, (one.code, other.code)


@pytest.mark.parametrize(
    ("first", "second", "edges"),
    [("de", "de", 0), ("de", "nl", 2), ("de", "sv", 4), ("de", "hi", 6), ("de", "fi", 8), ("et", "fi", 4)],
)
def test_edges_in_the_family_tree(first, second, edges):
    assert tree_distance(first, second) == tree_distance(second, first) == edges


def test_the_family_tree_is_an_ultrametric():
    for trio in combinations(["de", "nl", "sv", "es", "ru", "hi", "fa", "et", "hu", "ar", "mt", "ja"], 3):
        distances = sorted(tree_distance(a, b) for a, b in combinations(trio, 2))
        assert distances[1] == distances[2]


def test_a_language_without_lineage():
    assert tree_distance("de", "qa") is None
    assert tree_distance("qa", "qa") == 0


# The numbers


def test_planted_families_are_found():
    found = analyze(ask(), {})
    for side, of in (("encoder", "source"), ("decoder", "target")):
        own = found["sides"][side]
        assert own["compared"]["languages"] == sorted(CODES)
        assert own["compared"]["languages_by"] == of
        assert own["mean_over_layers"]["families"]["p"] == pytest.approx(1 / 15, abs=1e-6)
        assert own["mean_over_layers"]["language_distances"]["correlation"] > 0.6
        leaves = own["dendrogram"]["leaves"]
        assert len({frozenset(leaves[i : i + 2]) for i in (0, 2, 4)} & {
            frozenset(pair) for pair in (("de", "nl"), ("es", "pt"), ("cs", "ru"))
        }) == 3  # fmt: skip
        assert own["dendrogram"]["cophenetic_correlation"]["value"] > 0.8
    assert all(part["reason"] is None for part in results(found))
    assert found["stability"] is None


def test_numbers_are_those_of_the_masks():
    question = ask()
    layer = analyze(question, {})["sides"]["decoder"]["layers"]["decoder.layers.1"]
    kept = question.masks.kept["decoder.layers.1"]
    rows = [i for i, direction in enumerate(question.masks.directions) if direction.source == "en"]
    values = [100 * pairwise_iou(kept)[a, b].item() for a, b in combinations(rows, 2)]
    assert layer["iou_percent"]["mean"] == pytest.approx(sum(values) / len(values), abs=1e-3)
    assert layer["iou_percent"]["min"] == pytest.approx(min(values), abs=1e-3)
    for name, of, measure in (
        ("chance_percent", layer["chance_percent"], chance_iou),
        ("adjusted", layer["adjusted"]["iou_percent"], adjusted_iou),
    ):
        values = [100 * measure(kept)[a, b].item() for a, b in combinations(rows, 2)]
        assert of["mean"] == pytest.approx(sum(values) / len(values), abs=1e-3), name
        assert (of["min"], of["max"]) == pytest.approx((min(values), max(values)), abs=1e-3), name
    dropped = 100 * (1 - kept[rows].double().mean(dim=1))
    assert layer["dropped_percent"]["en-x"]["max"] == pytest.approx(dropped.max().item(), abs=1e-3)


def test_a_group_may_be_chosen():
    for group, of in (("en-x", "target"), ("x-en", "source")):
        for side in analyze(ask(group=group), {})["sides"].values():
            assert (side["compared"]["group"], side["compared"]["languages_by"]) == (group, of)
    sides = analyze(ask(group="all"), {})["sides"]
    assert len(sides["encoder"]["compared"]["directions"]) == 12
    assert "en" in sides["encoder"]["compared"]["languages"]


def test_given_families_and_distances_hold():
    families = {"de": "One", "es": "One", "nl": "Two", "pt": "Two", "cs": "Three", "ru": "Three"}
    other = analyze(ask(families=families), {})["sides"]["decoder"]["mean_over_layers"]
    own = analyze(ask(), {})["sides"]["decoder"]["mean_over_layers"]
    assert other["families"]["within_percent"] < own["families"]["within_percent"]
    assert other["language_distances"] == own["language_distances"]

    edges = {frozenset(pair): float(tree_distance(*pair)) for pair in combinations(CODES, 2)}
    same, reversed_ = (
        analyze(ask(distances=distances), {})["sides"]["decoder"]["mean_over_layers"]["language_distances"]
        for distances in (edges, {pair: 10 - edge for pair, edge in edges.items()})
    )
    assert same == own["language_distances"]
    assert reversed_["correlation"] == pytest.approx(-same["correlation"])


EDGES = {
    "one direction": [Direction("en", "de")],
    "one language": around_english(["de"]),
    "two languages": around_english(["de", "ru"]),
    "one family": around_english(["de", "nl", "sv"]),
    "families of one": around_english(["de", "es", "ru"]),
    "unknown family": around_english(["de", "nl", "ru", "qa", "qb"]),
    "only unknown families": around_english(["qa", "qb", "qc"]),
    "without English": [Direction(a, b) for a in ("de", "nl", "es") for b in ("de", "nl", "es") if a != b],
    "out of English only": around_english(CODES)[::2],
    "mixed": [*around_english(["de", "nl"]), Direction("es", "pt")],
}


@pytest.mark.parametrize("group", ["own", "x-en", "all"])
@pytest.mark.parametrize("directions", EDGES.values(), ids=EDGES.keys())
def test_what_cannot_be_computed_is_null_and_says_why(directions, group):
    question = Question(planted(directions), group=group)
    found = json.loads(json.dumps(analyze(question, {}), allow_nan=False))
    for part in results(found):
        values = [value for name, value in part.items() if name != "reason"]
        assert all((value is None) == bool(part["reason"]) for value in values)
    page = PAGE.as_markdown(found, signature("analyze", inputs={}, parameters={}), {})
    assert all(layer in page for layer in LAYERS)
    assert "nan" not in page
    for part in results(found):
        assert part["reason"] is None or part["reason"] in page


def test_languages_of_unknown_family_are_named():
    own = analyze(Question(planted(EDGES["unknown family"])), {})["sides"]["decoder"]
    assert own["compared"]["without_family"] == own["compared"]["without_distance"] == ["qa", "qb"]
    families = own["mean_over_layers"]["families"]
    assert families["reason"] is None and families["relabellings"] == 3  # de nl | ru
    alone = analyze(Question(planted(EDGES["only unknown families"])), {})["sides"]["decoder"]
    assert "no known families" in alone["mean_over_layers"]["families"]["reason"]
    assert "three languages" in alone["mean_over_layers"]["language_distances"]["reason"]


def test_masks_that_drop_nothing():
    masks = planted(around_english(CODES))
    masks = replace(masks, kept={layer: torch.ones_like(kept) for layer, kept in masks.kept.items()})
    own = analyze(Question(masks), {})["sides"]["encoder"]
    layer = own["layers"]["encoder.layers.0"]
    assert layer["iou_percent"]["mean"] == 100 and layer["dropped_percent"]["x-en"]["max"] == 0
    assert layer["families"]["p"] == 1
    assert "all distances are equal" in layer["language_distances"]["reason"]
    assert "all distances are equal" in own["dendrogram"]["cophenetic_correlation"]["reason"]
    assert layer["chance_percent"]["mean"] == 100
    for part in ("iou_percent", "families", "language_distances"):
        assert "a set of all neurons or of none" in layer["adjusted"][part]["reason"]


def test_one_set_of_all_neurons_leaves_no_adjusted_iou_in_its_layer_and_in_the_mean():
    masks = planted(around_english(CODES))
    masks.kept["decoder.layers.1"][0] = True
    own = analyze(Question(masks), {})["sides"]["decoder"]
    for layer, of in (*own["layers"].items(), ("mean", own["mean_over_layers"])):
        assert of["iou_percent"]["reason"] is None
        is_known = layer == "decoder.layers.0"
        assert (of["adjusted"]["iou_percent"]["mean"] is not None) == is_known
        assert (of["adjusted"]["families"]["p"] is not None) == is_known
    pairs = csv.DictReader(_pairs_csv(Question(masks)).splitlines())
    for row in pairs:
        is_known = row["layer"] != "decoder.layers.1" or "en-de" not in (row["first"], row["second"])
        assert (row["adjusted_iou_percent"] != "") == is_known
        assert float(row["chance_percent"]) > 0


def test_families_that_only_keep_alike_many_neurons_are_found_by_iou_alone():
    """Random sets, large in two families and small in the third: their sizes are all they have in common."""
    generator = torch.Generator().manual_seed(3)
    directions = [Direction("en", code) for code in (*CODES, "sv", "it", "bg")]
    large = torch.tensor([language(d.target).family != "Slavic" for d in directions])
    kept = torch.rand(9, 400, generator=generator) < torch.where(large, 0.9, 0.1)[:, None]
    families = {
        d.target: "Few" if not is_large else "Many" for d, is_large in zip(directions, large, strict=True)
    }
    found = analyze(Question(NeuronMasks(directions, {"decoder.layers.0": kept}), families=families), {})
    layer = found["sides"]["decoder"]["layers"]["decoder.layers.0"]
    assert layer["families"]["difference_percent"] > 20 and layer["families"]["p"] < 0.05
    assert abs(layer["adjusted"]["families"]["difference_percent"]) < 2
    assert layer["adjusted"]["families"]["p"] > 0.05


def test_a_page_of_an_earlier_version_is_still_shown():
    found = analyze(ask(), {})
    made = signature("analyze", inputs={}, parameters={})
    whole = PAGE.as_markdown(found, made, {})
    for side in found["sides"].values():
        for part in (*side["layers"].values(), side["mean_over_layers"]):
            del part["adjusted"], part["chance_percent"]
    page = PAGE.as_markdown(found, made, {})
    assert "by an earlier version" in page and "by an earlier version" not in whole
    layer = found["sides"]["decoder"]["layers"]["decoder.layers.0"]
    assert f"{layer['iou_percent']['mean']:.1f}" in page


# Stability


def test_identical_profiles_are_stable():
    question = asked_of_profiles(profile(0), profile(0))
    found = analyze(question, select_from_profiles(question))["stability"]
    assert found["first"] == "half 1"
    assert list(found["profiles"]) == ["half 1", "half 2"]
    for layer in LAYERS:
        own = found["layers"][layer]
        for part in (*own["with_masks_percent"].values(), own["with_first_percent"]["half 2"]):
            assert set(part.values()) == {100.0}
        assert own["other_languages_percent"]["half 1"]["mean"] < 100 > own["random_percent"]


def test_split_halves_are_called_so():
    halves = []
    for number in (1, 2):
        halves.append(profile(number))
        made = {"inputs": {"data": "d"}, "parameters": {"subset": "valid", "part": f"{number}/2"}}
        halves[-1].metadata = {"part": f"{number}/2", "signature": made}
    question = asked_of_profiles(*halves)
    found = analyze(question, select_from_profiles(question))
    stability = found["stability"]
    assert stability["are_split"]
    assert [own["part"] for own in stability["profiles"].values()] == ["1/2", "2/2"]
    layers = [
        stability["layers"][layer]["with_first_percent"]["half 2"]["mean_of_compared"] for layer in LAYERS
    ]
    means = stability["mean_over_layers"]
    assert means["encoder"]["half 2"] == pytest.approx(sum(layers[:2]) / 2, abs=1e-3)
    assert means["decoder"]["half 2"] == pytest.approx(sum(layers[2:]) / 2, abs=1e-3)
    made = signature("analyze", inputs={}, parameters={})
    page = PAGE.as_markdown(found, made, {})
    assert "split halves" in page and f"decoder P1 with P2 {means['decoder']['half 2']:.1f}" in page

    other = asked_of_profiles(profile(1), profile(2))
    assert "split halves" not in PAGE.as_markdown(analyze(other, select_from_profiles(other)), made, {})


def test_profiles_of_unrelated_counts_agree_no_better_than_chance():
    question = asked_of_profiles(profile(0), profile(1))
    found = analyze(question, select_from_profiles(question))["stability"]["layers"]
    means = [own["with_first_percent"]["half 2"]["mean"] for own in found.values()]
    chance = [own["random_percent"] for own in found.values()]
    assert sum(means) / 4 == pytest.approx(sum(chance) / 4, abs=4)
    assert sum(means) / 4 < 90


# Tables of distances


def write(path, *lines):
    path.write_text("\n".join(("language,language,distance", *lines)) + "\n")
    return path


def test_distances_are_read(tmp_path):
    path = write(tmp_path / "d.csv", "de,nl,1", "nl, de, 1.0", "ru,de,2.5", "ru,nl,3", "de,de,0", "")
    found = read_distances(path, [("de", "nl"), ("de", "ru"), ("nl", "ru")])
    assert found[frozenset(("nl", "de"))] == 1
    assert found[frozenset(("de", "ru"))] == 2.5


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["de,nl,1", "nl,de,2"], "symmetric"),
        (["de,nl,near"], "a number from 0"),
        (["de,nl,-1"], "a number from 0"),
        (["de,nl,nan"], "a number from 0"),
        (["de,nl"], "a number from 0"),
        (["de,de,1"], "a language and itself"),
        (["de,nl,1"], "distances are missing"),
    ],
)
def test_bad_distances(tmp_path, lines, said):
    path = write(tmp_path / "d.csv", *lines)
    with pytest.raises(ArtifactError, match=said) as caught:
        read_distances(path, [("de", "nl"), ("de", "ru")])
    assert "d.csv" in str(caught.value)


def test_other_files_are_no_distances(tmp_path):
    (tmp_path / "d.csv").write_text("de,nl,1\n")
    with pytest.raises(ArtifactError, match="not a table of distances"):
        read_distances(tmp_path / "d.csv", [])
    with pytest.raises(ArtifactError, match="not found"):
        read_distances(tmp_path / "absent.csv", [])


def test_families_of_a_corpus_card(tmp_path):
    (tmp_path / "corpus.json").write_text(json.dumps({"families": {"qa": "One"}}))
    assert read_families(tmp_path / "corpus.json") == {"qa": "One"}
    (tmp_path / "corpus.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a corpus card"):
        read_families(tmp_path / "corpus.json")


# The folder


@pytest.mark.slow
def test_a_folder_holds_numbers_page_pairs_and_figures(tmp_path):
    question = ask(["de", "nl", "ru"])
    made = signature("analyze", inputs={"masks": "0"}, parameters={"seed": 1})
    path = write_analysis(tmp_path, question, {}, made)
    found = json.loads(path.read_text())
    assert found["signature"] == made
    page = (tmp_path / "analysis.md").read_text()
    linked = {line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert linked == {f"figures/{name}.png" for name in draw(question)}
    for name in draw(question):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / "figures" / f"{name}.svg").read_text()[-20:]

    pairs = list(csv.DictReader((tmp_path / "iou.csv").read_text().splitlines()))
    assert len(pairs) == len(LAYERS) * 15
    row = next(r for r in pairs if (r["first"], r["second"]) == ("de-en", "ru-en"))
    assert row["layer"] == "encoder.layers.0" and row["compared"] == "1"
    kept = question.masks.kept["encoder.layers.0"]
    names = [str(direction) for direction in question.masks.directions]
    iou = pairwise_iou(kept)[names.index("de-en"), names.index("ru-en")].item()
    assert float(row["iou_percent"]) == pytest.approx(100 * iou, abs=1e-3)
    assert sum(int(r["compared"]) for r in pairs) == len(LAYERS) * 3


@pytest.mark.parametrize("directions", EDGES.values(), ids=EDGES.keys())
def test_figures_of_edge_cases(directions):
    drawn = draw(Question(planted(directions)))
    assert {"sparsity", "overlap", "dendrogram", "iou", "iou-first-decoder-layer"} == set(drawn)
    texts = [text.get_text() for axes in drawn["iou"].axes for text in axes.texts]
    codes = {code for direction in directions for code in (direction.source, direction.target)}
    has_unknown = any(language(code).family == UNKNOWN for code in codes)
    assert (UNKNOWN in texts) == has_unknown


def test_an_empty_group_draws_no_heatmaps():
    question = Question(planted(EDGES["out of English only"]), group="x-en")
    assert set(draw(question)) == {"sparsity", "overlap", "dendrogram"}
    page = PAGE.as_markdown(analyze(question, {}), signature("analyze", inputs={}, parameters={}), {})
    assert "figures/iou" not in page


def test_heat_maps_of_too_many_cells_are_left_out_with_a_line_that_says_so(monkeypatch):
    question = ask()  # 4 layers of 6 directions
    for most, is_drawn in ((4 * 6 * 6, True), (4 * 6 * 6 - 1, False)):
        monkeypatch.setattr("neuron_spec.studies.analysis.page.MOST_CELLS", most)
        assert ("iou" in draw(question)) == is_drawn
        page = PAGE.as_markdown(analyze(question, {}), signature("analyze", inputs={}, parameters={}), {})
        said = "No heat maps of all layers: 4 of up to 6 directions would be too small to be read."
        assert (said in page) == (not is_drawn)


def test_the_mean_over_layers_is_of_what_is_measured_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "neuron_spec.neurons.overlap.Compared.between_languages",
        lambda self, kept, measure=pairwise_iou: calls.append(measure) or measure(kept[self.rows]),
    )
    question = ask()
    analyze(question, {})
    assert Counter(calls) == dict.fromkeys((pairwise_iou, chance_iou, adjusted_iou), len(LAYERS))


def test_the_pairs_whose_distances_are_needed():
    assert pairs_compared(ask(["de", "nl", "ru"])) == [("de", "nl"), ("de", "ru"), ("nl", "ru")]
    assert ("de", "en") in pairs_compared(ask(["de", "nl"], group="all"))
