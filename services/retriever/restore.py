"""What the vector index lacks, got back: lost points, and vectors that another run's collection has already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

from services.retriever import embed, vector_index
from shared import ledger, store
from shared.database import engine
from shared.errors import BarrierClosedError, TransientError
from shared.records import TaskQuery
from shared.runs import Run, find_run
from shared.stages import ROUTES, Stage


def vectors_of_followed(followed: UUID, embedder: str, passage_ids: Sequence[UUID]) -> dict[UUID, list[float]]:
    """Vectors that the index of the run that is followed has, of the same embedder, to spare the encoder."""
    with engine().connect() as connection:
        earlier = find_run(connection, followed)
    collection = vector_index.passages_collection(earlier)
    if earlier.config.embedder != embedder or not vector_index.count(collection):
        return {}
    return vector_index.vectors_of(collection, passage_ids)


def reopen_if_short(run: Run, collection: str) -> None:
    """An index that lost points, as with a lost volume, is made again from Postgres before anything is searched."""
    count = vector_index.count(collection)
    if count >= run.passage_count:
        return
    with engine().begin() as connection:
        expected = run.passage_count - ledger.unindexed(connection, run.run_id)
        if count >= expected:
            return
        reopened = ledger.reopen_index(connection, run.run_id)
    raise BarrierClosedError(f"the index holds {count} of {expected} passages; {reopened} of its shards are done again")


def restore_if_short(run: Run, own: str, begin: UUID) -> None:
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
    for first in (begin, UUID(int=0)):
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
