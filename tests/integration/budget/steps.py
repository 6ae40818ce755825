"""What is done to a run with a budget, and asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from sqlalchemy import Engine, select

from shared import budget, ledger, meter
from shared.ledger import Claim
from shared.llm import Usage
from shared.progress import conservation
from shared.records import RunConfig
from shared.runs import Run, find_run
from shared.schema import shards
from shared.stages import RUN_STAGES, Stage
from tests.servers import until

LLM = RunConfig(teacher="llm", shard_size=4)
CALL = Usage(requests=1, prompt_tokens=90, completion_tokens=10)


@contextmanager
def dispatcher(log: Path) -> Iterator[None]:
    """A real one, on the servers that the environment names."""
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-m", "services.dispatcher"], env=dict(os.environ), stderr=output) as process,
    ):
        try:
            until(lambda: "dispatching" in log.read_text() or process.poll() is not None, 30)
            yield
        finally:
            process.terminate()


def fretwork(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which a fault cannot keep waiting for ever."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def spend(run: Run, calls: int, stage: Stage = Stage.GENERATE) -> None:
    with meter.metered(run.run_id, stage, "tiny") as counter:
        for _ in range(calls):
            counter.spent(CALL)


def pause(engine: Engine) -> list[tuple[UUID, str]]:
    with engine.begin() as connection:
        return budget.pause_runs(connection)


def state(engine: Engine, run: Run) -> str:
    with engine.connect() as connection:
        return find_run(connection, run.run_id).state


def shard_ids(engine: Engine, run: Run, stage: Stage) -> list[UUID]:
    query = select(shards.c.shard_id).where(shards.c.run_id == run.run_id, shards.c.stage == stage)
    with engine.connect() as connection:
        return list(connection.execute(query.order_by(shards.c.item_ids)).scalars())


def claim(engine: Engine, shard_id: UUID) -> Claim | None:
    with engine.begin() as connection:
        return ledger.claim(connection, shard_id, "me", 45)


def ring(engine: Engine, stages: tuple[Stage, ...] = RUN_STAGES) -> int:
    with engine.begin() as connection:
        return len(ledger.to_ring(connection, stages, 100, again_after_s=30))


def holds(engine: Engine, run: Run) -> bool:
    with engine.connect() as connection:
        return conservation(connection, run.run_id).holds


def used(engine: Engine, run: Run) -> int:
    with engine.connect() as connection:
        return budget.find_budget(connection, run.run_id).used_tokens
