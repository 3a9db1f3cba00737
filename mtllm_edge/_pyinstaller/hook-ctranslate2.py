"""CTranslate2 imports its converters, and those import whole frameworks where they are installed."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("ctranslate2")
excludedimports = ["torch", "transformers", "tensorflow", "fairseq", "huggingface_hub"]
