from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mtllm_edge import Classifier, Embedder, console
from mtllm_edge.cli import views
from mtllm_edge.jobs.output import LanguageSummary
from mtllm_edge.languages.warnings import LanguageWarning
from tests.fixtures.cli_result import Run
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close, assert_vectors_close

CODES = ("deu_Latn", "eng_Latn", "swh_Latn", "zho_Hans")
TEXTS = ["the team is good", "das ist gut", "timu ni nzuri", "中国 在 这 里", "the team is good"]
LANGUAGES = ["eng_Latn", "German", "sw", "zh-CN", "deu_Latn"]
CODES_USED = ["eng_Latn", "deu_Latn", "swh_Latn", "zho_Hans", "deu_Latn"]


@pytest.fixture(scope="module")
def language_bundle(tiny_variant: Callable[..., Path]) -> Path:
    """A bundle with language tokens, as NLLB has."""
    return tiny_variant(languages=CODES)


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_texts_of_several_languages_in_one_batch(language_bundle: Path) -> None:
    with Classifier.load(language_bundle, task="topic") as classifier:
        together = classifier.classify(TEXTS, language=LANGUAGES)
        single_predictions = [
            classifier.classify([text], language=code)[0] for text, code in zip(TEXTS, LANGUAGES, strict=True)
        ]
    assert [prediction.language for prediction in together] == CODES_USED
    for one, other in zip(together, single_predictions, strict=True):
        assert_probabilities_close(one.probabilities, other.probabilities, LLAMA_CPP)
    assert together[0].probabilities != together[4].probabilities  # the same text in two languages


def test_vectors_of_several_languages(language_bundle: Path) -> None:
    with Embedder.load(language_bundle) as embedder:
        together_NE = embedder.embed(TEXTS, language=LANGUAGES)
        single_NE = [embedder.embed([text], language=code)[0] for text, code in zip(TEXTS, LANGUAGES, strict=True)]
        with pytest.warns(LanguageWarning, match="Luxembourgish"):
            luxembourgish_NE = embedder.embed(TEXTS[:1], language="lb")
        german_NE = embedder.embed(TEXTS[:1], language="de")
    assert_vectors_close(together_NE, single_NE, LLAMA_CPP)
    np.testing.assert_array_equal(luxembourgish_NE, german_NE)


def test_languages_do_not_change_results_of_an_encoder_without_language_tokens(tiny_bundle: Path) -> None:
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        untagged, tagged = classifier.classify(TEXTS), classifier.classify(TEXTS, language=LANGUAGES)
        assert classifier.predict(TEXTS, language="auto").tolist() == [prediction.label for prediction in untagged]
    assert [prediction.language for prediction in untagged] == [None] * len(TEXTS)
    assert [prediction.language for prediction in tagged] == CODES_USED
    assert [prediction.probabilities for prediction in untagged] == [prediction.probabilities for prediction in tagged]


def test_languages_in_the_output_of_commands(run: Run, tiny_bundle: Path) -> None:
    texts = ["Das ist ein gutes Hotel in der Stadt.", "这个酒店很好，我们喜欢它。", "This is a good hotel in the town."]
    for name in ("--lang", "--language"):
        result = run("classify", "-b", tiny_bundle, "-t", "topic", name, "auto", *texts)
        assert result.code == 0
        rows = _rows(result.out)
        assert list(rows[0]) == ["text", "label", "confidence", "truncated", "language"]
        assert [row["language"] for row in rows] == ["deu_Latn", "zho_Hans", "eng_Latn"]
    lines = result.err.splitlines()
    assert lines[0].split() == ["language", "texts", "mean", "confidence", "labels"]
    assert {line.split()[0] for line in lines[2:5]} == {"deu_Latn", "zho_Hans", "eng_Latn"}
    assert lines[-1].startswith("3 texts in ")
    table = run("classify", "-b", tiny_bundle, "-t", "topic", "--lang", "de", "--format", "table", *texts)
    assert table.out.count("deu_Latn") == 3
    assert table.err.count("\n") == 1  # one requested language needs no table
    embedded = run("embed", "-b", tiny_bundle, "--lang", "auto", *texts)
    assert [json.loads(line)["language"] for line in embedded.out.splitlines()] == ["deu_Latn", "zho_Hans", "eng_Latn"]
    assert embedded.err.splitlines()[0].split() == ["language", "texts"]


def test_a_column_of_languages(run: Run, language_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,lang\nthe team,English\nteam,gsw\ngood,lb\nbad,\n", encoding="utf-8")
    command = ["classify", "-b", language_bundle, "-t", "topic", "a.csv", "--language-column", "lang"]
    result = run(*command, "--lang", "sw")
    assert result.code == 0
    assert [row["language"] for row in _rows(result.out)] == ["eng_Latn", "deu_Latn", "deu_Latn", "swh_Latn"]
    notes = [line for line in result.err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: the encoder does not support Swiss German (gsw); German (deu_Latn) is used instead",
        "note: the encoder does not support Luxembourgish (lb); German (deu_Latn) is used instead",
    ]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("text,lang\na,en\nb,\n", [], "a.csv row 3, column 'lang', has no language; add one, or pass --lang auto"),
        (
            "text,lang\na,Englisch\n",
            [],
            "a.csv row 2, column 'lang': unknown language 'Englisch'; did you mean English",
        ),
        ("text,code\na,en\n", [], "a.csv row 1 has no column 'lang', only 'text', 'code'"),
        (
            "text,lang\na,nv\n",
            [],
            "the encoder supports neither Navajo (nv) nor a similar language; supported codes are deu_Latn",
        ),
        ("text,lang\na,en\n", ["--lang", "Germn"], "did you mean German (deu_Latn)?"),
    ],
)
def test_invalid_languages(
    run: Run, language_bundle: Path, tmp_path: Path, content: str, arguments: list[str], message: str
) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    result = run(
        "classify",
        "-b",
        language_bundle,
        "-t",
        "topic",
        "a.csv",
        "--language-column",
        "lang",
        *arguments,
        "-o",
        "o.csv",
        "--strict",
    )
    assert result.code in (1, 2)
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "o.csv").exists()


def test_a_missing_extra_is_named(run: Run, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    result = run("classify", "-b", tiny_bundle, "-t", "topic", "--lang", "auto", "text")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: this command needs the extra [lang] (py3langid not installed); run: pip install 'mtllm-edge[lang]'\n"
    )


def test_languages_of_a_bundle(run: Run, language_bundle: Path, tiny_bundle: Path) -> None:
    assert run("languages", language_bundle).out.splitlines() == [
        "deu_Latn\tGerman",
        "eng_Latn\tEnglish",
        "swh_Latn\tSwahili",
        "zho_Hans\tChinese",
    ]
    assert run("languages", tiny_bundle).out == run("languages").out
    assert "bod_Tibt\tTibetan\n" in run("languages").out
    assert "4, --lang is required" in run("info", language_bundle).out


def test_the_summary_merges_rare_languages() -> None:
    summary = LanguageSummary()
    for index in range(13):
        for _ in range(20 - index):
            summary.add(f"l{index:02}", "yes" if index % 2 else "no", index / 20)
    summary.add(None, "yes", 1.0)
    lines = console.render(views.languages_table(summary)).decode().splitlines()
    assert len(lines) == 2 + 10 + 1
    assert lines[2].split() == ["l00", "20", "0.000", "no", "100%"]
    assert lines[-1].split() == ["3", "others", "27", "0.546", "no", "67%,", "yes", "33%"]
