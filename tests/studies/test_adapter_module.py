"""The adapter bank on its own: groups, routes, counting."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_spec.directions import Direction, direction_id, parse_directions
from neuron_spec.errors import DirectionError, ModelError
from neuron_spec.modules.specialized_ffn import Route
from neuron_spec.studies.adapters.model import ADAPTERS, Adapter, adapter_groups

LANGS = ("en", "de", "nl", "es", "pt")
DIRECTIONS = parse_directions("en-de,de-en,en-nl,nl-en,en-es,es-en")
FAMILIES = {"de": "Germanic", "nl": "Germanic", "es": "Romance", "pt": "Romance", "en": "Germanic"}
GROUPS, DIMENSION, SIZE = 3, 8, 5


@pytest.fixture
def adapter() -> Adapter:
    torch.manual_seed(1)
    adapter = Adapter(GROUPS, DIMENSION, SIZE)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(4, 6, DIMENSION)  # [T, B, D]


def mixed(rows: list[int]) -> Route:
    return Route(tuple(sorted(set(rows))), torch.tensor(rows))


def plain(adapter: Adapter, group: int, x: Tensor) -> Tensor:
    """The same adapter from torch's own parts."""
    norm, down, up = nn.LayerNorm(DIMENSION), nn.Linear(DIMENSION, SIZE), nn.Linear(SIZE, DIMENSION)
    for module, name in ((norm, "norm"), (down, "down"), (up, "up")):
        module.weight.data = getattr(adapter, f"{name}_weight")[group].detach()
        module.bias.data = getattr(adapter, f"{name}_bias")[group].detach()
    return x + up(F.relu(down(norm(x))))


def test_a_new_adapter_changes_nothing_bit_for_bit(x):
    adapter = Adapter(GROUPS, DIMENSION, SIZE)
    assert torch.equal(adapter(x, Route((1,))), x)
    assert torch.equal(adapter(x, mixed([0, 1, 2, 2, 1, 0])), x)


def test_it_is_norm_down_relu_up_and_residual(adapter, x):
    for group in range(GROUPS):
        torch.testing.assert_close(adapter(x, Route((group,))), plain(adapter, group, x))


def test_a_mixed_batch_equals_batches_of_one_group(adapter, x):
    rows = [2, 0, 1, 1, 0, 2]
    got = adapter(x, mixed(rows))
    for sentence, group in enumerate(rows):
        alone = x[:, sentence : sentence + 1]
        torch.testing.assert_close(
            got[:, sentence : sentence + 1], adapter(alone, Route((group,))), atol=1e-5, rtol=1e-5
        )


def test_the_row_past_the_last_has_no_adapter(adapter, x):
    assert torch.equal(adapter(x, Route((GROUPS,))), x)
    got = adapter(x, mixed([0, GROUPS, 0, GROUPS, 1, 2]))
    assert torch.equal(got[:, [1, 3]], x[:, [1, 3]])
    assert not torch.isclose(got[:, [0, 2, 4, 5]], x[:, [0, 2, 4, 5]]).all(dim=-1).any()


@pytest.mark.parametrize("route", [Route((1,)), mixed([1, 1, 1, 1, 1, GROUPS])])
def test_only_the_batchs_group_gets_a_gradient(adapter, x, route):
    adapter(x, route).square().sum().backward()
    for parameter in adapter.parameters():
        per_group = parameter.grad.flatten(1).abs().sum(dim=1)
        assert (per_group > 0).tolist() == [False, True, False]


def test_a_new_adapter_learns(x):
    """Up is zero, so down gets no gradient at first; up must."""
    adapter = Adapter(GROUPS, DIMENSION, SIZE)
    adapter(x, Route((1,))).square().sum().backward()
    assert adapter.up_weight.grad[1].abs().sum() > 0
    assert adapter.down_weight.grad.abs().sum() == 0


# Groups


def shared(kind: str, side: str) -> set[frozenset[str]]:
    """Which directions share an adapter."""
    groups = adapter_groups(kind, side, DIRECTIONS, LANGS, FAMILIES)
    rows = {str(d): int(groups.rows[direction_id(d, LANGS)]) for d in DIRECTIONS}
    assert set(rows.values()) == set(range(len(groups.names)))
    return {frozenset(d for d in rows if rows[d] == row) for row in rows.values()}


def parts(*texts: str) -> set[frozenset[str]]:
    return {frozenset(text.split()) for text in texts}


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_pair_shares_both_ways_and_a_direction_shares_with_nobody(side):
    assert shared("pair", side) == parts("en-de de-en", "en-nl nl-en", "en-es es-en")
    assert shared("direction", side) == parts(*map(str, DIRECTIONS))


def test_languages_and_families_are_the_sides_own():
    into_english, from_english = "de-en nl-en es-en", "en-de en-nl en-es"
    assert shared("language", "encoder") == parts(from_english, "de-en", "nl-en", "es-en")
    assert shared("language", "decoder") == parts(into_english, "en-de", "en-nl", "en-es")
    # German and Dutch share; English, although Germanic, does not.
    assert shared("family", "encoder") == parts(from_english, "de-en nl-en", "es-en")
    assert shared("family", "decoder") == parts(into_english, "en-de en-nl", "en-es")


def test_the_groups_have_names():
    assert adapter_groups("family", "decoder", DIRECTIONS, LANGS, FAMILIES).names == (
        "Germanic",
        "en",
        "Romance",
    )
    assert adapter_groups("pair", "encoder", DIRECTIONS, LANGS, {}).names == ("de-en", "en-nl", "en-es")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_other_directions_have_no_adapter(kind):
    rows = adapter_groups(kind, "encoder", DIRECTIONS, LANGS, FAMILIES).rows
    known = {direction_id(d, LANGS) for d in DIRECTIONS}
    assert {i for i, row in enumerate(rows.tolist()) if row >= 0} == known


def test_what_cannot_be_grouped_is_refused():
    with pytest.raises(ModelError, match="without a family"):
        adapter_groups("family", "encoder", DIRECTIONS, LANGS, {"de": "Germanic"})
    with pytest.raises(DirectionError, match="unknown language"):
        adapter_groups("pair", "encoder", [Direction("en", "fr")], LANGS, {})
