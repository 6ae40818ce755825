"""What people look at: a run's records side by side with its passages, its dead shards, its trainings. Moves nothing.

Pages are by keyset: `after` is the last id of the page before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from shared.errors import NotFoundError
from shared.records import Passage
from shared.runs import Run
from shared.stages import Stage
from shared.store import load_passages

CURVE_POINTS = 500


@dataclass(frozen=True, slots=True)
class DeadShard:
    """A shard that failed for good. `failures` are errors of its own, `losses` workers that died with it in hand,
    `setbacks` calls that its server failed on while it answered others.
    """

    shard_id: UUID
    stage: Stage
    items: int
    failures: int
    losses: int
    setbacks: int
    error_type: str | None
    error_message: str | None
    error_traceback: str | None
    claimed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Judged:
    """A passage as a query's judges saw it; the scores are None where it was no candidate."""

    passage: Passage
    ql: float | None
    rc: float | None


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One FRet record in full, for reading."""

    query_id: UUID
    task_description: str
    query_text: str
    seed: Judged
    positive: Judged
    negatives: list[Judged]
    positive_changed: bool
    positive_ql_rank: int
    positive_rc_rank: int
    positive_fused_score: float
    seed_fused_score: float


@dataclass(frozen=True, slots=True)
class Training:
    """A training run. `curve` has (step, loss), thinned to 500 points; `evaluations` those of its output folder."""

    training_run_id: UUID
    run: str
    label_version: int
    state: str
    created_at: datetime
    output_dir: str
    config: dict[str, Any]
    progress: dict[str, Any]
    curve: list[tuple[int, float]]
    result: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    error: str | None


def dead_shards(connection: Connection, run_id: UUID, limit: int, after: UUID | None = None) -> list[DeadShard]:
    rows = connection.execute(
        text(
            """
            SELECT shard_id, stage, item_count AS items, failures, losses, setbacks, error_type, error_message,
                   error_traceback, claimed_at
            FROM shards WHERE run_id = :run_id AND state = 'dead'
              AND (CAST(:after AS uuid) IS NULL OR shard_id > :after)
            ORDER BY shard_id LIMIT :limit
            """
        ),
        {"run_id": run_id, "after": after, "limit": limit},
    ).mappings()
    return [DeadShard(**{**row, "stage": Stage(row["stage"])}) for row in rows]


def count_dead(connection: Connection, run_id: UUID) -> int:
    """How many of a run's shards failed for good, of every stage."""
    return int(
        connection.execute(
            text("SELECT count(*) FROM shards WHERE run_id = :run_id AND state = 'dead'"), {"run_id": run_id}
        ).scalar_one()
    )


def list_records(
    connection: Connection,
    run: Run,
    *,
    label_version: int = 1,
    limit: int,
    after: UUID | None = None,
    moved: bool | None = None,
    disagree: bool | None = None,
) -> list[SampleRecord]:
    """Records by query id. `moved`: the positive is (not) another passage than the seed. `disagree`: it is (not) second
    or worse by one of the two judges.
    """
    rows = (
        connection.execute(
            text(
                """
                SELECT query_id, task_description, query_text, seed_passage_id, positive_id, negative_ids,
                       positive_changed, positive_ql_rank, positive_rc_rank, positive_fused_score, seed_fused_score,
                       candidate_ids, ql_scores, rc_scores
                FROM fret_records JOIN queries USING (run_id, query_id)
                WHERE run_id = :run_id AND label_version = :label_version
                  AND (CAST(:after AS uuid) IS NULL OR fret_records.query_id > :after AND queries.query_id > :after)
                  AND (CAST(:moved AS boolean) IS NULL OR positive_changed = :moved)
                  AND (CAST(:disagree AS boolean) IS NULL
                       OR (positive_ql_rank > 1 OR positive_rc_rank > 1) = :disagree)
                ORDER BY query_id LIMIT :limit
                """
            ),
            {
                "run_id": run.run_id,
                "label_version": label_version,
                "after": after,
                "moved": moved,
                "disagree": disagree,
                "limit": limit,
            },
        )
        .mappings()
        .all()
    )
    wanted = {id_ for row in rows for id_ in (row["seed_passage_id"], row["positive_id"], *row["negative_ids"])}
    passages = load_passages(connection, run.corpus_id, wanted) if wanted else {}
    return [_record_of(row, passages) for row in rows]


def _record_of(row: RowMapping, passages: dict[UUID, Passage]) -> SampleRecord:
    candidates: Sequence[UUID] = row["candidate_ids"] or ()
    ql = dict(zip(candidates, row["ql_scores"] or (), strict=False))
    rc = dict(zip(candidates, row["rc_scores"] or (), strict=False))

    def judged(passage_id: UUID) -> Judged:
        return Judged(passages[passage_id], ql.get(passage_id), rc.get(passage_id))

    return SampleRecord(
        query_id=row["query_id"],
        task_description=row["task_description"],
        query_text=row["query_text"],
        seed=judged(row["seed_passage_id"]),
        positive=judged(row["positive_id"]),
        negatives=[judged(passage_id) for passage_id in row["negative_ids"]],
        **{
            name: row[name]
            for name in (
                "positive_changed",
                "positive_ql_rank",
                "positive_rc_rank",
                "positive_fused_score",
                "seed_fused_score",
            )
        },
    )


_TRAININGS = """
    SELECT training_run_id, runs.name AS run, training_runs.label_version, shards.state, training_runs.created_at,
           output_dir, training_runs.config, progress, result,
           CASE WHEN shards.state <> 'done' THEN shards.error_message END AS error
    FROM training_runs JOIN runs USING (run_id)
    LEFT JOIN shards ON shards.run_id = training_runs.run_id AND stage = 'train'
                    AND shards.item_ids = ARRAY[training_run_id]
"""


def list_trainings(connection: Connection, run_id: UUID, limit: int) -> list[Training]:
    """A run's trainings, the newest first."""
    rows = connection.execute(
        text(_TRAININGS + " WHERE training_runs.run_id = :run_id ORDER BY training_runs.created_at DESC LIMIT :limit"),
        {"run_id": run_id, "limit": limit},
    ).mappings()
    return [_training_of(connection, row) for row in rows.all()]


def read_training(connection: Connection, training_run_id: UUID) -> Training:
    """Raises NotFoundError."""
    row = (
        connection.execute(text(_TRAININGS + " WHERE training_run_id = :id"), {"id": training_run_id})
        .mappings()
        .one_or_none()
    )
    if row is None:
        raise NotFoundError(f"there is no training run {training_run_id}: GET /runs/NAME/training-runs lists a run's")
    return _training_of(connection, row)


def _training_of(connection: Connection, row: RowMapping) -> Training:
    curve = connection.execute(
        text(
            """
            SELECT max(step) AS step, avg(loss) AS loss FROM (
                SELECT step, loss, ntile(:points) OVER (ORDER BY step) AS point
                FROM training_curve WHERE training_run_id = :id
            ) AS points GROUP BY point ORDER BY 1
            """
        ),
        {"id": row["training_run_id"], "points": CURVE_POINTS},
    )
    measured = connection.execute(
        text(
            "SELECT "
            # evaluations of before there were others than of BEIR folders have their folder in the configuration itself
            "coalesce(config -> 'data', jsonb_build_object("
            "'kind', 'beir', 'path', config -> 'beir_dir', 'split', config -> 'split')) AS data, "
            "jsonb_build_object('main_metric', 'ndcg@10') || result AS result FROM evaluations "
            "WHERE config ->> 'model' = :output_dir AND result IS NOT NULL ORDER BY created_at"
        ),
        {"output_dir": row["output_dir"]},
    ).mappings()
    return Training(
        **row,
        curve=[(point.step, float(point.loss)) for point in curve],
        evaluations=[dict(each) for each in measured],
    )
