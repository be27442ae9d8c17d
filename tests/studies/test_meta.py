"""Inner steps by hand, and the task inside fairseq's own trainer."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.directions import direction_id, parse_directions
from neuron_spec.errors import ModelError
from neuron_spec.studies.lass.weight_masks import WeightMasks, pack
from neuron_spec.studies.meta.inner_steps import accumulate, adapt, reptile, restored
from neuron_spec.studies.meta.task import rows_of, support_rows

pytestmark = pytest.mark.slow

PAD = 1
FOMAML = ("--meta", "fomaml", "--inner-lr")
REPTILE = ("--meta", "reptile", "--inner-lr")
NONE = ("--meta", "none")
NO_DROPOUT = ("--dropout", "0", "--attention-dropout", "0")


# --- the functions ------------------------------------------------------------------------------------


def quadratic(weight: torch.Tensor, target: torch.Tensor) -> Any:
    """Sum over the targets of half the squared distance; its mean gradient is ``weight - target.mean()``."""
    return lambda: (0.5 * (weight - target).square().sum(), len(target))


def test_inner_steps_are_sgd_on_the_mean_loss_by_hand():
    weight, unused = (torch.tensor(3.0, requires_grad=True) for _ in range(2))
    losses = adapt([weight, unused], quadratic(weight, torch.tensor([1.0, 1.0])), steps=2, rate=0.1)
    # 3 - 0.1 * 2 = 2.8, 2.8 - 0.1 * 1.8 = 2.62
    assert weight.item() == pytest.approx(2.62) and unused.item() == 3
    assert losses.tolist() == pytest.approx([0.5 * 2**2, 0.5 * 1.8**2])
    assert weight.grad is None


def test_first_order_maml_of_two_steps_by_hand():
    weight = torch.tensor(3.0, requires_grad=True)
    with restored([weight]):
        adapt([weight], quadratic(weight, torch.tensor([1.0])), steps=2, rate=0.1)
        quadratic(weight, torch.tensor([-1.0, 0.0]))()[0].backward()
    # At the adapted weight, 2.62; with second derivatives it would be 0.9 * 0.9 of that.
    assert weight.grad.item() == pytest.approx(2 * 2.62 + 1)
    assert weight.item() == 3


def test_reptile_is_the_way_over_rate_and_steps():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    before = weight.detach().clone()
    target = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    reptile([weight], quadratic(weight, target), steps=3, rate=0.2)
    torch.testing.assert_close(weight.grad, 7 * (before - weight.detach()) / (0.2 * 3))


def test_gradients_accumulate_as_in_a_backward_pass():
    weight, unused = (torch.ones(3, requires_grad=True) for _ in range(2))
    (weight * 2).sum().backward()
    accumulate([weight, unused], [torch.full((3,), 4.0), None], 0.5)
    assert weight.grad.tolist() == [4, 4, 4] and unused.grad is None
    accumulate([unused], [torch.ones(3)], 3)
    assert unused.grad.tolist() == [3, 3, 3]


def test_weights_come_back_after_an_error():
    weight = torch.randn(50, requires_grad=True)
    before = weight.detach().clone()
    with pytest.raises(RuntimeError, match="out of memory"), restored([weight]):
        adapt([weight], quadratic(weight, torch.zeros(1)), steps=1, rate=0.3)
        assert not torch.equal(weight, before)
        raise RuntimeError("out of memory")
    assert torch.equal(weight, before)


@pytest.mark.parametrize("fraction", [0.001, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [2, 3, 8, 41])
def test_support_is_spread_evenly_and_neither_part_is_empty(size, fraction):
    rows = support_rows(size, fraction)
    number = int(rows.sum())
    assert 1 <= number < size
    assert abs(number - size * fraction) <= 1
    # In any run of sentences as many as their share, give or take one.
    counts = torch.cumsum(torch.cat([torch.zeros(1), rows.float()]), 0)
    share = counts - torch.arange(size + 1) * number / size
    assert share.max() - share.min() <= 1


# --- the task on one batch ----------------------------------------------------------------------------


class Plain:
    """What the task needs of an optimizer."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


def setup(workshop: Any, *flags: str, kind: str = "dense") -> tuple[Any, Any, Any, dict[str, Any]]:
    """Task, model of a kind in training mode, criterion, and a batch of at least eight sentences."""
    arch = {"lass": "neuron_spec_lass_tiny", "adapters": "neuron_spec_adapters_tiny"}.get(kind, "")
    cfg, task, model = workshop.build(*flags, task="neuron_spec_meta", arch=arch)
    if kind == "neurons":
        model.set_masks(workshop.masks(model), workshop.langs)
    elif kind == "lass":
        model.set_weight_masks(weight_masks(workshop, model), workshop.langs)
    elif kind == "adapters":
        with torch.no_grad():  # new ones do nothing
            for name, parameter in model.named_parameters():
                parameter.add_(0.1 if ".adapter." in name else 0)
    batch = next(b for b in workshop.batches(task, "valid") if len(b["target"]) >= 8)
    return task, model.train(), task.build_criterion(cfg.criterion), batch


def weight_masks(workshop: Any, model: Any) -> WeightMasks:
    generator = torch.Generator().manual_seed(1)
    directions = parse_directions(workshop.lang_pairs)
    shapes = {key: linear.weight.shape for key, linear in model.linears().items()}
    bits = {
        key: torch.rand(len(directions), *shape, generator=generator) < 0.5 for key, shape in shapes.items()
    }
    return WeightMasks(
        directions,
        {key: pack(value) for key, value in bits.items()},
        {key: s[1] for key, s in shapes.items()},
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(task: Any, model: Any, criterion: Any, batch: Any, **kwargs: Any) -> Any:
    torch.manual_seed(5)
    return task.train_step(batch, model, criterion, Plain(), 0, **kwargs)


def test_parts_of_a_batch_make_up_the_batch(workshop):
    _, _, _, batch = setup(workshop, *NONE)
    rows = support_rows(len(batch["target"]), 0.3)
    parts = [rows_of(batch, kept, padding=PAD) for kept in (rows, ~rows)]
    for name in ("ntokens", "nsentences"):
        assert sum(part[name] for part in parts) == batch[name]
    assert sorted(torch.cat([part["id"] for part in parts]).tolist()) == sorted(batch["id"].tolist())
    (whole,) = (rows_of(batch, torch.ones(len(rows), dtype=torch.bool), padding=PAD),)
    assert whole.keys() == batch.keys() and whole["net_input"].keys() == batch["net_input"].keys()
    for part in parts:
        assert part["net_input"]["distinct_ids"] == batch["net_input"]["distinct_ids"]
        assert len(part["net_input"]["direction_ids"]) == part["nsentences"]
    assert whole["ntokens"] == batch["ntokens"]


@pytest.mark.parametrize(
    "kind, steps", [("dense", 1), ("dense", 2), ("neurons", 2), ("lass", 2), ("adapters", 2)]
)
def test_the_gradient_is_that_of_the_query_at_weights_adapted_by_torchs_own_sgd(workshop, kind, steps):
    flags = (*FOMAML, "0.5", "--inner-steps", str(steps), "--support-fraction", "0.3", *NO_DROPOUT)
    task, model, criterion, batch = setup(workshop, *flags, kind=kind)
    other = copy.deepcopy(model)
    loss, size, log = step(task, model, criterion, batch)

    rows = support_rows(len(batch["target"]), 0.3)
    support, query = (rows_of(batch, kept, padding=PAD) for kept in (rows, ~rows))
    sgd = torch.optim.SGD(other.parameters(), lr=0.5)
    inner = []
    for _ in range(steps):
        sgd.zero_grad()
        support_loss, support_size, _ = criterion(other, support)
        (support_loss / support_size).backward()
        inner.append(support_loss.item() / support_size)
        sgd.step()
    sgd.zero_grad()
    query_loss, query_size, _ = criterion(other, query)
    query_loss.backward()
    expected = gradients(other)
    assert gradients(model).keys() == expected.keys()
    assert kind != "adapters" or all(".adapter." in name for name in expected)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)
    assert (size, log["ntokens"]) == (query_size, query["ntokens"])
    assert loss.item() == pytest.approx(query_loss.item(), rel=1e-5)
    assert float(log["inner_loss"]) / log["inner_size"] == pytest.approx(sum(inner) / steps, rel=1e-5)


@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_the_weights_are_back_bit_for_bit_and_the_model_went_elsewhere(workshop, method):
    task, model, criterion, batch = setup(workshop, *method, "0.5")
    before = copy.deepcopy(model.state_dict())
    seen = []
    model.encoder.register_forward_pre_hook(lambda m, _: seen.append(m.layers[0].fc1.weight.detach().clone()))
    step(task, model, criterion, batch)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(gradient.abs().max() > 0 for gradient in gradients(model).values())
    assert len(seen) == (4 if method is FOMAML else 3)
    assert torch.equal(seen[0], before["encoder.layers.0.fc1.weight"])
    assert not torch.equal(seen[-1], seen[-2])


@pytest.mark.parametrize("path", ["gather", "multiply"])
@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_dropped_neurons_take_no_inner_step_and_have_no_gradient(workshop, method, path):
    task, model, criterion, batch = setup(workshop, *method, "0.5", "--ffn-path", path, kind="neurons")
    masks = workshop.masks(model)
    (number,) = batch["net_input"]["distinct_ids"]
    row = next(i for i, d in enumerate(masks.directions) if direction_id(d, workshop.langs) == number)
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda m, _: seen.append([layer.fc1.weight.detach().clone() for layer in m.layers])
    )
    step(task, model, criterion, batch)
    for number, (first, last) in enumerate(zip(seen[0], seen[-1], strict=True)):
        kept = masks.kept[f"encoder.layers.{number}"][row]
        assert torch.equal(first[~kept], last[~kept])
        assert (first[kept] != last[kept]).any(dim=1).float().mean() > 0.9
        assert not model.encoder.layers[number].fc1.weight.grad[~kept].any()


@pytest.mark.parametrize("rate, steps", [("0", "1"), ("0", "3")])
def test_at_rate_zero_it_is_the_parents_step_on_the_query(workshop, rate, steps):
    """Bit for bit, with dropout, and the random numbers after it are the same."""
    task, model, criterion, batch = setup(workshop, *FOMAML, rate, "--inner-steps", steps)
    outcome, after = step(task, model, criterion, batch), torch.rand(1)
    got = gradients(model)
    model.zero_grad(set_to_none=True)
    query = rows_of(batch, ~support_rows(len(batch["target"]), 0.5), padding=PAD)
    torch.manual_seed(5)
    expected = super(type(task), task).train_step(query, model, criterion, Plain(), 0)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(outcome[0], expected[0]) and outcome[1] == expected[1]
    assert all(torch.equal(gradient, got[name]) for name, gradient in gradients(model).items())
    assert got


def test_support_and_query_have_dropout_of_their_own(workshop):
    task, model, criterion, batch = setup(workshop, *FOMAML, "0", "--query", "all", "--inner-steps", "2")
    whole = torch.ones(len(batch["target"]), dtype=torch.bool)
    task._split = lambda batch: (rows_of(batch, whole, padding=PAD), batch)  # the same sentences
    seen = []
    model.encoder.register_forward_hook(lambda m, _, out: seen.append(out["encoder_out"][0].detach()))
    step(task, model, criterion, batch)
    assert len(seen) == 3
    assert not any(torch.equal(seen[i], seen[j]) for i in range(3) for j in range(i))


def test_a_single_sentence_is_support_and_query(workshop):
    task, model, criterion, batch = setup(workshop, *FOMAML, "0.1")
    one = rows_of(batch, torch.arange(len(batch["target"])) == 2, padding=PAD)
    _, size, log = step(task, model, criterion, one)
    assert size == one["ntokens"] == log["inner_size"]


@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_a_batch_that_fills_a_gap_has_no_gradient_and_logs_the_same_keys(workshop, method):
    task, model, criterion, batch = setup(workshop, *method, "0.1")
    _, _, log = step(task, model, criterion, batch)
    model.zero_grad(set_to_none=True)
    _, _, dummy = step(task, model, criterion, batch, ignore_grad=True)
    assert not any(gradient.any() for gradient in gradients(model).values())
    assert list(dummy) == list(log)
    # Processes add tensors and numbers apart.
    assert [torch.is_tensor(v) for v in dummy.values()] == [torch.is_tensor(v) for v in log.values()]


def test_inner_steps_lower_the_loss_of_their_direction(workshop):
    _, model, criterion, batch = setup(workshop, *FOMAML, "0.1", *NO_DROPOUT)
    parameters = list(model.parameters())
    losses = adapt(parameters, lambda: criterion(model, batch)[:2], steps=5, rate=0.1)
    assert (losses.diff() < 0).all()


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--meta", "fomaml"), "--inner-lr does not fit"),
        ((*FOMAML, "-1"), "--inner-lr does not fit"),
        ((*REPTILE, "nan"), "--inner-lr does not fit"),
        ((*FOMAML, "0.1", "--inner-steps", "0"), "--inner-steps does not fit"),
        ((*FOMAML, "0.1", "--support-fraction", "1"), "--support-fraction does not fit"),
        ((*FOMAML, "0.1", "--batching", "mixed"), "--batching does not fit"),
        ((*REPTILE, "0.1", "--query", "all"), "only fomaml parts"),
        ((*NONE, "--support-fraction", "0.5"), "only fomaml parts"),
        ((*FOMAML, "0.1", "--fp16"), "does not go with --fp16"),
        ((*FOMAML, "0.1", "--bf16"), "does not go with --bf16"),
        ((*REPTILE, "0.1", "--amp"), "does not go with --amp"),
        ((*FOMAML, "0.1", "--checkpoint-activations"), "does not go with --checkpoint-activations"),
        ((*FOMAML, "0.1", "--distributed-world-size", "2"), "several processes"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_before_training(workshop, flags, message):
    cfg = workshop.config(*flags, task="neuron_spec_meta")
    with pytest.raises(ModelError, match=message):
        tasks.setup_task(cfg.task)


# --- whole trainings ----------------------------------------------------------------------------------


class Training:
    """fairseq's trainer over the batches of the first epoch, two to an update."""

    def __init__(self, workshop: Any, *flags: str, task: str = "neuron_spec_meta") -> None:
        from fairseq.trainer import Trainer

        stepping = ["--update-freq", "2", "--clip-norm", "1", "--max-tokens", "200"]
        stepping += ["--num-workers", "0"]
        cfg, self.task, model = workshop.build(*stepping, *flags, task=task)
        model.set_masks(workshop.masks(model), workshop.langs)
        self.trainer = Trainer(cfg, self.task, model, self.task.build_criterion(cfg.criterion))
        self.epoch = self.trainer.get_train_iterator(epoch=1)
        self.trainer.lr_step_begin_epoch(1)
        self.model = model

    def run(self, updates: int) -> Training:
        from fairseq.data import iterators

        batches = iterators.GroupedIterator(self.epoch.next_epoch_itr(shuffle=True), 2)
        self.logs = [self.trainer.train_step(next(batches)) for _ in range(updates)]
        return self

    def save(self, path: Path) -> None:
        self.trainer.consolidate_optimizer()
        self.trainer.save_checkpoint(str(path), {"train_iterator": self.epoch.state_dict(), "val_loss": None})

    def load(self, path: Path) -> Training:
        self.epoch.load_state_dict(self.trainer.load_checkpoint(str(path))["train_iterator"])
        return self


def same_weights(one: Training, other: Training) -> bool:
    state = other.model.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.model.state_dict().items())


def test_trainings_that_must_be_the_same_are_bit_for_bit(workshop):
    """With dropout, masks, clipping and two directions to an update."""
    baseline = Training(workshop, *NONE).run(4)
    assert same_weights(baseline, Training(workshop, task="neuron_specialization").run(4))
    assert same_weights(baseline, Training(workshop, *FOMAML, "0", "--query", "all").run(4))
    assert same_weights(baseline, Training(workshop, *REPTILE, "0.3", "--inner-steps", "1").run(4))
    assert not same_weights(baseline, Training(workshop, *FOMAML, "0.3", "--query", "all").run(4))
    assert not same_weights(baseline, Training(workshop, *REPTILE, "0.3", "--inner-steps", "2").run(4))


@pytest.mark.parametrize("method", [FOMAML, REPTILE])
def test_a_resumed_training_is_the_same(workshop, tmp_path, method):
    straight = Training(workshop, *method, "0.3").run(4)
    first = Training(workshop, *method, "0.3").run(2)
    assert not same_weights(straight, first)
    first.save(tmp_path / "first.pt")
    assert same_weights(straight, Training(workshop, *method, "0.3").load(tmp_path / "first.pt").run(2))


def test_the_inner_loss_is_logged_in_bits(workshop):
    log = Training(workshop, *FOMAML, "0.1").run(1).logs[0]
    assert 0.5 * log["loss"] < log["inner_loss"] < 2 * log["loss"]
    assert log["loss"] == pytest.approx(math.log2(300), rel=0.5)  # of random weights
    assert "inner_loss" not in Training(workshop, *NONE).run(1).logs[0]


def test_two_processes_train_as_one_with_twice_the_update_freq(workshop, checkpoint, tmp_path):
    flags = ("--task", "neuron_spec_meta", *FOMAML, "0.3")
    one, other = workshop.trained_by_one_and_by_two_processes(checkpoint, tmp_path, *flags)
    dense = read_checkpoint(checkpoint)["model"]
    for key, trained in one.items():
        torch.testing.assert_close(other[key], trained, atol=1e-6, rtol=1e-5)
        assert not key.endswith(".weight") or not torch.equal(dense[key], trained)
