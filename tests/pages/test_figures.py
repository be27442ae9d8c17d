import re
from itertools import pairwise

import pytest
import torch

from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.overlap import cluster, pairwise_iou
from neuron_spec.pages.curves import dendrograms, iou_over_layers, sparsity_per_layer
from neuron_spec.pages.heatmap import iou_heatmap, layer_heatmaps
from neuron_spec.pages.style import in_family_order, save
from neuron_spec.scoring.figures import scores_bars

PNG = b"\x89PNG\r\n\x1a\n"
LAYERS = [f"{side}.layers.{number}" for side in ("encoder", "decoder") for number in range(2)]


def around_english(*codes):
    return [Direction("en", code) for code in codes] + [Direction(code, "en") for code in codes]


CASES = {
    "one direction": [Direction("en", "de")],
    "two directions": around_english("de"),
    "six languages": around_english("ru", "nl", "es", "de", "cs", "pt"),
    "without English": [Direction("de", "nl"), Direction("nl", "de"), Direction("es", "pt")],
    "unknown language": around_english("qa", "qb"),
}


EC30 = re.findall(
    r"\w+", "af am ar bg bn cs da de es fr gu ha he hi it kn lb mr mt nl oc pl pt ro ru sd sr sv ti uk"
)
LANGUAGES = {"two languages": ["de", "ru"], "thirty languages": EC30}


def random_kept(directions, fraction=0.7, layers=LAYERS):
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.rand(len(directions), 32, generator=generator) < fraction for layer in layers}


def check_png(figure, path):
    save(figure, path)
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 3000
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("fraction", [0.7, 1.0, 0.0], ids=["sparse", "all kept", "none kept"])
@pytest.mark.parametrize("directions", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("draw", [sparsity_per_layer, iou_over_layers])
def test_curves(draw, directions, fraction, tmp_path):
    check_png(draw(random_kept(directions, fraction), directions), tmp_path / "figure.png")


@pytest.mark.parametrize("directions", CASES.values(), ids=CASES.keys())
def test_heatmap(directions, tmp_path):
    iou = pairwise_iou(random_kept(directions)["decoder.layers.0"])
    check_png(iou_heatmap(iou, directions, "decoder.layers.0"), tmp_path / "figure.png")


def test_grid_of_heatmaps_shares_one_scale(tmp_path):
    directions = CASES["six languages"]
    figure = layer_heatmaps(random_kept(directions), directions, columns=3)
    images = [image for axes in figure.axes for image in axes.images]
    assert len(images) == 4
    assert len({image.get_clim() for image in images}) == 1
    check_png(figure, tmp_path / "figure.png")


@pytest.mark.parametrize("directions", CASES.values(), ids=CASES.keys())
def test_scores(directions, tmp_path):
    rows = {
        "dense": {str(direction): 20.0 for direction in directions},
        "specialized": {str(direction): 21.0 for direction in directions[1:]},
    }
    check_png(scores_bars(rows, "BLEU"), tmp_path / "figure.png")


def test_axes_are_ordered_by_family():
    directions = around_english("ru", "nl", "es", "de", "cs", "pt")
    ordered = [str(directions[index]) for index in in_family_order(directions)]
    codes = ["de", "nl", "es", "pt", "cs", "ru"]  # Germanic, Romance, Slavic
    assert ordered == [f"en-{code}" for code in codes] + [f"{code}-en" for code in codes]


def test_given_families_order_the_axes_and_the_cells():
    directions = [Direction("en", code) for code in ("qa", "qx", "qb")]
    families = {"qa": "Two", "qb": "Two", "qx": "One"}
    iou = torch.tensor([[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]])
    axes = iou_heatmap(iou, directions, "title", families=families).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["qx", "qa", "qb"]
    shown = axes.images[0].get_array()
    assert [shown[0, 1], shown[0, 2], shown[1, 2]] == pytest.approx([20, 30, 90])
    assert {"One", "Two"} <= {text.get_text() for text in axes.texts}


def test_layers_are_ordered_by_number():
    directions = CASES["two directions"]
    layers = [f"decoder.layers.{number}" for number in (10, 2, 1)]
    axes = sparsity_per_layer(random_kept(directions, layers=layers), directions).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "10"]


def test_sparsity_is_drawn_in_percent():
    directions = [Direction("en", "de")]
    kept = {"decoder.layers.0": torch.tensor([[True, True, True, False]])}
    axes = sparsity_per_layer(kept, directions).axes[0]
    assert all(list(line.get_ydata()) == [25.0] for line in axes.lines)


def labels_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def assert_apart(figure, labels):
    """No two neighbouring labels touch."""
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize("codes", LANGUAGES.values(), ids=LANGUAGES.keys())
def test_heatmaps_name_every_language(codes):
    directions = around_english(*codes)
    kept = random_kept(directions)
    rows = [i for i, direction in enumerate(directions) if direction.source == "en"]
    one = iou_heatmap(
        pairwise_iou(kept["decoder.layers.0"][rows]), [directions[i] for i in rows], "decoder.layers.0"
    )
    grid = layer_heatmaps(kept, directions)
    maps = [axes for figure in (one, grid) for axes in figure.axes if axes.images]
    assert len(maps) == 1 + len(LAYERS)
    for axes in maps:
        assert sorted(labels_of(axes.xaxis)) == sorted(labels_of(axes.yaxis)) == sorted(codes)
    for figure, axes in ((one, maps[0]), (grid, maps[1])):
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert_apart(figure, labels)


def test_heatmaps_show_percent():
    directions = around_english("de", "nl")[:2]
    iou = torch.tensor([[1.0, 0.724], [0.724, 1.0]])
    axes = iou_heatmap(iou, directions, "title").axes[0]
    assert [text.get_text() for text in axes.texts].count("72") == 2


def test_each_side_is_compared_over_its_own_directions():
    directions = around_english("de", "ru")
    kept = random_kept(directions)
    words = {axes.get_title("left"): axes.get_xlabel() for axes in layer_heatmaps(kept, directions).axes}
    assert "source language of x→en" in words["encoder.layers.0"]
    assert "target language of en→x" in words["decoder.layers.1"]
    for group, said in (("en-x", "en→x"), ("x-en", "x→en")):
        maps = [axes for axes in layer_heatmaps(kept, directions, group=group).axes if axes.images]
        assert all(said in axes.get_xlabel() for axes in maps)
    everything = layer_heatmaps(kept, directions, group="all").axes[0]
    assert len(labels_of(everything.xaxis)) == 4


@pytest.mark.parametrize("codes", LANGUAGES.values(), ids=LANGUAGES.keys())
def test_dendrograms_name_every_language_and_family(codes):
    kept = torch.rand(len(codes), 64, generator=torch.Generator().manual_seed(0)) < 0.7
    families = {"ti": "unknown"} | {code: f"family of {code[0]}" for code in codes if code != "ti"}
    figure = dendrograms({"encoder": cluster(pairwise_iou(kept), codes), "decoder": None}, families=families)
    drawn, empty = figure.axes
    assert sorted(labels_of(drawn.yaxis)) == sorted(codes)
    assert_apart(figure, drawn.get_yticklabels())
    assert "no pair" in empty.texts[0].get_text()
    (legend,) = figure.legends
    named = {families[code] for code in codes}
    assert {text.get_text() for text in legend.get_texts()} == named
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.legend_handles}
    assert len(looks) == len(named)
    figure.draw_without_rendering()
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)


def test_leaves_stand_at_their_distance():
    iou = torch.tensor([[1, 0.9, 0.5], [0.9, 1, 0.5], [0.5, 0.5, 1]])
    axes = dendrograms({"encoder": cluster(iou, ["de", "nl", "ru"])}).axes[0]
    merges = [max(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 4]
    assert sorted(merges) == pytest.approx([10, 50])
    assert axes.get_xlim()[1] == 0 < 50 < axes.get_xlim()[0]


def test_overlap_within_and_between_families_stands_apart():
    directions = [Direction("en", code) for code in ("qa", "qb", "qc", "qd")]
    families = {"qa": "One", "qb": "One", "qc": "Two"}  # qd: unknown
    kept = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    figure = iou_over_layers({"decoder.layers.0": kept}, directions, families=families)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:3] == ["within families", "between families", "family unknown"]
    means = {
        line.get_color(): line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() != "None"
    }
    handles = figure.legends[0].legend_handles
    found = [means[handle.get_color()] for handle in handles[:3]]
    assert found == pytest.approx([100 * 2 / 3, 100 * (1 / 3 + 1 / 2) / 2, 0])


def test_sparsity_has_least_mean_and_most_of_each_group():
    directions = [Direction("en", "de"), Direction("en", "ru"), Direction("de", "en")]
    kept = {"decoder.layers.0": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)}
    axes = sparsity_per_layer(kept, directions).axes[0]
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [50.0, 50.0]
    ranges = [[y for _, y in segment] for lines in axes.collections for segment in lines.get_segments()]
    assert sorted(ranges) == [[25.0, 75.0], [50.0, 50.0]]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_figure_same_bytes(tmp_path, kind):
    directions = CASES["six languages"]
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        save(sparsity_per_layer(random_kept(directions), directions), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("draw", [sparsity_per_layer, iou_over_layers])
def test_bad_layers(draw):
    directions = CASES["two directions"]
    with pytest.raises(NeuronSpecError, match="not the name of a layer"):
        draw({"decoder.0": torch.ones(2, 4).bool()}, directions)
    with pytest.raises(NeuronSpecError, match="do not fit the directions"):
        draw({"decoder.layers.0": torch.ones(3, 4).bool()}, directions)
    with pytest.raises(NeuronSpecError, match="no layers"):
        draw({}, directions)


def test_bad_heatmaps_and_scores():
    with pytest.raises(NeuronSpecError, match="each pair of directions"):
        iou_heatmap(torch.ones(3, 3), CASES["two directions"], "title")
    with pytest.raises(NeuronSpecError, match="no layers"):
        layer_heatmaps({}, CASES["two directions"])
    with pytest.raises(NeuronSpecError, match="scores cannot be drawn"):
        scores_bars({"dense": {}}, "BLEU")
