"""The model with adapters, through fairseq's own construction, loading, training and beam search."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from net_inputs import log_probabilities, require_no_order_nor_padding, require_sentence_by_sentence, rows_of
from torch import Tensor

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint
from neuron_spec.directions import Direction, direction_id
from neuron_spec.errors import ArtifactError, ModelError
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.studies.adapters.model import Adapter

pytestmark = pytest.mark.slow

ARCH = "neuron_spec_adapters_tiny"
SIZE = 6
FLAGS = ("--adapter-size", str(SIZE), "--adapters", "direction")


@pytest.fixture(scope="module")
def batch(workshop) -> dict[str, Any]:
    """One mixed batch of all six directions."""
    _, task, _ = workshop.build("--batching", "mixed")
    task.load_dataset("valid")
    dataset, n = task.dataset("valid"), workshop.sizes["valid"]
    return dataset.collater([dataset[i] for i in (0, 1, n, n + 1, 2 * n, 3 * n, 4 * n, 5 * n)])


def build(workshop: Any, *flags: str, seed: int = 1, new: bool = False) -> tuple[Any, Any, Any]:
    """With adapters that do something, unless they are to stay new."""
    cfg, task, model = workshop.build(*FLAGS, *flags, seed=seed, arch=ARCH)
    if not new:
        torch.manual_seed(seed)
        with torch.no_grad():
            for adapter in model.adapter_layers().values():
                for parameter in adapter.parameters():
                    parameter.normal_(std=0.5)
    return cfg, task, model


def of_direction(batch: dict[str, Any], number: int) -> dict[str, Any]:
    rows = batch["net_input"]["direction_ids"] == number
    return {**batch, "net_input": rows_of(batch["net_input"], rows), "target": batch["target"][rows]}


def gradients(cfg: Any, task: Any, model: Any, *batches: dict[str, Any]) -> dict[str, Tensor]:
    """In training mode, dropout and all; one backward pass after all forward passes."""
    criterion = task.build_criterion(cfg.criterion)
    model.train()
    torch.manual_seed(5)
    model.zero_grad()
    sum(criterion(model, batch)[0] for batch in batches).backward()
    model.eval()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# The start


@pytest.mark.parametrize("adapters", ["pair", "direction", "family", "language"])
def test_new_adapters_are_the_dense_model_bit_for_bit(workshop, batch, adapters):
    _, _, dense = workshop.build()
    _, _, model = build(workshop, "--adapters", adapters, new=True)
    model.load_state_dict(dense.state_dict(), strict=True)  # missing keys are the new adapters
    assert len(model.adapter_layers()) == 4
    for net_input in (batch["net_input"], of_direction(batch, 1)["net_input"]):
        assert torch.equal(log_probabilities(model, net_input), log_probabilities(dense, net_input))


def test_adapters_change_the_output_of_every_direction(workshop, batch):
    _, _, dense = workshop.build()
    _, _, model = build(workshop)
    model.load_state_dict(dense.state_dict(), strict=True)
    difference = log_probabilities(model, batch["net_input"]) - log_probabilities(dense, batch["net_input"])
    assert difference.abs().amax(dim=(1, 2)).min() > 1e-2


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_each_side_has_adapters_in_every_layer(workshop, batch, side):
    _, _, model = build(workshop, new=True)
    before = log_probabilities(model, batch["net_input"])
    for key, adapter in model.adapter_layers().items():
        changed = copy.deepcopy(model)
        changed.adapter_layers()[key].up_bias.data.normal_()
        assert not torch.allclose(log_probabilities(changed, batch["net_input"]), before), key
        assert adapter.down_weight.shape == (6, SIZE, 16)
    assert {key.split(".")[0] for key in model.adapter_layers()} == {"encoder", "decoder"}


# Which adapter


def test_a_mixed_batch_equals_sentence_by_sentence(workshop, batch):
    _, _, model = build(workshop)
    require_sentence_by_sentence(model, batch["net_input"], tolerance=1e-4)


def test_neither_row_order_nor_padding_matters(workshop, batch):
    _, _, model = build(workshop)
    require_no_order_nor_padding(model, batch["net_input"], tolerance=1e-4)


def test_families_come_from_the_card_beside_the_data(workshop):
    _, _, model = build(workshop, "--adapters", "family")
    rows = {
        side.side: {
            pair: int(side.adapter_rows[direction_id(Direction.parse(pair), workshop.langs)])
            for pair in workshop.lang_pairs.split(",")
        }
        for side in model.sides
    }
    # qa and qb are of one invented family, qm of another.
    decoder, encoder = rows["decoder"], rows["encoder"]
    assert decoder["en-qa"] == decoder["en-qb"] != decoder["en-qm"]
    assert decoder["qa-en"] == decoder["qm-en"] not in (decoder["en-qa"], decoder["en-qm"])
    assert encoder["qa-en"] == encoder["qb-en"] != encoder["qm-en"]
    assert encoder["en-qa"] == encoder["en-qm"] not in (encoder["qa-en"], encoder["qm-en"])


def test_families_may_come_from_a_file(workshop, tmp_path):
    (tmp_path / "families.json").write_text(json.dumps({"qa": "A", "qb": "B", "qm": "A"}))
    flags = ("--adapters", "family", "--adapter-families", str(tmp_path / "families.json"))
    rows = build(workshop, *flags)[2].decoder.adapter_rows
    assert rows[1] == rows[3] != rows[2]  # en-qa, en-qm, en-qb
    (tmp_path / "families.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="not a file of families"):
        build(workshop, *flags)
    with pytest.raises(ArtifactError, match="not found"):
        build(workshop, *flags[:3], str(tmp_path / "absent.json"))


def test_without_ids_it_refuses(workshop, batch):
    _, _, model = build(workshop)
    net_input = {k: v for k, v in batch["net_input"].items() if k not in ("direction_ids", "distinct_ids")}
    with pytest.raises(ModelError, match="would ignore its adapters"):
        log_probabilities(model, net_input)


def test_a_direction_without_an_adapter(workshop, batch):
    pairs = ("--lang-pairs", "en-qa,qa-en")
    _, _, model = build(workshop, *pairs)
    with pytest.raises(ModelError, match="directions without adapters"):
        log_probabilities(model, batch["net_input"])
    model.set_languages(workshop.langs, "dense")
    _, _, dense = workshop.build()
    model.load_state_dict(dense.state_dict(), strict=True)
    got, expected = (log_probabilities(m, batch["net_input"]) for m in (model, dense))
    has_adapter = torch.isin(batch["net_input"]["direction_ids"], torch.tensor([1, 4]))
    for row in range(len(got)):
        assert torch.allclose(got[row], expected[row], atol=1e-5) != bool(has_adapter[row])


def test_masks_are_refused(workshop, batch):
    _, _, model = build(workshop)
    _, _, specialized = workshop.build()
    masks = workshop.masks(specialized)
    specialized.set_masks(masks, workshop.langs)
    with pytest.raises(ModelError, match="takes no masks"):
        model.set_masks(masks, workshop.langs)
    with pytest.raises(ModelError, match="takes no masks"):
        model.load_state_dict(specialized.state_dict(), strict=True)


# Training


def test_a_direction_trains_its_own_adapter_alone(workshop, batch):
    cfg, task, model = build(workshop)
    found = gradients(cfg, task, model, of_direction(batch, 4))
    assert found.keys() == {name for name, _ in model.named_parameters() if ".adapter." in name}
    group = int(model.encoder.adapter_rows[4])
    for name, gradient in found.items():
        per_group = gradient.flatten(1).abs().sum(dim=1)
        assert (per_group > 0).nonzero().flatten().tolist() == [group], name


def test_a_mixed_batch_trains_as_one_batch_per_direction(workshop, batch):
    cfg, task, model = build(workshop, "--dropout", "0")
    together = gradients(cfg, task, model, batch)
    ids = batch["net_input"]["direction_ids"].unique().tolist()
    apart = gradients(cfg, task, model, *(of_direction(batch, number) for number in ids))
    for name in together:
        torch.testing.assert_close(apart[name], together[name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("base", ["frozen", "trained"])
def test_checkpointed_activations_change_nothing(workshop, batch, base):
    results = []
    for flags in ((), ("--checkpoint-activations",), ("--checkpoint-activations", "--offload-activations")):
        cfg, task, model = build(workshop, "--base", base, *flags)
        results.append(gradients(cfg, task, model, of_direction(batch, 1), of_direction(batch, 4), batch))
    expected, *others = results
    for found in others:
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["frozen", "trained"])
def test_a_frozen_base_does_not_move(workshop, base):
    from fairseq.trainer import Trainer

    cfg, task, model = build(workshop, "--base", base, "--weight-decay", "0.1", "--clip-norm", "1")
    criterion = task.build_criterion(cfg.criterion)
    batches = workshop.batches(task)
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(cfg, task, model, criterion)
    trainer.begin_epoch(1)
    for _ in range(2):
        trainer.train_step(batches[:3])
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(".adapter." in key for key in moved)
    assert any(".adapter." not in key for key in moved) == (base == "trained")


def test_adapters_alone_are_trained(workshop):
    _, _, model = build(workshop)
    adapters = [p for name, p in model.named_parameters() if ".adapter." in name]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(p.numel() for p in adapters)


def test_a_bottleneck_needs_a_width(workshop):
    with pytest.raises(ModelError, match="bottleneck"):
        build(workshop, "--adapter-size", "0")


# Checkpoints


def test_a_checkpoint_needs_no_flags_and_no_families(workshop, batch, tmp_path):
    from fairseq import checkpoint_utils

    families = tmp_path / "families.json"
    families.write_text(json.dumps({"qa": "A", "qb": "B", "qm": "A"}))
    cfg, _, model = build(workshop, "--adapters", "family", "--adapter-families", str(families))
    path = workshop.save(tmp_path / "adapters.pt", cfg, model)
    families.unlink()
    (loaded,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])
    loaded.eval()
    assert torch.equal(
        log_probabilities(loaded, batch["net_input"]), log_probabilities(model, batch["net_input"])
    )
    assert all(
        torch.equal(side.adapter_rows, other.adapter_rows)
        for side, other in zip(loaded.sides, model.sides, strict=True)
    )


def test_training_goes_on_from_adapters(workshop, batch):
    _, _, model = build(workshop)
    _, _, other = build(workshop, seed=7)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(
        log_probabilities(other, batch["net_input"]), log_probabilities(model, batch["net_input"])
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--adapter-size", "7"),
        ("--adapters", "pair"),
        ("--lang-pairs", "qa-en,en-qa,en-qb,qb-en,en-qm,qm-en"),
    ],
)
def test_other_adapters_than_the_checkpoints_are_refused(workshop, flags):
    _, _, model = build(workshop)
    _, _, other = build(workshop, *flags)
    with pytest.raises(ModelError, match="other directions or another size"):
        other.load_state_dict(model.state_dict(), strict=True)


# Beam search


def search(cfg: Any, task: Any, model: Any, sample: dict[str, Any], **more: Any) -> Any:
    generation = copy.deepcopy(cfg.generation)
    generation.beam, generation.max_len_a, generation.max_len_b, generation.nbest = 4, 0, 8, 4
    return task.inference_step(task.build_generator([model], generation), [model], sample, **more)


def test_beam_search_scores_are_those_of_teacher_forcing(workshop):
    _, _, model = build(workshop)
    cfg, task, _ = workshop.build("--source-lang", "en", "--target-lang", "qb")
    (sample, *_) = workshop.batches(task, "test")
    for row, beams in enumerate(search(cfg, task, model, sample)[:4]):
        for beam in beams:
            alone = rows_of(sample["net_input"], torch.tensor([row]))
            alone["prev_output_tokens"] = torch.cat([torch.tensor([2]), beam["tokens"][:-1]])[None]
            scores = log_probabilities(model, alone)[0].gather(1, beam["tokens"][:, None]).squeeze(1)
            torch.testing.assert_close(beam["positional_scores"], scores, atol=1e-3, rtol=0)


def test_beam_search_on_a_mixed_batch_equals_sentence_by_sentence(workshop, batch):
    _, _, model = build(workshop)
    cfg, task, _ = workshop.build("--source-lang", "en", "--target-lang", "qb")
    first = batch["target"][:, :1]  # each sentence's own target language token
    together = search(cfg, task, model, batch, prefix_tokens=first)
    for row in range(len(first)):
        length = int(batch["net_input"]["src_lengths"][row])
        alone = rows_of(batch["net_input"], torch.tensor([row]))
        alone["src_tokens"] = alone["src_tokens"][:, -length:]
        (beams,) = search(cfg, task, model, {**batch, "net_input": alone}, prefix_tokens=first[row : row + 1])
        assert torch.equal(beams[0]["tokens"], together[row][0]["tokens"])
        torch.testing.assert_close(beams[0]["score"], together[row][0]["score"], atol=1e-3, rtol=0)


# The commands


def test_train_and_generate_by_fairseqs_commands(workshop, checkpoint, tmp_path):
    root = Path(__file__).parents[2]
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": commands, "LOGLEVEL": "INFO"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    task = [
        workshop.data_bin, "--user-dir", root / "neuron_spec", "--task", "neuron_specialization",
        "--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok", "--cpu",
    ]  # fmt: skip
    shape = ["--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings"]
    for side, width in (("encoder", 48), ("decoder", 40)):
        shape += [f"--{side}-layers", 2, f"--{side}-embed-dim", 16, f"--{side}-ffn-embed-dim", width]
        shape += [f"--{side}-attention-heads", 2]
    log = run(
        "fairseq-train", *task, "--arch", ARCH, *shape, "--lang-pairs", workshop.lang_pairs,
        "--adapters", "family", "--adapter-size", SIZE, "--finetune-from-model", checkpoint,
        "--save-dir", tmp_path, "--max-tokens", 500, "--max-update", 4, "--update-freq", 2,
        "--optimizer", "adam", "--lr", "0.01", "--weight-decay", "0.1", "--disable-validation",
        "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1",
        "--log-format", "simple", "--seed", 1,
    )  # fmt: skip
    # English and two invented families, in each of four layers.
    parameters = sum(p.numel() for p in Adapter(3, 16, SIZE).parameters())
    assert f"num. trained: {4 * parameters:,}" in log
    trained = read_checkpoint(tmp_path / "checkpoint_last.pt")["model"]
    dense = read_checkpoint(checkpoint)["model"]
    assert all(torch.equal(trained[key], value) for key, value in dense.items())
    log = run(
        "fairseq-generate", *task, "--lang-pairs", "qm-en,en-qa", "-s", "en", "-t", "qa", "--beam", 2,
        "--path", tmp_path / "checkpoint_last.pt", "--max-tokens", 500, "--max-len-b", 10, "--num-workers", 0,
    )  # fmt: skip
    assert sum(line.startswith("H-") for line in log.splitlines()) == workshop.sizes["test"]
    run(
        "neuron-spec", "evaluate", workshop.data_bin, "--path", tmp_path / "checkpoint_last.pt",
        "--lang-pairs", "en-qa,qm-en", "--output", tmp_path / "evaluation", "--beam", 2, "--cpu",
    )  # fmt: skip
    assert len(read_evaluation(tmp_path / "evaluation").scores) == 2
