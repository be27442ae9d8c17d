"""Scoring: properties of the scores, of reading logs, and of the files; the official EC30 figures."""

import builtins
import csv
import json
import random
import re
import shutil
import sys
from contextvars import copy_context
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from small_run import HYPOTHESES, REFERENCES, log_of, write_log

from neuron_spec.artifacts import versions, write_json
from neuron_spec.backends.fairseq.generation import Translator
from neuron_spec.cli.evaluate import _language_identifier as language_identifier
from neuron_spec.cli.main import main
from neuron_spec.directions import Direction
from neuron_spec.errors import ArtifactError, CorpusError, DirectionError, ModelError, NeuronSpecError
from neuron_spec.languages import set_pivot
from neuron_spec.scoring.bootstrap import resampled_scores
from neuron_spec.scoring.endpoints import SentenceScores
from neuron_spec.scoring.evaluation import (
    Evaluation,
    add,
    evaluate,
    is_evaluated,
    read_evaluation,
    scores_table,
    summarize,
    with_sentences,
    without_additions,
    write_evaluation,
)
from neuron_spec.scoring.language_id import LanguageIdentifier
from neuron_spec.scoring.logs import read_generate_output
from neuron_spec.scoring.metrics import DirectionScore, Outputs, detokenized, say_words_not_found, score

EN_DE = Direction("en", "de")
ENGLISH = ["The house is very old today .", "The cat sleeps on the sofa .", "We take the train to Berlin ."]


def official_scoring(outputs, **others):
    return score(detokenized(outputs), tokenizer="13a", **others)


# ---------------------------------------------------------------- scoring


def test_identical_hypotheses_score_100():
    result = score(Outputs(EN_DE, REFERENCES, REFERENCES))
    assert result.bleu == pytest.approx(100)
    assert result.chrf == pytest.approx(100)


def test_scores_and_signatures_are_sacrebleus():
    result = score(Outputs(EN_DE, HYPOTHESES, REFERENCES))
    bleu, chrf = BLEU(), CHRF(word_order=2)
    assert result.bleu == bleu.corpus_score(HYPOTHESES, [REFERENCES]).score < 100
    assert result.chrf == chrf.corpus_score(HYPOTHESES, [REFERENCES]).score < 100
    assert result.bleu_signature == str(bleu.get_signature())
    assert result.chrf_signature == str(chrf.get_signature())
    assert (result.hypothesis_tokens, result.reference_tokens) == (
        sum(len(line.split()) for line in HYPOTHESES),
        sum(len(line.split()) for line in REFERENCES),
    )


def test_row_order_does_not_matter():
    rows = list(zip(HYPOTHESES, REFERENCES, strict=True))
    random.Random(1).shuffle(rows)
    shuffled = Outputs(EN_DE, [h for h, _ in rows], [r for _, r in rows])
    assert score(shuffled) == score(Outputs(EN_DE, HYPOTHESES, REFERENCES))


def test_chinese_is_tokenized_by_character_and_the_signature_says_so():
    # Six characters are six words; 13a would see one.
    result = score(Outputs(Direction("en", "zh"), ["打开客厅的灯"], ["打开客厅的门"]))
    assert result.reference_tokens == 6
    assert "tok:zh" in result.bleu_signature
    german = score(Outputs(EN_DE, HYPOTHESES, REFERENCES), tokenizer="zh")
    assert german.bleu_signature == result.bleu_signature


@pytest.mark.parametrize(
    ("target", "line", "is_said"),
    [
        ("de", "打 开 客 厅 的 门", True),
        ("de", "打开客 ab", True),  # most of it
        ("de", "打开客 abc", False),
        ("de", "打开 abc", False),
        ("zh", "打开客厅的门", False),
    ],
)
def test_han_in_a_language_that_is_not_known_for_it_is_said_on_stderr(capsys, target, line, is_said):
    say_words_not_found([Outputs(Direction("en", target), [line], [line])])
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("warning: en-de: BLEU is by 13a") == is_said == bool(
        said.err
    )


def test_han_is_looked_for_in_every_direction_over_all_of_its_lines(capsys):
    words = ["打", "开", "门"]
    say_words_not_found([Outputs(Direction("en", code), words, words) for code in ("zh", "de", "fr")])
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["en-de:", "en-fr:"]


CHINESE = (
    "zh",
    "zho",
    "chi",
    "cmn",
    "zh_CN",
    "zh-Hans",
    "zho_Hant",
    "cmn_Hans",
    "zh-Hant-TW",
    "yue",
    "yue_Hant",
    "wuu",
)
JAPANESE = ("ja", "jpn", "ja_XX", "jpn_Jpan", "ja-JP")
KOREAN = ("ko", "kor", "ko_KR", "kor_Hang", "ko-Kore")


@pytest.mark.parametrize("target", CHINESE)
def test_chinese_is_chinese_under_every_code(target):
    hypotheses, references = ["打开客厅的灯", "关上门。"], ["打开客厅的门", "请关上门。"]
    expected = score(Outputs(Direction("en", "zh"), hypotheses, references))
    outputs = Outputs(Direction("eng_Latn", target), hypotheses, references)
    assert replace(score(outputs), direction=expected.direction) == expected
    assert expected.bleu > 50
    (of_compare,), (plain,) = (
        resampled_scores([text], samples=10)
        for text in (outputs, Outputs(Direction("en", "zh"), hypotheses, references))
    )
    assert of_compare["bleu"].signature == plain["bleu"].signature
    assert "tok:zh" in of_compare["bleu"].signature
    assert of_compare["bleu"].score == expected.bleu


@pytest.mark.parametrize("target", ["zh_Latn", "qa", "deu_Latn", "vie_Latn", "en_XX"])
def test_other_scripts_are_scored_with_13a(target):
    assert "tok:13a" in score(Outputs(Direction("fr", target), HYPOTHESES, REFERENCES)).bleu_signature


@pytest.mark.parametrize(
    ("target", "language", "package"),
    [*((code, "ja", "MeCab") for code in JAPANESE), *((code, "ko", "mecab_ko") for code in KOREAN)],
)
def test_absent_tokenizer_is_named(target, language, package, monkeypatch):
    hide(package, monkeypatch)
    # sacreBLEU keeps the tokenizer module it once imported.
    module = f"sacrebleu.tokenizers.tokenizer_{language}_mecab"
    monkeypatch.delitem(sys.modules, module, raising=False)
    outputs = Outputs(Direction("en", target), ["a"], ["a"])
    for scored in (lambda: score(outputs), lambda: resampled_scores([outputs], samples=10)):
        with pytest.raises(NeuronSpecError, match=rf"pip install \"sacrebleu\[{language}\]\""):
            scored()


@pytest.mark.parametrize(("language", "codes"), [("ja", JAPANESE), ("ko", KOREAN)])
def test_japanese_and_korean_have_one_signature(language, codes):
    pytest.importorskip({"ja": "MeCab", "ko": "mecab_ko"}[language])
    texts = {"ja": ["今日は天気がいいです。"], "ko": ["오늘은 날씨가 좋습니다."]}[language]
    signatures = {score(Outputs(Direction("en", code), texts, texts)).bleu_signature for code in codes}
    assert len(signatures) == 1 and f"tok:{language}-mecab" in signatures.pop()


def test_empty_and_off_target_rates():
    identifier = LanguageIdentifier().fit({"de": REFERENCES, "en": ENGLISH})
    outputs = Outputs(EN_DE, [REFERENCES[0], ENGLISH[1], ENGLISH[2], "  "], REFERENCES)
    result = score(outputs, language_id=identifier)
    assert result.empty_fraction == 0.25
    assert result.off_target_fraction == 0.5  # empty hypotheses are in no language
    assert result.language_id_accuracy_fraction == 1.0
    assert score(outputs).off_target_fraction is None
    with pytest.raises(CorpusError, match=r"got: +fr"):
        score(Outputs(Direction("en", "fr"), HYPOTHESES, REFERENCES), language_id=identifier)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        (["a"], ["a", "b"], "1 hypotheses, 2 references"),
        ([], [], "at least one sentence"),
        (["a\nb"], ["a"], "hypotheses, sentence 0"),
    ],
)
def test_outputs_that_do_not_belong_together(hypotheses, references, message):
    with pytest.raises(NeuronSpecError, match=message):
        Outputs(EN_DE, hypotheses, references)


# ---------------------------------------------------------------- means


def made_score(direction, bleu, off_target=None):
    return DirectionScore(
        Direction.parse(direction), bleu, 2 * bleu, 10, 50, 60, 0.0, off_target, None, "b", "c"
    )


def test_means_are_unweighted_by_group_tier_and_family():
    bleu = {"en-de": 10, "en-nl": 20, "en-it": 60, "de-en": 30, "de-it": 5}
    scores = [made_score(direction, value) for direction, value in bleu.items()]
    rows = {(m.kind, m.name, m.group): m for m in summarize(scores, tiers={"de": "high", "nl": "low"})}
    assert rows["overall", "all", "all"].bleu == 25
    assert rows["group", "O2M", "O2M"].bleu == 30
    assert rows["group", "M2O", "M2O"].bleu == 30
    assert rows["group", "X2Y", "X2Y"].chrf == 10
    assert rows["family", "Germanic", "O2M"].bleu == 15
    assert (rows["family", "Germanic", "all"].bleu, rows["family", "Germanic", "all"].directions) == (20, 3)
    assert rows["tier", "high", "all"].bleu == 20
    assert rows["tier", "unknown", "O2M"].bleu == 60  # it; de-it has no tier
    assert rows["tier", "unknown", "all"].directions == 1


@pytest.mark.parametrize("codes", [("en_XX", "de_DE", "nl_XX"), ("eng", "deu", "nld"), ("eng_Latn", "deu_Latn", "nld_Latn")])  # fmt: skip
def test_groups_and_families_go_by_language(codes):
    plain = ("en", "de", "nl")
    values = {(0, 1): 10, (1, 0): 20, (0, 2): 30, (2, 1): 40}
    rows, expected = (
        summarize([made_score(f"{of[s]}-{of[t]}", value) for (s, t), value in values.items()])
        for of in (codes, plain)
    )
    assert rows == expected
    assert {row.name for row in rows} == {"all", "O2M", "M2O", "X2Y", "Germanic"}


def test_a_corpus_without_tiers_has_none_to_show():
    assert {mean.kind for mean in summarize([made_score("en-de", 1)])} == {"overall", "group", "family"}


def test_given_families_come_before_the_language_table():
    means = summarize([made_score("en-de", 1)], families={"de": "Invented"})
    assert {m.name for m in means if m.kind == "family"} == {"Invented"}


def test_mean_off_target_rate_only_where_every_direction_has_one():
    with_rate, without = made_score("en-de", 1, 0.5), made_score("en-nl", 1)
    assert summarize([with_rate])[0].off_target_fraction == 0.5
    assert summarize([with_rate, without])[0].off_target_fraction is None


# ---------------------------------------------------------------- files


@pytest.fixture
def evaluation():
    odd = ["a\rb", "c\u2028d", "", "é|"]
    return evaluate(
        [Outputs(EN_DE, HYPOTHESES, REFERENCES, odd), Outputs(Direction("de", "en"), odd, odd)],
        signature={"stage": "evaluate", "inputs": {"checkpoint": "abc"}},
        language_id=LanguageIdentifier().fit({"de": REFERENCES, "en": ENGLISH}),
        families={"de": "Germanic"},
        tiers={"de": "high"},
    )


def test_reading_back_is_lossless(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation)
    assert read_evaluation(tmp_path) == evaluation
    assert (tmp_path / "hypotheses" / "en-de.txt").read_text(encoding="utf-8").split("\n")[:-1] == HYPOTHESES
    assert not (tmp_path / "sources" / "de-en.txt").exists()


def test_the_pivot_is_kept_and_groups_are_around_it(tmp_path, evaluation):
    def around():
        set_pivot({"pivot": "de"})
        written = evaluate(evaluation.outputs, signature=evaluation.signature)
        write_evaluation(tmp_path / "around", written)
        return read_evaluation(tmp_path / "around")

    back = copy_context().run(around)
    assert back.pivot == "de"
    write_evaluation(tmp_path / "usual", evaluation)
    for name, group in (("around", "M2O"), ("usual", "O2M")):
        rows = csv.DictReader((tmp_path / name / "scores.csv").read_text().splitlines())
        assert {row["direction"]: row["group"] for row in rows}["en-de"] == group
    assert "pivot" not in json.loads((tmp_path / "usual" / "scores.json").read_text())


def test_files_agree_with_each_other(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation)
    content = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["direction"] for row in rows] == list(content["directions"]) == ["en-de", "de-en"]
    assert float(rows[0]["bleu"]) == content["directions"]["en-de"]["bleu"] == evaluation.scores[0].bleu
    assert (rows[0]["group"], rows[0]["tier"], rows[0]["family"]) == ("O2M", "high", "Germanic")
    assert content["sacrebleu"]["bleu"] == [evaluation.scores[0].bleu_signature]
    assert content["directions"]["en-de"]["language_id_accuracy_fraction"] == 1.0
    assert f"| {evaluation.scores[0].bleu:.1f} |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "off_target_note" not in content
    own = evaluate(evaluation.outputs, signature=evaluation.signature, families={"de": "Own"})
    write_evaluation(tmp_path / "own", own)
    rows = csv.DictReader((tmp_path / "own" / "scores.csv").read_text(encoding="utf-8").splitlines())
    assert {row["family"] for row in rows} == {"Own"}


def test_an_unfinished_rewrite_is_not_taken_for_complete(tmp_path, evaluation, monkeypatch):
    write_evaluation(tmp_path, evaluation)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("neuron_spec.scoring.evaluation.scores_table", fail)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(tmp_path, evaluation)
    with pytest.raises(ArtifactError, match="neuron-spec evaluate"):
        read_evaluation(tmp_path)


def test_sources_of_an_earlier_run_do_not_stay(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation)
    without = evaluate([Outputs(EN_DE, HYPOTHESES, REFERENCES)], signature={})
    write_evaluation(tmp_path, without)
    assert read_evaluation(tmp_path) == without


def test_damaged_evaluations(tmp_path, evaluation):
    write_evaluation(tmp_path, evaluation)
    hypotheses = tmp_path / "hypotheses" / "en-de.txt"
    hypotheses.write_text("one line\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="1 lines"):
        read_evaluation(tmp_path)
    (tmp_path / "scores.json").write_text('{"directions": {"en-de": {"bleu": 1}}}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="not of the form"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"31.4"', "null", "true", "[1]"])
def test_scores_that_are_no_numbers_are_refused(tmp_path, evaluation, capsys, value):
    for name in ("one", "other"):
        write_evaluation(tmp_path / name, evaluation)
    path = tmp_path / "other" / "scores.json"
    text = path.read_text(encoding="utf-8")
    bleu = evaluation.scores[0].bleu
    path.write_text(text.replace(f'"bleu": {bleu}', f'"bleu": {value}', 1), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != text
    with pytest.raises(ArtifactError, match=r"not (of the form|valid JSON)"):
        read_evaluation(tmp_path / "other")
    assert (
        main(["compare", str(tmp_path / "one"), str(tmp_path / "other"), "--output", str(tmp_path / "c")])
        == 2
    )
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_sentence_scores_that_are_no_numbers_are_refused(tmp_path, value):
    path = tmp_path / "scores.csv"
    SentenceScores(text_nll=np.array([1.5, np.nan]), text_tokens=np.array([2.0, np.nan])).write(path)
    assert np.isnan(SentenceScores.read(path, 2).text_nll[1])
    path.write_text(path.read_text().replace("1.5", value))
    with pytest.raises(ArtifactError, match="damaged"):
        SentenceScores.read(path, 2)


def test_a_direction_given_twice():
    outputs = Outputs(EN_DE, HYPOTHESES, REFERENCES)
    with pytest.raises(DirectionError, match="en-de, en-de"):
        evaluate([outputs, outputs], signature={})


# ---------------------------------------------------------------- official scoring


def hide(package, monkeypatch):
    """Make ``import package`` fail, whether or not it is installed."""
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_absent_detokenizer_is_named(monkeypatch):
    hide("sacremoses", monkeypatch)
    with pytest.raises(NeuronSpecError, match="pip install sacremoses"):
        official_scoring(Outputs(EN_DE, HYPOTHESES, REFERENCES))


@pytest.mark.parametrize(("plain", "others"), [("de", ("deu_Latn", "de_DE", "de-CH")), ("fr", ("fra_Latn", "fr_XX")), ("ga", ("gle_Latn",)), ("zh", CHINESE), ("en", ("eng_Latn", "en_XX"))])  # fmt: skip
def test_the_detokenizer_goes_by_language(plain, others):
    pytest.importorskip("sacremoses")
    lines = ["l' eau , c' est l' eau ! n' est-ce pas ?", "打 开 客厅 的 门 。", "it 's James ' Gate ; 9 : 30"]
    expected = detokenized(Outputs(Direction("es", plain), lines, lines)).references
    for code in others:
        assert detokenized(Outputs(Direction("es", code), lines, lines)).references == expected


def test_official_scoring_changes_references_too():
    pytest.importorskip("sacremoses")
    outputs = Outputs(EN_DE, ["Um 9 : 30 Uhr , in St. James ' Gate ."], ["Um 9:30 Uhr @-@ jetzt ."])
    assert detokenized(outputs).sources is None
    changed = detokenized(replace(outputs, sources=["At 9 : 30 , it 's James ' Gate ."]))
    assert changed.sources == ["At 9: 30, it's James' Gate."]
    # The closing apostrophe moves to the next word in German, as the official text has it.
    assert changed.hypotheses == ["Um 9: 30 Uhr, in St. James 'Gate."]
    assert changed.references == ["Um 9:30 Uhr-jetzt."]
    assert evaluate([outputs], signature={}, official=True).scores == [official_scoring(outputs)]


OFFICIAL = Path(__file__).parents[3] / "shared" / "official_ec30"
OFFICIAL_LOGS = sorted(OFFICIAL.glob("*/*/generate-test.txt"))


@pytest.mark.skipif(not OFFICIAL_LOGS, reason=f"no official EC30 outputs in {OFFICIAL}")
@pytest.mark.parametrize("log", OFFICIAL_LOGS, ids=lambda log: f"{log.parts[-3]}/{log.parts[-2]}")
def test_official_figures_are_reproduced_to_the_printed_precision(log):
    pytest.importorskip("sacremoses")
    bleu = json.loads((log.parent / "test_detok_bleu.txt").read_text(encoding="utf-8"))
    chrf = json.loads((log.parent / "test_detok_chrfpp.txt").read_text(encoding="utf-8"))
    lengths = re.search(r"hyp_len = (\d+) ref_len = (\d+)", bleu["verbose_score"])

    outputs = read_generate_output(log)
    texts = detokenized(outputs)
    result = official_scoring(outputs)

    for ours, name in ((texts.hypotheses, "test-sys.txt"), (texts.references, "test-ref.txt")):
        assert ours == (log.parent / name).read_bytes().decode("utf-8").split("\n")[:-1]
    assert round(result.bleu, 1) == bleu["score"]
    assert round(result.chrf, 1) == chrf["score"]
    assert [result.hypothesis_tokens, result.reference_tokens] == [int(n) for n in lengths.groups()]
    for ours, theirs in ((result.bleu_signature, bleu), (result.chrf_signature, chrf)):
        assert ours.partition("|version")[0] == theirs["signature"].partition("|version")[0]


# Translating, by the command


@pytest.mark.parametrize("flag", ["--fp16", "--bf16"])
def test_an_evaluation_in_half_precision_is_another(workshop, checkpoint, tmp_path, capsys, flag):
    command = ["evaluate", str(workshop.data_bin), "--path", str(checkpoint), "--output", str(tmp_path / "e")]
    command += ["--cpu", "--lang-pairs", "en-qa", "--beam", "1"]
    end = ["--", "--max-len-a", "0", "--max-len-b", "4"]
    assert main([*command, flag, *end]) == 0
    signature = read_evaluation(tmp_path / "e").signature
    assert signature["parameters"]["dtype"] == flag.removeprefix("--")
    capsys.readouterr()
    assert main([*command, flag, *end]) == 0
    assert "complete already" in capsys.readouterr().err
    assert main([*command, *end]) == 2
    assert "another evaluation" in capsys.readouterr().err


def test_the_model_is_of_the_precision_asked_for(workshop, checkpoint, capsys):
    def translator(*flags):
        return Translator(
            checkpoint,
            workshop.data_bin,
            [Direction("en", "qa")],
            "test",
            ["--cpu", "--max-tokens", "500", *flags],
        )

    for flags, dtype in (((), "float32"), (("--fp16",), "float16"), (("--bf16",), "bfloat16")):
        (model,) = translator(*flags).models
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    with pytest.raises(ModelError, match="two precisions"):
        translator("--fp16", "--bf16")
    with pytest.raises(SystemExit):
        main(["evaluate", "anywhere", "--path", "a.pt", "--output", "e", "--fp16", "--bf16"])
    assert "not allowed with" in capsys.readouterr().err


# ---------------------------------------------------------------- table.md


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_named(table, name):
    return [cells(line) for line in table.split("\n") if line.startswith("|") and cells(line)[0] == name]


def evaluated(**changes):
    scores = [
        replace(made_score(f"en-{lang}", bleu), **changes) for lang, bleu in (("de", 10.0), ("it", 20.0))
    ]
    return Evaluation({}, [], scores, tiers={"de": "high"})


def test_scores_table_shows_directions_means_and_signatures():
    table = scores_table(evaluated(off_target_fraction=0.125, language_id_accuracy_fraction=0.99))
    in_table, further = row_named(table, "en-it")
    assert in_table == ["en-it", "10", "20.0", "40.0", "-", "-", "12.5%", "0.0%", "99.0%"]
    assert further == ["en-it", "-", "-", "-"]
    assert row_named(table, "all") == [["all", "all", "2", "15.0", "30.0", "-", "-", "12.5%", "0.0%"]]
    assert row_named(table, "high")[0] == ["high", "O2M", "1", "10.0", "20.0", "-", "-", "12.5%", "0.0%"]
    assert "- BLEU: `b`" in table
    assert "- chrF++: `c`" in table
    assert "No likelihood" in table
    assert "COMET" not in table
    assert {row.kind for row in evaluated().summary} == {"overall", "group", "tier", "family"}
    assert all(row_named(table, row.name) for row in evaluated().summary)


def test_scores_table_shows_likelihood_lengths_and_comet():
    known = {
        "nll": 2.0,
        "tag_nll": 0.25,
        "bits_per_character": 1.5,
        "length_ratio": 0.9,
        "brevity_penalty": 0.8,
    }
    table = scores_table(evaluated(**known, comet=0.7))
    assert row_named(table, "all") == [
        ["all", "all", "2", "15.0", "30.0", "2.000", "0.7000", "0.900", "-", "0.0%"]
    ]
    for of in ("mean of all", "mean of O2M"):
        assert row_named(table, of) == [[of, "1.500", "0.250", "0.800"]]
    assert "No likelihood" not in table


def test_headings_and_columns():
    lines = scores_table(evaluated()).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "## Directions by group",
        "## Tiers",
        "## Families of the non-English language",
        "## Directions",
        "## Likelihood and length, further",
    ]
    figures = ["BLEU", "chrF++", "NLL", "length ratio", "off-target", "empty"]
    of_means, of_directions = ["mean over", "group", "directions"], ["direction", "sentences"]
    assert [
        cells(line) for line, rule in pairwise(lines) if rule.startswith("|-") or rule.startswith("| -")
    ] == [
        *[[*of_means, *figures]] * 3,
        [*of_directions, *figures, "references identified"],
        ["direction", "bits per character", "NLL of the tag", "brevity penalty"],
    ]


# ---------------------------------------------------------------- likelihood and lengths


def test_lengths_are_those_of_bleu():
    for hypotheses in (
        HYPOTHESES,
        REFERENCES,
        [f"{line} {line}" for line in REFERENCES],
        ["", "", "", ""],
        ["Haus", "", "", ""],
    ):
        bleu = BLEU().corpus_score(hypotheses, [REFERENCES])
        result = score(Outputs(EN_DE, hypotheses, REFERENCES))
        assert result.brevity_penalty == bleu.bp
        assert result.length_ratio == bleu.sys_len / bleu.ref_len
    assert score(Outputs(EN_DE, ["a"], [""])).length_ratio is None


def test_figures_of_sentences_are_ratios_of_sums():
    nll, tokens, nan = [2.0, 4.0, np.nan, 6.0], [3.0, 5.0, np.nan, 8.0], np.nan
    known = SentenceScores(np.array(nll), np.array(tokens), np.array([0.5, 0.1, nan, 0.3]), np.ones(4) / 2)
    bare = evaluate(
        [Outputs(EN_DE, HYPOTHESES, REFERENCES), Outputs(Direction("de", "en"), ["a"], ["b"])], signature={}
    )
    result, other = with_sentences(bare, {EN_DE: known}).scores
    assert result.nll == 12 / 16
    assert result.tag_nll == pytest.approx(0.3)
    assert result.comet == 0.5
    characters = sum(len(line) for i, line in enumerate(REFERENCES) if i != 2)
    assert result.bits_per_character == pytest.approx(12 / np.log(2) / characters)
    assert (other.nll, other.tag_nll, other.bits_per_character, other.comet) == (None,) * 4
    assert {m.nll for m in with_sentences(bare, {EN_DE: known}).summary if m.directions == 2} == {None}


def test_bits_are_of_the_references_that_bleu_sees():
    pytest.importorskip("sacremoses")
    outputs = Outputs(EN_DE, ["Um 9 : 30 Uhr"], ["Um 9 : 30 Uhr"])
    known = {EN_DE: SentenceScores(np.array([np.log(2)]), np.array([5.0]))}
    for official, characters in ((True, len("Um 9: 30 Uhr")), (False, len("Um 9 : 30 Uhr"))):
        bare = evaluate([outputs], signature={}, official=official)
        (result,) = with_sentences(bare, known, official=official).scores
        assert result.bits_per_character == pytest.approx(1 / characters)


def test_references_without_characters_have_no_bits():
    known = {EN_DE: SentenceScores(np.array([1.0]), np.array([1.0]))}
    (result,) = with_sentences(evaluate([Outputs(EN_DE, ["a"], [""])], signature={}), known).scores
    assert (result.nll, result.bits_per_character) == (1.0, None)


def test_sentences_without_a_likelihood_are_told():
    bare = evaluate([Outputs(EN_DE, HYPOTHESES, REFERENCES)], signature={})
    known = SentenceScores(np.array([1.0, 2.0, np.nan, np.nan]), np.array([1.0, 2.0, np.nan, np.nan]))
    table = scores_table(with_sentences(bare, {EN_DE: known}))
    assert "NLL: negative log-likelihood" in table and "2 of en-de" in table


# ---------------------------------------------------------------- additions


def signed(**parameters):
    made = {"subset": "test", **parameters}
    return {"stage": "evaluate", "inputs": {"checkpoint": "abc"}, "parameters": made, "versions": versions()}


def test_what_lacks_an_addition_is_the_same_evaluation_and_not_whole(tmp_path, capsys):
    bare = evaluate([Outputs(EN_DE, HYPOTHESES, REFERENCES)], signature=signed())
    write_json(tmp_path / "signature.json", signed())
    write_evaluation(tmp_path, bare)
    assert is_evaluated(tmp_path, signed())
    assert not is_evaluated(tmp_path, signed(likelihood=True))
    known = {EN_DE: SentenceScores(np.ones(4), np.ones(4))}
    add(tmp_path, with_sentences(bare, known), signed(likelihood=True), "likelihood")
    assert is_evaluated(tmp_path, signed(likelihood=True))
    assert is_evaluated(tmp_path, signed())  # it holds more than is asked
    assert not is_evaluated(tmp_path, signed(comet="a"))
    here = read_evaluation(tmp_path)
    scored = with_sentences(here, {EN_DE: replace(here.sentences[EN_DE], comet=np.ones(4))})
    add(tmp_path, scored, signed(comet="a"), "comet", **{"unbabel-comet": "2.2.4"})
    for wanted in (signed(), signed(likelihood=True), signed(comet="a"), signed(likelihood=True, comet="a")):
        assert is_evaluated(tmp_path, wanted)
    with pytest.raises(ArtifactError, match=r'got: +parameters.comet: "a"'):
        is_evaluated(tmp_path, signed(comet="b"))
    with pytest.raises(ArtifactError, match="another evaluation"):
        is_evaluated(tmp_path, signed(subset="valid"))
    made = read_evaluation(tmp_path).signature
    assert list(made["parameters"]) == ["subset", "likelihood", "comet"]
    assert made["added_with"]["comet"]["unbabel-comet"] == "2.2.4"
    assert "likelihood" not in made["added_with"]  # of the versions that translated


def test_what_adds_is_recorded_where_its_version_is_another(tmp_path):
    old = {**signed(), "versions": {"neuron_spec": "0.0.1"}}
    bare = evaluate([Outputs(EN_DE, HYPOTHESES, REFERENCES)], signature=old)
    known = {EN_DE: SentenceScores(np.ones(4), np.ones(4))}
    made = add(tmp_path, with_sentences(bare, known), signed(likelihood=True), "likelihood").signature
    assert made["versions"] == {"neuron_spec": "0.0.1"}
    assert made["added_with"] == {"likelihood": versions()}
    both = add(tmp_path, read_evaluation(tmp_path), signed(comet="a"), "comet").signature
    assert both["added_with"] == {"likelihood": versions(), "comet": versions()}


@pytest.mark.parametrize("unsaid", [False, True])
def test_what_adds_is_not_recorded_where_its_version_is_the_same(tmp_path, unsaid):
    made_by = {"versions": versions()}
    here = {key: value for key, value in signed().items() if not unsaid or key not in made_by}
    bare = evaluate([Outputs(EN_DE, HYPOTHESES, REFERENCES)], signature=here)
    made = add(tmp_path, bare, signed(likelihood=True), "likelihood").signature
    assert made == signed(likelihood=True)


def test_an_evaluation_without_signature_is_nobodys(tmp_path, evaluation):
    assert not is_evaluated(tmp_path, signed())
    write_evaluation(tmp_path, evaluation)
    with pytest.raises(ArtifactError, match=r"(?s)another evaluation is already here\n.*got: +no signature"):
        is_evaluated(tmp_path, signed())


def test_a_signature_without_parameters_has_no_additions(evaluation):
    assert without_additions(evaluation.signature) == evaluation.signature


# ---------------------------------------------------------------- why there is no off-target rate


def test_logs_have_no_off_target_rate_and_say_why(tmp_path, capsys):
    log = write_log(tmp_path, log_of(HYPOTHESES, REFERENCES))
    output = tmp_path / "out"
    assert main(["evaluate", "--generate-output", str(log), "--output", str(output)]) == 0
    assert capsys.readouterr().err.count("Off-target is not measured: logs hold no training text") == 1
    note = json.loads((output / "scores.json").read_text())["off_target_note"]
    assert note.startswith("logs hold no training text")
    assert read_evaluation(output).off_target_note == note


def test_languages_without_family_are_named_once(tmp_path, capsys):
    directions = ("en-qa", "qa-en", "en-de")
    logs = [write_log(tmp_path, log_of(HYPOTHESES, REFERENCES), direction) for direction in directions]
    words = ["evaluate", "--generate-output", *map(str, logs), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert capsys.readouterr().err.count("languages with unknown family: qa;") == 1


def own_corpus(folder, pairs, texts, card):
    (folder / "raw").mkdir()
    for pair in pairs:
        for code in pair.split("-"):
            (folder / "raw" / f"train.{pair}.{code}").write_text("".join(f"{line}\n" for line in texts[code]))
    (folder / "corpus.json").write_text(json.dumps(card))
    return folder / "data-bin"


def test_off_target_between_two_languages_without_english(tmp_path):
    texts = {"deu_Latn": REFERENCES, "qa": ["tapo kipo", "poki tipa", "kopa tako"], "nl": ENGLISH}
    card = {"langs": [*texts], "lang_pairs": ["deu_Latn-qa", "qa-deu_Latn", "qa-nl", "nl-qa"]}
    directions = [Direction.parse(pair) for pair in card["lang_pairs"]]
    data_bin = own_corpus(tmp_path, ["qa-deu_Latn", "qa-nl"], texts, card)
    identifier, note = language_identifier(data_bin, card, directions)
    assert note is None
    assert identifier.languages == card["langs"]
    assert identifier.identify([lines[0] for lines in texts.values()]) == card["langs"]


def test_why_there_is_no_language_identifier(tmp_path):
    texts = {"de": REFERENCES, "en": ENGLISH}
    card = {"langs": ["en", "de", "fr"], "lang_pairs": ["en-de", "en-fr"]}
    data_bin = own_corpus(tmp_path, ["de-en"], texts, card)
    assert language_identifier(data_bin, {}, [EN_DE])[1].startswith("no corpus.json beside the data-bin")
    assert language_identifier(data_bin, card, [EN_DE]) == (
        None,
        "no raw training text beside the data-bin, of fr",
    )
    known = {"langs": ["en", "de"], "lang_pairs": ["en-de"]}
    assert language_identifier(data_bin, known, [EN_DE])[0].languages == ["en", "de"]
    assert language_identifier(data_bin, known, [Direction("en", "it")])[1].endswith("of it")


def test_a_data_bin_without_card_is_scored_and_says_why_without_off_target(
    workshop, checkpoint, tmp_path, capsys
):
    data_bin = shutil.copytree(workshop.data_bin, tmp_path / "data-bin")
    command = [
        "evaluate",
        data_bin,
        "--path",
        checkpoint,
        "--output",
        tmp_path / "out",
        "--cpu",
        "--beam",
        "1",
    ]
    assert main([*map(str, [*command, "--lang-pairs", "en-qa", "--references", "data-bin"])]) == 0
    said = capsys.readouterr().err
    assert said.count("Off-target is not measured: no corpus.json beside the data-bin") == 1
    assert said.count("languages with unknown family: qa;") == 1
