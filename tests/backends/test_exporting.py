"""An exported direction is the specialized model: the same log-probabilities and translations, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq.models.transformer import TransformerModel

from neuron_spec.artifacts import load_tensors, read_json
from neuron_spec.backends.ctranslate2.writing import write as write_ctranslate2
from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.commands import generation_config
from neuron_spec.backends.fairseq.exporting import Exporter
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.directions import Direction
from neuron_spec.export.direction_model import write_tensors
from neuron_spec.export.folder import CHECKPOINT, MODEL_JSON, WEIGHTS, ExportFolder, Search, write_export_json
from neuron_spec.neurons.masks import NeuronMasks

EN_QA = Direction("en", "qa")
TOLERANCE = 1e-5
SEARCH = Search(beam=4, max_len_b=30)
LEARNED = "--decoder-learned-pos"
# What is exported -> flags of the model, and whether heads are masked too.
MODELS: dict[str, tuple[list[str], bool]] = {
    "bias": ([LEARNED], False),
    "zero": ([LEARNED, "--dropped-neurons", "zero"], False),
    "frozen": ([LEARNED, "--dropped-neurons", "frozen"], False),
    "heads": ([LEARNED], True),
    "dense": ([LEARNED], False),
    "sinusoidal positions": (["--no-scale-embedding", "--max-source-positions", "60"], False),
    "normalized embeddings": ([LEARNED, "--encoder-learned-pos", "--layernorm-embedding"], False),
}

ALL_LONG = ("sinusoidal positions", "normalized embeddings")  # which at random never end


def specialized(workshop: Any, folder: Path, name: str) -> Path:
    flags, masks_heads = MODELS[name]
    cfg, _, model = workshop.build(*flags)
    with torch.no_grad():  # else every continuation is about as likely, and no translation ends
        end = model.decoder.embed_tokens.weight[model.decoder.dictionary.eos()]
        model.decoder.layer_norm.weight.mul_(3)
        if LEARNED in flags:
            model.decoder.embed_positions.weight[9:] += 5 * end
    if name != "dense":
        masks = workshop.masks(model)
        if masks_heads:
            heads = {
                site: torch.rand(6, size) < 0.7 for site, size in model.sites().items() if "attn" in site
            }
            masks = NeuronMasks(masks.directions, masks.kept | heads)
        model.set_masks(masks, workshop.langs)
    return workshop.save(folder / "checkpoint_last.pt", cfg, model)


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request, workshop, tmp_path_factory) -> Path:
    return specialized(workshop, tmp_path_factory.mktemp("specialized"), request.param)


@pytest.fixture(scope="module")
def exporter(workshop, checkpoint) -> Exporter:
    return Exporter(Asked.read(checkpoint, workshop.data_bin))


def sentences(workshop: Any, count: int = 20) -> list[list[str]]:
    """Pieces of English text."""
    from neuron_spec.corpora.build import pieces_model
    from neuron_spec.export.folder import Pieces

    pieces = Pieces(pieces_model(workshop.data_bin))
    raw = workshop.data_bin.parent / "raw" / "test.qa-en.en"
    return [pieces.of(line) for line in raw.read_text().splitlines()[:count]]


def log_probabilities(model: Any, task: Any) -> torch.Tensor:
    """Of the first validation batch of a direction, `[B, T, V]`."""
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    batch = dataset.collater([dataset[i] for i in range(8)])
    with torch.no_grad():
        return utils.log_softmax(model(**batch["net_input"])[0], dim=-1)


def load(workshop: Any, path: Path, task_name: str) -> tuple[Any, Any]:
    flags = ["--langs", ",".join(workshop.langs), "--encoder-langtok", "src", "--decoder-langtok"]
    cfg = generation_config(path, workshop.data_bin, [EN_QA], flags, "-s", "en", "-t", "qa", "--cpu")
    cfg.task.task = cfg.task._name = task_name
    task = tasks.setup_task(cfg.task)
    (model,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=task)
    return model.eval(), task


def test_stock_fairseq_gives_the_same_log_probabilities(workshop, checkpoint, exporter, tmp_path):
    exporter.write(exporter.direction_model(EN_QA), tmp_path)
    wanted = log_probabilities(*load(workshop, checkpoint, "neuron_specialization"))
    model, task = load(workshop, tmp_path / CHECKPOINT, "translation_multi_simple_epoch")
    assert type(model) is TransformerModel
    assert type(task).__module__.startswith("fairseq.")
    torch.testing.assert_close(log_probabilities(model, task), wanted, rtol=0, atol=TOLERANCE)


def test_a_dense_model_is_exported_bit_for_bit(workshop, tmp_path):
    path = specialized(workshop, tmp_path, "dense")
    exporter = Exporter(Asked.read(path, workshop.data_bin))
    exporter.write(exporter.direction_model(EN_QA), tmp_path)
    before, after = (torch.load(file, weights_only=False)["model"] for file in (path, tmp_path / CHECKPOINT))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_pickled_object_is_in_an_exported_checkpoint(exporter, tmp_path):
    exporter.write(exporter.direction_model(EN_QA), tmp_path)
    with torch.serialization.safe_globals([]):
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            torch.load(tmp_path / CHECKPOINT, weights_only=True)
        finally:
            torch.serialization.add_safe_globals(before)


def test_safetensors_hold_the_same_weights_and_what_they_do_not_say(exporter, tmp_path):
    model = exporter.direction_model(EN_QA)
    write_tensors(model, tmp_path)
    weights, _ = load_tensors(tmp_path / WEIGHTS, "weights")
    said = read_json(tmp_path / MODEL_JSON, "model")
    for key, value in model.parameters():
        assert torch.equal(weights[said["tied"].get(key, key)], value)
    assert {key: list(value.shape) for key, value in weights.items()} == said["shapes"]
    assert said["source_vocabulary"] == exporter._task.source_dictionary.symbols
    assert (
        sum(value.numel() for key, value in weights.items() if not key.endswith(".positions")) == model.size()
    )


# CTranslate2 -----------------------------------------------------------------------------------


def in_ctranslate2(exporter: Exporter, folder: Path, quantization: str = "float32") -> ExportFolder:
    pytest.importorskip("ctranslate2")
    model = exporter.direction_model(EN_QA)
    write_ctranslate2(model, folder, quantization)
    write_export_json({"format": "ctranslate2", **model.described()}, folder)
    return ExportFolder.read(folder)


def test_ctranslate2_gives_the_same_log_probabilities(workshop, checkpoint, exporter, tmp_path):
    folder = in_ctranslate2(exporter, tmp_path)
    import ctranslate2

    model, task = load(workshop, checkpoint, "neuron_specialization")
    wanted = log_probabilities(model, task)
    dataset = task.dataset("valid")
    samples = [dataset[i] for i in range(8)]
    ordered = dataset.collater(samples)["id"].tolist()
    by_id = {sample["id"]: sample for sample in samples}
    symbols = task.target_dictionary.symbols
    for row, number in enumerate(ordered):
        source, target = ([symbols[i] for i in by_id[number][side][:-1]] for side in ("source", "target"))
        (scored,) = ctranslate2.Translator(str(folder.path)).score_batch([source], [target])
        tokens = by_id[number]["target"]
        expected = wanted[row, torch.arange(len(tokens)), tokens]
        assert source[0] == folder.source_tag
        assert target[0] == folder.target_tag
        torch.testing.assert_close(torch.tensor(scored.log_probs), expected, rtol=0, atol=TOLERANCE)


def test_ctranslate2_finds_what_fairseq_finds(request, workshop, checkpoint, exporter, tmp_path):
    folder = in_ctranslate2(exporter, tmp_path)
    from neuron_spec.backends.ctranslate2.translation import CTranslate2Translator

    pieces = sentences(workshop)
    theirs = Translator(checkpoint, workshop.data_bin, [EN_QA], None, [*SEARCH.flags, "--cpu"])
    wanted = theirs.translate_pieces(EN_QA, pieces)
    found = CTranslate2Translator(folder, SEARCH, scores=True, cpu=True).translate_pieces(pieces)
    # Some end, some are as long as they may be.
    lengths = [len(one.tokens) for one in wanted]
    assert max(lengths) == SEARCH.max_len_b - 1
    assert min(lengths) < SEARCH.max_len_b - 9 or request.node.callspec.id in ALL_LONG
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=TOLERANCE)
    without = CTranslate2Translator(folder, SEARCH, cpu=True).translate_pieces(pieces)
    assert [one.tokens for one in without] == [one.tokens for one in found]
    assert all(one.score is None for one in without)


@pytest.mark.parametrize("quantization", ["float32", "float16", "int8"])
def test_exporting_leaves_the_model_as_it_is(workshop, exporter, tmp_path, quantization):
    """CTranslate2 quantizes in place; what it scaled would be in the next direction's export."""
    before = {key: value.clone() for key, value in exporter.model.state_dict().items()}
    in_ctranslate2(exporter, tmp_path, quantization)
    assert all(torch.equal(value, before[key]) for key, value in exporter.model.state_dict().items())


def test_a_layer_of_which_nothing_is_kept_is_exported(workshop, tmp_path):
    cfg, _, model = workshop.build()
    masks = workshop.masks(model)
    masks.kept["decoder.layers.1"][:] = False
    model.set_masks(masks, workshop.langs)
    path = workshop.save(tmp_path / "checkpoint.pt", cfg, model)
    folder = in_ctranslate2(Exporter(Asked.read(path, workshop.data_bin)), tmp_path)
    from neuron_spec.backends.ctranslate2.translation import CTranslate2Translator

    search = Search(beam=2, max_len_b=6)
    theirs = Translator(path, workshop.data_bin, [EN_QA], None, [*search.flags, "--cpu"])
    pieces = sentences(workshop, 3)
    found = CTranslate2Translator(folder, search, cpu=True).translate_pieces(pieces)
    assert [one.tokens for one in found] == [one.tokens for one in theirs.translate_pieces(EN_QA, pieces)]
