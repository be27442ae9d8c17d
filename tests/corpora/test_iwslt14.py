"""On a tiny archive in the shape of the release, and on one with each of its possible faults."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
import tiny_iwslt14 as tiny

from neuron_spec.cli.main import main
from neuron_spec.corpora import iwslt14
from neuron_spec.corpora.build import SPLITS, Corpus
from neuron_spec.corpora.checks import count_tokens
from neuron_spec.corpora.splitting import groups_to_hold_out
from neuron_spec.errors import ArtifactError, CorpusError

TALKS = 40
LANGS = ("fa", "pl", "de")  # the two that lack a test set, and one that has them all


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("release"), talks=TALKS)


@pytest.fixture(scope="module")
def by_talk(archive) -> Corpus:
    return iwslt14.read(archive)


@pytest.fixture(scope="module")
def lass(archive) -> Corpus:
    return iwslt14.read(archive, split="lass")


@pytest.fixture
def unpacked(tmp_path) -> Path:
    """A folder with ``de-en/``, whose files a test may change."""
    for name, text in tiny.files_of("de", talks=TALKS).items():
        (tmp_path / "de-en").mkdir(exist_ok=True)
        (tmp_path / "de-en" / name).write_text(text, encoding="utf-8")
    return tmp_path


def talk_of_english() -> dict[str, int]:
    """The tiny text has no English line twice, so a line tells its talk."""
    return {
        line + end: talk
        for talk, said in tiny.text_of(TALKS).items()
        for line in said["en"]
        for end in ("", ".")
    }


def talks_in(corpus: Corpus, split: str, *langs: str) -> set[int]:
    talk_of = talk_of_english()
    return {talk_of[en] for lang in langs or corpus.pairs[split] for _, en in corpus.pairs[split][lang]}


def append(folder: Path, *pairs: tuple[str, str], talk: int = 500) -> None:
    """One more talk at the end of the training text."""
    for side, lines in zip(("de", "en"), zip(*pairs, strict=True), strict=True):
        with open(folder / "de-en" / f"train.tags.de-en.{side}", "a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in [f"<url>x</url>\n<talkid>{talk}</talkid>", *lines]))


def everything(corpus: Corpus) -> list[tuple[str, str]]:
    return [pair for split in SPLITS for pair in corpus.pairs[split]["de"]]


# --- What is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", iwslt14.WAYS_TO_SPLIT)
def test_sides_say_the_same(archive, split):
    corpus = iwslt14.read(archive, langs=LANGS, split=split)
    said = tiny.text_of(TALKS).values()
    for lang in LANGS:
        both = {(a, b) for talk in said for a, b in zip(talk[lang], talk["en"], strict=True)}
        both |= {(f"{a}.", f"{b}.") for a, b in both}
        for name in SPLITS:
            assert corpus.pairs[name][lang] and set(corpus.pairs[name][lang]) <= both


def test_titles_and_descriptions_are_text_and_other_tags_are_not(lass):
    trained = {line for split in ("train", "valid") for pair in lass.pairs[split]["de"] for line in pair}
    for talk in tiny.talks_of("de", TALKS):
        said = tiny.text_of(TALKS)[talk]
        assert {*said["de"][:2], *said["en"][:2]} <= trained
    assert not any("<" in line or "ted.com" in line or "tiny, invented" in line for line in trained)


def test_the_test_split_is_all_test_sets_that_exist_in_the_order_of_the_literature(lass):
    text = tiny.text_of(TALKS)
    for lang in tiny.SPOKEN_AS:
        names = [name for name in tiny.TEST_SETS if name != tiny.ABSENT.get(lang)]
        talks = [talk for name in names for talk in tiny.test_talks(name)]
        expected = [f"{line}." for talk in talks for line in text[talk]["en"][2:]]
        assert [en for _, en in lass.pairs["test"][lang]] == expected


def test_the_card_says_which_test_sets_exist(by_talk):
    sources = {source["name"].split()[-1]: source for source in by_talk.sources}
    assert sources["fa-en"]["absent_test_sets"] == "TED.tst2012"
    assert sources["de-en"]["absent_test_sets"] == "none"
    assert "TEDX.dev2012 (16)" in sources["fa-en"]["test_sets"]
    assert {source["licence"] for source in by_talk.sources} == {"CC BY-NC-ND 4.0"}


def test_archive_folder_and_unpacked_folder_are_one_corpus(archive, tmp_path):
    expected = iwslt14.read(archive, langs=["de", "he"])
    for lang in ("de", "he"):
        inner = tmp_path / "packed" / "2014-01" / "texts" / lang / "en"
        inner.mkdir(parents=True)
        with tarfile.open(archive) as whole:
            inner.joinpath(f"{lang}-en.tgz").write_bytes(
                whole.extractfile(f"2014-01/texts/{lang}/en/{lang}-en.tgz").read()
            )
        with tarfile.open(inner / f"{lang}-en.tgz") as pair:
            pair.extractall(tmp_path / "unpacked")
    for folder in ("packed", "packed/2014-01", "packed/2014-01/texts", "unpacked"):
        assert iwslt14.read(tmp_path / folder, langs=["de", "he"]) == expected
        assert iwslt14.fingerprint(tmp_path / folder, ["de"]) == iwslt14.fingerprint(
            tmp_path / "unpacked", ["de"]
        )


def test_lengths(unpacked):
    """The bounds themselves are kept: 175 tokens, and 3 tokens beside 2."""
    pairs = {
        "kept": ("a b c", "d e"),
        "175": ("w " * 175, "v " * 175),
        "176": ("w " * 176, "v " * 175),
        "ratio": ("a b c d", "e f"),
        "marks": ("Danke.", "Thank you."),
        "half": ("", "nothing beside it"),
    }
    append(unpacked, *pairs.values())
    corpus = iwslt14.read(unpacked, langs=["de"], split="lass")
    kept = {a.strip() for a, _ in everything(corpus)}
    assert {name for name, (a, _) in pairs.items() if a.strip() in kept} == {"kept", "175", "marks"}
    assert corpus.cleaning["de"] == {
        "train: more than 175 tokens": 1,
        "train: length ratio above 1.5": 1,
        "train: empty": 1,
    }


def test_text_that_only_looks_like_markup(unpacked):
    """Line separators of Unicode end no line, a bare ampersand is one, and an escaped one too."""
    append(
        unpacked, ("eins\u2028zwei & drei\u0085vier", "one two & three four"), ("<3 sagt er", "<3 he says")
    )
    test = unpacked / "de-en" / "IWSLT14.TED.tst2010.de-en.de.xml"
    test.write_text(test.read_text().replace('"1"> ', '"1"> R&D &amp; &quot;so&quot; ', 1), encoding="utf-8")
    corpus = iwslt14.read(unpacked, langs=["de"], split="lass")
    assert ("eins zwei & drei vier", "one two & three four") in everything(corpus)
    assert ("<3 sagt er", "<3 he says") in everything(corpus)
    assert sum(text.startswith('R&D & "so" ') for text, _ in corpus.pairs["test"]["de"]) == 1


# --- Splits ------------------------------------------------------------------------------------------


def test_no_talk_is_in_two_splits_whatever_the_language(by_talk):
    train, valid, test = (talks_in(by_talk, split) for split in SPLITS)
    assert valid and not train & valid and not train & test and not valid & test


def test_each_language_gets_its_part_for_validation_and_keeps_the_rest(by_talk):
    for lang in tiny.SPOKEN_AS:
        valid, train = (len(by_talk.pairs[split][lang]) for split in ("valid", "train"))
        assert (valid + train) / 23 <= valid <= (valid + train) / 5
        of_all = talks_in(by_talk, "valid", lang) | talks_in(by_talk, "train", lang)
        assert of_all == set(tiny.talks_of(lang, TALKS))


def test_training_talks_that_another_pair_is_tested_on_are_dropped_and_counted(by_talk, lass):
    for lang, name in tiny.ABSENT.items():
        assert set(tiny.test_talks(name)) <= talks_in(lass, "train", lang)
        assert by_talk.cleaning[lang] == {"train: in a talk of the test sets": 2 * (tiny.SEGMENTS + 2)}
    assert by_talk.cleaning["de"] == {"train: in a talk of the test sets": 0}


def test_lass_takes_every_23rd_segment(archive, lass):
    for lang in tiny.SPOKEN_AS:
        said = tiny.text_of(TALKS)
        trained = tiny.talks_of(lang, TALKS) + (
            tiny.test_talks(tiny.ABSENT[lang]) if lang in tiny.ABSENT else []
        )
        lines = [line + "." * (place > 1) for talk in trained for place, line in enumerate(said[talk]["en"])]
        assert [en for _, en in lass.pairs["valid"][lang]] == lines[22::23]
        del lines[22::23]
        assert [en for _, en in lass.pairs["train"][lang]] == lines
    assert iwslt14.read(archive, split="lass", seed=2) == lass


def test_same_seed_same_corpus(archive, by_talk):
    assert iwslt14.read(archive) == by_talk
    assert iwslt14.read(archive, seed=2).pairs["valid"] != by_talk.pairs["valid"]


def test_the_leak_report_counts_talks_and_english_text_of_all_pairs(by_talk, lass):
    for split in ("valid", "test"):
        name = f"{split}_if_every_23rd_line"
        assert by_talk.leak[name] == lass.leak[name] == lass.leak[f"{split}_as_built"]
    assert lass.leak["test_as_built"]["talks_in_train"] == 4  # of the two sets that some pair lacks
    assert lass.leak["valid_as_built"]["talks_in_train"] == lass.leak["valid_as_built"]["talks"] > 20
    for split in ("valid", "test"):
        assert by_talk.leak[f"{split}_as_built"]["talks_in_train"] == 0
        assert by_talk.leak[f"{split}_as_built"]["talks"] == len(talks_in(by_talk, split))
        # Counted anew from what was built.
        for corpus in (by_talk, lass):
            held_out, trained = (
                {en for pairs in corpus.pairs[name].values() for _, en in pairs} for name in (split, "train")
            )
            counts = corpus.leak[f"{split}_as_built"]
            assert counts["english_segments"] == len(held_out)
            assert counts["english_segments_in_train"] == len(held_out & trained)


def test_a_line_of_a_test_set_in_training_is_reported(unpacked):
    append(unpacked, ("Danke.", "Thank you."), ("so sagte er es uns allen", "so he told it to all of us"))
    for side, lines in (("de", "a b"), ("en", "Thank you.")):
        test = unpacked / "de-en" / f"IWSLT14.TED.tst2010.de-en.{side}.xml"
        test.write_text(
            test.read_text().replace("</doc>", f'<seg id="99">{lines}</seg></doc>', 1), encoding="utf-8"
        )
    leak = iwslt14.read(unpacked, langs=["de"]).leak["test_as_built"]
    assert leak["english_segments_in_train"] == 1 and leak["of_which_5_words_or_more"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_held_out_for_all_languages_at_once(seed):
    sizes = {
        lang: {f"talk {t}": 1 + t % 5 for t in range(first, 200)} for lang, first in (("x", 0), ("y", 90))
    }
    chosen = groups_to_hold_out(sizes, fraction=0.1, seed=seed)
    for groups in sizes.values():
        held_out = sum(size for name, size in groups.items() if name in chosen)
        assert 0.1 <= held_out / sum(groups.values()) <= 0.25
    # Other languages change how many groups are held out, not their order.
    alone = groups_to_hold_out({"x": sizes["x"]}, fraction=0.1, seed=seed)
    assert alone <= chosen
    assert chosen != groups_to_hold_out(sizes, fraction=0.1, seed=seed + 1)


def test_a_language_of_one_talk_cannot_hold_one_out():
    with pytest.raises(CorpusError, match="too few groups") as caught:
        groups_to_hold_out({"x": {"a": 5}, "y": {"a": 5, "b": 5}}, fraction=0.1, seed=1)
    assert "x" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("Thank you.", 3),
        ("(Applause)", 3),
        ("I don't know... long-term 1,000.5", 7),
        ("C’est l'homme !", 6),
        ("\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd", 1),  # with vowel points
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u060c", 2),  # with a joiner, and a comma
    ],
)
def test_tokens_are_words_and_punctuation_marks(text, tokens):
    assert count_tokens(text) == tokens


# --- Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("missing side", ["only one side", "IWSLT14.TED.tst2011.de-en.de.xml"]),
        (
            "unequal counts",
            ["unequal numbers", "tst2011.de-en.de.xml and IWSLT14", "15 and 16", "talk 1006: 7 and 8"],
        ),
        ("bad xml", ["<seg> is opened", "tst2011.de-en.de.xml, line 9", "after 0 segments"]),
        ("truncated", ["cannot be read", "texts/de/en/de-en.tgz"]),
        ("wrongly nested", ["lacks some languages", "2014-01/texts/de/en/de-en.tgz"]),
        ("latin-1", ["not UTF-8", "train.tags.de-en.de, line 4", "byte 0xe9"]),
    ],
)
def test_faults_are_named(tmp_path, fault, says):
    archive = tiny.write(tmp_path, fault=fault, talks=TALKS)
    with pytest.raises(CorpusError) as caught:
        iwslt14.read(archive, langs=["nl", "de"])
    for words in [*says, str(archive), "1GnBarJIbNgEIIDvUyKDtLmv35Qcxg6Ed"]:
        assert words in str(caught.value)
    assert iwslt14.read(archive, langs=["nl"]).langs == ["en", "nl"]  # the fault is in de-en alone


def test_a_missing_test_set_is_no_fault_but_recorded(tmp_path):
    corpus = iwslt14.read(tiny.write(tmp_path, fault="missing set", talks=TALKS), langs=["de"])
    assert corpus.sources[0]["absent_test_sets"] == "TED.tst2011"
    assert len(corpus.pairs["test"]["de"]) == 4 * tiny.TALKS_PER_TEST_SET * tiny.SEGMENTS


@pytest.mark.parametrize("kept", [0.02, 0.6])
def test_an_archive_that_is_cut_short(archive, tmp_path, kept):
    cut = tmp_path / "2014-01.tgz"
    cut.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(CorpusError, match="cannot be read") as caught:
        iwslt14.read(cut)
    assert str(cut) in str(caught.value)


def test_a_pair_cut_between_two_files_is_not_taken_for_one_that_lacks_test_sets(archive, tmp_path):
    files = {f"de-en/{name}": text.encode() for name, text in tiny.files_of("de", talks=TALKS).items()}
    whole, first = (gzip.decompress(tiny.pack(dict(list(files.items())[:n]))) for n in (None, 8))
    until = len(first.rstrip(b"\0")) // 512 * 512 + 512
    assert whole[:until] == first[:until]
    stream = zlib.compressobj(wbits=31)
    (tmp_path / "de-en.tgz").write_bytes(stream.compress(whole[:until]) + stream.flush(zlib.Z_FULL_FLUSH))
    with pytest.raises(CorpusError, match="cannot be read"):
        iwslt14.read(tmp_path, langs=["de"])


def test_a_web_page_in_place_of_the_archive(tmp_path):
    page = tmp_path / "2014-01.tgz"
    page.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    with pytest.raises(CorpusError, match="web page that Google Drive gave"):
        iwslt14.read(page)


def test_a_pair_of_wrong_folders(tmp_path):
    files = {name: text.encode() for name, text in tiny.files_of("de", talks=TALKS).items()}
    (tmp_path / "de-en.tgz").write_bytes(tiny.pack(files))
    with pytest.raises(CorpusError, match="none of the files it should") as caught:
        iwslt14.read(tmp_path, langs=["de"])
    assert "de-en/train.tags.de-en.de" in str(caught.value)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CorpusError, match="holds no fa-en text") as caught:
        iwslt14.read(tmp_path)
    assert "notes.txt" in str(caught.value)


def test_names_that_lead_out_of_an_archive_and_links_lead_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in tiny.files_of("de", talks=TALKS).items():
            info = tarfile.TarInfo(f"de-en/{name}")
            if name == "train.tags.de-en.de":
                info.type, info.linkname = tarfile.SYMTYPE, str(secret)
                archive.addfile(info)
            else:
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
        for name in ("../../escaped", "/tmp/escaped-too"):
            archive.addfile(tarfile.TarInfo(name))
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "de-en.tgz").write_bytes(packed.getvalue())
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorpusError, match="only one side") as caught:
        iwslt14.read(inside, langs=["de"])
    assert "train.tags.de-en.en" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/escaped-too").exists()


def test_no_more_of_an_archive_is_read_than_its_largest_file_may_have(archive, monkeypatch):
    monkeypatch.setattr(iwslt14, "_LARGEST", 1000)
    with pytest.raises(CorpusError, match="far larger than any file of the release"):
        iwslt14.read(archive, langs=["de"])


def test_entities_are_refused(unpacked):
    test = unpacked / "de-en" / "IWSLT14.TED.tst2010.de-en.de.xml"
    declared = '<!DOCTYPE mteval [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n'
    test.write_text(declared + test.read_text(), encoding="utf-8")
    with pytest.raises(CorpusError, match="entity is declared"):
        iwslt14.read(unpacked, langs=["de"])


def test_sides_of_other_talks(unpacked):
    train = unpacked / "de-en" / "train.tags.de-en.de"
    train.write_text(train.read_text().replace("<talkid>3<", "<talkid>4<"), encoding="utf-8")
    with pytest.raises(CorpusError, match="not of the same talk") as caught:
        iwslt14.read(unpacked, langs=["de"])
    assert "talks 4 and 3" in str(caught.value)


def test_without_talk_ids_only_lass_can_split(unpacked):
    for train in (unpacked / "de-en").glob("train.tags.*"):
        train.write_text(train.read_text().replace("<talkid>3</talkid>\n", ""), encoding="utf-8")
    with pytest.raises(CorpusError, match="without talk ids") as caught:
        iwslt14.read(unpacked, langs=["de"])
    assert "--split lass" in str(caught.value)
    assert iwslt14.read(unpacked, langs=["de"], split="lass").pairs["valid"]["de"]


def test_languages_and_splits_that_there_are_not(archive):
    with pytest.raises(CorpusError, match="languages that iwslt14 does not have") as caught:
        iwslt14.read(archive, langs=["de", "tlh"])
    assert "tlh" in str(caught.value)
    with pytest.raises(CorpusError, match="no such way to split"):
        iwslt14.read(archive, split="random")


# --- The command -------------------------------------------------------------------------------------


def test_the_command_builds_the_corpus_once(archive, tmp_path, capsys):
    output = tmp_path / "corpus"
    command = ["data", "iwslt14", "--archive", str(archive), "--output", str(output), "--langs", "fa,de"]
    command += ["--vocab-size", "400"]
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == str(output / "corpus.json")
    card = json.loads((output / "corpus.json").read_text(encoding="utf-8"))
    expected = iwslt14.read(archive, langs=["fa", "de"])
    assert card["langs"] == ["en", "fa", "de"]
    assert card["families"] == {"fa": "Iranian", "de": "Germanic", "en": "Germanic"}
    assert card["sources"] == expected.sources and card["leak_report"] == expected.leak
    assert card["dropped_in_cleaning"] == expected.cleaning
    for split in SPLITS:
        for lang in ("fa", "de"):
            for side, code in enumerate((lang, "en")):
                raw = (output / "raw" / f"{split}.{lang}-en.{code}").read_text(encoding="utf-8")
                assert raw.split("\n")[:-1] == [pair[side] for pair in expected.pairs[split][lang]]
                assert (output / "data-bin" / f"{split}.{lang}-en.{code}.bin").stat().st_size
            assert card["pairs"][split][lang] == len(expected.pairs[split][lang])
    assert (output / "data-bin" / "langs.txt").read_text().split() == ["en", "fa", "de"]

    before = (output / "corpus.json").stat().st_mtime_ns
    assert main(command) == 0 and (output / "corpus.json").stat().st_mtime_ns == before
    assert main([*command, "--split", "lass"]) == 2
    assert "another corpus is already here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], ["your own copy", "1GnBarJIbNgEIIDvUyKDtLmv35Qcxg6Ed", "2014-01.tgz", "CC BY-NC-ND 4.0"]),
        (["--archive", "absent.tgz"], ["not found", "absent.tgz", "1GnBarJIbNgEIIDvUyKDtLmv35Qcxg6Ed"]),
        (["--archive", ".", "--valid-size", "10"], ["--valid-size is a flag of other corpora"]),
    ],
)
def test_the_command_says_what_it_needs_before_it_starts(tmp_path, capsys, flags, says):
    assert main(["data", "iwslt14", "--output", str(tmp_path / "corpus"), *flags]) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in says), message
    assert not (tmp_path / "corpus").exists()


def test_a_full_disk_is_noticed_before_anything_is_written(archive, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**22))
    command = ["data", "iwslt14", "--archive", str(archive), "--output", str(tmp_path / "corpus")]
    assert main([*command, "--langs", "de", "--vocab-size", "300"]) == 2
    assert "too little disk space" in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("place", ["2014-01.tgz", "de-en.tgz", "de-en/train.tags.de-en.en", "de-en/IWSLT14.TED.tst2010.de-en.de.xml"])  # fmt: skip
def test_git_lfs_pointers_are_no_text(unpacked, place, tmp_path):
    if place == "de-en.tgz":
        shutil.rmtree(unpacked / "de-en")
    (unpacked / place).write_bytes(POINTER)
    archive = unpacked / place if place.startswith("2014") else unpacked
    for way in iwslt14.WAYS_TO_SPLIT:
        with pytest.raises(ArtifactError, match="git lfs pull"):
            iwslt14.read(iwslt14.require_archive(archive), langs=["de"], split=way)
    command = ["data", "iwslt14", "--archive", archive, "--langs", "de", "--output", tmp_path / "out"]
    assert main([*map(str, command)]) == 2
    assert not (tmp_path / "out").exists()
