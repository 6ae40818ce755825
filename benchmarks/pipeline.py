"""Runs one stage of the pipeline alone, on the real stack, and says how fast it was.

A run is prepared in SQL: for generation the shards of the index are held back, so that nothing follows; for relabelling
the queries and their candidates are written as the retriever would have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import Connection, insert, text

from cli.runs.teacher import settle
from cli.stack import children
from cli.stack.processes import start, stop
from cli.stack.state import Addresses
from shared.records import LLMConfig, RunConfig, query_id
from shared.runs import Run, start_run
from shared.schema import queries
from shared.stages import Stage
from tests.e2e.stack import Stack
from tests.servers import until

CANDIDATES = 20
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Timing:
    """`items` that went through in `wall_s`, from the first claim to the last finish; `cpu_s` is the workers'."""

    run: Run
    items: int
    wall_s: float
    cpu_s: float


def llm_config(**llm: object) -> LLMConfig:
    return LLMConfig.model_validate(llm)


def generation(
    stack: Stack, corpus: str, config: RunConfig, cpu_s: Callable[[], float], *, may_drop: bool = False
) -> Timing:
    """`may_drop`: by a model that writes nothing well-formed."""

    def prepare(connection: Connection, run: Run) -> None:
        # leased to nobody for a day: the retriever stays idle, and what generation hands on waits behind the barrier
        connection.execute(
            text(
                "UPDATE shards SET state = 'claimed', lease_expires_at = now() + interval '1 day' "
                "WHERE run_id = :run_id AND stage = 'index'"
            ),
            {"run_id": run.run_id},
        )

    return _timed(stack, corpus, config, Stage.GENERATE, prepare, cpu_s, may_drop=may_drop)


def relabelling(
    stack: Stack, corpus: str, config: RunConfig, num_queries: int, cpu_s: Callable[[], float], *, number: int = 0
) -> Timing:
    """`number` tells runs apart that shall not ask the same."""

    def prepare(connection: Connection, run: Run) -> None:
        connection.execute(text("DELETE FROM shards WHERE run_id = :run_id"), {"run_id": run.run_id})
        rows = _queries(connection, run, num_queries, number)
        connection.execute(insert(queries), rows)
        connection.execute(
            text(
                """
                INSERT INTO shards (shard_id, run_id, stage, state, item_ids, item_count)
                SELECT gen_random_uuid(), :run_id, 'relabel', 'ready', array_agg(query_id), count(*)
                FROM (SELECT query_id, (row_number() OVER (ORDER BY query_id) - 1) / :size AS shard
                      FROM queries WHERE run_id = :run_id) AS numbered GROUP BY shard
                """
            ),
            {"run_id": run.run_id, "size": config.shard_size},
        )

    return _timed(stack, corpus, config, Stage.RELABEL, prepare, cpu_s)


def _queries(connection: Connection, run: Run, count: int, number: int) -> list[dict[str, object]]:
    """Queries from passages' own words, each with its passage and 19 others as the candidates."""
    found = connection.execute(
        text("SELECT passage_id, text FROM passages WHERE corpus_id = :corpus_id ORDER BY passage_id"),
        {"corpus_id": run.corpus_id},
    ).all()
    draw = random.Random(number)  # noqa: S311 - a benchmark's choice
    ids = [row.passage_id for row in found]
    rows: list[dict[str, object]] = []
    for ordinal in range(count):
        seed = found[ordinal % len(found)]
        words = seed.text.split()
        at = draw.randrange(max(1, len(words) - 8))
        others = [each for each in draw.sample(ids, CANDIDATES) if each != seed.passage_id]
        rows.append(
            {
                "run_id": run.run_id,
                "query_id": query_id(run.run_id, seed.passage_id, ordinal),
                "seed_passage_id": seed.passage_id,
                "ordinal": ordinal,
                "task_description": "Given a query, find a passage that has the answer to the query",
                "query_text": f"{' '.join(words[at : at + 8])} {number}",
                "provenance": {},
                "candidate_ids": [seed.passage_id, *others[: CANDIDATES - 1]],
                "candidate_scores": [1.0 - rank / 100 for rank in range(CANDIDATES)],
            }
        )
    return rows


def _timed(
    stack: Stack,
    corpus: str,
    config: RunConfig,
    stage: Stage,
    prepare: Callable[[Connection, Run], None],
    cpu_s: Callable[[], float],
    *,
    may_drop: bool = False,
) -> Timing:
    config = settle(config)
    spent = cpu_s()
    with stack.engine.begin() as connection:
        run = start_run(connection, corpus, config)
        prepare(connection, run)
    of_stage = {"run_id": run.run_id, "stage": stage}

    def through() -> bool:
        with stack.engine.connect() as connection:
            states = connection.execute(
                text("SELECT DISTINCT state FROM shards WHERE run_id = :run_id AND stage = :stage"), of_stage
            ).scalars()
            return set(states) == {"done"}

    until(through, TIMEOUT_S, every_s=0.25)
    spent = cpu_s() - spent
    with stack.engine.begin() as connection:
        row = connection.execute(
            text(
                "SELECT sum(item_count) AS items, extract(epoch FROM max(finished_at) - min(claimed_at)) AS wall_s, "
                "sum(failures) AS failures FROM shards WHERE run_id = :run_id AND stage = :stage"
            ),
            of_stage,
        ).one()
        dropped = connection.execute(
            text("SELECT count(*) FROM drops WHERE run_id = :run_id"), {"run_id": run.run_id}
        ).scalar_one()
        assert not row.failures, "a figure of failing shards says nothing"
        # what was held back has to go, or the run would stay open
        connection.execute(text("DELETE FROM shards WHERE run_id = :run_id AND state <> 'done'"), of_stage)
    assert may_drop or not dropped, f"{dropped} items were dropped"
    return Timing(run, int(row.items), float(row.wall_s), spent)


@contextmanager
def more_workers(stack: Stack, addresses: Addresses, queue: str, count: int) -> Iterator[list[int]]:
    """So many workers of a queue beside the stack's own; their pids."""
    specs = []
    for number in range(count):
        spec = children.worker(stack.home, addresses, queue, children.WORKERS[queue])
        command = tuple(part.replace(f"{queue}@", f"{queue}-{number}@") for part in spec.command)
        specs.append(replace(spec, name=f"{queue}-{number}", command=command))
    started = [start(spec, stack.home / "logs") for spec in specs]
    try:
        for child in started:
            until(lambda child=child: " ready." in child.output(), 60)  # type: ignore[misc]
        yield [child.process.pid for child in started]
    finally:
        stop(started)


def tokens_of(stack: Stack, run_id: UUID) -> int:
    """What the run's calls cost, once all workers have written it down."""
    time.sleep(1.5)
    with stack.engine.connect() as connection:
        return int(
            connection.execute(
                text("SELECT sum(prompt_tokens + completion_tokens) FROM llm_usage WHERE run_id = :run_id"),
                {"run_id": run_id},
            ).scalar_one()
        )
