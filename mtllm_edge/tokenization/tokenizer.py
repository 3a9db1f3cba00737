"""Text to encoder ids, with what was cut reported instead of hidden."""

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
    """A `tokenizer.json` with the encoder's own frame of special tokens.

    The frame is applied here and not by the file's post-processor, because NLLB's file fixes one language in it. What
    stands between the texts of a pair is the post-processor's (``</s></s>`` for XLM-R, ``[SEP]`` for BERT, nothing for
    NLLB); token types, where an encoder has them, are those of a single text throughout.
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
            prefix_tokens: Tokens before the text; ``{language}`` stands for the language's code.
            suffix_tokens: Tokens after the text, likewise.
            max_tokens: Longest result, the frame included.
            languages: Codes that may stand for ``{language}``.
            use_sentencepiece: Use SentencePiece where the file allows it (see
                `mtllm_edge.tokenization.sentencepiece`); `offsets` is then unavailable.

        Raises:
            ModelError: The file is not a tokenizer, or lacks one of the frame's tokens.
        """
        self._pieces = (SentencePieces.open(path) if use_sentencepiece else None) or _HuggingFace(path)
        self._languages = tuple(languages)
        self._prefix, self._suffix = tuple(prefix_tokens), tuple(suffix_tokens)
        self._max_tokens = max_tokens
        self._between = self._pieces.between
        frame = [
            token.replace(LANGUAGE_PLACEHOLDER, language)
            for token in (*self._prefix, *self._suffix)
            for language in (self._languages if LANGUAGE_PLACEHOLDER in token else ("",))
        ]
        missing = [token for token in frame if self._pieces.id(token) is None]
        if missing:
            raise ModelError(f"{path} lacks the tokens {missing}; the tokenizer belongs to another model")
        if self._room <= 0:
            special = len(self._prefix) + len(self._suffix)
            raise ModelError(f"max_tokens is {max_tokens}, which leaves no room between {special} special tokens")
        self._language_resolver = LanguageResolver(self._languages, needed=self.needs_language)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the added tokens included."""
        return self._pieces.size

    @property
    def needs_language(self) -> bool:
        """Whether `encode` must be told the language."""
        return any(LANGUAGE_PLACEHOLDER in token for token in self._prefix + self._suffix)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that `encode` takes; empty where it takes none."""
        return self._languages

    def encode(
        self, texts: Sequence[Input], *, language: str | Sequence[str | None] | None = None, truncate: bool = True
    ) -> list[Encoding]:
        """Tokenize texts, pairs, and texts with choices; `SpecialTokenTemplate.join` defines the truncation.

        Args:
            texts: What to read; white space alone is no text.
            language: Code or name of the language of all of them, or one for each, or ``auto`` (see
                `mtllm_edge.languages.resolver`). Encoders that take no language are not told it, but the results are.
            truncate: Whether texts are cut to the encoder's maximum length.

        Warns:
            LanguageWarning: A text is read as another language than its own.

        Raises:
            DataError: A text is empty, is not Unicode, or is no string; there are fewer than two choices, or more than
                the encoder can read at once. The message gives the index.
            UsageError: `texts` is a single string or a table, or the language is missing or unknown, or it must be
                identified and the extra [lang] is not installed.
        """
        if isinstance(texts, str):
            raise UsageError("the texts came as one string; put it into a list")
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # their names would be read as texts
            raise UsageError(f"the texts came as a {type(texts).__name__}; give the column that holds them")
        texts = list(texts)
        for index, item in enumerate(texts):
            _check(item, index)
        codes = self._language_resolver.resolve(texts, language)
        frames = {code: self._frame(code) for code in dict.fromkeys(codes)}
        flat = [part for item in texts for part in parts_of(item)]
        readings = iter(self._pieces.encode(flat))
        return [
            self._join(item, index, [next(readings) for _ in parts_of(item)], frames[code], truncate=truncate)
            for index, (item, code) in enumerate(zip(texts, codes, strict=True))
        ]

    def windows(self, texts: Sequence[Encoding]) -> Windows:
        """Single texts, encoded `whole`, in windows that the encoder takes."""
        return split_into_windows(texts, before=len(self._prefix), after=len(self._suffix), max_tokens=self._max_tokens)

    def _join(
        self, item: Input, index: int, parts: list[list[int]], frame: SpecialTokenTemplate, *, truncate: bool
    ) -> Encoding:
        for part, ids in enumerate(parts):
            if not ids and (len(parts) > 1 or not (frame.prefix or frame.suffix)):
                name = part_name(item, part, index)
                raise DataError(f"{name} has no tokens, only characters that the tokenizer drops; remove it")
        if frame.min_length(len(parts)) > self._max_tokens:
            raise DataError(
                f"text {index} has {len(parts)} parts, more than fit into the encoder's {self._max_tokens} tokens"
            )
        room = self._max_tokens if truncate else frame.min_length(len(parts)) + sum(map(len, parts))
        return frame.join(parts, choices=kind_of(item) == "multiple_choice", max_tokens=room)

    def offsets(self, text: str) -> list[tuple[int, int, int]]:
        """Where each token that is read stands in a text: (place in the ids, first character, end character)."""
        assert isinstance(self._pieces, _HuggingFace), "SentencePiece gives no offsets"
        first = len(self._prefix)
        offsets = self._pieces.offsets(text)[: self._room]
        return [(first + index, begin, end) for index, (begin, end) in enumerate(offsets)]

    @property
    def _room(self) -> int:
        """Longest single text in tokens, without the frame."""
        return self._max_tokens - len(self._prefix) - len(self._suffix)

    def _frame(self, language: str | None) -> SpecialTokenTemplate:
        prefix, suffix = (
            [self._id(token.replace(LANGUAGE_PLACEHOLDER, language or "")) for token in tokens]
            for tokens in (self._prefix, self._suffix)
        )
        return SpecialTokenTemplate(prefix, self._between, suffix, language)

    def _id(self, token: str) -> int:
        index = self._pieces.id(token)
        assert index is not None, token  # checked when the file was loaded
        return index


@contextmanager
def _tokenizer_errors(path: Path) -> Iterator[None]:
    """Turn what the Rust library raises into one line: plain `Exception`, and panics, which are no `Exception`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{path} is not a readable tokenizer ({one_line(error)}); get the model again") from None


class _HuggingFace:
    """Any `tokenizer.json`, by the library that it was made for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _tokenizer_errors(path):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self.between = self._pair_separator()
        """Special tokens that the file's post-processor puts between the texts of a pair."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens."""
        with _tokenizer_errors(self._path):
            return [reading.ids for reading in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def id(self, token: str) -> int | None:
        """The id of a token, special ones included."""
        return self._tokenizer.token_to_id(token)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """First character and end of each token."""
        with _tokenizer_errors(self._path):
            return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    @property
    def size(self) -> int:
        """Number of ids, the added tokens included."""
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
    """What keeps a text from being tokenized, as the end of a sentence."""
    if not isinstance(text, str):
        return f"has the type {type(text).__name__}, expected str"
    if not text.strip():
        return "is empty; remove it or give it some words"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start}, which is no character; repair it"
    return None
