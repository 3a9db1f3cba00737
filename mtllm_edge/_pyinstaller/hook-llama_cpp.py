"""llama.cpp's libraries: ctypes loads them from a folder of the package, which no import tells of."""

from PyInstaller.utils.hooks import collect_dynamic_libs, copy_metadata

binaries = collect_dynamic_libs("llama_cpp")
datas = copy_metadata("llama-cpp-python")  # part of the key under which the probe's answer is kept
# For its server and its downloads, which nothing here calls: they would bring half of a developer's environment.
excludedimports = ["llama_cpp.server", "huggingface_hub", "openai", "requests", "transformers"]
