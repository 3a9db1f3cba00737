"""Ship a word embedding table that was published in 4 bits in 4 bits, at half the size and without loss.

CTranslate2 stores the table of an int8 encoder in int8. Where GGML's Q4_0 blocks represent every float32 value of the
table exactly, parts contain `encoder/embeddings.gguf` and the rest of `encoder/model.bin`, and `join` restores the file
byte for byte. Requires numpy and gguf only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from mtllm_edge.bundle.formats.ctranslate2 import read_model
from mtllm_edge.errors import ModelError

EMBEDDINGS_NAME = "encoder/embeddings.gguf"
REST_NAME = "encoder/model.bin.rest"
MODEL_NAME = "encoder/model.bin"
_VARIABLE = "encoder/embeddings_0/weight"
_OFFSET_FIELD = "mtllm.offset"
_DIGEST_FIELD = "mtllm.sha256"
_Q4_0 = gguf.GGMLQuantizationType.Q4_0
_BLOCK = 32
"""Number of weights per Q4_0 block."""

Array = NDArray[np.float32]


def split_embedding_table(folder: Path, table_VD: Array) -> None:
    """Replace a bundle's `encoder/model.bin` by its two parts, unless that would lose information.

    CTranslate2 may omit the last rows of the table.
    """
    path = folder / MODEL_NAME
    variable = read_model(path).variables[_VARIABLE]
    table_VD = table_VD[: variable.shape[0]]
    content = path.read_bytes()
    end = variable.offset + variable.size
    if content[variable.offset : end] != _int8(table_VD).tobytes() or table_VD.shape[1] % _BLOCK:
        return
    blocks = gguf.quants.quantize(table_VD, _Q4_0)
    if not np.array_equal(gguf.quants.dequantize(blocks, _Q4_0), table_VD):
        return
    writer = gguf.GGUFWriter(folder / EMBEDDINGS_NAME, "embeddings")
    writer.add_uint64(_OFFSET_FIELD, variable.offset)
    writer.add_string(_DIGEST_FIELD, hashlib.sha256(content).hexdigest())
    writer.add_tensor("word_embeddings.weight", blocks, raw_dtype=_Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / REST_NAME).write_bytes(content[: variable.offset] + content[end:])
    path.unlink()


def join_embedding_table(folder: Path) -> None:
    """Restore `encoder/model.bin` from its two parts, and remove them.

    Raises:
        ModelError: The SHA-256 of the result differs from that of the original file.
    """
    reader = gguf.GGUFReader(folder / EMBEDDINGS_NAME)
    offset, digest = (reader.fields[name].contents() for name in (_OFFSET_FIELD, _DIGEST_FIELD))
    table_VD = gguf.quants.dequantize(reader.tensors[0].data, _Q4_0)
    rest = (folder / REST_NAME).read_bytes()
    content = rest[:offset] + _int8(table_VD).tobytes() + rest[offset:]
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise ModelError(
            f"restored {MODEL_NAME} has SHA-256 {actual}, expected {digest}; report this with the versions of numpy "
            "and gguf"
        )
    (folder / MODEL_NAME).write_bytes(content)
    del reader, table_VD  # they map the file
    for name in (EMBEDDINGS_NAME, REST_NAME):
        (folder / name).unlink()


def _int8(table_VD: Array) -> NDArray[np.int8]:
    """Quantize as CTranslate2 does: the largest absolute value of a row becomes 127."""
    largest_V = np.abs(table_VD).max(axis=1)
    largest_V[largest_V == 0] = 127.0
    rows_VD: NDArray[np.int8] = np.rint(table_VD * (127.0 / largest_V)[:, None]).astype(np.int8)
    return rows_VD
