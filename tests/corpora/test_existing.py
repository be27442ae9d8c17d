"""A data-bin made by others: what is found in it, what is left in peace, and what is refused."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from neuron_spec.artifacts import read_json
from neuron_spec.cli.main import main
from neuron_spec.corpora import build, own_text
from neuron_spec.corpora.held_out import OwnText
from neuron_spec.corpora.parallel_files import find_files
from neuron_spec.languages import family_of

PAIRS = ("en-pt_BR", "deu_Latn-pt_BR", "en-tlh")
LANGS = ["deu_Latn", "en", "pt_BR", "tlh"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, pair in enumerate(PAIRS):
        for code in pair.split("-"):
            lines = (f"{code} word{i * 7 % 91} and word{i * 13 % 97} of {number}{i}" for i in range(200))
            (folder / f"train.{pair}.{code}").write_text("".join(f"{line}\n" for line in lines))
    text = OwnText(find_files([str(folder)], "--train"))
    own_text.build(
        text, folder / "out", families={code: family_of(code) for code in LANGS},
        sizes={"valid": 10, "test": 10}, vocab_size=150, workers=1, notes={},
    )  # fmt: skip
    return folder / "out" / "data-bin"


@pytest.fixture
def foreign(made: Path, tmp_path: Path) -> Path:
    """As others would have it: without lists, with a log."""
    folder = tmp_path / "theirs"
    shutil.copytree(made, folder)
    for name in ("langs.txt", "lang_pairs.txt"):
        (folder / name).unlink()
    (folder / "preprocess.log").write_text("Namespace(...)\n")
    return folder


def adopt(foreign: Path, *words: object) -> int:
    return main(
        ["data", "existing", str(foreign), "--output", str(foreign.parent / "ours"), *map(str, words)]
    )


def test_what_is_there_is_found_and_theirs_stays_as_it_is(foreign, capsys):
    before = {path: path.read_bytes() for path in foreign.iterdir()}
    assert adopt(foreign, "--families", "tlh=Klingonic") == 0
    ours = foreign.parent / "ours"
    card = build.card_of(ours / "data-bin")
    assert card["langs"] == LANGS == (ours / "data-bin" / "langs.txt").read_text().split()
    assert card["lang_pairs"] == (ours / "data-bin" / "lang_pairs.txt").read_text().strip().split(",")
    assert {*card["lang_pairs"]} == {*PAIRS, *("-".join(reversed(pair.split("-"))) for pair in PAIRS)}
    assert card["families"] == {
        "en": "Germanic",
        "deu_Latn": "Germanic",
        "pt_BR": "Romance",
        "tlh": "Klingonic",
    }
    assert {*card["pairs"]["test"].values()} == {10} and card["pairs"]["train"].keys() == {*PAIRS}
    assert {path: path.read_bytes() for path in foreign.iterdir()} == before
    for path in foreign.iterdir():
        assert (ours / "data-bin" / path.name).resolve() == path
    text = (ours / "raw" / "train.en-tlh.tlh").read_text().splitlines()
    assert len(text) == card["pairs"]["train"]["en-tlh"] and text[0].startswith("tlh word")
    assert adopt(foreign, "--families", "tlh=Klingonic") == 0
    assert "complete already" in capsys.readouterr().err


def test_the_order_of_languages_and_the_directions_may_be_a_checkpoints(foreign):
    assert (
        adopt(foreign, "--langs", "tlh,en,pt_BR", "--lang-pairs", "en-tlh,pt_BR-en", "--pivot", "none") == 0
    )
    card = read_json(foreign.parent / "ours" / "corpus.json", "card")
    assert card["langs"] == ["tlh", "en", "pt_BR"] and card["lang_pairs"] == ["en-tlh", "pt_BR-en"]
    assert card["pivot"] is None and card["pairs"]["train"].keys() == {"en-tlh", "en-pt_BR"}


def test_shards_are_counted_together(foreign, tmp_path):
    sharded = tmp_path / "sharded"
    for number in range(2):
        shutil.copytree(foreign, sharded / f"shard{number}")
    assert main(["data", "existing", str(sharded), "--output", str(tmp_path / "of-shards")]) == 0
    assert adopt(foreign) == 0
    one, two = (read_json(tmp_path / name / "corpus.json", "card") for name in ("ours", "of-shards"))
    assert two["pairs"]["train"] == {pair: 2 * number for pair, number in one["pairs"]["train"].items()}
    assert two["pairs"]["test"] == one["pairs"]["test"] and two["shards"] == 2
    assert (tmp_path / "of-shards/data-bin/shard1/train.en-tlh.en.idx").is_file()


def overwrite(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def unlink(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def cut_dictionary(folder: Path) -> None:
    for path in folder.glob("dict.*"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:9]))


def append_symbol(folder: Path) -> None:
    with (folder / "dict.tlh.txt").open("a") as file:
        file.write("extra 1\n")


def turn(folder: Path) -> None:
    for path in list(folder.glob("train.en-tlh.*")):
        shutil.copyfile(path, folder / path.name.replace("en-tlh", "tlh-en"))


def shorten(folder: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copyfile(folder / f"valid.en-tlh.en.{ending}", folder / f"train.en-tlh.en.{ending}")


def resize(number: int):
    """The first sentence of an index, of a size that none has."""

    def spoil(folder: Path) -> None:
        file = folder / "train.en-tlh.en.idx"
        content = bytearray(file.read_bytes())
        struct.pack_into("<i", content, 26, number)
        file.write_bytes(content)

    return spoil


def shift(folder: Path) -> None:
    """A token of the first sentence to the second, in their sizes and not in where they begin."""
    file = folder / "train.en-tlh.en.idx"
    content = bytearray(file.read_bytes())
    first, second = struct.unpack_from("<2i", content, 26)
    struct.pack_into("<2i", content, 26, first - 1, second + 1)
    file.write_bytes(content)


def rename_code(folder: Path) -> None:
    for path in list(folder.glob("*pt_BR*")):
        path.rename(folder / path.name.replace("pt_BR", "TLH"))


def shards_whose_first_lacks(split: str):
    def spoil(folder: Path) -> None:
        whole = folder.rename(folder.parent / "whole")
        for number in range(2):
            shutil.copytree(whole, folder / f"shard{number}")
        for path in (folder / "shard0").glob(f"{split}.en-tlh.*"):
            path.unlink()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "flags", "said"),
    [
        (append_symbol, [], ["dictionaries differ", "dict.tlh.txt"]),
        (unlink("dict.tlh.txt"), [], ["no dictionary of a language", "dict.tlh.txt"]),
        (cut_dictionary, [], ["pieces that its dictionary does not have", "less than"]),
        (unlink("train.en-tlh.tlh.idx", "train.en-tlh.tlh.bin"), [], ["one side of a set is missing", "tlh"]),
        (unlink("valid.en-tlh.tlh.bin"), [], ["data file not found", "valid.en-tlh.tlh.bin"]),
        (unlink(*(f"valid.en-tlh.{s}.{e}" for s in ("en", "tlh") for e in ("bin", "idx"))), [], ["lacks a valid set", "en-tlh"]),
        (unlink(*(f"test.en-tlh.{s}.{e}" for s in ("en", "tlh") for e in ("bin", "idx"))), [], ["lacks a test set", "en-tlh"]),
        (overwrite("train.en-tlh.en.bin", b"\1\0"), [], ["cut short"]),
        (overwrite("train.en-tlh.en.idx", b"version https://git-lfs.github.com/spec/v1\n"), [], ["git lfs pull"]),
        (overwrite("train.en-tlh.en.idx", struct.pack("<9sQBQ", b"TNTIDX\0\0\0", 1, 4, 3)), [], ["cannot be read"]),
        (shorten, [], ["two sides of a set are not parallel"]),
        (turn, [], ["there twice", "train.tlh-en"]),
        (resize(0), [], ["a sentence without a token", "train.en-tlh.en.idx", "sentence 1 has 0"]),
        (resize(-1), [], ["a sentence without a token", "sentence 1 has -1"]),
        (shift, [], ["does not begin where the one before it ends", "sentence 2, from byte"]),
        (rename_code, [], ["two codes differ in capitals alone", "TLH and tlh"]),
        (shards_whose_first_lacks("valid"), [], ["a shard lacks the valid set", "shard0", "valid.en-tlh"]),
        (shards_whose_first_lacks("test"), [], ["a shard lacks the test set", "shard0", "test.en-tlh"]),
        (shards_whose_first_lacks("train"), [], ["a shard lacks the train set", "shard0", "train.en-tlh"]),
        (lambda folder: [path.write_bytes(b"\xff\xfe\0") for path in folder.glob("dict.*")], [], ["a dictionary cannot be read"]),
        (unlink(), ["--lang-pairs", "en-deu_Latn"], ["a pair in neither direction", "en-deu_Latn"]),
        (unlink(), ["--lang-pairs", ","], ["no directions"]),
        (lambda folder: (folder / "shard1").mkdir(), [], ["lacks a shard", "shard1"]),
        (unlink(), ["--langs", "en,tlh"], ["bad --langs"]),
        (unlink(), ["--pivot", "fr"], ["no such language"]),
        (unlink(), ["--vocab-size", "9"], ["--vocab-size is a flag of other corpora"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_named_and_nothing_is_written(foreign, capsys, spoil, flags, said):
    spoil(foreign)
    assert adopt(foreign, *flags) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in said), message
    assert not (foreign.parent / "ours").exists()


@pytest.fixture
def other(foreign: Path, tmp_path: Path) -> Path:
    """A data-bin of the same counts and dictionary, whose sentences are others."""
    folder = shutil.copytree(foreign, tmp_path / "other")
    for path in folder.glob("train.en-tlh.*.bin"):
        ids = memoryview(bytearray(path.read_bytes())).cast("H")
        ids[0] = 5 if ids[0] != 5 else 6
        path.write_bytes(ids.tobytes())
    return folder


def test_another_data_bin_of_the_same_counts_is_not_the_same(foreign, other, capsys):
    assert adopt(foreign) == 0
    card = (foreign.parent / "ours" / "corpus.json").read_bytes()
    assert adopt(other) == 2
    assert "another corpus is already here" in capsys.readouterr().err
    assert (foreign.parent / "ours" / "corpus.json").read_bytes() == card
    assert (foreign.parent / "ours/data-bin/train.en-tlh.en.bin").resolve().parent == foreign


def test_the_same_at_another_place_is_complete_and_its_links_lead_there(foreign, capsys):
    assert adopt(foreign) == 0
    ours = foreign.parent / "ours"
    card, moved = (ours / "corpus.json").read_bytes(), foreign.rename(foreign.with_name("moved"))
    assert adopt(moved) == 0
    assert "complete already" in capsys.readouterr().err and (ours / "corpus.json").read_bytes() == card
    links = [path for path in (ours / "data-bin").iterdir() if path.is_symlink()]
    assert links and {path.resolve().parent for path in links} == {moved}


def test_one_that_was_begun_is_ended_and_another_not_mixed_into_it(foreign, other, capsys, monkeypatch):
    from neuron_spec.corpora import existing

    with monkeypatch.context() as patch:
        patch.setattr(existing, "write_card", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert adopt(foreign) == 130
    assert adopt(other) == 2
    assert "another begun corpus is already here" in capsys.readouterr().err
    assert adopt(foreign) == 0
    assert not (foreign.parent / "ours" / "work").exists()
    assert build.card_of(foreign.parent / "ours" / "data-bin")["name"] == "theirs"


def test_a_data_bin_without_test_sets_may_be_evaluated_on_another_set(foreign):
    for path in foreign.glob("test.*"):
        path.unlink()
    assert adopt(foreign) == 0
    assert read_json(foreign.parent / "ours" / "corpus.json", "card")["pairs"]["test"] == {}


def test_text_of_unknown_pieces_is_said(foreign, capsys):
    for path in foreign.glob("*.tlh.bin"):
        ids = memoryview(bytearray(path.read_bytes())).cast("H")
        path.write_bytes(
            b"".join(struct.pack("<H", 3 if i % 3 and id > 3 else id) for i, id in enumerate(ids))
        )
    assert adopt(foreign) == 0
    said = capsys.readouterr().err
    assert "the dictionary is of other text: unknown are" in said and "of tlh" in said and "of en" not in said


def test_folders_that_are_no_data_bin(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["data", "existing", str(folder), "--output", str(tmp_path / "out")]) == 2
        assert "no data-bin with training text" in capsys.readouterr().err
    assert main(["data", "existing", "--output", str(tmp_path / "out")]) == 2
    assert "which data-bin?" in capsys.readouterr().err


def test_a_data_bin_in_the_output_is_not_linked_onto_itself(foreign, capsys):
    shutil.move(foreign, foreign.parent / "ours" / "data-bin")
    assert adopt(foreign.parent / "ours" / "data-bin", "--output", foreign.parent / "ours") == 2
    assert "cannot be adopted where it is" in capsys.readouterr().err
