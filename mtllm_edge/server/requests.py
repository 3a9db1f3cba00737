"""Schemas of the request bodies."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mtllm_edge.inputs import Input

_LANGUAGE = "Language code or name for all texts, or auto; some models require it."


class _Request(BaseModel):
    """Base class that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class ClassifyRequest(_Request):
    """POST /classify."""

    texts: list[Input] = Field(
        description="Texts; [text, text_pair] for pair tasks, [text, [choice, choice ...]] for multiple choice.",
        examples=[["The rocket reached orbit.", "Die Rakete erreichte die Umlaufbahn."]],
    )
    task: str | None = Field(None, description="Optional if the model has only one.")
    language: str | list[str | None] | None = Field(
        None, description=f"{_LANGUAGE} Or a list with one per text, null where it is unknown."
    )


class EmbeddingsRequest(_Request):
    """POST /v1/embeddings as in OpenAI's API; `language` is an extension."""

    input: str | list[str] = Field(description="A text, or a list of texts.")
    model: str = Field(description="Name of the bundle or of its folder.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Only the model's own number of dimensions.")
    user: str | None = Field(None, description="Ignored.")
    language: str | None = Field(None, description=_LANGUAGE)
