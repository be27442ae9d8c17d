"""A user's own text: what is trained on, held out and dropped; the command line; what is refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from neuron_spec.artifacts import read_json, read_lines
from neuron_spec.backends.fairseq.data_bin import check_data_bin
from neuron_spec.cli.main import main
from neuron_spec.corpora import own_text
from neuron_spec.corpora.binarize import decoded, sentences_in
from neuron_spec.corpora.splitting import NEAR_DUPLICATE, nearest_similarity
from neuron_spec.directions import parse_directions

PAIRS = ("en-deu_Latn", "en-pt_BR", "en-tlh", "deu_Latn-pt_BR")
LANGS = ["en", "deu_Latn", "pt_BR", "tlh"]
SUFFIX = {"en": "", "deu_Latn": "en", "pt_BR": "ao", "tlh": "Q"}


def sentences(number: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abdegiklmnorstu", k=rng.randint(3, 8))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(number)]


def translated(line: str, code: str) -> str:
    """Word by word, so that equal sentences have equal translations."""
    return " ".join(word[::-1] + SUFFIX[code] if SUFFIX[code] else word for word in line.split())


def write_pair(folder: Path, pair: str, lines: list[str], stem: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for code in pair.split("-"):
        text = "".join(f"{translated(line, code)}\n" for line in lines)
        (folder / f"{stem}.{pair}.{code}").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sentences in all pairs, some twice, some nearly so."""
    folder = tmp_path_factory.mktemp("text")
    lines = sentences(600)
    lines += lines[:30] + [f"{line} bada" for line in lines[30:80]]
    for number, pair in enumerate(PAIRS):
        own = lines[number * 20 :]
        random.Random(number).shuffle(own)
        write_pair(folder, pair, own)
    return folder


def data(*words: object) -> int:
    return main(["data", "text", *map(str, words)])


@pytest.fixture(scope="module")
def corpus(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("corpus")
    flags = ("--vocab-size", 200, "--test-size", 40, "--valid-size", 30, "--workers", 1)
    assert data("--train", text / "train", "--output", output, *flags, "--families", "tlh=Klingonic") == 0
    return output


def trained(corpus: Path, pair: str, code: str) -> list[str]:
    data_bin = corpus / "data-bin"
    return list(decoded(data_bin / f"train.{pair}.{code}", data_bin / f"dict.{code}.txt"))


def raw(corpus: Path, split: str, pair: str, code: str) -> list[str]:
    return read_lines(corpus / "raw" / f"{split}.{pair}.{code}")


def test_the_card_and_the_data_bin_say_the_same(corpus):
    card = read_json(corpus / "corpus.json", "card")
    assert card["langs"] == LANGS == (corpus / "data-bin" / "langs.txt").read_text().split()
    both = [d for pair in PAIRS for d in (pair, "-".join(reversed(pair.split("-"))))]
    assert Counter(card["lang_pairs"]) == Counter(both)
    assert (corpus / "data-bin" / "lang_pairs.txt").read_text().strip() == ",".join(card["lang_pairs"])
    assert card["families"] == {
        "en": "Germanic",
        "deu_Latn": "Germanic",
        "pt_BR": "Romance",
        "tlh": "Klingonic",
    }
    assert "pivot" not in card
    for pair in PAIRS:
        for split, number in (("train", card["pairs"]["train"][pair]), ("test", 40), ("valid", 30)):
            for code in pair.split("-"):
                assert sentences_in(corpus / "data-bin" / f"{split}.{pair}.{code}.idx") == number
        assert card["pairs"]["train"][pair] + sum(
            card["dropped_in_cleaning"][pair].values()
        ) == 680 - 20 * PAIRS.index(pair)
    check_data_bin(corpus / "data-bin", LANGS, "test", parse_directions(card["lang_pairs"]))
    assert not (corpus / "work").exists()


def test_the_corpus_is_called_by_the_folder_of_its_text(text, corpus):
    assert read_json(corpus / "corpus.json", "card")["name"] == text.name


def test_sides_stay_together(corpus):
    for pair in PAIRS:
        source, target = pair.split("-")
        plain = [
            " ".join(w.removesuffix(SUFFIX[source])[::-1] if source != "en" else w for w in line.split())
            for line in trained(corpus, pair, source)
        ]
        assert [translated(line, target) for line in plain] == trained(corpus, pair, target)


def test_no_held_out_sentence_of_any_pair_is_trained_on_or_in_another_set(corpus):
    held_out = {
        split: {
            code: {
                line for pair in PAIRS if code in pair.split("-") for line in raw(corpus, split, pair, code)
            }
            for code in LANGS
        }
        for split in ("test", "valid")
    }
    for code in LANGS:
        assert not held_out["test"][code] & held_out["valid"][code]
        for pair in PAIRS:
            if code in pair.split("-"):
                assert not {*trained(corpus, pair, code)} & (held_out["test"][code] | held_out["valid"][code])


def test_nothing_trained_on_resembles_a_held_out_sentence(corpus):
    held_out = sorted(
        {line for pair in PAIRS[:3] for split in ("test", "valid") for line in raw(corpus, split, pair, "en")}
    )
    for pair in PAIRS[:3]:
        assert max(nearest_similarity(trained(corpus, pair, "en"), held_out)) < NEAR_DUPLICATE
    tests = sorted({line for pair in PAIRS[:3] for line in raw(corpus, "test", pair, "en")})
    for pair in PAIRS[:3]:
        assert max(nearest_similarity(raw(corpus, "valid", pair, "en"), tests)) < NEAR_DUPLICATE


def test_pairs_that_share_sentences_are_tested_on_the_same(corpus):
    shared = {*raw(corpus, "test", PAIRS[0], "en")} & {*raw(corpus, "test", PAIRS[1], "en")}
    assert len(shared) > 30  # of 40, as pairs lack 20 of 680 lines


def test_the_leak_report_tells_what_was_found(corpus):
    leak = read_json(corpus / "corpus.json", "card")["leak_report"]
    before = leak["test, before it was dropped"]
    assert before["percent_with_near_duplicate_at_0.6"] > 5 and before["percent_identical"] >= 0
    assert set(leak["as built"].values()) == {0.0}


def test_the_same_again_is_complete_and_other_settings_are_refused(text, corpus, capsys):
    flags = ["--train", text / "train", "--output", corpus, "--vocab-size", 200, "--test-size", 40]
    flags += ["--workers", 1, "--families", "tlh=Klingonic"]
    assert data(*flags, "--valid-size", 30) == 0
    assert "complete already" in capsys.readouterr().err
    assert data(*flags, "--valid-size", 31) == 2
    assert "another corpus is already here" in capsys.readouterr().err


def test_more_workers_and_a_kill_change_nothing(text, corpus, tmp_path, monkeypatch):
    flags = ["--train", text / "train", "--output", tmp_path / "out", "--vocab-size", 200, "--test-size", 40]
    flags += ["--valid-size", 30, "--families", "tlh=Klingonic"]
    write = own_text._PairBinarizer._write

    def killed(self, files):
        if str(files.pair) == PAIRS[2]:
            raise KeyboardInterrupt
        return write(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(own_text._PairBinarizer, "_write", killed)
        assert data(*flags, "--workers", 1) == 130
    done = [path.stem for path in (tmp_path / "out" / "work" / "parts").iterdir()]
    assert 0 < len(done) < len(PAIRS) and not (tmp_path / "out" / "corpus.json").exists()

    def not_again(self, files):
        assert str(files.pair) not in done
        return write(self, files)

    monkeypatch.setattr(own_text._PairBinarizer, "_write", not_again)
    assert data(*flags, "--workers", 2) == 0
    ours, again = (
        {
            path.relative_to(of): path.read_bytes()
            for path in of.rglob("*")
            if path.is_file() and path.name != "corpus.json"
        }
        for of in (corpus, tmp_path / "out")
    )
    assert ours == again


def test_shards_hold_the_same_lines_spread(text, corpus, tmp_path):
    model = corpus / "spm/sentencepiece.model"
    flags = ("--train", text / "train", "--output", tmp_path, "--sentencepiece", model, "--shards", 3)
    flags += ("--test-size", 40, "--valid-size", 30, "--workers", 1)
    assert data(*flags) == 0
    shards = [tmp_path / "data-bin" / f"shard{number}" for number in range(3)]
    lines = [list(decoded(shard / "train.en-tlh.en", shard / "dict.en.txt")) for shard in shards]
    assert Counter(chain(*lines)) == Counter(trained(corpus, "en-tlh", "en"))
    assert max(map(len, lines)) - min(map(len, lines)) <= 1
    assert all((shard / "valid.en-tlh.en.bin").is_file() for shard in shards)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_pair(tmp_path / "text", "en-deu_Latn", sentences(300))
    return tmp_path


SMALL = ("--vocab-size", 150, "--workers", 1)


def test_a_file_is_of_one_set(small, capsys):
    write_pair(small / "text", "en-deu_Latn", sentences(30, seed=9), stem="valid")
    files = (
        "--train",
        small / "text/train",
        "--test",
        small / "text/valid",
        "--valid",
        small / "text/../text/valid",
    )
    assert data(*files, "--output", small / "out", *SMALL) == 2
    assert "got:      --test and --valid" in capsys.readouterr().err


def test_given_sets_are_kept_line_for_line_and_taken_out_of_training(small):
    lines = sentences(300)
    write_pair(small / "text", "deu_Latn-en", [*lines[:20], *sentences(5, seed=9)], stem="test")
    write_pair(small / "text", "en-deu_Latn", [f"{line} bada" for line in lines[20:30]], stem="valid")
    sets = ("--test", small / "text/test", "--valid", small / "text/valid")
    assert data("--train", small / "text/train", *sets, "--output", small / "out", *SMALL) == 0
    assert raw(small / "out", "test", "deu_Latn-en", "en") == [*lines[:20], *sentences(5, seed=9)]
    assert not {*trained(small / "out", "en-deu_Latn", "en")} & {*lines[:30]}
    card = read_json(small / "out" / "corpus.json", "card")
    assert card["leak_report"]["test, before it was dropped"]["percent_identical"] == 80.0
    assert card["leak_report"]["valid, before it was dropped"]["percent_with_near_duplicate_at_0.6"] == 100.0
    dropped = card["dropped_in_cleaning"]["en-deu_Latn"]
    assert (
        dropped["source of a test sentence"] == 20 and dropped["near duplicate of a held-out sentence"] >= 10
    )
    assert card["held_out"] == {"test": "given", "valid": "given"}


def test_blank_lines_are_dropped_pairwise_and_counted(small):
    for code, index in (("en", 3), ("deu_Latn", 7)):
        path = small / "text" / f"train.en-deu_Latn.{code}"
        lines = path.read_text().split("\n")
        lines[index] = "  "
        path.write_text("\ufeff" + "\r\n".join(lines))
    assert data("--train", small / "text/train", "--output", small / "out", *SMALL) == 0
    card = read_json(small / "out" / "corpus.json", "card")
    assert card["dropped_in_cleaning"]["en-deu_Latn"]["empty"] == 2
    assert card["lines_read"] == {"en-deu_Latn": 300}
    for line in trained(small / "out", "en-deu_Latn", "en"):
        assert "\ufeff" not in line and "\r" not in line


@pytest.mark.parametrize(("pivot", "kept"), [("pt_BR", "pt_BR"), ("none", None)])
def test_the_card_keeps_the_pivot(text, tmp_path, pivot, kept):
    flags = ("--vocab-size", 200, "--workers", 1, "--pivot", pivot)
    assert data("--train", f"en-pt_BR={text}/train.en-pt_BR.{{en,pt_BR}}", "--output", tmp_path, *flags) == 0
    assert read_json(tmp_path / "corpus.json", "card")["pivot"] == kept


FAMILIES = '{"tlh": "Klingonic", "qqq": "Other"}'


@pytest.mark.parametrize("content", [FAMILIES, json.dumps({"families": json.loads(FAMILIES)})])
def test_families_come_from_a_file(text, tmp_path, content, capsys):
    (tmp_path / "families.json").write_text(content)
    pair = f"en-tlh={text}/train.en-tlh.{{en,tlh}}"
    flags = ("--vocab-size", 200, "--workers", 1, "--families", tmp_path / "families.json")
    assert data("--train", pair, "--output", tmp_path / "out", *flags) == 0
    assert read_json(tmp_path / "out/corpus.json", "card")["families"] == {
        "en": "Germanic",
        "tlh": "Klingonic",
    }
    assert "unknown family" not in capsys.readouterr().err


def test_a_language_without_a_family_is_named_with_the_way_to_name_it(text, tmp_path, capsys):
    pair = f"en-tlh={text}/train.en-tlh.{{en,tlh}}"
    assert data("--train", pair, "--output", tmp_path, "--vocab-size", 200, "--workers", 1) == 0
    assert "unknown family: tlh; --families" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "what is to be trained on"),
        (["--train", "text/train", "--valid-size", "30", "--valid", "text/train"], "give one of the two"),
        (["--train", "text/train", "--valid", "text/train"], "--train and --valid"),
        (["--train", "text/train", "--pivot", "fr"], "no such language"),
        (["--train", "text/train", "--families", "fr=Romance"], "--families names other languages"),
        (["--train", "text/train", "--families", "absent.json"], "not found"),
        (["--train", "text/train", "--langs", "de"], "--langs is a flag of other corpora"),
        (["--train", "text/train", "--test-size", "290"], "too few sentences to hold out for test"),
        (["--train", "text/train", "--vocab-size", "99999"], "change --vocab-size"),
        (["--train", "text/train", "--sentencepiece", "text/train.en-deu_Latn.en"], "not a SentencePiece model"),
        (["--train", "text/train", "--test", "en-fr=text/train.en-deu_Latn.en,text/train.en-deu_Latn.deu_Latn"], "lacks a pair"),
        (["--train", "text/train", "en-DEU_LATN=text/train.en-deu_Latn.en,text/train.en-deu_Latn.deu_Latn"], "capitals alone"),
        (["--train", "text/train", "--vocab-size", "9", "--sentencepiece", "text/train.en-deu_Latn.en"], "give one of the two"),
        (["text/train"], "DATA_BIN is a flag of other corpora"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(small, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(small)
    before = sorted(small.rglob("*"))
    assert data(*flags, "--output", "out", "--workers", 1) == 2
    assert said in capsys.readouterr().err
    assert sorted(small.rglob("*")) == before, "something is half-written"


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_text_leaves_nothing_behind(small, capsys, workers):
    write_pair(small / "text", "en-pt_BR", sentences(300))
    with (small / "text/train.en-pt_BR.pt_BR").open("ab") as file:
        file.write(b"\xff\n")
    assert data("--train", small / "text/train", "--output", small / "out", "--workers", workers) == 2
    assert "line 301" in capsys.readouterr().err
    assert not (small / "out").exists()


def test_a_pair_without_a_fit_line_says_why(small, capsys):
    for stem in ("valid", "test"):
        write_pair(small / "text", "en-deu_Latn", sentences(30, seed=len(stem)), stem)
    for code in ("en", "deu_Latn"):
        write_pair(small / "text", "en-pt_BR", sentences(300, seed=2))
        (small / f"text/train.en-deu_Latn.{code}").write_text("www.example.org\n" * 9 + "\n")
    for stem in ("valid", "test"):
        write_pair(small / "text", "en-pt_BR", sentences(30, seed=9 + len(stem)), stem)
    words = [word for stem in ("train", "valid", "test") for word in (f"--{stem}", small / "text" / stem)]
    assert data(*words, "--output", small / "out", *SMALL) == 2
    assert "got:      0 fit; dropped: 1 empty, 9 web address\n" in capsys.readouterr().err


def test_a_refusal_halfway_leaves_what_was_there(small, capsys):
    (small / "out").mkdir()
    (small / "out" / "notes.txt").write_text("mine")
    assert (
        data(
            "--train", small / "text/train", "--output", small / "out", "--vocab-size", 99999, "--workers", 1
        )
        == 2
    )
    assert [path.name for path in (small / "out").iterdir()] == ["notes.txt"]


def test_a_test_set_of_an_untrained_language_is_refused(small, capsys):
    for pair in ("en-deu_Latn", "en-pt_BR"):
        write_pair(small / "text", pair, sentences(20, seed=5), stem="test")
    words = ("--train", small / "text/train", "--test", small / "text/test", "--output", small / "out")
    assert data(*words) == 2
    assert "a language that is not trained" in capsys.readouterr().err


def test_a_pair_may_be_tested_without_being_trained(small):
    write_pair(small / "text", "en-pt_BR", sentences(300, seed=2))
    for pair in ("en-deu_Latn", "en-pt_BR", "deu_Latn-pt_BR"):
        write_pair(small / "text", pair, sentences(20, seed=5), stem="test")
    words = ("--train", small / "text/train", "--test", small / "text/test", "--output", small / "out")
    assert data(*words, *SMALL) == 0
    card = read_json(small / "out/corpus.json", "card")
    assert "deu_Latn-pt_BR" not in card["lang_pairs"] and card["pairs"]["test"]["deu_Latn-pt_BR"] == 20


def test_a_vocabulary_of_other_text_is_refused(small, corpus, capsys):
    write_pair(small / "text", "en-tlh", sentences(300))
    path = small / "text/train.en-tlh.tlh"
    path.write_text(path.read_text().translate({ord(c): chr(ord(c) + 0x3A0) for c in "abdegiklmnorstu"}))
    model = corpus / "spm/sentencepiece.model"
    assert (
        data(
            "--train",
            small / "text/train",
            "--output",
            small / "out",
            "--workers",
            1,
            "--sentencepiece",
            model,
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        "the SentencePiece model is of other text" in said
        and "pieces of tlh" in said
        and "of en " not in said
    )
    assert not (small / "out").exists()
