"""Gradients and steps are properties of model, text and masks, whatever the batches; killed runs go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.backends.fairseq.loading import TeacherForced
from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.neurons.choices import Part
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.neurons.pairs import Compared
from neuron_spec.studies.conflict import measure as interference
from neuron_spec.studies.conflict.measure import (
    ALL,
    SHARED,
    Cell,
    Conflict,
    Gradients,
    across_halves,
    cells_of,
    cosines,
    disattenuated,
    groups_of,
    plan_passes,
    summarize_conflict,
)
from neuron_spec.studies.transfer.measure import INTACT, Lookahead, Transfer, summarize_transfer

pytestmark = pytest.mark.slow

TWO = "en-qa,en-qb"


@pytest.fixture(scope="module")
def open_model(workshop, checkpoint) -> Any:
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]

    def open_(
        path: Path = checkpoint,
        pairs: str = workshop.lang_pairs,
        data_bin: Path = workshop.data_bin,
        **options: Any,
    ) -> TeacherForced:
        directions = parse_directions(pairs)
        return TeacherForced(path, data_bin, directions, token_flags=flags, cpu=True, **options)

    return open_


@pytest.fixture(scope="module")
def model(open_model) -> TeacherForced:
    return open_model()


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten().clone() for g in gradients.values()])


# Text and gradients ---------------------------------------------------------------------------


def test_gradients_do_not_depend_on_batches_or_padding(open_model, model):
    one_by_one = open_model(max_tokens=40)
    text, other = model.read("valid"), one_by_one.read("valid")
    assert len(other.batches) > len(text.batches) and other.tokens == text.tokens
    torch.testing.assert_close(
        flat(model.gradients(text, 2)), flat(one_by_one.gradients(other, 2)), rtol=1e-4, atol=1e-6
    )
    assert model.mean_losses(text) == pytest.approx(one_by_one.mean_losses(other), rel=1e-5)


def test_of_shards_the_first_with_the_subset_is_read(open_model, model, workshop, tmp_path):
    for number, subsets in enumerate((["train"], ["valid", "train"], ["valid"])):
        shard = tmp_path / f"shard{number}"
        shard.mkdir()
        for file in workshop.data_bin.iterdir():
            if file.name.startswith((*(f"{name}." for name in subsets), "dict.")):
                (shard / file.name).symlink_to(file)
    sharded = open_model(data_bin=tmp_path)
    for subset in ("train", "valid"):
        text = sharded.read(subset, sentences=20)
        assert sharded.mean_losses(text) == model.mean_losses(model.read(subset, sentences=20))


def test_a_gradient_is_the_slope_of_the_mean_loss(model):
    text = model.read("valid")
    gradient = {name: g.clone() for name, g in model.gradients(text, 1).items()}
    length = flat(gradient).norm()
    slopes = []
    for way in (+1, -1):
        with torch.no_grad():
            for name, parameter in model.trained.items():
                parameter.add_(gradient[name], alpha=way * 1e-3 / length.item())
            slopes.append(model.mean_losses(text)[1])
            for name, parameter in model.trained.items():
                parameter.sub_(gradient[name], alpha=way * 1e-3 / length.item())
    assert (slopes[0] - slopes[1]) / 2e-3 == pytest.approx(length.item(), rel=0.02)


def test_nothing_is_dropped_out(model):
    text = model.read("valid")
    assert torch.equal(flat(model.gradients(text, 0)), flat(model.gradients(text, 0)))


def test_halves_are_the_whole_and_samples_are_spread(model):
    whole, first, second = (model.read("valid", part=part) for part in (Part(), *interference.HALVES))
    assert [a + b for a, b in zip(first.tokens, second.tokens, strict=True)] == whole.tokens
    ids = [sorted(i for batch in text.of(0) for i in batch["id"].tolist()) for text in (first, second)]
    assert ids == [[*range(0, 21, 2)], [*range(1, 21, 2)]]
    sample = model.read("train", sentences=30)
    assert sorted(i for batch in sample.of(0) for i in batch["id"].tolist()) == [*range(0, 300, 10)]
    assert model.read("valid", sentences=1000).tokens == whole.tokens


def test_every_parameter_is_in_one_cell(model):
    cells = cells_of(model.model, model.trained)
    names = [name for own in cells.values() for name in own]
    assert sorted(names) == sorted(model.trained) and len(set(names)) == len(names)
    assert {cell.part for cell in cells} == set(interference.PARTS) - {"adapters"}
    assert [cell for cell in cells if cell.part == "embeddings"] == [Cell(SHARED, None, "embeddings")]
    assert set(cells[Cell("decoder", 1, "fc1")]) == {
        "decoder.layers.1.fc1.weight",
        "decoder.layers.1.fc1.bias",
    }
    assert all(Cell.parse(str(cell)) == cell for cell in cells)
    groups = groups_of(list(cells))
    assert set(groups["encoder"]) | set(groups["decoder"]) | set(groups["shared embeddings"]) == set(cells)
    assert groups["decoder fc1"] == [Cell("decoder", 0, "fc1"), Cell("decoder", 1, "fc1")]
    assert all(len(set(own)) == len(own) for own in groups.values())


# Products -------------------------------------------------------------------------------------


def test_passes_cover_all_within_bounds():
    sizes = {Cell("encoder", 0, "fc1"): 10, Cell("encoder", 0, "fc2"): 3, Cell("decoder", 0, "fc1"): 8}
    for values in (1, 4, 10, 21, 100):
        passes = plan_passes(sizes, values)
        assert all(sum(s.stop - s.start for s in one.values()) <= values for one in passes)
        assert len(passes) == -(-21 // values)
        for cell, size in sizes.items():
            covered = [i for one in passes if cell in one for i in range(one[cell].start, one[cell].stop)]
            assert covered == [*range(size)]


@pytest.fixture(scope="module")
def gradients(model) -> Gradients:
    return Gradients(model, "valid", None)


def products_of(gradients: Gradients, folder: Path, gibibytes: float = 1.0) -> Any:
    names = [str(d) for d in gradients.model.directions]
    made = {"stage": "test", "inputs": {}, "parameters": {}}
    return interference.gradient_products(folder, names, made, lambda: gradients, gibibytes=gibibytes)


@pytest.fixture(scope="module")
def products(gradients, tmp_path_factory) -> Any:
    return products_of(gradients, tmp_path_factory.mktemp("products"))


def test_products_are_those_of_the_gradients(gradients, products, model):
    found, metadata = products
    held = [flat(model.gradients(text, row)).double() for row in range(6) for text in gradients.texts]
    expected = torch.stack(held) @ torch.stack(held).T
    torch.testing.assert_close(torch.stack(list(found.values())).sum(0), expected, rtol=1e-6, atol=1e-9)
    tokens = torch.tensor(metadata["tokens"])
    whole = torch.stack([flat(model.gradients(model.read("valid"), row)) for row in range(6)]).double()
    whole = torch.nn.functional.normalize(whole)
    torch.testing.assert_close(cosines(expected, tokens), whole @ whole.T, rtol=1e-4, atol=1e-5)
    assert cosines(expected, tokens).diagonal().tolist() == pytest.approx([1] * 6)


def test_less_room_gives_the_same_in_more_passes(gradients, products, tmp_path, monkeypatch):
    calls = []
    of = Gradients.of
    monkeypatch.setattr(Gradients, "of", lambda self, row, *a: calls.append(row) or of(self, row, *a))
    room = sum(gradients.sizes.values()) * 12 * 4 / 2.5 / 2**30
    found, _ = products_of(gradients, tmp_path, room)
    assert calls == [*range(6)] * 3
    for cell, product in products[0].items():
        torch.testing.assert_close(found[cell], product, rtol=1e-6, atol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["products.safetensors"]
    with pytest.raises(ModelError, match="--gradient-space"):
        products_of(gradients, tmp_path / "none", 1e-12)


def test_a_killed_run_goes_on_with_the_next_direction(gradients, products, tmp_path, monkeypatch):
    calls = []
    of = Gradients.of

    def killed(self: Gradients, row: int, *rest: Any) -> Any:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(row)
        return of(self, row, *rest)

    monkeypatch.setattr(Gradients, "of", killed)
    with pytest.raises(KeyboardInterrupt):
        products_of(gradients, tmp_path)
    calls.clear()
    found, _ = products_of(gradients, tmp_path)
    assert calls == [4, 5]
    assert all(torch.equal(found[cell], product) for cell, product in products[0].items())


def test_disjoint_neurons_have_no_conflict_in_fc1(workshop, open_model, tmp_path):
    widths = {key: fc1.out_features for key, fc1 in workshop.build()[2].ffn_layers().items()}
    kept = {key: torch.zeros(2, width, dtype=torch.bool) for key, width in widths.items()}
    for rows in kept.values():
        rows[0, ::2], rows[1, 1::2] = True, True
    masks = NeuronMasks(parse_directions(TWO), kept)
    masked, _ = products_of(Gradients(open_model(pairs=TWO, masks=masks), "valid", None), tmp_path / "masked")
    dense, _ = products_of(Gradients(open_model(pairs=TWO), "valid", None), tmp_path / "dense")
    # Rows of fc1 are disjoint; its biases are not masked, as a dropped neuron emits its constant.
    weights = open_model(pairs=TWO, masks=masks)
    text, name = weights.read("valid"), "encoder.layers.0.fc1.weight"
    first = weights.gradients(text, 0)[name].clone()
    second = weights.gradients(text, 1)[name]
    assert first.norm() > 0 and second.norm() > 0 and not bool((first * second).any())
    for cell, product in masked.items():
        if cell.part == "fc1":
            assert not torch.allclose(product, dense[cell])


def test_a_specialized_checkpoint_runs_through_its_own_masks(workshop, open_model, tmp_path):
    cfg, _, built = workshop.build()
    masks = workshop.masks(built)
    through = open_model(masks=masks)
    built.set_masks(masks, workshop.langs)
    own = open_model(workshop.save(tmp_path / "specialized.pt", cfg, built))
    text = own.read("valid")
    torch.testing.assert_close(
        flat(own.gradients(text, 3)), flat(through.gradients(text, 3)), rtol=1e-5, atol=1e-8
    )


def test_where_only_adapters_were_trained_only_they_are_looked_at(workshop, open_model, tmp_path):
    cfg, _, built = workshop.build("--adapter-size", "4", arch="neuron_spec_adapters_tiny")
    adapted = open_model(workshop.save(tmp_path / "adapters.pt", cfg, built))
    assert adapted.trained and all(".adapter." in name for name in adapted.trained)
    found, _ = products_of(Gradients(adapted, "valid", None), tmp_path / "products")
    assert {cell.part for cell in found} == {"adapters"}
    # en-qa and qa-en share theirs; en-qb has others.
    total = torch.stack(list(found.values())).sum(0)
    assert bool((total[:4, 4:] == 0).all()) and bool((total[:2, 2:4] != 0).all())


# Statistics -----------------------------------------------------------------------------------


def made_up_products(signal: torch.Tensor, noise: float, seed: int = 1) -> torch.Tensor:
    """Of gradients `[D, values]`, each half with its own noise; directions share it half by half."""
    generator = torch.Generator().manual_seed(seed)
    shared = noise * torch.randn(2, signal.size(1), generator=generator, dtype=torch.float64)
    halves = (signal[:, None] + shared).flatten(0, 1)
    return halves @ halves.T


def test_the_correction_sees_through_noise_that_directions_share():
    generator = torch.Generator().manual_seed(2)
    signal = torch.randn(4, 40_000, generator=generator, dtype=torch.float64)
    signal[1] = -signal[0]
    truth = torch.nn.functional.normalize(signal) @ torch.nn.functional.normalize(signal).T
    products = made_up_products(signal, 1.0)
    tokens = torch.full((4, 2), 10)
    assert cosines(products, tokens)[0, 2] > 0.2  # not so in truth
    torch.testing.assert_close(disattenuated(products), truth, atol=0.05, rtol=0)
    assert across_halves(products).diagonal().tolist() == pytest.approx([0.5] * 4, abs=0.05)
    assert disattenuated(made_up_products(signal, 4.0)).isnan().all()  # too noisy to be corrected


PAIRS = "en-de,en-nl,en-es,en-pt,de-en"


def test_conflict_is_summed_up_by_kind_and_family():
    signal = torch.eye(5, dtype=torch.float64)
    signal[1] += signal[0]
    signal[2], signal[3] = -signal[0], signal[2] - signal[0]
    signal = torch.cat([signal, 0.01 * torch.eye(5, dtype=torch.float64)], dim=1)
    conflict = Conflict(
        {Cell("encoder", 0, "fc1"): made_up_products(signal, 0.0), Cell("decoder", 0, "fc1"): torch.zeros(10, 10).double()},
        torch.full((5, 2), 7),
        {Cell("encoder", 0, "fc1"): 10, Cell("decoder", 0, "fc1"): 4},
    )  # fmt: skip
    compared = Compared(parse_directions(PAIRS))
    found = summarize_conflict(compared, conflict, seed=1)
    group = found["groups"][ALL]
    assert group["parameters"] == 14
    assert group["kinds"]["en->x"]["pairs"] == 6 and group["kinds"]["across"]["pairs"] == 4
    assert group["kinds"]["en->x"]["conflict_fraction"] == pytest.approx(4 / 6)
    assert "x->en" not in group["kinds"]
    assert group["families"]["en->x"]["same"] > 0.5 > group["families"]["en->x"]["other"]
    assert group["families"]["en->x"]["p"] == pytest.approx(1 / 3)
    empty = found["groups"]["decoder"]
    assert empty["kinds"]["en->x"]["mean"] is None and "no gradient" in empty["families"]["en->x"]["reason"]
    json.dumps(found, allow_nan=False)
    scaled = Conflict({c: 9 * p for c, p in conflict.products.items()}, conflict.tokens, conflict.parameters)
    assert summarize_conflict(compared, scaled, seed=1)["cosine"]["en-de"] == pytest.approx(
        found["cosine"]["en-de"]
    )


def test_overlap_and_transfer_rise_together():
    compared = Compared(parse_directions(PAIRS), overlap=torch.tensor([[9.0, 8, 1, 2, 0], [8, 9, 3, 4, 0], [1, 3, 9, 7, 0], [2, 4, 7, 9, 0], [0] * 5]) / 9)  # fmt: skip
    assert compared.overlap is not None
    transfer = Transfer([5] * 5, torch.ones(5).double(), 1 - compared.overlap.double(), 3.0)
    found = summarize_transfer(compared, transfer, seed=1)
    assert found["overlap"]["en->x"]["correlation"] == pytest.approx(1)
    assert found["groups"]["en->x"]["harmed_fraction"] == 0
    assert found["relative"]["en-de"]["en-nl"] == pytest.approx(-8 / 9)
    assert found["relative"]["de-en"]["en-de"] is None  # it gained nothing itself
    assert found["families"]["en->x"]["same"] == pytest.approx(7.5 / 9)
    json.dumps(found, allow_nan=False)


# Steps ----------------------------------------------------------------------------------------


def test_a_step_of_rate_zero_changes_nothing_and_a_small_one_helps_its_own(model):
    ahead = Lookahead(model, train_subset="valid", gen_subset="valid", steps=1, sentences=100)
    before = {name: p.detach().clone() for name, p in model.trained.items()}
    intact = ahead.losses(None, 1.0)
    for row in range(6):
        assert ahead.losses(row, 0.0) == intact
        assert ahead.losses(row, 0.02)[row] < intact[row]
    assert all(torch.equal(p, before[name]) for name, p in model.trained.items())


def test_steps_have_one_length_and_text_of_their_own(model, monkeypatch):
    ahead = Lookahead(model, train_subset="train", gen_subset="valid", steps=2, sentences=20)
    ids = [{i for batch in text.of(1) for i in batch["id"].tolist()} for text in ahead.steps]
    assert [len(own) for own in ids] == [20, 20] and not ids[0] & ids[1]
    before = torch.cat([p.detach().flatten().clone() for p in model.trained.values()])
    moved = []

    def note(*_: Any) -> list[float]:
        moved.append(
            (torch.cat([p.detach().flatten() for p in model.trained.values()]) - before).norm().item()
        )
        return []

    monkeypatch.setattr(model, "mean_losses", note)
    ahead.steps = ahead.steps[:1]
    for row in (0, 3):
        ahead.losses(row, 0.5)
    assert moved == pytest.approx([0.5, 0.5], rel=1e-4)


def test_the_change_is_what_the_gradients_foretell(model):
    ahead = Lookahead(model, train_subset="valid", gen_subset="valid", steps=1, sentences=100)
    grads = torch.stack([flat(model.gradients(ahead.valid, row)).double() for row in range(6)])
    change = torch.tensor(ahead.losses(1, 0.005)).double() - torch.tensor(ahead.losses(None, 0)).double()
    torch.testing.assert_close(change, -0.005 * grads @ grads[1] / grads[1].norm(), rtol=0.1, atol=2e-5)


# The commands ---------------------------------------------------------------------------------


@pytest.fixture
def command(workshop, checkpoint, tmp_path, capsys) -> Any:
    def run(name: str, *flags: str, path: Path = checkpoint) -> tuple[int, str]:
        given = [name, str(workshop.data_bin), "--path", str(path), "--output", str(tmp_path / name), "--cpu"]
        code = main([*given, "--lang-pairs", "en-qa,en-qb,en-qm,qa-en", *flags])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def masks_file(workshop, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    workshop.masks(workshop.build()[2]).save(path)
    return path


def test_conflict_of_two_checkpoints(command, tmp_path, workshop, masks_file):
    cfg, _, other = workshop.build(seed=2)
    second = workshop.save(tmp_path / "second.pt", cfg, other)
    checkpoint = workshop.save(tmp_path / "first.pt", *workshop.build()[::2])
    flags = ["--path", str(checkpoint), str(second), "--masks", str(masks_file)]
    assert command("conflict", *flags)[0] == 0
    folder = tmp_path / "conflict"
    found = json.loads((folder / "conflict.json").read_text())["checkpoints"]
    assert list(found) == ["first", "second"]
    assert found["first"]["cosine"] != found["second"]["cosine"]
    assert found["first"]["overlap"]["en->x"]["reason"] is None
    page = (folder / "conflict.md").read_text()
    assert all(word in page for word in ("## second", "split half", "Overlap of the sets"))
    for name in ("conflict.png", "conflict-layers.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    lines = (folder / "conflict.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * len(found["first"]["groups"]) * 10
    assert "complete already" in command("conflict", *flags)[1]
    code, said = command("conflict", *flags, "--sentences", "5")
    assert code == 2 and "another conflict is already here" in said


def test_conflict_with_and_without_the_tag_side_by_side(command, tmp_path):
    assert command("conflict", "--tag", "both")[0] == 0
    folder = tmp_path / "conflict"
    both = json.loads((folder / "conflict.json").read_text())
    text, with_tag = both["checkpoints"]["dense"], both["checkpoints"]["dense, with the tag"]
    assert both["signature"]["parameters"]["loss"] == "text; text and tag"
    for direction, tokens in with_tag["tokens"].items():
        assert tokens == text["tokens"][direction] + 21  # a tag a sentence
    assert text["groups"]["shared embeddings"]["kinds"] != with_tag["groups"]["shared embeddings"]["kinds"]
    page = (folder / "conflict.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    row = next(row for row in rows if row[1:4] == ["shared embeddings", "en->x", "3"])
    of = [one["groups"]["shared embeddings"]["kinds"]["en->x"] for one in (text, with_tag)]
    shown = [f"{kind['mean']:+.2f}" for kind in of] + [
        f"{100 * kind['conflict_fraction']:.0f}%" for kind in of
    ]
    assert row[4:8] == shown
    assert (folder / "conflict-tag.png").read_bytes().startswith(b"\x89PNG")

    for tag, expected in (("left-out", text), ("kept", with_tag)):
        assert command("conflict", "--tag", tag, "--output", str(tmp_path / tag))[0] == 0
        alone = json.loads((tmp_path / tag / "conflict.json").read_text())["checkpoints"]["dense"]
        assert alone == expected
        assert not (tmp_path / tag / "conflict-tag.png").exists()


@pytest.mark.parametrize(("name", "flags"), [("conflict", []), ("transfer", ["--lr", "0.1"])])
def test_what_was_measured_with_the_tag_is_not_taken_for_what_is_without(command, tmp_path, name, flags):
    assert command(name, *flags, "--tag", "kept", "--sentences", "10")[0] == 0
    code, said = command(name, *flags, "--sentences", "10")
    assert code == 2 and "text and tag" in said
    # Pieces that an earlier version left, which did not say of which loss: half a run is refused too.
    (tmp_path / name / f"{name}.json").unlink()
    for path in (tmp_path / name).rglob("*.json"):
        content = json.loads(path.read_text())
        del content["signature"]["parameters"]["loss"]
        path.write_text(json.dumps(content))
    code, said = command(name, *flags, "--sentences", "10")
    assert code == 2 and "is already here" in said and "loss" in said


def test_transfer_goes_on_where_it_was_killed(command, tmp_path, masks_file, monkeypatch):
    flags = ["--lr", "0.1", "--sentences", "20", "--overlap", str(masks_file), "--normalize-rows"]
    calls: list[Any] = []
    losses = Lookahead.losses

    def killed(self: Lookahead, row: int | None, *rest: Any) -> list[float]:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(row)
        return losses(self, row, *rest)

    monkeypatch.setattr(Lookahead, "losses", killed)
    assert command("transfer", *flags)[0] == 130
    calls.clear()
    assert command("transfer", *flags)[0] == 0
    assert calls == [2, 3]
    folder = tmp_path / "transfer"
    found = json.loads((folder / "transfer.json").read_text())
    row = json.loads((folder / "rows" / "en-qb.json").read_text())
    intact = json.loads((folder / "rows" / f"{INTACT}.json").read_text())
    expected = {name: row["nats"][name] - intact["nats"][name] for name in row["nats"]}
    assert found["change"]["en-qb"] == pytest.approx(expected)
    assert found["change"]["en-qb"]["en-qb"] < 0
    names = {"transfer.json", "transfer.csv", "transfer.md", "transfer.png", "transfer.svg", "rows"}
    assert {path.name for path in folder.iterdir()} == names
    assert len((folder / "transfer.csv").read_text().splitlines()) == 17
    code, said = command("transfer", *flags, "--lr", "0.2")
    assert code == 2 and "another transfer is already here" in said


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("conflict", ["--lang-pairs", "en-qa"], "nothing to compare"),
        ("conflict", ["--lang-pairs", "en-qa,en-xx"], "unknown language"),
        ("conflict", ["--gen-subset", "nowhere"], "no nowhere set"),
        ("transfer", ["--lr", "0.1", "--train-subset", "nowhere"], "no nowhere set"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(command, tmp_path, name, flags, message):
    code, said = command(name, *flags)
    assert code == 2 and message in said
    assert not (tmp_path / name).exists()


def test_masks_must_fit_the_checkpoint(command, tmp_path, workshop, masks_file):
    masks = NeuronMasks.load(masks_file)
    other = tmp_path / "other.safetensors"
    NeuronMasks(masks.directions, masks.kept, {"checkpoint_sha256": "0" * 64}).save(other)
    assert "another checkpoint" in command("conflict", "--masks", str(other))[1]
    cfg, _, built = workshop.build()
    built.set_masks(masks, workshop.langs)
    path = workshop.save(tmp_path / "specialized.pt", cfg, built)
    assert read_checkpoint(path)
    assert "its own masks" in command("conflict", "--masks", str(masks_file), path=path)[1]
