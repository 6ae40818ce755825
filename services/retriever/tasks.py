"""The retriever's door: passages into the index, queries to their candidates, near-duplicate queries out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
from celery.signals import worker_init

from services.retriever import duplicates, embed, neighbours, vector_index
from services.retriever.save import save_candidates
from shared import ledger, store
from shared.celery_app import app
from shared.database import engine
from shared.errors import BarrierClosedError, TransientError
from shared.ledger import Claim
from shared.records import TaskQuery
from shared.runs import Run, find_run
from shared.stages import ROUTES, Stage, task_name
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


def _index(claim: Claim) -> Output:
    run = _run(claim)
    collection = vector_index.passages_collection(run)
    vector_index.ensure(collection, embed.dimension(run.config.embedder))
    missing = vector_index.missing(collection, claim.item_ids)
    if missing and run.config.follows is not None:
        kept = _vectors_of(run.config.follows, run.config.embedder, missing)
        if kept:
            vector_index.upsert(collection, list(kept), np.array(list(kept.values()), dtype=np.float32))
            missing = [passage_id for passage_id in missing if passage_id not in kept]
    if missing:
        with engine().connect() as connection:
            passages = store.load_passages(connection, run, missing)
        vectors = embed.embed_passages(run.config.embedder, [passages[passage_id] for passage_id in missing])
        vector_index.upsert(collection, missing, vectors)
    return Output()


def _vectors_of(followed: UUID, embedder: str, passage_ids: Sequence[UUID]) -> dict[UUID, list[float]]:
    """Vectors that the index of the run that is followed has, of the same embedder, to spare the encoder."""
    with engine().connect() as connection:
        earlier = find_run(connection, followed)
    collection = vector_index.passages_collection(earlier)
    if earlier.config.embedder != embedder or not vector_index.count(collection):
        return {}
    return vector_index.vectors_of(collection, passage_ids)


def _retrieve(claim: Claim) -> Output:
    run = _run(claim)
    passages = vector_index.passages_collection(run)
    _reopen_if_short(run, passages)
    with engine().connect() as connection:
        asked = [item.query for item in store.load_queries(connection, run, claim.item_ids)]
    vectors = embed.embed_queries(run.config.embedder, asked)
    own = vector_index.queries_collection(run)
    vector_index.ensure(own, vectors.shape[1])
    vector_index.upsert(own, claim.item_ids, vectors)
    found = vector_index.nearest(passages, vectors.tolist(), run.config.num_candidates)
    # a seed whose indexing ended with a reason has no vector, and its queries end in the relabeler with theirs
    seeds = vector_index.vectors_of(passages, [query.seed_passage_id for query in asked])
    candidates = {
        query.query_id: neighbours.with_seed(nearest, query.seed_passage_id, vector, seeds.get(query.seed_passage_id))
        for query, nearest, vector in zip(asked, found, vectors.tolist(), strict=True)
    }
    return Output(lambda connection: save_candidates(connection, run, candidates), survivors=claim.item_ids)


def _reopen_if_short(run: Run, collection: str) -> None:
    """An index that lost points, as with a lost volume, is made again from Postgres before anything is searched."""
    count = vector_index.count(collection)
    if count >= run.passage_count:
        return
    with engine().begin() as connection:
        expected = run.passage_count - ledger.index_drops(connection, run.run_id)
        if count >= expected:
            return
        reopened = ledger.reopen_index(connection, run.run_id)
    raise BarrierClosedError(f"the index holds {count} of {expected} passages; {reopened} of its shards are done again")


def _dedup(claim: Claim) -> Output:
    run = _run(claim)
    own = vector_index.queries_collection(run)
    _restore_if_short(run, own, claim)
    vectors = vector_index.vectors_of(own, claim.item_ids)
    dropped = duplicates.near_duplicates(
        claim.item_ids,
        lambda query_id, limit: vector_index.nearest(
            own, [vectors[query_id]], limit, score_threshold=run.config.near_duplicate_cosine - 1e-4
        )[0],
        run.config.near_duplicate_cosine,
    )
    gone = {item.item_id for item in dropped}
    return Output(dropped=tuple(dropped), survivors=tuple(q for q in claim.item_ids if q not in gone))


def _restore_if_short(run: Run, own: str, claim: Claim) -> None:
    """Makes the vectors of queries again that were lost with the index: each is a neighbour that some query may repeat.

    No shard is opened again for them: their queries may be anywhere in the stages that follow. Several retrievers share
    the work, because each begins at its own shard. Raises TransientError where it takes longer than half a shard may.
    """
    with engine().connect() as connection:
        expected = ledger.retrieved(connection, run.run_id)
    vector_index.ensure(own, embed.dimension(run.config.embedder))
    if vector_index.count(own) >= expected:
        return
    deadline = time.monotonic() + ROUTES[Stage.DEDUP].max_shard_s / 2
    for first in (claim.item_ids[0], UUID(int=0)):
        while page := _lost_queries(run, own, first):
            first, lost = page
            if lost:
                vector_index.upsert(own, [q.query_id for q in lost], embed.embed_queries(run.config.embedder, lost))
            if time.monotonic() > deadline:
                raise TransientError(f"{vector_index.count(own)} of {expected} lost vectors are there again")


def _lost_queries(run: Run, own: str, first: UUID) -> tuple[UUID, list[TaskQuery]] | None:
    """Of a page of queries from the id `first` on those that have no vector, and where the next page begins."""
    with engine().connect() as connection:
        ids = store.retrieved_query_ids(connection, run, first)
        if not ids:
            return None
        lost = store.load_queries(connection, run, vector_index.missing(own, ids))
    return UUID(int=ids[-1].int + 1), [item.query for item in lost]
