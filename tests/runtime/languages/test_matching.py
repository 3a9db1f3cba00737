from __future__ import annotations

import re

import pytest

from mtllm_edge.errors import UsageError
from mtllm_edge.languages.flores200 import FLORES_200
from mtllm_edge.languages.matching import LanguageMatcher, title
from mtllm_edge.languages.related import similarity_rank

NLLB = tuple(code for code in FLORES_200 if code not in ("arb_Latn", "min_Arab", "nqo_Nkoo"))
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN "
    "pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_M2M100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
MBART, M2M100 = _MBART.split(), _M2M100.split()
STYLES = {
    "nllb": LanguageMatcher(NLLB),
    "mbart": LanguageMatcher(MBART),
    "m2m100": LanguageMatcher(M2M100),
    "none": LanguageMatcher(),
}

# form -> code by NLLB, mBART, M2M100, and where the encoder needs none
FORMS = {
    "deu_Latn": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "DEU-latn": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "de": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "de_DE": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "de-AT": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "deu": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "ger": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    " german ": ("deu_Latn", "de_DE", "de", "deu_Latn"),
    "en_XX": ("eng_Latn", "en_XX", "en", "eng_Latn"),
    "English": ("eng_Latn", "en_XX", "en", "eng_Latn"),
    "pt-BR": ("por_Latn", "pt_XX", "pt", "por_Latn"),
    "Portuguese (Brazil)": ("por_Latn", "pt_XX", "pt", "por_Latn"),
    "zh": ("zho_Hans", "zh_CN", "zh", "zho_Hans"),
    "cmn": ("zho_Hans", "zh_CN", "zh", "zho_Hans"),
    "zh-CN": ("zho_Hans", "zh_CN", "zh", "zho_Hans"),
    "Simplified Chinese": ("zho_Hans", "zh_CN", "zh", "zho_Hans"),
    "ar": ("arb_Arab", "ar_AR", "ar", "arb_Arab"),
    "Arabic": ("arb_Arab", "ar_AR", "ar", "arb_Arab"),
    "sw": ("swh_Latn", "sw_KE", "sw", "swh_Latn"),
    "swa": ("swh_Latn", "sw_KE", "sw", "swh_Latn"),
    "Swahili": ("swh_Latn", "sw_KE", "sw", "swh_Latn"),
    "lv": ("lvs_Latn", "lv_LV", "lv", "lvs_Latn"),
    "fa": ("pes_Arab", "fa_IR", "fa", "pes_Arab"),
    "Farsi": ("pes_Arab", "fa_IR", "fa", "pes_Arab"),
    "ps": ("pbt_Arab", "ps_AF", "ps", "pbt_Arab"),
    "mn": ("khk_Cyrl", "mn_MN", "mn", "khk_Cyrl"),
    "ne": ("npi_Deva", "ne_NP", "ne", "npi_Deva"),
    "tl": ("tgl_Latn", "tl_XX", "tl", "tgl_Latn"),
    "Filipino": ("tgl_Latn", "tl_XX", "tl", "tgl_Latn"),
    "iw": ("heb_Hebr", "he_IL", "he", "heb_Hebr"),
    "az": ("azj_Latn", "az_AZ", "az", "azj_Latn"),
    "ko": ("kor_Hang", "ko_KR", "ko", "kor_Hang"),
    "jpn_Jpan": ("jpn_Jpan", "ja_XX", "ja", "jpn_Jpan"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_by_styles(form: str) -> None:
    matches = [languages.match(form) for languages in STYLES.values()]
    assert tuple(match.code for match in matches) == FORMS[form]
    assert {match.note for match in matches} == {None}


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ("zh-Hant", "zho_Hant"),
        ("zh-TW", "zho_Hant"),
        ("Chinese (Traditional)", "zho_Hant"),
        ("Cantonese", "yue_Hant"),
        ("tw", "twi_Latn"),
        ("ak", "aka_Latn"),
        ("no", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("ku", "kmr_Latn"),
        ("ckb", "ckb_Arab"),
        ("Central Kurdish", "ckb_Arab"),
        ("sq", "als_Latn"),
        ("om", "gaz_Latn"),
        ("qu", "quy_Latn"),
        ("ff", "fuv_Latn"),
        ("ks", "kas_Arab"),
        ("ks-Deva", "kas_Deva"),
        ("prs", "prs_Arab"),
        ("fa-AF", "prs_Arab"),
        ("ms", "zsm_Latn"),
        ("id", "ind_Latn"),
        ("arz", "arz_Arab"),
        ("Egyptian Arabic", "arz_Arab"),
        ("ns", "nso_Latn"),
        ("sr", "srp_Cyrl"),
    ],
)
def test_forms_of_what_flores_tells_apart(form: str, code: str) -> None:
    for languages in (STYLES["nllb"], STYLES["none"]):
        match = languages.match(form)
        assert (match.code, match.note) == (code, None)


@pytest.mark.parametrize("style", STYLES)
def test_every_code_is_found_as_it_stands(style: str) -> None:
    codes = {"nllb": NLLB, "mbart": MBART, "m2m100": M2M100, "none": FLORES_200}[style]
    languages = STYLES[style]
    assert [languages.match(code).code for code in codes] == list(codes)
    assert [languages.match(code.upper().replace("_", "-")).code for code in codes] == list(codes)


def test_every_english_name_is_found_again() -> None:
    """Of languages that have the same name in two scripts, the usual one is found."""
    missed = {
        code: name for code, name in STYLES["none"].titles().items() if STYLES["none"].match(name).code[:3] != code[:3]
    }
    assert not missed


# meant -> used by NLLB, mBART, M2M100
NEAREST = {
    "bar": ("deu_Latn", "de_DE", "de"),
    "Swiss German": ("deu_Latn", "de_DE", "de"),
    "nds": ("deu_Latn", "de_DE", "de"),
    "apd": ("arb_Arab", "ar_AR", "ar"),
    "wuu": ("zho_Hans", "zh_CN", "zh"),
    "sr-Latn": ("bos_Latn", "hr_HR", "bs"),
    "co": ("ita_Latn", "it_IT", "it"),
    "csb": ("pol_Latn", "pl_PL", "pl"),
    "haw": ("mri_Latn", None, None),
    "nr": ("zul_Latn", "xh_ZA", "zu"),
    "kok": ("mar_Deva", "mr_IN", "mr"),
    "yue-Hant": ("yue_Hant", "zh_CN", "zh"),
    "nno": ("nno_Latn", "sv_SE", "no"),
    "Chuvash": (None, None, None),
    "Navajo": (None, None, None),
}


@pytest.mark.parametrize("meant", NEAREST)
def test_the_nearest_language_is_used_and_named(meant: str) -> None:
    for style, code in zip(STYLES, NEAREST[meant], strict=False):
        languages = STYLES[style]
        if code is None:
            with pytest.raises(UsageError, match=f"the encoder does not know .*{meant}.*, nor a language near to it"):
                languages.match(meant)
            continue
        match = languages.match(meant)
        assert match.code == code
        assert match.note is None or (code in match.note and meant in match.note)
        assert (match.note is None) == (style == "nllb" and code[:3] in ("yue", "nno"))


def test_a_note_is_one_sentence() -> None:
    note = "the encoder does not know Bavarian (bar); German (deu_Latn) is used"
    assert STYLES["nllb"].match("bar").note == note


def test_an_encoder_that_needs_no_language_is_told_any() -> None:
    assert STYLES["none"].match("Bavarian").code == "bar_Latn"
    assert STYLES["none"].match("bar_latn").code == "bar_Latn"
    assert STYLES["none"].match("nv").code == "nav_Latn"
    assert STYLES["none"].match("und").code == "und"  # what `auto` says of texts in no language, read again


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Germn", "did you mean German (deu_Latn)"),
        ("deu_Lat", "did you mean deu_Latn"),
        ("Portugese", "did you mean Portuguese (por_Latn)"),
        ("xyz123", "known are ace_Arab"),
        ("", "known are ace_Arab"),
        ("und", ""),
        ("x" * 10_000, "known are ace_Arab"),
        ("de\n<>", ""),
    ],
)
def test_names_of_no_language(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"unknown language {name[:80]!r}"[:-1])) as caught:
        STYLES["nllb"].match(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=re.escape(str(caught.value))):
        STYLES["nllb"].match(name)


def test_names_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtllm_edge.languages.matching._MOST_KEPT", 2)
    known = LanguageMatcher(["deu_Latn", "fra_Latn", "rus_Cyrl"])
    for _ in range(2):
        assert [known.match(name).code for name in ("de", "fr", "ru")] == ["deu_Latn", "fra_Latn", "rus_Cyrl"]
        for name in ("aaa1", "bbb1", "ccc1"):
            with pytest.raises(UsageError, match=name):
                known.match(name)
    assert [len(known._found), len(known._refused)] == [2, 2]


def test_kin() -> None:
    assert similarity_rank("bar", "de") == 0
    assert similarity_rank("bar", "gsw") is not None
    assert similarity_rank("bar", "fr") is None
    assert similarity_rank("xx", "xx") is None
    assert title("deu_Latn") == "German"
    assert title("de_DE") == "German"
    assert title("??") == "??"
