"""Conversion of the SentencePiece tokenizers of M2M100 and Marian to `tokenizer.json`.

transformers implements these two in Python, without a `tokenizer.json`, which the runtime requires. Pieces keep the ids
of the vocabulary. Two differences remain: a piece missing from the vocabulary is split into smaller ones instead of
becoming unknown, and the punctuation normalization of Marian (Moses, if installed) is not applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

_UNIGRAM, _BPE = 1, 2
"""`TrainerSpec.ModelType`."""
_NORMAL = 1
"""`SentencePiece.Type`."""
_NEVER = -1e6
"""Score of pieces that only the target language's model has: a last resort."""


def is_sentencepiece(tokenizer: Any) -> bool:
    """Return whether a tokenizer of transformers is an M2M100 or Marian tokenizer."""
    return hasattr(tokenizer, "encoder") and (hasattr(tokenizer, "spm_file") or hasattr(tokenizer, "spm_files"))


def tokenizer_json(tokenizer: Any) -> str:
    """Convert an `M2M100Tokenizer` or `MarianTokenizer` to the content of a `tokenizer.json`.

    Raises:
        ValueError: The SentencePiece model is neither unigram nor BPE.
    """
    from sentencepiece import sentencepiece_model_pb2

    path = tokenizer.spm_files[0] if hasattr(tokenizer, "spm_files") else tokenizer.spm_file
    messages: Any = sentencepiece_model_pb2  # its classes are created on import
    model = messages.ModelProto()
    model.ParseFromString(Path(path).read_bytes())
    ids: dict[str, int] = tokenizer.encoder
    result = Tokenizer(_pieces(model, ids, str(tokenizer.unk_token)))
    result.normalizer = _normalizer(model.normalizer_spec)
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    languages = getattr(tokenizer, "lang_token_to_id", {})
    special = [token for token in tokenizer.all_special_tokens if token in ids]
    special += sorted(languages, key=languages.__getitem__)  # their ids follow the vocabulary, in this order
    result.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    result.post_processor = _template(tokenizer, result)
    json: str = result.to_str()
    return json


def _pieces(model: Any, ids: dict[str, int], unknown: str) -> Any:
    in_order = sorted(ids, key=ids.__getitem__)
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    kind = model.trainer_spec.model_type
    if kind == _UNIGRAM:
        return models.Unigram([(piece, scores.get(piece, _NEVER)) for piece in in_order], unk_id=ids[unknown])
    if kind != _BPE:
        raise ValueError(f"its SentencePiece model is of kind {kind}, expected unigram or BPE")
    scores = {piece: score for piece, score in scores.items() if piece in ids}
    splits = [(score, piece[:at], piece[at:]) for piece, score in scores.items() for at in range(1, len(piece))]
    merges = [split for split in splits if split[1] in scores and split[2] in scores]
    merges.sort(key=lambda split: -split[0])
    return models.BPE(ids, [(left, right) for _, left, right in merges], unk_token=unknown, fuse_unk=True)


def _normalizer(settings: Any) -> Any:
    steps: list[Any] = []
    if settings.precompiled_charsmap:
        steps.append(normalizers.Precompiled(settings.precompiled_charsmap))
    if settings.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def _template(tokenizer: Any, result: Tokenizer) -> Any:
    """Special tokens as in the original tokenizer; none between the texts of a pair."""
    unknown = tokenizer.unk_token_id
    ids = tokenizer.build_inputs_with_special_tokens([unknown])
    position = ids.index(unknown)
    before, after = map(tokenizer.convert_ids_to_tokens, (ids[:position], ids[position + 1 :]))
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=[(token, result.token_to_id(token)) for token in {*before, *after}],
    )
