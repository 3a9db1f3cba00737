"""Every source gets a license file inside the bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import ModelError
from mtllm_edge_export.licenses import write_licenses


def text_of(bundle: Path, license_name: str) -> str:
    source = WeightSource(part="encoder", name="Some encoder", license=license_name)
    (placed,) = write_licenses(bundle, [source], bundle)
    assert placed.file is not None
    return (bundle / placed.file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("license_name", "words"),
    [
        ("Apache-2.0", "Grant of Patent License"),
        ("MIT", "The above copyright notice and this permission notice"),
        ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("CC-BY-SA-4.0", "https://creativecommons.org/licenses/by-sa/4.0/legalcode"),
        ("CC-BY-NC-4.0", "may not be used for commercial purposes"),
        ("CC-BY-2.0-FR", "https://creativecommons.org/licenses/by/2.0/fr/"),
        ("Apache-2.0 AND CC-BY-SA-4.0", "by-sa/4.0"),
        ("Only on Sundays!", "a custom license"),
    ],
)
def test_text(license_name: str, words: str, tmp_path: Path) -> None:
    text = text_of(tmp_path, license_name)
    assert words in text
    assert f"License: {license_name}" in text
    assert "encoder: Some encoder" in text


def test_one_file_per_license_names_all_its_parts(tmp_path: Path) -> None:
    sources = [WeightSource(part=part, name=f"the {part}", license="MIT") for part in ("encoder", "tokenizer")]
    placed = write_licenses(tmp_path, sources, tmp_path)
    assert {source.file for source in placed} == {"LICENSES/MIT.txt"}
    text = (tmp_path / "LICENSES" / "MIT.txt").read_text(encoding="utf-8")
    assert "encoder: the encoder" in text
    assert "tokenizer: the tokenizer" in text


def test_a_checkpoints_own_text_is_copied(tmp_path: Path) -> None:
    (tmp_path / "checkpoint" / "terms").mkdir(parents=True)
    (tmp_path / "checkpoint" / "terms" / "COMMUNITY LICENCE.md").write_text("be kind")
    (tmp_path / "bundle").mkdir()
    source = WeightSource(part="llm", name="x", license="Community", file="terms/COMMUNITY LICENCE.md")
    (placed,) = write_licenses(tmp_path / "bundle", [source], tmp_path / "checkpoint")
    assert placed.file == "LICENSES/terms-COMMUNITY-LICENCE.md"
    assert (tmp_path / "bundle" / placed.file).read_text() == "be kind"


@pytest.mark.parametrize("file", ["missing.txt", "../outside.txt"])
def test_a_text_outside_the_checkpoint_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "bundle").mkdir()
    source = WeightSource(part="llm", name="x", license="Community", file=file)
    with pytest.raises(ModelError, match="which is missing"):
        write_licenses(tmp_path / "bundle", [source], tmp_path / "checkpoint")
