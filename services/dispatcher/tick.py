"""One tick of the dispatcher: reap what was lost, open barriers, end or pause runs, add up counts, ring doorbells.

Each step is one transaction and may be repeated at will. It looks at the ledger and the queues' lengths, and at no
worker: so it mends whatever broke, without knowing how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

import structlog
from sqlalchemy import Engine

from shared import budget, counts, heartbeat, ledger
from shared.stages import QUEUES, ROUTES, Stage

log = structlog.get_logger()

QUEUE_TARGET = 64  # doorbells in a queue: enough to keep its workers busy until the next tick
RING_AGAIN_AFTER_S = 30.0


def tick(engine: Engine, queue_length: Callable[[str], int], ring: Callable[[Stage, Iterable[UUID]], None]) -> None:
    with engine.begin() as connection:
        reaped = ledger.reap(connection)
    if reaped:
        log.warning("leases ran out", shards=[str(shard_id) for shard_id in reaped])
    with engine.begin() as connection:
        ledger.open_barriers(connection)
    with engine.begin() as connection:
        for run_id in ledger.finish_runs(connection):
            log.info("run done", run=str(run_id))
    with engine.begin() as connection:
        for run_id, reason in budget.pause_runs(connection):
            log.warning("run paused", run=str(run_id), reason=reason)
    with engine.begin() as connection:
        counts.add_up(connection)
    with engine.begin() as connection:
        heartbeat.forget_the_lost(connection)
    for queue, stages in _stages_by_queue().items():
        wanted = QUEUE_TARGET - queue_length(queue)
        if wanted <= 0:
            continue
        with engine.begin() as connection:
            missed = ledger.to_ring(connection, stages, wanted, RING_AGAIN_AFTER_S)
        for shard in missed:
            ring(shard.stage, [shard.shard_id])


def _stages_by_queue() -> Mapping[str, list[Stage]]:
    return {queue: [stage for stage, route in ROUTES.items() if route.queue == queue] for queue in QUEUES}
