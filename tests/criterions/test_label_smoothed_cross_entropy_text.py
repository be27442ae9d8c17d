"""With the tag in the loss training is fairseq's to the bit; what is logged of the text depends on no batching."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer

import neuron_spec
from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.backends.fairseq.language_tags import language_tags
from neuron_spec.criterions.label_smoothed_cross_entropy_text import TextCriterion

pytestmark = pytest.mark.slow

PAD = 1
PLAIN = ("--criterion", "label_smoothed_cross_entropy")
TEXT = ("--criterion", "label_smoothed_cross_entropy_text")
WITHOUT = (*TEXT, "--loss-without-tag")


def trained(
    workshop: Any, *flags: str, updates: int = 3, **kinds: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights after some updates of two batches each, and what the last one logged, with the mean gradient's length."""
    cfg, task, model = workshop.build("--update-freq", "2", "--num-workers", "0", *flags, **kinds)
    task.load_dataset("train", epoch=1)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    batches = workshop.batches(task, "train")
    with metrics.aggregate(new_root=True) as logged:
        for update in range(updates):
            log = trainer.train_step(batches[2 * update : 2 * update + 2])
    log = {**log, "gnorm": float(logged["gnorm"].avg)}
    return {name: p.detach().clone() for name, p in model.named_parameters()}, log


def validated(workshop: Any, *flags: str, max_tokens: int = 200, tagged: bool = True) -> dict[str, float]:
    """What a validation logs."""
    cfg, task, model = workshop.build(*TEXT, *flags)
    criterion = task.build_criterion(cfg.criterion)
    with metrics.aggregate(new_root=True) as logged:
        for batch in workshop.batches(task, max_tokens=max_tokens):
            if not tagged:
                batch["target"] = batch["target"].masked_fill(
                    torch.isin(batch["target"], language_tags(task)), PAD
                )
                batch["ntokens"] = int(batch["target"].ne(PAD).sum())
            *_, log = task.valid_step(batch, model, criterion)
            task.reduce_metrics([log], criterion)
    return {
        name: getattr(meter, "avg", None) or logged.get_smoothed_value(name) for name, meter in logged.items()
    }


def nats_by_hand(workshop: Any) -> tuple[list[float], list[float]]:
    """Of every text token and of every tag of the validation set."""
    _, task, model = workshop.build()
    text, tags = [], []
    for batch in workshop.batches(task):
        with torch.no_grad():
            scores = model(**batch["net_input"])[0].log_softmax(-1)
        for sentence, target in enumerate(batch["target"].tolist()):
            nats = [-scores[sentence, i, t].item() for i, t in enumerate(target) if t != PAD]
            tags, text = [*tags, nats[0]], [*text, *nats[1:]]
    return text, tags


# Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--sentence-avg",)])
def test_with_the_tag_training_is_fairseqs_to_the_bit(workshop, flags):
    (plain, of_plain), (text, of_text) = (trained(workshop, *kind, *flags) for kind in (PLAIN, TEXT))
    assert all(torch.equal(plain[name], text[name]) for name in plain)
    for name in ("loss", "nll_loss"):
        assert of_plain[name] == of_text[name]
    without, _ = trained(workshop, *WITHOUT, *flags)
    assert any(not torch.equal(plain[name], without[name]) for name in plain)


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_without_the_tag_the_gradient_is_that_of_the_text_by_its_tokens(workshop, sentence_avg):
    cfg, task, model = workshop.build(*WITHOUT, *(["--sentence-avg"] if sentence_avg else []))
    criterion = task.build_criterion(cfg.criterion)
    batch = workshop.batches(task)[0]
    loss, size, log = criterion(model, batch)
    (loss / size).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    scores = model(**batch["net_input"])[0].log_softmax(-1)[:, 1:]  # fairseq puts the tag first
    target = batch["target"][:, 1:]
    text, sentences = target.ne(PAD), len(target)
    # fairseq's label smoothing: epsilon goes to the other words in equal parts.
    others = 0.1 / (scores.size(-1) - 1)
    right = scores.gather(-1, target[..., None]).squeeze(-1)
    smoothed = -((1 - 0.1 - others) * right + others * scores.sum(-1))
    expected = smoothed[text].sum()
    assert int(size) == (sentences if sentence_avg else int(text.sum()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (expected / (sentences if sentence_avg else text.sum())).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-7)
    assert int(log["sample_size"]) == int(size) and log["ntokens"] == int(text.sum()) + sentences


@pytest.mark.parametrize(
    ("task", "arch", "flags"),
    [
        ("neuron_spec_dynamic", "", ("--dynamic-masks", "none")),
        ("neuron_spec_meta", "", ("--inner-lr", "0.01")),
        ("neuron_spec_meta", "", ("--meta", "reptile", "--inner-lr", "0.01")),
        ("neuron_specialization", "neuron_spec_adapters_tiny", ()),
        ("neuron_specialization", "neuron_spec_lass_tiny", ()),
        ("translation_multi_simple_epoch", "transformer_tiny", ()),
    ],
)
def test_every_task_and_model_trains_by_it(workshop, task, arch, flags):
    logs = [
        trained(workshop, *kind, *flags, updates=2, task=task, arch=arch)[1]
        for kind in (PLAIN, TEXT, WITHOUT)
    ]
    assert logs[0]["loss"] == logs[1]["loss"] != logs[2]["loss"]
    for log in logs[1:]:
        assert {"text_nll_loss", "tag_nll_loss"} <= log.keys()
    assert math.isfinite(logs[2]["loss"])


def test_half_precision_trains_by_gradients_of_the_same_length(workshop):
    flags = (*WITHOUT, "--dropout", "0")
    whole, half = (
        trained(workshop, *flags, *more)[1] for more in ((), ("--fp16", "--memory-efficient-fp16"))
    )
    for name in ("loss", "text_nll_loss", "tag_nll_loss", "gnorm"):
        assert half[name] == pytest.approx(whole[name], rel=0.01)


def test_two_processes_train_as_one_without_the_tag(workshop, checkpoint, tmp_path):
    flags = ("--task", "neuron_specialization", *WITHOUT)
    one, other = workshop.trained_by_one_and_by_two_processes(checkpoint, tmp_path, *flags)
    before = read_checkpoint(checkpoint)["model"]
    assert any(not torch.equal(one[key], before[key]) for key in before)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-7)


# What is logged -------------------------------------------------------------------------------


def test_what_is_logged_is_the_mean_over_text_and_over_tags_in_bits(workshop):
    text, tags = nats_by_hand(workshop)
    logged = validated(workshop)
    assert logged.keys() >= set(TextCriterion.logged_metrics)
    bits = {
        "text_nll_loss": sum(text) / len(text) / math.log(2),
        "tag_nll_loss": sum(tags) / len(tags) / math.log(2),
        "nll_loss": sum(text + tags) / len(text + tags) / math.log(2),  # fairseq's, by all tokens
    }
    assert {name: float(logged[name]) for name in bits} == pytest.approx(bits, rel=1e-5)
    assert logged["text_ppl"] == pytest.approx(2 ** bits["text_nll_loss"], abs=0.01)


@pytest.mark.parametrize("flags", [(), ("--report-accuracy",)])
def test_a_criterion_names_what_it_logs(workshop, flags):
    cfg, task, _ = workshop.build(*TEXT, *flags)
    named = task.build_criterion(cfg.criterion).logged_metrics
    assert validated(workshop, *flags).keys() - {"wpb", "wps", "bsz"} == {*named}  # the task's own


@pytest.mark.parametrize("flags", [(), ("--loss-without-tag",)])
def test_a_validation_depends_on_no_batching(workshop, flags):
    small, large = (validated(workshop, *flags, max_tokens=most) for most in (60, 4000))
    for name in ("text_nll_loss", "tag_nll_loss", "nll_loss", "loss"):
        assert float(small[name]) == pytest.approx(float(large[name]), rel=1e-5)
    # The training loss alone is by the flag.
    same = validated(workshop, max_tokens=4000)
    assert {n: float(large[n]) for n in TextCriterion.logged_metrics[1:]} == {
        n: float(same[n]) for n in TextCriterion.logged_metrics[1:]
    }
    assert (float(large["loss"]) == float(same["loss"])) == (not flags)


def test_without_any_tag_the_text_is_all(workshop):
    logged = validated(workshop, tagged=False)
    assert float(logged["text_nll_loss"]) == pytest.approx(float(logged["nll_loss"]), rel=1e-6)
    assert "tag_nll_loss" not in logged


def test_a_model_that_predicts_other_tags_has_the_same_text_loss(workshop):
    """Only positions of tags may tell two models apart that differ in the row of a token that no text holds."""
    cfg, task, model = workshop.build(*TEXT)
    criterion, batch = task.build_criterion(cfg.criterion), workshop.batches(task)[0]
    scores = model.get_normalized_probs

    def sure_of_the_tag(net_output: Any, log_probs: bool, sample: Any = None) -> torch.Tensor:
        return scores(net_output, log_probs, sample).index_fill(1, torch.tensor([0]), -0.01)

    before = criterion(model, batch)[2]
    model.get_normalized_probs = sure_of_the_tag
    after = criterion(model, batch)[2]
    assert after["text_nll_loss"] == before["text_nll_loss"]
    assert after["tag_nll_loss"] == pytest.approx(0.01 * len(batch["target"]))
    assert after["nll_loss"] < before["nll_loss"]


def test_half_precision_is_summed_in_single(workshop):
    cfg, task, model = workshop.build(*WITHOUT)
    criterion, batch = task.build_criterion(cfg.criterion), workshop.batches(task)[0]
    whole, half = criterion(model, batch)[2], criterion.half()(model.bfloat16(), batch)[2]
    assert half["text_nll_loss"].dtype == torch.float32
    assert half["text_ntokens"] == whole["text_ntokens"] == half["sample_size"]
    assert float(half["text_nll_loss"]) == pytest.approx(float(whole["text_nll_loss"]), rel=0.01)


# The real commands ----------------------------------------------------------------------------


def test_plain_fairseq_chooses_checkpoints_by_it_and_translates_with_them_without_the_plugin(
    workshop, tmp_path
):
    languages = ["--langs", ",".join(workshop.langs), "--lang-pairs", "en-qa,qa-en"]
    languages += ["--encoder-langtok", "src", "--decoder-langtok"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": "", "LOGLEVEL": "INFO"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    output = run(
        *("-m", "fairseq_cli.train", workshop.data_bin, "--user-dir", Path(neuron_spec.__file__).parent),
        *("--task", "translation_multi_simple_epoch", *languages, "--arch", "transformer_tiny", *TEXT),
        *("--label-smoothing", "0.1", "--optimizer", "adam", "--lr", "0.001", "--max-tokens", "500", "--cpu"),
        *("--max-update", "4", "--save-interval-updates", "2", "--save-dir", "model", "--log-format", "simple"),
        *("--best-checkpoint-metric", "text_nll_loss", "--no-epoch-checkpoints", "--num-workers", "0"),
    )  # fmt: skip
    assert "best_text_nll_loss" in output and "tag_nll_loss" in output
    best = tmp_path / "model" / "checkpoint_best.pt"
    assert read_checkpoint(best)["extra_state"]["best"] > 0
    # What current torch wants to be told of any checkpoint of fairseq, and nothing of ours.
    stock = "import argparse, torch; torch.serialization.add_safe_globals([argparse.Namespace]);"
    stock += "from fairseq_cli.generate import cli_main; cli_main();"
    stock += "import sys; assert not any(name.startswith('neuron_spec') for name in sys.modules)"
    output = run(
        *("-c", stock, workshop.data_bin, "--path", best, "--task", "translation_multi_simple_epoch", *languages),
        *("--source-lang", "en", "--target-lang", "qa", "--beam", "1", "--max-len-b", "5", "--cpu", "--max-tokens", "500",
          "--required-batch-size-multiple", "1", "--num-workers", "0"),
    )  # fmt: skip
    assert output.count("\nH-") == workshop.sizes["test"]
