"""Pruning keeps every direction above the floor, goes on after a kill, and leaves masks that training takes.

Where copies are fine-tuned, fairseq-train is stood in for, but in the last test.
"""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.artifacts import load_tensors, save_tensors
from neuron_spec.backends.fairseq import fine_tuning
from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256, read_checkpoint
from neuron_spec.backends.fairseq.fine_tuning import FineTuning
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.pruning.importance import Importance, ImportanceMeter
from neuron_spec.studies.pruning.measure import Rules, Voters, prune, prune_fine_tuned
from neuron_spec.studies.pruning.sets import vote, without_least_important

pytestmark = pytest.mark.slow

PAIRS = "en-qa,qa-en,en-qb"


@pytest.fixture(scope="module")
def load(workshop, checkpoint) -> Any:
    """A checkpoint and directions to a meter; one per directions, as most of a second goes to fairseq's flags."""
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]

    @cache
    def of(directions: tuple[Direction, ...]) -> ImportanceMeter:
        return ImportanceMeter(checkpoint, workshop.data_bin, directions, token_flags=flags, cpu=True)

    def load(path: Path, directions: list[Direction]) -> ImportanceMeter:
        meter = of(tuple(directions))
        meter.model.load_state_dict(read_checkpoint(path)["model"], strict=False)
        return meter

    return load


@pytest.fixture(scope="module")
def meter(load, checkpoint) -> ImportanceMeter:
    meter: ImportanceMeter = load(checkpoint, parse_directions(PAIRS))
    return meter


def metadata(**more: Any) -> dict[str, Any]:
    return {"signature": {"stage": "prune", "inputs": {}, "parameters": more}}


def qualities(meter: ImportanceMeter, masks: NeuronMasks) -> list[float]:
    """By their definition."""
    text = meter.read("valid")
    meter.set_masks(
        NeuronMasks(masks.directions, {s: torch.ones_like(kept) for s, kept in masks.kept.items()})
    )
    dense = meter.mean_losses(text)
    meter.set_masks(masks)
    return [math.exp(d - own) for d, own in zip(dense, meter.mean_losses(text), strict=True)]


@pytest.mark.parametrize("neuron_sets", ["direction", "language"])
def test_every_direction_stays_above_the_floor(meter, tmp_path, neuron_sets):
    floor = 0.995
    rules = Rules("both", neuron_sets, 0.3, floor)
    masks = prune(tmp_path / "m.safetensors", lambda: meter, "valid", rules, metadata())
    found = qualities(meter, masks)
    assert min(found) >= floor
    assert list(masks.metadata["quality"].values()) == pytest.approx(found, rel=1e-5)
    dropped = torch.cat([rows.flatten() for rows in masks.sparsity(masks.sites).values()])
    assert 0 < float(dropped.mean()) < 1  # something went, and the floor stopped it
    assert all(bool(kept.any(dim=1).all()) for kept in masks.kept.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.safetensors"]
    for site, kept in masks.kept.items():
        if neuron_sets == "language":  # en-qa and en-qb share the encoder's, no two the decoder's
            assert torch.equal(kept[0], kept[2]) or site.startswith("decoder")
    if neuron_sets == "direction":
        assert any(bool((kept != kept[0]).any()) for kept in masks.kept.values())


def test_a_set_is_closed_when_a_single_unit_is_too_much(meter, tmp_path):
    """However coarse the steps begin."""
    floor = 0.995
    rules = Rules("both", "direction", 0.6, floor)
    masks = prune(tmp_path / "m.safetensors", lambda: meter, "valid", rules, metadata())
    meter.set_masks(masks)
    importance = meter.importance(meter.read("valid"))
    next_step = {site: kept.clone() for site, kept in masks.kept.items()}
    for row in range(len(masks.directions)):
        before = {site: kept[row] for site, kept in masks.kept.items()}
        one_less = without_least_important(before, {site: importance[site][row] for site in before}, 1e-9)
        for site, kept in one_less.items():
            next_step[site][row] = kept
    assert all(bool((~kept).any()) for kept in next_step.values())
    assert (
        max(qualities(meter, NeuronMasks(masks.directions, next_step)))
        < floor
        <= min(qualities(meter, masks))
    )


@pytest.mark.parametrize("killed_at", [2, 5])
def test_a_killed_run_goes_on_to_the_same_masks(meter, tmp_path, monkeypatch, killed_at):
    """Also when sets have halved their steps: a run that begins anew with whole ones ends elsewhere."""
    rules = Rules("both", "direction", 0.6, 0.995)
    expected = prune(tmp_path / "whole.safetensors", lambda: meter, "valid", rules, metadata())
    measure, calls = ImportanceMeter.mean_losses, []

    def killed(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == killed_at + 2:  # the first is of the dense model
            raise KeyboardInterrupt
        return measure(self, *args)

    output = tmp_path / "m.safetensors"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImportanceMeter, "mean_losses", killed)
        prune(output, lambda: meter, "valid", rules, metadata())
    so_far = NeuronMasks.load(tmp_path / "m.steps.safetensors")
    assert [step["step"] for step in so_far.metadata["steps"]] == list(range(1, killed_at + 1))
    assert not output.exists() and (killed_at == 2 or min(so_far.metadata["open"].values()) < 0.6)
    with pytest.raises(ArtifactError, match="another mask file"):
        prune(output, lambda: meter, "valid", rules, metadata(seed=2))
    found = prune(output, lambda: meter, "valid", rules, metadata())
    assert found.fingerprint == expected.fingerprint and found.metadata == expected.metadata
    assert len(found.metadata["steps"]) > killed_at
    again = prune(output, lambda: pytest.fail("complete already"), "valid", rules, metadata())
    assert again.fingerprint == found.fingerprint


def test_fractions_out_of_range_are_refused():
    for rules in (("heads", "direction", 0.0, 0.9), ("heads", "direction", 0.1, 1.0)):
        with pytest.raises(SelectionError, match="fraction"):
            Rules(*rules)


def test_the_commands_and_training_take_the_masks(workshop, checkpoint, tmp_path, capsys):
    def pruned(name: str, *more: str) -> Path:
        output = tmp_path / f"{name}.safetensors"
        flags = ["prune", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output)]
        assert main([*flags, "--max-steps", "1", "--quality-floor", "0.5", "--cpu", *more]) == 0
        return output

    files = [
        pruned("one"),
        pruned("two", "--step-fraction", "0.3", "--dropped-neurons", "zero", "--sentences", "9"),
    ]
    voted = tmp_path / "voted.safetensors"
    assert main(["masks", "vote", *map(str, files), "--output", str(voted)]) == 0
    masks = NeuronMasks.load(voted)
    assert masks.head_sites and not masks.layers
    assert json.loads(voted.with_suffix(".json").read_text())["voters"] == 2
    flags = ["--neuron-masks", str(voted), "--finetune-from-model", str(checkpoint)]
    _, _, model = workshop.build(*flags)
    assert all(
        torch.equal(kept, masks.kept[site]) for site, kept in by_direction(model, masks, workshop).items()
    )
    capsys.readouterr()
    assert main(["analyze", str(voted), "--output", str(tmp_path / "analysis")]) == 2
    assert "attention heads alone" in capsys.readouterr().err


def test_importance_of_some_sentences(workshop, checkpoint, meter, tmp_path):
    output = tmp_path / "importance.safetensors"
    command = ["importance", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output)]
    assert main([*command, "--lang-pairs", PAIRS, "--sentences", "5", "--cpu"]) == 0
    found = Importance.load(output)
    text = meter.read("valid", sentences=5)
    assert found.tokens.tolist() == text.tokens != meter.read("valid").tokens
    meter.set_masks(
        NeuronMasks(found.directions, {s: torch.ones_like(v).bool() for s, v in found.sums.items()})
    )
    for site, sums in meter.importance(text).items():
        torch.testing.assert_close(found.sums[site], sums)


def by_direction(model: Any, masks: NeuronMasks, workshop: Any) -> dict[str, torch.Tensor]:
    """The model's masks in the order of the file's directions."""
    own = model.masks(workshop.langs)
    order = [own.directions.index(direction) for direction in masks.directions]
    return {site: kept[order] for site, kept in own.kept.items()}


# --- fine-tuned copies --------------------------------------------------------------------------------

SOME = parse_directions("en-qa,qa-en")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The directions and seeds that were fine-tuned: to weights that depend on them."""
    done: list[tuple[str, str]] = []

    def train(command: list[str], log: Path, lock: Any) -> None:
        given = dict(pairwise(command))
        direction, seed = given["--lang-pairs"], given["--seed"]
        state = read_checkpoint(given["--finetune-from-model"])
        generator = torch.Generator().manual_seed(int(seed) + 1000 * sum(map(ord, direction[:2])))
        state["model"] = {
            key: value + 0.3 * torch.randn(value.shape, generator=generator)
            if value.is_floating_point()
            else value
            for key, value in state["model"].items()
        }
        state["extra_state"]["previous_training_time"] = 1.5
        Path(given["--save-dir"]).mkdir()
        torch.save(state, Path(given["--save-dir"]) / "checkpoint_last.pt")
        done.append((direction, seed))

    monkeypatch.setattr(fine_tuning, "_train", train)
    return done


def prune_copies(
    checkpoint: Path, data_bin: Path, load: Any, folder: Path, *, keep: bool = False, **changed: Any
) -> NeuronMasks:
    training = FineTuning(checkpoint, data_bin, SOME, ["--lr", "0.1", "--seed", "9"])
    rules = Rules(
        **{"sites": "heads", "neuron_sets": "direction", "step_fraction": 0.3, "quality_floor": 0.97}
        | changed
    )
    voters = Voters(training, folder / "work", (1, 2), keep)

    def sign(directions: Any, seeds: Any) -> dict[str, Any]:
        names = [*map(str, directions)]
        return {"stage": "prune", "inputs": {}, "parameters": {"of": names, "seeds": [*seeds], **vars(rules)}}

    return prune_fine_tuned(folder / "m.safetensors", voters, load, "valid", rules, sign, sentences=12)


def test_the_sets_are_the_votes_of_copies_pruned_on_their_direction(
    trained, checkpoint, data_bin, load, tmp_path
):
    masks = prune_copies(checkpoint, data_bin, load, tmp_path, keep=True)
    assert masks.directions == SOME and trained == [(str(d), s) for d in SOME for s in "12"]
    rules = Rules("heads", "direction", 0.3, 0.97)
    for row, direction in enumerate(SOME):
        sets = []
        for seed in "12":
            copy = tmp_path / "work" / str(direction) / f"seed-{seed}" / "train" / "checkpoint_last.pt"
            output = tmp_path / f"{direction}-{seed}.safetensors"
            alone = prune(output, lambda: load(copy, [direction]), "valid", rules, metadata(), sentences=12)  # noqa: B023
            assert (
                masks.metadata["quality"][str(direction)][seed] == alone.metadata["quality"][str(direction)]
            )
            sets.append(alone)
        assert len({own.fingerprint for own in sets}) > 1
        for site, kept in vote(sets).kept.items():
            assert torch.equal(masks.kept[site][row], kept[0])
    assert masks.metadata["checkpoint_sha256"] == checkpoint_sha256(checkpoint)
    assert (masks.metadata["neuron_sets"], masks.metadata["voters"]) == ("direction", 2)
    assert masks.metadata["fine_tuning_seconds"]["qa-en"] == {"1": 1.5, "2": 1.5}
    # The copies are there: another floor needs no training, and then they go.
    (tmp_path / "m.safetensors").unlink()
    prune_copies(checkpoint, data_bin, load, tmp_path, quality_floor=0.5)
    assert len(trained) == 4 and not list(tmp_path.rglob("*.pt"))


def test_killed_voters_go_on_and_complete_ones_are_skipped(
    trained, checkpoint, data_bin, load, tmp_path, monkeypatch
):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    expected = prune_copies(checkpoint, data_bin, load, tmp_path / "whole")
    trained.clear()
    measure, calls = ImportanceMeter.importance, []

    def killed(self: Any, text: Any, rows: Any, *args: Any) -> Any:
        calls.append(str(self.directions[0]))
        if calls.count("qa-en") == 3:
            raise KeyboardInterrupt
        return measure(self, text, rows, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ImportanceMeter, "importance", killed)
        prune_copies(checkpoint, data_bin, load, tmp_path / "killed")
    assert trained[-1] == ("qa-en", "2") and len(list(tmp_path.rglob("*.pt"))) == 1
    found = prune_copies(checkpoint, data_bin, load, tmp_path / "killed")
    assert len(trained) == len({*trained}) == 4
    assert found.fingerprint == expected.fingerprint and found.metadata == expected.metadata

    def fail(*_: Any) -> Any:
        pytest.fail("complete already")

    assert prune_copies(checkpoint, data_bin, fail, tmp_path / "killed").fingerprint == expected.fingerprint
    with pytest.raises(ArtifactError, match=r"(?s)another mask file.*0\.97"):
        prune_copies(checkpoint, data_bin, fail, tmp_path / "killed", quality_floor=0.9)
    (tmp_path / "killed" / "m.safetensors").unlink()
    with pytest.raises(ArtifactError, match="another mask file"):  # a voter's
        prune_copies(checkpoint, data_bin, load, tmp_path / "killed", step_fraction=0.1)


def test_sets_per_language_are_refused_for_fine_tuned_copies(trained, checkpoint, data_bin, load, tmp_path):
    with pytest.raises(SelectionError, match="no sets per language"):
        prune_copies(checkpoint, data_bin, load, tmp_path, neuron_sets="language")
    assert not trained


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--voters", "1,2"], "only fine-tuned copies need"),
        (["--", "--lr", "1"], "only fine-tuned copies need"),
        (["--fine-tune", "f.yaml"], "give --work"),
    ],
)
def test_flags_that_do_not_go_together(workshop, checkpoint, tmp_path, capsys, flags, message):
    command = ["prune", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(tmp_path / "m")]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("voters", ["", "1,1", "1,x", "01,1"])
def test_voters_are_different_seeds(workshop, voters):
    with pytest.raises(SystemExit):
        main(["prune", str(workshop.data_bin), "--path", "d.pt", "--output", "m", "--voters", voters])


@pytest.mark.parametrize(("name", "flags"), [("importance", []), ("prune", ["--max-steps", "1"])])
def test_what_was_measured_with_the_tag_in_the_loss_is_refused(
    workshop, checkpoint, tmp_path, capsys, name, flags
):
    output = tmp_path / "made.safetensors"
    command = [name, str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    command += ["--lang-pairs", "en-qa", "--sentences", "4", *flags]
    assert main(command) == 0
    tensors, metadata = load_tensors(output, name)  # as earlier versions signed it
    assert metadata["signature"]["parameters"].pop("loss") == "text"
    save_tensors(output, tensors, metadata)
    output.with_suffix(".json").unlink(missing_ok=True)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "is already here" in said and "loss" in said


def test_the_real_command_from_fine_tuning_to_training_with_the_masks(workshop, checkpoint, tmp_path):
    config = tmp_path / "finetune.yaml"
    flags = {"dropout": 0.3, "seed": 7, "share-all-embeddings": "true"}
    flags |= {f"{side}-normalize-before": "true" for side in ("encoder", "decoder")}
    config.write_text(workshop.fine_tuning(**flags))
    output, work = tmp_path / "m.safetensors", tmp_path / "work"
    command = ["prune", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(output), "--cpu"]
    command += ["--sites", "both", "--max-steps", "2", "--quality-floor", "0.9", "--lang-pairs", "en-qa"]
    command += ["--fine-tune", str(config), "--work", str(work), "--voters", "1,2", "--keep-checkpoints"]
    assert main(command) == 0
    masks = NeuronMasks.load(output)
    copies = [
        read_checkpoint(work / "en-qa" / f"seed-{seed}" / "train" / "checkpoint_last.pt") for seed in (1, 2)
    ]
    assert [copy["cfg"]["common"]["seed"] for copy in copies] == [1, 2]
    one, two = (copy["model"]["decoder.layers.1.fc1.weight"] for copy in copies)
    assert not torch.equal(one, two)
    flags = [
        "--neuron-masks",
        str(output),
        "--finetune-from-model",
        str(checkpoint),
        "--neuron-sets",
        "direction",
    ]
    model = workshop.build(*flags, "--missing-direction", "dense")[2]
    assert same_masks(model.masks(workshop.langs), masks)
    assert main(command) == 0  # complete already


def same_masks(one: NeuronMasks, other: NeuronMasks) -> bool:
    return one.directions == other.directions and all(
        torch.equal(kept, other.kept[site]) for site, kept in one.kept.items()
    )
