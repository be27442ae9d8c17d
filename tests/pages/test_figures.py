import re
from itertools import combinations, pairwise

import pytest
import torch
from matplotlib.colors import same_color, to_rgba

from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.overlap import adjusted_iou, cluster, pairwise_iou
from neuron_spec.pages.curves import Point, dendrograms, iou_over_layers, line_panels, sparsity_per_layer
from neuron_spec.pages.heatmap import (
    direction_maps,
    iou_heatmap,
    layer_grids,
    layer_heatmaps,
    loss_increase_heatmap,
)
from neuron_spec.pages.style import COLORS, INK, MUTED, in_family_order, look, rendered
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
    path.write_bytes(rendered(figure, "png"))
    content = path.read_bytes()
    assert content.startswith(PNG)
    assert len(content) > 3000
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("fraction", [0.7, 1.0, 0.0], ids=["sparse", "all kept", "none kept"])
@pytest.mark.parametrize("directions", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("draw", [sparsity_per_layer, iou_over_layers])
def test_curves(draw, directions, fraction, tmp_path):
    check_png(draw(NeuronMasks(directions, random_kept(directions, fraction))), tmp_path / "figure.png")


@pytest.mark.parametrize("directions", CASES.values(), ids=CASES.keys())
def test_heatmap(directions, tmp_path):
    iou = pairwise_iou(random_kept(directions)["decoder.layers.0"])
    check_png(iou_heatmap(iou, directions, "decoder.layers.0"), tmp_path / "figure.png")


def test_grid_of_heatmaps_shares_one_scale(tmp_path):
    directions = CASES["six languages"]
    figure = layer_heatmaps(NeuronMasks(directions, random_kept(directions)), columns=3)
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
    axes = sparsity_per_layer(NeuronMasks(directions, random_kept(directions, layers=layers))).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "10"]


def test_sparsity_is_drawn_in_percent():
    directions = [Direction("en", "de")]
    kept = {"decoder.layers.0": torch.tensor([[True, True, True, False]])}
    axes = sparsity_per_layer(NeuronMasks(directions, kept)).axes[0]
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
    grid = layer_heatmaps(NeuronMasks(directions, kept))
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
    words = {
        axes.get_title("left"): axes.get_xlabel()
        for axes in layer_heatmaps(NeuronMasks(directions, kept)).axes
    }
    assert "source language of x→en" in words["encoder.layers.0"]
    assert "target language of en→x" in words["decoder.layers.1"]
    for group, said in (("en-x", "en→x"), ("x-en", "x→en")):
        maps = [
            axes for axes in layer_heatmaps(NeuronMasks(directions, kept), group=group).axes if axes.images
        ]
        assert all(said in axes.get_xlabel() for axes in maps)
    everything = layer_heatmaps(NeuronMasks(directions, kept), group="all").axes[0]
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
    figure = iou_over_layers(NeuronMasks(directions, {"decoder.layers.0": kept}), families=families)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:3] == ["within families", "between families", "family unknown"]
    means = {
        line.get_color(): line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() != "None"
    }
    handles = figure.legends[0].legend_handles
    found = [means[handle.get_color()] for handle in handles[:3]]
    assert found == pytest.approx([100 * 2 / 3, 100 * (1 / 3 + 1 / 2) / 2, 0])


def test_overlap_has_its_chance_level_above_and_is_adjusted_below():
    directions = [Direction("en", code) for code in ("de", "nl", "ru")]
    partial = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    kept = {"decoder.layers.0": partial, "decoder.layers.1": torch.ones(3, 4, dtype=torch.bool)}
    above, below = iou_over_layers(NeuronMasks(directions, kept)).axes
    (chance,) = (line for line in above.lines if line.get_linestyle() == "--")
    assert list(chance.get_ydata()) == pytest.approx([100 * 7 / 18, 100])
    means = [line for line in below.lines if line.get_marker() not in ("None", "")]
    assert [len(line.get_ydata()) for line in means] == [1, 1]  # the second layer's is unknown
    assert means[0].get_ydata()[0] == pytest.approx(-100 / 11)
    low, high = below.get_ylim()
    assert low < -100 * 7 / 11 < high  # de and ru share none
    _, empty = iou_over_layers(NeuronMasks(directions, {"decoder.layers.0": kept["decoder.layers.1"]})).axes
    assert "unknown" in empty.texts[0].get_text()


def test_sparsity_has_least_mean_and_most_of_each_group():
    directions = [Direction("en", "de"), Direction("en", "ru"), Direction("de", "en")]
    kept = {"decoder.layers.0": torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)}
    axes = sparsity_per_layer(NeuronMasks(directions, kept)).axes[0]
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [50.0, 50.0]
    ranges = [[y for _, y in segment] for lines in axes.collections for segment in lines.get_segments()]
    assert sorted(ranges) == [[25.0, 75.0], [50.0, 50.0]]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_figure_same_bytes(tmp_path, kind):
    directions = CASES["six languages"]
    paths = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for path in paths:
        path.write_bytes(rendered(sparsity_per_layer(NeuronMasks(directions, random_kept(directions))), kind))
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("draw", [sparsity_per_layer, iou_over_layers])
def test_bad_layers(draw):
    directions = CASES["two directions"]
    heads = {"decoder.layers.0.self_attn": torch.ones(2, 4).bool()}
    for masks in (NeuronMasks(directions, {}), NeuronMasks(directions, heads)):
        with pytest.raises(NeuronSpecError, match="no layers"):
            draw(masks)
    with pytest.raises(NeuronSpecError, match="not a mask file\n  got:      a profile"):
        draw(ActivationCounts.zeros(directions, {"decoder.layers.0": 4}))


def test_notebooks_show_figures():
    directions = CASES["six languages"]
    masks = NeuronMasks(directions, random_kept(directions))
    for figure in (iou_over_layers(masks), layer_heatmaps(masks)):
        assert figure._repr_png_() == rendered(figure, "png")


def test_adjusted_overlap_has_a_heat_map_too():
    directions = CASES["six languages"]
    masks = NeuronMasks(directions, random_kept(directions))
    masks.kept["encoder.layers.0"][:] = True  # adjusted IoU is unknown
    figure = layer_heatmaps(masks, adjusted=True)
    empty, shown, *_ = maps_of(figure)
    assert not cell_texts(empty)
    members = [row for row, direction in enumerate(directions) if direction.target == "en"]
    measured = 100 * adjusted_iou(masks.kept["encoder.layers.1"][members])
    images = shown.images[0].get_array().compressed()
    assert sorted(images) == pytest.approx(sorted(measured[~torch.eye(6, dtype=torch.bool)].tolist()))
    assert figure.axes[-1].get_ylabel() == "adjusted IoU (%)"


def test_bad_heatmaps_and_scores():
    with pytest.raises(NeuronSpecError, match="each pair of directions"):
        iou_heatmap(torch.ones(3, 3), CASES["two directions"], "title")
    with pytest.raises(NeuronSpecError, match="no layers"):
        layer_heatmaps(NeuronMasks(CASES["two directions"], {}))
    with pytest.raises(NeuronSpecError, match="scores cannot be drawn"):
        scores_bars({"dense": {}}, "BLEU")


# What is drawn --------------------------------------------------------------------------------

FAMILIES = {"de": "Germanic", "nl": "Germanic", "es": "Romance", "ru": "Slavic"}
MIXED = around_english("ru", "nl", "es", "de")
IN_ORDER = ["en-de", "en-nl", "en-es", "en-ru", "de-en", "nl-en", "es-en", "ru-en"]


def family(code):
    return FAMILIES.get(code, "unknown")


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_of(figure):
    return [axes for axes in figure.axes if axes.images]


def cell_texts(axes):
    """(row, column) -> the text in that cell."""
    cells = [text for text in axes.texts if text.get_va() == text.get_ha() == "center"]
    return {(int(text.get_position()[1]), int(text.get_position()[0])): text for text in cells}


def color_of(axes, row, column):
    (image,) = axes.images
    return tuple(image.to_rgba(image.get_array())[row, column])


def named_runs(axes, along):
    """Family -> (first, last) of its bars: ``x`` above the columns, ``y`` at the right of the rows."""
    place = 0 if along == "x" else 1
    spans = []
    for line in axes.lines:
        points = line.get_xydata()
        if line.get_color() == INK and points[0][1 - place] == points[1][1 - place]:
            spans.append((round(points[0][place] + 0.42), round(points[1][place] - 0.42)))
    names = [text for text in axes.texts if not text.get_text().lstrip("-").replace(".", "").isdigit()]
    return [
        (text.get_text(), span)
        for span in spans
        for text in names
        if text.xy[place] == sum(span) / 2 and (text.get_va() == "bottom") == (along == "x")
    ]


def test_a_cell_holds_its_number_on_the_colour_of_the_scale():
    iou = numbers(4, 4)
    directions = around_english("de", "nl", "es", "ru")[:4]
    (axes,) = maps_of(iou_heatmap(iou, directions, "title"))
    texts = cell_texts(axes)
    assert texts.keys() == {(row, column) for row in range(4) for column in range(4) if row != column}
    (image,) = axes.images
    for (row, column), text in texts.items():
        percent = 100 * iou[row, column].item()
        assert text.get_text() == f"{percent:.0f}"
        assert image.get_array()[row, column] == pytest.approx(percent)
        assert color_of(axes, row, column) == pytest.approx(image.cmap(image.norm(percent)))
    low, high = image.get_clim()
    different = [iou[cell].item() for cell in texts]
    assert low <= 100 * min(different) < low + 1 and high - 1 < 100 * max(different) <= high
    lightest, darkest = (texts[tuple(divmod(int(place), 4))] for place in (
        iou.clone().fill_diagonal_(0).argmax(), iou.clone().fill_diagonal_(1).argmin()))  # fmt: skip
    assert (lightest.get_color(), darkest.get_color()) == (INK, "white")
    assert all(same_color(color_of(axes, i, i), "#E8E8E8") for i in range(4)), "the diagonal is empty"


def test_numbers_are_written_where_there_is_room():
    for count, expected in ((24, True), (60, False)):
        directions = around_english(*EC30[: count // 2])
        (axes,) = maps_of(direction_maps({"": numbers(count, count)}, directions, {}, **WORDS))
        assert len(cell_texts(axes)) == (count**2 if expected else 0)


WORDS = {"title": "title", "label": "label", "rows": "step on", "columns": "loss of"}


def test_a_map_of_very_many_directions_keeps_its_size_and_leaves_labels_out():
    directions = [Direction(one, two) for one in EC30[:12] for two in EC30[:12] if one != two]
    (axes,) = maps_of(direction_maps({"": numbers(132, 132)}, directions, {}, **WORDS))
    assert labels_of(axes.xaxis) == labels_of(axes.yaxis) == []
    assert axes.bbox.width / axes.figure.dpi == pytest.approx(9.6)


def test_digits_follow_the_scale():
    directions = around_english("de")
    for factor, text in ((1000.0, "250"), (20, "5.0"), (2, "0.50"), (0.2, "0.050")):
        values = torch.tensor([[0.0, 0.25], [1.0, 0.0]]) * factor
        (axes,) = maps_of(direction_maps({"": values}, directions, {}, **WORDS))
        assert cell_texts(axes)[0, 1].get_text() == text


@pytest.mark.slow
def test_the_order_of_the_input_changes_no_picture():
    order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(0)).tolist()
    n = len(MIXED)
    square, random, kept = numbers(n, n), numbers(n), random_kept(MIXED)
    figures = []
    for rows in (range(n), order):
        rows = list(rows)
        directions = [MIXED[row] for row in rows]
        values = square[rows][:, rows]
        masks = {layer: of[rows] for layer, of in kept.items()}
        owners = [str(direction) for direction in directions]
        scores = {name: {owner: 10.0 + 2 * len(owner) + i for owner in owners} for i, name in enumerate("ab")}
        figures.append(
            [
                iou_heatmap(values, directions, "title"),
                layer_heatmaps(NeuronMasks(directions, masks)),
                direction_maps({"": values}, directions, FAMILIES, **WORDS),
                loss_increase_heatmap(values, random[rows], owners, directions, [*range(n)], family),
                sparsity_per_layer(NeuronMasks(directions, masks)),
                scores_bars(scores, "BLEU"),
            ]
        )
    for one, other in zip(*figures, strict=True):
        assert rendered(one, "svg") == rendered(other, "svg")


def test_families_are_named_above_and_at_the_right_of_their_cells():
    order = in_family_order(MIXED)
    assert [str(MIXED[i]) for i in order] == IN_ORDER
    (axes,) = maps_of(direction_maps({"": numbers(8, 8)}, MIXED, FAMILIES, **WORDS))
    runs = [("Germanic", (0, 1)), ("Romance", (2, 2)), ("Slavic", (3, 3))]
    runs += [(name, (first + 4, last + 4)) for name, (first, last) in runs]
    assert named_runs(axes, "x") == named_runs(axes, "y") == runs
    assert labels_of(axes.xaxis) == labels_of(axes.yaxis) == [text.replace("-", "→") for text in IN_ORDER]
    parted = {line.get_xdata()[0] for line in axes.lines if line.get_color() == "white"} - {0.0, 1.0}
    assert parted == {first - 0.5 for _, (first, _) in runs[1:]}
    (axes,) = maps_of(
        direction_maps({"": numbers(8, 8)}, MIXED, {"de": "B", "nl": "A", "es": "B", "ru": "A"}, **WORDS)
    )
    runs = [("A", (0, 1)), ("B", (2, 3)), ("A", (4, 5)), ("B", (6, 7))]
    assert named_runs(axes, "x") == named_runs(axes, "y") == runs
    assert labels_of(axes.xaxis)[:4] == ["en→nl", "en→ru", "en→de", "en→es"]


def test_directions_of_one_group_are_named_by_their_other_language():
    (axes,) = maps_of(direction_maps({"": numbers(2, 2)}, around_english("de", "nl")[2:], FAMILIES, **WORDS))
    assert labels_of(axes.xaxis) == labels_of(axes.yaxis) == ["de", "nl"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("step on, x→en", "loss of, x→en")


@pytest.mark.parametrize("positive_is_red", [False, True])
def test_maps_around_zero(positive_is_red):
    directions = around_english("de", "nl")
    first, second = numbers(4, 4) - 0.5, 2 * numbers(4, 4, seed=1) - 1
    first.fill_diagonal_(torch.nan)
    second.fill_diagonal_(-30.0)  # beyond the scale, which it does not set
    figure = direction_maps(
        {"one": first, "two": second}, directions, FAMILIES, **WORDS, positive_is_red=positive_is_red
    )
    one, two = maps_of(figure)
    assert (one.get_title("left"), two.get_title("left")) == ("one", "two")
    assert figure.get_suptitle() == "title" and figure.axes[-1].get_ylabel() == "label"
    most = torch.cat([m[~torch.eye(4).bool()] for m in (first, second)]).abs().max().item()
    for axes, values in ((one, first), (two, second)):
        (image,) = axes.images
        assert image.get_clim() == pytest.approx((-most, most))
        for row, column in ((0, 1), (1, 0), (2, 3)):
            red, _, blue, _ = color_of(axes, row, column)
            assert (red > blue) == ((values[row, column].item() > 0) == positive_is_red)
            assert cell_texts(axes)[row, column].get_text() == f"{values[row, column]:z.2f}"
    assert same_color(color_of(one, 0, 0), "#E8E8E8") and (0, 0) not in cell_texts(one)
    assert color_of(two, 0, 0) == pytest.approx(two.images[0].cmap(0.0))
    assert cell_texts(two)[0, 0].get_text() == "-30.00"


def test_grids_over_layers_and_parts():
    grid = {("e0", "ffn"): 0.25, ("d0", "ffn"): -0.5, ("d0", "cross"): None}
    figure = layer_grids(dict.fromkeys("abc", grid), title="title", panels=2)
    axes = maps_of(figure)
    assert [ax.get_title("left") for ax in axes] == ["a", "b", "c"]
    for ax in axes:
        assert (labels_of(ax.xaxis), labels_of(ax.yaxis)) == (["e0", "d0"], ["ffn", "cross"])
        texts = {cell: text.get_text() for cell, text in cell_texts(ax).items()}
        assert texts == {(0, 0): "0.25", (0, 1): "-0.50"}
        assert same_color(color_of(ax, 1, 0), "#E8E8E8") and same_color(color_of(ax, 1, 1), "#E8E8E8")
    places = [ax.get_position() for ax in axes]
    assert places[0].y0 == places[1].y0 > places[2].y1 and places[0].x0 == places[2].x0
    (alone,) = maps_of(layer_grids({"a": grid}, title="title", panels=1))
    assert alone.get_title("left") == ""


def test_maps_and_their_words_stand_apart():
    long = dict.fromkeys(FAMILIES, "family of a long name")
    change = numbers(8, 8)
    figures = [
        layer_heatmaps(NeuronMasks(MIXED, random_kept(MIXED)), families=families, group=group)
        for families in (None, long)
        for group in ("own", "all")
    ]
    figures += [direction_maps(dict.fromkeys("ab", change), MIXED, long, **WORDS)]
    figures += [layer_heatmaps(NeuronMasks(MIXED[:1], random_kept(MIXED[:1])), group="en-x")]
    owners = [str(direction) for direction in MIXED]
    figures += [
        loss_increase_heatmap(
            change, change[0], owners, MIXED, [*range(8)], lambda code: long.get(code, code)
        )
    ]
    for figure in figures:
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        title = figure.texts[0].get_window_extent() if figure.get_suptitle() else None
        assert title is None or not any(title.overlaps(box) for box in boxes)
        cells = [
            side / count
            for ax in maps_of(figure)
            for side, count in zip(ax.bbox.size, ax.images[0].get_array().shape[::-1], strict=True)
        ]
        assert cells == pytest.approx([cells[0]] * len(cells)), "squares of one size"


def test_lines_of_panels():
    curve = {20.0: Point(3.0, 2.0, 5.0), 0.0: Point(1.0, 0.5, 1.5)}
    looks = {"a": look(0), "b": look(3, linestyle="--")}
    figure = line_panels(
        [{"one": {"a": curve, "b": {0.0: Point(2.0)}}, "two": {"b": curve}}, {"three": {"a": curve}}],
        title="title",
        label="shots",
        ticks={0.0: "none", 20.0: "20", 100.0: "hundred"},
        row_labels=["upper", "lower"],
        looks=looks,
        zero="bottom",
    )
    assert [ax.get_title("left") for ax in figure.axes] == ["one", "two", "three"]
    one, two, three = figure.axes
    assert labels_of(one.xaxis) == labels_of(three.xaxis) == ["none", "20"], "only values that occur"
    assert (one.get_ylabel(), two.get_ylabel(), three.get_ylabel()) == ("upper", "", "lower")
    a, b = one.lines
    assert (a.get_color(), b.get_color(), b.get_linestyle()) == (COLORS[0], COLORS[3], "--")
    assert list(a.get_ydata()) == [3.0, 1.0] and list(b.get_ydata()) == [2.0]
    assert list(a.get_xdata()) == pytest.approx([0.93, -0.07]) and list(b.get_xdata()) == [0.07]
    assert [of.get_segments()[0][:, 1].tolist() for of in one.collections] == [[2.0, 5.0], [0.5, 1.5]]
    assert one.get_ylim() == two.get_ylim() and one.get_ylim()[0] == 0 < 5 < one.get_ylim()[1]
    assert figure.get_supxlabel() == "shots" and figure.legends[0].get_title().get_text() == "title"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [handle.get_color() for handle in figure.legends[0].legend_handles] == [COLORS[0], COLORS[3]]


def test_lines_over_numbers_stand_where_these_do():
    figure = line_panels(
        [{"one": {"a": {1.0: Point(2.0), 5.0: Point(-3.0)}}}], title="t", label="l", zero="line"
    )
    (axes,) = figure.axes
    line, zero = axes.lines
    assert line.get_xydata().tolist() == [[1, 2], [5, -3]]
    assert list(zero.get_ydata()) == [0, 0] and zero.get_color() == MUTED


def test_looks_differ_for_forty_nine_things():
    assert len({(each["color"], each["marker"]) for each in map(look, range(49))}) == 49


def test_sparsity_names_its_groups_and_layers():
    kept = random_kept(MIXED, layers=["encoder.layers.0", *(f"decoder.layers.{i}" for i in range(3))])
    figure = sparsity_per_layer(NeuronMasks(MIXED, kept))
    assert [ax.get_title("left") for ax in figure.axes] == ["encoder", "decoder"]
    assert [labels_of(ax.xaxis) for ax in figure.axes] == [["0"], ["0", "1", "2"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["en→x, mean", "x→en, mean"]
    for ax in figure.axes:
        assert [line.get_color() for line in ax.lines] == list(COLORS[:2])
    for place, rows in enumerate((range(4), range(4, 8))):
        expected = [
            100 * (1 - kept[f"decoder.layers.{i}"][list(rows)].double().mean()).item() for i in range(3)
        ]
        assert list(figure.axes[1].lines[place].get_ydata()) == pytest.approx(expected)


def test_scores_stand_on_their_lines():
    rows = {
        "dense": {"en-de": 20.0, "en-nl": 22.0, "de-en": 30.0},
        "specialized": {"en-de": 21.0, "de-en": 29.0},
    }
    figure = scores_bars(rows, "BLEU", families={"de": "B", "nl": "A"})
    out, into = figure.axes
    assert [out.get_title("left"), into.get_title("left")] == ["en→x", "x→en"]
    assert labels_of(out.yaxis) == ["en→nl", "en→de", "mean of 1"]
    assert labels_of(into.yaxis) == ["de→en", "mean"]
    dots = {
        color: [tuple(line.get_xydata()[0]) for line in out.lines if line.get_color() == color]
        for color in COLORS[:2]
    }
    assert dots == {COLORS[0]: [(22, 0), (20, 1), (20, 2.4)], COLORS[1]: [(21, 1), (21, 2.4)]}
    assert out.get_ylim() == into.get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "specialized"]


def test_leaves_of_one_family_look_alike():
    families = {"de": "A", "nl": "A", "ru": "B"}
    tree = cluster(pairwise_iou(random_kept(MIXED)["encoder.layers.0"][:4]), ["ru", "nl", "es", "de"])
    figure = dendrograms({"encoder": tree}, families=families)
    legend = figure.legends[0]
    looks = {
        text.get_text(): (handle.get_color(), handle.get_marker(), handle.get_markerfacecolor())
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert list(looks) == ["A", "B", "unknown"] and to_rgba(looks["unknown"][2]) == to_rgba("white")
    (axes,) = figure.axes
    places = {round(line.get_ydata()[0]): line for line in axes.lines if line.get_linestyle() == "None"}
    for place, code in enumerate(labels_of(axes.yaxis)):
        leaf = places[place]
        drawn = (leaf.get_color(), leaf.get_marker(), leaf.get_markerfacecolor())
        assert drawn == looks[families.get(code, "unknown")]
