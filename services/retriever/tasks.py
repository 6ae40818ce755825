"""The retriever's door: passages into the index, queries to their candidates, near-duplicate queries out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
from celery.signals import worker_init

from services.retriever import duplicates, embed, lexical, neighbours, restore, vector_index
from services.retriever.save import save_candidates
from shared import store
from shared.celery_app import app
from shared.database import engine
from shared.errors import TransientError
from shared.ledger import Claim
from shared.records import TaskQuery
from shared.runs import Run, find_run
from shared.stages import ROUTES, Stage, task_name
from shared.terms import CorpusStatistics
from shared.worker import Output, perform


@worker_init.connect  # type: ignore[untyped-decorator]
def _refuse_a_second_retriever(**_: Any) -> None:
    """A local Qdrant serves one process: a second would claim shards only to give them back."""
    try:
        vector_index.open_index()
    except TransientError as error:
        raise SystemExit(f"this retriever cannot start: {error}") from None


@app.task(name=task_name(Stage.INDEX))  # type: ignore[untyped-decorator]
def index(shard_id: str) -> None:
    perform(Stage.INDEX, shard_id, _index)


@app.task(name=task_name(Stage.RETRIEVE))  # type: ignore[untyped-decorator]
def retrieve(shard_id: str) -> None:
    perform(Stage.RETRIEVE, shard_id, _retrieve)


@app.task(name=task_name(Stage.DEDUP))  # type: ignore[untyped-decorator]
def dedup(shard_id: str) -> None:
    perform(Stage.DEDUP, shard_id, _dedup)


def _run(claim: Claim) -> Run:
    assert claim.run_id is not None  # noqa: S101 - the retriever's shards always belong to a run
    with engine().connect() as connection:
        return find_run(connection, claim.run_id)


def _deadline(claim: Claim) -> float:
    """Half of what the shard may take, in seconds of time.monotonic(); the rest is for the last call and the ledger."""
    return time.monotonic() + ROUTES[claim.stage].max_shard_s / 2


def _index(claim: Claim) -> Output:
    run = _run(claim)
    collection = vector_index.passages_collection(run)
    hybrid = run.config.candidates == "hybrid"
    vector_index.ensure(collection, embed.dimension(run.config.embedder), lexical=hybrid)
    missing = vector_index.missing(collection, claim.item_ids)
    if not missing:
        return Output()
    with engine().connect() as connection:
        passages = store.load_passages(connection, run.corpus_id, missing)
    vectors: dict[UUID, Any] = {}
    if run.config.follows is not None:
        vectors |= restore.vectors_of_followed(run.config.follows, run.config.embedder, missing)
    new = [passage_id for passage_id in missing if passage_id not in vectors]
    if new:
        embedded = embed.embed_passages(run.config.embedder, [passages[passage_id] for passage_id in new])
        vectors |= zip(new, embedded, strict=True)
    mean_length = CorpusStatistics(run.passage_count, run.term_count, {}, {}).mean_length
    # made anew also beside a vector that is taken over: the mean length is this corpus's
    words = [lexical.passage_weights(passages[passage_id], mean_length) for passage_id in missing] if hybrid else None
    stacked = np.array([vectors[passage_id] for passage_id in missing], dtype=np.float32)
    vector_index.upsert(collection, missing, stacked, words)
    return Output()


def _retrieve(claim: Claim) -> Output:
    run, deadline = _run(claim), _deadline(claim)
    passages = vector_index.passages_collection(run)
    restore.reopen_if_short(run, passages)
    with engine().connect() as connection:
        asked = [item.query for item in store.load_queries(connection, run, claim.item_ids)]
    vectors = embed.embed_queries(run.config.embedder, asked)
    own = vector_index.queries_collection(run)
    vector_index.ensure(own, vectors.shape[1])
    vector_index.upsert(own, claim.item_ids, vectors)
    limit = run.config.num_candidates
    cosines = [dict(found) for found in vector_index.nearest(passages, vectors.tolist(), limit, deadline)]
    chosen = [list(found) for found in cosines]
    if run.config.candidates == "hybrid":
        by_words = vector_index.nearest_by_words(passages, _words(run, asked), limit, deadline)
        chosen = [
            neighbours.merge(found, [passage_id for passage_id, _ in others], limit)
            for found, others in zip(chosen, by_words, strict=True)
        ]
    # a seed that could not be indexed has no vector, and its queries end in the relabeler with a reason
    looked_up = {query.seed_passage_id for query in asked}.union(
        *(set(found) - known.keys() for found, known in zip(chosen, cosines, strict=True))
    )
    others = vector_index.vectors_of(passages, sorted(looked_up))
    candidates = {
        query.query_id: neighbours.candidates(found, query.seed_passage_id, known, vector, others)
        for query, found, known, vector in zip(asked, chosen, cosines, vectors.tolist(), strict=True)
    }
    return Output(lambda connection: save_candidates(connection, run, candidates), survivors=claim.item_ids)


def _words(run: Run, asked: Sequence[TaskQuery]) -> list[lexical.Weights]:
    with engine().connect() as connection:
        needed = lexical.needed_terms(query.query_text for query in asked)
        statistics = store.load_statistics(connection, run, needed)
    return [lexical.query_weights(query.query_text, statistics) for query in asked]


def _recorded(run: Run, query_ids: Sequence[UUID]) -> list[UUID]:
    with engine().connect() as connection:
        return store.recorded_query_ids(connection, run, query_ids)


def _dedup(claim: Claim) -> Output:
    run, deadline = _run(claim), _deadline(claim)
    own = vector_index.queries_collection(run)
    restore.restore_if_short(run, own, claim.item_ids[0])
    vectors = vector_index.vectors_of(own, claim.item_ids)
    dropped = duplicates.near_duplicates(
        claim.item_ids,
        lambda query_id, limit: vector_index.within(
            own, vectors[query_id], limit, run.config.near_duplicate_cosine - 1e-4, deadline
        ),
        run.config.near_duplicate_cosine,
        lambda query_ids: _recorded(run, query_ids),
    )
    gone = {item.item_id for item in dropped}
    return Output(dropped=tuple(dropped), survivors=tuple(q for q in claim.item_ids if q not in gone))
