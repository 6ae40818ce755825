"""The processes at work and the queues that they serve, as the ledger knows them. Moves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, text

from shared.stages import QUEUES, ROUTES, RUN_STAGES

LOST_AFTER_S = 20.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A process by its own word. `lost`: not heard of for 20 s. `llm` has an object per LLM server that it calls."""

    worker: str
    queue: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    state: Literal["alive", "lost"]
    shards: int
    llm: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Queue:
    """`depth`: doorbells in Redis, None where it is away. `oldest_s`: for how long the oldest shard has been ready."""

    queue: str
    depth: int | None
    ready_shards: int
    oldest_s: float | None
    consumers: int


@dataclass(frozen=True, slots=True)
class LLMLoad:
    """Calls in flight and allowed, over all living workers; `waiting` is the servers' own count, if they say one."""

    in_flight: int
    limit: int
    waiting: float | None
    endpoints: list[dict[str, Any]]


def list_workers(connection: Connection) -> list[Worker]:
    rows = connection.execute(
        text(
            "SELECT worker, queue, host, pid, version, started_at, seen_at, shards, llm, "
            "CASE WHEN seen_at > now() - make_interval(secs => :lost_after_s) THEN 'alive' ELSE 'lost' END AS state "
            "FROM workers ORDER BY queue, worker"
        ),
        {"lost_after_s": LOST_AFTER_S},
    ).mappings()
    return [Worker(**row) for row in rows]


def list_queues(connection: Connection, depth: Callable[[str], int | None]) -> list[Queue]:
    """Every queue; `depth` says how many doorbells lie in it. The shards of a paused run do not count."""
    rows = connection.execute(
        text(
            """
            SELECT stage, count(*) AS ready, extract(epoch FROM now() - min(not_before)) AS oldest_s
            FROM shards LEFT JOIN runs USING (run_id)
            WHERE shards.state = 'ready' AND (runs.state = 'running' OR stage <> ALL(:run_stages))
            GROUP BY stage
            """
        ),
        {"run_stages": list(RUN_STAGES)},
    ).all()
    consumers = [worker.queue for worker in list_workers(connection) if worker.state == "alive"]
    result = []
    for queue in QUEUES:
        of_queue = [row for row in rows if ROUTES[row.stage].queue == queue]
        oldest = [max(0.0, float(row.oldest_s)) for row in of_queue]
        result.append(
            Queue(
                queue,
                depth(queue),
                sum(row.ready for row in of_queue),
                max(oldest, default=None),
                consumers.count(queue),
            )
        )
    return result


def llm_load(connection: Connection) -> LLMLoad:
    """The LLM servers as the living workers see them together."""
    by_endpoint: dict[str, dict[str, Any]] = {}
    for worker in list_workers(connection):
        if worker.state == "lost":
            continue
        for seen in worker.llm:
            known = by_endpoint.setdefault(seen["endpoint"], {**seen, "in_flight": 0, "limit": 0})
            known["in_flight"] += seen["in_flight"]
            known["limit"] += seen["limit"]
            if seen["waiting"] is not None:
                # each asks the same server: the latest count is as good as another's
                known["waiting"] = max(known["waiting"] or 0, seen["waiting"])
            if seen["is_open"]:
                known.update(is_open=True, error=seen["error"])
    endpoints = [by_endpoint[endpoint] for endpoint in sorted(by_endpoint)]
    waiting = [endpoint["waiting"] for endpoint in endpoints if endpoint["waiting"] is not None]
    return LLMLoad(
        sum(endpoint["in_flight"] for endpoint in endpoints),
        sum(endpoint["limit"] for endpoint in endpoints),
        sum(waiting) if waiting else None,
        endpoints,
    )
