"""Write an M2M100 with random weights in CTranslate2: as a translator, and the encoder alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import transformers

from mtllm_edge.backends.cpu import configure_openmp
from mtllm_edge.bundle.manifest import ENCODER_NAME, TOKENIZER_NAME
from mtllm_edge.translator import MANIFEST_NAME, TranslatorManifest
from mtllm_edge_bench.synthetic import tokenizer
from mtllm_edge_export.encoders.ctranslate2 import write_encoder
from mtllm_edge_export.encoders.spec import EncoderQuantization
from mtllm_edge_train.models.encoder import LoadedEncoder

configure_openmp()
from ctranslate2.converters import transformers as converters

QUANTIZATION: EncoderQuantization = "int8"


def random_model(config: Mapping[str, Any], *, seed: int = 0) -> Any:
    """Return a transformers model with freshly initialized weights.

    Args:
        config: Keys of transformers' `M2M100Config`.
        seed: Seed of the weights.
    """
    transformers.set_seed(seed)
    special_ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**config, **special_ids)).eval()


def random_encoder(model: Any, folder: Path) -> LoadedEncoder:
    """Return the encoder of a `random_model`; its `tokenizer.json` is written to an existing folder."""
    tokenizer.write_tokenizer(folder / TOKENIZER_NAME, model.config.vocab_size)
    return LoadedEncoder(
        family="m2m_100",
        module=model.get_encoder(),
        full_model=model,
        d_model=model.config.d_model,
        max_positions=model.config.max_position_embeddings,
        tokenizer_json=(folder / TOKENIZER_NAME).read_text(encoding="utf-8"),
        prefix_tokens=tokenizer.PREFIX_TOKENS,
        suffix_tokens=tokenizer.SUFFIX_TOKENS,
        languages=(),
    )


def write_random_nllb(model: Any, folder: Path, *, max_tokens: int) -> None:
    """Write `encoder/` and `tokenizer.json` as in a bundle, and `translator/` as `export-translator` does.

    Args:
        model: A `random_model`.
        folder: An existing folder.
        max_tokens: Longest text in tokens, special tokens included.
    """
    rows = model.config.vocab_size
    encoder = random_encoder(model, folder)
    write_encoder(encoder, folder / ENCODER_NAME, QUANTIZATION)
    specification = converters._MODEL_LOADERS["M2M100Config"].get_model_spec(model)
    specification.config.unk_token = "<unk>"
    specification.config.bos_token, specification.config.eos_token = "<s>", "</s>"
    specification.config.decoder_start_token = "</s>"
    names = [*tokenizer.SPECIAL_TOKENS, *(str(row) for row in range(len(tokenizer.SPECIAL_TOKENS), rows))]
    specification.register_source_vocabulary(names)
    specification.register_target_vocabulary(names)
    specification.validate()
    specification.optimize(quantization=QUANTIZATION)
    translator = folder / "translator"
    translator.mkdir()
    specification.save(str(translator))
    # CTranslate2 writes a shared vocabulary to one file; the runtime reads that of the source.
    shutil.copyfile(translator / "shared_vocabulary.json", translator / "source_vocabulary.json")
    for name in ("tokenizer.json", "target_tokenizer.json"):
        (translator / name).write_text(encoder.tokenizer_json, encoding="utf-8")
    manifest = TranslatorManifest(
        name="random",
        quantization=QUANTIZATION,
        max_tokens=max_tokens,
        max_target_tokens=max_tokens,
        prefix_tokens=tokenizer.PREFIX_TOKENS,
        suffix_tokens=tokenizer.SUFFIX_TOKENS,
        sources=(),
    )
    (translator / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
