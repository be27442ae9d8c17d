from contextvars import copy_context
from itertools import product

import pytest

from neuron_spec.directions import (
    FROM_ENGLISH,
    Direction,
    direction_id,
    direction_of,
    matching,
    parse_directions,
)
from neuron_spec.errors import DirectionError
from neuron_spec.languages import UNKNOWN, by_family, family_of, language, set_pivot


def test_parse_and_write_are_inverse():
    assert Direction.parse("de-en") == Direction("de", "en")
    assert str(Direction.parse(" zh-yue ")) == "zh-yue"


CODES = (
    *("en", "de", "zh", "yue", "qa", "qtz", "BR", "Hans", "419", "en_XX", "deu_Latn", "zh_Hans_CN"),
    *("zh-Hans", "zh-Hant-TW", "pt-BR", "en-GB", "sr-latn", "es-419", "zho-Hans", "eng-Latn", "en-XX"),
)


def test_what_is_written_is_read_back():
    for direction in (Direction(s, t) for s, t in product(CODES, CODES)):
        assert Direction.parse(str(direction)) == direction


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("zh-Hans-en", "zh-Hans", "en"),
        ("en-pt-BR", "en", "pt-BR"),
        ("zh-Hans-pt-BR", "zh-Hans", "pt-BR"),
        ("sr-Latn-RS-sr-Cyrl-RS", "sr-Latn-RS", "sr-Cyrl-RS"),
        ("qa-zh-hans", "qa", "zh-hans"),
        ("en_XX-zh_CN", "en_XX", "zh_CN"),
    ],
)
def test_hyphenated_codes_are_read(text, source, target):
    assert Direction.parse(text) == Direction(source, target)


@pytest.mark.parametrize(
    "text",
    [
        *("", "de", "de-", "-en", "de-en-fr", "de_en", "-", "--", "de--en", "de-en-", "en-pt-br", "zh-yue-en"),
        *("qa-Hans-en", "x-Hans-en", "en-DE-GB-fr", "../../x-en", "de-e n", "de-é", "de\n-en", "=cmd-en", "de-en.txt"),
    ],
)  # fmt: skip
def test_malformed_direction(text):
    with pytest.raises(DirectionError, match="malformed direction"):
        Direction.parse(text)


@pytest.mark.parametrize(
    "code",
    ["", "../../x", "d e", "é", "a-b", "en-de", "en-pt-br", "=cmd", "de\n", "Hans-zh", "qaa-Latn", "/"],
)
def test_codes_that_cannot_be_in_a_direction(code):
    for source, target in ((code, "en"), ("en", code)):
        with pytest.raises(DirectionError, match="not a language code"):
            Direction(source, target)


def test_lists_keep_their_order_and_refuse_repeats():
    assert [str(d) for d in parse_directions("qb-en,en-qa,")] == ["qb-en", "en-qa"]
    assert parse_directions(["en-qa"]) == [Direction("en", "qa")]
    with pytest.raises(DirectionError, match="twice"):
        parse_directions("en-qa,qa-en,en-qa")
    with pytest.raises(DirectionError, match="no directions"):
        parse_directions(" , ")


def test_ids_are_distinct_and_follow_langs_alone():
    langs = ["en", "qa", "qb", "qm"]
    ids = [direction_id(Direction(s, t), langs) for s, t in product(langs, langs)]
    assert ids == list(range(16))
    assert direction_id(Direction("qa", "en"), langs) != direction_id(Direction("qa", "en"), langs[::-1])


def test_an_id_leads_back_to_its_direction():
    langs = ["en", "qa", "qb"]
    for direction in (Direction(s, t) for s, t in product(langs, langs)):
        assert direction_of(direction_id(direction, langs), langs) == direction


@pytest.mark.parametrize(
    ("text", "key", "code", "words", "arrow", "foreign"),
    [
        ("en-de", "en-x", "O2M", "en->x", "en→x", "de"),
        ("de-en", "x-en", "M2O", "x->en", "x→en", "de"),
        ("de-nl", "x-y", "X2Y", "without English", "x→y", None),
    ],
)
def test_the_group_of_a_direction(text, key, code, words, arrow, foreign):
    direction = Direction.parse(text)
    group = direction.group
    assert (group.key, group.code, group.text, group.arrow) == (key, code, words, arrow)
    assert direction.foreign == foreign
    assert direction.arrow == text.replace("-", "→")
    assert direction.placed_by("source") == (foreign or direction.source)
    assert direction.placed_by("target") == (foreign or direction.target)


def test_the_family_of_a_direction_is_that_of_its_language_other_than_english():
    assert Direction("en", "de").family() == Direction("nl", "en").family() == language("de").family
    assert Direction("de", "nl").family() == UNKNOWN  # it has two
    assert Direction("en", "de").family({"de": "ours"}) == family_of("de", {"de": "ours"}) == "ours"
    assert Direction("en", "ru").family({"de": "ours"}) == family_of("xx") == UNKNOWN


@pytest.mark.parametrize("direction", [Direction("en", "xx"), Direction("xx", "en")])
def test_id_of_an_unknown_language(direction):
    with pytest.raises(DirectionError, match="unknown language") as caught:
        direction_id(direction, ["en", "qa"])
    assert "xx" in str(caught.value) and "en,qa" in str(caught.value)


def test_patterns():
    directions = parse_directions("en-qa,qa-en,en-qb")
    assert matching("en-*", directions) == parse_directions("en-qa,en-qb")
    assert matching("*", directions) == directions
    with pytest.raises(DirectionError, match="names no direction"):
        matching("qb-*", directions)


def test_language_table():
    assert language("de").family == language("nl").family != language("ru").family
    assert language("xx").family == UNKNOWN
    codes = ["ru", "de", "cs", "nl", "es"]
    ordered = by_family(codes)
    assert sorted(ordered) == sorted(codes)
    families = [language(code).family for code in ordered]
    assert families == sorted(families)


@pytest.mark.parametrize(
    ("pivot", "text", "words", "arrow", "foreign"),
    [
        ("pt_BR", "pt_BR-en", "pt_BR->x", "pt_BR→x", "en"),
        ("pt_BR", "en-pt_BR", "x->pt_BR", "x→pt_BR", "en"),
        ("pt_BR", "pt-en", "without pt_BR", "x→y", None),  # pt is another language
        ("pt_BR", "en-de", "without pt_BR", "x→y", None),
        (None, "en-de", "x->y", "x→y", None),
        ("en", "eng_Latn-de", "en->x", "en→x", "de"),
    ],
)
def test_another_language_may_stand_in_the_place_of_english(pivot, text, words, arrow, foreign):
    def around():
        set_pivot({"pivot": pivot})
        group = Direction.parse(text).group
        assert (group.text, group.arrow, Direction.parse(text).foreign) == (words, arrow, foreign)

    copy_context().run(around)
    assert Direction("en", "de").group == FROM_ENGLISH, "it ends with its context"


def test_a_card_without_a_pivot_puts_english_back():
    def again():
        set_pivot({"pivot": "de"})
        set_pivot({"langs": ["en", "de"]})
        assert Direction("en", "de").group.text == "en->x"
        set_pivot({"pivot": "de"})
        set_pivot(None)
        assert Direction("en", "de").group.text == "en->x"

    copy_context().run(again)
