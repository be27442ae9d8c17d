"""What is known of a language is the same by whatever code it comes under."""

import subprocess
import sys
from pathlib import Path

import langcodes
import pytest

from neuron_spec import languages
from neuron_spec.corpora import toy
from neuron_spec.directions import Direction
from neuron_spec.errors import DirectionError
from neuron_spec.languages import (
    UNKNOWN,
    by_family,
    family_of,
    is_code,
    is_english,
    language,
    require_fairseq_codes,
    say_unknown_families,
    tree_distance,
)

TABLE = languages._language_table()
ISO_15924 = {name: code for code, name in languages._SCRIPTS.items()} | {
    "Han": "Hans",
    "Hangul": "Hang",
    "Japanese": "Jpan",
}
FLORES = str.split("""
acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab arb_Arab ars_Arab ary_Arab arz_Arab
asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng
bho_Deva bjn_Latn bod_Tibt bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn
cym_Latn dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn
fao_Latn fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr
hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn
ita_Latn jav_Latn jpn_Jpan kab_Latn kam_Latn kan_Knda kas_Arab kat_Geor knc_Latn kaz_Cyrl kea_Latn khm_Khmr
kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn
lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva
min_Latn mkd_Cyrl plt_Latn mlt_Latn khk_Cyrl mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pes_Arab pol_Latn por_Latn
prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr sin_Sinh
slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn als_Latn srd_Latn ssw_Latn sun_Latn
swe_Latn swh_Latn szl_Latn tam_Taml tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn tsn_Latn
tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn
vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
""")
MBART = str.split("""
ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP
nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN
mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
""")
M2M = str.split("""
af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu
hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt
ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu
""")
OPUS = str.split("""
an as dz eo eu ku ky li nb nn rw se sh te tg tk tt ug wa
""")  # those of OPUS-100 that are not M2M's
ENGLISH = ("en", "eng", "en_XX", "eng_Latn", "en-GB", "en_US", "EN", "en-Latn-US", "Eng_Latn")


def spellings(code: str) -> set[str]:
    tag = langcodes.Language.get(code)
    script = ISO_15924[TABLE[code].script]
    codes = {code, code.upper(), tag.to_alpha3(), tag.to_alpha3("B")}
    return {
        f"{of}{end}"
        for of in codes
        for end in ("", "_XX", f"_{script}", f"-{script}", "_150", f"_{script}_XX")
    }


@pytest.mark.parametrize("code", TABLE)
def test_every_spelling_has_the_same_row(code):
    for spelling in spellings(code):
        assert language(spelling) == TABLE[code], spelling


def test_scripts_of_the_table_are_the_usual_ones():
    usual = {code: langcodes.Language.get(code).maximize().script for code in TABLE}
    differing = {code for code, script in usual.items() if languages._SCRIPTS[script] != TABLE[code].script}
    # CLDR has no script for spoken Arabic and Azerbaijani of Iran; FLORES-200's for the others but Serbian.
    assert differing == {"acm", "acq", "ajp", "azb", "crh", "sr", "tzm"}


@pytest.mark.parametrize("code", FLORES)
def test_flores_codes_say_what_the_table_says(code):
    known = language(code)
    assert UNKNOWN not in (known.family, known.lineage)
    assert known == TABLE[known.code]


@pytest.mark.parametrize("code", [*MBART, *M2M, *OPUS])
def test_codes_of_well_known_models_and_corpora(code):
    known, short = language(code), code.partition("_")[0]
    assert UNKNOWN not in (known.family, known.lineage)
    assert known.code == {"ns": "nso", "sh": "sr"}.get(short, short)


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("cmn", "zh"), ("arb_Arab", "ar"), ("npi_Deva", "ne"), ("iw", "he"), ("in", "id"), ("nno", "nn"), ("fil", "tl"),
        ("pes_Arab", "fa"), ("pbt_Arab", "ps"), ("quy_Latn", "qu"), ("fuv_Latn", "ff"), ("pt-BR", "pt"), ("ger", "de"),
    ],
)  # fmt: skip
def test_macrolanguages_and_withdrawn_codes(code, same):
    assert language(code) == TABLE[same]


def test_the_script_is_the_codes_where_it_names_one():
    assert language("sr_Cyrl").script == "Cyrillic"
    assert language("srp-Latn") == language("sr")
    assert language("zho_Hans") == language("zh-Hant") == language("zh")
    assert language("zh_Latn").script == "Latin"
    assert language("sr_Cyrl").family == language("sr").family
    assert language("gsw_Latn").script == "Latin"  # not in the table


@pytest.mark.parametrize(
    "code", [*sorted(toy.FAMILIES.keys() - {"en"}), "xx", "qaa", "qaa_Latn", "qtz-Latn", "mul", "und", "zxx", "root", "x_y", "jp", "", "-", "en-a"]
)  # fmt: skip
def test_codes_of_no_language_stay_as_they_are(code):
    known = language(code)
    assert (known.code, known.name) == (code, code)
    assert {known.family, known.script, known.lineage} == {UNKNOWN}


@pytest.mark.parametrize("code", ENGLISH)
def test_english_under_any_code(code):
    assert is_english(code)
    assert not is_english(
        code.replace("en", "de").replace("EN", "DE").replace("Eng", "Deu").replace("deg", "deu")
    )
    if is_code(code):
        assert Direction(code, "qa").group.code == "O2M"
        assert Direction("deu_Latn", code).group.code == "M2O"
        assert Direction("deu_Latn", code).foreign == "deu_Latn"
        assert str(Direction("deu_Latn", code)) == f"deu_Latn-{code}"
        assert Direction("deu_Latn", code).family() == "Germanic"


def test_distance_and_order_go_by_language():
    assert tree_distance("deu_Latn", "nl_XX") == tree_distance("de", "nl") == 2
    assert tree_distance("sr_Latn", "sr_Cyrl") == tree_distance("xx", "xx") == 0
    assert tree_distance("xx", "de") is None
    assert by_family(["rus_Cyrl", "deu_Latn", "ces_Latn"]) == ["deu_Latn", "ces_Latn", "rus_Cyrl"]
    assert family_of("deu_Latn") == family_of("de")
    assert family_of("deu_Latn", {"de": "Germanic"}) == UNKNOWN  # a card names the codes of its own corpus


def test_unknown_families_are_said_in_one_line(capsys):
    say_unknown_families({"xx": UNKNOWN, "de": "Germanic", "aa": UNKNOWN})
    assert capsys.readouterr().err == (
        "languages with unknown family: aa, xx; name them in the corpus card\n"
    )
    say_unknown_families({"de": "Germanic"})
    assert capsys.readouterr().err == ""


def test_codes_that_fairseq_would_part():
    require_fairseq_codes(["zh_Hans", "en"])
    with pytest.raises(DirectionError, match=r"got: +zh-Hans, pt-BR[\s\S]*such as zh_Hans"):
        require_fairseq_codes(["en", "zh-Hans", "pt-BR"])


def test_the_tables_own_codes_need_no_library():
    code = (
        "import sys; from neuron_spec.directions import Direction\n"
        "assert Direction.parse('de-en').family() == 'Germanic'\n"
        "sys.exit('langcodes' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(languages.__file__).parents[1])
