"""What the model is fed: every sentence once, with its own direction."""

from __future__ import annotations

import argparse
import inspect
import logging
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager

from neuron_spec.backends.fairseq.batches import (
    DirectionDatasetManager,
    OneDirectionEpochDataset,
    ResumableEpochDataset,
    _require_same_symbols,
    cut,
    in_turns,
    padding_percent,
)
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ArtifactError, ModelError

PAD, EOS = 1, 2
TEMPERATURE = ("--sampling-method", "temperature", "--sampling-temperature", "5")
VIRTUAL = ("--virtual-epoch-size", "400", "--virtual-data-size", "1100")


def sentences(task: Any, batch: dict[str, Any]) -> list[tuple[int, str, str]]:
    """Direction id, source and target text (language tokens included) of every row."""
    dictionary = task.source_dictionary
    net_input = batch["net_input"]

    def text(row: Any) -> str:
        return " ".join(dictionary[int(i)] for i in row if i not in (PAD, EOS))

    rows = zip(net_input["direction_ids"].tolist(), net_input["src_tokens"], batch["target"], strict=True)
    return [(number, text(source), text(target)) for number, source, target in rows]


def id_by_tokens(langs: Any, source: str, target: str) -> int:
    """The direction id as the language tokens in front of the text tell it."""
    codes = [text.split()[0].strip("_") for text in (source, target)]
    return direction_id(Direction(*codes), langs)


def raw_pairs(workshop: Any, split: str) -> Counter[tuple[str, str, str]]:
    raw = workshop.data_bin.parent / "raw"
    found: Counter[tuple[str, str, str]] = Counter()
    for pair in workshop.lang_pairs.split(","):
        source, target = pair.split("-")
        foreign = target if source == "en" else source
        lines = {
            side: (raw / f"{split}.{foreign}-en.{side}").read_text().splitlines() for side in (source, target)
        }
        found.update((pair, s, t) for s, t in zip(lines[source], lines[target], strict=True))
    return found


def plain(text: str) -> str:
    """Language token and word pieces to raw text."""
    return "".join(text.split()[1:]).replace("▁", " ").strip()


@pytest.mark.parametrize("max_tokens", [60, 200, 5000])
@pytest.mark.parametrize("multiple", [1, 8])
def test_every_validation_sentence_exactly_once_and_as_in_the_raw_text(workshop, max_tokens, multiple):
    assert workshop.sizes["valid"] % 8
    _, task, _ = workshop.build()
    batches = workshop.batches(task, max_tokens=max_tokens, multiple=multiple)
    langs = workshop.langs
    seen = Counter(
        (f"{langs[number // len(langs)]}-{langs[number % len(langs)]}", plain(source), plain(target))
        for batch in batches
        for number, source, target in sentences(task, batch)
    )
    assert seen == raw_pairs(workshop, "valid")


@pytest.mark.parametrize("flags", [(), VIRTUAL])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_one_direction_per_batch_and_all_directions_in_a_pass(workshop, split, flags):
    _, task, _ = workshop.build(*flags)
    batches = workshop.batches(task, split)
    assert all(len(batch["net_input"]["direction_ids"].unique()) == 1 for batch in batches)
    assert len({int(batch["net_input"]["direction_ids"][0]) for batch in batches}) == 6


@pytest.mark.parametrize("batching", ["one-direction", "mixed"])
@pytest.mark.parametrize("flags", [(), VIRTUAL])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_ids_are_those_of_the_sentences_own_language_tokens(workshop, split, flags, batching):
    _, task, _ = workshop.build(*flags, "--batching", batching)
    batches = workshop.batches(task, split)
    for batch in batches:
        for number, source, target in sentences(task, batch):
            assert number == id_by_tokens(workshop.langs, source, target)
    mixes = any(len(batch["net_input"]["direction_ids"].unique()) > 1 for batch in batches)
    assert mixes == (batching == "mixed")


def test_ids_do_not_depend_on_which_pairs_are_named(workshop):
    _, task, _ = workshop.build("--lang-pairs", "qm-en,en-qa")
    for batch in workshop.batches(task):
        for number, source, target in sentences(task, batch):
            assert number == id_by_tokens(workshop.langs, source, target)


def test_row_ids_are_those_of_the_data_set(workshop):
    _, task, _ = workshop.build("--batching", "mixed")
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    chosen = [3, 25, 4, 70, 100]
    batch = dataset.collater([dataset[i] for i in chosen])
    assert sorted(batch["id"].tolist()) == sorted(dataset[i]["id"] for i in chosen)
    for row, number in enumerate(batch["id"].tolist()):
        direction = int(batch["net_input"]["direction_ids"][row])
        (index,) = (
            i for i in chosen if dataset[i]["id"] == number and dataset[i]["direction_id"] == direction
        )
        tokens = batch["net_input"]["src_tokens"][row]
        assert tokens[tokens != PAD].tolist() == dataset[index]["source"].tolist()


def test_an_empty_batch_stays_empty(workshop):
    _, task, _ = workshop.build()
    task.load_dataset("valid")
    assert not task.dataset("valid").collater([])


@pytest.mark.parametrize("flags", [VIRTUAL[2:], VIRTUAL])  # fewer than there are: all would be no sample
@pytest.mark.parametrize("epoch", [1, 2])
def test_the_training_sample_is_that_of_fairseqs_own_task(workshop, flags, epoch):
    flags = (*TEMPERATURE, *flags)
    samples = {}
    for name in ("neuron_specialization", "translation_multi_simple_epoch"):
        _, task, _ = workshop.build(*flags, task=name)
        task.load_dataset("train")
        task.dataset("train").set_epoch(epoch)
        batches = workshop.batches(task, "train", multiple=1, epoch=epoch)
        samples[name] = Counter(
            (tuple(row[row != PAD].tolist()), tuple(target[target != PAD].tolist()))
            for batch in batches
            for row, target in zip(batch["net_input"]["src_tokens"], batch["target"], strict=True)
        )
    ours, theirs = samples.values()
    assert ours == theirs and ours.total() > 300


def test_fairseqs_manager_is_asked_for_what_its_own_task_asks(workshop, monkeypatch):
    load = MultilingualDatasetManager.load_dataset
    asked: list[dict[str, Any]] = []

    def recording(manager: Any, *args: Any, **kw: Any) -> Any:
        asked.append({**inspect.signature(load).bind(manager, *args, **kw).arguments, "self": None})
        return load(manager, *args, **kw)

    monkeypatch.setattr(MultilingualDatasetManager, "load_dataset", recording)
    for name in ("neuron_specialization", "translation_multi_simple_epoch"):
        _, task, _ = workshop.build(*VIRTUAL, task=name)
        task.load_dataset("train", epoch=5)  # of the second pass, which would be another shard's
    ours, theirs = asked
    assert ours == theirs and ours["shard_epoch"] == 2


def test_epochs_draw_different_samples(workshop):
    _, task, _ = workshop.build("--sampling-method", "temperature", "--virtual-data-size", "500")
    task.load_dataset("train")
    dataset = task.dataset("train")
    first = fingerprint(dataset)
    dataset.set_epoch(2)
    assert fingerprint(dataset) != first


def fingerprint(dataset: Any) -> list[tuple[int, ...]]:
    return [tuple(dataset[i][1]["source"].tolist()) for i in range(len(dataset))]


@pytest.mark.parametrize("batching", ["one-direction", "mixed"])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5, 6])
def test_a_resume_inside_a_virtual_epoch_sees_the_same_sample(workshop, epoch, batching):
    flags = ("--sampling-method", "temperature", *VIRTUAL, "--batching", batching)
    _, task, _ = workshop.build(*flags)
    task.load_dataset("train", epoch=1)
    continuous = task.dataset("train")
    assert isinstance(
        continuous, OneDirectionEpochDataset if batching == "one-direction" else ResumableEpochDataset
    )
    assert continuous.num_virtual_epochs == 3
    for later in range(2, epoch + 1):
        continuous.set_epoch(later)
    _, fresh, _ = workshop.build(*flags)
    fresh.load_dataset("train", epoch=epoch)
    resumed = fresh.dataset("train")
    resumed.set_epoch(epoch)
    assert fingerprint(resumed) == fingerprint(continuous)
    assert np.array_equal(resumed.sizes, continuous.sizes)


def test_virtual_epochs_of_a_pass_share_nothing_and_fill_it(workshop):
    _, task, _ = workshop.build("--sampling-method", "temperature", *VIRTUAL)
    task.load_dataset("train", epoch=1)
    dataset = task.dataset("train")
    indices = []
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        indices += [int(dataset._map_epoch_index_to_global(i)) for i in range(len(dataset))]
    assert sorted(indices) == list(range(1100))


@pytest.mark.parametrize("flags", [TEMPERATURE, (*TEMPERATURE, *VIRTUAL)])
def test_each_direction_has_its_share_of_fairseqs_sample(workshop, flags):
    _, task, _ = workshop.build(*flags)
    _, fairseqs, _ = workshop.build(*flags, task="translation_multi_simple_epoch")
    fairseqs.load_dataset("train")
    sampled = fairseqs.dataset("train")
    expected = Counter(sampled.keys[sampled[i][0]].split(":")[1] for i in range(len(sampled)))
    langs = workshop.langs
    got = Counter(
        f"{langs[number // len(langs)]}-{langs[number % len(langs)]}"
        for batch in workshop.batches(task, "train", max_tokens=500)
        for number in batch["net_input"]["direction_ids"].tolist()
    )
    assert got == expected and len(got) == 6


def test_shuffled_batches_interleave_the_directions(workshop):
    _, task, _ = workshop.build(*TEMPERATURE)
    task.load_dataset("train")
    iterator = task.get_batch_iterator(task.dataset("train"), max_tokens=60, max_positions=(1024, 1024))
    followed = {}  # how many batches follow one of their own direction
    for shuffle in (True, False):
        batches = iterator.next_epoch_itr(shuffle=shuffle)
        directions = [int(batch["net_input"]["direction_ids"][0]) for batch in batches]
        followed[shuffle] = int(np.sum(np.diff(directions) == 0))
    counts = np.array(list(Counter(directions).values()))
    by_chance = np.sum(counts * (counts - 1)) / counts.sum()
    assert abs(followed[True] - by_chance) < 4 * np.sqrt(by_chance)
    assert followed[False] == counts.sum() - 6 > 2 * by_chance  # what not interleaving looks like


# --- the order and the cuts ---------------------------------------------------------------------------


def corpus(sentences: int, directions: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices in fairseq's order, their lengths and their directions."""
    rng = np.random.default_rng(seed)
    source = rng.lognormal(3, 0.6, sentences)
    target = source * rng.lognormal(0, 0.2, sentences)
    sizes = np.clip(np.stack([source, target], axis=1), 2, 120).astype(int)
    owners = np.sort(rng.integers(directions, size=sentences))
    indices = rng.permutation(sentences)
    indices = indices[np.lexsort((sizes[indices, 1], sizes[indices, 0]))]
    return indices, sizes[indices], owners[indices]


def one_direction(
    indices: np.ndarray, lengths: np.ndarray, owner: np.ndarray, order: np.ndarray, **limits: Any
) -> tuple[list[np.ndarray], np.ndarray]:
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    return cut(indices[order], lengths[order], starts, **limits), lengths[order]


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": 120},
        {"max_tokens": 700, "required_batch_size_multiple": 8},
        {"max_tokens": 4000, "max_sentences": 24, "required_batch_size_multiple": 8},
        {"max_sentences": 7},
        {"max_tokens": 100_000, "required_batch_size_multiple": 8},
    ],
)
def test_batches_keep_fairseqs_limits_and_hold_each_sentence_once(limits):
    indices, lengths, owner = corpus(3001, 7)
    batches, _ = one_direction(indices, lengths, owner, in_turns(owner, lengths), **limits)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(indices)))
    place = np.argsort(indices)
    multiple = limits.get("required_batch_size_multiple", 1)
    for batch in batches:
        rows = place[batch]
        assert len(np.unique(owner[rows])) == 1
        assert len(batch) * lengths[rows].max() <= limits.get("max_tokens", np.inf)
        assert len(batch) <= limits.get("max_sentences", np.inf)
        assert len(batch) < multiple or len(batch) % multiple == 0


@pytest.mark.parametrize("max_tokens", [1000, 4000])
@pytest.mark.parametrize("directions", [2, 12, 40])
def test_turns_cost_few_batches_and_pad_less_than_fairseqs_order(directions, max_tokens):
    indices, lengths, owner = corpus(directions * 4000, directions)
    limits = {"max_tokens": max_tokens, "required_batch_size_multiple": 8}
    mixed = cut(indices, lengths, **limits)
    turns, lengths_in_turns = one_direction(indices, lengths, owner, in_turns(owner, lengths), **limits)
    kept, lengths_kept = one_direction(indices, lengths, owner, np.argsort(owner, kind="stable"), **limits)
    # A leftover below the multiple of 8, and a last batch that is not full, for each direction.
    assert len(turns) <= len(mixed) + 2 * directions
    assert len(turns) < len(kept)
    assert sum(padding_percent(lengths_in_turns, turns)) < sum(padding_percent(lengths_kept, kept))


def test_turns_treat_source_and_target_alike():
    indices, lengths, owner = corpus(8000, 2)
    there, back = (
        padding_percent(
            sides[order], cut(indices[order], sides[order], [0, np.sum(owner == 0)], max_tokens=1000)
        )
        for sides in (lengths, lengths[:, ::-1])
        for order in [in_turns(owner, sides)]
    )
    assert there == pytest.approx(back[::-1], rel=0.05)
    assert min(there) > 0.5 * max(there)


def test_the_next_length_begins_where_the_last_one_ended():
    _, lengths, owner = corpus(20000, 1)
    order = in_turns(owner, lengths)
    longer, difference = lengths[order].max(axis=1), np.subtract(*lengths[order].T)
    assert np.all(np.diff(longer) >= 0)
    by_length = np.split(difference, np.flatnonzero(np.diff(longer)) + 1)
    rising = [np.all(np.diff(turn) >= 0) for turn in by_length if len(turn) > 100]
    falling = [np.all(np.diff(turn) <= 0) for turn in by_length if len(turn) > 100]
    assert rising == [not fall for fall in falling]
    assert np.all(np.diff(rising[:20])) and len(rising) > 20


def test_equal_lengths_keep_the_order_that_fairseq_drew():
    _, lengths, owner = corpus(5000, 3)
    order = in_turns(owner, lengths)
    key = np.column_stack([owner, lengths])[order]
    equal = (np.diff(key, axis=0) == 0).all(axis=1)
    assert equal.sum() > 1000
    assert (np.diff(order)[equal] > 0).all()


def test_padding_of_a_batch_by_hand():
    lengths = np.array([[2, 4], [4, 1], [3, 3]])
    batches = [np.array([7, 5]), np.array([6])]
    # source 2 + 4 in 2 x 4 and 3 in 3; target 4 + 1 in 2 x 4 and 3 in 3
    assert padding_percent(lengths, batches) == pytest.approx((100 * 2 / 11, 100 * 3 / 11))


# --- the log ------------------------------------------------------------------------------------------

LINE = re.compile(
    r"(\w+): ([\d,]+) batches of one direction \(fairseq's mixed: ([\d,]+)\), padding ([\d.]+) % of source and "
    r"([\d.]+) % of target positions \(mixed: ([\d.]+) and ([\d.]+) %\)"
)


def counted(batches: list[dict[str, Any]]) -> list[str]:
    """Batches, and percent padding of source and of target, counted in what the model is fed."""
    percents = []
    for sides in ([b["net_input"]["src_tokens"] for b in batches], [b["target"] for b in batches]):
        padding = sum(int((side == PAD).sum()) for side in sides)
        percents.append(f"{100 * padding / sum(side.numel() for side in sides):.1f}")
    return [f"{len(batches):,}", *percents]


@pytest.mark.parametrize("split, flags", [("train", (*TEMPERATURE, *VIRTUAL)), ("valid", ())])
def test_one_line_tells_the_padding_that_the_model_is_fed(workshop, split, flags, caplog):
    kinds = {}
    for batching in ("one-direction", "mixed"):
        _, task, _ = workshop.build(*flags, "--batching", batching)
        with caplog.at_level(logging.INFO):
            kinds[batching] = counted(workshop.batches(task, split, multiple=1))
    (line,) = (r for r in caplog.records if r.name == "neuron_spec.backends.fairseq.batches")
    assert line.levelno == logging.INFO
    found = LINE.fullmatch(line.getMessage())
    assert found, line.getMessage()
    name, ours, mixed, source, target, mixed_source, mixed_target = found.groups()
    assert name == split
    assert [ours, source, target] == kinds["one-direction"]
    assert [mixed, mixed_source, mixed_target] == kinds["mixed"]
    assert float(source) > 0 and kinds["one-direction"] != kinds["mixed"]


def test_making_batches_draws_no_random_numbers(workshop):
    _, task, _ = workshop.build(*TEMPERATURE)
    task.load_dataset("train")
    dataset = task.dataset("train")
    np.random.seed(1)
    indices = dataset.ordered_indices()
    expected = np.random.random()
    np.random.seed(1)
    dataset.ordered_indices()
    first = dataset.batch_by_size(indices, max_tokens=200)
    assert np.random.random() == expected
    again = dataset.batch_by_size(indices, max_tokens=200)
    assert [b.tolist() for b in first] == [b.tolist() for b in again]


def test_nothing_to_batch(workshop):
    _, task, _ = workshop.build()
    task.load_dataset("valid")
    assert task.dataset("valid").batch_by_size([], max_tokens=200, required_batch_size_multiple=8) == []


def test_no_sentence_is_lost_where_the_first_directions_have_none(workshop):
    _, task, _ = workshop.build()
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    for first in range(len(dataset.cumulative_sizes) - 1):
        indices = np.arange(dataset.cumulative_sizes[first], len(dataset))
        batches = dataset.batch_by_size(indices, max_tokens=200)
        assert sorted(np.concatenate(batches)) == indices.tolist()


def test_a_batch_too_small_for_a_sentence_is_named():
    with pytest.raises(ModelError, match="a sentence is longer than a batch may be") as caught:
        cut(np.arange(3), np.array([[2, 3], [4, 9], [1, 1]]), max_tokens=8)
    assert "--max-tokens 9 or more" in str(caught.value)
    with pytest.raises(ModelError, match="2 tokens"):
        cut(np.arange(1), np.array([[2, 1]]), max_tokens=1)


def test_only_languages_of_equal_files_share_a_dictionary(tmp_path):
    for lang, symbol in {"en": "a", "de": "b", "fr": "b"}.items():
        (tmp_path / f"dict.{lang}.txt").write_text(f"{symbol} 1\n")
    args = argparse.Namespace(
        data=str(tmp_path), lang_pairs=["en-de", "en-fr"], extra_lang_pairs=None,
        source_dict=None, target_dict=None, fixed_dictionary=None,
    )  # fmt: skip
    of = DirectionDatasetManager.load_all_dictionaries(
        args, ("en", "de", "fr"), Dictionary.load, training=True
    )
    assert of["de"] is of["fr"] and of["de"].symbols[-1] == "b"
    assert of["en"] is not of["de"] and of["en"].symbols[-1] == "a"


def test_a_fixed_dictionary_gives_a_data_bins_symbols_their_numbers(tmp_path):
    file = tmp_path / "dict.en.txt"
    known = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "d"]

    def check(*symbols: str) -> None:
        file.write_text("".join(f"{symbol} 1\n" for symbol in symbols), encoding="utf-8")
        _require_same_symbols(file, known, "fixed.txt")

    check("a", "b")
    check("a", "b", "c", "d", "madeupword0000")
    check("a", "madeupword0000", "madeupword0001")  # which no text has
    with pytest.raises(ArtifactError, match=r"(?s)symbol 5 is c\n.*b, as in fixed.txt"):
        check("a", "c")
    with pytest.raises(ArtifactError, match=r"(?s)symbol 8 is e\n.*none, as in"):
        check("a", "b", "c", "d", "e")
