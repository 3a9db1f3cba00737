"""Hook of CTranslate2: its converters, which it imports, would include whole frameworks if they are installed."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("ctranslate2")
excludedimports = ["torch", "transformers", "tensorflow", "fairseq", "huggingface_hub"]
