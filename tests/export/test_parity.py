"""The numbers of the comparison, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from mtllm_edge.bundle.manifest import Parity
from mtllm_edge.errors import ModelError
from mtllm_edge_export.parity import check_parity, compare_vectors, load_sentences


def row(component: str, low: float, mean: float) -> Parity:
    return Parity(component=component, cosine_min=low, cosine_mean=mean, fvu=0.0, samples=3)


def test_sentences_cover_languages_and_scripts() -> None:
    sentences = load_sentences()
    assert len(sentences) >= 60
    assert len({sentence.language for sentence in sentences}) >= 30
    assert len({sentence.language[-4:] for sentence in sentences}) >= 12
    assert all(sentence.text == sentence.text.strip() and len(sentence.text) > 10 for sentence in sentences)


def test_measures() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    same = compare_vectors("stack", expected, expected)
    assert (same.cosine_min, same.fvu, same.samples) == (pytest.approx(1.0), 0.0, 3)
    turned = compare_vectors("stack", expected, np.array([[0.0, 1.0], [0.0, 2.0], [3.0, 3.0]]))
    assert turned.cosine_min == pytest.approx(0.0)
    assert turned.cosine_mean == pytest.approx(2 / 3)
    assert turned.fvu == pytest.approx(2 / np.square(expected - expected.mean(0)).sum())
    mean_only = compare_vectors("stack", expected, np.broadcast_to(expected.mean(0), expected.shape))
    assert mean_only.fvu == pytest.approx(1.0)


def test_a_row_of_zeros_is_no_match() -> None:
    assert compare_vectors("stack", np.eye(2), np.zeros((2, 2))).cosine_mean == 0.0


def test_float_bundles_are_judged_by_their_worst_sentence() -> None:
    check_parity([row("encoder", 0.1, 0.1), row("stack", 0.9991, 0.9999)], quantized=False)
    with pytest.raises(ModelError, match=r"lowest cosine 0\.9989, expected 0\.999 \(.*stack 0\.9989 to mean 0\.9999"):
        check_parity([row("encoder", 1.0, 1.0), row("stack", 0.9989, 0.9999)], quantized=False)


def test_quantised_bundles_are_judged_by_the_mean() -> None:
    check_parity([row("stack", 0.5, 0.91)], quantized=True)
    with pytest.raises(ModelError, match=r"mean cosine 0\.8900, expected 0\.9 .*finer quantization"):
        check_parity([row("stack", 0.5, 0.89)], quantized=True)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ModelError, match="cosine nan"):
        check_parity([row("stack", float("nan"), float("nan"))], quantized=True)
