"""The encoder that is trained and measured: loads a base, and encodes token ids fast, with gradients.

Texts are encoded in chunks of like length, so that hardly anything is padding, whatever the batch holds: the batch's
composition stays one of chance. Nothing here knows of queries, losses or files other than the base's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor

from shared.errors import SettingError
from shared.sentence_model import load_sentence_model, read_bare_texts

# Padded tokens encoded at once: on a CPU 1024 to 4096 are equally fast, and few pad least; a GPU wants many.
CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS = 2048, 65536
# Chunks are padded to a multiple of this: a CPU's kernels are made for each new shape, and kept for a thousand of them
SAME_WIDTH = 8


def load_model(name_or_path: str) -> SentenceTransformer:
    """The model, in float32 and in evaluation mode. Raises SettingError where it cannot be loaded.

    In float32 whatever its weights are stored in, or a base and what was trained from it would differ in precision too.
    """
    model = load_sentence_model(name_or_path)
    model.eval()
    return model.float()


def ready_for_training(model: SentenceTransformer) -> SentenceTransformer:
    """The same model with its vectors whole and normalised, its texts bare, its attention the fastest to train with.

    On a CPU that is plain (eager) attention: with bfloat16 the fused kernel's backward pass takes 4 times as long.

    Raises SettingError for a model that is no transformer.
    """
    transformer = model.transformers_model
    if transformer is None:
        raise SettingError("only a transformer can be trained, and this base model is none: name another")
    if isinstance(model[0], Router):
        raise SettingError(
            "the base model has an encoder for queries and another for passages, as --train queries makes them: name "
            "one that encodes both, or the folder `query` in it"
        )
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    model.truncate_dim = None  # what `model.encode` cuts off is trained, and handed over with what it is cut to
    read_bare_texts(model)  # as `tokenize` does, whatever the folder says
    if model.device.type == "cpu":
        transformer.set_attn_implementation("eager")
    return model


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device computes it natively, else None: emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else None


def tokenize(model: SentenceTransformer, texts: Sequence[str], max_len: int) -> list[list[int]]:
    """Token ids of each text, special tokens included, cut at `max_len`."""
    if not texts:  # a tokenizer refuses to have nothing to do
        return []
    ids: list[list[int]] = model.tokenizer(list(texts), truncation=True, max_length=max_len, padding=False)["input_ids"]
    return ids


def encode(
    model: SentenceTransformer, token_ids: Sequence[Sequence[int]], held_tokens: int = GPU_CHUNK_TOKENS
) -> Tensor:
    """The embeddings of the texts, in their order: (N, D) float32, normalised if the model does so."""
    chunks = chunks_of(model, token_ids, held_tokens)
    parts = [encode_chunk(model, [token_ids[index] for index in chunk]) for chunk in chunks]
    order = torch.tensor([index for chunk in chunks for index in chunk], device=model.device)
    return torch.cat(parts)[torch.argsort(order)]


def encode_chunk(model: SentenceTransformer, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The embeddings of texts of like length, in one pass: (N, D) float32."""
    device = model.device
    dtype = autocast_dtype(device)
    longest = max(map(len, token_ids))
    transformer = model.transformers_model
    positions = getattr(transformer.config, "max_position_embeddings", None) if transformer else None
    width = longest if positions and padded(longest) > positions else padded(longest)
    input_ids = torch.full((len(token_ids), width), model.tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    features = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        embeddings: Tensor = model(features)["sentence_embedding"]
    return embeddings.float()


def padded(length: int) -> int:
    """To how many tokens a text so long is padded, at least."""
    return -(-length // SAME_WIDTH) * SAME_WIDTH


def chunks_of(
    model: SentenceTransformer, token_ids: Sequence[Sequence[int]], held_tokens: int = GPU_CHUNK_TOKENS
) -> list[list[int]]:
    """Indices of texts to encode together, as many as the model's device likes.

    No more than may be held at once, where that is more than CPU_CHUNK_TOKENS: fewer would be slow anywhere.
    """
    liked = CPU_CHUNK_TOKENS if model.device.type == "cpu" else GPU_CHUNK_TOKENS
    return chunk_by_length([len(ids) for ids in token_ids], min(liked, max(held_tokens, CPU_CHUNK_TOKENS)))


def chunk_by_length(lengths: Sequence[int], chunk_tokens: int) -> list[list[int]]:
    """Indices in chunks, the longest first, each of at most `chunk_tokens` tokens when padded, or of one text."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if chunks and padded(lengths[chunks[-1][0]]) * (len(chunks[-1]) + 1) <= chunk_tokens:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks
