import shutil
from pathlib import Path

import pytest

from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, files_of, split_prefix
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError

LANGS = ["en", "qa", "qb", "qm"]
DIRECTIONS = parse_directions("en-qa,qa-en,qb-en")


@pytest.fixture
def copy(data_bin, tmp_path) -> Path:
    return Path(shutil.copytree(data_bin, tmp_path / "data-bin"))


def test_a_complete_data_bin_passes(data_bin):
    for split in ("train", "valid", "test"):
        check_data_bin(data_bin, LANGS, split, DIRECTIONS)


def test_both_directions_share_their_files(data_bin):
    assert split_prefix(data_bin, "valid", Direction("en", "qa")) == data_bin / "valid.qa-en"
    assert split_prefix(data_bin, "valid", Direction("qa", "en")) == data_bin / "valid.qa-en"
    assert len(files_of(data_bin, "valid", DIRECTIONS)) == 2 * 2 * 2  # pairs, languages, .bin and .idx


def test_missing_folder(tmp_path):
    with pytest.raises(ArtifactError, match="data-bin not found"):
        check_data_bin(tmp_path / "absent", LANGS, "valid", DIRECTIONS)


def test_missing_dictionary(copy):
    (copy / "dict.qb.txt").unlink()
    check_data_bin(copy, LANGS, "valid", DIRECTIONS[:2])
    with pytest.raises(ArtifactError, match="no dictionary of qb"):
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)


def test_dictionaries_of_one_side_are_one(copy):
    file = copy / "dict.qb.txt"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line.replace(" 1\n", " 7\n") for line in lines))  # counts do not matter
    check_data_bin(copy, LANGS, "valid", DIRECTIONS)
    file.write_text("".join([*lines[:-2], lines[-1], lines[-2]]))
    check_data_bin(copy, LANGS, "valid", parse_directions("qb-en"))  # a side each
    with pytest.raises(ArtifactError, match="dictionaries of one side differ") as caught:
        check_data_bin(copy, LANGS, "valid", parse_directions("en-qa,qb-en,qa-en"))
    assert "dict.qb.txt beside dict.en.txt" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"word\n", b"a 1\na 1\n"])
def test_a_dictionary_that_is_none(copy, content):
    (copy / "dict.qa.txt").write_bytes(content)
    with pytest.raises(ArtifactError, match="a dictionary cannot be read") as caught:
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)
    assert "dict.qa.txt" in str(caught.value)


@pytest.mark.parametrize("size", [0, -1])
def test_a_sentence_without_a_token(copy, size):
    file = copy / "valid.qa-en.qa.idx"
    content = bytearray(file.read_bytes())
    content[26:30] = size.to_bytes(4, "little", signed=True)
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="a sentence without a token"):
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)


def test_missing_split_or_direction(copy):
    with pytest.raises(ArtifactError, match="no dev set for en-qa"):
        check_data_bin(copy, LANGS, "dev", DIRECTIONS)
    with pytest.raises(ArtifactError, match="no valid set for qa-qb"):
        check_data_bin(copy, LANGS, "valid", [Direction("qa", "qb")])


@pytest.mark.parametrize("ending", ["qb.bin", "en.bin", "en.idx"])
def test_missing_file(copy, ending):
    (copy / f"valid.qb-en.{ending}").unlink()
    with pytest.raises(ArtifactError, match="not found") as caught:
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)
    assert ending in str(caught.value)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file(copy, ending, kept):
    file = copy / f"valid.qa-en.qa{ending}"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ArtifactError, match=r"cut short|cannot be read"):
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)


@pytest.mark.parametrize("size", range(0, 34))
def test_an_index_of_any_few_bytes_is_refused(copy, size):
    file = copy / "valid.qa-en.qa.idx"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"cut short|cannot be read"):
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)


def test_truncated_data_is_refused_by_the_task(workshop, copy):
    other = type(workshop)(copy)
    (copy / "valid.qm-en.en.bin").write_bytes(b"")
    _, task, _ = other.build()
    with pytest.raises(ArtifactError, match="cut short"):
        task.load_dataset("valid")


def test_the_hash_follows_the_split_and_its_directions(data_bin, copy):
    before = data_sha256(data_bin, "valid", DIRECTIONS)
    assert data_sha256(copy, "valid", DIRECTIONS) == before
    assert data_sha256(data_bin, "test", DIRECTIONS) != before
    assert data_sha256(data_bin, "valid", DIRECTIONS[:2]) != before
    with (copy / "valid.qm-en.en.bin").open("ab") as file:
        file.write(b"x")
    assert data_sha256(copy, "valid", DIRECTIONS) == before
    with (copy / "valid.qb-en.en.bin").open("ab") as file:
        file.write(b"x")
    assert data_sha256(copy, "valid", DIRECTIONS) != before


@pytest.mark.parametrize("name", ["dict.qb.txt", "valid.qa-en.qa.idx", "valid.qa-en.en.bin"])
def test_git_lfs_pointers_are_no_data(copy, name):
    (copy / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(ArtifactError, match="git lfs pull"):
        check_data_bin(copy, LANGS, "valid", DIRECTIONS)
