"""The ledger's steps as a worker takes them, by hand: what this folder's tests are made of."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, Engine, insert, select, text

from shared import ledger
from shared.ledger import Claim
from shared.records import Dropped, query_id
from shared.runs import Run
from shared.schema import queries, shards
from shared.stages import Stage

LEASE_S = 30.0


def shard_of(connection: Connection, run: Run, stage: Stage, number: int = 0) -> UUID:
    """The stage's shards in order of their size and first item."""
    found: list[UUID] = list(
        connection.execute(
            select(shards.c.shard_id)
            .where(shards.c.run_id == run.run_id, shards.c.stage == stage)
            .order_by(shards.c.item_count.desc(), shards.c.item_ids)
        ).scalars()
    )
    return found[number]


def claimed(engine: Engine, shard_id: UUID, lease_s: float = LEASE_S, worker: str = "me") -> Claim:
    with engine.begin() as connection:
        held = ledger.claim(connection, shard_id, worker, lease_s)
    assert held is not None
    return held


def state_of(engine: Engine, shard_id: UUID) -> dict[str, object]:
    with engine.connect() as connection:
        return dict(connection.execute(select(shards).where(shards.c.shard_id == shard_id)).mappings().one())


def expire(engine: Engine, shard_id: UUID) -> list[UUID]:
    """Lets the shard's lease run out, and reaps."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE shards SET lease_expires_at = now() - interval '1 s' WHERE shard_id = :id"), {"id": shard_id}
        )
    with engine.begin() as connection:
        return ledger.reap(connection)


def generate_queries(engine: Engine, run: Run, held: Claim, dropped: int = 0) -> list[UUID]:
    """Does a generate shard by hand: one query a passage, the first `dropped` passages none."""
    kept = held.item_ids[dropped:]
    ids = [query_id(run.fingerprint, passage, 0) for passage in kept]
    with engine.begin() as connection:
        ledger.finish(connection, held, [Dropped(p, "no_sentence") for p in held.item_ids[:dropped]], ids)
        if ids:
            connection.execute(
                insert(queries),
                [
                    {
                        "run_id": run.run_id,
                        "query_id": id_,
                        "seed_passage_id": passage,
                        "ordinal": 0,
                        "task_description": "search result",
                        "query_text": "what",
                        "provenance": {},
                    }
                    for id_, passage in zip(ids, kept, strict=True)
                ],
            )
    return ids
