"""Encodes the texts of an evaluation: in full precision, and in batches of like length.

The vectors are those of sentence-transformers' own `encode`, made faster: a batch holds about as many tokens as the
device works through best, where `encode` has 32 texts of whatever length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from services.trainer.encoder import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS, tokenize

COUNT_AT_ONCE = 1024  # texts whose token ids are held at a time

OnProgress = Callable[[int], None]

log = structlog.get_logger()


def embed(
    model: SentenceTransformer,
    encode: Callable[..., Any],
    prompt: str | None,
    texts: Sequence[str],
    on_progress: OnProgress,
) -> Tensor:
    """(N, D) float32 on the CPU, in the order of `texts`. Where the GPU's memory runs out, by half as many tokens.

    Args:
        encode: `model.encode_query`, `model.encode_document` or `model.encode`.
        prompt: what stands before every text; None: the model's default prompt, if it has one.
        on_progress: called after each batch with the texts encoded so far.

    Raises torch.OutOfMemoryError where CPU_CHUNK_TOKENS do not fit either: fewer would be slow anywhere.
    """
    if prompt is None:
        prompt = model.prompts.get(model.default_prompt_name or "") or ""
    lengths = _lengths(model, prompt, texts)
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    budget = CPU_CHUNK_TOKENS if model.device.type == "cpu" else GPU_CHUNK_TOKENS
    parts, done = [], 0
    while done < len(order):
        # the first is the longest, and the others are padded to it
        chunk = order[done : done + max(budget // max(lengths[order[done]], 1), 1)]
        batch = None
        try:
            batch = encode(
                [texts[index] for index in chunk], prompt=prompt, batch_size=len(chunk), convert_to_tensor=True
            )
        except torch.OutOfMemoryError:
            if budget <= CPU_CHUNK_TOKENS:
                raise
        if batch is None:  # outside of the handler, whose traceback holds what did not fit
            torch.cuda.empty_cache()
            budget //= 2
            log.warning("the GPU's memory ran out: fewer tokens are encoded at once from now on", tokens=budget)
        else:
            parts.append(batch.float().cpu())
            done += len(chunk)
            on_progress(done)
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def _lengths(model: SentenceTransformer, prompt: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text as the model reads it, prompt included; of a model that is no transformer, characters.

    Counting costs a second tokenization, which is little beside the encoding: with characters for tokens, STS-B's
    sentences took 14% longer, for the padding.
    """
    if model.transformers_model is None:
        return [len(text) for text in texts]
    most = model.max_seq_length or model.tokenizer.model_max_length
    return [
        len(ids)
        for start in range(0, len(texts), COUNT_AT_ONCE)
        for ids in tokenize(model, [prompt + text for text in texts[start : start + COUNT_AT_ONCE]], most)
    ]
