"""On EC30 in miniature (`tiny_ec30`): a few of its languages, built once, and its faults."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import tiny_ec30
from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from neuron_spec.artifacts import hash_file, read_json
from neuron_spec.cli.main import main
from neuron_spec.corpora import ec30, ec30_plain, sharding
from neuron_spec.corpora.binarize import decoded, sentences_in
from neuron_spec.corpora.build import card_of, load_pieces, raw_file
from neuron_spec.corpora.ec30_text import PlainText, latin, sentence_key
from neuron_spec.errors import ArtifactError, CorpusError

LANGS = ["de", "oc", "sr", "am"]  # oc: not in NTREX-128; sr: Cyrillic in FLORES-200; am: a script of its own
SHARDS = 3
VOCAB = 500


def build(text: PlainText, output: Path, **changed) -> Path:
    settings = {"langs": LANGS, "vocab_size": VOCAB, "workers": 1, "shards": SHARDS} | changed
    ec30_plain.build(text, output, **settings)
    return output


def plain(folder: Path, **options) -> PlainText:
    return PlainText(**vars(tiny_ec30.write(folder, langs=LANGS, **options)))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> PlainText:
    return plain(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def built(text, tmp_path_factory) -> Path:
    return build(text, tmp_path_factory.mktemp("built"))


@pytest.fixture
def own_text(tmp_path) -> PlainText:
    return plain(tmp_path / "text")


@pytest.fixture
def tree(built, tmp_path) -> Path:
    return tiny_ec30.downloaded(built, tmp_path) / "fairseq-data-bin-sharded"


def hashes(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hash_file(file) for file in files}


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def shard_text(folder: Path, name: str) -> list[str]:
    return list(decoded(folder / name, folder / "dict.en.txt"))


def training_text(built: Path, lang: str) -> list[tuple[str, str]]:
    """Pairs of all shards in order."""
    folders = [built / "data-bin" / f"shard{shard}" for shard in range(SHARDS)]
    sides = ([t for f in folders for t in shard_text(f, f"train.{lang}-en.{code}")] for code in (lang, "en"))
    return list(zip(*sides, strict=True))


# ------------------------------------------------------------------ the table


def test_thirty_languages_two_of_each_family_in_each_tier():
    assert len(ec30.LANGUAGES) == 30
    groups = Counter((row.family, row.tier) for row in ec30.LANGUAGES.values())
    assert len(groups) == 15
    assert set(groups.values()) == {2}
    assert [code for code, row in ec30.LANGUAGES.items() if not row.ntrex] == ["oc"]


def test_unknown_or_repeated_languages_are_refused():
    with pytest.raises(CorpusError, match="no such language"):
        ec30.choose(["de", "fi"])
    with pytest.raises(CorpusError, match="twice"):
        ec30.choose(["de", "de"])


# ------------------------------------------------------------------ built from text


def test_shards_hold_all_clean_pairs_once_and_in_order(built):
    held_out = set(
        tiny_ec30.english_sentences(tiny_ec30.VALID + tiny_ec30.DEV + tiny_ec30.DEVTEST, "held out")
    )
    clean = tiny_ec30.training_pairs(ec30.LANGUAGES["de"], next(iter(held_out)))[: -tiny_ec30.FAULTY]
    assert training_text(built, "de") == clean


def test_shards_are_equal_parts(built):
    sizes = [
        sentences_in(built / "data-bin" / f"shard{shard}" / "train.de-en.de.idx") for shard in range(SHARDS)
    ]
    assert sizes == [200, 200, 200 - tiny_ec30.FAULTY]


def test_every_rule_is_counted_and_the_counts_add_up(built):
    card = read_json(built / "corpus.json", "card")
    assert card["dropped_in_cleaning"]["de"] == {
        "empty": 1,
        "not 1 to 256 pieces": 1,
        "piece ratio above 3": 1,
        "English of a test pair": 1,
    }
    for lang in LANGS:
        dropped = sum(card["dropped_in_cleaning"][lang].values())
        assert card["pairs"]["train"][lang] + dropped == card["lines_read"][lang]
        assert card["pairs"]["train"][lang] == len(training_text(built, lang))


def test_no_held_out_sentence_is_trained_on(built):
    for lang in LANGS:
        for side, code in enumerate((lang, "en")):
            trained = {pair[side] for pair in training_text(built, lang)}
            for split in ("valid", "test"):
                assert not trained & set(lines(built / "raw" / f"{split}.{lang}-en.{code}"))


def test_tokenised_duplicates_are_found():
    assert sentence_key("A well-known cat.") == sentence_key("A well @-@ known cat .")
    assert sentence_key("A cat.") != sentence_key("a cat.")


def test_occitan_is_validated_on_sampled_training_pairs(built, text):
    card = read_json(built / "corpus.json", "card")
    assert card["validation_sampled_from_training"] == {"oc": 30}
    assert card["dropped_in_cleaning"]["oc"]["sampled for validation"] == 30
    pairs = set(zip(lines(text.train_file("oc", "oc")), lines(text.train_file("oc", "en")), strict=True))
    sampled = set(zip(*(lines(built / "raw" / f"valid.oc-en.{code}") for code in ("oc", "en")), strict=True))
    assert sampled <= pairs
    assert sampled != set(list(pairs)[: len(sampled)])


def test_serbian_is_in_latin_script(built):
    assert latin("Ђорђе воли Његошеве џепове и Љиљу, 3") == "Đorđe voli Njegoševe džepove i Ljilju, 3"
    assert lines(built / "raw" / "test.sr-en.sr")[0] == tiny_ec30.translated(
        lines(built / "raw" / "test.sr-en.en")[0], ec30.LANGUAGES["sr"]
    )


def test_the_shape_that_fairseq_reads(built):
    data_bin = built / "data-bin"
    assert lines(data_bin / "langs.txt") == ["en", *LANGS]
    assert (data_bin / "lang_pairs.txt").read_text().strip() == ",".join(f"en-{x},{x}-en" for x in LANGS)
    assert sorted(path.name for path in data_bin.iterdir() if path.is_dir()) == ["shard0", "shard1", "shard2"]
    assert len({hash_file(file) for file in data_bin.glob("shard*/dict.*.txt")}) == 1
    assert len({hash_file(file) for file in data_bin.glob("shard*/valid.de-en.de.bin")}) == 1
    assert len(list(data_bin.glob("shard*/valid.*.idx"))) == SHARDS * 2 * len(LANGS)
    assert len(list(data_bin.glob("shard0/test.*.idx"))) == len(list(data_bin.glob("shard*/test.*.idx"))) == 8
    assert shard_text(data_bin / "shard0", "test.am-en.am") == lines(built / "raw" / "test.am-en.am")
    assert len(lines(built / "raw" / "test.am-en.am")) == tiny_ec30.DEV + tiny_ec30.DEVTEST


def test_our_writer_gives_the_bytes_of_fairseqs(built, tmp_path):
    shard = built / "data-bin" / "shard1"
    (tmp_path / "train.am-en.am").write_text(
        "".join(f"{line}\n" for line in shard_text(shard, "train.am-en.am")), encoding="utf-8"
    )
    dictionary = Dictionary.load(str(shard / "dict.am.txt"))
    pieces = load_pieces(built / "spm" / "sentencepiece.model")
    FileBinarizer.multiprocess_dataset(
        str(tmp_path / "train.am-en.am"),
        "mmap",
        VocabularyDatasetBinarizer(
            dictionary, tokenize=lambda line: pieces.encode(line.strip(), out_type=str)
        ),
        str(tmp_path / "train.am-en.am"),
        vocab_size=len(dictionary),
    )
    for ending in ("bin", "idx"):
        assert hash_file(tmp_path / f"train.am-en.am.{ending}") == hash_file(
            shard / f"train.am-en.am.{ending}"
        )


def test_card_and_raw_text_are_found_from_a_shard(built):
    shards = built / "data-bin" / "shard0"
    for data_bin in (built / "data-bin", shards, f"{shards}:{built / 'data-bin' / 'shard1'}"):
        assert card_of(data_bin)["name"] == "ec30"
        assert raw_file(data_bin, "test", "en", "de", "de") == built / "raw" / "test.de-en.de"


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_bytes(text, built, tmp_path, monkeypatch):
    write = ec30_plain._PartBinarizer._write
    done = []

    def stopped(self, lang, shard):
        if len(done) == 4:
            (tmp_path / "data-bin" / "shard0" / ".left.bin.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append((lang, shard))
        return write(self, lang, shard)

    monkeypatch.setattr(ec30_plain._PartBinarizer, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(text, tmp_path)
    monkeypatch.setattr(ec30_plain._PartBinarizer, "_write", write)
    first = tmp_path / "data-bin" / "shard0" / "train.de-en.de.bin"
    before = first.stat().st_mtime_ns
    with pytest.raises(ArtifactError, match="another begun corpus"):
        build(text, tmp_path, vocab_size=VOCAB + 1)
    build(text, tmp_path, workers=2)
    assert first.stat().st_mtime_ns == before, "a finished part was made again"
    assert hashes(tmp_path) == hashes(built)


def test_a_finished_build_is_left_alone(text, built):
    before = {file: file.stat().st_mtime_ns for file in built.rglob("*")}
    build(text, built)
    assert {file: file.stat().st_mtime_ns for file in built.rglob("*")} == before
    with pytest.raises(ArtifactError, match="another corpus"):
        build(text, built, seed=2)


def test_a_given_sentencepiece_model_is_used(text, built, tmp_path):
    model = built / "spm" / "sentencepiece.model"
    build(text, tmp_path, sentencepiece_model=model, langs=["am"])
    assert hash_file(tmp_path / "spm" / "sentencepiece.model") == hash_file(model)
    name = "data-bin/shard2/train.am-en.am.bin"
    assert hash_file(tmp_path / name) == hash_file(built / name)


def test_held_out_text_is_tokenised_where_training_text_is(tmp_path):
    pytest.importorskip("sacremoses")
    build(plain(tmp_path / "text", punctuation="."), tmp_path / "out", langs=["de"])
    for name in ("test.de-en.de", "valid.de-en.en"):
        assert all(line.endswith(" .") for line in lines(tmp_path / "out" / "raw" / name))
    assert "Moses" in read_json(tmp_path / "out" / "corpus.json", "card")["held_out_text"]


def test_the_estimate_is_on_the_safe_side(text, built):
    plan = ec30_plain.plan(text, langs=LANGS, workers=1, learns_pieces=True)
    written = sum(file.stat().st_size for file in (built / "data-bin").glob("shard*/train.*"))
    assert written < plan.disk_bytes < 10 * written
    assert plan.pairs == pytest.approx(
        sum(tiny_ec30.TIER_PAIRS[ec30.LANGUAGES[x].tier] for x in LANGS), abs=2
    )


# ------------------------------------------------------------------ faults of the text, found before the work


def edit(file: Path, change) -> None:
    file.write_bytes(change(file.read_bytes()))


def drop_last_line(content: bytes) -> bytes:
    return content[: content[:-1].rindex(b"\n") + 1]


FAULTS_OF_TEXT = {
    "missing training text": (
        lambda t: t.train_file("am", "am").unlink(),
        "1 of EC30's text files not found",
    ),
    "missing test set": (lambda t: t.test_file("am", "devtest").unlink(), "text files not found"),
    "missing validation set": (lambda t: t.valid_file("am").unlink(), "text files not found"),
    "unequal sides": (lambda t: edit(t.train_file("am", "en"), drop_last_line), "en-am are not parallel"),
    "unequal test set": (lambda t: edit(t.test_file("am", "dev"), drop_last_line), "set is not parallel"),
    "empty test line": (
        lambda t: edit(t.test_file("am", "dev"), lambda c: b"\n" + c[c.index(b"\n") + 1 :]),
        "empty line in a held-out set",
    ),
    "Latin-1": (lambda t: edit(t.train_file("am", "en"), lambda c: c + b"caf\xe9\n"), "line 301"),
    "UTF-16": (
        lambda t: edit(t.train_file("am", "en"), lambda c: c.decode().encode("utf-16-le")),
        "not UTF-8 text",
    ),
    "cut inside a character": (lambda t: edit(t.train_file("am", "am"), lambda c: c[:-2]), "not UTF-8 text"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_TEXT)
def test_faults_of_text_are_found_before_the_work(own_text, tmp_path, fault):
    damage, message = FAULTS_OF_TEXT[fault]
    damage(own_text)
    with pytest.raises(CorpusError, match=message):
        build(own_text, tmp_path / "out")
    assert not (tmp_path / "out" / "spm").exists()


def test_too_little_disk(text, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CorpusError, match="too little disk"):
        build(text, tmp_path / "out")
    assert not (tmp_path / "out" / "raw").exists()


# ------------------------------------------------------------------ the downloaded data-bin


def test_a_downloaded_tree_is_linked_and_described(built, tree, tmp_path):
    out = tmp_path / "out"
    for given in (tree.parent, tree):  # the second time it is complete
        ec30.adopt_data_bin(given, out, langs=LANGS, shards=SHARDS)
    card, built_card = (read_json(folder / "corpus.json", "card") for folder in (out, built))
    for key in ("pairs", "langs", "lang_pairs", "families", "tiers"):
        assert card[key] == built_card[key]
    assert card["vocabulary"]["size"] == VOCAB - 3  # fairseq's dictionary has its own three specials
    assert all((out / "data-bin" / f"shard{n}").resolve() == tree / f"shard{n}" for n in range(SHARDS))
    assert lines(out / "data-bin" / "langs.txt") == lines(built / "data-bin" / "langs.txt")
    assert lines(out / "raw" / "train.de-en.en")[:50] == [pair[1] for pair in training_text(built, "de")[:50]]
    with pytest.raises(ArtifactError, match="another corpus"):
        ec30.adopt_data_bin(tree, out, langs=LANGS[:2], shards=SHARDS)


def test_another_content_of_a_tree_is_another_corpus_and_its_links_stay(tree, tmp_path):
    """Of as many sentences and bytes: two pieces change places."""
    out, other = tmp_path / "out", tmp_path / "other"
    ec30.adopt_data_bin(tree, out, langs=LANGS, shards=SHARDS)
    shutil.copytree(tree, other)
    edit(other / "shard1" / "train.en-am.am.bin", lambda c: c[2:4] + c[:2] + c[4:])
    with pytest.raises(ArtifactError, match="another corpus"):
        ec30.adopt_data_bin(other, out, langs=LANGS, shards=SHARDS)
    assert (out / "data-bin" / "shard1").resolve() == tree / "shard1"
    shutil.move(tree, tmp_path / "moved")  # the same elsewhere
    ec30.adopt_data_bin(tmp_path / "moved", out, langs=LANGS, shards=SHARDS)
    assert (out / "data-bin" / "shard1").resolve() == tmp_path / "moved" / "shard1"


def test_pieces_that_the_dictionary_does_not_have_are_refused(tree, tmp_path):
    edit(tree / "shard1" / "train.en-am.am.bin", lambda c: b"\xf0\xff" + c[2:])
    with pytest.raises(ArtifactError, match="no pieces for"):
        ec30.adopt_data_bin(tree, tmp_path / "out", langs=LANGS, shards=SHARDS)
    assert not (tmp_path / "out").exists()


def cut(file: Path, kept: float) -> None:
    edit(file, lambda content: content[: int(kept * len(content))])


def fewer_valid(shard: Path) -> None:
    """Another shard's validation set is that of another language: as many on both sides, but fewer."""
    for code, ending in ((code, ending) for code in ("am", "en") for ending in ("bin", "idx")):
        source = "oc" if code == "am" else "en"
        shutil.copy(shard / f"valid.en-oc.{source}.{ending}", shard / f"valid.en-am.{code}.{ending}")


FAULTS_OF_TREE = {
    "missing shard": (lambda t: shutil.rmtree(t / "shard2"), "no shard2"),
    "no shards": (lambda t: shutil.rmtree(t), "no sharded data-bin"),
    "a shard lacks a language": (
        lambda t: [file.unlink() for file in (t / "shard1").glob("train.en-am.*")],
        "lacks the train set",
    ),
    "a shard lacks validation": (
        lambda t: [file.unlink() for file in (t / "shard2").glob("valid.en-am.*")],
        "lacks the valid set",
    ),
    "no test": (
        lambda t: [file.unlink() for file in (t / "shard0").glob("test.en-de.*")],
        "lacks the test set",
    ),
    "missing side": (lambda t: (t / "shard1" / "train.en-am.am.idx").unlink(), "data file not found"),
    "missing data": (lambda t: (t / "shard1" / "train.en-am.am.bin").unlink(), "data file not found"),
    "missing dictionary": (lambda t: (t / "shard1" / "dict.am.txt").unlink(), "no dict.am.txt"),
    "another dictionary": (
        lambda t: edit(t / "shard1" / "dict.am.txt", lambda c: c[c.index(b"\n") + 1 :]),
        "got: +shard1/dict.am.txt\n",
    ),
    "unequal sides": (
        lambda t: [
            shutil.copy(t / "shard1" / f"train.en-de.de.{e}", t / "shard1" / f"train.en-am.am.{e}")
            for e in ("bin", "idx")
        ],
        "not parallel",
    ),
    "unequal validation": (lambda t: fewer_valid(t / "shard1"), "differ between shards"),
    "index cut in its header": (lambda t: cut(t / "shard1" / "train.en-am.am.idx", 0.005), "cannot be read"),
    "index cut in half": (lambda t: cut(t / "shard1" / "train.en-am.am.idx", 0.5), "cut short"),
    "index without a byte": (lambda t: cut(t / "shard1" / "train.en-am.am.idx", 0), "cannot be read"),
    "data cut short": (lambda t: cut(t / "shard1" / "train.en-am.am.bin", 0.99), "cut short"),
    "not an index": (
        lambda t: edit(t / "shard1" / "train.en-am.am.idx", lambda c: b"TNTIDX" + c[6:]),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_TREE)
def test_faults_of_a_tree(tree, tmp_path, fault):
    damage, message = FAULTS_OF_TREE[fault]
    damage(tree)
    with pytest.raises(CorpusError, match=message):
        ec30.adopt_data_bin(tree, tmp_path / "out", langs=LANGS, shards=SHARDS)
    assert not (tmp_path / "out").exists()


def test_headers_tell_what_fairseq_reads(built):
    for index in (built / "data-bin" / "shard0").glob("*.idx"):
        assert sentences_in(index) == len(MMapIndexedDataset(str(index.with_suffix(""))))


# ------------------------------------------------------------------ the command


def test_the_command(text, built, tree, tmp_path, capsys):
    folders = ["--plain", str(text.train), "--valid", str(text.valid), "--test", str(text.test)]
    asked = ["data", "ec30", "--langs", ",".join(LANGS), "--shards", str(SHARDS)]
    small = [*asked, *folders, "--vocab-size", str(VOCAB), "--output"]
    assert main([*small, str(tmp_path / "none"), "--estimate"]) == 0
    assert "disk needed" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert main([*small, str(built)]) == 0
    assert capsys.readouterr().out == f"{built / 'corpus.json'}\n"
    assert main([*asked, "--data-bin", str(tree), "--output", str(tmp_path / "out")]) == 0
    assert main([*asked, "--output", str(tmp_path / "out")]) == 2
    assert "where is EC30" in capsys.readouterr().err


# ------------------------------------------------------------------ reading in parts


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_hold_every_line_once(tmp_path, parts, end):
    rng = random.Random(parts)
    texts = ["".join(rng.choice("aб\r\u2028न ") for _ in range(rng.randrange(12))) for _ in range(40)] + ["x"]
    file = tmp_path / "text"
    file.write_bytes(("\n".join(texts) + end).encode())
    scanned = sharding.scan(file, parts)
    read = [[line.removesuffix("\n") for line in scanned.part(part)] for part in range(parts)]
    assert [line for part in read for line in part] == texts
    assert {len(part) for part in read} <= {len(texts) // parts, len(texts) // parts + 1}
    assert scanned.lines == len(texts)
    assert scanned.sha256 == hash_file(file)


def test_a_changed_file_is_scanned_again(tmp_path):
    file = tmp_path / "text"
    file.write_text("a\nb\n")
    scanned = sharding.scan(file, 1)
    assert scanned.is_current()
    file.write_text("a\nb\nc\n")
    assert not scanned.is_current()
    assert not dataclasses.replace(sharding.scan(file, 1), modified_ns=0).is_current()
    with pytest.raises(CorpusError, match="too few lines"):
        sharding.scan(file, 4)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_give_every_result_and_pass_errors_on(workers):
    def run(task):
        return dict(sharding.in_processes(task, range(9), workers=workers, lines=9, description="x"))

    assert run(lambda job: job * job) == {job: job * job for job in range(9)}
    with pytest.raises(ZeroDivisionError):
        run(lambda job: 1 // (job - 3))


def test_pieces_are_learnt_on_a_bounded_sample():
    lines = {"de": 5_000_000, "sv": 1_000_000, "af": 100_000, "tiny": 10}
    sizes = ec30_plain.sample_sizes(lines, total=300_000)
    assert sum(sizes.values()) <= 300_000
    assert sizes["tiny"] == 10
    assert sizes["en"] > sizes["de"] > sizes["sv"] > sizes["af"] > sizes["de"] / 3


def test_the_rules_of_length():
    assert ec30_plain.fault_of_pieces(256, 86) is None
    assert ec30_plain.fault_of_pieces(257, 257) == ec30_plain.fault_of_pieces(0, 1) == "not 1 to 256 pieces"
    assert ec30_plain.fault_of_pieces(30, 10) is None
    assert ec30_plain.fault_of_pieces(10, 31) == "piece ratio above 3"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("of", ["train", "valid", "test"])
def test_git_lfs_pointers_are_no_text(own_text, tmp_path, of):
    files = {
        "train": own_text.train_file("de", "de"),
        "valid": own_text.valid_file("de"),
        "test": own_text.test_file("en", "dev"),
    }
    files[of].write_text(POINTER)
    with pytest.raises(ArtifactError, match="git lfs pull"):
        ec30_plain.plan(own_text, langs=LANGS, workers=1, learns_pieces=True)
    with pytest.raises(ArtifactError, match="git lfs pull"):
        build(own_text, tmp_path / "out")
    assert not (tmp_path / "out" / "corpus.json").exists()


@pytest.mark.parametrize("names", ["dict.*.txt", "train.en-de.de.idx", "valid.en-de.en.bin"])
def test_git_lfs_pointers_are_no_data_bin(tree, tmp_path, names):
    files = [file for shard in range(SHARDS) for file in (tree / f"shard{shard}").glob(names)]
    assert files
    for file in files:  # all alike, as dictionaries are
        file.unlink()
        file.write_text(POINTER)
    with pytest.raises(ArtifactError, match="git lfs pull"):
        ec30.adopt_data_bin(tree, tmp_path / "out", langs=LANGS, shards=SHARDS)
    assert not (tmp_path / "out" / "corpus.json").exists()
