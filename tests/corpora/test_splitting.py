import random

import pytest

from neuron_spec.corpora.splitting import (
    NEAR_DUPLICATE,
    HeldOutTexts,
    hold_out_groups,
    leak_report,
    nearest_similarity,
    shuffle_key,
    without_near_duplicates,
)
from neuron_spec.errors import CorpusError

SIZES = {"test": 20, "valid": 10}


def groups(seed: int = 0) -> dict[str, set[str]]:
    """500 messages in 100 groups; each tenth message in two of them."""
    rng = random.Random(seed)
    groups_of = {}
    for i in range(500):
        names = {f"group {rng.randrange(100)}"} | ({f"group {rng.randrange(100)}"} if i % 10 == 0 else set())
        groups_of[f"message {i}"] = names
    return groups_of


@pytest.mark.parametrize("seed", range(4))
def test_no_group_is_both_trained_on_and_held_out(seed):
    messages = groups(seed)
    splits = hold_out_groups(messages, list(messages), sizes=SIZES, seed=seed)
    assert {split: len(splits[split]) for split in SIZES} == SIZES
    of = {split: [messages[m] for m in chosen] for split, chosen in splits.items()}
    trained = set(splits["train"])
    assert not trained & {*splits["test"], *splits["valid"]}
    assert not set(splits["test"]) & set(splits["valid"])
    # A held-out message's groups are held out by its own split alone.
    assert not set().union(*of["test"]) & set().union(*of["valid"])
    held_out = set().union(*of["test"], *of["valid"])
    assert all(names - held_out for names in of["train"])


def test_only_eligible_messages_are_held_out_and_the_rest_is_not_trained_on():
    messages = groups()
    eligible = [m for i, m in enumerate(messages) if i % 2]
    splits = hold_out_groups(messages, eligible, sizes=SIZES, seed=1)
    assert {*splits["test"], *splits["valid"]} <= set(eligible)
    held_out = set().union(*(messages[m] for s in SIZES for m in splits[s]))
    assert not any(messages[m] <= held_out for m in splits["train"])


def test_splits_depend_on_the_seed_not_on_the_order():
    messages = groups()
    shuffled = dict(sorted(messages.items(), key=lambda item: shuffle_key(9, item[0])))
    one = hold_out_groups(messages, list(messages), sizes=SIZES, seed=1)
    two = hold_out_groups(shuffled, list(shuffled), sizes=SIZES, seed=1)
    assert one["test"] == two["test"] and sorted(one["train"]) == sorted(two["train"])
    assert one["test"] != hold_out_groups(messages, list(messages), sizes=SIZES, seed=2)["test"]


def test_large_groups_stay_in_training():
    messages = groups() | {f"core {i}": {"core"} for i in range(100)}
    splits = hold_out_groups(messages, list(messages), sizes=SIZES, seed=1)
    assert all(f"core {i}" in set(splits["train"]) for i in range(100))


def test_too_few_messages():
    messages = groups()
    with pytest.raises(CorpusError, match="too few messages for the test split"):
        hold_out_groups(messages, list(messages)[:5], sizes=SIZES, seed=1)


def test_similarity():
    texts = ["the cat sat on the mat", "The cat sat on the mats", "entirely different words"]
    first, second, third = nearest_similarity(texts, ["the cat sat on the mat"])
    assert first == 1.0 > second > 0.6 > third
    assert nearest_similarity(texts, []) == [0.0, 0.0, 0.0]


def test_near_duplicates_leave_training():
    held_out = ["the cat sat on the mat"]
    train = ["The cat sat on the mats", "entirely different words", "the dog lay under a chair"]
    kept = without_near_duplicates(train, held_out)
    assert kept == train[1:]
    assert leak_report(train, held_out)["percent_with_near_duplicate_at_0.6"] == 100
    assert set(leak_report(kept, held_out).values()) == {0}


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_are_found_fast_as_by_the_similarity_to_each(seed):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefg", k=rng.randint(1, 6))) for _ in range(60)]
    held_out = [" ".join(rng.choices(words, k=rng.randint(1, 15))) for _ in range(120)]
    texts = [
        "",
        "a",
        *held_out[:10],
        *(" ".join(rng.choices(words, k=rng.randint(1, 15))) for _ in range(60)),
    ]
    for text in held_out:
        changed = [word if rng.random() > 0.15 else rng.choice(words) for word in text.split()]
        texts.append(" ".join(changed))
    index = HeldOutTexts(held_out)
    found = [index.resembled_by(text) for text in texts]
    assert [bool(numbers) for numbers in found] == [
        similarity >= NEAR_DUPLICATE for similarity in nearest_similarity(texts, held_out)
    ]
    for text, numbers in zip(texts, found, strict=True):
        assert numbers == [
            i for i, of in enumerate(held_out) if nearest_similarity([text], [of])[0] >= NEAR_DUPLICATE
        ]
    assert 50 < sum(map(bool, found)) < len(found)
