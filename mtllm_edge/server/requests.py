"""The bodies of requests, checked before anything else is done."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mtllm_edge.inputs import Input

_OF_ALL = "Code or name of the language of all texts, or auto; some models must be told."


class _Body(BaseModel):
    """Base: a misspelt key is refused."""

    model_config = ConfigDict(extra="forbid")


class ClassifyBody(_Body):
    """POST /classify."""

    texts: list[Input] = Field(
        description="Texts; for tasks of pairs [text, text_pair], for multiple choice [text, [choice, choice ...]].",
        examples=[["The rocket reached orbit.", "Die Rakete erreichte die Umlaufbahn."]],
    )
    task: str | None = Field(None, description="May be left out where the model has only one.")
    language: str | list[str | None] | None = Field(
        None, description=f"{_OF_ALL} Or a list with one for each, or null."
    )


class EmbeddingsBody(_Body):
    """POST /v1/embeddings, as OpenAI has it; `language` is an addition."""

    input: str | list[str] = Field(description="A text, or several.")
    model: str = Field(description="The name of the bundle, or of its folder.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Nothing but the model's own width.")
    user: str | None = Field(None, description="Ignored.")
    language: str | None = Field(None, description=_OF_ALL)
