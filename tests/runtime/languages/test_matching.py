from __future__ import annotations

import re

import pytest

from mtllm_edge.errors import UsageError
from mtllm_edge.languages.flores200 import FLORES_200
from mtllm_edge.languages.matching import LanguageMatcher, title

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
MATCHERS = {
    "nllb": LanguageMatcher(NLLB),
    "mbart": LanguageMatcher(MBART),
    "m2m100": LanguageMatcher(M2M100),
    "none": LanguageMatcher(),
}

# name -> code of NLLB, of mBART, of M2M100, and of encoders without language codes
NAMES = {
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


@pytest.mark.parametrize("name", NAMES)
def test_names_match_the_codes_of_each_style(name: str) -> None:
    matches = [matcher.match(name) for matcher in MATCHERS.values()]
    assert tuple(match.code for match in matches) == NAMES[name]
    assert {match.note for match in matches} == {None}


@pytest.mark.parametrize(
    ("name", "code"),
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
def test_names_of_languages_that_flores_distinguishes(name: str, code: str) -> None:
    for matcher in (MATCHERS["nllb"], MATCHERS["none"]):
        match = matcher.match(name)
        assert (match.code, match.note) == (code, None)


@pytest.mark.parametrize("style", MATCHERS)
def test_every_code_matches_itself(style: str) -> None:
    codes = {"nllb": NLLB, "mbart": MBART, "m2m100": M2M100, "none": FLORES_200}[style]
    matcher = MATCHERS[style]
    assert [matcher.match(code).code for code in codes] == list(codes)
    assert [matcher.match(code.upper().replace("_", "-")).code for code in codes] == list(codes)


def test_every_english_name_matches_its_language() -> None:
    """A name that two scripts share matches the usual script."""
    matcher = MATCHERS["none"]
    mismatches = {code: name for code, name in matcher.titles().items() if matcher.match(name).code[:3] != code[:3]}
    assert not mismatches


# requested language -> substitute by NLLB, mBART, M2M100
SUBSTITUTES = {
    "Swiss German": ("deu_Latn", "de_DE", "de"),
    "apd": ("arb_Arab", "ar_AR", "ar"),
    "wuu": ("zho_Hans", "zh_CN", "zh"),
    "sr-Latn": ("bos_Latn", "hr_HR", "bs"),
    "yue-Hant": ("yue_Hant", "zh_CN", "zh"),
    "nno": ("nno_Latn", None, "no"),
    "Bavarian": (None, None, None),
    "Chuvash": (None, None, None),
    "Navajo": (None, None, None),
}


@pytest.mark.parametrize("name", SUBSTITUTES)
def test_a_close_language_is_substituted_with_a_note(name: str) -> None:
    for style, code in zip(MATCHERS, SUBSTITUTES[name], strict=False):
        matcher = MATCHERS[style]
        if code is None:
            with pytest.raises(
                UsageError, match=f"the encoder (does not support|supports neither) .*{name}.*codes are"
            ):
                matcher.match(name)
            continue
        match = matcher.match(name)
        assert match.code == code
        assert match.note is None or (code in match.note and name in match.note)
        assert (match.note is None) == (style == "nllb" and code[:3] in ("yue", "nno"))


def test_messages_name_the_substitute_or_the_nearest_codes() -> None:
    note = "the encoder does not support Swiss German (gsw); German (deu_Latn) is used instead"
    assert MATCHERS["nllb"].match("gsw").note == note
    message = "the encoder does not support Breton (br); the nearest codes are French (fra_Latn)"
    with pytest.raises(UsageError, match=re.escape(message)):
        MATCHERS["nllb"].match("br")
    message = "the encoder supports neither Navajo (nv) nor a similar language; supported codes are de_DE, en_XX"
    with pytest.raises(UsageError, match=re.escape(message)):
        LanguageMatcher(["de_DE", "en_XX"]).match("nv")


def test_an_encoder_without_codes_accepts_any_language() -> None:
    matcher = MATCHERS["none"]
    assert matcher.match("Bavarian").code == "bar_Latn"
    assert matcher.match("bar_latn").code == "bar_Latn"
    assert matcher.match("nv").code == "nav_Latn"
    assert matcher.match("und").code == "und"  # the result of `auto` for texts in no language


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Germn", "did you mean German (deu_Latn)"),
        ("deu_Lat", "did you mean deu_Latn"),
        ("Portugese", "did you mean Portuguese (por_Latn)"),
        ("xyz123", "supported codes are ace_Arab"),
        ("", "supported codes are ace_Arab"),
        ("und", ""),
        ("x" * 10_000, "supported codes are ace_Arab"),
        ("de\n<>", ""),
    ],
)
def test_unknown_names_are_refused_with_similar_ones(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"unknown language {name[:80]!r}"[:-1])) as caught:
        MATCHERS["nllb"].match(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=re.escape(str(caught.value))):
        MATCHERS["nllb"].match(name)


def test_the_cache_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtllm_edge.languages.matching._CACHE_SIZE", 2)
    matcher = LanguageMatcher(["deu_Latn", "fra_Latn", "rus_Cyrl"])
    for _ in range(2):
        assert [matcher.match(name).code for name in ("de", "fr", "ru")] == ["deu_Latn", "fra_Latn", "rus_Cyrl"]
        for name in ("aaa1", "bbb1", "ccc1"):
            with pytest.raises(UsageError, match=name):
                matcher.match(name)
    assert matcher._cached_lookup.cache_info().currsize == 2


def test_titles() -> None:
    assert [title(code) for code in ("deu_Latn", "de_DE", "??")] == ["German", "German", "??"]
