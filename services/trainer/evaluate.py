"""Measures a model, and a baseline beside it, on a BEIR folder: exact search, per Matryoshka dimension.

Queries and passages are encoded once, at full dimension and in float32, by the model's own prompts; each smaller
dimension is their first coordinates, normalised again. Equal scores are ordered by passage id, so a figure is a
function of model and data. (trec_eval orders ties the other way round; among cosines of different texts there are
hardly any.) A passage whose id is its query's is ranked like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from services.trainer.beir import BeirData, read_beir
from services.trainer.config import EvaluationConfig
from services.trainer.encoder import load_model
from services.trainer.metrics import DEPTH, METRICS, paired_bootstrap, ranking_metrics
from shared.errors import SettingError
from shared.text_format import format_passage

BATCH_SIZE = 32
ENCODE_AT_ONCE = 256  # texts between two reports of progress
QUERIES_AT_ONCE = 64

PerQuery = dict[int, list[dict[str, float]]]  # dimension → metrics of each query, in the order of BeirData's queries


def evaluate(
    config: EvaluationConfig,
    *,
    per_query_file: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """The report, JSON-able: `dims`, and with a baseline `baseline` and `delta`.

        {"model": …, "beir_dir": …, "split": …, "queries": Q, "passages": N,
         "dims": {"384": {"ndcg@10": …, "recall@1": …, …}},
         "baseline": {"model": …, "dims": {…}},
         "delta": {"384": {"ndcg@10": {"mean": after − before, "ci95": [low, high]}, …}}}

    Args:
        per_query_file: gets one JSON line per query and dimension, with the metrics of model and baseline.
        on_progress: called with the texts encoded so far and in all.

    Raises InvalidInputError for a folder that breaks BEIR's format, SettingError for a model or dimension that is not
    there; both before anything is encoded.
    """
    data = read_beir(Path(config.beir_dir), config.split)
    names = [config.model, *([config.baseline] if config.baseline else [])]
    models = [load_model(name) for name in names]
    dims = _checked_dims(config, dict(zip(names, models, strict=True)))
    texts = len(data.passages) + len(data.query_texts)
    measured: list[PerQuery] = []
    for number, model in enumerate(models):

        def report_progress(done: int, before: int = number * texts) -> None:
            on_progress(before + done, len(models) * texts)

        measured.append(measure(model, data, dims, report_progress))
    after = measured[0]
    report: dict[str, Any] = {
        "model": config.model,
        "beir_dir": config.beir_dir,
        "split": config.split,
        "queries": len(data.query_texts),
        "passages": len(data.passages),
        "dims": _means(after),
    }
    if config.baseline:
        before = measured[1]
        report["baseline"] = {"model": config.baseline, "dims": _means(before)}
        report["delta"] = {
            str(dim): {metric: _delta(before[dim], after[dim], metric, config.seed) for metric in METRICS}
            for dim in dims
        }
    if per_query_file is not None:
        per_query_file.write_bytes(b"".join(_per_query_lines(data, measured)))
    return report


def measure(
    model: SentenceTransformer, data: BeirData, dims: Sequence[int], on_progress: Callable[[int], None]
) -> PerQuery:
    """The metrics of every query at every dimension."""
    texts, prompt = passage_texts(model, data)
    queries = _encode(
        lambda part: model.encode_query(part, convert_to_tensor=True, batch_size=BATCH_SIZE),
        list(data.query_texts.values()),
        on_progress,
    )
    passages = _encode(
        lambda part: model.encode_document(part, prompt=prompt, convert_to_tensor=True, batch_size=BATCH_SIZE),
        texts,
        lambda done: on_progress(len(queries) + done),
    )
    passage_ids = [passage.passage_id for passage in data.passages]
    found: PerQuery = {}
    for dim in dims:
        rankings = search(F.normalize(queries[:, :dim], dim=-1), F.normalize(passages[:, :dim], dim=-1))
        found[dim] = [
            ranking_metrics([passage_ids[index] for index in ranking], grades)
            for ranking, grades in zip(rankings, data.qrels.values(), strict=True)
        ]
    return found


def passage_texts(model: SentenceTransformer, data: BeirData) -> tuple[list[str], str | None]:
    """The passages as the model reads them, and the prompt to encode them with; None: the model's own.

    A model with the document prompt `title: none | text: ` (Fretwork's, EmbeddingGemma's) gets the title in its place.
    Any other gets title and text, joined by a blank as BEIR does, behind its own prompt if it has one.
    """
    if model.prompts.get("document") == format_passage("", ""):
        return [format_passage(passage.title, passage.text) for passage in data.passages], ""
    return [f"{passage.title} {passage.text}".strip() for passage in data.passages], None


def search(queries: Tensor, passages: Tensor) -> Iterator[list[int]]:
    """For each of (Q, D) queries the rows of the DEPTH nearest of (N, D) passages, by exact inner product.

    Equal scores are in the order of the rows.
    """
    depth = min(DEPTH, len(passages))
    for part in torch.split(queries, QUERIES_AT_ONCE):
        scores = part @ passages.T
        for row, least in zip(scores, scores.topk(depth).values[:, -1], strict=True):
            candidates = (row >= least).nonzero().squeeze(1)  # more than DEPTH where the last score is tied
            order = row[candidates].sort(descending=True, stable=True).indices[:depth]
            yield candidates[order].tolist()


def _encode(encode: Callable[[list[str]], Tensor], texts: list[str], on_progress: Callable[[int], None]) -> Tensor:
    """(N, D) on the CPU, in the order of `texts`; encoded from the longest to the shortest, so little is padding."""
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    parts = []
    for start in range(0, len(order), ENCODE_AT_ONCE):
        parts.append(encode([texts[index] for index in order[start : start + ENCODE_AT_ONCE]]).float().cpu())
        on_progress(min(start + ENCODE_AT_ONCE, len(order)))
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def _checked_dims(config: EvaluationConfig, models: dict[str, SentenceTransformer]) -> tuple[int, ...]:
    full_dims = {name: model.get_embedding_dimension() or 0 for name, model in models.items()}
    dims = config.dims or (full_dims[config.model],)
    for name, full_dim in full_dims.items():
        if max(dims) > full_dim:
            raise SettingError(
                f"cannot measure at {max(dims)} dimensions: {name!r} has {full_dim}; name lower ones (dims)"
            )
    return tuple(sorted(set(dims), reverse=True))


def _column(of: list[dict[str, float]], metric: str) -> NDArray[np.float64]:
    return np.array([query[metric] for query in of])


def _means(per_query: PerQuery) -> dict[str, dict[str, float]]:
    return {
        str(dim): {metric: float(_column(of, metric).mean()) for metric in METRICS} for dim, of in per_query.items()
    }


def _delta(before: list[dict[str, float]], after: list[dict[str, float]], metric: str, seed: int) -> dict[str, Any]:
    old, new = _column(before, metric), _column(after, metric)
    return {"mean": float((new - old).mean()), "ci95": list(paired_bootstrap(old, new, seed=seed))}


def _per_query_lines(data: BeirData, measured: Sequence[PerQuery]) -> Iterator[bytes]:
    for dim in measured[0]:
        for row, query_id in enumerate(data.query_texts):
            of = dict(zip(("model", "baseline"), (per_query[dim][row] for per_query in measured), strict=False))
            yield orjson.dumps({"query_id": query_id, "dim": dim, **of}) + b"\n"
