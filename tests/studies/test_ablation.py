"""A loss is a property of model, text and the neurons switched off; rows survive a kill."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from neuron_spec.cli.main import main
from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ArtifactError, ModelError, NeuronSpecError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.pages.heatmap import loss_increase_heatmap
from neuron_spec.pages.style import rendered
from neuron_spec.statistics import NothingToCompare, diagonal_test
from neuron_spec.studies.ablation import measure as ablation
from neuron_spec.studies.ablation.measure import (
    Ablation,
    Ablator,
    choose,
    distinctive,
    draw_random,
    held_by_others,
    owned_sets,
    summarize,
)
from neuron_spec.studies.ablation.page import as_csv

LANGS = ["en", "qa", "qb", "qm"]


@pytest.fixture(scope="module")
def open_ablator(workshop) -> Any:
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]

    def open_(path: Path, pairs: str = workshop.lang_pairs, **options: Any) -> Ablator:
        return Ablator(
            path, workshop.data_bin, parse_directions(pairs), "valid", token_flags=flags, cpu=True, **options
        )

    return open_


@pytest.fixture(scope="module")
def ablator(open_ablator, checkpoint) -> Ablator:
    return open_ablator(checkpoint)


@pytest.fixture(scope="module")
def masks(workshop) -> NeuronMasks:
    return workshop.masks(workshop.build()[2])


@pytest.fixture(scope="module")
def masks_file(masks, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    masks.save(path)
    return path


# Which neurons --------------------------------------------------------------------------------


def test_distinctive_neurons_are_those_that_fewest_others_hold(masks):
    for sets in owned_sets(masks).values():
        holders = torch.stack(list(sets.values())).sum(0)
        for owner, off in distinctive(sets, 5).items():
            assert int(off.sum()) == 5
            assert bool((off <= sets[owner]).all())
            assert int(holders[off].max()) <= int(holders[sets[owner] & ~off].min())


def test_ties_are_taken_by_index():
    sets = {"a": torch.tensor([1, 1, 1, 1, 0]).bool(), "b": torch.tensor([1, 1, 0, 1, 1]).bool()}
    chosen = distinctive(sets, 2)
    assert chosen["a"].nonzero().flatten().tolist() == [0, 2]
    assert chosen["b"].nonzero().flatten().tolist() == [0, 4]


def test_no_neuron_is_distinctive_of_equal_sets_nor_more_than_a_set_holds():
    same = torch.ones(4).bool()
    with pytest.raises(NothingToCompare, match=r"decoder\.layers\.0"):
        distinctive({"a": same, "b": same}, 1, where="decoder.layers.0")
    with pytest.raises(NeuronSpecError, match="at most 2"):
        distinctive({"a": same, "b": torch.tensor([1, 1, 0, 0]).bool()}, 3)


def test_fraction_count_side_and_whole(masks):
    by_fraction = choose(masks, fraction=0.1)
    assert {layer: int(off.sum()) for layer, off in by_fraction["en-qa"].items()} == {
        layer: {48: 5, 40: 4}[width] for layer, width in masks.widths.items()
    }
    only = choose(masks, count=3, side="decoder")
    assert {layer for neurons in only.values() for layer in neurons} == {*masks.side("decoder")}
    for row, direction in enumerate(masks.directions):
        for layer, off in choose(masks, ablate="whole")[str(direction)].items():
            assert torch.equal(off, masks.kept[layer][row])


def test_sets_per_language_have_one_owner_each(masks):
    by_source = torch.tensor([LANGS.index(d.source) for d in masks.directions])
    by_target = torch.tensor([LANGS.index(d.target) for d in masks.directions])
    kept = {
        layer: rows[by_source if layer.startswith("encoder") else by_target]
        for layer, rows in masks.kept.items()
    }
    per_language = NeuronMasks(masks.directions, kept, {"neuron_sets": "language"})
    assert set(choose(per_language, count=2)) == set(LANGS)
    # Three directions translate from English; its set is one.
    holders = held_by_others(per_language, choose(per_language, ablate="whole"))
    assert max(max(found.values()) for found in holders.values()) <= len(LANGS) - 1
    kept["encoder.layers.0"] = masks.kept["encoder.layers.0"]
    with pytest.raises(ModelError, match="different sets"):
        choose(per_language, count=2)


def test_random_controls_have_the_same_number_and_follow_the_seed(masks):
    chosen = choose(masks, count=4)
    drawn = draw_random(chosen, 2, seed=1)
    assert list(drawn) == ["random-1", "random-2"]
    for neurons in drawn.values():
        assert {layer: int(off.sum()) for layer, off in neurons.items()} == dict.fromkeys(masks.layers, 4)
    pairs = [(drawn, "random-1", "random-2"), (draw_random(chosen, 1, seed=2), "random-1", "random-1")]
    for other, mine, theirs in pairs:
        assert any(not torch.equal(drawn[mine][layer], other[theirs][layer]) for layer in masks.layers)
    again = draw_random(chosen, 3, seed=1)["random-2"]
    assert all(torch.equal(again[layer], drawn["random-2"][layer]) for layer in masks.layers)


# Losses ---------------------------------------------------------------------------------------


def by_hand(workshop: Any, model: Any) -> list[float]:
    """Nats per target token, one sentence at a time, from the data set itself."""
    _, task, _ = workshop.build()
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    directions = parse_directions(workshop.lang_pairs)
    row_of = {direction_id(d, workshop.langs): row for row, d in enumerate(directions)}
    sums, tokens = [0.0] * len(directions), [0] * len(directions)
    for index in range(len(dataset)):
        sample = dataset[index]
        source, target = sample["source"][None], sample["target"][None]
        shifted = torch.cat([target[:, -1:], target[:, :-1]], dim=1)
        ids = torch.tensor([sample["direction_id"]])
        with torch.no_grad():
            logits, _ = model(source, torch.tensor([source.size(1)]), shifted, direction_ids=ids)
        row = row_of[sample["direction_id"]]
        # Targets begin with the language token, which is no text.
        sums[row] += F.cross_entropy(logits[0, 1:], target[0, 1:], reduction="sum").item()
        tokens[row] += target.numel() - 1
    return [total / count for total, count in zip(sums, tokens, strict=True)]


def test_the_intact_loss_is_that_of_single_sentences_whatever_the_batches(
    workshop, open_ablator, checkpoint, ablator
):
    expected = by_hand(workshop, workshop.build()[2])
    assert ablator.losses({}) == pytest.approx(expected, rel=1e-5)
    small = open_ablator(checkpoint, max_tokens=60)
    assert small.batches > ablator.batches
    assert small.tokens == ablator.tokens
    assert small.losses({}) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(expected)


def test_the_loss_is_fairseqs_own(workshop, ablator):
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion

    _, task, model = workshop.build()
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.0, ignore_prefix_size=1)
    total, tokens = 0.0, 0
    for batch in workshop.batches(task):
        loss, size, _ = task.valid_step(batch, model, criterion)
        total, tokens = total + float(loss), tokens + size - len(batch["target"])
    ours = sum(n * loss for n, loss in zip(ablator.tokens, ablator.losses({}), strict=True))
    assert sum(ablator.tokens) == tokens
    assert ours == pytest.approx(total, rel=1e-5)


def test_switching_nothing_off_changes_nothing(ablator, masks):
    nothing = choose(masks, fraction=0.0)["en-qa"]
    assert not any(bool(off.any()) for off in nothing.values())
    assert ablator.losses(nothing) == ablator.losses({})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_losses_little(ablator, open_ablator, checkpoint, masks, dtype):
    half = open_ablator(checkpoint, dtype=dtype)
    for neurons in ({}, choose(masks, count=4)["en-qa"]):
        found, expected = half.losses(neurons), ablator.losses(neurons)
        assert found == pytest.approx(expected, rel=5e-3)
        assert found != pytest.approx(expected, rel=1e-7)
    large = open_ablator(checkpoint, dtype=dtype, max_tokens=20000)  # a batch's sum outgrows neither dtype
    assert large.losses({}) == pytest.approx(half.losses({}), rel=1e-3)


@pytest.mark.parametrize("ablate", ["distinctive", "whole"])
def test_a_neuron_switched_off_emits_nothing(workshop, ablator, masks, ablate):
    neurons = choose(masks, ablate=ablate, count=6)["qa-en"]
    intact = ablator.losses({})
    found = ablator.losses(neurons)
    model = workshop.build()[2]
    modules = dict(model.named_modules())
    with torch.no_grad():
        for layer, off in neurons.items():
            modules[f"{layer}.fc2"].weight[:, off] = 0
    assert found == pytest.approx(by_hand(workshop, model), rel=1e-5)
    assert found != pytest.approx(intact, rel=1e-5)
    assert ablator.losses({}) == intact  # and they are on again


def test_a_specialized_checkpoint_keeps_its_own_masks(workshop, open_ablator, tmp_path):
    cfg, _, model = workshop.build()  # a dropped neuron emits its constant
    masks = workshop.masks(model, kept=0.5)
    model.set_masks(masks, workshop.langs)
    specialized = open_ablator(workshop.save(tmp_path / "specialized.pt", cfg, model))
    assert specialized.losses({}) == pytest.approx(by_hand(workshop, model), rel=1e-5)
    # Its constant is all that a dropped neuron emits: without one, a direction loses nothing by it.
    fc1s = model.ffn_layers()
    dropped = {layer: ~kept[0] & (fc1s[layer].bias <= 0) for layer, kept in masks.kept.items()}
    assert all(bool(off.any()) for off in dropped.values())
    changes = torch.tensor(specialized.losses(dropped)) - torch.tensor(specialized.losses({}))
    assert changes[0] == 0
    assert bool((changes[1:] != 0).all())


def test_neurons_that_matter_to_one_direction_alone_make_the_diagonal(workshop, open_ablator, tmp_path):
    """Decoder neuron i fires on the token of language i only, and there votes for what comes next."""
    cfg, task, model = workshop.build("--no-token-positional-embeddings")
    pairs, codes = "en-qa,en-qb,en-qm", ["qa", "qb", "qm"]
    batches = workshop.batches(task)
    token_of = [task.source_dictionary.index(f"__{code}__") for code in codes]
    with torch.no_grad():
        for layer in model.decoder.layers:
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.out_proj.weight.zero_()
                attention.out_proj.bias.zero_()
            for linear in (layer.fc1, layer.fc2):
                linear.weight.zero_()
                linear.bias.fill_(0)
        embeddings = model.decoder.embed_tokens.weight
        embeddings[:, :3] = 0
        last = model.decoder.layers[-1]
        for i, token in enumerate(token_of):
            embeddings[token] = 0
            embeddings[token, i] = 1
        for i, token in enumerate(token_of):
            following = torch.cat(
                [b["target"][b["net_input"]["prev_output_tokens"] == token] for b in batches]
            )
            last.fc1.weight[i, i], last.fc1.bias[i] = 1, -2
            # Where the likelihood of these rises, from even odds.
            last.fc2.weight[:, i] = 3 * (embeddings[following].mean(0) - embeddings.mean(0))
    kept = {key: torch.zeros(3, f.out_features).bool() for key, f in model.ffn_layers().items()}
    for rows in kept.values():
        rows[:, :6] = torch.eye(3).bool().repeat(1, 2)
        rows[:, 3:] = True
    masks = NeuronMasks(parse_directions(pairs), kept)
    found = open_ablator(workshop.save(tmp_path / "built.pt", cfg, model), pairs)
    intact = torch.tensor(found.losses({}))
    chosen = choose(masks, count=1)
    assert [int(neurons["decoder.layers.1"].nonzero()) for neurons in chosen.values()] == [0, 1, 2]
    change = torch.stack([torch.tensor(found.losses(neurons)) - intact for neurons in chosen.values()])
    assert bool((change.diagonal() > 0.01).all())
    assert bool((change[~torch.eye(3).bool()] == 0).all())
    assert diagonal_test(change, seed=1).p == pytest.approx(1 / 6)


def test_another_dictionary_is_refused(open_ablator, checkpoint):
    with pytest.raises(ModelError, match="another dictionary"):
        open_ablator(checkpoint, dictionary_sha256="0" * 64)


# The numbers ----------------------------------------------------------------------------------


def test_the_test_sees_through_sets_and_directions_that_matter_to_all():
    generator = torch.Generator().manual_seed(1)
    change = torch.rand(6, 6, generator=generator, dtype=torch.float64)
    p = diagonal_test(change, seed=1).p
    rows, columns = (10 * torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(2))
    assert diagonal_test(change + rows[:, None] + columns, seed=1).p == p
    assert 0 < p < 1
    assert diagonal_test(torch.eye(6), seed=1) == (1 / 720, 720, True)
    assert diagonal_test(torch.ones(6, 6) - torch.eye(6), seed=1).p == 1
    assert diagonal_test(torch.zeros(4, 4), seed=1).p == 1
    assert diagonal_test(torch.eye(2), seed=1) == (1 / 2, 2, True)


def test_many_directions_are_tested_on_random_relabellings():
    test = diagonal_test(torch.eye(12), seed=1)
    assert test == (1 / 10_001, 10_000, False)
    assert diagonal_test(torch.eye(12), permutations=1, seed=1) == (1 / 2, 1, False)
    # More orders than a float can count.
    assert diagonal_test(torch.eye(300), permutations=9, seed=1) == (1 / 10, 9, False)
    with pytest.raises(NeuronSpecError, match=r"needs permutations\n +got: +0\n"):
        diagonal_test(torch.eye(12), permutations=0, seed=1)
    with pytest.raises(NothingToCompare, match=r"got: +1\n"):
        diagonal_test(torch.ones(1, 1), seed=1)


def made_up(pairs: str, change: torch.Tensor, own: list[int | None], owners: list[str]) -> Ablation:
    directions = parse_directions(pairs)
    intact = torch.arange(1.0, len(directions) + 1, dtype=torch.float64)
    return Ablation(
        directions,
        [100] * len(directions),
        owners,
        own,
        intact,
        intact + change,
        torch.stack([intact + 0.1, intact + 0.3]),
    )


PAIRS = "en-de,en-nl,en-es,en-pt,de-en,nl-en"


def test_groups_and_families_are_summed_up_apart():
    change = torch.zeros(6, 6, dtype=torch.float64)
    change[:4, :4] = torch.tensor([[4, 2, 1, 1], [2, 4, 1, 1], [1, 1, 4, 2], [1, 1, 2, 4.0]])
    change[:4, 4:] = 7
    change[4:, 4:] = 1
    found = summarize(made_up(PAIRS, change, [*range(6)], PAIRS.split(",")), seed=1)["groups"]
    out, into = found["en->x"], found["x->en"]
    assert out["directions"] == PAIRS.split(",")[:4]
    assert [out[key] for key in ("own", "others", "other_rows", "own_is_largest", "random")] == pytest.approx(
        [4, 16 / 12, 0, 4, 0.2]
    )
    assert out["p"] == pytest.approx(1 / 24)
    assert [out["families"][key] for key in ("same", "other", "p")] == pytest.approx([2, 1, 1 / 3])
    assert [into[key] for key in ("own", "others", "other_rows", "p")] == pytest.approx([1, 1, 7, 1])
    assert into["own_is_largest"] == 0  # a tie is no win
    assert into["families"]["same"] is None and "families" in into["families"]["reason"]


def test_what_shares_a_set_is_not_compared():
    found = summarize(made_up("en-de,en-nl", torch.ones(3, 2), [0, 0], ["en", "de", "nl"]), seed=1)
    assert found["groups"]["en->x"]["own"] is None
    assert "share a set" in found["groups"]["en->x"]["reason"]


def test_the_table_names_every_loss():
    change = torch.rand(6, 6, dtype=torch.float64)
    rows = list(csv.DictReader(as_csv(made_up(PAIRS, change, [*range(6)], PAIRS.split(","))).splitlines()))
    assert len(rows) == 6 * (1 + 6 + 2)
    for row in rows:
        assert int(row["is_own"]) == (row["direction"] == row["switched_off"])
    (cell,) = [r for r in rows if (r["direction"], r["switched_off"]) == ("en-nl", "de-en")]
    assert float(cell["change"]) == pytest.approx(float(change[4, 1]), abs=1e-6)
    assert float(cell["nats_per_token"]) == pytest.approx(2 + float(change[4, 1]), abs=1e-6)


CODES = [f"{first}{second}" for first in "abcde" for second in "uvwxyz"]
CASES = {
    "one group": ["en-qa", "en-qb"],
    "two groups": PAIRS.split(","),
    "without English": ["de-nl", "nl-es", "es-de"],
    "thirty languages": [pair for code in CODES for pair in (f"en-{code}", f"{code}-en")],
}


def draw(
    pairs: list[str], change: torch.Tensor, owners: list[str], own: list[Any], random: float = 0.2
) -> Any:
    directions = parse_directions(pairs)
    families = {"de": "Germanic", "nl": "Germanic", "es": "Romance", "en": "Germanic"}
    return loss_increase_heatmap(
        change,
        torch.full((len(pairs),), random),
        owners,
        directions,
        own,
        lambda code: families.get(code, "unknown"),
    )


@pytest.mark.parametrize("pairs", CASES.values(), ids=CASES.keys())
def test_the_figure(pairs, tmp_path):
    figure = draw(pairs, torch.eye(len(pairs)), pairs, [*range(len(pairs))])
    framed = [patch for ax in figure.axes for patch in ax.patches if not patch.get_fill()]
    assert len(framed) == len(pairs)
    path = tmp_path / "figure.png"
    path.write_bytes(rendered(figure, path.suffix[1:]))
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_frames_stand_on_own_cells_and_rows_are_ordered_by_family():
    pairs = ["es-en", "en-es", "en-nl", "nl-en", "en-de", "de-en"]
    change = torch.rand(6, 6).fill_diagonal_(5.0)
    figure = draw(pairs, change, pairs, [*range(6)])
    axes = [ax for ax in figure.axes if ax.images]
    assert [[label.get_text() for label in ax.get_xticklabels()] for ax in axes] == [["de", "nl", "es"]] * 2
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == ["en→de", "en→nl", "en→es", "de→en", "nl→en", "es→en", "", "random"]
    for ax in axes:
        shown = ax.images[0].get_array()
        framed = {(int(p.get_y() + 0.5), int(p.get_x() + 0.5)) for p in ax.patches if not p.get_fill()}
        assert {(r, c) for r in range(6) for c in range(3) if shown[r, c] == 5.0} == framed
    assert len({ax.images[0].get_clim() for ax in axes}) == 1


def test_a_figure_of_languages_and_without_controls(tmp_path):
    pairs = ["en-de", "de-en", "en-es", "es-en"]
    figure = draw(pairs, torch.rand(3, 4), ["en", "de", "es"], [1, 1, 2, None], random=float("nan"))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["de", "en", "es"]
    (tmp_path / "figure.svg").write_bytes(rendered(figure, "svg"))


def cells(ax: Any) -> dict[tuple[int, int], str]:
    """(row, column) -> the text in that cell."""
    texts = [text for text in ax.texts if text.get_va() == text.get_ha() == "center"]
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in texts}


def test_every_cell_of_the_figure_holds_its_loss_and_the_last_row_that_of_random_neurons():
    pairs = ["es-en", "en-es", "en-nl", "nl-en", "en-de", "de-en"]
    change = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    figure = draw(pairs, change, pairs, [*range(6)], random=0.125)
    rows = ["en-de", "en-nl", "en-es", "de-en", "nl-en", "es-en"]
    for ax, columns in zip([ax for ax in figure.axes if ax.images], (rows[:3], rows[3:]), strict=True):
        expected = {
            (y, x): change[pairs.index(row), pairs.index(column)].item()
            for y, row in enumerate(rows)
            for x, column in enumerate(columns)
        }
        assert cells(ax) == {
            cell: f"{value:.2f}" for cell, value in [*expected.items(), *(((7, x), 0.125) for x in range(3))]
        }
        (image,) = ax.images
        colors = image.to_rgba(image.get_array())
        for cell, value in expected.items():
            assert tuple(colors[cell]) == pytest.approx(image.cmap(image.norm(value)))
        assert (colors[6] == 1).all(), "the row between stays white"
        assert image.get_clim() == pytest.approx((0, change.max().item()))
        assert ax.get_ylabel() == "neurons switched off"
    assert [ax.get_xlabel() for ax in figure.axes if ax.images] == ["evaluated, en→x", "evaluated, x→en"]
    assert figure.axes[-1].get_ylabel() == "loss increase (nats per token)"


def test_a_language_s_neurons_are_framed_in_every_direction_that_owns_them():
    pairs = ["en-de", "de-en", "en-es", "es-en"]
    figure = draw(pairs, torch.rand(3, 4), ["en", "de", "es"], [1, 1, 2, None], random=float("nan"))
    framed = [
        [(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in ax.patches]
        for ax in figure.axes
        if ax.images
    ]
    assert framed == [[(0, 0), (2, 1)], [(0, 0)]]  # rows: de, en, es; columns: de, es


# The command ----------------------------------------------------------------------------------


@pytest.fixture
def ablate(workshop, checkpoint, masks_file, tmp_path, capsys) -> Any:
    def run(*flags: str, path: Path = checkpoint, output: Path = tmp_path / "ablation") -> tuple[int, str]:
        given = [str(workshop.data_bin), "--path", str(path), "--masks", str(masks_file)]
        code = main(["ablate", *given, "--output", str(output), "--cpu", "--random-draws", "1", *flags])
        return code, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_killed(ablate, tmp_path, monkeypatch, workshop, ablator, masks):
    passes = []
    losses = Ablator.losses

    def counted(self: Ablator, neurons: Any, *args: Any) -> list[float]:
        if len(passes) == 3:
            raise KeyboardInterrupt
        passes.append(neurons)
        return losses(self, neurons, *args)

    monkeypatch.setattr(Ablator, "losses", counted)
    assert ablate("--count", "4")[0] == 130
    rows = tmp_path / "ablation" / "rows"
    assert len(list(rows.iterdir())) == 3

    passes.clear()
    monkeypatch.setattr(ablation.Ablator, "losses", lambda *args: passes.append(1) or losses(*args))
    assert ablate("--count", "4")[0] == 0
    assert len(passes) == 1 + 6 + 1 - 3  # intact, sets, control

    folder = tmp_path / "ablation"
    names = {"ablation.json", "ablation.csv", "ablation.md", "ablation.png", "ablation.svg"}
    assert {path.name for path in folder.iterdir()} == {*names, "rows"}
    found = json.loads((folder / "ablation.json").read_text())
    first = (folder / "ablation.json").read_bytes()
    expected = torch.tensor(ablator.losses(choose(masks, count=4)["qb-en"])) - torch.tensor(
        ablator.losses({})
    )
    assert list(found["change"]["qb-en"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert {own["switched_off"] for own in found["switched_off"].values()} == {4}
    assert [found["groups"][g]["relabellings"] for g in ("en->x", "x->en")] == [6, 6]
    # qa and qb are of one family in the corpus card, which the language table does not know.
    assert found["groups"]["en->x"]["families"]["reason"] is None

    passes.clear()
    code, said = ablate("--count", "4")
    assert code == 0 and not passes and "complete already" in said

    (folder / "ablation.json").unlink()
    (rows / "en-qm.json").unlink()
    assert ablate("--count", "4")[0] == 0
    assert len(passes) == 1
    assert (folder / "ablation.json").read_bytes() == first

    code, said = ablate("--count", "5")
    assert code == 2 and "another ablation is already here" in said
    (folder / "ablation.json").unlink()
    code, said = ablate("--count", "5")
    assert code == 2 and "another row" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lang-pairs", "en-qa"], "nothing to compare"),
        (["--lang-pairs", "en-qa,qa-qb"], "directions without masks"),
        (["--lang-pairs", "en-qa,en-xx"], "unknown language"),
        (["--ablate", "whole", "--count", "3"], "are for distinctive neurons"),
        (["--count", "47"], "more neurons to switch off than a set holds"),
        (["--gen-subset", "nowhere"], "no nowhere set"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(ablate, tmp_path, flags, message):
    code, said = ablate(*flags)
    assert code == 2 and message in said
    assert not (tmp_path / "ablation").exists()


def test_masks_of_another_checkpoint_are_refused(ablate, workshop, tmp_path, masks):
    other = tmp_path / "other.safetensors"
    NeuronMasks(masks.directions, masks.kept, {"checkpoint_sha256": "0" * 64}).save(other)
    code, said = ablate("--masks", str(other))
    assert code == 2 and "another checkpoint" in said
    few = NeuronMasks(masks.directions, {"encoder.layers.0": masks.kept["encoder.layers.0"]})
    few.save(other)
    code, said = ablate("--masks", str(other))
    assert code == 2 and "another model" in said


def test_the_precision_is_part_of_an_ablation(ablate, tmp_path):
    flags = ["--lang-pairs", "en-qm,en-qa", "--count", "4"]
    assert ablate(*flags, "--bf16")[0] == 0
    made = json.loads((tmp_path / "ablation" / "ablation.json").read_text())["signature"]
    assert made["parameters"]["dtype"] == "bf16"
    assert "complete already" in ablate(*flags, "--bf16")[1]
    code, said = ablate(*flags, "--fp16")
    assert code == 2 and "parameters.dtype" in said


def test_some_directions_one_side_and_another_set(ablate, tmp_path):
    flags = ["--lang-pairs", "en-qm,en-qa", "--side", "encoder", "--gen-subset", "test", "--ablate", "whole"]
    assert ablate(*flags, "--allow-other-checkpoint")[0] == 0
    found = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert list(found["change"]) == ["en-qa", "en-qm"] or list(found["change"]) == ["en-qm", "en-qa"]
    assert {layer.split(".")[0] for layer in found["switched_off"]} == {"encoder"}
    assert list(found["groups"]) == ["en->x"]
    with pytest.raises(ArtifactError):
        ablation.measure({"en-qm": {}}, tmp_path / "ablation" / "rows", lambda _: {"stage": "other"}, Ablator)
