from __future__ import annotations

import sys

import pytest

from mtllm_edge.errors import UsageError
from mtllm_edge.languages.identification import identify, language_tag
from mtllm_edge.languages.resolver import LanguageResolver
from mtllm_edge.languages.scripts import detect_script
from mtllm_edge.languages.warnings import LanguageWarning

SENTENCES = {
    "Die Rakete erreichte am Abend die Umlaufbahn um die Erde.": "deu_Latn",
    "The rocket reached the orbit around the Earth in the evening.": "eng_Latn",
    "Ракета вечером вышла на орбиту вокруг Земли.": "rus_Cyrl",
    "Ракета је увече стигла у орбиту око Земље.": "srp_Cyrl",
    "火箭在晚上进入了环绕地球的轨道。": "zho_Hans",
    "火箭在晚上進入了環繞地球的軌道。": "zho_Hant",
    "ロケットは夕方に地球の軌道に到達しました。": "jpn_Jpan",
    "로켓은 저녁에 지구 궤도에 도달했다.": "kor_Hang",
    "وصل الصاروخ إلى مدار الأرض في المساء.": "arb_Arab",
    "रॉकेट शाम को पृथ्वी की कक्षा में पहुँच गया।": "hin_Deva",
    "რაკეტამ საღამოს დედამიწის ორბიტას მიაღწია.": "kat_Geor",
    "Roketi ilifika kwenye mzunguko wa dunia jioni.": "swh_Latn",
    "ᱫᱟᱨᱮ ᱠᱚ ᱦᱟᱨᱟᱜ ᱠᱟᱱᱟ": "sat_Olck",
}


def test_sentences_are_identified() -> None:
    texts = list(SENTENCES)
    for codes, needed in ([], False), (sorted(set(SENTENCES.values())), True):
        assert LanguageResolver(codes, needed=needed).resolve(texts, "auto") == list(SENTENCES.values())


def test_texts_without_words() -> None:
    assert identify(["12:30", "😀 😀", "?!"]) == [None] * 3
    assert LanguageResolver([], needed=False).resolve(["12:30"], "AUTO") == ["und"]
    resolver = LanguageResolver(["deu_Latn", "eng_Latn"], needed=True)
    with pytest.warns(LanguageWarning, match="without an identifiable language are processed as eng_Latn"):
        assert resolver.resolve(["12:30"], "auto") == ["eng_Latn"]
    with pytest.warns(LanguageWarning, match="are processed as de_DE"):
        assert LanguageResolver(["de_DE"], needed=True).resolve(["12:30"], "auto") == ["de_DE"]


def test_identified_languages_that_the_encoder_does_not_support() -> None:
    georgian = next(text for text, code in SENTENCES.items() if code == "kat_Geor")
    with pytest.warns(LanguageWarning, match="no language similar to ka-Geor, .*; eng_Latn is used"):
        assert LanguageResolver(["eng_Latn"], needed=True).resolve([georgian], "auto") == ["eng_Latn"]
    serbian = next(text for text, code in SENTENCES.items() if code == "srp_Cyrl")
    with pytest.warns(LanguageWarning, match=r"does not support Serbian .*; Croatian \(hrv_Latn\) is used"):
        assert LanguageResolver(["eng_Latn", "hrv_Latn"], needed=True).resolve([serbian], "auto") == ["hrv_Latn"]


def test_pairs_and_choices_are_identified_as_one_text() -> None:
    german, english = list(SENTENCES)[:2]
    codes = LanguageResolver([], needed=False).resolve([(german, german), (english, [english, english])], "auto")
    assert codes == ["deu_Latn", "eng_Latn"]


def test_one_language_per_text() -> None:
    resolver = LanguageResolver([], needed=False)
    german = next(iter(SENTENCES))
    assert resolver.resolve([german] * 4, ["auto", None, "fr", "Zulu"]) == ["deu_Latn", None, "fra_Latn", "zul_Latn"]
    assert resolver.resolve([], "auto") == resolver.resolve([], []) == []
    with pytest.raises(UsageError, match="there are 2 texts and 1 languages"):
        resolver.resolve(["a", "b"], ["de"])
    with pytest.raises(UsageError, match="text 1: unknown language 'blah'"):
        resolver.resolve(["a", "b"], ["de", "blah"])
    with pytest.raises(UsageError, match="text 0: its language has the type int"):
        resolver.resolve(["a"], [3])  # type: ignore[list-item]


def test_an_encoder_that_requires_a_language() -> None:
    resolver = LanguageResolver(["deu_Latn", "swh_Latn"], needed=True)
    with pytest.raises(
        UsageError, match="requires the language of the texts; pass one of deu_Latn, swh_Latn, or 'auto'"
    ):
        resolver.resolve(["a"], None)
    with pytest.raises(UsageError, match="the language of text 1"):
        resolver.resolve(["a", "b"], ["de", None])
    with pytest.warns(LanguageWarning) as caught:
        assert resolver.resolve(["a", "b", "c"], ["lb", "lb", "gsw"]) == ["deu_Latn"] * 3
    assert len(caught) == 2  # one per language


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    assert LanguageResolver([], needed=False).resolve(["a"], "de") == ["deu_Latn"]
    with pytest.raises(UsageError, match=r"the extra \[lang\] \(py3langid not installed\); run: pip install"):
        LanguageResolver([], needed=False).resolve(["a"], "auto")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße", "Latn"),
        ("ABC и ещё немного", "Cyrl"),
        ("日本", "Hani"),
        ("日本の車", "Jpan"),
        ("这个国家", "Hans"),
        ("這個國家", "Hant"),
        ("ꯃꯤꯇꯩꯂꯣꯟ", "Mtei"),
        ("123 ...", None),
        ("", None),
        ("𐀀𐀁", None),
    ],
)
def test_scripts(text: str, script: str | None) -> None:
    assert detect_script(text) == script


@pytest.mark.parametrize(
    ("label", "script", "tag"),
    [
        ("sr", "Latn", "sr-Latn"),
        ("zh", "Hant", "zh-Hant"),
        ("yue", "Hans", "yue-Hans"),
        ("en", "Deva", "hi-Deva"),
        ("zxx", "Latn", None),
        (None, "Thai", "th-Thai"),
        (None, "Arab", None),
    ],
)
def test_a_label_is_combined_with_the_script(label: str | None, script: str, tag: str | None) -> None:
    assert language_tag(label, script) == tag
