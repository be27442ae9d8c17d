"""The language tag is found where fairseq's tasks put it, and only there."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from neuron_spec.backends.fairseq.language_tags import language_tags, text_positions

PAD, EOS = 1, 2


@pytest.fixture
def text_folder(tmp_path) -> Any:
    """A data-bin of one direction, en_XX-de_DE, by fairseq-preprocess: three sentences of one letter a word."""
    from fairseq_cli import preprocess

    for lang, lines in {"en_XX": "a b\na\nb a a\n", "de_DE": "c d\nd d d\nc\n"}.items():
        for split in ("train", "valid"):
            (tmp_path / f"{split}.{lang}").write_text(lines)
    flags = ["--source-lang", "en_XX", "--target-lang", "de_DE", "--destdir", str(tmp_path / "bin")]
    flags += ["--trainpref", str(tmp_path / "train"), "--validpref", str(tmp_path / "valid")]
    preprocess.main(
        options.get_preprocessing_parser().parse_args([*flags, "--workers", "1", "--joined-dictionary"])
    )
    return tmp_path / "bin"


def task_of(name: str, folder: Any, *flags: str) -> Any:
    given = [
        "--task",
        name,
        str(folder),
        *flags,
        "--criterion",
        "cross_entropy",
        "--arch",
        "transformer_tiny",
    ]
    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, input_args=given)
    task = tasks.setup_task(convert_namespace_to_omegaconf(args).task)
    if name == "translation_from_pretrained_bart":
        task.args = task.cfg  # fairseq forgets it there, and uses it
    return task


def words(task: Any, text: torch.Tensor, target: torch.Tensor) -> list[str]:
    """What is left of each target."""
    return [
        task.target_dictionary.string(row[kept], include_eos=True)
        for row, kept in zip(target, text, strict=True)
    ]


MULTI = ("--langs", "en_XX,de_DE,fr_XX", "--lang-pairs", "en_XX-de_DE", "--sampling-method", "temperature")
TEXT = {"c d </s>", "d d d </s>", "c </s>"}


@pytest.mark.parametrize(
    ("name", "flags", "tags", "first", "last"),
    [
        ("translation", ("-s", "en_XX", "-t", "de_DE"), [], None, None),
        (
            "translation_multi_simple_epoch",
            (*MULTI, "--decoder-langtok"),
            ["__en_XX__", "__de_DE__", "__fr_XX__"],
            "__de_DE__",
            None,
        ),
        (
            "translation_multi_simple_epoch",
            (*MULTI, "--decoder-langtok", "--lang-tok-style", "mbart"),
            ["[en_XX]", "[de_DE]", "[fr_XX]"],
            "[de_DE]",
            None,
        ),
        (
            "translation_multi_simple_epoch",
            (*MULTI, "--encoder-langtok", "tgt"),
            ["__en_XX__", "__de_DE__", "__fr_XX__"],
            None,
            None,
        ),
        (
            "translation_from_pretrained_bart",
            ("-s", "en_XX", "-t", "de_DE", "--langs", "en_XX,de_DE"),
            ["[en_XX]", "[de_DE]"],
            None,
            "[de_DE]",
        ),
    ],
)
def test_every_task_of_fairseq_has_its_tags_found(name, flags, tags, first, last, text_folder):
    task = task_of(name, text_folder, *flags)
    found = language_tags(task)
    assert {task.target_dictionary[i] for i in found} == set(tags)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    target = dataset.collater([dataset[i] for i in range(3)])["target"]
    text = text_positions(target, found, padding=PAD)
    assert set(words(task, text, target)) == TEXT
    tagged = [
        task.target_dictionary.string(row[kept])
        for row, kept in zip(target, target.ne(PAD) & ~text, strict=True)
    ]
    assert tagged == [first or last or ""] * 3
    assert (
        first is None or (~text[:, 0]).all()
    )  # where fairseq puts it: first, or as mBART does after the end
    assert last is None or all(row[row.ne(PAD)][-1] in found for row in target)


def test_multilingual_translation_has_the_tag_in_no_target(text_folder):
    task = task_of(
        "multilingual_translation", text_folder, "--lang-pairs", "en_XX-de_DE", "--decoder-langtok"
    )
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    dataset.ordered_indices()  # which it wants to have been asked
    target = dataset.collater([dataset[i] for i in range(3)])["en_XX-de_DE"]["target"]
    assert set(words(task, text_positions(target, language_tags(task), padding=PAD), target)) == TEXT


def test_a_language_that_the_dictionary_lacks_makes_no_word_a_tag():
    dictionary = Dictionary()
    known = dictionary.add_symbol("__de__")
    task = SimpleNamespace(args=argparse.Namespace(), langs=["de", "fr"], target_dictionary=dictionary)
    assert language_tags(task).tolist() == [known]
    target = torch.tensor([[known, dictionary.unk(), EOS, PAD]])
    assert text_positions(target, language_tags(task), padding=PAD).tolist() == [[False, True, True, False]]


def test_tokens_of_other_kinds_of_data_are_tags_too():
    dictionary = Dictionary()
    known = [dictionary.add_symbol(symbol) for symbol in ("__de__", "__de_dae__")]
    args = argparse.Namespace(lang_tok_style="multilingual", langtoks_specs=["main", "mono_dae"])
    task = SimpleNamespace(args=args, langs=["de"], target_dictionary=dictionary)
    assert language_tags(task).tolist() == known


def test_without_tags_all_but_padding_is_text():
    target = torch.tensor([[5, 6, EOS], [7, EOS, PAD]])
    text = text_positions(target, torch.tensor([], dtype=torch.int64), padding=PAD)
    assert torch.equal(text, target.ne(PAD))
