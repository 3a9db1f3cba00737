"""Merging of LLM2Vec adapters into an LLM (BehnamGhader et al. 2024, arXiv 2404.05961)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peft
import torch
import transformers

from mtllm_edge.files.atomic import atomic_folder
from mtllm_edge_train.library_errors import one_line_error
from mtllm_edge_train.models.pretrained import pretrained_model, pretrained_tokenizer


def merge_adapters(llm: str, adapters: Sequence[str], out: Path) -> None:
    """Write the body of an LLM in bfloat16, with adapters merged one after the other, and its tokenizer.

    LLM and adapters, in the format of peft, are folders or hub ids. The folder `out` is complete or not written at all.

    Raises:
        ModelError: The LLM or an adapter cannot be loaded.
        UsageError: `out` exists.
    """
    with atomic_folder(out, force=False, marker="config.json") as folder:
        with one_line_error(f"{llm} cannot be loaded as an LLM", "name a folder or hub id, or ask for access to it"):
            model = pretrained_model(transformers.AutoModel, llm, dtype=torch.bfloat16)
            tokenizer = pretrained_tokenizer(llm)
        for adapter in adapters:
            with one_line_error(
                f"{adapter} cannot be loaded as an adapter of {llm}", "name a folder or hub id of peft's format"
            ):
                model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
