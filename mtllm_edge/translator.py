"""Translation into one language with a CTranslate2 encoder-decoder, the first half of translate-test.

Files of a translator's folder::

    translator.json           `TranslatorManifest`
    model.bin, config.json, source_vocabulary.json, target_vocabulary.json
    tokenizer.json            of the texts
    target_tokenizer.json     of the translations
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers

from mtllm_edge.backends.cpu import check_threads, configure_openmp, default_threads
from mtllm_edge.bundle.formats.binary import DamagedFileError
from mtllm_edge.bundle.formats.ctranslate2 import read_shapes
from mtllm_edge.bundle.manifest import WeightSource
from mtllm_edge.errors import EngineError, ModelError, UsageError
from mtllm_edge.safe_text import one_line
from mtllm_edge.tokenization.batching import plan_batches
from mtllm_edge.tokenization.tokenizer import Tokenizer

configure_openmp()
import ctranslate2  # noqa: E402 (its OpenMP reads the environment when it is loaded)

MANIFEST_NAME = "translator.json"
BATCH_TOKENS = 2048
"""Default source tokens of a batch."""


class TranslatorManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`translator.json`."""

    name: str
    quantization: str
    """CTranslate2's compute type: ``int8`` or ``float32``."""
    max_tokens: int
    """Maximum length of a text, including special tokens; longer texts are truncated."""
    max_target_tokens: int
    """Maximum length of a translation."""
    prefix_tokens: tuple[str, ...]
    """Special tokens before every text."""
    suffix_tokens: tuple[str, ...]
    sources: tuple[WeightSource, ...]
    """Origin and license of every weight and data set behind it."""

    @classmethod
    def load(cls, folder: Path) -> TranslatorManifest:
        """Read the manifest in a translator's folder; raises ModelError if it is missing or damaged."""
        path = folder / MANIFEST_NAME
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"{folder} has no {MANIFEST_NAME}; give a folder made by export-translator") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: {error}; export the translator again") from None


class Translator:
    """A loaded translator; safe to use from several threads."""

    def __init__(self, folder: Path, manifest: TranslatorManifest, *, threads: int) -> None:
        """Use `Translator.load`."""
        self.manifest = manifest
        self._folder = folder
        self._tokenizer = Tokenizer(
            folder / "tokenizer.json",
            prefix_tokens=manifest.prefix_tokens,
            suffix_tokens=manifest.suffix_tokens,
            max_tokens=manifest.max_tokens,
        )
        path = folder / "target_tokenizer.json"
        try:
            self._target = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise ModelError(f"{path} is not a readable tokenizer ({one_line(error)}); export it again") from None
        self._names = self._load_source_names()
        try:
            self._engine = ctranslate2.Translator(
                str(folder), device="cpu", compute_type=manifest.quantization, inter_threads=1, intra_threads=threads
            )
        except Exception as error:  # C++ exceptions arrive as RuntimeError, ValueError ...
            raise EngineError(f"{folder}: CTranslate2 cannot load it ({one_line(error)}); export it again") from None

    def _load_source_names(self) -> list[str]:
        """Load the names of the source tokens, and refuse a tokenizer with more tokens than the encoder."""
        model, vocabulary = self._folder / "model.bin", self._folder / "source_vocabulary.json"
        try:
            shapes = read_shapes(model)
        except (OSError, DamagedFileError) as error:
            raise ModelError(f"{model} is not a CTranslate2 model ({error}); export it again") from None
        rows = (*shapes.get("encoder/embeddings_0/weight", ()), 0)[0]
        if self._tokenizer.vocabulary_size > rows:
            raise ModelError(
                f"{self._folder}: tokenizer.json has more tokens than the encoder's {rows}; export it again"
            )
        try:
            return msgspec.json.decode(vocabulary.read_bytes(), type=list[str])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{vocabulary}: {error}; export the translator again") from None

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Translator:
        """Load a folder made by `mtllm-edge export-translator`.

        Args:
            folder: The folder.
            threads: CPU threads; None takes the cores available to this process, at most 8.

        Raises:
            ModelError: A file is missing or damaged.
            EngineError: CTranslate2 refuses the model.
        """
        folder = Path(folder)
        threads = default_threads() if threads is None else threads
        check_threads(threads)
        return cls(folder, TranslatorManifest.load(folder), threads=threads)

    def translate(self, texts: Sequence[str], *, beam_size: int = 1, batch_tokens: int = BATCH_TOKENS) -> list[str]:
        """Translate texts, in their order.

        Args:
            texts: Texts in the encoder's languages.
            beam_size: 1 is greedy search.
            batch_tokens: Maximum source tokens of a batch, but at least the longest text.

        Raises:
            DataError: A text is empty.
            UsageError: `beam_size` is not positive.
            EngineError: CTranslate2 failed.
        """
        if beam_size < 1:
            raise UsageError(f"beam_size is {beam_size}; give 1 or more")
        encodings = self._tokenizer.encode(texts)
        lengths = [len(encoding.ids) for encoding in encodings]
        translations = [""] * len(lengths)
        for batch in plan_batches(lengths, max_tokens=max(batch_tokens, self.manifest.max_tokens), max_texts=64):
            sources = [[self._names[token] for token in encodings[index].ids] for index in batch]
            for index, names in zip(batch, self._search(sources, batch, beam_size=beam_size), strict=True):
                translations[index] = self._target.decode([int(name) for name in names if name.isdecimal()])
        return translations

    def _search(self, sources: list[list[str]], indices: list[int], **options: int) -> list[list[str]]:
        """Return the tokens of a batch's translations; `indices` of the texts are a hook for benchmarks."""
        options = {"max_decoding_length": self.manifest.max_target_tokens} | options
        try:
            return [result.hypotheses[0] for result in self._engine.translate_batch(sources, **options)]
        except Exception as error:  # as above
            raise EngineError(f"{self._folder}: CTranslate2 failed ({one_line(error)})") from None
