"""Text to encoder ids, with what was cut reported instead of hidden."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from mtllm_edge.errors import DataError, ModelError, UsageError

LANGUAGE_PLACEHOLDER = "{language}"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as the encoder reads it."""

    ids: list[int]
    """Token ids, the special ones included."""
    truncated: bool
    """Whether the text was longer than the encoder takes and lost its end."""


class Tokenizer:
    """A Hugging Face fast tokenizer with the encoder's own frame of special tokens.

    The frame is applied here and not by the file's post-processor, because NLLB's file fixes one language in it.
    """

    def __init__(
        self,
        path: Path,
        *,
        prefix_tokens: Sequence[str],
        suffix_tokens: Sequence[str],
        max_tokens: int,
        languages: Sequence[str] = (),
    ) -> None:
        """Load `tokenizer.json`.

        Args:
            path: The file.
            prefix_tokens: Tokens before the text; ``{language}`` stands for the language's own token.
            suffix_tokens: Tokens after the text, likewise.
            max_tokens: Longest result, the frame included.
            languages: Codes that may stand for ``{language}``.

        Raises:
            ModelError: The file is not a tokenizer, or lacks one of the frame's tokens.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise ModelError(f"{path} is not a readable tokenizer ({error}); get the model again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._languages = tuple(languages)
        self._prefix, self._suffix = tuple(prefix_tokens), tuple(suffix_tokens)
        self._room = max_tokens - len(self._prefix) - len(self._suffix)
        frame = [token for token in (*self._prefix, *self._suffix) if token != LANGUAGE_PLACEHOLDER]
        missing = [token for token in (*frame, *languages) if self._tokenizer.token_to_id(token) is None]
        if missing:
            raise ModelError(f"{path} lacks the tokens {missing}; the tokenizer belongs to another model")
        if self._room <= 0:
            raise ModelError(f"max_tokens is {max_tokens}, which leaves no room between {len(frame)} special tokens")

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def needs_language(self) -> bool:
        """Whether `encode` must be told the language."""
        return LANGUAGE_PLACEHOLDER in self._prefix + self._suffix

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that `encode` takes; empty where it takes none."""
        return self._languages

    def encode(self, texts: Sequence[str], *, language: str | None = None) -> list[Encoded]:
        """Tokenize texts.

        Args:
            texts: The texts; white space alone is no text.
            language: Code of the language of all of them, for encoders that take one.

        Raises:
            DataError: A text is empty, is not Unicode, or is no string; the message gives its index.
            UsageError: `texts` is a single string, or the language is missing, unknown, or given to an encoder that
                takes none.
        """
        if isinstance(texts, str):
            raise UsageError("the texts came as one string; put it into a list")
        texts = list(texts)
        for index, text in enumerate(texts):
            if (fault := _fault(text)) is not None:
                raise DataError(f"text {index} {fault}")
        if language is not None and not self.needs_language:
            raise UsageError(f"this encoder takes no language (it was given {language!r}); leave the language out")
        prefix, suffix = self._frame_ids(self._prefix, language), self._frame_ids(self._suffix, language)
        room = self._room
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        encoded = [
            Encoded(ids=[*prefix, *encoding.ids[:room], *suffix], truncated=len(encoding.ids) > room)
            for encoding in encodings
        ]
        for index, item in enumerate(encoded):
            if not item.ids:
                raise DataError(f"text {index} has no tokens, only characters that the tokenizer drops; remove it")
        return encoded

    def offsets(self, text: str) -> list[tuple[int, int, int]]:
        """Where each token that is read stands in a text: (place in the ids, first character, end character)."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        first = len(self._prefix)
        return [(first + index, begin, end) for index, (begin, end) in enumerate(encoding.offsets[: self._room])]

    def _frame_ids(self, frame: tuple[str, ...], language: str | None) -> list[int]:
        return [self._id(self._checked(language) if token == LANGUAGE_PLACEHOLDER else token) for token in frame]

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        assert index is not None, token  # checked when the file was loaded
        return index

    def _checked(self, language: str | None) -> str:
        if language is None:
            raise UsageError(f"this encoder must know the language of the texts; name one of {self._some_languages()}")
        if language not in self._languages:
            near = difflib.get_close_matches(language, self._languages, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are {self._some_languages()}"
            raise UsageError(f"unknown language {language!r}; {hint}")
        return language

    def _some_languages(self) -> str:
        shown = ", ".join(self._languages[:8])
        return shown if len(self._languages) <= 8 else f"{shown} ... ({len(self._languages)} in all)"


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
