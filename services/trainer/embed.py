"""Encodes the texts of an evaluation: in full precision, and in batches of like length.

The vectors are those of sentence-transformers' own `encode`, made faster: a batch holds about as many tokens as the
device works through best, where `encode` has 32 texts of whatever length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.encoder import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS, chunk_by_length

CHARACTERS_PER_TOKEN = 4  # of English text, about: batches need no exact count, and counting means tokenizing twice

OnProgress = Callable[[int], None]


def embed(
    model: SentenceTransformer, encode: Callable[..., Any], texts: Sequence[str], on_progress: OnProgress
) -> Tensor:
    """(N, D) float32 on the CPU, in the order of `texts`.

    Args:
        encode: `model.encode_query`, `model.encode_document` or `model.encode`, with what it needs beside the texts.
        on_progress: called after each batch with the texts encoded so far.
    """
    longest = model.max_seq_length or max(len(text) for text in texts)
    lengths = [min(len(text) // CHARACTERS_PER_TOKEN + 2, longest) for text in texts]
    chunks = chunk_by_length(lengths, CPU_CHUNK_TOKENS if model.device.type == "cpu" else GPU_CHUNK_TOKENS)
    parts, done = [], 0
    for chunk in chunks:
        batch = encode([texts[index] for index in chunk], batch_size=len(chunk), convert_to_tensor=True)
        parts.append(batch.float().cpu())
        done += len(chunk)
        on_progress(done)
    order = torch.tensor([index for chunk in chunks for index in chunk])
    return torch.cat(parts)[torch.argsort(order)]
