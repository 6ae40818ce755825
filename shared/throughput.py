"""What a run got done over time, from what the dispatcher noted in every ten seconds. Moves nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from shared.counts import BUCKET_S
from shared.stages import Stage


@dataclass(frozen=True, slots=True)
class ThroughputPoint:
    """A stage's items/s in the step that begins `at`."""

    at: datetime
    stage: Stage
    items_per_s: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """What got done over time; a step in which a stage got nothing done has no point."""

    since: datetime
    until: datetime
    step_s: float
    points: list[ThroughputPoint]


def throughput(connection: Connection, run_id: UUID, since_s: int, points: int) -> Throughput:
    """What got done in the last `since_s` seconds of a run that goes on or went on, in about `points` steps."""
    window = connection.execute(
        text(
            """
            SELECT greatest(created_at, until - make_interval(secs => :since_s)) AS since, until
            FROM (SELECT created_at, coalesce(finished_at, now()) AS until FROM runs WHERE run_id = :run_id) AS of_run
            """
        ),
        {"run_id": run_id, "since_s": since_s},
    ).one()
    steps = (window.until - window.since).total_seconds() / points / BUCKET_S
    step = timedelta(seconds=BUCKET_S * max(1, math.ceil(steps)))
    rows = connection.execute(
        text(
            """
            SELECT date_bin(:step, at, 'epoch') AS at, stage, sum(items) / extract(epoch FROM :step) AS items_per_s
            FROM throughput WHERE run_id = :run_id AND at + :bucket > :since GROUP BY 1, 2 ORDER BY 1, 2
            """
        ),
        {"run_id": run_id, "step": step, "bucket": timedelta(seconds=BUCKET_S), "since": window.since},
    )
    found = [ThroughputPoint(row.at, Stage(row.stage), float(row.items_per_s)) for row in rows]
    return Throughput(window.since, window.until, step.total_seconds(), found)
