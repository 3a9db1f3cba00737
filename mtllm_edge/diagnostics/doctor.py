"""Diagnose an installation: packages, processor, GPUs, and whether the engines work.

A broken native library can end the process that imports it. Therefore engines are imported in child processes, and the
packages of the extras are located without an import.
"""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass

import mtllm_edge
from mtllm_edge.backends.cpu import available_cores, default_threads, disable_telemetry, read_cpu
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.gpu import GpuInventory, GpuLayers, detect_gpus, gpu_backends, plan_offload
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import EXTRAS, missing_modules, version_of

LIBRARIES = ("tokenizers", "sentencepiece", "numpy", "safetensors")
ENGINES = {
    "ctranslate2": ("ctranslate2", "''"),
    "llama-cpp-python": ("llama_cpp", "engine.llama_print_system_info().decode()"),
    "onnxruntime": ("onnxruntime", "''"),
}
"""Distribution -> module, and expression for its build information."""
_REINSTALL = "pip install --force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python llama-cpp-python"
AMX_BUILD = f"CMAKE_ARGS=\"-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'\" {_REINSTALL}"
"""A build in which AMX works: GCC otherwise removes the stores that fill the tile configuration."""
GPU_BUILDS = {
    "NVIDIA, with the CUDA toolkit": f'CMAKE_ARGS="-DGGML_CUDA=on" {_REINSTALL}',
    "Apple": f'CMAKE_ARGS="-DGGML_METAL=on" {_REINSTALL}',
    "others, with the Vulkan SDK": f'CMAKE_ARGS="-DGGML_VULKAN=on" {_REINSTALL}',
}
"""GPU -> command that builds llama.cpp for it."""
_FLAG_PREFIXES = ("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")
_IMPORT_SECONDS = 120
"""A first import from a cold disk can take long; a hang is a fault."""


@dataclass(frozen=True)
class Engine:
    """State of an engine, found by a child process."""

    version: str | None = None
    """None if it cannot be used."""
    build: str = ""
    """Build information of the engine, such as instruction sets."""
    fault: str | None = None
    """Why it cannot be used, in one line."""


@dataclass(frozen=True)
class Report:
    """Result of `mtllm-edge doctor`; `--json` prints its fields."""

    mtllm_edge: str
    python: str
    system: str
    cpu: str
    cpu_flags: tuple[str, ...]
    """Instruction sets that the engines use."""
    cores: int
    """Number available to this process."""
    threads: int
    """Default number of the engines."""
    libraries: dict[str, str]
    """Distribution -> version."""
    engines: dict[str, Engine]
    missing_for_extras: dict[str, list[str]]
    """Extra -> missing modules; empty if it is installed."""
    gpu: dict[str, str]
    """Engine -> GPUs that it supports and finds."""
    bundle: dict[str, str]
    """Results of the probe with the LLM of a bundle."""
    advice: tuple[str, ...]
    faults: tuple[str, ...]
    """Why bundles cannot run on this machine, one line each."""

    def facts(self) -> dict[str, str]:
        """Return the report as names and values for display."""
        facts = {
            "mtllm-edge": self.mtllm_edge,
            "Python": self.python,
            "system": self.system,
            "processor": self.cpu,
            "instruction sets": " ".join(self.cpu_flags) or "not listed by this system",
            "cores": f"{self.cores} available to this process; default number of threads {self.threads}",
        }
        for name, engine in self.engines.items():
            facts[name] = engine.version or engine.fault or ""
            if engine.build:
                facts[f"{name} build"] = engine.build
        facts |= {f"GPUs of {engine}": gpus for engine, gpus in self.gpu.items()}
        facts |= self.libraries
        for extra, absent in self.missing_for_extras.items():
            facts[f"extra [{extra}]"] = f"not installed: {', '.join(absent)}" if absent else "installed"
        return facts | self.bundle


def diagnose(bundle: Bundle | None = None, gpu_layers: GpuLayers = 0) -> Report:
    """Examine the installation; faults are reported, not raised, and no engine is imported into this process.

    The LLM of a bundle, if it is in GGUF, is probed without the cache. `gpu_layers` of its layers are tried on a GPU,
    together with the encoder.
    """
    cpu = read_cpu()
    engines = {name: inspect_engine(name) for name in ENGINES if _is_relevant(name, bundle)}
    results: dict[str, str] = {}
    advice: list[str] = []
    faults: list[str] = []
    for name, engine in engines.items():
        if engine.fault:
            faults.append(f"{name} is {engine.fault}; run: pip install --force-reinstall {name}")
    has_llama_cpp = engines["llama-cpp-python"].fault is None
    if bundle is not None:
        results["bundle"] = str(bundle.path)
        backends = {bundle.manifest.encoder.backend, bundle.manifest.llm.backend}
        if "gguf" in backends and has_llama_cpp:
            _probe_llm(bundle, any(flag.startswith("amx") for flag in cpu.flags), results, advice, faults)
        if gpu_layers != 0 and not faults:
            results["GPU"] = _try_gpu(bundle, gpu_layers)
    built_for = gpu_backends()
    if has_llama_cpp and not built_for:
        builds = [f"{gpu}:\n{build}" for gpu, build in GPU_BUILDS.items()]
        advice.append("\n".join(["For --gpu-layers, llama.cpp must be built for your GPU.", *builds]))
    return Report(
        mtllm_edge=mtllm_edge.__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        cpu=cpu.model,
        cpu_flags=tuple(flag for flag in cpu.flags if flag.startswith(_FLAG_PREFIXES)),
        cores=available_cores(),
        threads=default_threads(),
        libraries={name: version_of(name) for name in LIBRARIES},
        engines=engines,
        gpu=_gpu_facts(detect_gpus(), built_for),
        missing_for_extras={extra: missing_modules(*modules) for extra, modules in EXTRAS.items()},
        bundle=results,
        advice=tuple(advice),
        faults=tuple(faults),
    )


def _is_relevant(engine: str, bundle: Bundle | None) -> bool:
    """Return False for ONNX Runtime, which is optional, if it is neither installed nor required by the bundle."""
    if engine != "onnxruntime" or not missing_modules("onnxruntime"):
        return True
    return bundle is not None and "onnx" in (bundle.manifest.encoder.backend, bundle.manifest.llm.backend)


def _probe_llm(bundle: Bundle, has_amx: bool, results: dict[str, str], advice: list[str], faults: list[str]) -> None:
    """Add the settings with which llama.cpp runs the LLM of a bundle, or the fault."""
    try:
        settings = engine_settings(bundle.path / bundle.manifest.llm.file, bundle.manifest.llm, use_cache=False)
    except EngineError as error:
        faults.append(str(error))
        return
    results["repacked weights"] = "on" if settings.extra_buffers else "off"
    results["flash attention"] = "on" if settings.flash_attention else "off"
    results["reason"] = settings.note
    if bundle.manifest.llm_onnx is not None:
        choice = choose_backend(bundle, default_threads(), use_cache=False)
        results["LLM backend"] = f"{choice.llm.backend.upper()} ({choice.note})"
    if has_amx and not settings.extra_buffers:
        advice.append(
            f"This processor has AMX, which this build of llama.cpp cannot use. A build that can:\n{AMX_BUILD}"
        )


def _try_gpu(bundle: Bundle, gpu_layers: GpuLayers) -> str:
    """Return which parts of a bundle run on a GPU."""
    offload = plan_offload(bundle, gpu_layers, use_cache=False)
    results = [
        "" if offload.llm is None else offload.llm.note,
        "the encoder runs on CUDA" if offload.encoder == "cuda" else "",
        offload.shortfall,
    ]
    return "; ".join(filter(None, results))


def _gpu_facts(inventory: GpuInventory, backends: list[str]) -> dict[str, str]:
    if inventory.fault is not None:
        return dict.fromkeys(("llama.cpp", "CTranslate2"), f"unknown: {inventory.fault}")
    build = f"built for {', '.join(backends)}" if backends else "built for the CPU only"
    cuda = f"{inventory.cuda} with CUDA, compute types {', '.join(inventory.compute_types)}"
    return {
        "llama.cpp": f"{build}; finds {', '.join(inventory.llama) or 'none'}",
        "CTranslate2": cuda if inventory.cuda else "finds no CUDA device",
    }


def inspect_engine(distribution: str) -> Engine:
    """Import one of `ENGINES` in a child process, which may fail or crash."""
    module, build = ENGINES[distribution]
    if missing_modules(module):
        return Engine(fault="not installed")
    if child_process.is_frozen():
        return Engine(version_of(distribution), build="unknown: a frozen application has no Python to start")
    disable_telemetry()  # inherited by the child
    # The child gets the module path of this process, so that both see the same installation.
    code = (
        f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {module} as engine; "
        f"print(json.dumps([engine.__version__, {build}]))"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Engine(fault=f"broken: its import did not end within {_IMPORT_SECONDS} s")
    if child.returncode != 0:
        return Engine(fault=f"broken: {_failure(child)}")
    version, build_information = json.loads(child.stdout.splitlines()[-1])
    return Engine(version, build=build_information.strip())


def _failure(child: subprocess.CompletedProcess[bytes]) -> str:
    if child.returncode < 0:
        return f"its import ended the process ({signal.strsignal(-child.returncode) or 'signal'})"
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its import ended with exit code {child.returncode}"
