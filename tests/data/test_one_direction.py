"""What the model is fed: every sentence once, with its own direction."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from neuron_spec.data.one_direction import OneDirectionEpochDataset, ResumableEpochDataset
from neuron_spec.directions import Direction, direction_id

PAD, EOS = 1, 2
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


@pytest.mark.parametrize("flags", [(), VIRTUAL])
@pytest.mark.parametrize("epoch", [1, 2])
def test_the_training_sample_is_that_of_fairseqs_own_task(workshop, flags, epoch):
    flags = ("--sampling-method", "temperature", "--sampling-temperature", "5", *flags)
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
