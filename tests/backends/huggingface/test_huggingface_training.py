"""Training in transformers: which batches, which loss, what moves and what does not, and going on exactly."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers
import torch
from tiny_models import DIRECTIONS, batch, build, random_masks, rows, transformers

from neuron_spec.backends.huggingface import (
    add_delta,
    delta_parameters,
    direction,
    load_delta,
    load_specialized,
    specialize,
)
from neuron_spec.backends.huggingface.directed_text import DirectedBatches, DirectedText
from neuron_spec.backends.huggingface.training import SpecializedTrainer, logits_of, nats_of, text_loss
from neuron_spec.errors import ArtifactError, CorpusError, DirectionError, ModelError

EN_DE, DE_EN, EN_FR = DIRECTIONS
TEXT = {one: rows(number, seed=seed) for seed, (one, number) in enumerate(zip(DIRECTIONS, (60, 31, 12)))}


def text_of(model: Any, directions: Any = DIRECTIONS) -> DirectedText:
    return DirectedText({one: TEXT[one] for one in directions}, None, model)


def trainer_of(
    model: Any, folder: Path, text: Any = None, *, valid: Any = None, **given: Any
) -> SpecializedTrainer:
    more = {name: given.pop(name) for name in ("max_tokens", "temperature", "callbacks") if name in given}
    arguments = {
        "max_steps": 6, "learning_rate": 0.01, "use_cpu": True, "report_to": [], "save_strategy": "no",
        "logging_steps": 2, "disable_tqdm": True, "dataloader_pin_memory": False, **given,
    }  # fmt: skip
    args = transformers.Seq2SeqTrainingArguments(str(folder), **arguments)
    return SpecializedTrainer(
        model, args, text_of(model) if text is None else text, valid, **{"max_tokens": 60, **more}
    )


def with_deltas(*directions: str, **config: Any) -> Any:
    model = build(**config)
    for one in directions:
        add_delta(model, one, random_masks(model, kept=0.4))
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def logits(model: Any, asked: str) -> torch.Tensor:
    with torch.no_grad(), direction(model.eval(), asked):
        found: torch.Tensor = model(**batch()).logits
    return found


# Batches -------------------------------------------------------------------------------------


def test_a_batch_has_one_direction_and_an_epoch_each_pair_once():
    order = DirectedBatches(text_of(build()), max_tokens=60)
    batches = list(order)
    assert all(len({row for row, _ in of}) == 1 for of in batches) and len(batches) == len(order)
    seen = Counter(place for of in batches for place in of)
    assert set(seen.values()) == {1} and len(seen) == sum(map(len, TEXT.values()))
    assert [row for ((row, _), *_) in batches] != sorted(row for ((row, _), *_) in batches)  # mixed


def test_batches_keep_to_their_size():
    text = text_of(build())
    for places in DirectedBatches(text, max_tokens=60):
        longest = max(text.lengths(row)[place] for row, place in places)
        assert len(places) * longest <= 60 or len(places) == 1
    assert {len(places) for places in DirectedBatches(text, sentences=5)} == {5, 1, 2}


@pytest.mark.parametrize("temperature", [1, 2, 100])
def test_temperature_draws_more_of_small_directions(temperature):
    text = text_of(build())
    order = DirectedBatches(text, sentences=1, temperature=temperature)
    drawn = Counter(row for ((row, _), *_) in order)
    shares = [number ** (1 / temperature) for number in (60, 31, 12)]
    for row, share in enumerate(shares):
        assert drawn[row] == pytest.approx(103 * share / sum(shares), abs=1)


def test_the_order_is_a_function_of_seed_and_epoch_and_processes_part_it():
    text = text_of(build())

    def order(epoch: int, **how: Any) -> list[Any]:
        found = DirectedBatches(text, max_tokens=60, **how)
        found.set_epoch(epoch)
        return list(found)

    assert order(3) == order(3) != order(4)
    assert order(3, seed=2) != order(3)
    both = [order(3, rank=rank, processes=2) for rank in (0, 1)]
    whole = order(3)
    assert [one for pair in zip(*both) for one in pair] == whole[: len(whole) // 2 * 2]
    with pytest.raises(CorpusError, match="fewer batches than processes"):
        DirectedBatches(text, max_tokens=60, processes=1000)


# Loss ----------------------------------------------------------------------------------------


def test_accumulated_gradients_are_those_of_one_batch_of_all_directions(tmp_path):
    model = specialize(build(), random_masks(build()))
    text = text_of(model)
    trainer = trainer_of(model, tmp_path, text)
    examples = [[text[row, place] for place in range(3)] for row in range(3)]
    parts = [text.batch(of) for of in examples]
    count = sum(int(part["labels"].ne(-100).sum()) for part in parts)
    for part in parts:
        trainer.compute_loss(model, part, num_items_in_batch=count).backward()
    accumulated = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    whole = text.batch([(0, example) for of in examples for _, example in of])
    asked = [one for one in DIRECTIONS for _ in range(3)]
    with direction(model, asked):
        out = model(**{key: whole[key] for key in ("input_ids", "attention_mask", "labels")})
    (nats_of(out.logits, whole["labels"]).sum() / count).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, accumulated[name], atol=1e-6, rtol=1e-4)


def test_steps_are_the_same_however_batches_are_accumulated_over_processes_or_not(tmp_path):
    """Two batches of a step as one process has them: their tokens count the same, whichever batch they are in."""
    model = specialize(build(), random_masks(build()))
    before = weights(model)
    text = text_of(model)
    trainer = trainer_of(
        model, tmp_path, text, gradient_accumulation_steps=2, max_steps=1, optim="sgd", learning_rate=1.0,
        lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    step = [text.batch([text[place] for place in places]) for places in list(trainer.order())[:2]]
    trainer.train()
    by_hand = specialize(build(), random_masks(build())).train()
    nats = sum(nats_of(logits_of(by_hand, one), one["labels"]).sum() for one in step)
    (nats / sum(one["labels"].ne(-100).sum() for one in step)).backward()
    for name, parameter in by_hand.named_parameters():
        moved = before[name] - parameter.grad
        torch.testing.assert_close(dict(model.named_parameters())[name], moved, atol=1e-6, rtol=1e-5)


def test_the_loss_of_the_text_leaves_the_language_token_out(tmp_path):
    tokenizer = tiny_tokenizers.nllb()
    lines = {
        one: list(zip(tiny_tokenizers.TEXT["en"], tiny_tokenizers.TEXT["de"]))
        for one in ("eng_Latn-deu_Latn",)
    }
    model = build(vocab_size=tiny_tokenizers.size(tokenizer))
    text = DirectedText(lines, tokenizer, model)
    (tag,) = text.language_tokens.tolist()
    assert tokenizer.convert_ids_to_tokens(tag) == "deu_Latn"

    nats, tokens, everything = 0.0, 0, 0.0
    for source, target in lines["eng_Latn-deu_Latn"]:
        tokenizer.src_lang, tokenizer.tgt_lang = "eng_Latn", "deu_Latn"
        pair = tokenizer([source], text_target=[target], return_tensors="pt")
        log = model(**pair).logits.log_softmax(-1)
        of_each = -log.gather(-1, pair["labels"].unsqueeze(-1)).squeeze(-1)
        assert pair["labels"][0, 0] == tag
        everything += float(of_each.sum())
        nats, tokens = nats + float(of_each[:, 1:].sum()), tokens + of_each.size(1) - 1
    for max_tokens in (20, 4000):
        (found,) = text_loss(model, text, max_tokens=max_tokens).values()
        assert found.tokens == tokens and found.nats == pytest.approx(nats, rel=1e-5)

    # What a training logs, in its first step and with label smoothing; its own loss is of all tokens.
    trainer = trainer_of(
        model, tmp_path, text, max_tokens=4000, max_steps=1, logging_steps=1, label_smoothing_factor=0.0
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["text_loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert first["loss"] == pytest.approx(everything / (tokens + len(lines["eng_Latn-deu_Latn"])), rel=1e-3)


def test_text_without_a_token_that_counts_has_no_loss(tmp_path):
    model = build()
    text = {"en-de": rows(3), "de-en": [{"input_ids": [5, 2], "labels": [-100, -100]}]}
    with pytest.raises(CorpusError, match=r"no text to measure a loss on\n  where:    de-en"):
        text_loss(model, DirectedText(text, None, model))
    with pytest.raises(CorpusError, match="no text to measure"):
        trainer_of(model, tmp_path, DirectedText(text, None, model))
    for wrong in (text, None, "en-de"):
        with pytest.raises(CorpusError, match="not tokenized text"):
            text_loss(model, wrong)


def test_smoothing_is_in_the_loss_and_not_in_the_text_loss(tmp_path):
    logs = {}
    for smoothing in (0.0, 0.2):
        trainer = trainer_of(
            build(), tmp_path, max_steps=1, logging_steps=1, label_smoothing_factor=smoothing
        )
        trainer.train()
        logs[smoothing] = trainer.state.log_history[0]
    assert logs[0.2]["text_loss"] == pytest.approx(logs[0.0]["text_loss"], rel=1e-6)
    assert logs[0.2]["loss"] != pytest.approx(logs[0.0]["loss"], rel=1e-4)


def test_evaluating_gives_each_directions_loss(tmp_path):
    model = specialize(build(), random_masks(build()))
    text = text_of(model)
    found = trainer_of(model, tmp_path, text, valid=text).evaluate()
    by_hand = text_loss(model, text)
    for one, loss in by_hand.items():
        assert found[f"eval_text_loss_{one}"] == pytest.approx(loss.per_token, rel=1e-6)
    total = sum(loss.nats for loss in by_hand.values()) / sum(loss.tokens for loss in by_hand.values())
    assert found["eval_loss"] == pytest.approx(total, rel=1e-6)


# What moves ----------------------------------------------------------------------------------


def test_joint_training_moves_no_dropped_row_of_a_direction_that_alone_is_trained(tmp_path):
    model = build()
    masks = random_masks(model)
    specialize(model, masks)
    before = weights(model)
    trainer_of(model, tmp_path, text_of(model, [DE_EN])).train()
    after = weights(model)
    for key in masks.kept:
        kept, name = masks.kept[key][1], f"model.{key}.fc1.weight"
        assert torch.equal(after[name][~kept], before[name][~kept])
        assert (after[name][kept] != before[name][kept]).any(1).sum() > 10  # but those that are never active
    assert not torch.equal(after["model.shared.weight"], before["model.shared.weight"])


def test_after_training_deltas_every_other_direction_is_bit_for_bit_what_it_was(tmp_path):
    model = with_deltas(EN_DE, DE_EN)
    before, state = {one: logits(model, one) for one in (*DIRECTIONS, "fr-en")}, weights(model)
    trainer_of(model, tmp_path, text_of(model, [EN_DE, DE_EN]), gradient_accumulation_steps=3).train()
    after = {one: logits(model, one) for one in before}
    for one in (EN_DE, DE_EN):
        assert not torch.allclose(after[one], before[one])
    for one in (EN_FR, "fr-en"):
        assert torch.equal(after[one], before[one])
    trained = {*delta_parameters(model)}
    for name, value in weights(model).items():
        assert torch.equal(value, state[name]) == (name not in trained), name


def test_one_delta_trained_leaves_the_other_where_it_was(tmp_path):
    model = with_deltas(EN_DE, DE_EN)
    trainer_of(model, tmp_path, text_of(model, [EN_DE])).train()
    tuned = logits(model, EN_DE)
    trainer_of(model, tmp_path, text_of(model, [DE_EN])).train()
    assert torch.equal(logits(model, EN_DE), tuned)
    assert not torch.equal(logits(model, DE_EN), tuned)


def test_a_direction_that_would_not_learn_is_refused(tmp_path):
    model = with_deltas(EN_DE)
    with pytest.raises(DirectionError, match="without a delta"):
        trainer_of(model, tmp_path, text_of(model, [EN_DE, DE_EN]))
    model = specialize(build(), random_masks(build(), directions=[EN_DE, DE_EN]))
    with pytest.raises(DirectionError, match="without masks"):
        trainer_of(model, tmp_path, text_of(model))


# Checkpoints ---------------------------------------------------------------------------------


def _watched(trainer: SpecializedTrainer) -> list[Any]:
    seen: list[Any] = []
    compute = trainer.compute_loss

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((inputs["direction"], inputs["labels"].tolist()))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    return seen


def _prepared(kind: str, dropout: float = 0.1) -> Any:
    if kind == "delta":
        return with_deltas(*DIRECTIONS, dropout=dropout)
    model = build(dropout=dropout)
    return model if kind == "plain" else specialize(model, random_masks(model))


@pytest.mark.parametrize("kind", ["joint", "delta", "plain"])
def test_training_goes_on_exactly(kind, tmp_path):
    """In the middle of an epoch, and two epochs later."""
    how = {
        "save_strategy": "steps",
        "save_steps": 5,
        "gradient_accumulation_steps": 2,
        "max_steps": 20,
        "warmup_steps": 3,
    }
    model = _prepared(kind)
    trainer = trainer_of(model, tmp_path / "whole", max_tokens=120, temperature=2.0, **how)
    assert len(trainer.order()) == 11  # a step has two; 20 steps are several epochs
    seen = _watched(trainer)
    trainer.train()

    again = _prepared(kind)
    resumed = trainer_of(again, tmp_path / "whole", max_tokens=120, temperature=2.0, **how)
    seen_again = _watched(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert seen_again == seen[10:]
    ours, theirs = weights(again), weights(model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [one.optimizer.state_dict()["state"] for one in (trainer, resumed)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(states[1][key][k])) for k in state)


def test_a_checkpoint_is_loaded_as_what_it_is(tmp_path):
    how = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    model = specialize(build(), random_masks(build()))
    trainer_of(model, tmp_path / "joint", **how).train()
    loaded = load_specialized(tmp_path / "joint" / "checkpoint-2")
    assert torch.equal(logits(loaded, EN_DE), logits(model, EN_DE))

    model = with_deltas(EN_DE, DE_EN)
    trainer_of(model, tmp_path / "delta", text_of(model, [EN_DE, DE_EN]), **how).train()
    folder, base = tmp_path / "delta" / "checkpoint-2", build()
    assert not list(folder.glob("model*"))  # the base is not written again
    assert str(load_delta(base, folder / f"{DE_EN}.delta.safetensors")) == DE_EN
    assert torch.equal(logits(base, DE_EN), logits(model, DE_EN))


def test_the_best_delta_is_taken_at_the_end(tmp_path):
    model = with_deltas(EN_DE)
    text = text_of(model, [EN_DE])
    trainer = trainer_of(
        model, tmp_path, text, valid=text, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1,
        max_steps=4, load_best_model_at_end=True, greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    found = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert found[-1] < max(found)  # the greatest, so that the last is not the best
    assert trainer.evaluate()["eval_loss"] == max(found)


@pytest.mark.parametrize("changed", ["text", "temperature", "masks", "accumulation"])
def test_going_on_with_another_training_is_refused(changed, tmp_path):
    how: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
    }
    trainer_of(specialize(build(), random_masks(build())), tmp_path, **how).train()
    model = specialize(build(), random_masks(build(), seed=2 if changed == "masks" else 1))
    how |= {"temperature": {"temperature": 3.0}, "accumulation": {"gradient_accumulation_steps": 2}}.get(
        changed, {}
    )
    text = text_of(model, DIRECTIONS[:2]) if changed == "text" else None
    with pytest.raises(ArtifactError, match="another training") as caught:
        trainer_of(model, tmp_path, text, **{**how, "max_steps": 4}).train(resume_from_checkpoint=True)
    assert {"text": "text_sha256", "accumulation": "gradient_accumulation_steps"}.get(
        changed, changed
    ) in str(caught.value)


def test_deltas_do_not_go_on_with_another_base(tmp_path):
    how: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer_of(with_deltas(*DIRECTIONS), tmp_path, **how).train()
    model = with_deltas(*DIRECTIONS)
    with torch.no_grad():
        model.get_encoder().layers[0].fc1.weight.mul_(2)
    with pytest.raises(ModelError, match="of other weights"):
        trainer_of(model, tmp_path, **{**how, "max_steps": 4}).train(resume_from_checkpoint=True)


def test_what_would_not_be_heeded_is_refused(tmp_path):
    for given, said in (
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size"),
        ({"predict_with_generate": True}, "predict_with_generate"),
        ({"temperature": 0.5}, "temperature"),
        ({"max_tokens": 0}, "size of a batch"),
    ):
        with pytest.raises(ModelError, match=said):
            trainer_of(build(), tmp_path, **given)
    for given, said in (
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "reentrant",
        ),
        ({"ddp_find_unused_parameters": False}, "unused"),
    ):
        with pytest.raises(ModelError, match=said):
            trainer_of(with_deltas(*DIRECTIONS), tmp_path, **given)
        trainer_of(build(), tmp_path, **given)
    trainer = trainer_of(build(), tmp_path, per_device_train_batch_size=4, max_tokens=None)
    assert max(map(len, trainer.order())) == 4
    with pytest.raises(ModelError, match="no text to evaluate on"):
        trainer.evaluate()


# Processes -----------------------------------------------------------------------------------

OF_TWO_PROCESSES = ("joint", "delta", "joint checkpointed", "delta checkpointed")
_PROGRAM = """
import sys
import test_huggingface_training as t
import torch
for kind in t.OF_TWO_PROCESSES:
    found = t._trained(kind, sys.argv[1], accumulation=1, ddp_backend="gloo")
    if torch.distributed.get_rank() == 0:
        torch.save(found, f"{sys.argv[1]}/{kind}.pt")
torch.distributed.destroy_process_group()
"""


def _trained(kind: str, folder: str | Path, *, accumulation: int, **given: Any) -> dict[str, Any]:
    kind, _, is_checkpointed = kind.partition(" ")
    model = _prepared(kind, dropout=0.0)
    given |= {"gradient_checkpointing": True} if is_checkpointed else {}
    trainer = trainer_of(
        model, Path(folder), valid=text_of(model), gradient_accumulation_steps=accumulation, max_steps=5, optim="sgd",
        learning_rate=0.5, logging_steps=5, **given,
    )  # fmt: skip
    trainer.train()
    return {"weights": weights(model), "eval": trainer.evaluate(), "log": trainer.state.log_history[0]}


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_accumulation(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {
        **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs), "\n".join(said)[-3000:]
    for kind in OF_TWO_PROCESSES:
        one, two = (
            _trained(kind, tmp_path, accumulation=2),
            torch.load(tmp_path / f"{kind}.pt", weights_only=True),
        )
        start = weights(_prepared(kind.partition(" ")[0]))
        for name, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], value, atol=1e-6, rtol=1e-4)
        assert sum(not torch.equal(value, start[name]) for name, value in one["weights"].items()) > 5
        for key in ("eval_loss", "eval_text_loss_en-fr"):
            assert two["eval"][key] == pytest.approx(one["eval"][key], rel=1e-5)
        assert two["log"]["text_loss"] == pytest.approx(one["log"]["text_loss"], rel=1e-5)
        assert two["log"]["loss"] == pytest.approx(one["log"]["loss"], rel=1e-4)


def test_a_checkpoint_says_what_it_was_trained_on(tmp_path):
    model = build()
    trainer_of(model, tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    said = json.loads((tmp_path / "checkpoint-2" / "neuron_training.json").read_text(encoding="utf-8"))
    assert said["text_sha256"] == text_of(model).sha256 and said["processes"] == 1


def test_some_of_the_directions():
    text = text_of(build())
    assert text.of([DE_EN]).sha256 == text_of(build(), [DE_EN]).sha256 != text.sha256
    with pytest.raises(DirectionError, match="no text of a direction"):
        text.of(["en-xx"])
    with pytest.raises(CorpusError, match="without text"):
        DirectedText({"en-de": []}, None, build())
