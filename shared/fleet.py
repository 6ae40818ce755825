"""The processes at work and the queues that they serve, as the ledger knows them. Moves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, text

from shared.stages import QUEUES, ROUTES, RUN_STAGES

LOST_AFTER_S = 20.0


@dataclass(frozen=True, slots=True)
class EndpointLoad:
    """Calls to one LLM server, in flight and allowed. `waiting` is the server's own count of queued requests, if it
    says one; `is_open`: it is left alone for a while, because of `error`.
    """

    endpoint: str
    in_flight: int
    limit: int
    waiting: float | None
    is_open: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class Worker:
    """A process by its own word. `lost`: not heard of for 20 s. `shards`: in hand; `llm`: the servers that it calls."""

    worker: str
    queue: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    state: Literal["alive", "lost"]
    shards: int
    llm: list[EndpointLoad]


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
    endpoints: list[EndpointLoad]


def list_workers(connection: Connection) -> list[Worker]:
    rows = connection.execute(
        text(
            "SELECT worker, queue, host, pid, version, started_at, seen_at, shards, llm, "
            "CASE WHEN seen_at > now() - make_interval(secs => :lost_after_s) THEN 'alive' ELSE 'lost' END AS state "
            "FROM workers ORDER BY queue, worker"
        ),
        {"lost_after_s": LOST_AFTER_S},
    ).mappings()
    return [Worker(**{**row, "llm": [EndpointLoad(**load) for load in row["llm"]]}) for row in rows]


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
    by_endpoint: dict[str, EndpointLoad] = {}
    for worker in list_workers(connection):
        if worker.state == "lost":
            continue
        for seen in worker.llm:
            known = by_endpoint.get(seen.endpoint)
            by_endpoint[seen.endpoint] = _together(known, seen) if known else seen
    endpoints = [by_endpoint[endpoint] for endpoint in sorted(by_endpoint)]
    waiting = [endpoint.waiting for endpoint in endpoints if endpoint.waiting is not None]
    return LLMLoad(
        sum(endpoint.in_flight for endpoint in endpoints),
        sum(endpoint.limit for endpoint in endpoints),
        sum(waiting) if waiting else None,
        endpoints,
    )


def _together(one: EndpointLoad, other: EndpointLoad) -> EndpointLoad:
    """One server as two processes see it: each has calls of its own, and both ask the server what waits there."""
    waiting = [count for count in (one.waiting, other.waiting) if count is not None]
    return EndpointLoad(
        one.endpoint,
        one.in_flight + other.in_flight,
        one.limit + other.limit,
        max(waiting, default=None),
        one.is_open or other.is_open,
        one.error or other.error,
    )
