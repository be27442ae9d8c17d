"""What ``from neuron_spec import ...`` gives: typed, with examples that run, light, and without fairseq."""

from __future__ import annotations

import ast
import doctest
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import neuron_spec
from neuron_spec import (
    ActivationCounts,
    Direction,
    NeuronMasks,
    NeuronSpecError,
    adjusted_iou,
    cluster,
    compared,
    dendrograms,
    family_contrast,
    family_of,
    iou_over_layers,
    layer_heatmaps,
    matched_random,
    only_side,
    other_direction,
    overlap_of,
    pairwise_iou,
    parse_directions,
    select,
    select_again,
    select_shared_core,
    select_top_fraction,
)
from neuron_spec.errors import ArtifactError, DirectionError, ModelError, SelectionError
from neuron_spec.neurons import selection

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "data" / "quickstart" / "profile.safetensors"
FROZEN = ROOT / "tests" / "frozen" / "0.1.0"


def python(code: str, folder: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


# The names ------------------------------------------------------------------------------------


def test_type_checkers_and_python_see_the_same_names() -> None:
    tree = ast.parse(Path(neuron_spec.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    imports = {
        alias.name: str(node.module).removeprefix("neuron_spec.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imports == neuron_spec._MODULE_OF
    assert neuron_spec.__all__ == sorted(imports) and {*imports} < {*dir(neuron_spec)}
    for name, module in imports.items():
        assert getattr(neuron_spec, name) is getattr(importlib.import_module(f"neuron_spec.{module}"), name)
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        neuron_spec.selekt  # noqa: B018


def test_the_package_uses_no_name_of_its_own_surface() -> None:
    """They would hide from the order of imports."""
    for path in Path(neuron_spec.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "neuron_spec":
                assert not {alias.name for alias in node.names} & {*neuron_spec.__all__}, path


@pytest.mark.slow
def test_every_name_works_where_fairseq_cannot_be_imported() -> None:
    python(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('fairseq', 'fairseq_cli', 'omegaconf', 'hydra')))\n"  # None: cannot be imported
        "import neuron_spec\n"
        "for name in neuron_spec.__all__: getattr(neuron_spec, name)\n"
        f"masks = neuron_spec.select(neuron_spec.ActivationCounts.load({str(PROFILE)!r}))\n"
        "assert neuron_spec.iou_over_layers(masks)._repr_png_()\n"
    )


@pytest.mark.slow
def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, neuron_spec; print(*(name for name in sys.modules if name.startswith('neuron_spec')))"
    assert python(code).split() == ["neuron_spec"]
    heavy = "import sys; from neuron_spec import select; print({'matplotlib', 'scipy', 'fairseq'} & {*sys.modules})"
    assert python(heavy).strip() == "set()"


# The examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["", *sorted({*neuron_spec._MODULE_OF.values()})])
def test_examples(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tested = importlib.import_module(f"neuron_spec.{module}".rstrip("."))
    failed, tried = doctest.testmod(tested)
    assert not failed
    if module != "errors":
        assert tried


def test_the_five_lines_are_five() -> None:
    lines = [line for line in str(neuron_spec.__doc__).splitlines() if line.startswith(">>>")]
    assert len(lines) <= 7


@pytest.mark.slow
def test_the_notebook_runs_as_a_script(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "data", tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "examples/explore_neurons.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "within families" in done.stdout


# What goes in and out -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profile() -> ActivationCounts:
    return ActivationCounts.load(PROFILE)


def test_masks_go_to_torch_and_back(profile: ActivationCounts, tmp_path: Path) -> None:
    masks = select(profile, 95)
    torch.save(masks.to_dict(), tmp_path / "masks.pt")
    again = NeuronMasks.from_dict(torch.load(tmp_path / "masks.pt", weights_only=True), origin="torch")
    assert again.fingerprint == masks.fingerprint and again.metadata == {"origin": "torch"}
    again.save(tmp_path / "masks.safetensors")
    loaded = NeuronMasks.load(tmp_path / "masks.safetensors")
    assert loaded.fingerprint == masks.fingerprint and loaded.metadata == {"origin": "torch"}
    pruned = NeuronMasks.load(FROZEN / "masks" / "pruned.safetensors")  # of heads too
    assert NeuronMasks.from_dict(pruned.to_dict()).fingerprint == pruned.fingerprint


def test_the_command_selects_the_same(profile: ActivationCounts) -> None:
    ks = selection.ks_per_direction(profile.directions, k=selection.parse_k("99.9"))
    for k in (99.9, "99.9", ks):
        assert select(profile, k).fingerprint == select(profile, ks).fingerprint
        assert select(profile, k).metadata == select(profile, ks).metadata
    assert select(profile).metadata["k_percent"]["encoder"]["en-de"] == 95


def test_what_the_quickstart_found_is_found_in_a_notebook(profile: ActivationCounts) -> None:
    masks = select(profile)
    chosen = compared("decoder", masks.directions)
    iou = chosen.between_languages(masks.kept["decoder.layers.2"], adjusted_iou)
    within, between = family_contrast(iou, [family_of(code) for code in chosen.distinct])
    report = (ROOT / "results" / "quickstart" / "report.md").read_text(encoding="utf-8")
    assert f"| {100 * within:.1f} | {100 * between:.1f} | 0.067 |" in report
    tree = cluster(iou, chosen.distinct)
    assert {tree.languages[int(number)] for number in tree.merges[0][:2]} == {"es", "pt"}, (
        "the first to merge"
    )
    assert 0.9 < overlap_of(masks, ["en-de"], select(profile, 93)).item() < 1


def test_directions_go_by_name(profile: ActivationCounts) -> None:
    assert profile.of(["de-en", "en-ru"]).names == ["de-en", "en-ru"]
    assert NeuronMasks(["en-de"], {"encoder.layers.0": torch.ones(1, 4).bool()}).directions[0].foreign == "de"
    with pytest.raises(DirectionError, match="not in the profile"):
        profile.of(["en-fr"])


# Bad input ------------------------------------------------------------------------------------


def narrow(masks: NeuronMasks, layers: int = 6) -> NeuronMasks:
    """Masks of a model half as wide, perhaps of fewer layers."""
    kept = {layer: masks.kept[layer][:, :128] for layer in masks.layers[:layers]}
    return NeuronMasks(masks.directions, kept, masks.metadata)


def test_masks_of_another_model_are_refused(profile: ActivationCounts, tmp_path: Path) -> None:
    masks = select(profile)
    for other in (
        narrow(masks),
        narrow(masks, layers=2),
        NeuronMasks.load(FROZEN / "masks/direction.safetensors"),
    ):
        other.save(tmp_path / "other.safetensors")
        theirs = NeuronMasks.load(tmp_path / "other.safetensors")
        for refused in (
            lambda theirs=theirs: theirs.require_fit(profile.widths),
            lambda theirs=theirs: overlap_of(masks, other=theirs),
            lambda theirs=theirs: overlap_of(theirs, other=masks),
        ):
            with pytest.raises(ModelError, match=r"another model\n  got: [\s\S]*expected: [\s\S]*mend: "):
                refused()
    with pytest.raises(ArtifactError, match="other layers or widths"):
        select_again(narrow(masks), profile)
    layer = "decoder.layers.0"
    for measure in (pairwise_iou, adjusted_iou):
        with pytest.raises(ModelError, match="different widths\n  got:      128 neurons\n  expected: 256"):
            measure(masks.kept[layer], narrow(masks).kept[layer])


@pytest.mark.parametrize("name", ["importance", "masks/direction", "masks/weights"])
def test_a_file_of_another_kind_is_no_profile(name: str) -> None:
    with pytest.raises(ArtifactError, match="not a profile"):
        ActivationCounts.load(FROZEN / f"{name}.safetensors")


@pytest.mark.parametrize("name", ["importance", "profile", "masks/weights"])
def test_a_file_of_another_kind_holds_no_masks(name: str) -> None:
    with pytest.raises(ArtifactError, match="not a mask file"):
        NeuronMasks.load(FROZEN / f"{name}.safetensors")


def test_another_kind_in_its_place_is_refused(profile: ActivationCounts) -> None:
    masks = select(profile)
    for wants_profile in (select, select_shared_core, lambda value: select_top_fraction(value, 50)):
        for value, said in ((masks, "a mask file"), ({}, "{}")):
            with pytest.raises(ArtifactError, match=f"not a profile\n  got:      {said}"):
                wants_profile(value)
    for wants_masks in (
        iou_over_layers,
        layer_heatmaps,
        overlap_of,
        other_direction,
        lambda value: matched_random(value, 1),
        lambda value: only_side(value, "encoder"),
        lambda value: overlap_of(masks, other=value),
        lambda value: select_again(value, profile),
    ):
        with pytest.raises(ArtifactError, match="not a mask file\n  got:      a profile"):
            wants_masks(profile)


ROW = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kept", "kind", "said"),
    [
        ({}, DirectionError, "no directions"),
        ({"english": {"encoder.layers.0": ROW}}, DirectionError, "malformed direction"),
        ({"en-de": {"encoder.0": ROW}}, ArtifactError, "not a site"),
        ({"en-de": {"encoder.layers.0": ROW.int()}}, ArtifactError, "where:    en-de\n  got:      torch.int32"),
        ({"en-de": {"encoder.layers.0": ROW[None]}}, ArtifactError, "malformed masks"),
        ({"en-de": {"encoder.layers.0": [True]}}, ArtifactError, "got:      list"),
        ({"en-de": {"encoder.layers.0": ROW}, "de-en": {}}, ModelError, "where:    de-en"),
        ({"en-de": {}, "de-en": {"encoder.layers.0": ROW}}, ModelError, "different models"),
        ({"en-de": {"encoder.layers.0": ROW}, "de-en": {"encoder.layers.0": ROW[:3]}}, ModelError, "layers.0: 3"),
    ],
)  # fmt: skip
def test_plain_tensors_that_are_no_masks(kept: dict, kind: type[NeuronSpecError], said: str) -> None:
    with pytest.raises(kind, match=said):
        NeuronMasks.from_dict(kept)


@pytest.mark.parametrize(
    "ask",
    [
        lambda profile: select(profile, 0),
        lambda profile: select(profile, float("nan")),
        lambda profile: select(profile, neuron_sets="lang"),
        lambda profile: select_top_fraction(profile, 101),
        lambda profile: select_shared_core(profile, 95, "half"),
        lambda profile: only_side(select(profile), "left"),
    ],
)
def test_words_and_numbers_out_of_range_are_refused(ask, profile: ActivationCounts) -> None:
    with pytest.raises(SelectionError, match="expected"):
        ask(profile)


def test_sides_and_groups_that_are_none_are_refused(profile: ActivationCounts) -> None:
    for side, group in (("left", "own"), ("encoder", "x->en")):
        with pytest.raises(NeuronSpecError, match="one of"):
            compared(side, profile.directions, group)


def test_one_direction_s_masks_by_its_name_and_a_short_description(profile: ActivationCounts) -> None:
    masks = select(profile, 95)
    name = masks.names[1]
    found = masks[name]
    assert list(found) == list(masks.sites)
    assert all(torch.equal(kept, masks.kept[site][1]) for site, kept in found.items())
    with pytest.raises(DirectionError, match="not in the"):
        masks["xx-yy"]
    assert name in repr(masks) and len(repr(masks)) < 100


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda masks: adjusted_iou(masks), "not the kept neurons of a layer"),
        (lambda masks: pairwise_iou([[True]]), "not the kept neurons of a layer"),
        (lambda masks: adjusted_iou(masks.kept["encoder.layers.0"], [1]), "not the kept neurons"),
        (lambda masks: dendrograms(masks), "not trees by side"),
        (lambda masks: masks.rows(None), "not a list of directions"),
        (lambda masks: masks.rows("en-de"), "not a list of directions"),
        (lambda masks: masks.rows([3]), "malformed direction"),
        (lambda masks: masks.of(None), "not a list of directions"),
        (lambda masks: parse_directions(None), "not a list of directions"),
        (lambda masks: parse_directions([1]), "malformed direction"),
        (lambda masks: Direction("en", None), "not a language code"),
        (lambda masks: NeuronMasks.load(3), "not the path of a mask file"),
        (lambda masks: ActivationCounts.load(None), "not the path of a profile"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_one_message(call, said):
    masks = NeuronMasks.from_dict({"en-de": {"encoder.layers.0": torch.ones(4, dtype=torch.bool)}})
    with pytest.raises(NeuronSpecError, match=said):
        call(masks)
