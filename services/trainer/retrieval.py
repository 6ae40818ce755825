"""Measures a model on a BEIR folder: exact search, per Matryoshka dimension.

Equal scores are ordered by passage id, so a figure is a function of model and data. (trec_eval orders ties the other
way round; among cosines of different texts there are hardly any.) A passage whose id is its query's is ranked like any
other, unless such are to be ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from services.trainer import prompts
from services.trainer.beir import BeirData
from services.trainer.compare import Measured, mean_differences
from services.trainer.embed import OnProgress, embed
from services.trainer.metrics import DEPTH, METRICS, ranking_metrics
from shared.text_format import format_passage, plain_passage

QUERIES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Queries, encoded by `encode_query`, that find passages, encoded by `encode_document`."""

    data: BeirData
    ignore_identical_ids: bool = False
    main_metric = METRICS[0]

    @property
    def sizes(self) -> dict[str, int]:
        return {"queries": len(self.data.query_texts), "passages": len(self.data.passages)}

    @property
    def item_names(self) -> list[dict[str, Any]]:
        return [{"query_id": query_id} for query_id in self.data.query_texts]

    @property
    def text_count(self) -> int:
        return len(self.data.query_texts) + len(self.data.passages)

    def measure(self, model: SentenceTransformer, dims: Sequence[int], on_progress: OnProgress) -> dict[int, Measured]:
        """The METRICS of every query, and their means, at every dimension."""
        texts, prompt = passage_texts(model, self.data)
        asked = list(self.data.query_texts.values())
        queries = embed(model, model.encode_query, prompts.of(model).query, asked, on_progress)
        passages = embed(model, model.encode_document, prompt, texts, lambda done: on_progress(len(queries) + done))
        return {dim: self._measured(queries[:, :dim], passages[:, :dim]) for dim in dims}

    def differences(self, before: Measured, after: Measured, seed: int) -> dict[str, dict[str, Any]]:
        return mean_differences(before, after, METRICS, seed)

    def _measured(self, queries: Tensor, passages: Tensor) -> Measured:
        passage_ids = [passage.passage_id for passage in self.data.passages]
        ignored = list(self.data.query_texts) if self.ignore_identical_ids else [None] * len(queries)
        rankings = search(
            F.normalize(queries, dim=-1), F.normalize(passages, dim=-1), DEPTH + self.ignore_identical_ids
        )
        items = [
            ranking_metrics([passage_ids[index] for index in ranking if passage_ids[index] != other][:DEPTH], grades)
            for ranking, grades, other in zip(rankings, self.data.qrels.values(), ignored, strict=True)
        ]
        return Measured({metric: sum(item[metric] for item in items) / len(items) for metric in METRICS}, items)


def passage_texts(model: SentenceTransformer, data: BeirData) -> tuple[list[str], str]:
    """The passages as the model reads them, and the prompt to encode them with.

    A model with the document prompt `title: none | text: ` (Fretwork's, EmbeddingGemma's) gets the title in its place.
    Any other gets title and text, joined by a blank as BEIR does, behind its own prompt if it has one.
    """
    if prompts.of(model).is_gecko:
        return [format_passage(passage.title, passage.text) for passage in data.passages], ""
    return [plain_passage(passage.title, passage.text) for passage in data.passages], prompts.of(model).document


def search(queries: Tensor, passages: Tensor, depth: int = DEPTH) -> Iterator[list[int]]:
    """For each of (Q, D) queries the rows of the `depth` nearest of (N, D) passages, by exact inner product.

    Equal scores are in the order of the rows.
    """
    depth = min(depth, len(passages))
    for part in torch.split(queries, QUERIES_AT_ONCE):
        scores = part @ passages.T
        for row, least in zip(scores, scores.topk(depth).values[:, -1], strict=True):
            candidates = (row >= least).nonzero().squeeze(1)  # more than `depth` where the last score is tied
            order = row[candidates].sort(descending=True, stable=True).indices[:depth]
            yield candidates[order].tolist()
