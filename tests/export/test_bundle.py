"""A whole checkpoint becomes a whole bundle, or nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.bundle.manifest import GgufQuantization, Parity
from mtllm_edge.errors import ModelError, MtllmError, UsageError
from mtllm_edge_export import bundle
from mtllm_edge_export.bundle import export_bundle
from mtllm_edge_export.encoders.spec import EncoderQuantization
from mtllm_edge_train.models.loading import load_stack
from mtllm_edge_train.models.stack import pad_right
from tests.fixtures.run_gguf import cosines
from tests.fixtures.tiny_checkpoint import LANGUAGES, save_checkpoint
from tests.fixtures.tolerances import ENGINES, assert_probabilities_close

TEXTS = ["Good morning.", "おはようございます", "காலை வணக்கம்", "x", "один два три " * 30]


def by_component(rows: tuple[Parity, ...]) -> dict[str, Parity]:
    return {row.component: row for row in rows}


def test_float_bundle_follows_torch_on_every_sentence(float_bundle: Path) -> None:
    parity = by_component(Bundle.open(float_bundle).manifest.parity)
    assert set(parity) == {"encoder", "llm", "stack", "task topic", "task sentiment"}
    assert min(row.cosine_min for row in parity.values()) >= 0.9999
    assert max(row.fvu for row in parity.values()) < 1e-4
    assert parity["stack"].samples >= 60
    assert parity["encoder"].samples > 50 * parity["stack"].samples


def test_runtime_gives_the_padded_torch_batch(checkpoint: Path, float_bundle: Path) -> None:
    """Padding in torch, token budgets in the runtime: the vectors are the same."""
    stack = load_stack(checkpoint)
    ids_NL, mask_NL = pad_right(stack.tokenizer.encode(TEXTS))
    with torch.inference_mode():
        expected_ND = stack(ids_NL, mask_NL)
        logits_NC = stack.heads["sentiment"](expected_ND)
    with Embedder.load(float_bundle, threads=1) as embedder, pytest.warns(UserWarning, match="1 of 5 texts"):
        found_ND = embedder.embed(TEXTS)
    assert cosines(expected_ND.numpy(), found_ND).min() >= 0.9999
    with Classifier.load(float_bundle, task="sentiment", threads=1) as classifier:
        predictions = classifier.classify(TEXTS[:4])
    expected_NC = torch.softmax(logits_NC, dim=1).numpy()[:4]
    found_NC = np.array([list(prediction.probabilities.values()) for prediction in predictions])
    assert_probabilities_close(found_NC, expected_NC, ENGINES)


def test_manifest_tells_what_the_checkpoint_is(float_bundle: Path) -> None:
    bundle = Bundle.open(float_bundle)
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.name, manifest.encoder.family, manifest.llm.architecture) == ("tiny", "bert", "llama")
    assert (manifest.encoder.prefix_tokens, manifest.encoder.suffix_tokens) == (("[CLS]",), ("[SEP]",))
    assert (manifest.llm.n_layer, manifest.llm.n_embd, manifest.languages) == (2, 64, ())
    assert manifest.tasks["sentiment"].labels == ("negative", "neutral", "positive")
    assert {source.file for source in manifest.sources} == {
        "LICENSES/MIT.txt",
        "LICENSES/Apache-2.0.txt",
        "LICENSES/CC-BY-SA-4.0.txt",
    }
    assert set(manifest.files) >= {source.file for source in manifest.sources}
    assert sorted(path.name for path in float_bundle.iterdir()) == [
        "LICENSES",
        "bridge.safetensors",
        "bundle.json",
        "encoder",
        "llm.gguf",
        "tasks",
        "tokenizer.json",
    ]


def test_language_tokens_and_bidirectional_attention(nllb_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_bundle(
        nllb_checkpoint, tmp_path / "bundle", encoder_quantization="float32", llm_quantization="f32"
    )
    assert (manifest.encoder.family, manifest.llm.architecture) == ("m2m_100", "llama-embed")
    assert manifest.languages == LANGUAGES
    assert manifest.encoder.prefix_tokens == ("{language}",)
    assert min(row.cosine_min for row in manifest.parity) >= 0.9999
    with Embedder.load(tmp_path / "bundle", threads=1) as embedder:
        german, tamil = (embedder.embed(["x y"], language=code) for code in ("deu_Latn", "tam_Taml"))
    assert not np.allclose(german, tamil)


@pytest.mark.parametrize(
    ("encoder", "llm"), [("int8", "q8_0"), ("int8", "q4_0"), ("float32", "q4_k_m"), ("int8", "f16")]
)
def test_quantised_bundles(
    encoder: EncoderQuantization, llm: GgufQuantization, checkpoint: Path, float_bundle: Path, tmp_path: Path
) -> None:
    manifest = export_bundle(checkpoint, tmp_path / "bundle", encoder_quantization=encoder, llm_quantization=llm)
    Bundle.open(tmp_path / "bundle").verify()
    assert (manifest.encoder.quantization, manifest.llm.quantization) == (encoder, llm)
    parity = by_component(manifest.parity)
    assert parity["stack"].cosine_mean >= 0.9
    assert parity["stack"].fvu > by_component(Bundle.open(float_bundle).manifest.parity)["stack"].fvu
    assert manifest.files["llm.gguf"].size < Bundle.open(float_bundle).manifest.files["llm.gguf"].size


def test_an_existing_folder_is_replaced_by_force_only(checkpoint: Path, float_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_bundle(checkpoint, out, encoder_quantization="float32", llm_quantization="f32")
    (out / "mine").write_text("keep")
    with pytest.raises(UsageError, match="--force"):
        export_bundle(checkpoint, out)
    assert (out / "mine").exists()
    export_bundle(checkpoint, out, encoder_quantization="float32", llm_quantization="f32", force=True)
    assert not (out / "mine").exists()
    assert Bundle.open(out).manifest.files == Bundle.open(float_bundle).manifest.files


@pytest.mark.parametrize("step", ["write_encoder", "write_llm", "write_licenses", "compare_bundle", "check_parity"])
@pytest.mark.parametrize("error", [ModelError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failed_export_leaves_nothing(
    step: str, error: BaseException, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bundle, step, fail)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(type(error)):
        export_bundle(checkpoint, tmp_path / "outputs" / "bundle")
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_bundle_that_does_not_follow_torch_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that is forgotten on the way is the mistake that the comparison is there for."""
    monkeypatch.setattr(bundle, "read_lora", lambda _: {})
    with pytest.raises(ModelError, match=r"differs from the torch stack: mean cosine 0\.\d+, expected 0\.9 .*task"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "stack.json").unlink(), r"holds no stack\.json"),
        (lambda folder: (folder / "bridge.safetensors").unlink(), r"bridge\.safetensors is missing"),
        (lambda folder: (folder / "tasks" / "topic.safetensors").unlink(), r"topic\.safetensors is missing"),
        (lambda folder: (folder / "lora.safetensors").write_bytes(b"\x08"), r"lora\.safetensors is not readable"),
        (lambda folder: (folder / "models/llm/config.json").unlink(), r"llm"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(damage: object, message: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "checkpoint")
    assert callable(damage)
    damage(folder)
    with pytest.raises(MtllmError, match=message) as caught:
        export_bundle(folder, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        export_bundle(tmp_path / "nothing", tmp_path / "bundle")
