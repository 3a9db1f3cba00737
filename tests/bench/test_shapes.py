"""Models with random weights in given shapes, the same stack in torch, and the script for all setups."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from mtllm_edge.bundle.formats import gguf
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.embedder import load_tokenizer
from mtllm_edge_bench.jobs import Job
from mtllm_edge_bench.report.report import Setup, Statistic, SystemResult, make_report, setup_ratios
from mtllm_edge_bench.synthetic import shapes
from mtllm_edge_bench.synthetic.demo_corpus import demo_rows, synthetic_corpus
from mtllm_edge_bench.synthetic.gguf import write_random_llm
from mtllm_edge_bench.synthetic.nllb import random_model, write_random_nllb
from mtllm_edge_bench.synthetic.tokenizer import random_texts
from mtllm_edge_bench.systems.pytorch import RANDOM_STACK_NAME, RandomStackConfig, TorchStack
from mtllm_edge_bench.systems.systems import BareEngines, MtLlmSystem, TranslateTest
from mtllm_edge_export.bundle import export_bundle
from tests.fixtures.tiny_checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
NLLB = shapes.NLLB_600M | {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
LLM = shapes.SyntheticLlm(
    "tiny",
    {
        "vocab_size": 80,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_parameters": shapes._LLAMA_3_2,
    },
    "q4_0",
)
LENGTHS = [5, 1, 8, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bundle with stride 2, its translator, reader and torch stack: read only."""
    folder = tmp_path_factory.mktemp("shapes")
    for name in ("nllb", "body", "bundle", "english-llm", "torch"):
        (folder / name).mkdir()
    write_random_nllb(random_model(NLLB), folder / "nllb", max_tokens=shapes.MAX_TOKENS)
    shapes.write_llm_body(LLM, folder / "body")
    shapes.write_random_bundle(folder / "nllb", folder / "body", LLM, 2, folder / "bundle")
    shapes.write_random_english_llm(LLM, folder / "english-llm")
    config = RandomStackConfig(encoder=NLLB, llm=LLM.config)
    (folder / "torch" / RANDOM_STACK_NAME).write_bytes(msgspec.json.encode(config))
    return folder


@pytest.fixture
def job(folder: Path) -> Job:
    return Job(
        system="mt_llm",
        bundle=str(folder / "bundle"),
        translator=str(folder / "nllb" / "translator"),
        english_llm=str(folder / "english-llm"),
        checkpoint=str(folder / "torch"),
        task=shapes.TASK,
        threads=1,
        batch_tokens={"stack": 512, "translate": 512, "llm": 512},
        texts=tuple(random_texts(LENGTHS, NLLB["vocab_size"])),
        translations=tuple(random_texts([4, 2, 7, 3], LLM.config["vocab_size"])),
        translation_lengths=(6, 2, 9, 3),
    )


def test_a_random_bundle_is_valid(folder: Path, job: Job) -> None:
    bundle = Bundle.open(folder / "bundle")
    bundle.verify()
    assert [len(text.ids) for text in load_tokenizer(bundle).encode(job.texts)] == [length + 2 for length in LENGTHS]
    header = gguf.read_header(folder / "bundle" / "llm.gguf")
    assert header.shapes["blk.1.ffn_down.weight"] == (128, 64)
    assert header.types["blk.0.attn_q.weight"] == 2  # Q4_0
    assert gguf.read_header(folder / "english-llm" / "llm.gguf").shapes["token_embd.weight"] == (64, 80)


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
def test_random_blocks_have_the_standard_deviation_of_weights(tmp_path: Path, quantization: str) -> None:
    import gguf as package

    write_random_llm(tmp_path / "llm.gguf", LLM.shape, quantization)  # type: ignore[arg-type]
    tensors = {tensor.name: tensor for tensor in package.GGUFReader(tmp_path / "llm.gguf").tensors}
    for name, inputs in (("blk.0.ffn_up.weight", 64), ("blk.1.ffn_down.weight", 128)):
        weight = package.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert weight.std() == pytest.approx(inputs**-0.5, rel=0.05)
    np.testing.assert_array_equal(tensors["output_norm.weight"].data, 1)


def test_all_systems_read_the_same_texts(job: Job) -> None:
    read = sum(LENGTHS) + 2 * len(LENGTHS)
    bridged = sum(-(-(length + 2) // 2) for length in LENGTHS)
    stack, engines = MtLlmSystem(job), BareEngines(msgspec.structs.replace(job, system="engines"))
    labels = stack.classify(range(len(LENGTHS)))
    serial = MtLlmSystem(msgspec.structs.replace(job, system="mt_llm_serial"))
    assert serial.classify(range(len(LENGTHS))) == labels
    assert serial.profiler.tokens == stack.profiler.tokens
    assert len(labels) == len(LENGTHS)
    assert set(labels) <= set(shapes.LABELS)
    assert engines.classify(range(len(LENGTHS))) == []
    assert stack.profiler.tokens == engines.profiler.tokens == {"encoder": read, "llm": bridged}
    baseline = TranslateTest(msgspec.structs.replace(job, system="translate_test_beam4"))
    assert len(baseline.classify(range(len(LENGTHS)))) == len(LENGTHS)
    assert baseline.profiler.tokens == {"encoder": read, "written": 20, "llm": 16}
    for system in ("torch_float32", "torch_bfloat16"):
        torch_stack = TorchStack(msgspec.structs.replace(job, system=system))
        assert set(torch_stack.classify(range(len(LENGTHS)))) <= set(shapes.LABELS)
        assert torch_stack.profiler.tokens == stack.profiler.tokens
        assert set(torch_stack.profiler.seconds) == set(stack.profiler.seconds)


def test_the_torch_stack_predicts_the_labels_of_its_bundle(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", stride=2)
    export_bundle(checkpoint, tmp_path / "bundle", encoder_quantization="float32", llm_quantization="f32")
    texts = ("a text", "another one", "ein dritter", "und noch ein vierter Text", "五")
    job = Job(
        system="torch_float32",
        bundle=str(tmp_path / "bundle"),
        checkpoint=str(checkpoint),
        task="topic",
        threads=1,
        batch_tokens={"stack": 512},
        texts=texts,
    )
    labels = TorchStack(job).classify(range(len(texts)))
    assert labels == MtLlmSystem(msgspec.structs.replace(job, system="mt_llm")).classify(range(len(texts)))
    assert len(set(labels)) > 1


def test_synthetic_texts_have_the_token_counts_of_the_demo() -> None:
    rows = demo_rows(ROOT / "benchmarks" / "demo_topics.csv", 47)
    assert len({row.text for row in rows}) == 47  # one of each language
    assert len({row.english for row in rows}) <= 20
    corpus = synthetic_corpus(
        rows, ROOT / "reference/parts/tokenizer.json", encoder_vocabulary=1000, llm_vocabulary=900
    )
    assert corpus.translations is not None
    assert corpus.translation_lengths is not None
    for row, text, english, written in zip(
        rows, corpus.texts, corpus.translations, corpus.translation_lengths, strict=True
    ):
        assert len(row.text.encode()) >= len(text.split()) > 3
        assert len(row.english) / 8 < len(english.split()) < len(row.english) / 2
        assert len(row.english) / 8 < written < len(row.english) / 2
        assert max(int(word[1:]) for word in text.split()) < 1000


def figure(value: float) -> Statistic:
    return Statistic(value, value, value)


def measured(rate: float) -> SystemResult:
    return SystemResult(
        batch_tokens={"stack": 512},
        texts_per_s=figure(rate),
        ms_per_text={"encode": figure(1.0)},
        tokens_per_text={"encoder": 3.0},
        peak_rss_mb=figure(300.0),
        load_s=figure(1.0),
        first_prediction_s=figure(0.1),
        cold_start_s=figure(2.0),
        accuracy=None,
    )


def setup(llm_parameters: int, **rates: float) -> Setup:
    results = {name: measured(rate) for name, rate in rates.items()}
    return Setup(
        description="made up",
        real_weights=False,
        encoder="m2m_100 1024",
        stride=2,
        llm_parameters=llm_parameters,
        bundle_mb=150.0,
        texts=4,
        repeats=1,
        measured=results,
        ratios=setup_ratios(results, 150.0),
    )


def test_torch_is_compared_with_the_default_backend() -> None:
    rates = {"mt_llm": 6.0, "mt_llm_onnx": 9.0, "mt_llm_serial": 5.0, "translate_test": 2.0, "torch_float32": 3.0}
    both = setup(10**8, **rates, engines=8.0)
    assert both.ratios["onnx_over_mt_llm"] == 1.5
    assert both.ratios["serial_pipeline_over_engines"] == 0.625
    for form, ratio in (("gguf", 2.0), ("onnx", 3.0)):
        setups = {"nllb600m_135m_linear": msgspec.structs.replace(both, form=form)}
        ratios = load_throughput().ratios(setups)
        assert (ratios["over_torch_fp32"], ratios["over_torch_fp32_gguf"]) == (ratio, 2.0)
        assert ratios["nllb600m_135m_linear"] == 3.0


def load_throughput() -> ModuleType:
    spec = importlib.util.spec_from_file_location("throughput", ROOT / "benchmarks" / "throughput.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratios_and_output_files_of_a_run(tmp_path: Path) -> None:
    script = load_throughput()
    setups = {
        "nllb600m_135m_linear": setup(10**8, mt_llm=6.0, translate_test=2.0, torch_float32=3.0, engines=8.0),
        "nllb600m_8b_strided": setup(7 * 10**9, mt_llm=0.5, translate_test=1.0, engines=0.6),
    }
    ratios = script.ratios(setups)
    assert ratios == {
        "nllb600m_135m_linear": 3.0,
        "nllb600m_135m_strided": None,
        "nllb600m_1b_strided2": None,
        "nllb600m_8b_strided": 0.5,
        "pipeline_over_engines": None,
        "rss_over_bundle": None,
        "over_torch_fp32": 2.0,
        "over_torch_bf16": None,
        "over_torch_fp32_gguf": 2.0,
        "over_torch_bf16_gguf": None,
        "serial_pipeline_over_engines": None,
    }
    assert setups["nllb600m_135m_linear"].ratios["pipeline_over_engines"] == 0.75
    assert setups["nllb600m_135m_linear"].ratios["rss_over_bundle"] == 2.0
    script.save(make_report(setups, ratios, threads=1), tmp_path, "bench-x")
    names = {"bench-x.json", "bench-x.md", "bench-x-throughput.png", "bench-x-crossover.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    table = (tmp_path / "bench-x.md").read_text(encoding="utf-8")
    assert "| nllb600m_8b_strided | 0.5 |" in table
    assert "| over_torch_bf16 | not measured |" in table
    assert "random weights in real shapes" in table
    assert script.load_setups(tmp_path / "bench-x.json") == setups
    assert script.load_setups(tmp_path / "bench-y.json") == {}
