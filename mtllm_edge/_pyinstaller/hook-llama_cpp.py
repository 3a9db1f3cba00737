"""Hook of llama.cpp: its libraries, which ctypes loads from a folder of the package."""

from PyInstaller.utils.hooks import collect_dynamic_libs, copy_metadata

binaries = collect_dynamic_libs("llama_cpp")
datas = copy_metadata("llama-cpp-python")  # its version is part of the probe's cache key
# Dependencies of its server and its downloads, which this package does not use.
excludedimports = ["llama_cpp.server", "huggingface_hub", "openai", "requests", "transformers"]
