"""The services without their workers: each stage's own task, called in this process on a real ledger.

For tests of what a run comes to, where it does not matter who did what when.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from services.dispatcher.tick import QUEUE_TARGET, tick
from services.retriever import vector_index
from shared.database import engine as process_engine
from shared.stages import RUN_STAGES, Stage, task_name
from tests.own_process import process_on


@contextmanager
def services_on(database_url: str, broker_url: str, home: Path) -> Iterator[Engine]:
    """The services' engine, on that ledger; their vector index lies in `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FRETWORK_QDRANT_URL", raising=False)
        with process_on(database_url, broker_url=broker_url, home=str(home)):
            from shared import lease, worker  # looks for the broker when it is imported

            patch.setattr(worker, "RETRY_AFTER_TRANSIENT_S", 0.0)
            try:
                yield process_engine()
            finally:
                lease.stop()
                lose_index(home)


def lose_index(home: Path) -> None:
    """Deletes what Qdrant has, as a volume that is gone does; the next call makes a new index, which is empty."""
    if vector_index._client.cache_info().currsize:
        vector_index._client().close()
    vector_index._client.cache_clear()
    shutil.rmtree(home / "qdrant", ignore_errors=True)


def work(engine: Engine, stages: Collection[Stage] = RUN_STAGES, shards: int | None = None) -> None:
    """Does ready shards of these stages until there are none, or that many."""
    done = 0
    while (ready := _next_ready(engine, stages)) and done != shards:
        shard_id, stage = ready
        _door(stage)(str(shard_id))
        done += 1


def results(engine: Engine, run_id: UUID) -> list[dict[str, Any]]:
    """A run's queries with candidates and scores, and their records, without what names the run."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT to_jsonb(queries) - 'run_id' AS query, to_jsonb(fret_records) - 'run_id' AS record "
                "FROM queries LEFT JOIN fret_records USING (run_id, query_id) WHERE run_id = :id ORDER BY query_id"
            ),
            {"id": run_id},
        )
        return [dict(row) for row in rows.mappings()]


def _next_ready(engine: Engine, stages: Collection[Stage]) -> tuple[UUID, Stage] | None:
    tick(engine, lambda queue: QUEUE_TARGET, lambda stage, shard_ids: None)
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT shard_id, stage FROM shards WHERE state = 'ready' AND stage = ANY(:stages) "
                "ORDER BY created_at, shard_id LIMIT 1"
            ),
            {"stages": list(stages)},
        ).one_or_none()
    return (row.shard_id, Stage(row.stage)) if row else None


def _door(stage: Stage) -> Any:
    from services.generator import tasks as generator
    from services.relabeler import tasks as relabeler
    from services.retriever import tasks as retriever

    doors = [retriever.index, retriever.retrieve, retriever.dedup, generator.generate, relabeler.relabel]
    return next(door for door in doors if door.name == task_name(stage))
