"""How a user's files are named, found and read, and what is said of those that cannot be."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from neuron_spec.corpora.parallel_files import find_files
from neuron_spec.errors import ArtifactError, CorpusError, DirectionError

EN, DE = "one\ntwo\n", "eins\nzwei\n"
LINES = [("one", "eins"), ("two", "zwei")]


def write(folder: Path, **contents: str | bytes) -> Path:
    """Files by name, ``__`` in place of a dot and ``_to_`` of a hyphen."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / name.replace("__", ".").replace("_to_", "-")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "text", train__en_to_de__en=EN, train__en_to_de__de=DE)


def lines_of(*names: str) -> dict[str, list[tuple[str, str]]]:
    return {str(files.pair): list(files.lines()) for files in find_files(names, "--train")}


@pytest.mark.parametrize(
    "names",
    [
        ["text/train"],
        ["text/train.en-de"],
        ["text"],
        ["en-de=text/train.en-de.{en,de}"],
        ["en-de=text/train.en-de.{de,en}"],  # the endings know better than the order
        ["en-de=text/train.en-de.en", "en-de=text/train.en-de.de"],  # braces expanded by the shell
        ["en-de=text/train.en-de.de", "en-de=text/train.en-de.en"],
        ["en-de=text/train.en-de.en,text/train.en-de.de"],
    ],
)
def test_every_way_of_naming_gives_the_same_lines(text, names):
    assert lines_of(*names) == {"en-de": LINES}


def test_of_endings_that_are_no_codes_the_order_counts(text):
    write(text, english__txt=EN, german__txt=DE)
    assert lines_of("de-en=text/german.txt,text/english.txt") == {"de-en": [("eins", "one"), ("zwei", "two")]}


def test_gzip_tsv_and_codes_of_other_kinds_stand_beside_each_other(text):
    write(text, train__pt_BR_to_deu_Latn__tsv__gz=gzip.compress(b"um\teins\ndois\tzwei\n"))
    write(
        text, train__en_to_zh_Hans__en__gz=gzip.compress(EN.encode()), train__en_to_zh_Hans__zh_Hans="x\ny\n"
    )
    write(text, README__md="no text", **{"train__en_to_de__ids": "1\n2\n", "traineriest__en_to_fr__en": EN})
    found = lines_of("text/train")
    assert found["pt_BR-deu_Latn"] == [("um", "eins"), ("dois", "zwei")]
    assert found["en-zh_Hans"] == [("one", "x"), ("two", "y")]
    assert found.keys() == {"en-de", "pt_BR-deu_Latn", "en-zh_Hans"}


def test_a_header_of_a_tsv_file_says_which_column_is_which(text):
    write(text, a__tsv="de\ten\neins\tone\nzwei\ttwo\n")
    assert lines_of("en-de=text/a.tsv") == {"en-de": LINES}


def test_windows_files_are_read_without_their_marks(text):
    write(text, a__tsv="\ufeffone\teins\r\ntwo\tzwei\r\n")
    assert lines_of("en-de=text/a.tsv") == {"en-de": LINES}


def test_only_a_line_feed_ends_a_line(text):
    write(text, train__en_to_de__en="one\u2028still one\x85\ntwo\n")
    assert [source.split()[0] for source, _ in lines_of("text/train")["en-de"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("contents", "names", "said"),
    [
        ({"train__en_to_de__de": "eins\n"}, ["text/train"], ["not parallel", "en: 2 lines, de: 1 lines"]),
        ({"train__en_to_de__en": "one\n"}, ["text/train"], ["not parallel", "en: 1 lines, de: 2 lines"]),
        ({"train__en_to_de__en": "", "train__en_to_de__de": ""}, ["text/train"], ["an empty file"]),
        ({"train__en_to_de__en": b"\x89PNG\r\n\x1a\n\0\0"}, ["text/train"], ["not UTF-8", "line 1"]),
        ({"train__en_to_de__en": "one\ntwo\n".encode("utf-16")}, ["text/train"], ["not UTF-8"]),
        ({"train__en_to_de__en": b"one\nt\xfcr\n"}, ["text/train"], ["not UTF-8", "line 2", "0xfc"]),
        ({"a__tsv": "one\teins\ntwo\tzwei\t0.9\n"}, ["en-de=text/a.tsv"], ["line 2", "3 columns"]),
        ({"a__tsv": "one eins\n"}, ["en-de=text/a.tsv"], ["line 1", "1 columns"]),
        ({"a__tsv": ""}, ["en-de=text/a.tsv"], ["an empty file"]),
        (
            {"train__en_to_de__en": gzip.compress(EN.encode() * 999)[:-20]},
            ["text/train"],
            ["gzip file is damaged"],
        ),
        ({"train__en_to_fr__en": EN}, ["text/train"], ["one side of en-fr is missing", "a file of fr"]),
        ({}, ["en-de=text/train.en-de.de"], ["one side of en-de is missing", "a file of en"]),
        ({}, ["en-fr=text/train.en-fr.{en,fr}"], ["a file of en-fr not found", "train.en-fr.fr"]),
        ({}, ["text/absent"], ["leads to no parallel files"]),
        ({}, ["absent/train"], ["leads to no parallel files"]),
        ({}, ["text/train.en-de.en"], ["without saying of which languages"]),
        (
            {"train__de_to_en__tsv": "eins\tone\n"},
            ["text/train"],
            ["names a pair twice", "de-en and en-de"],
        ),
        (
            {"more__en_to_de__en": EN, "more__en_to_de__de": DE},
            ["text"],
            ["more than one file for a side of en-de"],
        ),
        ({}, ["text/train", "en-de=text/train.en-de.{en,de}"], ["more than one file for a side"]),
        ({}, ["en-de=text/train.en-de.en,text/train.en-de.en"], ["more than one file for a side"]),
        ({}, ["de-de=text/train.en-de.de,text/train.en-de.en"], ["a pair of one language"]),
    ],
)
def test_files_that_cannot_be_used_are_named(text, contents, names, said):
    write(text, **contents)
    with pytest.raises(CorpusError) as refusal:
        lines_of(*names)
    assert all(part in str(refusal.value) for part in said), refusal.value


@pytest.mark.parametrize("pair", ["zh-Hans-en", "pt-BR-en"])
def test_a_code_with_a_hyphen_is_refused_with_what_to_write(text, pair):
    with pytest.raises(DirectionError, match=r"zh_Hans|pt_BR"):
        find_files([f"{pair}=text/train.en-de.{{en,de}}"], "--train")
    name = f"x__{pair.replace('-', '_to_')}__en"
    write(text, **{name: EN})
    (text / f"x.{pair}.{pair.removesuffix('-en')}").write_text(DE)
    with pytest.raises(DirectionError, match=r"zh_Hans|pt_BR"):
        find_files(["text/x"], "--train")


def test_a_git_lfs_pointer_is_no_text(text):
    write(text, train__en_to_de__en="version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ArtifactError, match="git lfs pull"):
        lines_of("text/train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(text):
    (text / "train.en-de.en").chmod(0)
    with pytest.raises(CorpusError, match="cannot be read"):
        lines_of("text/train")
