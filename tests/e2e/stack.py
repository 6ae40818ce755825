"""A real stack for a test: supervisor, PostgreSQL, Redis, workers and dispatcher as processes, and how to harm them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, text

from cli.stack import ensure_stack, running_stack
from shared.progress import conservation
from shared.records import RunConfig
from shared.runs import Run, start_run
from tests.servers import until

RUN_TIMEOUT_S = 240.0


@dataclass(frozen=True, slots=True)
class Stack:
    home: Path
    engine: Engine

    def pid(self, name: str) -> int:
        """The process that runs under a name now."""
        state = running_stack(self.home)
        assert state is not None
        return next(child.pid for child in state.children if child.name == name)

    def kill(self, name: str) -> int:
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.pid(name) != pid, 60)
        return pid

    def start(self, corpus: str, config: RunConfig) -> Run:
        with self.engine.begin() as connection:
            return start_run(connection, corpus, config)

    def finish(self, run: Run) -> None:
        """Waits for a run's end; the counts must add up each time one looks."""

        def done() -> bool:
            with self.engine.connect() as connection:
                sums = conservation(connection, run.run_id)
                assert sums.holds, sums
                state = connection.execute(
                    text("SELECT state FROM runs WHERE run_id = :id"), {"id": run.run_id}
                ).scalar_one()
            return bool(state == "done")

        until(done, RUN_TIMEOUT_S)

    def claimed(self, run: Run, stage: str) -> tuple[UUID, str]:
        """Waits until a shard of the stage is claimed; the shard, and the pid that claimed it."""
        seen: list[tuple[UUID, str]] = []

        def look() -> bool:
            with self.engine.connect() as connection:
                row = connection.execute(
                    text(
                        "SELECT shard_id, split_part(claimed_by, ':', 2) FROM shards "
                        "WHERE run_id = :id AND stage = :stage AND state = 'claimed' LIMIT 1"
                    ),
                    {"id": run.run_id, "stage": stage},
                ).one_or_none()
            if row:
                seen.append((row[0], row[1]))
            return bool(row)

        until(look, RUN_TIMEOUT_S)
        return seen[0]

    @contextmanager
    def nobody_writes(self, table: str) -> Iterator[None]:
        """Holds back every write to a table, so that a worker stays in its finishing transaction, its shard claimed."""
        with self.engine.begin() as connection:
            connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
            yield


def fretwork(stack: Stack, *arguments: str, exit_status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command on the stack that is up already."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--home", str(stack.home), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == exit_status, done.stderr
    return done


@contextmanager
def real_stack(home: Path, **environment: str) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("FRETWORK_") and not name.startswith("FRETWORK_TEST_"):
                patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        with ensure_stack(home, workers=True) as addresses:
            engine = create_engine(addresses.database_url)
            try:
                yield Stack(home, engine)
            finally:
                engine.dispose()


def digest(engine: Engine, run: Run, *, cosines: bool = True) -> str:
    """A hash over the full content of a run's queries, scores, records and reasons, whatever the order they came in.

    The cosine of a candidate depends in its last digits on which texts shared a batch, so a comparison between runs
    whose shards may have been others leaves it out, and the order that follows from it; nothing in a record is made of
    either.
    """
    columns = "query_id, seed_passage_id, ordinal, task_description, query_text, provenance, judge, "
    if cosines:
        columns += "candidate_ids, candidate_scores, ql_scores, rc_scores"
    else:
        columns += (
            "(SELECT array_agg(concat_ws(' ', id, ql, rc) ORDER BY id) "
            "FROM unnest(candidate_ids, ql_scores, rc_scores) AS candidates (id, ql, rc))"
        )
    statements = (
        f"SELECT {columns} FROM queries WHERE run_id = :id ORDER BY query_id",  # noqa: S608 - our own constants
        "SELECT query_id, label_version, positive_id, negative_ids, positive_ql_rank, positive_rc_rank, "
        "positive_fused_score, seed_fused_score, positive_changed, positive_span, negative_spans "
        "FROM fret_records WHERE run_id = :id ORDER BY query_id, label_version",
        "SELECT stage, label_version, item_id, reason, detail FROM drops WHERE run_id = :id ORDER BY 1, 2, 3",
    )
    seen = hashlib.sha256()
    with engine.connect() as connection:
        for statement in statements:
            rows = connection.execute(text(statement), {"id": run.run_id}).all()
            assert rows or "drops" in statement
            for row in rows:
                seen.update(repr(tuple(row)).encode())
    return seen.hexdigest()
