"""Masks that move inside fairseq's own trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, tasks

import neuron_spec.tasks  # noqa: F401  (registers, and so comes before a single task)
from neuron_spec.backends.fairseq.profiling import NeuronCounter
from neuron_spec.errors import ModelError, SelectionError
from neuron_spec.neurons.activations import ActivationCounts, is_head_site
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.dynamic.masks import RunningCounts
from neuron_spec.studies.dynamic.task import NeuronSpecDynamicTask, counted, scored

pytestmark = pytest.mark.slow

NONE = ("--dynamic-masks", "none")
RESELECT = ("--dynamic-masks", "reselect", "--reselect-every", "2", "--collect-every", "1")
# Steps as large as the gap, so that masks of four updates move.
LEARNED = ("--dynamic-masks", "learned", "--score-gap", "0.001")
FOMAML = ("--meta", "fomaml", "--inner-lr")
REPTILE = ("--meta", "reptile", "--inner-lr")
NO_DROPOUT = ("--dropout", "0", "--attention-dropout", "0")


@pytest.fixture(scope="module")
def masks(workshop, tmp_path_factory) -> dict[str, str]:
    """Files of masks: of neurons, and of neurons and heads."""
    _, _, model = workshop.build()
    folder = tmp_path_factory.mktemp("masks")
    neurons = workshop.masks(model)
    generator = torch.Generator().manual_seed(7)
    heads = {site: torch.rand(6, size, generator=generator) < 0.6 for site, size in model.sites().items()}
    heads = {site: kept for site, kept in heads.items() if is_head_site(site)}
    sets = {"neurons": neurons.kept, "both": neurons.kept | heads}
    for name, kept in sets.items():
        NeuronMasks(neurons.directions, kept).save(folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in sets}


class Training:
    """fairseq's trainer over the batches of the first epoch, two to an update."""

    def __init__(self, workshop: Any, masks: str, *flags: str, task: str = "neuron_spec_dynamic") -> None:
        from fairseq.trainer import Trainer

        self.cfg, self.task, self.model = workshop.build(
            *(
                "--update-freq",
                "2",
                "--max-tokens",
                "200",
                "--num-workers",
                "0",
                "--neuron-masks",
                masks,
                *flags,
            ),
            task=task,
        )
        self.trainer = Trainer(self.cfg, self.task, self.model, self.task.build_criterion(self.cfg.criterion))
        self.epoch = self.trainer.get_train_iterator(epoch=1)
        self.trainer.lr_step_begin_epoch(1)
        self.history = [self.masks()]

    def masks(self) -> dict[str, torch.Tensor]:
        return {site: kept.clone() for site, kept in self.model.kept_units().items()}

    def run(self, updates: int) -> Training:
        from fairseq.data import iterators

        batches = iterators.GroupedIterator(self.epoch.next_epoch_itr(shuffle=True), 2)
        self.logs = []
        for _ in range(updates):
            self.logs.append(self.trainer.train_step(next(batches)))
            self.history.append(self.masks())
        return self

    def save(self, path: Path) -> str:
        self.trainer.consolidate_optimizer()
        self.trainer.save_checkpoint(str(path), {"train_iterator": self.epoch.state_dict(), "val_loss": None})
        return str(path)

    def load(self, path: str) -> Training:
        self.epoch.load_state_dict(self.trainer.load_checkpoint(path)["train_iterator"])
        return self


class Plain:
    """What the task needs of an optimizer."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def state(training: Training, *, dynamics: bool = True) -> dict[str, torch.Tensor]:
    return {k: v for k, v in training.model.state_dict().items() if dynamics or not k.startswith("dynamics.")}


# --- what must be the same ----------------------------------------------------------------------------


def test_masks_that_do_not_move_train_bit_for_bit_as_static_ones(workshop, masks):
    static = Training(workshop, masks["both"], task="neuron_specialization").run(3)
    assert same(state(static), state(Training(workshop, masks["both"], *NONE).run(3)))
    # A selection that is never due counts nothing.
    late = Training(workshop, masks["both"], *RESELECT, "--reselect-until", "1").run(3)
    assert same(state(static), state(late, dynamics=False)) and late.model.dynamics
    moved = Training(workshop, masks["both"], *RESELECT).run(3)
    assert not same(state(static), state(moved, dynamics=False))


def test_scores_too_far_apart_to_move_anything_leave_training_as_it_was(workshop, masks):
    path = ("--ffn-path", "multiply")
    static = Training(workshop, masks["neurons"], *path, task="neuron_specialization").run(3)
    learned = Training(workshop, masks["neurons"], *path, *LEARNED[:3], "1e6").run(3)
    assert same(state(static), state(learned, dynamics=False))
    assert all(scores.grad.abs().max() > 0 for scores in learned.model.dynamics.parameters())


@pytest.mark.parametrize("flags", [RESELECT, (*RESELECT, "--reselect-k", "70"), LEARNED])
def test_a_resumed_training_has_the_same_masks_weights_and_state(workshop, masks, tmp_path, flags):
    straight = Training(workshop, masks["both"], *flags).run(4)
    first = Training(workshop, masks["both"], *flags).run(3)
    assert not same(straight.history[0], first.history[-1])
    path = first.save(tmp_path / "first.pt")
    resumed = Training(workshop, masks["both"], *flags).load(path)
    assert same(resumed.masks(), first.history[-1])
    assert same(state(straight), state(resumed.run(1)))
    assert not same(state(straight), state(first))


@pytest.mark.parametrize("flags", [RESELECT, LEARNED])
def test_a_checkpoint_translates_without_this_task_with_its_last_masks(workshop, masks, tmp_path, flags):
    trained = Training(workshop, masks["both"], *flags).run(2)
    path = trained.save(tmp_path / "trained.pt")
    cfg = workshop.config()
    task = tasks.setup_task(cfg.task)
    (model,), _ = checkpoint_utils.load_model_ensemble([path], task=task)
    assert same(model.kept_units(), trained.history[-1]) and not same(model.kept_units(), trained.history[0])
    assert not any(key.startswith("dynamics.") for key in model.state_dict())
    batch = workshop.batches(task)[0]["net_input"]
    torch.testing.assert_close(model.eval()(**batch)[0], trained.model.eval()(**batch)[0])


# --- re-selection -------------------------------------------------------------------------------------


def test_dropped_neurons_are_counted_as_if_kept(workshop, masks):
    """All layers against a profile of the same batch where all are kept; then the first, whose input no mask moves."""
    flags = ("--neuron-masks", masks["neurons"], *RESELECT, *NO_DROPOUT, "--ffn-path", "gather")
    _, task, model = workshop.build(*flags, task="neuron_spec_dynamic")
    batch = next(b for b in workshop.batches(task, "valid") if b["net_input"]["src_tokens"].eq(1).any())
    pad = task.source_dictionary.pad()

    def count() -> dict[str, torch.Tensor]:
        with counted(model.train(), model.dynamics, batch["net_input"], pad):
            model(**batch["net_input"])
        taken, model.dynamics.pending = model.dynamics.pending, {}
        return taken

    masked = count()
    original = model.kept_units()["encoder.layers.0"].clone()
    for kept in model.kept_units().values():
        kept.fill_(True)
    dense = count()
    counter = NeuronCounter(model.eval(), task.directions, workshop.langs)
    with counter.counting(batch["net_input"]), torch.no_grad():
        model(**batch["net_input"])
    profile = counter.result()
    for layer, counts in profile.counts.items():
        order = model.masked_directions(workshop.langs)[1]
        assert profile.directions != [] and torch.equal(dense[layer][order].sum(0), counts.sum(0))
    first = "encoder.layers.0"
    assert torch.equal(masked[first], dense[first])
    row = masked[first].any(1).nonzero().item()
    assert masked[first][row][~original[row]].any()
    assert not torch.equal(masked["decoder.layers.1"], dense["decoder.layers.1"])


def test_neurons_return_and_each_direction_keeps_as_many(workshop, masks):
    run = Training(workshop, masks["both"], *RESELECT).run(2)
    before, after = run.history[0], run.history[2]
    assert same(before, run.history[1])
    for site, kept in before.items():
        assert torch.equal(kept.sum(1), after[site].sum(1))
        assert not is_head_site(site) or torch.equal(kept, after[site])
    assert any((~before[site] & after[site]).any() for site in before)


def test_masks_are_those_of_the_counts_of_all_batches_of_an_update(workshop, masks):
    run = Training(workshop, masks["neurons"], *RESELECT, "--budget-percent", "25", "--count-decay", "1").run(
        2
    )
    seen = 0
    for layer, kept in run.masks().items():
        for counts, row in zip(run.model.dynamics[layer], kept, strict=True):
            if counts.any():
                seen += 1
                assert row.sum() == -(-row.numel() // 4)
                assert counts[row].min() >= counts[~row].max()
    assert seen > 2 * len(run.masks())  # of four batches, more than two directions


def test_selection_begins_and_ends_when_told(workshop, masks):
    run = Training(
        workshop, masks["neurons"], *RESELECT[:3], "1", "--collect-every", "1",
        "--reselect-from", "2", "--reselect-until", "3",
    ).run(4)  # fmt: skip
    moved = [not same(old, new) for old, new in zip(run.history, run.history[1:], strict=False)]
    assert moved == [False, True, True, False]
    assert [run.task._collects(n) for n in range(4)] == [True, True, True, False]


def test_running_counts_begin_with_the_profile(workshop, masks, tmp_path):
    _, task, model = workshop.build()
    widths = {key: fc1.out_features for key, fc1 in model.ffn_layers().items()}
    profile = ActivationCounts.zeros(task.directions[::-1], widths)  # in another order
    for i, counts in enumerate(profile.counts.values()):
        counts.copy_(torch.randint(9, counts.shape, generator=torch.Generator().manual_seed(i)))
    for tokens in profile.tokens.values():
        tokens.fill_(9)
    profile.save(tmp_path / "profile.safetensors")
    flags = ("--neuron-masks", masks["neurons"], "--initial-counts", str(tmp_path / "profile.safetensors"))
    _, _, model = workshop.build(*flags, *RESELECT, task="neuron_spec_dynamic")
    for layer, counts in profile.counts.items():
        assert torch.equal(model.dynamics[layer] // 2**16, counts.flip(0))
    _, _, learned = workshop.build(*flags, *LEARNED, "--budget-percent", "30", task="neuron_spec_dynamic")
    assert {float(k.sum(1).float().mean()) for k in learned.kept_units().values()} == {15.0, 12.0}


def test_half_precision_counts_and_selects(workshop, masks):
    flags = ("--neuron-masks", masks["neurons"], *RESELECT)
    _, task, model = workshop.build(*flags, task="neuron_spec_dynamic")
    batch = workshop.batches(task)[0]["net_input"]
    counts = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.train().to(dtype)
        with counted(model, model.dynamics, batch, task.source_dictionary.pad()):
            model(**batch)
        counts[dtype] = torch.cat([rows.flatten() for rows in model.dynamics.pending.values()])
        model.dynamics.pending.clear()
    one, other = counts.values()
    assert one.dtype == other.dtype == torch.int64
    assert (one - other).abs().sum() < 0.1 * one.sum()
    assert all(state.dtype == torch.int64 for state in model.dynamics.buffers())


def test_autocast_does_not_round_counts():
    running = RunningCounts({"encoder.layers.0": 3}, 2, decay=1)
    pre, real = (
        torch.ones(1001, 2, 3),
        torch.ones(1001, 2, dtype=torch.bool),
    )  # more than half precision counts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        running.count("encoder.layers.0", pre, real, torch.tensor([1]))
        running.count("encoder.layers.0", pre, real, torch.tensor([0, 1]))
    assert running.pending["encoder.layers.0"].tolist() == [[1001] * 3, [3003] * 3]


# --- learned ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--budget-percent", "50")])
def test_the_budget_holds_after_every_update_and_units_return(workshop, masks, flags):
    run = Training(workshop, masks["both"], *LEARNED, *flags).run(4)
    given = NeuronMasks.load(masks["both"]).kept
    for site, kept in given.items():
        budget = torch.full((6,), kept.size(1) // 2) if flags else kept.sum(1)
        assert all(torch.equal(at[site].sum(1), budget) for at in run.history)
    for heads in (False, True):
        assert any(
            (~old[site] & new[site]).any()
            for old, new in zip(run.history, run.history[1:], strict=False)
            for site in given
            if is_head_site(site) == heads
        )
    assert flags or same(run.history[0], given)


@pytest.mark.parametrize("batching", ["one-direction", "mixed"])
@pytest.mark.parametrize("dropped", ["bias", "zero"])
def test_the_gradient_of_scores_is_that_of_masks_that_are_numbers(workshop, masks, dropped, batching):
    """Against a dense model, where hooks put ``dropped + xi * (kept - dropped)`` into fc2 and out_proj."""
    flags = (*NO_DROPOUT, "--dropped-neurons", dropped, "--batching", batching)
    cfg, task, model = workshop.build(
        *flags, *LEARNED, "--neuron-masks", masks["both"], task="neuron_spec_dynamic"
    )
    batch = max(workshop.batches(task, "train"), key=lambda b: len(b["net_input"]["distinct_ids"]))
    assert (len(batch["net_input"]["distinct_ids"]) > 1) == (batching == "mixed")
    criterion = task.build_criterion(cfg.criterion)
    with scored(model.train(), model.dynamics):
        loss = criterion(model, batch)[0]
    loss.backward()

    _, _, dense = workshop.build(*flags)
    for attention in dense.attentions().values():
        attention.watched = True
    xis = {site: kept.float().requires_grad_() for site, kept in NeuronMasks.load(masks["both"]).kept.items()}
    rows = model.encoder.mask_rows[batch["net_input"]["direction_ids"]]
    modules = dict(dense.named_modules())

    def put(site: str, of_dropped: torch.Tensor) -> Any:
        def hook(module: Any, inputs: Any) -> Any:
            (full,) = inputs
            xi = xis[site][rows]
            return (
                of_dropped + xi.repeat_interleave(full.size(-1) // xi.size(-1), dim=-1) * (full - of_dropped),
            )

        return hook

    for site in xis:
        if is_head_site(site):
            modules[f"{site}.out_proj"].register_forward_pre_hook(put(site, torch.zeros(())))
        else:
            constant = modules[f"{site}.fc1"].bias.relu() if dropped == "bias" else torch.zeros(())
            modules[f"{site}.fc2"].register_forward_pre_hook(put(site, constant))
    expected = criterion(dense.train(), batch)[0]
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for site, xi in xis.items():
        torch.testing.assert_close(model.dynamics[site].grad, xi.grad, atol=1e-4, rtol=1e-3)
        assert is_head_site(site) or xi.grad[xi.detach() == 0].any()  # a dropped unit has one too
    for (name, one), (_, other) in zip(dense.named_parameters(), model.named_parameters(), strict=False):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3, msg=name)


# --- by episodes --------------------------------------------------------------------------------------


def by_episodes(workshop: Any, masks: str, *flags: str) -> Training:
    return Training(workshop, masks, *flags, task="neuron_spec_meta")


def test_masks_of_episodes_stay_unless_told_otherwise(workshop):
    defaults = {
        task: workshop.config(task=task).task.dynamic_masks
        for task in ("neuron_spec_meta", "neuron_spec_dynamic")
    }
    assert defaults == {"neuron_spec_meta": "none", "neuron_spec_dynamic": "reselect"}
    with pytest.raises(ModelError, match="say nothing to"):
        tasks.setup_task(
            workshop.config("--meta", "none", "--reselect-every", "2", task="neuron_spec_meta").task
        )


@pytest.mark.parametrize("rule", [RESELECT, LEARNED])
def test_episodes_that_change_nothing_move_masks_bit_for_bit_as_without(workshop, masks, rule):
    """With dropout, masks of heads, and two directions to an update."""
    alone = Training(workshop, masks["both"], *rule).run(2)
    assert not same(alone.history[0], alone.history[-1])
    for method in (
        ("--meta", "none"),
        (*FOMAML, "0", "--query", "all"),
        (*REPTILE, "0.3", "--inner-steps", "1"),
    ):
        episodes = by_episodes(workshop, masks["both"], *rule, *method).run(2)
        assert same(state(alone), state(episodes)), method
        assert all(same(one, other) for one, other in zip(alone.history, episodes.history, strict=True))
    adapted = by_episodes(workshop, masks["both"], *rule, *FOMAML, "0.5", "--query", "all").run(2)
    assert not same(state(alone), state(adapted))


@pytest.mark.parametrize("rule", [RESELECT, LEARNED])
@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_masks_follow_the_passes_of_the_outer_gradient(workshop, masks, method, rule):
    """The query at the adapted weights, or all inner steps, by torch's own SGD; and the episode moves nothing."""
    flags = (*method, "0.5", "--inner-steps", "2", *rule, *NO_DROPOUT, "--ffn-path", "multiply")
    cfg, task, model = workshop.build(*flags, "--neuron-masks", masks["both"], task="neuron_spec_meta")
    criterion = task.build_criterion(cfg.criterion)
    batch = next(b for b in workshop.batches(task) if len(b["target"]) >= 8)
    model.train()
    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    task.train_step(batch, model, criterion, Plain(), 0)
    assert same(before, model.state_dict())

    support, query = task._split(batch)
    weights = [p for name, p in other.named_parameters() if not name.startswith("dynamics.")]
    sgd = torch.optim.SGD(weights, lr=0.5 / support["ntokens"])

    def seen(sample: Any) -> None:
        NeuronSpecDynamicTask.train_step(task, sample, other, criterion, Plain(), 0)

    for _ in range(2):
        sgd.zero_grad()
        if method is REPTILE:
            seen(support)  # the gradients of scores add up, as `sgd` does not know them
        else:
            criterion(other, support)[0].backward()
        sgd.step()
    if method is FOMAML:
        seen(query)
    if rule is LEARNED:
        for site, scores in model.dynamics.named_parameters():
            expected = other.dynamics.get_parameter(site).grad / (2 if method is REPTILE else 1)
            torch.testing.assert_close(scores.grad, expected, atol=1e-6, rtol=1e-5)
            assert expected.any()
    else:
        assert model.dynamics.pending and same(model.dynamics.pending, other.dynamics.pending)


@pytest.mark.parametrize("rule", [RESELECT, LEARNED])
@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_episodes_hold_the_budget_and_go_on_as_they_were(workshop, masks, tmp_path, method, rule):
    flags = (*method, "0.3", "--inner-steps", "2", *rule)
    straight = by_episodes(workshop, masks["both"], *flags).run(3)
    for site, kept in straight.history[0].items():
        assert all(torch.equal(at[site].sum(1), kept.sum(1)) for at in straight.history)
    assert not same(straight.history[0], straight.history[-1])
    path = by_episodes(workshop, masks["both"], *flags).run(1).save(tmp_path / "first.pt")
    resumed = by_episodes(workshop, masks["both"], *flags).load(path).run(2)
    assert same(straight.masks(), resumed.masks()) and same(state(straight), state(resumed))


# --- logs and refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [RESELECT, LEARNED])
def test_churn_kept_and_overlap_are_logged(workshop, masks, flags):
    logs = Training(workshop, masks["both"], *flags).run(2).logs
    assert all(0.4 < log["mask_kept_fraction"] < 0.8 and 0 < log["mask_overlap"] < 1 for log in logs)
    assert logs[-1]["mask_churn"] > 0
    assert ("mask_churn" in logs[0]) == (flags is LEARNED)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((*NONE, "--budget-percent", "50"), "say nothing to"),
        ((*LEARNED, "--reselect-k", "90"), "say nothing to"),
        ((*RESELECT, "--score-gap", "1"), "say nothing to"),
        ((*RESELECT, "--reselect-k", "90", "--budget-percent", "50"), "two rules"),
        ((*RESELECT, "--count-decay", "1.5"), "--count-decay is out of range"),
        ((*RESELECT[:3], "0"), "--reselect-every is out of range"),
        ((*LEARNED[:3], "0"), "--score-gap is out of range"),
        ((*RESELECT, "--budget-percent", "0"), "bad --budget-percent"),
        ((*LEARNED, "--fp16"), "does not go with --fp16"),
        ((*LEARNED, "--bf16"), "does not go with --bf16"),
        ((*LEARNED, "--missing-direction", "dense"), "masks of their own"),
        ((*LEARNED, "--distributed-world-size", "2", "--ddp-backend", "slowmo"), "in all processes"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_before_training(workshop, masks, flags, message):
    cfg = workshop.config("--neuron-masks", masks["both"], *flags, task="neuron_spec_dynamic")
    with pytest.raises((ModelError, SelectionError), match=message):
        tasks.setup_task(cfg.task)


def test_masks_are_needed_and_must_be_of_directions(workshop, masks, tmp_path):
    with pytest.raises(ModelError, match="no masks to begin with"):
        tasks.setup_task(workshop.config(task="neuron_spec_dynamic").task)
    given = NeuronMasks.load(masks["neurons"])
    given.metadata["neuron_sets"] = "language"
    given.save(tmp_path / "masks.safetensors")
    with pytest.raises(ModelError, match="share their sets"):
        Training(workshop, str(tmp_path / "masks.safetensors"), *RESELECT)


def test_another_rule_does_not_go_on_with_a_checkpoint(workshop, masks, tmp_path):
    path = Training(workshop, masks["neurons"], *LEARNED).run(1).save(tmp_path / "learned.pt")
    with pytest.raises(Exception, match="Cannot load") as error:
        Training(workshop, masks["neurons"], *RESELECT).load(path)
    assert "moved by another rule" in str(error.value.__context__)


@pytest.mark.parametrize(
    "flags",
    [
        ("neuron_spec_dynamic", *RESELECT),
        ("neuron_spec_dynamic", *LEARNED),
        ("neuron_spec_meta", *LEARNED, *FOMAML, "0.3"),
    ],
    ids=["reselect", "learned", "learned in episodes"],
)
def test_two_processes_train_as_one_with_twice_the_update_freq(workshop, checkpoint, masks, tmp_path, flags):
    flags = ("--task", *flags, "--neuron-masks", masks["both"])
    one, other = workshop.trained_by_one_and_by_two_processes(checkpoint, tmp_path, *flags)
    given = NeuronMasks.load(masks["neurons"]).kept["encoder.layers.0"]
    assert not torch.equal(one["encoder.layers.0.fc1.neuron_mask"], given)
    for key, trained in one.items():
        if trained.dtype.is_floating_point:
            torch.testing.assert_close(other[key], trained, atol=1e-5, rtol=1e-4)
        else:  # masks, and counts
            assert torch.equal(other[key], trained), key
