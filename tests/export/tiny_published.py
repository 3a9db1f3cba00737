"""Makes a tiny stack in the layout in which the method's authors publish theirs. Nothing is downloaded.

One transformers folder: four bfloat16 shards with their index, ``nllb_encoder``, ``up_proj`` and ``llm2vec``, both
configurations nested, and code of its own, which must never run. Run as a script it writes one:
``python tiny_published.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tests.export.tiny_checkpoint import save_encoder, save_llm

SHARDS = 4
WIDTH = 64


@dataclass(frozen=True)
class PublishedModules:
    """What the folder was made of, in float32 with bfloat16's values."""

    encoder: Any
    up_proj: torch.nn.Linear
    llm: Any


def save_published(folder: Path) -> PublishedModules:
    """Write the folder."""
    folder.mkdir(parents=True)
    save_encoder(folder / "nllb", "m2m_100")
    save_llm(folder / "llama", width=WIDTH, layers=2)
    encoder = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "nllb").get_encoder().eval()
    llm = transformers.AutoModel.from_pretrained(folder / "llama").eval()
    torch.manual_seed(5)
    up_proj = torch.nn.Linear(encoder.config.d_model, WIDTH)
    parts = {"nllb_encoder": encoder, "up_proj": up_proj, "llm2vec": llm}
    for module in parts.values():
        for parameter in module.parameters():
            parameter.data = parameter.data.bfloat16().float()
    tensors = {
        f"{part}.{name}": tensor.bfloat16()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    _save_shards(folder, tensors)
    config = {
        "architectures": ["NLLBLLM2Vec"],
        "auto_map": {"AutoModel": "modeling_nllb_llm2vec.NLLBLLM2Vec", "AutoConfig": "modeling_nllb_llm2vec.Config"},
        "llm2vec_config": llm.config.to_dict(),
        "model_type": "nllb-llm2vec",
        "nllb_config": encoder.config.to_dict(),
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_nllb_llm2vec.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    (folder / "nllb" / "tokenizer.json").rename(folder / "tokenizer.json")
    for left in [*(folder / "nllb").iterdir(), *(folder / "llama").iterdir()]:
        left.unlink()
    (folder / "nllb").rmdir()
    (folder / "llama").rmdir()
    return PublishedModules(encoder, up_proj, llm)


def _save_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = list(tensors)
    size = -(-len(names) // SHARDS)
    places: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        own = {name: tensors[name].contiguous() for name in names[shard * size : (shard + 1) * size]}
        save_file(own, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(own, file)
    index = {"metadata": {"total_size": 2 * sum(t.numel() for t in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    save_published(Path(sys.argv[1]))
