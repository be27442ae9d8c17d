from __future__ import annotations

import pytest
import torch

from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError, SelectionError
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.studies.pruning.importance import Importance
from neuron_spec.studies.pruning.sets import join, sets_of, sites_of_kind, vote, without_least_important

SITES = {
    "encoder.layers.0": 40,
    "encoder.layers.0.self_attn": 4,
    "decoder.layers.0": 20,
    "decoder.layers.0.self_attn": 4,
    "decoder.layers.0.encoder_attn": 4,
}
DIRECTIONS = parse_directions("en-qa,qa-en,en-qb")


def importance(seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.rand(n, generator=generator, dtype=torch.float64) for site, n in SITES.items()}


def all_kept() -> dict[str, torch.Tensor]:
    return {site: torch.ones(n).bool() for site, n in SITES.items()}


def test_a_step_takes_a_fraction_of_heads_and_of_neurons():
    before = all_kept()
    after = without_least_important(before, importance(), 0.25)
    assert sum(int((~after[s]).sum()) for s in sites_of_kind(SITES, "heads")) == 3  # of 12
    assert sum(int((~after[s]).sum()) for s in sites_of_kind(SITES, "neurons")) == 15  # of 60
    assert all(bool(kept.all()) for kept in before.values())  # and leaves what it was given
    few = without_least_important(all_kept(), importance(), 0.01)
    assert sum(int((~few[s]).sum()) for s in sites_of_kind(SITES, "heads")) == 1


def test_what_goes_is_less_important_than_what_stays_in_its_site():
    scores = importance()
    after = without_least_important(all_kept(), scores, 0.3)
    for site, kept in after.items():
        if not kept.all():
            assert scores[site][~kept].max() < scores[site][kept].min()


def test_neither_the_unit_nor_a_sites_scale_matters():
    scores = importance()
    expected = without_least_important(all_kept(), scores, 0.3)
    for number, site in enumerate(SITES):
        scaled = {**scores, site: scores[site] * 10.0 ** (number - 2)}
        found = without_least_important(all_kept(), scaled, 0.3)
        assert all(torch.equal(found[s], expected[s]) for s in SITES)


def test_steps_end_at_the_most_important_unit_of_every_site():
    kept, scores = all_kept(), importance()
    for _ in range(200):
        kept, before = without_least_important(kept, scores, 0.1), kept
        assert all(not bool((kept[s] & ~before[s]).any()) for s in SITES)
    for site in SITES:
        assert kept[site].nonzero().flatten().tolist() == [int(scores[site].argmax())]
    zero = {site: torch.zeros_like(values) for site, values in scores.items()}
    kept = all_kept()
    for _ in range(200):
        kept = without_least_important(kept, zero, 0.1)
    assert all(int(kept[site].sum()) == 1 for site in SITES)


def test_sets_cover_every_direction_and_site_once():
    for neuron_sets, names in (
        ("direction", ["en-qa", "qa-en", "en-qb"]),
        ("language", ["encoder en", "encoder qa", "decoder qa", "decoder en", "decoder qb"]),
    ):
        sets = sets_of(DIRECTIONS, list(SITES), neuron_sets)
        assert [own.name for own in sets] == names
        cells = [(site, row) for own in sets for site in own.sites for row in own.rows]
        assert sorted(cells) == sorted((site, row) for site in SITES for row in range(3))
    by_name = {own.name: own for own in sets}
    assert by_name["encoder en"].rows == (0, 2) and by_name["decoder en"].rows == (1,)


def masks(*heads: list[int], **metadata: object) -> NeuronMasks:
    kept = torch.tensor(heads).bool()
    return NeuronMasks(DIRECTIONS[: len(heads)], {"encoder.layers.0.self_attn": kept}, dict(metadata))


def test_the_majority_keeps_and_a_tie_keeps():
    one, two, three = (
        masks([1, 1, 0, 0], seed=1, k=9),
        masks([1, 0, 1, 0], seed=2, k=9),
        masks([1, 0, 0, 0], k=9),
    )
    (site,) = one.kept
    assert vote([one, two, three]).kept[site].tolist() == [[True, False, False, False]]
    assert vote([one, two]).kept[site].tolist() == [[True, True, True, False]]
    assert vote([one, two]).metadata == {"k": 9, "voters": 2}
    alone = [masks([0, 1, 0, 0]), masks([0, 0, 1, 0]), masks([0, 0, 0, 1])]
    assert vote(alone).kept[site].tolist() == [[False, True, False, False]]


def test_what_cannot_be_voted_on():
    one = masks([1, 0])
    others = [masks([1, 0], [1, 0]), masks([1, 0, 0]), masks([1, 0], neuron_sets="language")]
    for other, what in zip(others, ("directions", "sites", "sets"), strict=True):
        with pytest.raises(SelectionError, match=f"different {what}"):
            vote([one, other])
    with pytest.raises(SelectionError, match="several masks"):
        vote([one])


def test_sets_made_apart_are_joined_in_their_order():
    (site,) = masks([1, 0]).kept
    apart = [NeuronMasks([d], {site: torch.tensor([[i, 1]]).bool()}) for i, d in enumerate(DIRECTIONS[:2])]
    joined = join(apart[::-1], {"voters": 3})
    assert joined.directions == DIRECTIONS[1::-1] and joined.metadata == {"voters": 3}
    assert joined.kept[site].tolist() == [[True, True], [False, True]]
    with pytest.raises(SelectionError, match=r"(?s)masks twice.*en-qa"):
        join([*apart, apart[0]], {})
    with pytest.raises(SelectionError, match="different sites"):
        join([apart[0], NeuronMasks(DIRECTIONS[1:2], {site: torch.ones(1, 3).bool()})], {})
    with pytest.raises(SelectionError, match="no masks"):
        join([], {})


def test_importance_makes_a_round_trip(tmp_path):
    sums = {site: values.repeat(3, 1) for site, values in importance().items()}
    ours = Importance(DIRECTIONS, sums, torch.tensor([1, 2, 4]), {"checkpoint_sha256": "a"})
    path = tmp_path / "importance.safetensors"
    ours.save(path)
    loaded = Importance.load(path)
    assert (loaded.directions, loaded.metadata) == (ours.directions, ours.metadata)
    assert loaded.sites == list(SITES)
    assert torch.equal(loaded.per_token()["decoder.layers.0"][2], sums["decoder.layers.0"][2] / 4)
    masks([1, 0]).save(path)
    with pytest.raises(ArtifactError, match="not a file of importance"):
        Importance.load(path)
