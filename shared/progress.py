"""How far a run is, counted in SQL: items per stage, reasons, rates, and whether the counts add up. Moves nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.budget import find_budget
from shared.runs import Run
from shared.stages import RUN_STAGES, Stage

RATE_WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Items of one stage; `total` grows while earlier stages still produce. `rate` is items/s of the last minute."""

    stage: Stage
    total: int
    done: int
    claimed: int
    dead: int
    rate: float
    eta_s: float | None
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What one stage's calls to one model cost so far. `requests` counts prompts, also those sent in one list."""

    stage: Stage
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Conservation:
    """Both sides of the two sums that hold at every moment (design, invariant 3)."""

    sampled: int
    seeds_with_queries: int
    passages_dropped: int
    passages_open: int
    queries: int
    records: int
    queries_dropped: int
    queries_open: int

    @property
    def holds(self) -> bool:
        return (
            self.sampled == self.seeds_with_queries + self.passages_dropped + self.passages_open
            and self.queries == self.records + self.queries_dropped + self.queries_open
        )


def stage_progress(connection: Connection, run_id: UUID) -> list[StageProgress]:
    """One entry per stage of a run, in order; all label versions count."""
    rows = connection.execute(
        text(
            f"""
            SELECT stage, sum(item_count) AS total,
                   coalesce(sum(item_count) FILTER (WHERE state = 'done'), 0) AS done,
                   coalesce(sum(item_count) FILTER (WHERE state = 'claimed'), 0) AS claimed,
                   coalesce(sum(item_count) FILTER (WHERE state = 'dead'), 0) AS dead,
                   coalesce(sum(item_count) FILTER (WHERE recent), 0)
                     / greatest(least({RATE_WINDOW_S}, extract(epoch FROM now() - min(claimed_at))), 1) AS rate
            FROM (SELECT *, state = 'done' AND finished_at > now() - interval '{RATE_WINDOW_S} s' AS recent
                  FROM shards WHERE run_id = :run_id) AS of_run
            GROUP BY stage
            """  # noqa: S608 - our own constant
        ),
        {"run_id": run_id},
    ).mappings()
    counted = {row["stage"]: row for row in rows}
    reasons: dict[str, dict[str, int]] = {}
    for stage, reason, number in connection.execute(
        text("SELECT stage, reason, count(*) FROM drops WHERE run_id = :run_id GROUP BY stage, reason ORDER BY 1, 2"),
        {"run_id": run_id},
    ):
        reasons.setdefault(stage, {})[reason] = number
    result = []
    for stage in RUN_STAGES:
        row = counted.get(stage)
        total, done, claimed, dead = (int(row[k]) for k in ("total", "done", "claimed", "dead")) if row else (0,) * 4
        rate = float(row["rate"]) if row else 0.0
        remaining = total - done - dead
        eta_s = remaining / rate if rate > 0 else None
        result.append(StageProgress(stage, total, done, claimed, dead, rate, eta_s, reasons.get(stage, {})))
    return result


def token_usage(connection: Connection, run_id: UUID) -> list[TokenUsage]:
    """One entry per stage and model that was called, in order of the stages; at most a second behind the workers."""
    rows = connection.execute(
        text(
            "SELECT stage, model, requests, prompt_tokens, completion_tokens FROM llm_usage "
            "WHERE run_id = :run_id ORDER BY array_position(CAST(:stages AS text[]), stage), model"
        ),
        {"run_id": run_id, "stages": list(RUN_STAGES)},
    ).mappings()
    return [TokenUsage(**{**row, "stage": Stage(row["stage"])}) for row in rows]


def conservation(connection: Connection, run_id: UUID, label_version: int = 1) -> Conservation:
    """Both sums from one snapshot: one statement, so that it may be asked while workers run."""
    row = (
        connection.execute(
            text(
                """
                SELECT
                  (SELECT sampled_count FROM runs WHERE run_id = :run_id) AS sampled,
                  (SELECT count(DISTINCT seed_passage_id) FROM queries WHERE run_id = :run_id) AS seeds_with_queries,
                  (SELECT count(*) FROM drops WHERE run_id = :run_id AND stage = 'generate') AS passages_dropped,
                  (SELECT coalesce(sum(item_count), 0) FROM shards
                   WHERE run_id = :run_id AND stage = 'generate' AND state <> 'done') AS passages_open,
                  (SELECT count(*) FROM queries WHERE run_id = :run_id) AS queries,
                  (SELECT count(*) FROM fret_records
                   WHERE run_id = :run_id AND label_version = :label_version) AS records,
                  (SELECT count(*) FROM drops WHERE run_id = :run_id AND (stage IN ('retrieve', 'dedup')
                     OR stage = 'relabel' AND label_version = :label_version)) AS queries_dropped,
                  (SELECT coalesce(sum(item_count), 0) FROM shards WHERE run_id = :run_id AND state <> 'done' AND (
                     stage IN ('retrieve', 'dedup')
                     OR stage = 'relabel' AND label_version = :label_version)) AS queries_open
                """
            ),
            {"run_id": run_id, "label_version": label_version},
        )
        .mappings()
        .one()
    )
    return Conservation(**{key: int(value) for key, value in row.items()})


def describe(connection: Connection, run: Run) -> dict[str, Any]:
    """Everything about a run as plain values: what --json, the status API and the demo's report show."""
    sums = conservation(connection, run.run_id)
    budget = find_budget(connection, run.run_id)
    dead = connection.execute(
        text(
            "SELECT stage, count(*) AS shards, error_type, error_message FROM shards "
            "WHERE run_id = :run_id AND state = 'dead' GROUP BY stage, error_type, error_message ORDER BY 1, 3, 4"
        ),
        {"run_id": run.run_id},
    ).mappings()
    return {
        "run_id": str(run.run_id),
        "run": run.name,
        "state": run.state,
        "paused_reason": budget.paused_reason,
        "max_tokens": budget.max_tokens,
        "deadline_at": budget.deadline_at.isoformat() if budget.deadline_at else None,
        "config": run.config.model_dump(mode="json"),
        "stages": [asdict(stage) for stage in stage_progress(connection, run.run_id)],
        "usage": [asdict(usage) for usage in token_usage(connection, run.run_id)],
        "conservation": {**asdict(sums), "holds": sums.holds},
        "dead": [dict(row) for row in dead],
    }


def list_runs(connection: Connection, limit: int, after: str | None = None) -> list[dict[str, Any]]:
    """The newest runs, or those that come after the run named `after`: rows with the count of records."""
    rows = connection.execute(
        text(
            """
            SELECT run_id, name, state, created_at, finished_at, sampled_count,
                   (SELECT count(*) FROM fret_records
                    WHERE fret_records.run_id = runs.run_id AND label_version = 1) AS records
            FROM runs
            WHERE CAST(:after AS text) IS NULL
               OR (created_at, name) < (SELECT created_at, name FROM runs WHERE name = :after)
            ORDER BY created_at DESC, name DESC LIMIT :limit
            """
        ),
        {"after": after, "limit": limit},
    ).mappings()
    return [dict(row) for row in rows]
