"""Against the one form that defines truth: fc2(relu(mask * (W1 x) + b1))."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.errors import ModelError
from neuron_spec.modules.specialized_ffn import (
    BREAK_EVEN_TOKENS,
    WIDTH_MULTIPLE,
    Route,
    SpecializedFC1,
    SpecializedFC2,
)
from neuron_spec.neurons.choices import FROZEN_WEIGHTS

D, WIDTH, B, T = 6, 48, 4, 5
KEPT = (20, 46, 0, 48)  # neurons: few, so many that rounding leaves none out, none, all


class FFN(nn.Module):
    def __init__(
        self, dropped_neurons: str = "bias", ffn_path: str = "auto", *, specialized: bool = True
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = SpecializedFC1(D, WIDTH), SpecializedFC2(WIDTH, D)
        self.fc2.follow(self.fc1)
        self.fc1.dropped_neurons, self.fc1.ffn_path = dropped_neurons, ffn_path
        if specialized:
            self.fc1.set_mask(mask())

    def forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        self.fc1.route = None if rows is None else route(rows)
        return self.fc2(F.relu(self.fc1(x)))

    def reference(self, x: Tensor, rows: Tensor) -> Tensor:
        """x ``[T, B, D]``, rows int64 ``[B]``."""
        kept = torch.cat([self.fc1.neuron_mask, torch.ones(1, WIDTH, dtype=torch.bool)])[
            rows
        ].float()  # [B, F]
        hidden = F.relu(kept * (x @ self.fc1.weight.t()) + self.fc1.bias)
        if self.fc1.dropped_neurons == "zero":
            hidden = hidden * kept
        return hidden @ self.fc2.weight.t() + self.fc2.bias


def mask() -> Tensor:
    """bool ``[4, F]`` with so many kept."""
    generator = torch.Generator().manual_seed(3)
    kept = torch.zeros(len(KEPT), WIDTH, dtype=torch.bool)
    for row, count in enumerate(KEPT):
        kept[row, torch.randperm(WIDTH, generator=generator)[:count]] = True
    return kept


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(T, B, D, generator=torch.Generator().manual_seed(seed))


def only(row: int) -> Tensor:
    return torch.full((B,), row)


def route(rows: Tensor) -> Route:
    distinct = tuple(rows.unique().tolist())
    return Route(distinct, None if len(distinct) == 1 else rows)


def hidden_width(ffn: FFN, rows: Tensor, x: Tensor | None = None) -> int:
    ffn.fc1.route = route(rows)
    return ffn.fc1(inputs() if x is None else x).size(-1)


def gradients(ffn: FFN, output: Tensor) -> dict[str, Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    names, parameters = zip(*ffn.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((output * weights).sum(), parameters), strict=True))


def test_gathered_widths_are_rounded_up_and_empty_or_full_ones_stay():
    ffn = FFN(ffn_path="gather")
    assert WIDTH_MULTIPLE == 16
    assert [hidden_width(ffn, only(row)) for row in range(len(KEPT) + 1)] == [32, 48, 0, 48, 48]
    assert hidden_width(ffn, torch.tensor([0, 2, 0, 2])) == WIDTH


def test_training_gathers_where_it_pays_and_evaluation_always():
    ffn, rows = FFN(ffn_path="auto"), only(0)
    left_out = 1 - 32 / WIDTH
    tokens = round(BREAK_EVEN_TOKENS["cpu"] / left_out)
    few, enough = (torch.zeros(length, 1, D) for length in (tokens - 1, tokens))
    assert hidden_width(ffn, rows, few) == WIDTH
    assert hidden_width(ffn, rows, enough) == 32
    assert hidden_width(ffn.eval(), rows, few) == WIDTH  # for gradients it is gathered anew each time, too
    with torch.no_grad():
        assert hidden_width(ffn, rows, few) == 32
        assert hidden_width(ffn.train(), rows, few) == WIDTH
        assert hidden_width(FFN(ffn_path="multiply").eval(), rows, few) == WIDTH


def test_a_layer_that_nobody_set_up_is_the_papers_and_chooses_its_path():
    ffn, layer = FFN(ffn_path="auto"), SpecializedFC1(D, WIDTH)
    layer.load_state_dict(FFN(specialized=False).fc1.state_dict())
    layer.set_mask(mask())
    with pytest.raises(ModelError, match="without direction ids"):
        layer(inputs())
    ffn.fc1 = layer
    ffn.fc2.follow(layer)
    assert hidden_width(ffn, only(0)) == WIDTH
    torch.testing.assert_close(ffn(inputs(), only(0)), ffn.reference(inputs(), only(0)))
    with torch.no_grad():
        assert hidden_width(ffn.eval(), only(0)) == 32


@pytest.mark.parametrize("ffn_path", ["auto", "gather", "multiply"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize(
    "rows", [*map(only, range(len(KEPT) + 1)), torch.tensor([0, 2, 1, 3]), torch.tensor([0, 4, 0, 1])]
)
def test_every_path_equals_the_reference_in_output_and_gradients(ffn_path, dropped_neurons, rows):
    ffn, x = FFN(dropped_neurons, ffn_path), inputs()
    output, reference = ffn(x, rows), ffn.reference(x, rows)
    torch.testing.assert_close(output, reference)
    expected = gradients(ffn, reference)
    for name, gradient in gradients(ffn, output).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize("rows", [torch.tensor([1, 2, 0, 1]), only(1), only(2)])
def test_the_last_row_is_masked_and_the_one_past_it_is_not(dropped_neurons, rows):
    ffn, x = FFN(dropped_neurons), inputs()
    ffn.fc1.set_mask(mask()[[3, 0]])
    torch.testing.assert_close(ffn(x, rows), ffn.reference(x, rows))


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero", "frozen"])
@pytest.mark.parametrize("rows", [only(0), only(3), torch.tensor([0, 2, 1, 4])])
def test_batches_may_come_first(dropped_neurons, rows):
    ffn, x = FFN(dropped_neurons, "multiply"), inputs()
    expected = ffn(x, rows)
    ffn.fc1.batch_first = True
    torch.testing.assert_close(ffn(x.transpose(0, 1), rows), expected.transpose(0, 1))


@pytest.mark.parametrize("ffn_path", ["auto", "gather", "multiply"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero", "frozen"])
@pytest.mark.parametrize("rows", [only(0), only(3), torch.tensor([0, 2, 1, 4])])
def test_who_watches_sees_all_neurons_and_changes_nothing(ffn_path, dropped_neurons, rows):
    ffn, x, seen = FFN(dropped_neurons, ffn_path).eval(), inputs(), []
    with torch.no_grad():
        expected = ffn(x, rows)
        ffn.fc1.watch = seen.append
        torch.testing.assert_close(ffn(x, rows), expected)
    (preactivation,) = seen
    torch.testing.assert_close(preactivation, x @ ffn.fc1.weight.t() + ffn.fc1.bias)
    assert not preactivation.requires_grad


@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize("rows", [only(0), torch.tensor([0, 2, 1, 4])])
def test_autocast_rounds_and_no_more(dropped_neurons, rows):
    ffn, x = FFN(dropped_neurons, "gather"), inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = ffn(x, rows)
    reference = ffn.reference(x, rows)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), reference, atol=0.02, rtol=0.02)
    expected = gradients(ffn, reference)
    for name, gradient in gradients(ffn, output.float()).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("ffn_path", ["gather", "multiply"])
def test_masking_is_masking_rows_of_w1(ffn_path):
    ffn, x = FFN(ffn_path=ffn_path), inputs()
    masked = ffn.fc1.weight * mask()[0][:, None]
    expected = ffn.fc2.weight @ F.relu(x @ masked.t() + ffn.fc1.bias)[..., None]
    torch.testing.assert_close(ffn(x, only(0)), expected.squeeze(-1) + ffn.fc2.bias)


@pytest.mark.parametrize("ffn_path", ["gather", "multiply"])
def test_the_two_semantics_differ_by_the_dropped_neurons_constant(ffn_path):
    x, dropped = inputs(), ~mask()[0]
    bias, zero = FFN("bias", ffn_path), FFN("zero", ffn_path)
    constant = bias.fc2.weight[:, dropped] @ F.relu(bias.fc1.bias[dropped])
    assert constant.abs().max() > 0.01
    difference = bias(x, only(0)) - zero(x, only(0))
    torch.testing.assert_close(difference, constant.expand_as(difference), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ffn_path", ["auto", "gather", "multiply"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize("rows", [only(3), only(4), torch.tensor([3, 4, 3, 4])])
def test_a_mask_that_keeps_all_is_the_plain_layer_bit_for_bit(ffn_path, dropped_neurons, rows):
    ffn, plain, x = FFN(dropped_neurons, ffn_path), FFN(specialized=False), inputs()
    output, dense = ffn(x, rows), plain(x, None)
    assert torch.equal(output, dense)
    expected = gradients(plain, dense)
    assert all(torch.equal(g, expected[name]) for name, g in gradients(ffn, output).items())


@pytest.mark.parametrize("ffn_path", ["gather", "multiply"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
def test_dropped_rows_get_no_gradient_at_all(ffn_path, dropped_neurons):
    ffn, x, kept = FFN(dropped_neurons, ffn_path), inputs(), mask()[0]
    gradient = gradients(ffn, ffn(x, only(0)))
    assert bool((gradient["fc1.weight"][~kept] == 0).all())
    assert bool((gradient["fc1.weight"][kept].abs().sum(dim=1) > 0).any())
    # The shared, unmasked parts of a dropped neuron go on learning only where it emits its constant.
    constant = F.relu(ffn.fc1.bias) > 0
    learns = gradient["fc2.weight"].abs().sum(dim=0) > 0
    assert bool((learns[~kept] == (constant[~kept] if dropped_neurons == "bias" else False)).all())


@pytest.mark.parametrize("ffn_path", ["auto", "gather", "multiply"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
def test_a_mixed_batch_is_its_sentences_one_by_one(ffn_path, dropped_neurons):
    ffn, x, rows = FFN(dropped_neurons, ffn_path), inputs(), torch.tensor([2, 0, 1, 4])
    mixed = ffn(x, rows)
    for place, row in enumerate(rows):
        alone = ffn(x[:, place : place + 1], row.view(1))
        torch.testing.assert_close(mixed[:, place : place + 1], alone)
    assert not torch.allclose(mixed, ffn(x, rows.flip(0)))


@pytest.mark.parametrize("frozen", [FROZEN_WEIGHTS, ["fc1.weight"], ["fc1.bias", "fc2.weight"]])
@pytest.mark.parametrize(
    "rows", [*map(only, range(len(KEPT) + 1)), torch.tensor([0, 2, 1, 3]), torch.tensor([0, 4, 0, 1])]
)
def test_frozen_neurons_compute_as_the_plain_layer_and_learn_from_their_own_directions(frozen, rows):
    ffn, plain, x = FFN("frozen"), FFN(specialized=False), inputs()
    ffn.fc1.frozen_weights = frozen
    x.requires_grad_()
    output, dense = ffn(x, rows), plain(x, None)
    assert torch.equal(output, dense)
    with torch.no_grad():
        assert torch.equal(ffn(x, rows), dense)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    received = [torch.autograd.grad((of * weights).sum(), x, retain_graph=True)[0] for of in (output, dense)]
    torch.testing.assert_close(*received)

    # Sentence by sentence, with what each may not move set to zero.
    learned = gradients(ffn, output)
    expected = {name: torch.zeros_like(gradient) for name, gradient in learned.items()}
    for place, row in enumerate(rows.tolist()):
        kept = torch.cat([mask(), torch.ones(1, WIDTH, dtype=torch.bool)])[row].float()
        alone = (plain(x, None)[:, place] * weights[:, place]).sum()
        for name, parameter in plain.named_parameters():
            own = kept if name in frozen else torch.ones(WIDTH)
            (gradient,) = torch.autograd.grad(alone, parameter, retain_graph=True)
            if name != "fc2.bias":
                gradient = gradient * (own[:, None] if name == "fc1.weight" else own)
            expected[name] += gradient
    for name, gradient in learned.items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda m, name=name: f"{name}: {m}")


def test_frozen_neurons_of_no_direction_never_move():
    ffn, x = FFN("frozen"), inputs()
    dropped = ~mask()[0]
    before = copy.deepcopy(ffn.state_dict())
    optimizer = torch.optim.Adam(ffn.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ffn(x, only(0)).square().sum().backward()
        optimizer.step()
    after = ffn.state_dict()
    for name, rows in (
        ("fc1.weight", after["fc1.weight"]),
        ("fc1.bias", after["fc1.bias"]),
        ("fc2.weight", after["fc2.weight"].t()),
    ):
        was = before[name].t() if name == "fc2.weight" else before[name]
        assert torch.equal(rows[dropped], was[dropped])
        assert not torch.equal(rows[~dropped], was[~dropped])


def test_without_ids_a_specialized_layer_refuses():
    with pytest.raises(ModelError, match="without direction ids"):
        FFN()(inputs(), None)


@pytest.mark.parametrize(("dropped_neurons", "is_training", "width"), [
    ("bias", True, WIDTH), ("bias", False, 32), ("zero", True, 32),
])  # fmt: skip
def test_activation_dropout_must_reach_the_dropped_neurons_constants(dropped_neurons, is_training, width):
    ffn = FFN(dropped_neurons, "gather").train(is_training)
    ffn.fc1.activation_dropout = 0.1
    assert hidden_width(ffn, only(0)) == width


def test_masks_of_another_width():
    with pytest.raises(ModelError, match="another width"):
        SpecializedFC1(D, WIDTH).set_mask(torch.ones(2, WIDTH + 1, dtype=torch.bool))


@pytest.mark.parametrize("change", ["set", "load"])
def test_new_masks_take_effect_after_a_forward_pass(change):
    ffn, x = FFN(ffn_path="gather"), inputs()
    before = ffn(x, only(0))
    if change == "set":
        ffn.fc1.set_mask(mask().flip(0))
    else:
        other = copy.deepcopy(ffn)
        other.fc1.set_mask(mask().flip(0))
        ffn.load_state_dict(other.state_dict())
    assert not torch.allclose(ffn(x, only(0)), before)
    torch.testing.assert_close(ffn(x, only(3)), before)


@pytest.mark.parametrize("ffn_path", ["auto", "gather"])
@pytest.mark.parametrize("dropped_neurons", ["bias", "zero"])
@pytest.mark.parametrize(
    "change",
    ["nothing", "another direction", "dropped_neurons", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"],
)
def test_evaluation_gathers_once_and_again_after_any_change(change, dropped_neurons, ffn_path):
    ffn, x, row = FFN(dropped_neurons, ffn_path).eval(), inputs(), 0
    with torch.no_grad():
        torch.testing.assert_close(ffn(x, only(row)), ffn.reference(x, only(row)))
        gathered = ffn.fc1._reused, ffn.fc2._reused
        if change == "another direction":
            row = 2
        elif change == "dropped_neurons":
            ffn.fc1.dropped_neurons = {"bias": "zero", "zero": "bias"}[dropped_neurons]
        elif change != "nothing":
            dict(ffn.named_parameters())[change].add_(0.5)
        torch.testing.assert_close(ffn(x, only(row)), ffn.reference(x, only(row)))
    assert None not in gathered
    is_reused = [now is then for now, then in zip((ffn.fc1._reused, ffn.fc2._reused), gathered, strict=True)]
    assert all(is_reused) == (change == "nothing")


@pytest.mark.parametrize("name", ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"])
def test_evaluation_after_training_sees_what_an_optimizer_wrote_behind_the_versions(name):
    ffn, x = FFN(ffn_path="gather").eval(), inputs()
    with torch.no_grad():
        ffn(x, only(0))
        ffn.train()
        dict(ffn.named_parameters())[name].data.add_(0.5)  # as fairseq's optimizers do
        torch.testing.assert_close(ffn.eval()(x, only(0)), ffn.reference(x, only(0)))


def test_nothing_is_reused_in_training_nor_for_gradients():
    ffn, x = FFN(ffn_path="gather"), inputs()
    with torch.no_grad():
        ffn(x, only(0))
        ffn.fc1.weight.data.add_(0.5)
        torch.testing.assert_close(ffn(x, only(0)), ffn.reference(x, only(0)))
    ffn.eval()
    for _ in range(2):
        output, reference = ffn(x, only(0)), ffn.reference(x, only(0))
        for ours, expected in zip(
            gradients(ffn, output).values(), gradients(ffn, reference).values(), strict=True
        ):
            torch.testing.assert_close(ours, expected)


def test_what_masks_say_is_fetched_from_the_device_once():
    ffn = FFN()
    index, compact = ffn.fc1._mask_index(), ffn.fc1.compact(0)
    ffn(inputs(), only(0))
    assert ffn.fc1._mask_index() is index and ffn.fc1.compact(0) is compact
    assert ffn.fc1.compact(1) is not compact


def test_train_and_eval_are_as_of_any_module():
    layer = SpecializedFC1(D, WIDTH)
    assert layer.eval() is layer and not layer.training
    assert layer.train() is layer and layer.training


def test_masks_that_are_the_first_rows_of_the_former_ones():
    ffn, x = FFN(ffn_path="gather"), inputs()
    everything = mask()
    ffn.fc1.set_mask(everything)
    ffn(x, only(2))
    ffn.fc1.set_mask(everything[:2])  # the same memory, where 2 is now one past the last
    torch.testing.assert_close(ffn(x, only(2)), FFN(specialized=False)(x, None))


def test_masks_travel_in_the_state():
    assert "fc1.neuron_mask" in FFN().state_dict()
    assert set(FFN(specialized=False).state_dict()) == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


def test_a_mask_at_the_address_of_a_former_one_is_not_taken_for_it():
    ffn, x = FFN(ffn_path="gather"), inputs()
    zeros, ones = torch.zeros(4, WIDTH, dtype=torch.bool), torch.ones(4, WIDTH, dtype=torch.bool)
    ffn.fc1.set_mask(zeros)
    ffn(x, only(0))  # remembers that zeros drops all
    address = id(zeros)
    ffn.fc1.set_mask(ones)
    del zeros
    alive: list[Tensor] = []
    while len(alive) < 100 and (not alive or id(alive[-1]) != address):
        alive.append(torch.ones(4, WIDTH, dtype=torch.bool))
    ffn.fc1.set_mask(alive[-1])
    torch.testing.assert_close(ffn(x, only(0)), FFN(specialized=False)(x, None))
