"""Groups of languages, and the files that define them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm_edge.errors import DataError, MtllmError, UsageError
from mtllm_edge_train.evaluation.language_groups import Group, language_groups, read_seen, read_sentences

LANGUAGES = ["ace_Arab", "ace_Latn", "deu_Latn", "ell_Grek", "eng_Latn", "fra_Latn", "rus_Cyrl"]


def test_every_language_but_the_source_is_once_in_each_kind() -> None:
    groups = language_groups(
        LANGUAGES,
        source="eng_Latn",
        seen={"deu_Latn", "fra_Latn", "eng_Latn"},
        sentences={"ace_Latn": 999, "deu_Latn": 10_000, "fra_Latn": 9_999, "rus_Cyrl": 1_000},
    )
    assert groups == [
        Group("language", "eng_Latn", ("eng_Latn",)),
        Group("all", "all others", ("ace_Arab", "ace_Latn", "deu_Latn", "ell_Grek", "fra_Latn", "rus_Cyrl")),
        Group("encoder", "seen by the encoder", ("deu_Latn", "fra_Latn")),
        Group("encoder", "unseen by the encoder", ("ace_Arab", "ace_Latn", "ell_Grek", "rus_Cyrl")),
        Group("script", "Latn script", ("ace_Latn", "deu_Latn", "fra_Latn")),
        Group("script", "other scripts", ("ace_Arab", "ell_Grek", "rus_Cyrl")),
        Group("sentences", "under 1,000 sentences", ("ace_Arab", "ace_Latn", "ell_Grek")),
        Group("sentences", "1,000–9,999 sentences", ("fra_Latn", "rus_Cyrl")),
        Group("sentences", "from 10,000 sentences", ("deu_Latn",)),
    ]


def test_missing_information_makes_no_group() -> None:
    assert language_groups(["de", "en"], source="eng_Latn") == [Group("all", "all languages", ("de", "en"))]
    assert language_groups(["eng_Latn"], source="eng_Latn") == [Group("language", "eng_Latn", ("eng_Latn",))]
    assert [group.kind for group in language_groups(["deu_Latn", "fra_Latn"], source="eng_Latn")] == ["all"]


def test_files_of_codes_and_counts(tmp_path: Path) -> None:
    (tmp_path / "seen.txt").write_text("deu_Latn, fra_Latn\nrus_Cyrl")
    assert read_seen(str(tmp_path / "seen.txt"), LANGUAGES) == {"deu_Latn", "fra_Latn", "rus_Cyrl"}
    assert "swh_Latn" in read_seen("e5", LANGUAGES)
    (tmp_path / "counts.tsv").write_text("lang\tbible\tsentences\ndeu_Latn\t5\t12\nace_Latn\t0\t0\n")
    assert read_sentences(tmp_path / "counts.tsv") == {"deu_Latn": 12, "ace_Latn": 0}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "counts does not exist"),
        ("", DataError, "counts holds no rows"),
        ("lang,sentences\ndeu_Latn,3\n", UsageError, "expected lang and sentences, with a tab"),
        ("lang\tsentences\ndeu_Latn\tmany\n", DataError, "counts row 2 has no whole number"),
        ("lang\tsentences\ndeu_Latn\n", DataError, "counts row 2 has 1 cells"),
    ],
)
def test_a_bad_file_of_counts(tmp_path: Path, content: str | None, error: type[MtllmError], message: str) -> None:
    if content is not None:
        (tmp_path / "counts").write_text(content)
    with pytest.raises(error, match=message):
        read_sentences(tmp_path / "counts")


def test_a_bad_file_of_codes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_seen(str(tmp_path / "seen"), LANGUAGES)
    (tmp_path / "seen").write_text("de fr")
    with pytest.raises(DataError, match="names none of the data's languages, such as ace_Arab"):
        read_seen(str(tmp_path / "seen"), LANGUAGES)
