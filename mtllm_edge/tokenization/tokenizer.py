"""Tokenization of texts, pairs, and texts with choices for the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from mtllm_edge.errors import DataError, ModelError, UsageError
from mtllm_edge.inputs import Input, kind_of, part_name, parts_of
from mtllm_edge.languages.resolver import LanguageResolver
from mtllm_edge.safe_text import one_line
from mtllm_edge.tokenization.encoding import Encoding, SpecialTokenTemplate
from mtllm_edge.tokenization.sentencepiece import SentencePieces
from mtllm_edge.tokenization.windows import Windows, split_into_windows

LANGUAGE_PLACEHOLDER = "{language}"


class Tokenizer:
    """A `tokenizer.json` with the encoder's own special tokens.

    The file's post-processor is not used, because NLLB's contains one fixed language. Only the separator of a pair is
    the post-processor's (``</s></s>`` for XLM-R, ``[SEP]`` for BERT, nothing for NLLB). Token types, if the encoder has
    them, are those of a single text.
    """

    def __init__(
        self,
        path: Path,
        *,
        prefix_tokens: Sequence[str],
        suffix_tokens: Sequence[str],
        max_tokens: int,
        languages: Sequence[str] = (),
        use_sentencepiece: bool = False,
    ) -> None:
        """Load `tokenizer.json`.

        Args:
            path: The file.
            prefix_tokens: Tokens before the text; ``{language}`` is replaced by the language's code.
            suffix_tokens: Tokens after the text, likewise.
            max_tokens: Maximum length, including the special tokens.
            languages: Codes for ``{language}``.
            use_sentencepiece: Use SentencePiece if the file allows it (see `mtllm_edge.tokenization.sentencepiece`);
                `offsets` is then unavailable.

        Raises:
            ModelError: The file is not a tokenizer, or lacks a special token.
        """
        self._engine = (SentencePieces.open(path) if use_sentencepiece else None) or _HuggingFace(path)
        self._languages = tuple(languages)
        self._prefix, self._suffix = tuple(prefix_tokens), tuple(suffix_tokens)
        self._max_tokens = max_tokens
        special_tokens = [
            token.replace(LANGUAGE_PLACEHOLDER, language)
            for token in (*self._prefix, *self._suffix)
            for language in (self._languages if LANGUAGE_PLACEHOLDER in token else ("",))
        ]
        missing = [token for token in special_tokens if self._engine.id(token) is None]
        if missing:
            raise ModelError(f"{path} lacks the tokens {missing}; the tokenizer belongs to another model")
        self._max_text_tokens = max_tokens - len(self._prefix) - len(self._suffix)
        if self._max_text_tokens <= 0:
            special = len(self._prefix) + len(self._suffix)
            raise ModelError(f"max_tokens is {max_tokens}, too few for text besides {special} special tokens")
        self._language_resolver = LanguageResolver(self._languages, needed=self.needs_language)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, including added tokens."""
        return self._engine.size

    @property
    def needs_language(self) -> bool:
        """Whether `encode` requires a language."""
        return any(LANGUAGE_PLACEHOLDER in token for token in self._prefix + self._suffix)

    @property
    def languages(self) -> tuple[str, ...]:
        """Language codes of the special tokens; empty if the encoder takes no language."""
        return self._languages

    def encode(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None, truncate: bool = True
    ) -> list[Encoding]:
        """Tokenize texts, pairs, and texts with choices; truncation as in `SpecialTokenTemplate.join`.

        Args:
            texts: The inputs; none of their texts may be empty or white space.
            language: Code or name of the language of all texts, or one for each, or ``auto`` (see
                `mtllm_edge.languages.resolver`). If the encoder takes no language, it is recorded in the results only.
            truncate: Whether texts are cut to the encoder's maximum length.

        Warns:
            LanguageWarning: A text is encoded with a related language, since the encoder lacks its own.

        Raises:
            DataError: A text is empty, not a string or not Unicode, or the number of choices is less than two or too
                large for the encoder. The message contains the index.
            UsageError: `texts` is a single string or a table, the language is missing or unknown, or its
                identification requires the extra [lang].
        """
        if isinstance(texts, str):
            raise UsageError("the texts came as one string; put it into a list")
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # iteration would yield the names of columns
            raise UsageError(f"the texts came as a {type(texts).__name__}; give the column that holds them")
        texts = list(texts)
        for index, item in enumerate(texts):
            _check(item, index)
        codes = self._language_resolver.resolve(texts, language)
        templates = {code: self._template(code) for code in dict.fromkeys(codes)}
        part_ids = iter(self._engine.encode([part for item in texts for part in parts_of(item)]))
        return [
            self._join(item, index, [next(part_ids) for _ in parts_of(item)], templates[code], truncate=truncate)
            for index, (item, code) in enumerate(zip(texts, codes, strict=True))
        ]

    def windows(self, texts: Sequence[Encoding]) -> Windows:
        """Split single texts, encoded without truncation, into windows of the encoder's maximum length."""
        return split_into_windows(
            texts, prefix=len(self._prefix), suffix=len(self._suffix), max_tokens=self._max_tokens
        )

    def _join(
        self, item: Input, index: int, parts: list[list[int]], template: SpecialTokenTemplate, *, truncate: bool
    ) -> Encoding:
        for part, ids in enumerate(parts):
            if not ids and (len(parts) > 1 or not (template.prefix or template.suffix)):
                name = part_name(item, part, index)
                raise DataError(f"{name} has no tokens, only characters that the tokenizer drops; remove it")
        min_length = template.min_length(len(parts))
        if min_length > self._max_tokens:
            raise DataError(
                f"text {index} has {len(parts)} parts, more than fit into the encoder's {self._max_tokens} tokens"
            )
        max_tokens = self._max_tokens if truncate else min_length + sum(map(len, parts))
        return template.join(parts, choices=kind_of(item) == "multiple_choice", max_tokens=max_tokens)

    def offsets(self, text: str) -> list[tuple[int, int, int]]:
        """Return each token of a truncated text: its index in the ids, first character and end character."""
        assert isinstance(self._engine, _HuggingFace), "SentencePiece has no offsets"
        offsets = self._engine.offsets(text)[: self._max_text_tokens]
        return [(index, begin, end) for index, (begin, end) in enumerate(offsets, len(self._prefix))]

    def _template(self, language: str | None) -> SpecialTokenTemplate:
        prefix, suffix = (
            [self._id(token.replace(LANGUAGE_PLACEHOLDER, language or "")) for token in tokens]
            for tokens in (self._prefix, self._suffix)
        )
        return SpecialTokenTemplate(prefix, self._engine.separator, suffix, language)

    def _id(self, token: str) -> int:
        index = self._engine.id(token)
        assert index is not None, token  # checked when the file was loaded
        return index


@contextmanager
def _tokenizer_errors(path: Path) -> Iterator[None]:
    """Convert errors of the Rust library: plain `Exception`, and panics, which are only `BaseException`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{path} is not a readable tokenizer ({one_line(error)}); get the model again") from None


class _HuggingFace:
    """A `tokenizer.json` in Hugging Face's `tokenizers`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _tokenizer_errors(path):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self.separator = self._pair_separator()
        """Special tokens that the post-processor puts between the texts of a pair."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        with _tokenizer_errors(self._path):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]

    def id(self, token: str) -> int | None:
        """Return the id of a token, including special tokens; None if unknown."""
        return self._tokenizer.token_to_id(token)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return first and end character of each token."""
        with _tokenizer_errors(self._path):
            return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    @property
    def size(self) -> int:
        """Number of ids, including added tokens."""
        return int(self._tokenizer.get_vocab_size())

    def _pair_separator(self) -> list[int]:
        pair = self._tokenizer.encode("a", "a")
        owners = pair.sequence_ids  # 0 and 1 for the two texts, None for special tokens
        if 0 not in owners or 1 not in owners:
            return []
        return list(pair.ids[len(owners) - owners[::-1].index(0) : owners.index(1)])


def _check(item: Input, index: int) -> None:
    kind = kind_of(item)
    if kind is None:
        raise DataError(f"text {index} is none of a text, a pair (text, text_pair) and (text, [choice, choice ...])")
    parts = parts_of(item)
    if kind == "multiple_choice" and len(parts) < 3:
        raise DataError(f"text {index} has {len(parts) - 1} choices; give two or more")
    for part, text in enumerate(parts):
        if (fault := _fault(text)) is not None:
            raise DataError(f"{part_name(item, part, index)} {fault}")


def _fault(text: object) -> str | None:
    """Return why a text cannot be tokenized, as the end of a sentence."""
    if not isinstance(text, str):
        return f"has the type {type(text).__name__}, expected str"
    if not text.strip():
        return "is empty; remove it or give it some words"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which is no character; repair it"
    return None
