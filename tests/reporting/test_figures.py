import pytest
import torch

from neuron_spec.directions import Direction
from neuron_spec.errors import NeuronSpecError
from neuron_spec.neurons.overlap import pairwise_iou
from neuron_spec.reporting.figures import (
    in_family_order,
    iou_heatmap,
    iou_heatmaps,
    iou_over_layers,
    save,
    scores_bars,
    sparsity_per_layer,
)

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
    ious = {layer: pairwise_iou(kept) for layer, kept in random_kept(directions).items()}
    figure = iou_heatmaps(ious, directions, columns=3)
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


def test_same_figure_same_bytes(tmp_path):
    directions = CASES["six languages"]
    for name in ("a.png", "b.png"):
        save(sparsity_per_layer(random_kept(directions), directions), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


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
        iou_heatmaps({}, CASES["two directions"])
    with pytest.raises(NeuronSpecError, match="scores cannot be drawn"):
        scores_bars({"dense": {}}, "BLEU")
