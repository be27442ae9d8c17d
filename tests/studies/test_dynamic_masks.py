"""Masks that move: budgets, running counts, scores, and the gradient by a mask."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from neuron_spec.neurons.overlap import churn, kept_fraction, mean_overlap
from neuron_spec.neurons.selection import cumulative, top_fraction
from neuron_spec.studies.dynamic.masks import (
    RunningCounts,
    Scores,
    budgets,
    straight_through,
    top,
)

FFN, HEADS = "encoder.layers.0", "decoder.layers.1.encoder_attn"


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_top_holds_its_budget_and_takes_the_first_of_equals():
    values = torch.tensor([[1.0, 3.0, 3.0, 3.0], [5.0, 5.0, 5.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    assert top(values, torch.tensor([2, 3, 0])).int().tolist() == [[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    many = torch.randint(5, (40, 33), generator=torch.Generator().manual_seed(1))
    budget = torch.arange(40) % 34
    kept = top(many, budget)
    assert torch.equal(kept.sum(1), budget)
    assert all(
        not kept[i].any() or kept[i].all() or v[kept[i]].min() >= v[~kept[i]].max()
        for i, v in enumerate(many)
    )


def test_the_top_of_counts_is_the_set_of_top_fraction():
    counts = torch.randint(9, (6, 31), generator=torch.Generator().manual_seed(3))
    budget = budgets({FFN: torch.ones_like(counts, dtype=torch.bool)}, Fraction(40))[FFN]
    assert budget.tolist() == [13] * 6  # 12.4, rounded up
    assert torch.equal(top(counts, budget), torch.stack([top_fraction(row, Fraction(40)) for row in counts]))


def test_churn_and_overlap_by_hand():
    old = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    new = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]]).bool()
    assert churn({FFN: old}, {FFN: new}) == pytest.approx((2 / 3 + 0) / 2)
    assert churn({FFN: old, HEADS: old}, {FFN: new, HEADS: old}) == pytest.approx(1 / 6)
    assert mean_overlap({FFN: old}) == pytest.approx(0.5)
    assert mean_overlap({FFN: old[:1]}) == 1
    assert kept_fraction({FFN: old}) == pytest.approx(0.75)


# --- running counts -----------------------------------------------------------------------------------


def counts_of(running: RunningCounts) -> torch.Tensor:
    return running[FFN].double() / 2**16


def test_counts_leave_out_padding_and_go_to_their_directions():
    running = RunningCounts({FFN: 3}, 2, decay=1)
    pre = torch.tensor([[[1.0, -1, 0], [1, 1, 1]], [[2, 2, -2], [9, 9, 9]]])  # [T, B, F]
    real = torch.tensor([[True, True], [True, False]])
    running.count(FFN, pre, real, torch.tensor([1]))
    running.fold()
    assert counts_of(running).tolist() == [[0, 0, 0], [3, 2, 1]]
    running.count(FFN, pre, real, torch.tensor([1, 0]))  # a batch of both
    running.fold()
    assert counts_of(running).tolist() == [[1, 1, 1], [5, 3, 1]]


def test_batches_of_an_update_add_up_and_only_directions_that_were_counted_forget():
    running = RunningCounts({FFN: 2}, 2, decay=0.5)
    one = torch.ones(1, 1, dtype=torch.bool)
    for row in (0, 0, 1):
        running.count(FFN, torch.tensor([[[1.0, -1.0]]]), one, torch.tensor([row]))
    running.fold()
    assert counts_of(running).tolist() == [[2, 0], [1, 0]]
    running.count(FFN, torch.tensor([[[-1.0, 1.0]]]), one, torch.tensor([0]))
    running.fold(lambda counts: counts * 3)  # three processes, all alike
    assert counts_of(running).tolist() == [[1, 3], [1, 0]]
    running.fold()
    assert counts_of(running).tolist() == [[1, 3], [1, 0]]


def test_half_precision_leaves_counts_alone():
    running = RunningCounts({FFN: 2}, 1, decay=0.99)
    running.seed({FFN: torch.tensor([[123456789, 1]])})
    assert counts_of(running.half()).tolist() == [[123456789, 1]]


def test_a_rare_neuron_is_not_rounded_away():
    running = RunningCounts({FFN: 1}, 1, decay=0.9)
    for _ in range(100):
        running.count(FFN, torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))
        running.fold()
    assert counts_of(running).item() == pytest.approx(10, rel=1e-2)


def test_selection_moves_what_was_counted_and_nothing_else():
    running = RunningCounts({FFN: 3}, 2, decay=1)
    running.seed({FFN: torch.tensor([[0, 1, 9], [0, 0, 0]])})
    kept = {FFN: torch.tensor([[1, 0, 0], [1, 0, 0]]).bool(), HEADS: torch.tensor([[1, 0], [0, 1]]).bool()}
    new = running.select(kept, lambda layer, row, counts: cumulative(counts, Fraction(80)))
    assert new[FFN].int().tolist() == [[0, 0, 1], [1, 0, 0]]  # a dropped neuron came back
    assert torch.equal(new[HEADS], kept[HEADS])
    assert kept[FFN].int().tolist() == [[1, 0, 0], [1, 0, 0]]


# --- scores -------------------------------------------------------------------------------------------


def random_masks(seed: int = 1) -> dict[str, torch.Tensor]:
    return {FFN: random(3, 20, seed=seed) > 0, HEADS: random(3, 4, seed=seed + 1) > 0}


@pytest.mark.parametrize("with_counts", [False, True])
def test_scores_start_at_the_masks(with_counts):
    kept = random_masks()
    counts = {FFN: torch.randint(100, (3, 20), generator=torch.Generator().manual_seed(2))}
    scores = Scores(kept, budgets(kept), 0.01, counts if with_counts else None)
    assert all(torch.equal(rows, kept[site]) for site, rows in scores.masks().items())
    assert {name for name, _ in scores.named_parameters()} == {
        "Scores-encoder-layers-0",
        "Scores-decoder-layers-1-encoder_attn",
    }
    for row in range(3) if with_counts else ():  # the more active, the higher
        of_kept = kept[FFN][row]
        order = counts[FFN][row][of_kept].argsort(descending=True, stable=True)
        assert (scores[FFN][row][of_kept][order].diff() < 0).all()


def test_a_smaller_budget_takes_the_most_active_of_the_kept():
    kept = {FFN: torch.tensor([[1, 1, 1, 0, 0]]).bool()}
    counts = {FFN: torch.tensor([[1, 5, 3, 9, 0]])}
    for percent, expected in ((40, [0, 1, 1, 0, 0]), (80, [1, 1, 1, 1, 0])):
        scores = Scores(kept, budgets(kept, Fraction(percent)), 0.01, counts)
        assert scores.masks()[FFN].int().tolist() == [expected]


def test_the_budget_holds_after_every_step():
    kept = random_masks()
    scores = Scores(kept, budgets(kept), 0.01)
    adam = torch.optim.Adam(scores.parameters(), lr=0.005)
    seen = set()
    for step in range(20):
        for parameter in scores.parameters():
            parameter.grad = random(*parameter.shape, seed=step)
        adam.step()
        masks = scores.masks()
        assert all(torch.equal(masks[site].sum(1), rows.sum(1)) for site, rows in kept.items())
        seen.add(tuple(masks[FFN].flatten().tolist()))
    assert len(seen) > 5


@pytest.mark.parametrize("per_sentence", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_straight_through_by_hand(per_sentence, width):
    """Against autograd through ``dropped + xi * effect``, a mask that is a number."""
    tokens, sentences, units = 4, 2, 5
    dropped, effect = (random(tokens, sentences, units * width, seed=s) for s in (1, 2))
    shape = (sentences, units) if per_sentence else (units,)
    xi = (random(*shape, seed=3) > 0).float().requires_grad_()
    weight = random(tokens, sentences, units * width, seed=4)
    emitted = dropped + xi.repeat_interleave(width, dim=-1) * effect
    (emitted.sin() * weight).sum().backward()

    scores = random(*shape, seed=5).requires_grad_()
    detached = emitted.detach().requires_grad_()
    out = straight_through(detached, scores, effect)
    assert torch.equal(out, detached)
    (out.sin() * weight).sum().backward()
    torch.testing.assert_close(scores.grad, xi.grad)
    torch.testing.assert_close(detached.grad, emitted.detach().cos() * weight)
    assert (xi == 0).any() and scores.grad[xi.detach() == 0].abs().min() > 0  # dropped units too
