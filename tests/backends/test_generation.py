"""Flags of fairseq-generate are heeded as that command does, or refused by name."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from fairseq import options
from fairseq.data import Dictionary

from neuron_spec import models, tasks
from neuron_spec.backends.fairseq.data_bin import joining_of, split_prefix
from neuron_spec.backends.fairseq.generation import HEEDED, OURS, Translator, require_heeded
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, ModelError

SHORT = ("--max-len-a", "0", "--max-len-b", "6")
EN_QA = Direction("en", "qa")
ALL = "en-qa,qa-en"


@pytest.fixture(scope="module")
def translator(workshop, checkpoint):
    def make(*flags: str, data_bin: Path = workshop.data_bin, short: tuple[str, ...] = SHORT) -> Translator:
        common = ["--cpu", "--max-tokens", "500", "--beam", "4"]
        return Translator(checkpoint, data_bin, parse_directions(ALL), "test", [*common, *short, *flags])

    return make


def actions() -> dict[str, object]:
    assert models and tasks  # registered
    parser = options.get_generation_parser()
    words = ["data", "--task", "neuron_specialization", "--lang-pairs", ALL]
    options.parse_args_and_arch(parser, input_args=words, parse_known=True)
    return {action.dest: action for action in parser._actions}


# ---------------------------------------------------------------- heeded


class Generator:
    """What the search is made with, and which tokens it is given."""

    def __init__(self, translator: Translator) -> None:
        task = translator._task(EN_QA)
        self.generator = task.build_generator(translator.models, translator.cfg.generation)
        self.search = self.generator.search
        task.load_dataset("test")
        self.dataset, self.model = task.dataset("test"), translator.models[0]
        self.cfg, self.task = translator.cfg, task


# Attribute of a flag -> how it is given, and what it changes.
EFFECTS = {
    "beam": (["--beam", "3"], lambda g: g.generator.beam_size),
    "max_len_a": (["--max-len-a", "1"], lambda g: g.generator.max_len_a),
    "max_len_b": (["--max-len-b", "7"], lambda g: g.generator.max_len_b),
    "min_len": (["--min-len", "2"], lambda g: g.generator.min_len),
    "match_source_len": (["--match-source-len"], lambda g: type(g.search).__name__),
    "unnormalized": (["--unnormalized"], lambda g: g.generator.normalize_scores),
    "lenpen": (["--lenpen", "0.5"], lambda g: g.generator.len_penalty),
    "unkpen": (["--unkpen", "1"], lambda g: g.generator.unk_penalty),
    "temperature": (["--temperature", "2"], lambda g: g.generator.temperature),
    "no_repeat_ngram_size": (
        ["--no-repeat-ngram-size", "2"],
        lambda g: g.generator.repeat_ngram_blocker is None,
    ),
    "sampling": (["--sampling"], lambda g: type(g.search).__name__),
    "sampling_topk": (
        ["--sampling", "--sampling-topk", "3"],
        lambda g: getattr(g.search, "sampling_topk", None),
    ),
    "sampling_topp": (
        ["--sampling", "--sampling-topp", "0.5"],
        lambda g: getattr(g.search, "sampling_topp", None),
    ),
    "diverse_beam_groups": (["--diverse-beam-groups", "2"], lambda g: getattr(g.search, "num_groups", None)),
    "diverse_beam_strength": (
        ["--diverse-beam-groups", "2", "--diverse-beam-strength", "1"],
        lambda g: getattr(g.search, "diversity_strength", None),
    ),
    "diversity_rate": (["--diversity-rate", "0.3"], lambda g: getattr(g.search, "diversity_rate", None)),
    "retain_dropout": (["--retain-dropout"], lambda g: g.model.encoder.dropout_module.apply_during_inference),
    "retain_dropout_modules": (
        ["--retain-dropout", "--retain-dropout-modules", "SpecializedEncoder"],
        lambda g: (
            (g.model.encoder.dropout_module, g.model.decoder.dropout_module)
            and [m.dropout_module.apply_during_inference for m in (g.model.encoder, g.model.decoder)]
        ),
    ),
    "fp16": (["--fp16"], lambda g: next(g.model.parameters()).dtype),
    "bf16": (["--bf16"], lambda g: next(g.model.parameters()).dtype),
    "max_source_positions": (["--max-source-positions", "9"], lambda g: g.task.max_positions()),
    "max_target_positions": (["--max-target-positions", "9"], lambda g: g.task.max_positions()),
    "truncate_source": (
        ["--truncate-source", "--max-source-positions", "4"],
        lambda g: max(len(g.dataset[i]["source"]) for i in range(len(g.dataset))),
    ),
    "missing_direction": (["--missing-direction", "dense"], lambda g: g.model.encoder.missing_direction),
    "model_overrides": (
        ["--model-overrides", "{'dropped_neurons': 'zero'}"],
        lambda g: {fc1.dropped_neurons for fc1 in g.model.ffn_layers().values()},
    ),
}
# Those that are given to each batch, or refuse something; each has a test of its own below, or elsewhere.
ELSEWHERE = {
    *(
        "max_tokens",
        "batch_size",
        "cpu",
        "skip_invalid_size_inputs_valid_test",
    ),  # which sentences run together, where
    *("seed", "prefix_size", "post_process", "neuron_masks", "neuron_sets", "allow_other_checkpoint"),
    "fixed_dictionary",
}


def test_every_flag_of_fairseq_generate_is_heeded_or_refused():
    of_fairseq = actions()
    assert EFFECTS.keys() | ELSEWHERE == HEEDED | OURS
    assert of_fairseq.keys() >= HEEDED | OURS
    for name, action in of_fairseq.items():
        if name in (HEEDED | OURS) or not action.option_strings:
            continue
        # Some value that fairseq takes.
        value = next(
            (v for v in (*(action.choices or ()), 1, "{}") if _takes(action, v)), None
        )  # fmt: skip
        words = [action.option_strings[-1], *([] if action.nargs == 0 else [str(value)])]
        with pytest.raises(ModelError, match=f"--{name.replace('_', '-')}"):
            require_heeded(words)


def _takes(action, value) -> bool:
    try:
        return action.type is None or action.type(str(value)) is not None
    except Exception:
        return False


@pytest.mark.parametrize("name", sorted(EFFECTS))
def test_a_heeded_flag_reaches_the_search_the_text_or_the_model(translator, name):
    flags, effect = EFFECTS[name]
    with_it = effect(Generator(translator(*flags)))
    base = flags[: -2 if "--" + name.replace("_", "-") == flags[-2:][0] else 0]  # what it needs beside it
    assert with_it != effect(Generator(translator(*base)))


def log_of(workshop, checkpoint: Path, *flags: str, to: Path) -> dict[int, str]:
    """Hypotheses by fairseq-generate itself, SentencePiece joined."""
    module = importlib.import_module("fairseq_cli.generate")
    words = [
        "fairseq-generate", workshop.data_bin, "--task", "neuron_specialization", "--path", checkpoint, "-s", "en",
        "-t", "qa", "--langs", ",".join(workshop.langs), "--lang-pairs", "en-qa", "--encoder-langtok", "src",
        "--decoder-langtok", "--cpu", "--num-workers", 0, "--max-tokens", 500, "--beam", 4, "--remove-bpe", "sentencepiece",
        "--results-path", to, *SHORT, *flags,
    ]  # fmt: skip
    with mock.patch.object(sys, "argv", [*map(str, words)]):
        module.cli_main()
    text = (to / "generate-test.txt").read_text(encoding="utf-8")
    return {int(n): line for n, line in re.findall(r"^H-(\d+)\t[^\t]*\t(.*)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize(
    "flags",
    [
        ("--prefix-size", "3"),
        ("--model-overrides", "{'activation_fn': 'tanh'}"),
    ],
)
def test_translations_are_those_of_fairseq_generate(workshop, checkpoint, translator, tmp_path, flags):
    ours = translator(*flags).translate(EN_QA)
    theirs = log_of(workshop, checkpoint, *flags, to=tmp_path)
    assert theirs == {number: ours[number] for number in theirs} and len(theirs) > 10
    assert ours != translator().translate(EN_QA)


def test_a_prefix_is_the_references(translator):
    made = translator("--prefix-size", "3")
    beginnings = [line.split()[0] for line in made.references(EN_QA)]
    assert sum(h.startswith(r[:1]) for h, r in zip(made.translate(EN_QA), beginnings, strict=True)) == len(
        beginnings
    )


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("flags", "mend"),
    [
        (["--num-shards", "4", "--shard-id", "0"], "share the work out by directions"),
        (["--score-reference"], "run fairseq-generate with it"),
        (["--constraints"], "no constrained decoding"),
        (["--results-path", "x"], "kept below hypotheses/"),
        (["--gen-subset", "valid"], "before the --"),
        (["--path=x.pt"], "before the --"),
        (["--beam", "4"], "before the --"),
        (["-s", "en"], "--lang-pairs before the --"),
        (["--encoder-langtok", "tgt"], "read from the checkpoint"),
        (["--task", "translation"], "the task is"),
        (["--quiet"], "leave it out"),
        (["--nbest", "5"], "best hypothesis"),
        (["--print-alignment"], "best hypothesis"),
        (["--user-dir", "/anywhere"], "score its log"),
        (["--help"], "score its log"),
        (["--prefix-sise", "5"], "fairseq-generate --help"),
        (["stray"], "fairseq-generate --help"),
        (["--lenpen", "much"], "fairseq-generate --help"),
        (["--fp16", "--bf16"], "fairseq-generate --help"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "adapt"])
def test_what_would_be_ignored_is_refused_before_any_work(capsys, tmp_path, command, flags, mend):
    (tmp_path / "no-checkpoint.pt").touch()
    words = [
        command,
        str(tmp_path),
        "--path",
        str(tmp_path / "no-checkpoint.pt"),
        "--output",
        str(tmp_path / "out"),
    ]
    words += (
        ["--lang-pairs", "en-qa", "--shots", "0", "--steps", "1", "--lr", "1"] if command == "adapt" else []
    )
    assert main([*words, "--", *flags]) == 2
    assert mend in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model-overrides", "{"], "no Python dictionary"),
        (["--model-overrides", "[1]"], "no Python dictionary"),
        (["--post-process", "wordpieces"], "does not take"),
    ],
)
def test_values_that_make_no_sense_are_refused(translator, flags, said):
    with pytest.raises(ModelError, match=said):
        translator(*flags)


def test_languages_cannot_be_overridden(translator):
    with pytest.raises(ModelError, match="language flags differ"):
        translator("--model-overrides", "{'langs': ['qm', 'en', 'qa', 'qb']}")


# ---------------------------------------------------------------- sampling


def test_samples_are_drawn_again_whatever_was_translated_before(translator):
    flags = ("--sampling", "--beam", "1")
    first = translator(*flags)
    both = [first.translate(direction) for direction in parse_directions(ALL)]
    torch.rand(3)
    again = translator(*flags)
    assert [again.translate(direction) for direction in reversed(parse_directions(ALL))] == both[::-1]
    assert translator(*flags, "--seed", "1").translate(EN_QA) == both[0]
    assert translator(*flags, "--seed", "2").translate(EN_QA) != both[0]


def test_a_sampled_evaluation_goes_on_as_if_it_had_not_been_killed(workshop, checkpoint, tmp_path):
    command = [
        "evaluate",
        str(workshop.data_bin),
        "--path",
        str(checkpoint),
        "--cpu",
        "--beam",
        "1",
        "--output",
    ]
    end = ["--lang-pairs", ALL, "--", "--sampling", *SHORT]
    for name in ("one", "two"):
        assert main([*command, str(tmp_path / name), *end]) == 0
    kept = [tmp_path / "two" / "hypotheses" / f"{d}.txt" for d in ALL.split(",")]
    before = [path.read_text() for path in kept]
    kept[1].unlink()
    (tmp_path / "two" / "scores.json").unlink()
    assert main([*command, str(tmp_path / "two"), *end]) == 0
    assert [path.read_text() for path in kept] == before
    assert (tmp_path / "one" / "scores.csv").read_text() == (tmp_path / "two" / "scores.csv").read_text()


# ---------------------------------------------------------------- pieces


def test_pieces_are_joined_by_what_the_dictionary_holds():
    assert joining_of(["▁the", "▁dog", "s", "."], "d") == "sentencepiece"
    assert joining_of(["th@@", "e", "dog", "s"], "d") == "subword_nmt"
    assert joining_of(["▁", *"abcdefg"], "d") == "sentencepiece"
    words = [f"word{n}" for n in range(500)]
    for symbols in (words, ["▁", *words], ["a@@", *words], ["▁a", "b@@"], []):
        with pytest.raises(ArtifactError, match="does not tell"):
            joining_of(symbols, "d")


@pytest.fixture(scope="module")
def rewritten(workshop, tmp_path_factory):
    """The data-bin with its symbols written otherwise: the same ids, so that the checkpoint fits."""

    def copy(rewrite, name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "data-bin"
        shutil.copytree(workshop.data_bin, folder)
        for file in folder.glob("dict.*.txt"):
            lines = [line.rsplit(" ", 1) for line in file.read_text(encoding="utf-8").splitlines()]
            new = [f"{rewrite(number, symbol)} {count}\n" for number, (symbol, count) in enumerate(lines)]
            file.write_text("".join(new), encoding="utf-8")
        return folder

    return copy


def test_pieces_of_subword_nmt_are_joined_as_fairseq_joins_them(translator, rewritten):
    folder = rewritten(lambda n, _: f"p{n}@@" if n % 2 else f"w{n}", "subword-nmt")
    made = translator(data_bin=folder)
    dictionary = Dictionary.load(str(folder / "dict.qa.txt"))
    task = made._task(EN_QA)
    task.load_dataset("test")
    for number, line in enumerate(made.references(EN_QA)):
        target = task.dataset("test")[number]["target"][1:]  # without the language token
        assert line == dictionary.string(target, "subword_nmt", escape_unk=True)
        assert "@@" not in line.removesuffix("@@")
    assert any(" " in line for line in made.references(EN_QA))
    joined = made.translate(EN_QA)
    raw = translator("--post-process", "none", data_bin=folder).translate(EN_QA)
    assert [(line + " ").replace("@@ ", "").rstrip() for line in raw] == joined != raw


def test_a_dictionary_of_words_must_be_named_so(translator, rewritten):
    folder = rewritten(lambda n, _: f"w{n}", "words")
    with pytest.raises(ArtifactError, match="-- --post-process none"):
        translator(data_bin=folder)
    made = translator("--post-process", "none", data_bin=folder)
    assert all(re.fullmatch(r"(w\d+|<<unk>>)( w\d+| <<unk>>)*", line) for line in made.references(EN_QA))


def test_an_unknown_piece_of_a_reference_is_never_right(translator, rewritten, workshop):
    from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

    folder = rewritten(lambda _, symbol: symbol, "unknown")
    prefix = Path(f"{split_prefix(folder, 'test', EN_QA)}.qa")
    sentences = [torch.from_numpy(s.numpy().copy()) for s in MMapIndexedDataset(str(prefix))]
    builder = MMapIndexedDatasetBuilder(str(prefix.with_suffix(".qa.bin")), dtype=np.uint16)
    for sentence in sentences:
        sentence[0] = 3  # unk
        builder.add_item(sentence)
    builder.finalize(str(prefix.with_suffix(".qa.idx")))
    made = translator(data_bin=folder)
    assert all(line.startswith("<<unk>>") for line in made.references(EN_QA))
    unknown = torch.tensor([3, 2])
    task = made._task(EN_QA)
    assert made._text(unknown, task, {2}) == "<unk>"
