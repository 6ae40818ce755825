"""Turns queries and passages into vectors with the run's embedder, one model kept per process.

A model whose prompts are Gecko's was trained with task descriptions and titles, so it gets them. Another gets its own
prompts, if it has any, before plain text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from shared.records import Passage, TaskQuery
from shared.sentence_model import load_sentence_model
from shared.text_format import format_passage, format_query, own_prompts, plain_passage

Vectors = npt.NDArray[np.float32]

_lock = threading.Lock()


@lru_cache(maxsize=2)
def _model(name: str) -> SentenceTransformer:
    return load_sentence_model(name)


def embed_queries(embedder: str, queries: Sequence[TaskQuery]) -> Vectors:
    """Unit vectors `(Q, D)` of the queries, each with its task description where the model knows them."""
    with _lock:
        model = _model(embedder)
        own = own_prompts(model.prompts, model.default_prompt_name)
        if own.is_gecko:
            return _encode(model.encode_query, [format_query(q.task_description, q.query_text) for q in queries])
        return _encode(model.encode_query, [q.query_text for q in queries], own.query)


def embed_passages(embedder: str, passages: Sequence[Passage]) -> Vectors:
    """Unit vectors `(P, D)` of the passages."""
    with _lock:
        model = _model(embedder)
        own = own_prompts(model.prompts, model.default_prompt_name)
        if own.is_gecko:
            return _encode(model.encode_document, [format_passage(p.title, p.text) for p in passages])
        return _encode(model.encode_document, [plain_passage(p.title, p.text) for p in passages], own.document)


def dimension(embedder: str) -> int:
    with _lock:
        found = _model(embedder).get_embedding_dimension()
    assert found is not None  # noqa: S101 - every pooled model has one
    return found


def _encode(encode: Callable[..., Any], texts: Sequence[str], prompt: str = "") -> Vectors:
    """`encode`: the model's own for queries or for passages, which may be two encoders."""
    # it sorts by length itself; an empty prompt keeps a model's default prompt away from our formats
    vectors: Vectors = encode(
        list(texts),
        prompt=prompt,
        batch_size=32,
        normalize_embeddings=True,
        show_progress_bar=False,
        convert_to_numpy=True,
    ).astype(np.float32)
    return vectors
