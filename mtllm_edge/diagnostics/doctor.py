"""What is installed here, what the processor can do, and whether the engines work.

A broken native library can end the process that imports it, so the engines are asked in child processes, and the
packages of the extras are looked up without being imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import mtllm_edge
from mtllm_edge.backends.cpu import available_cores, default_threads, disable_telemetry, read_cpu
from mtllm_edge.backends.probing import child_process
from mtllm_edge.backends.probing.gpu import GpuInventory, detect_gpus, gpu_backends
from mtllm_edge.backends.probing.llama_cpp import engine_settings
from mtllm_edge.backends.probing.llm_backend import choose_backend
from mtllm_edge.backends.probing.offload import GpuLayers, plan_offload
from mtllm_edge.bundle.reader import Bundle
from mtllm_edge.errors import EngineError
from mtllm_edge.extras import EXTRAS, missing_modules

LIBRARIES = ("tokenizers", "sentencepiece", "numpy", "safetensors")
ENGINES = {
    "ctranslate2": ("ctranslate2", "''"),
    "llama-cpp-python": ("llama_cpp", "engine.llama_print_system_info().decode()"),
    "onnxruntime": ("onnxruntime", "''"),
}
"""Distribution -> its module, and the expression for what it was compiled for."""
_REINSTALL = "pip install --force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python llama-cpp-python"
AMX_BUILD = f"CMAKE_ARGS=\"-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'\" {_REINSTALL}"
"""A build in which AMX works: GCC otherwise removes the stores that fill the tile configuration."""
GPU_BUILDS = {
    "NVIDIA, with the CUDA toolkit": f'CMAKE_ARGS="-DGGML_CUDA=on" {_REINSTALL}',
    "Apple": f'CMAKE_ARGS="-DGGML_METAL=on" {_REINSTALL}',
    "others, with the Vulkan SDK": f'CMAKE_ARGS="-DGGML_VULKAN=on" {_REINSTALL}',
}
"""Whose GPU it is -> how llama.cpp is built for it."""
_FLAG_PREFIXES = ("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")
_ASK_SECONDS = 120
"""A first import from a cold disk can take long; a hang is a fault all the same."""


@dataclass(frozen=True)
class Engine:
    """What a child process found out about one engine."""

    version: str | None = None
    """None where it cannot be used."""
    build: str = ""
    """The engine's own words on the instruction sets that it was compiled for."""
    fault: str | None = None
    """One line, where it cannot be used."""


@dataclass(frozen=True)
class Report:
    """All that `mtllm-edge doctor` knows; `--json` prints its fields."""

    mtllm_edge: str
    python: str
    system: str
    cpu: str
    cpu_flags: tuple[str, ...]
    """Those that matter to the engines."""
    cores: int
    """Open to this process."""
    threads: int
    """What the engines take unless told otherwise."""
    libraries: dict[str, str]
    engines: dict[str, Engine]
    missing_for_extras: dict[str, list[str]]
    """Extra -> the modules that it still needs; empty where it is installed."""
    gpu: dict[str, str] = field(default_factory=dict)
    """Engine -> what it could do with a GPU, and which it sees."""
    bundle: dict[str, str] = field(default_factory=dict)
    """Outcome of the probe with a bundle's LLM."""
    advice: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    """Why bundles cannot run here, a line each; empty where they can."""

    def facts(self) -> dict[str, str]:
        """The report as names and values for people."""
        facts = {
            "mtllm-edge": self.mtllm_edge,
            "Python": self.python,
            "system": self.system,
            "processor": self.cpu,
            "instruction sets": " ".join(self.cpu_flags) or "not listed by this system",
            "cores": f"{self.cores} open to this process; threads by default {self.threads}",
        }
        for name, engine in self.engines.items():
            facts[name] = engine.version or engine.fault or ""
            if engine.build:
                facts[f"{name} build"] = engine.build
        facts |= {f"GPUs of {engine}": found for engine, found in self.gpu.items()}
        facts |= self.libraries
        for extra, absent in self.missing_for_extras.items():
            facts[f"extra [{extra}]"] = f"not installed: {', '.join(absent)}" if absent else "installed"
        return facts | self.bundle


def diagnose(bundle: Bundle | None = None, gpu_layers: GpuLayers = 0) -> Report:
    """Look at everything; never raises for what it finds, and never imports an engine into this process.

    Args:
        bundle: If given, its LLM is tried, whatever the cache remembers; one for ONNX Runtime is not.
        gpu_layers: Layers of that LLM that are tried on a GPU, and with them the encoder.
    """
    cpu = read_cpu()
    backends = set() if bundle is None else {bundle.manifest.encoder.backend, bundle.manifest.llm.backend}
    needs_onnx = "onnx" in backends
    wanted = [name for name in ENGINES if name != "onnxruntime" or needs_onnx or not missing_modules("onnxruntime")]
    engines = {distribution: inspect_engine(distribution) for distribution in wanted}
    faults = [
        f"{name} is {engine.fault}; run: pip install --force-reinstall {name}"
        for name, engine in engines.items()
        if engine.fault
    ]
    tried: dict[str, str] = {}
    advice: list[str] = []
    if bundle is not None:
        tried["bundle"] = str(bundle.path)
    if bundle is not None and "gguf" in backends and engines["llama-cpp-python"].fault is None:
        try:
            settings = engine_settings(bundle.path / bundle.manifest.llm.file, bundle.manifest.llm, use_cache=False)
        except EngineError as error:
            faults.append(str(error))
        else:
            tried["repacked weights"] = "on" if settings.extra_buffers else "off"
            tried["flash attention"] = "on" if settings.flash_attention else "off"
            tried["reason"] = settings.note
            if bundle.manifest.llm_onnx is not None:
                choice = choose_backend(bundle, default_threads(), use_cache=False)
                tried["form of the LLM"] = f"{choice.llm.backend.upper()} ({choice.note})"
            if not settings.extra_buffers and any(flag.startswith("amx") for flag in cpu.flags):
                advice.append(
                    f"This processor has AMX, which this build of llama.cpp cannot use. A build that can:\n{AMX_BUILD}"
                )
    if bundle is not None and gpu_layers != 0 and not faults:
        tried["GPU"] = _tried_gpu(bundle, gpu_layers)
    backends_of_build = gpu_backends()
    if engines["llama-cpp-python"].fault is None and not backends_of_build:
        advice.append(_gpu_advice())
    return Report(
        mtllm_edge=mtllm_edge.__version__,
        python=f"{platform.python_version()} ({sys.executable})",
        system=platform.platform(),
        cpu=cpu.model,
        cpu_flags=tuple(flag for flag in cpu.flags if flag.startswith(_FLAG_PREFIXES)),
        cores=available_cores(),
        threads=default_threads(),
        libraries={name: _version(name) for name in LIBRARIES},
        engines=engines,
        gpu=_gpu_facts(detect_gpus(), backends_of_build),
        missing_for_extras={extra: missing_modules(*modules) for extra, modules in EXTRAS.items()},
        bundle=tried,
        advice=tuple(advice),
        faults=tuple(faults),
    )


def _gpu_facts(seen: GpuInventory, backends: list[str]) -> dict[str, str]:
    if seen.fault is not None:
        return {"llama.cpp": f"not known: {seen.fault}", "CTranslate2": f"not known: {seen.fault}"}
    built = f"built for {', '.join(backends)}" if backends else "built for the CPU alone"
    cuda = f"{seen.cuda} on CUDA, computing in {', '.join(seen.compute_types)}" if seen.cuda else "sees no CUDA device"
    return {"llama.cpp": f"{built}; sees {', '.join(seen.llama) or 'none'}", "CTranslate2": cuda}


def _gpu_advice() -> str:
    lines = [f"{whose}:\n{build}" for whose, build in GPU_BUILDS.items()]
    return "\n".join(["For --gpu-layers, llama.cpp must be built for your GPU.", *lines])


def _tried_gpu(bundle: Bundle, gpu_layers: GpuLayers) -> str:
    """What came of trying a bundle on a GPU."""
    offload = plan_offload(bundle, gpu_layers, use_cache=False)
    found = [] if offload.llm is None else [offload.llm.note]
    found += ["the encoder runs on CUDA"] if offload.encoder == "cuda" else []
    return "; ".join([*found, *filter(None, [offload.shortfall])])


def inspect_engine(distribution: str) -> Engine:
    """Import one of `ENGINES` in a child process, which may fail or crash in this one's stead."""
    module, build = ENGINES[distribution]
    if missing_modules(module):
        return Engine(fault="not installed")
    if child_process.is_frozen():
        return Engine(version=_version(distribution), build="not asked: a frozen application has no Python to start")
    disable_telemetry()  # which the child inherits
    # It gets this process's module path, so that both see the same installation.
    code = (
        f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {module} as engine; "
        f"print(json.dumps([engine.__version__, {build}]))"
    )
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Engine(fault=f"broken: its import did not end within {_ASK_SECONDS} s")
    if child.returncode != 0:
        return Engine(fault=f"broken: {_last_words(child)}")
    version, built_for = json.loads(child.stdout.splitlines()[-1])
    return Engine(version=version, build=built_for.strip())


def _last_words(child: subprocess.CompletedProcess[bytes]) -> str:
    if child.returncode < 0:
        return f"its import ended the process ({signal.strsignal(-child.returncode) or 'signal'})"
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its import ended with exit code {child.returncode}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
