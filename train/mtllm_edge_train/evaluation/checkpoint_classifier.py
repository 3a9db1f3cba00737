"""Classification with a checkpoint in torch: a stack, or a fine-tuned LLM without an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mtllm_edge.errors import UsageError
from mtllm_edge.inputs import Input, check_kind
from mtllm_edge_train.checkpoints.config import StackConfig, find_task, resolve_source
from mtllm_edge_train.models import loading
from mtllm_edge_train.models.llm_tokenization import MAX_TOKENS
from mtllm_edge_train.models.stack import load_llm_tokenizer, pool_in_batches, predict_labels


class CheckpointClassifier:
    """A loaded checkpoint, a stack or a fine-tuned LLM without encoder."""

    languages: tuple[str, ...]
    """Language codes of the encoder, one of which `predict` requires; empty for an encoder without language codes."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        """Load a checkpoint.

        Raises:
            ModelError: A part is missing or damaged.
        """
        self._folder = folder
        self._config = StackConfig.load(folder)
        if self._config.encoder is not None:
            stack = loading.load_stack(folder).to(device)
            self._heads: Any = stack.heads
            self.languages = stack.tokenizer.languages

            def embed(texts: list[Input], language: str | None) -> Tensor:
                return stack.embed(stack.tokenizer.encode(texts, language=language))
        else:
            llm = loading.load_llm(folder, self._config).to(device)
            tokenizer = load_llm_tokenizer(resolve_source(self._config.llm.source, folder))
            self._heads = loading.load_heads(folder, self._config, width=llm.width).to(device)
            self.languages = ()

            def embed(texts: list[Input], language: str | None) -> Tensor:
                if language is not None:
                    raise UsageError(f"{folder} has no encoder that takes a language; leave the language out")
                return llm.embed(tokenizer, texts, max_tokens=MAX_TOKENS)

        self._embed = embed

    def predict(self, task: str, texts: Sequence[Input], *, language: str | None = None) -> list[str]:
        """Predict the labels of texts; for multiple choice, the index of the best choice, ``"0"`` being the first.

        Args:
            task: A task of the checkpoint.
            texts: Inputs of the task; see `mtllm_edge.inputs`.
            language: Language code of all texts, where `languages` is not empty.

        Raises:
            UsageError: The checkpoint has no such task.
            DataError: A text is not an input of the task.
        """
        config = find_task(self._config.tasks, task, self._folder)
        check_kind(texts, config.kind, f"task {task!r}")
        vectors = pool_in_batches(texts, lambda batch: self._embed(batch, language))
        return predict_labels(self._heads[task], vectors, config.labels)
