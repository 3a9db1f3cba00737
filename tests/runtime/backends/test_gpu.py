"""GPU offload: the settings that reach the engines, and the CPU fallback if no GPU is detected or if it fails.

No GPU is required: the engines' entry points are replaced by recorders, and the trials' child processes by programs.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ctranslate2
import msgspec
import pytest

from mtllm_edge import Bundle, Classifier, Embedder
from mtllm_edge.backends.encoders.ctranslate2 import CTranslate2Encoder, cuda_devices
from mtllm_edge.backends.llms import llama_cpp
from mtllm_edge.backends.llms.llama_cpp import GgufLlm
from mtllm_edge.backends.llms.settings import EngineSettings
from mtllm_edge.backends.probing import child_process, gpu, gpu_child
from mtllm_edge.backends.probing import llama_cpp as probing
from mtllm_edge.backends.probing.cache import CACHE_VARIABLE
from mtllm_edge.backends.probing.gpu import (
    EncoderTrial,
    GpuInventory,
    GpuWarning,
    Offload,
    check_gpu_layers,
    plan_offload,
)
from mtllm_edge.backends.probing.llama_cpp import FAST, PLAIN
from mtllm_edge.errors import UsageError
from tests.fixtures import tiny_bundle
from tests.fixtures.cli_result import Run
from tests.fixtures.tiny_bundle import N_EMBD
from tests.fixtures.tiny_onnx import add_onnx_form
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close
from tests.runtime.backends.test_ctranslate2_encoder import BATCH, ENCODER
from tests.runtime.backends.test_llama_cpp import LLM, inputs
from tests.runtime.backends.test_probing import ABORTS, CRASHES, GOOD, REFUSES, SILENT, WRONG

NONE = GpuInventory()
ONE = GpuInventory(llama=("CUDA0 (NVIDIA T4)",), ctranslate2="4", cuda=1, compute_types=("float16", "float32", "int8"))
_NO_CORE = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); " if sys.platform != "win32" else ""
Tried = list[tuple[tuple[bool, bool], int]]


def trial_program(trial: EncoderTrial) -> str:
    return f"print({msgspec.json.encode(trial).decode()!r})"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tried]:
    """Set the detected GPUs and the programs that replace the trials; return the list of tried settings."""

    def set_up(
        inventory: GpuInventory,
        llm: dict[tuple[tuple[bool, bool], bool], str] | None = None,
        encoder: str | None = None,
    ) -> Tried:
        tried: Tried = []
        real = child_process.command

        def probe(path: Path, described: object, switches: tuple[bool, bool], gpu_layers: int) -> list[str]:
            tried.append((switches, gpu_layers))
            return [sys.executable, "-c", _NO_CORE + (llm or {}).get((switches, gpu_layers > 0), GOOD)]

        def command(module: str, *arguments: str) -> list[str]:
            if module == "mtllm_edge.backends.probing.gpu_child" and arguments[0] == "encode":
                return [
                    sys.executable,
                    "-c",
                    _NO_CORE + (trial_program(EncoderTrial(cosine=1.0)) if encoder is None else encoder),
                ]
            return real(module, *arguments)

        monkeypatch.setattr(gpu, "detect_gpus", lambda: inventory)
        monkeypatch.setattr(probing, "_child_command", probe)
        monkeypatch.setattr(child_process, "command", command)
        return tried

    return set_up


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """GPU parameters of each model that llama.cpp loads."""
    parameters_of_models: list[dict[str, Any]] = []
    load, begin = llama_cpp.llama_cpp.llama_model_load_from_file, llama_cpp.llama_cpp.llama_init_from_model

    def load_model(path: bytes, parameters: Any) -> Any:
        some = parameters.devices and ctypes.cast(parameters.devices, ctypes.POINTER(ctypes.c_void_p))[0]
        parameters_of_models.append(
            {"layers": parameters.n_gpu_layers, "all devices": not parameters.devices, "first": some}
        )
        return load(path, parameters)

    def begin_context(model: Any, parameters: Any) -> Any:
        parameters_of_models[-1] |= {"offload": (parameters.offload_kqv, parameters.op_offload)}
        return begin(model, parameters)

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_load_from_file", load_model)
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_init_from_model", begin_context)
    return parameters_of_models


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Run CTranslate2's "cuda" on the CPU; return device and compute type of every encoder."""
    devices_and_types: list[tuple[str, str]] = []
    encoder = ctranslate2.Encoder

    class Storage:
        """Storage that NumPy can read only after a transfer to the CPU, like a CUDA array."""

        def __init__(self, storage: Any) -> None:
            self._storage = storage

        def to_device(self, device: object) -> Any:
            assert device == ctranslate2.Device.cpu
            return self._storage

    class Cuda:
        def __init__(self, folder: str, *, device: str, compute_type: str, **options: int) -> None:
            devices_and_types.append((device, compute_type))
            self._encoder = encoder(folder, device="cpu", compute_type=compute_type, **options)
            self._device = device

        def forward_batch(self, batch: list[list[int]]) -> Any:
            states = self._encoder.forward_batch(batch).last_hidden_state
            return SimpleNamespace(last_hidden_state=states if self._device == "cpu" else Storage(states))

    monkeypatch.setattr(ctranslate2, "Encoder", Cuda)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _: {"float32", "int8"})
    return devices_and_types


def test_without_gpu_layers_only_the_cpu_is_used(tiny_bundle: Path, loaded: list[dict[str, Any]]) -> None:
    """llama.cpp built for a GPU would otherwise initialize it even with 0 layers."""
    settings = EngineSettings(extra_buffers=True, flash_attention=True, note="test")
    GgufLlm(tiny_bundle / "llm.gguf", LLM, settings=settings, threads=1).pool(inputs())
    assert loaded == [{"layers": 0, "all devices": False, "first": None, "offload": (False, False)}]


def test_gpu_layers_are_passed_to_llama_cpp(tiny_bundle: Path, loaded: list[dict[str, Any]]) -> None:
    settings = EngineSettings(extra_buffers=True, flash_attention=True, note="test", gpu_layers=2)
    GgufLlm(tiny_bundle / "llm.gguf", LLM, settings=settings, threads=1).pool(inputs())
    assert loaded == [{"layers": 2, "all devices": True, "first": None, "offload": (True, True)}]


def test_the_device_is_passed_to_ctranslate2(
    tiny_variant: Callable[..., Path], cuda: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_variant(encoder_quantization="int8") / "encoder"
    int8 = msgspec.structs.replace(ENCODER, quantization="int8")
    for device in ("cpu", "cuda"):
        CTranslate2Encoder(folder, int8, threads=1, device=device).encode(BATCH)  # type: ignore[arg-type]
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _: {"float16", "float32"})
    CTranslate2Encoder(folder, int8, threads=1, device="cuda")
    assert cuda == [("cpu", "int8"), ("cuda", "int8"), ("cuda", "float32")]


@pytest.mark.parametrize(("gpu_layers", "layers"), [("all", 3), (1, 1), (2, 2), (3, 3), (999, 3)])
def test_all_supported_parts_run_on_the_gpu(
    tiny_bundle: Path,
    machine: Callable[..., Tried],
    loaded: list[dict[str, Any]],
    cuda: list[tuple[str, str]],
    gpu_layers: Any,
    layers: int,
) -> None:
    """A body of two layers has a third one for llama.cpp: its last norm."""
    tried = machine(ONE)
    with warnings.catch_warnings(), Classifier.load(tiny_bundle, task="topic", gpu_layers=gpu_layers) as classifier:
        warnings.simplefilter("error")
        (prediction,) = classifier.classify(["the team is good"])
    assert [kwargs["layers"] for kwargs in loaded] == [layers]
    assert cuda == [("cuda", "float32")]
    assert tried == [(PLAIN, 0), (FAST, 0), (FAST, 0), (FAST, layers)]  # the safe settings on the CPU come first
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        (expected,) = classifier.classify(["the team is good"])
    assert_probabilities_close(prediction.probabilities, expected.probabilities, LLAMA_CPP)
    assert loaded[-1]["layers"] == 0
    assert cuda[-1] == ("cpu", "float32")


def test_results_are_cached_by_gpu_and_layers(tiny_bundle: Path, machine: Callable[..., Tried]) -> None:
    bundle, tried = Bundle.open(tiny_bundle), machine(ONE)
    first = plan_offload(bundle, "all")
    assert first.llm is not None
    assert (first.llm.gpu_layers, first.encoder, first.faults) == (3, "cuda", ())
    assert "3 layers on CUDA0 (NVIDIA T4)" in first.llm.note
    tried.clear()
    assert plan_offload(bundle, 3) == first
    assert tried == []
    plan_offload(bundle, 1)
    assert tried == [(FAST, 0), (FAST, 1)]
    plan_offload(bundle, "all", use_cache=False)
    assert tried[2:] == [(FAST, 0), (FAST, 3)]
    tried = machine(GpuInventory(llama=("CUDA0 (another)",), cuda=1, compute_types=("float32",)))
    plan_offload(bundle, "all")
    assert tried == [(FAST, 0), (FAST, 3)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("program", "reason", "is_cached"),
    [
        (CRASHES, "ended the process (SIGSEGV)", True),
        (ABORTS, "ended the process (SIGABRT)", True),
        (WRONG, "computed wrong numbers (cosine -0.", True),
        (SILENT, "gave an unreadable answer", True),
        (REFUSES, "failed: no memory", False),
    ],
)
def test_an_llm_that_fails_on_the_gpu_stays_on_the_cpu(
    tiny_bundle: Path,
    machine: Callable[..., Tried],
    loaded: list[dict[str, Any]],
    cuda: list[tuple[str, str]],
    program: str,
    reason: str,
    is_cached: bool,
) -> None:
    tried = machine(ONE, {(FAST, True): program, (PLAIN, True): program})
    with pytest.warns(GpuWarning, match=r"^the LLM runs on the CPU: CUDA0 \(NVIDIA T4\) .*doctor`$") as warned:
        Embedder.load(tiny_bundle, gpu_layers=2).close()
    assert reason in str(warned[0].message)
    assert loaded[0]["layers"] == 0
    assert cuda == [("cuda", "float32")]  # the encoder has its own trial
    tried.clear()
    plan_offload(Bundle.open(tiny_bundle), 2)
    assert (tried == []) == is_cached


def test_plain_kernels_are_tried_on_the_gpu(tiny_bundle: Path, machine: Callable[..., Tried]) -> None:
    tried = machine(ONE, {(FAST, True): WRONG})
    settings = plan_offload(Bundle.open(tiny_bundle), "all").llm
    assert settings is not None
    assert (settings.switches, settings.gpu_layers) == (PLAIN, 3)
    assert tried[-2:] == [(FAST, 3), (PLAIN, 3)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (ABORTS, "ended the process (SIGABRT)"),
        (trial_program(EncoderTrial(cosine=0.5)), "computed wrong numbers (cosine 0.500 with the CPU)"),
        (trial_program(EncoderTrial(error="no libcublas")), "failed: no libcublas"),
        (SILENT, "gave an unreadable answer"),
        ("raise ImportError('broken')", "was not tried: the child process could not run (ImportError: broken)"),
    ],
)
def test_an_encoder_that_fails_on_cuda_stays_on_the_cpu(
    tiny_bundle: Path,
    machine: Callable[..., Tried],
    loaded: list[dict[str, Any]],
    cuda: list[tuple[str, str]],
    program: str,
    reason: str,
) -> None:
    machine(ONE, encoder=program)
    with pytest.warns(GpuWarning) as warned:
        Embedder.load(tiny_bundle, gpu_layers="all").close()
    expected = f"the encoder runs on the CPU: CTranslate2 on CUDA {reason}; see `mtllm-edge doctor`"
    assert [str(warning.message) for warning in warned] == [expected]
    assert (loaded[0]["layers"], cuda[0][0]) == (3, "cpu")


def test_too_little_gpu_memory_at_load_time(
    tiny_bundle: Path, machine: Callable[..., Tried], loaded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(ONE)
    encoder = ctranslate2.Encoder

    def full(folder: str, *, device: str, **options: Any) -> Any:
        if device == "cuda":
            raise RuntimeError("CUDA failed with error out of memory")
        return encoder(folder, device=device, **options)

    monkeypatch.setattr(ctranslate2, "Encoder", full)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _: {"float32"})
    with pytest.warns(GpuWarning, match=r"^everything runs on the CPU: .*out of memory\); see `mtllm-edge doctor`$"):
        embedder = Embedder.load(tiny_bundle, gpu_layers="all")
    assert embedder.embed(["the team is good"]).shape == (1, N_EMBD)
    assert loaded[-1]["layers"] == 0
    embedder.close()


@pytest.mark.parametrize(
    ("built", "reason"),
    [([], "this build of llama-cpp-python is for the CPU alone"), (["CUDA"], "llama.cpp sees no GPU here")],
)
def test_without_a_gpu(
    tiny_bundle: Path, machine: Callable[..., Tried], monkeypatch: pytest.MonkeyPatch, built: list[str], reason: str
) -> None:
    tried = machine(NONE)
    monkeypatch.setattr(gpu, "gpu_backends", lambda: built)
    with pytest.warns(GpuWarning) as warned:
        Embedder.load(tiny_bundle, gpu_layers="all").close()
    assert len(warned) == 1
    assert str(warned[0].message).startswith(f"everything runs on the CPU: {reason}")
    assert tried == [(PLAIN, 0), (FAST, 0)]


def test_metal_and_vulkan_run_only_the_llm(tiny_bundle: Path, machine: Callable[..., Tried]) -> None:
    """CTranslate2 supports only CUDA, so this causes no warning."""
    machine(GpuInventory(llama=("Metal (Apple M2)",)))
    offload = plan_offload(Bundle.open(tiny_bundle), "all")
    assert (offload.encoder, offload.llm is not None, offload.faults) == ("cpu", True, ())


def test_an_llm_in_onnx_runs_on_the_cpu(tmp_path: Path, machine: Callable[..., Tried]) -> None:
    tried = machine(ONE)
    bundle = Bundle.open(add_onnx_form(tiny_bundle.make_tiny_bundle(tmp_path / "bundle")))
    assert plan_offload(bundle, 2, "onnx") == Offload("cuda", None, (("LLM", "an LLM in ONNX has no GPU"),))
    assert tried == []
    assert plan_offload(bundle, 2).llm is not None


def test_gguf_is_preferred_on_a_gpu(
    tmp_path: Path, machine: Callable[..., Tried], loaded: list[dict[str, Any]], cuda: list[tuple[str, str]]
) -> None:
    machine(ONE)
    with Embedder.load(add_onnx_form(tiny_bundle.make_tiny_bundle(tmp_path / "bundle")), gpu_layers="all") as embedder:
        assert isinstance(embedder._llm, GgufLlm)
    assert loaded[0]["layers"] == 3


def test_no_child_process(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    offload = plan_offload(Bundle.open(tiny_bundle), "all")
    assert offload.is_none
    assert offload.shortfall.startswith("everything runs on the CPU: a GPU cannot be tried, since there is no Python")


@pytest.mark.parametrize(
    ("program", "fault"), [("import os; os._exit(3)", "ended the process (exit code 3)"), ("1/0", "could not run")]
)
def test_failures_of_the_detection(monkeypatch: pytest.MonkeyPatch, program: str, fault: str) -> None:
    monkeypatch.setattr(child_process, "command", lambda *_: [sys.executable, "-c", program])
    assert fault in (gpu.detect_gpus().fault or "")


def test_detection_on_this_machine() -> None:
    inventory = gpu.detect_gpus()
    assert inventory.fault is None
    assert bool(inventory.compute_types) == (inventory.cuda > 0)
    assert inventory == gpu_child.detect_gpus()


def test_gpus_of_both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 2)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: {"int8", f"float32 of {device}"})
    assert cuda_devices() == (ctranslate2.__version__, 2, ("float32 of cuda", "int8"))
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(
        llama_cpp, "ggml_devices", lambda: iter([(1, "CUDA0 (T4)"), (0, "CPU (x)"), (2, "Vulkan0 (iGPU)")])
    )
    assert llama_cpp.gpu_names() == ("CUDA0 (T4)", "Vulkan0 (iGPU)")
    monkeypatch.setattr(llama_cpp, "ggml_devices", lambda: iter(()))
    assert llama_cpp.gpu_names() == ("a GPU without a name",)
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_supports_gpu_offload", lambda: False)
    assert llama_cpp.gpu_names() == ()


@pytest.mark.skipif(sys.platform == "win32", reason="there, ggml's library gives its functions not out")
def test_names_of_ggml_devices() -> None:
    names_by_type = dict(llama_cpp.ggml_devices())
    assert names_by_type[0].startswith("CPU (")


def test_an_encoder_is_compared_with_the_cpu(
    tiny_variant: Callable[..., Path], cuda: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_variant(encoder_quantization="int8") / "encoder"
    int8 = msgspec.structs.replace(ENCODER, quantization="int8")
    assert gpu_child.try_encoder(folder, int8).cosine > tiny_bundle.INT8_COSINE - 0.1
    assert cuda == [("cpu", "float32"), ("cuda", "int8")]
    encode = CTranslate2Encoder.encode
    monkeypatch.setattr(
        CTranslate2Encoder,
        "encode",
        lambda self, batch: [states if self._on_cpu else -states for states in encode(self, batch)],
    )
    assert gpu_child.try_encoder(folder, int8).cosine < 0


def test_the_child_process_tries_an_encoder(tiny_bundle: Path) -> None:
    arguments = (str(tiny_bundle / "encoder"), msgspec.json.encode(ENCODER).decode())
    child = child_process.run(child_process.command("mtllm_edge.backends.probing.gpu_child", "encode", *arguments))
    trial = msgspec.json.decode(child.stdout.splitlines()[-1], type=EncoderTrial)
    assert trial.cosine > 0.95 or (trial.error or "").startswith("CTranslate2 cannot load it (")


@pytest.mark.parametrize(
    ("names", "backends"),
    [
        (["libggml.so", "libggml-base.so", "libggml-cpu.so.0"], []),
        (["libggml-cuda.so.0", "libggml-cuda.so", "libggml-vulkan.so"], ["CUDA", "Vulkan"]),
        (["ggml-cuda.dll"], ["CUDA"]),
        (["libggml-metal.dylib"], ["Metal"]),
    ],
)
def test_the_build_is_detected_from_its_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], backends: list[str]
) -> None:
    (tmp_path / "lib").mkdir()
    for name in names:
        (tmp_path / "lib" / name).touch()
    spec = ModuleSpec("llama_cpp", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    assert gpu.gpu_backends() == backends


@pytest.mark.parametrize("layers", [-1, "many", "-1", "3", 1.5, True, None])
def test_invalid_numbers_of_layers(tiny_bundle: Path, layers: Any) -> None:
    with pytest.raises(UsageError, match="expected 0 or more, or 'all'"):
        check_gpu_layers(layers)
    with pytest.raises(UsageError, match="layers on the GPU"):
        Embedder.load(tiny_bundle, gpu_layers=layers)


@pytest.mark.parametrize("command", [("classify", "-t", "topic", "-b"), ("embed", "-b")])
def test_the_commands(
    run: Run, tiny_bundle: Path, machine: Callable[..., Tried], loaded: list[dict[str, Any]], command: tuple[str, ...]
) -> None:
    machine(NONE)
    for value in ("-1", "many", "1.5", "9" * 30):
        refused = run(*command, tiny_bundle, "x", "--gpu-layers", value)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert f"the number of layers on the GPU is {value}" in refused.err.replace("'", "")
    result = run(*command, tiny_bundle, "x", "--gpu-layers", "all")
    assert result.code == 0
    notes = [line for line in result.err.splitlines() if "CPU" in line]
    assert len(notes) == 1
    assert notes[0].startswith("note: everything runs on the CPU: ")
    assert run(*command, tiny_bundle, "x", "--gpu-layers", "0").err.count("\n") == 1  # the summary
    machine(GpuInventory(llama=("Metal (Apple M2)",)))
    assert "CPU" not in run(*command, tiny_bundle, "x", "--gpu-layers", "2").err
    assert loaded[-1]["layers"] == 2
