"""Logs of fairseq-generate: the score does not depend on how they were printed; what cannot be read is refused."""

import random
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from fairseq.data.data_utils import post_process
from fairseq_cli.generate import cli_main
from small_run import HYPOTHESES, REFERENCES, log_of, write_log

from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, DirectionError
from neuron_spec.scoring.evaluation import read_evaluation
from neuron_spec.scoring.logs import read_generate_output, read_generate_outputs
from neuron_spec.scoring.metrics import Outputs

EN_DE = Direction("en", "de")
SOURCES = [
    "The house is very old today .",
    "The cat sleeps on the sofa .",
    "We take the train to Berlin .",
    "He switched off the light .",
]


# ---------------------------------------------------------------- fairseq-generate logs


def test_log_is_read_in_the_order_of_the_test_set(tmp_path):
    sources = ["__en__ one", "__en__ two", "__en__ three", "__en__ four"]
    path = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES, sources, order=[2, 0, 3, 1]))
    expected = Outputs(EN_DE, HYPOTHESES, REFERENCES, ["one", "two", "three", "four"])
    assert read_generate_output(path) == expected


def test_pieces_are_joined_and_the_best_hypothesis_kept(tmp_path):
    text = "S-0\t__en__ ▁The ▁house\nT-0\t▁Das ▁Ha us\nH-0\t-0.1\t▁Das ▁Ha us ▁!\nH-0\t-0.9\t▁Ha\n"
    outputs = read_generate_output(write_log(tmp_path, text))
    assert outputs == Outputs(EN_DE, ["Das Haus !"], ["Das Haus"], ["The house"])


def test_odd_characters_and_empty_hypotheses_survive(tmp_path):
    # Characters that str.splitlines takes for line breaks, and a tab inside the text.
    odd = ["a\u2028b\x85c", "", "tab\there"]
    outputs = read_generate_output(write_log(tmp_path, log_of(odd, odd)))
    assert outputs.hypotheses == outputs.references == odd


def test_text_that_looks_like_a_language_token_is_kept(tmp_path):
    path = write_log(tmp_path, log_of(["x", "y"], ["x", "y"], ["__init__ is a method", "plain"]))
    assert read_generate_output(path).sources == ["__init__ is a method", "plain"]


@pytest.mark.parametrize(
    "header", ["Namespace(source_lang='en', target_lang='de')", "{'source_lang': 'en', 'target_lang': 'de'}"]
)
def test_direction_from_the_log_itself(tmp_path, header):
    path = write_log(tmp_path, header + "\n" + log_of(HYPOTHESES, REFERENCES), direction="run-1")
    assert read_generate_output(path).direction == EN_DE
    with pytest.raises(DirectionError, match=r"got: +en-de"):
        read_generate_output(path, direction=Direction("de", "en"))


def test_unknown_direction_must_be_named(tmp_path):
    path = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES), direction="run-1")
    with pytest.raises(DirectionError, match="name the direction"):
        read_generate_output(path)
    assert read_generate_output(path, direction=EN_DE).direction == EN_DE


def test_language_tokens_of_another_direction(tmp_path):
    path = write_log(tmp_path, log_of(["x"], ["x"], ["__fr__ oui"]))
    with pytest.raises(DirectionError, match="__fr__"):
        read_generate_output(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 H lines, 0 T lines"),
        ("T-0\ta\nT-1\tb\nH-1\t-0.1\tb\n", "no H line for 1 of 2 ids, the first 0"),
        ("T-0\ta\nT-2\tb\nH-0\t-0.1\ta\nH-2\t-0.1\tb\n", "no H line for 1 of 3 ids, the first 1"),
        ("T-0\ta\nH-0\t-0.1\ta\nH-1\t-0.1\tb\n", "no T line for 1 of 2 ids, the first 1"),
        ("T-0\ta\nH-0\ta\n", "line 2"),
        ("T-0\ta\nH-0\t-0.1\ta\nT-0\tb\n", "several runs or directions"),
    ],
)
def test_damaged_logs(tmp_path, text, message):
    with pytest.raises(ArtifactError, match=message):
        read_generate_output(write_log(tmp_path, text))


def test_absent_and_undecodable_logs(tmp_path):
    with pytest.raises(ArtifactError, match="not found"):
        read_generate_output(tmp_path / "en-de" / "generate-test.txt")
    path = write_log(tmp_path, "")
    path.write_bytes(b"T-0\t\xff\n")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        read_generate_output(path)


# ---------------------------------------------------------------- how fairseq prints


def as_sentencepiece(text):
    return " ".join(f"\u2581{word[:2]} {word[2:]}".strip() for word in text.split())


def as_subword_nmt(text):
    return " ".join(f"{word[:2]}@@ {word[2:]}" if len(word) > 3 else word for word in text.split())


def printed(hypotheses, references, sources, *, split, remove_bpe=None, decode=lambda text: text, nbest=1):
    """What fairseq_cli/generate.py prints of such texts, when the model's are ``split`` into pieces."""
    lines = []
    for i in random.Random(1).sample(range(len(hypotheses)), len(hypotheses)):
        source, target, hypothesis = (
            post_process(split(text), remove_bpe) for text in (sources[i], references[i], hypotheses[i])
        )
        lines += [f"S-{i}\t{decode(source)}", f"T-{i}\t{decode(target)}"]
        for rank in range(nbest):
            text, score = (hypothesis, -0.5) if rank == 0 else ("other", -0.7)
            lines += [f"H-{i}\t{score}\t{text}", f"D-{i}\t{score}\t{decode(text)}"]
            scores = ["-0.1"] * (2 + len(split(hypotheses[i]).split()))
            lines += [f"P-{i}\t{' '.join(scores)}", f"A-{i}\t0-0 1-1", f"I-{i}\t3", f"E-{i}_0\tx"]
    return (
        "\n".join(lines)
        + "\nGenerate test with beam=5: BLEU4 = 1.00, 9.0/8.0/1.0/0.1 (BP=1.000, ratio=1.1)\n"
    )


@pytest.mark.parametrize("nbest", [1, 2])
@pytest.mark.parametrize(
    ("split", "symbol"),
    [(as_sentencepiece, "sentencepiece"), (as_subword_nmt, "subword_nmt"), (as_subword_nmt, "@@ ")],
)
def test_the_score_does_not_depend_on_how_a_log_was_printed(tmp_path, split, symbol, nbest):
    texts = HYPOTHESES, REFERENCES, SOURCES
    for how in (
        {},
        {"remove_bpe": symbol},
        {"decode": lambda text: post_process(text, symbol)},  # --bpe
    ):
        log = write_log(tmp_path, printed(*texts, split=split, nbest=nbest, **how))
        assert read_generate_output(log) == Outputs(EN_DE, *texts), how


def test_a_decoded_log_is_scored_by_what_was_decoded(tmp_path):
    # --tokenizer moses after --remove-bpe: S, T and D are text, H is tokens
    def decode(text):
        return text.replace(" .", ".")

    log = write_log(
        tmp_path,
        printed(
            HYPOTHESES, REFERENCES, SOURCES, split=as_subword_nmt, remove_bpe="subword_nmt", decode=decode
        ),
    )
    expected = Outputs(
        EN_DE, *([decode(text) for text in texts] for texts in (HYPOTHESES, REFERENCES, SOURCES))
    )
    (read,) = read_generate_outputs([log])
    assert (read.outputs, read.scored) == (expected, "D")


def test_the_kinds_of_line_are_told_apart(tmp_path):
    text = "T-0\tGood day.\nH-0\t-1\t\u2581Good \u2581day .\nD-0\t-1\tGood day.\n"
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, ["Good day."], ["Good day."])
    text = "T-0\tGood day.\nH-0\t-1\t\u2581Good \u2581day .\n"  # fairseq 0.8 prints no D
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, ["Good day."], ["Good day."])


def test_hypotheses_without_the_start_of_any_word_are_pieces_where_references_are(tmp_path):
    text = "T-0\t\u2581das \u2581Ha us\nH-0\t-1\tus us\nD-0\t-1\tus us\nP-0\t-1 -1 -1\n"
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, ["usus"], ["das Haus"])


def test_pieces_at_the_end_of_a_line_are_joined_as_fairseq_does(tmp_path):
    text = "T-0\tein Ha@@ us\nH-0\t-1\tein Ha@@\n"
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, ["ein Ha"], ["ein Haus"])
    assert post_process("ein Ha@@", "subword_nmt") == "ein Ha"


@pytest.mark.parametrize("mark", ["see a@@ b", "see \u2581 here"])
def test_text_that_looks_like_pieces_is_kept(tmp_path, mark):
    """In a few sentences: D that is not H, or P lines, show whether the others are the model's tokens."""
    texts = [[*of * 3, mark] for of in (HYPOTHESES, REFERENCES, SOURCES)]
    split, symbol = (as_sentencepiece, "sentencepiece") if "@@" in mark else (as_subword_nmt, "subword_nmt")
    for how in ({"remove_bpe": symbol}, {"decode": lambda text: post_process(text, symbol)}, {}):
        text = printed(*texts, split=split, **how)
        assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, *texts), how
    without_scores = re.sub("P-.*\n", "", printed(*texts, split=split, remove_bpe=symbol))
    with pytest.raises(ArtifactError, match="may be words or pieces"):
        read_generate_output(write_log(tmp_path, without_scores))


def test_few_words_were_split(tmp_path):
    """With a large vocabulary most sentences have no mark: P lines tell, as they have a score for each token."""

    def split(text):
        return text.replace("Berlin", "Ber@@ lin")

    text = printed(HYPOTHESES, REFERENCES, SOURCES, split=split)
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, HYPOTHESES, REFERENCES, SOURCES)


@pytest.mark.parametrize("line", ["318 257 1332", "\u0120Das \u0120Ha us"])
def test_pieces_that_no_rule_joins_are_refused(tmp_path, line):
    with pytest.raises(ArtifactError, match="--bpe"):
        read_generate_output(write_log(tmp_path, log_of([line], [line])))


@pytest.mark.parametrize(
    ("mend", "line"),
    [
        ("--bpe bert", "Das Ha ##us"),
        ("--post-process wordpiece", "_Das _Ha us"),
        ("--post-process wordpiece", "Das_ Ha us_"),
        ("--post-process _EOW", "Das_EOW Ha us_EOW"),
        ("--post-process letter", "D a s | H a u s |"),
        ("another tool", "Das</w> Ha us</w>"),
        ("another tool", "Das Ha \uffedus"),
    ],
)
def test_pieces_of_other_kinds_are_refused_and_text_with_their_marks_is_kept(tmp_path, mend, line):
    with pytest.raises(ArtifactError, match=f"(?s)are not joined here.*mend: +generate with {mend}"):
        read_generate_output(write_log(tmp_path, log_of([line], [line])))
    texts = [*REFERENCES, line]
    assert read_generate_output(write_log(tmp_path, log_of(texts, texts))).references == texts


def test_unknown_words_stay_as_fairseq_prints_them(tmp_path):
    # Escaped in references, so that none is matched.
    outputs = read_generate_output(write_log(tmp_path, log_of(["ein <unk> ."], ["ein <<unk>> ."])))
    assert (outputs.hypotheses, outputs.references) == (["ein <unk> ."], ["ein <<unk>> ."])


def test_the_first_hypothesis_is_scored_and_a_better_one_named(tmp_path, capsys):
    text = "T-0\ta b\nH-0\t-0.9\ta\nD-0\t-0.9\ta\nH-0\t-0.1\tb\nD-0\t-0.1\tb\n"
    assert read_generate_output(write_log(tmp_path, text)).hypotheses == ["a"]
    assert (
        main(
            ["evaluate", "--generate-output", str(write_log(tmp_path, text)), "--output", str(tmp_path / "e")]
        )
        == 0
    )
    assert "in 1 sentences a later hypothesis has a higher score" in capsys.readouterr().err


def test_logs_of_scored_references(tmp_path, capsys):
    path = write_log(tmp_path, "Namespace(score_reference=True)\n" + log_of(REFERENCES, REFERENCES))
    with pytest.raises(ArtifactError, match="without --score-reference"):
        read_generate_output(path)
    path = write_log(tmp_path, log_of(REFERENCES * 3, REFERENCES * 3))
    assert main(["evaluate", "--generate-output", str(path), "--output", str(tmp_path / "e")]) == 0
    assert "every hypothesis is its reference" in capsys.readouterr().err


# ---------------------------------------------------------------- what is around the lines


def test_a_byte_order_mark_and_windows_line_ends(tmp_path):
    text = log_of(HYPOTHESES, REFERENCES, SOURCES)
    unended = text[: text.index("\nGenerate")].replace("\n", "\r\n")
    for changed in ("\ufeff" + text, text.replace("\n", "\r\n"), "\ufeff" + unended):
        path = write_log(tmp_path, "")
        path.write_bytes(changed.encode())
        assert read_generate_output(path) == Outputs(EN_DE, HYPOTHESES, REFERENCES, SOURCES)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ArtifactError, match="UTF-16"):
        read_generate_output(path)


def test_a_carriage_return_inside_a_text_stays(tmp_path):
    path = write_log(tmp_path, "")
    path.write_bytes(log_of(["a\rb", "c\r", "d"], ["a\rb", "c\r", "d"]).encode())
    assert read_generate_output(path).hypotheses == ["a\rb", "c\r", "d"]


@pytest.mark.parametrize(
    "record",
    [
        "INFO:fairseq_cli.generate:NOTE: x",
        "2026-11-25 21:45:49 | INFO | fairseq.logging.progress_bar | 3 / 9",
        "/opt/fairseq/search.py:140: UserWarning: __floordiv__ is deprecated\n  beams_buf = indices_buf // vocab_size",
    ],
)
def test_what_the_error_stream_wrote_into_a_line_is_taken_out(tmp_path, record):
    text = log_of(HYPOTHESES, REFERENCES).replace("Berlin .\n", f"Berlin .{record}\n\n")
    text = text.replace("Katze", f"Kat{record}\nze").replace("T-3", f"{record}\nT-3")
    assert read_generate_output(write_log(tmp_path, text)) == Outputs(EN_DE, HYPOTHESES, REFERENCES)


# ---------------------------------------------------------------- language tokens


@pytest.mark.parametrize(
    "token",
    [
        *("__de__", "[de_DE]", "[de]", "__deu_Latn__", "<2de>", "<de>", "<2_de>", "<to_de>", ">>de<<"),
        *("__en__", "[en_XX]"),
    ],
)
@pytest.mark.parametrize("kinds", ["S", "T", "HD", "STHD"])
def test_language_tokens_are_taken_off_at_either_end(tmp_path, token, kinds):
    plain = log_of(HYPOTHESES, REFERENCES, SOURCES)
    for at in (rf"\1{token} \2", rf"\1\2 {token}", rf"\1\2{token}", rf"\1{token}\2 {token}"):
        text = re.sub(rf"(?m)^([{kinds}]-\d+\t(?:-0.5\t)?)(.*)$", at, plain)
        assert text.count(token) >= 4
        assert read_generate_output(write_log(tmp_path, text)) == Outputs(
            EN_DE, HYPOTHESES, REFERENCES, SOURCES
        )


@pytest.mark.parametrize("token", ["__de__", "[de_DE]"])
@pytest.mark.parametrize("split", [as_sentencepiece, as_subword_nmt])
def test_language_tokens_among_pieces(tmp_path, token, split):
    for place in ("{0} {1}", "{1} {0}"):

        def tagged(text, place=place):
            return place.format(token, split(text))

        for symbol in (None, "sentencepiece" if split is as_sentencepiece else "subword_nmt"):
            text = printed(HYPOTHESES, REFERENCES, SOURCES, split=tagged, remove_bpe=symbol)
            expected = Outputs(EN_DE, HYPOTHESES, REFERENCES, SOURCES)
            assert read_generate_output(write_log(tmp_path, text)) == expected, (place, symbol)


@pytest.mark.parametrize("token", ["de_DE", "deu_Latn", "en_XX"])
def test_bare_codes_are_language_tokens_where_every_text_has_one(tmp_path, token):
    plain = log_of(HYPOTHESES, REFERENCES, SOURCES)
    expected = Outputs(EN_DE, HYPOTHESES, REFERENCES, SOURCES)
    for at in (rf"\1{token} \2", rf"\1\2 {token}"):
        text = re.sub(r"(?m)^([STHD]-\d+\t(?:-0.5\t)?)(.*)$", at, plain)
        assert read_generate_output(write_log(tmp_path, text)) == expected
    texts = [f"{token} is one", "<br> two", f"a{token} three", "four"]
    assert read_generate_output(write_log(tmp_path, log_of(texts, texts))).references == texts


def test_language_tokens_in_some_lines_or_of_other_languages_are_refused(tmp_path):
    some = log_of(["__de__ x", "y"], ["x", "y"])
    with pytest.raises(DirectionError, match=r"only some D lines(.|\n)*1 of 2, __de__"):
        read_generate_output(write_log(tmp_path, some))
    other = log_of(["x [fr_XX]", "y [de_DE]"], ["x", "y"])
    with pytest.raises(DirectionError, match=r"D lines(.|\n)*got: +\[fr_XX\]"):
        read_generate_output(write_log(tmp_path, other))


def test_what_looks_like_a_language_token_inside_a_sentence_is_text(tmp_path):
    texts = ["call __de__ here", "[it] was", "of [de_DE] too", "plain"]
    assert read_generate_output(write_log(tmp_path, log_of(texts, texts))).references == texts
    tagged = [f"__de__ {text}" for text in ["__de__ is a token", "plain"]]
    assert read_generate_output(write_log(tmp_path, log_of(tagged, tagged))).references == [
        "__de__ is a token",
        "plain",
    ]


# ---------------------------------------------------------------- directions


@pytest.mark.parametrize(
    "header",
    [
        "Namespace(moses_source_lang='de', source_lang='zh-Hans', target_lang='en')",
        "2026-11-25 | INFO | {'task': {'source_lang': 'zh-Hans', 'target_lang': 'en'}, 'tokenizer': "
        "{'_name': 'moses', 'source_lang': 'en', 'target_lang': 'en'}}",
        "{'_name': None, 'task': Namespace(source_lang='zh-Hans', target_lang='en')}",
        '{"source_lang": "zh-Hans", "target_lang": "en"}',
        "| [zh-Hans] dictionary: 8848 types\n| [en] dictionary: 6632 types",
        "2020-01-01 00:00:00 | INFO | fairseq.tasks.translation | [zh-Hans] dictionary: 8848 types\n"
        "2020-01-01 00:00:00 | INFO | fairseq.tasks.translation | [en] dictionary: 8848 types",
        "INFO:fairseq.tasks.translation:[zh-Hans] dictionary: 8 types\n"
        "INFO:fairseq.tasks.translation:[en] dictionary: 8 types",
    ],
)
def test_the_header_in_the_spellings_of_fairseqs_versions(tmp_path, header):
    text = header + "\n" + log_of(HYPOTHESES, REFERENCES)
    direction = Direction("zh-Hans", "en")
    for folder in ("run-ab", "my-exp", "zh-en", "zh_CN-en_XX", "zh-Hans-en", "zho_Hans-eng_Latn"):
        assert read_generate_output(write_log(tmp_path, text, folder)).direction == direction
    with pytest.raises(DirectionError, match=r"got: +de-en, as its folder is named\n +expected: zh-Hans-en"):
        read_generate_output(write_log(tmp_path, text, "de-en"))
    given = Direction("zh", "en")
    assert read_generate_output(write_log(tmp_path, text, "run-1"), direction=given).direction == given


# A run, a version, a language in a country: pt-BR is not Portuguese into Breton.
NO_DIRECTIONS = ["run-en-de", "ted-de-en", "my-en-de", "en-de-v2", "pt-BR", "en-US", "zh-TW"]


@pytest.mark.parametrize("folder", NO_DIRECTIONS)
def test_folders_that_are_no_directions_contradict_no_header(tmp_path, folder):
    text = "Namespace(source_lang='nl', target_lang='de')\n" + log_of(HYPOTHESES, REFERENCES)
    assert read_generate_output(write_log(tmp_path, text, folder)).direction == Direction("nl", "de")


@pytest.mark.parametrize(
    "folder", ["run-ab", "my-exp", "run-2", "dense", "de", "de-en-2", "seed-de", *NO_DIRECTIONS]
)
def test_folders_that_are_no_directions(tmp_path, folder):
    with pytest.raises(DirectionError, match="--lang-pairs"):
        read_generate_output(write_log(tmp_path, log_of(HYPOTHESES, REFERENCES), folder))


@pytest.mark.parametrize(
    ("folder", "direction"),
    [("de-en", "de en"), ("pt_BR-en", "pt_BR en"), ("zh-Hans-en", "zh-Hans en"), ("en-qx", "en qx")],
)
def test_folders_that_are_directions(tmp_path, folder, direction):
    log = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES), folder)
    assert read_generate_output(log).direction == Direction(*direction.split())


# ---------------------------------------------------------------- shards, and what is missing


def cut(text, keep):
    """The lines of some sentences."""
    return "".join(
        line + "\n"
        for line in text.split("\n")
        if re.match(r"[STHDP]-", line) and keep(int(line[2 : line.index("\t")]))
    )


def test_shards_of_one_direction_are_joined(tmp_path, capsys):
    text = log_of(HYPOTHESES, REFERENCES, SOURCES)
    shards = [
        write_log(tmp_path / name, cut(text, keep))
        for name, keep in (("a", lambda i: i % 2), ("b", lambda i: not i % 2))
    ]
    (read,) = read_generate_outputs(shards)
    assert read.outputs == Outputs(EN_DE, HYPOTHESES, REFERENCES, SOURCES)
    with pytest.raises(ArtifactError, match=r"sentences in common\n(.|\n)*2, the first 1"):
        read_generate_outputs([*shards, shards[0]])
    with pytest.raises(ArtifactError, match="no H line for 2 of 4 ids, the first 0"):
        read_generate_outputs(shards[:1])
    signatures = []
    for order in (shards, shards[::-1]):
        assert main(["evaluate", "--generate-output", *map(str, order), "--output", str(tmp_path / "e")]) == 0
        signatures.append(read_evaluation(tmp_path / "e").signature["inputs"])
    assert signatures[0] == signatures[1]
    assert "complete already" in capsys.readouterr().err


def test_missing_sentences_are_left_out_if_allowed_and_said(tmp_path, capsys):
    text = log_of(HYPOTHESES, REFERENCES, SOURCES)
    path = write_log(tmp_path, cut(text, lambda i: i != 1))
    command = ["evaluate", "--generate-output", str(path), "--output", str(tmp_path / "e")]
    assert main(command) == 2
    assert "--skip-invalid-size-inputs-valid-test" in capsys.readouterr().err
    assert main([*command, "--allow-missing"]) == 0
    assert "3 of 4 sentences" in capsys.readouterr().err
    evaluation = read_evaluation(tmp_path / "e")
    assert evaluation.signature["parameters"]["sentences"] == {"en-de": "3 of 4"}
    assert evaluation.outputs == [
        Outputs(EN_DE, *([of[i] for i in (0, 2, 3)] for of in (HYPOTHESES, REFERENCES, SOURCES)))
    ]
    assert (
        main(
            [
                "evaluate",
                "--generate-output",
                str(write_log(tmp_path, text)),
                "--output",
                str(tmp_path / "whole"),
            ]
        )
        == 0
    )
    assert (
        main(["compare", str(tmp_path / "whole"), str(tmp_path / "e"), "--output", str(tmp_path / "c")]) == 2
    )
    assert "different references" in capsys.readouterr().err


def test_the_last_sentences_are_missed_where_the_log_says_how_many_there_are(tmp_path):
    loaded = "INFO:fairseq.data.data_utils:loaded 5 examples from: data-bin/test.en-de.en\n"
    path = write_log(tmp_path, loaded + log_of(HYPOTHESES, REFERENCES))
    with pytest.raises(ArtifactError, match="no H line for 1 of 5 ids, the first 4"):
        read_generate_output(path)


def test_a_log_that_ends_within_a_hypothesis(tmp_path):
    text = log_of(HYPOTHESES, REFERENCES)
    path = write_log(tmp_path, text[: text.index("D-3") + 12])
    with pytest.raises(ArtifactError, match="no P line for 1 of 4 ids, the first 3"):
        read_generate_output(path)


@pytest.mark.parametrize("number", ["99999999999", "9" * 5000])
def test_an_enormous_id_is_refused_at_once(tmp_path, number):
    path = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES) + f"T-{number}\ta\nH-{number}\t-0.1\ta\n")
    with pytest.raises(ArtifactError, match=r"no H line for 99999999995 of 100000000000|at most 18 digits"):
        read_generate_output(path)


# ---------------------------------------------------------------- the command


def test_directions_by_flag(tmp_path, capsys):
    texts = log_of(HYPOTHESES, REFERENCES)
    paths = [
        str(write_log(tmp_path, text, name))
        for text, name in ((texts, "a"), (f"Namespace(source_lang='de', target_lang='en')\n{texts}", "b"))
    ]
    command = ["evaluate", "--generate-output", *paths, "--output", str(tmp_path / "e"), "--lang-pairs"]
    assert main([*command, "en-de,de-en"]) == 0
    assert [str(of.direction) for of in read_evaluation(tmp_path / "e").scores] == ["en-de", "de-en"]
    paths = [str(write_log(tmp_path, texts, "c"))]
    hyphenated = ["evaluate", "--generate-output", *paths, "--output", str(tmp_path / "f")]
    assert main([*hyphenated, "--lang-pairs", "zh-Hans-en"]) == 0
    assert read_evaluation(tmp_path / "f").outputs[0].direction == Direction("zh-Hans", "en")
    for pairs, message in (
        ("de-en,en-de", "another direction"),
        ("en-de", "1 directions, 2 logs"),
        ("en", "malformed"),
        (",", "malformed"),
    ):
        capsys.readouterr()
        assert main([*command, pairs]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    [
        "--beam 5",  # the default, but given
        "--gen-subset test",
        "--max-tokens 2000",
        "--references raw",
        "--path dense.pt",
        "--cpu",
        "--fp16",
        "--bf16",
        "--no-likelihood",
        "-- --lenpen 2",
    ],
)
def test_flags_of_translating_are_refused_beside_logs(tmp_path, capsys, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dense.pt").touch()
    path = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES))
    assert (
        main(["evaluate", "--output", str(tmp_path / "e"), "--generate-output", str(path), *flag.split()])
        == 2
    )
    message = capsys.readouterr().err
    assert "not heeded" in message
    assert re.search(rf"got: +{flag.split()[0] if flag[2] != ' ' else flag}\n", message)
    assert not (tmp_path / "e").exists()


def test_allow_missing_is_refused_without_logs(tmp_path, capsys):
    (tmp_path / "a.pt").touch()
    inputs = [str(tmp_path), "--path", str(tmp_path / "a.pt")]
    command = ["evaluate", *inputs, "--output", str(tmp_path / "e"), "--allow-missing"]
    assert main(command) == 2
    assert re.search(r"not heeded here\n +got: +--allow-missing", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("line", "is_said"),
    [
        ("BLEU = 12.34 60.0/40.0/20.0/10.0 (BP = 1.000 ratio = 1.0 hyp_len = 26 ref_len = 27)", True),
        ("BLEU+case.mixed+numrefs.1+smooth.exp+tok.13a+version.1.5.1 = 12.3 60.0/40.0/20.0/10.0", True),
        (
            "BLEU4 = 12.34, 60.0/40.0/20.0/10.0 (BP=1.000, ratio=1.0, syslen=26, reflen=27)",
            False,
        ),  # of tokens
        ("BLEU = {own:.2f} 60.0/40.0/20.0/10.0 (BP = 1.000 ratio = 1.0 hyp_len = 26 ref_len = 27)", False),
        ("chrF2 = 12.34", False),
    ],
)
def test_a_sacrebleu_line_that_differs_is_said(tmp_path, capsys, line, is_said):
    text = log_of(HYPOTHESES, REFERENCES)
    path = write_log(tmp_path, text)
    assert main(["evaluate", "--generate-output", str(path), "--output", str(tmp_path / "e")]) == 0
    own = read_evaluation(tmp_path / "e").scores[0].bleu
    capsys.readouterr()
    path = write_log(tmp_path, text + f"Generate test with beam=5: {line.format(own=own)}\n")
    assert main(["evaluate", "--generate-output", str(path), "--output", str(tmp_path / "f")]) == 0
    message = capsys.readouterr().err
    assert ("sacreBLEU line says 12.3" in message and f"BLEU {own:.2f}" in message) == is_said
    assert ("sacreBLEU line" in message) == is_said
    assert "en-de: D lines scored against T lines" in message
    assert read_evaluation(tmp_path / "f").signature["parameters"]["hypotheses"] == "D lines of the logs"


# ---------------------------------------------------------------- real logs


@pytest.fixture(scope="module")
def plain(workshop, checkpoint, tmp_path_factory):
    """What the command makes of the tiny model's translations, by the data-bin's references."""
    output = tmp_path_factory.mktemp("plain") / "evaluation"
    command = [
        "evaluate",
        str(workshop.data_bin),
        "--path",
        str(checkpoint),
        "--output",
        str(output),
        "--cpu",
    ]
    command += ["--lang-pairs", "en-qa", "--beam", "2", "--references", "data-bin"]
    assert main([*command, "--", "--max-len-a", "0", "--max-len-b", "12"]) == 0
    return read_evaluation(output)


def generate(workshop, checkpoint, path, *flags, apart=False):
    """A log as fairseq-generate leaves it; of a process of its own with what it says of itself."""
    command = ["fairseq-generate", workshop.data_bin, "--path", checkpoint, "--cpu"]
    command += ["--user-dir", Path(__file__).parents[2] / "neuron_spec", "--task", "neuron_specialization"]
    command += [
        "--langs",
        ",".join(workshop.langs),
        "--lang-pairs",
        workshop.lang_pairs,
        "-s",
        "en",
        "-t",
        "qa",
    ]
    command += [
        "--encoder-langtok",
        "src",
        "--decoder-langtok",
        "--beam",
        2,
        "--max-tokens",
        500,
        "--num-workers",
        0,
    ]
    command = [*map(str, [*command, "--max-len-a", 0, "--max-len-b", 12, *flags])]
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as log:
        if apart:
            module = [sys.executable, "-m", "fairseq_cli.generate", *command[1:]]
            subprocess.run(module, stdout=log, stderr=subprocess.STDOUT, check=True)
        else:
            with redirect_stdout(log), mock.patch.object(sys, "argv", command):
                cli_main()
    return path


@pytest.mark.slow
def test_real_logs_score_as_the_plain_evaluation_however_printed(workshop, checkpoint, plain, tmp_path):
    model = workshop.data_bin.parent / "spm" / "sentencepiece.model"
    bpe = ("--bpe", "sentencepiece", "--sentencepiece-model", model)
    shard = ("--remove-bpe", "sentencepiece", "--distributed-world-size", 2, "--distributed-rank")
    ways = {
        "raw": [()],
        "joined": [("--remove-bpe", "sentencepiece")],
        "decoded": [(*bpe, "--scoring", "sacrebleu")],
        "nbest": [(*bpe, "--nbest", 2, "--print-alignment", "--results-path", tmp_path / "nbest" / "en-qa")],
        "shards": [(*shard, 0), (*shard, 1)],
    }
    for name, runs in ways.items():  # the header of the first tells the direction
        logs = [
            generate(workshop, checkpoint, tmp_path / name / f"{i}/en-qa/log", *run, apart=name == "raw")
            for i, run in enumerate(runs)
        ]
        if name == "nbest":
            logs = [tmp_path / "nbest" / "en-qa" / "generate-test.txt"]
        output = tmp_path / name / "evaluation"
        assert main(["evaluate", "--generate-output", *map(str, logs), "--output", str(output)]) == 0
        (score,), (outputs,) = read_evaluation(output).scores, read_evaluation(output).outputs
        assert outputs.hypotheses == plain.outputs[0].hypotheses, name
        assert outputs.references == plain.outputs[0].references, name
        assert (score.bleu, score.chrf) == (plain.scores[0].bleu, plain.scores[0].chrf), name
    assert plain.scores[0].chrf > 0


def test_sacrebleu_of_real_logs_is_ours_unless_it_is_of_pieces(workshop, checkpoint, tmp_path, capsys):
    """Hypotheses begin as the references, so that there is something to score."""
    scores, said = [], []
    for name, flags in (("joined", ("--remove-bpe", "sentencepiece")), ("raw", ())):
        path = tmp_path / name / "en-qa" / "log"
        log = generate(workshop, checkpoint, path, "--prefix-size", 12, "--scoring", "sacrebleu", *flags)
        output = tmp_path / name / "evaluation"
        assert main(["evaluate", "--generate-output", str(log), "--output", str(output)]) == 0
        scores.append(read_evaluation(output).scores[0].bleu)
        said.append("it is of pieces" in (err := capsys.readouterr().err))
        assert ("sacreBLEU line" in err) == said[-1]
    assert scores[0] == scores[1] > 10
    assert said == [False, True]
