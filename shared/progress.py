"""How far a run is: items per stage, rates, reasons, costs, and whether the counts add up. Moves nothing.

What grows with the run is never counted here: all figures come from `shared.counts`, so a status of a million items
costs what one of ten does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.budget import BUDGET
from shared.counts import BUCKET_S, COUNTS, Count, read_counts
from shared.fleet import llm_load
from shared.one_query import read_together
from shared.records import LabelPolicy
from shared.runs import Run
from shared.stages import RUN_STAGES, Stage

DROP = "drop:"


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Items of one stage; `total` grows while earlier stages still produce.

    `rate_1m` and `rate_10m` are items/s over the last minute and ten minutes, or since the stage began; `eta_s` is None
    where nothing gets done or nothing is left.
    """

    stage: Stage
    total: int
    done: int
    claimed: int
    dead: int
    rate_1m: float
    rate_10m: float
    eta_s: float | None
    started_at: datetime | None
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


@dataclass(frozen=True, slots=True)
class _Pace:
    started_at: datetime
    rate_1m: float
    rate_10m: float


def stage_progress(connection: Connection, run_id: UUID) -> list[StageProgress]:
    """One entry per stage of a run, in order; all label versions count."""
    seen = read_together(connection, {"counts": COUNTS, "paces": _PACES}, _of_run(run_id))
    return _stages([Count(**row) for row in seen["counts"]], _paces(seen["paces"]))


def _stages(counts: Sequence[Count], paces: dict[str, _Pace], is_over: bool = False) -> list[StageProgress]:
    """A run that is over has no rate: what its last minutes were is in `throughput`."""
    result = []
    for stage in RUN_STAGES:
        amounts: Counter[str] = Counter()
        for count in counts:
            if count.stage == stage:
                amounts[count.what] += count.amount
        total = sum(amounts[state] for state in ("waiting", "ready", "claimed", "done", "dead"))
        pace = paces.get(stage)
        rate_1m, rate_10m = (pace.rate_1m, pace.rate_10m) if pace and not is_over else (0.0, 0.0)
        left, rate = total - amounts["done"] - amounts["dead"], rate_1m or rate_10m
        result.append(
            StageProgress(
                stage,
                total,
                amounts["done"],
                amounts["claimed"],
                amounts["dead"],
                rate_1m,
                rate_10m,
                left / rate if left and rate else None,
                pace.started_at if pace else None,
                {what.removeprefix(DROP): amount for what, amount in amounts.items() if what.startswith(DROP)},
            )
        )
    return result


def _of_run(run_id: UUID) -> dict[str, Any]:
    """The values of the queries below."""
    return {"run_id": run_id, "bucket": timedelta(seconds=BUCKET_S), "stages": list(RUN_STAGES)}


# what the rates of the stages that have begun are made of; a window ends now, and begins where a bucket does
_PACES = """
    WITH windows AS (
        SELECT run_id, stage, started_at,
               greatest(started_at, date_bin(:bucket, now(), 'epoch') - interval '50 s') AS since_1m,
               greatest(started_at, date_bin(:bucket, now(), 'epoch') - interval '590 s') AS since_10m
        FROM run_stages WHERE run_id = :run_id
    ), fresh AS (
        SELECT stage, sum(amount) AS items FROM count_deltas
        WHERE run_id = :run_id AND what = 'done' AND amount > 0 GROUP BY stage
    )
    SELECT windows.stage, started_at,
           coalesce(max(fresh.items), 0)
             + coalesce(sum(throughput.items) FILTER (WHERE at + :bucket > since_1m), 0) AS items_1m,
           coalesce(max(fresh.items), 0) + coalesce(sum(throughput.items), 0) AS items_10m,
           extract(epoch FROM now() - since_1m) AS seconds_1m,
           extract(epoch FROM now() - since_10m) AS seconds_10m
    FROM windows
    LEFT JOIN throughput ON throughput.run_id = windows.run_id AND throughput.stage = windows.stage
                        AND at + :bucket > since_10m
    LEFT JOIN fresh ON fresh.stage = windows.stage
    GROUP BY windows.stage, started_at, since_1m, since_10m
"""


def _paces(rows: Sequence[dict[str, Any]]) -> dict[str, _Pace]:
    return {
        row["stage"]: _Pace(
            datetime.fromisoformat(row["started_at"]),
            float(row["items_1m"]) / max(1.0, float(row["seconds_1m"])),
            float(row["items_10m"]) / max(1.0, float(row["seconds_10m"])),
        )
        for row in rows
    }


# at most a second behind the workers
_USAGE = """
    SELECT stage, model, requests, prompt_tokens, completion_tokens FROM llm_usage
    WHERE run_id = :run_id ORDER BY array_position(CAST(:stages AS text[]), stage), model
"""


def conservation(connection: Connection, run_id: UUID, label_version: int = 1) -> Conservation:
    """Both sums, from one snapshot: it may be asked while workers run."""
    sampled = connection.execute(
        text("SELECT sampled_count FROM runs WHERE run_id = :run_id"), {"run_id": run_id}
    ).scalar_one()
    return _conservation(int(sampled), read_counts(connection, run_id), label_version)


def _conservation(sampled: int, counts: Sequence[Count], label_version: int) -> Conservation:
    def amount(*stages: Stage, what: str | None = None) -> int:
        """Of `what`; of the drops where it is None. The label version is relabel's alone."""
        return sum(
            count.amount
            for count in counts
            if count.stage in stages
            and (count.what.startswith(DROP) if what is None else count.what == what)
            and (count.stage != Stage.RELABEL or count.label_version == label_version)
        )

    def still_open(*stages: Stage) -> int:
        """A query that the first version has not judged yet is open in every version."""
        return sum(
            count.amount
            for count in counts
            if count.stage in stages
            and count.what in ("waiting", "ready", "claimed", "dead")
            and (count.stage != Stage.RELABEL or count.label_version in (1, label_version))
        )

    of_queries = (Stage.RETRIEVE, Stage.DEDUP, Stage.RELABEL)
    return Conservation(
        sampled=sampled,
        seeds_with_queries=amount(Stage.GENERATE, what="seeds"),
        passages_dropped=amount(Stage.GENERATE),
        passages_open=still_open(Stage.GENERATE),
        queries=amount(Stage.GENERATE, what="queries"),
        records=amount(Stage.RELABEL, what="records"),
        queries_dropped=amount(*of_queries),
        queries_open=still_open(*of_queries),
    )


_RUN = """
    SELECT corpora.name AS corpus, runs.created_at, finished_at, state
    FROM runs JOIN corpora USING (corpus_id) WHERE run_id = :run_id
"""
# its trainings are no part of it; each of ten thousand lone items may have a message of its own
_DEAD = """
    SELECT * FROM (
        SELECT stage, count(*) AS shards, error_type, error_message FROM shards
        WHERE run_id = :run_id AND state = 'dead' AND stage = ANY(:stages)
        GROUP BY stage, error_type, error_message ORDER BY shards DESC, 1, 3, 4 LIMIT 50
    ) AS most ORDER BY 1, 3, 4
"""
# shards given back last have the latest not_before: a hundred of each stage show them, whatever the run's size
_GIVEN_BACK = """
    SELECT stage, count(*) AS shards, error_type, error_message
    FROM unnest(CAST(:stages AS text[])) AS stages (of_stage), LATERAL (
        SELECT stage, error_type, error_message FROM shards
        WHERE run_id = :run_id AND stage = of_stage AND state = 'ready' ORDER BY not_before DESC LIMIT 100
    ) AS latest
    WHERE error_type IS NOT NULL AND error_type <> 'RunPausedError'
    GROUP BY stage, error_type, error_message ORDER BY shards DESC, 1, 3, 4 LIMIT 1
"""
_VERSIONS = "SELECT label_version, policy, created_at FROM label_versions WHERE run_id = :run_id ORDER BY 1"
# people make these, so there are few
_REVIEWS = """
    SELECT label_version, decision, count(*) AS number FROM (
        SELECT DISTINCT ON (label_version, query_id) label_version, decision FROM reviews WHERE run_id = :run_id
        ORDER BY label_version, query_id, review_id DESC
    ) AS latest GROUP BY label_version, decision ORDER BY label_version, decision
"""
_EVERYTHING = {
    "run": _RUN,
    "versions": _VERSIONS,
    "reviews": _REVIEWS,
    "counts": COUNTS,
    "paces": _PACES,
    "budget": BUDGET,
    "usage": _USAGE,
    "dead": _DEAD,
    "given_back": _GIVEN_BACK,
}


def describe(connection: Connection, run: Run) -> dict[str, Any]:
    """Everything about a run as plain values: what --json and the status API show."""
    seen = read_together(connection, _EVERYTHING, _of_run(run.run_id))
    counts = [Count(**row) for row in seen["counts"]]
    sums = _conservation(run.sampled_count, counts, label_version=1)
    (row,), (budget,) = seen["run"], seen["budget"]
    stages = _stages(counts, _paces(seen["paces"]), is_over=row["state"] in ("done", "cancelled"))
    return {
        "run_id": str(run.run_id),
        "run": run.name,
        "corpus": row["corpus"],
        "state": row["state"],
        "created_at": row["created_at"],
        "finished_at": row["finished_at"],
        "paused_reason": budget["paused_reason"],
        "max_tokens": budget["max_tokens"],
        "used_tokens": budget["used_tokens"],
        "deadline_at": budget["deadline_at"],
        "config": run.config.model_dump(mode="json"),
        "records": sums.records,
        "moved": _moved(counts, label_version=1),
        "judged": sum(c.amount for c in counts if c.what == "judged"),
        "judgements_taken_over": sum(c.amount for c in counts if (c.stage, c.what) == (Stage.RELABEL, "taken_over")),
        "queries_taken_over": sum(c.amount for c in counts if (c.stage, c.what) == (Stage.GENERATE, "taken_over")),
        "queries_by_kind": {
            c.what.removeprefix("kind:"): c.amount for c in counts if c.what.startswith("kind:") and c.amount
        },
        "stages": [_plain(stage) for stage in stages],
        "llm": asdict(llm_load(connection)) if run.config.teacher == "llm" else None,
        "usage": seen["usage"],
        "conservation": {**asdict(sums), "holds": sums.holds},
        "dead": seen["dead"],
        "given_back": seen["given_back"][0] if seen["given_back"] else None,
        "label_versions": [_version(run.sampled_count, counts, row, seen["reviews"]) for row in seen["versions"]],
    }


def _moved(counts: Sequence[Count], label_version: int) -> int:
    return sum(c.amount for c in counts if c.what == "moved" and c.label_version == label_version)


def _version(
    sampled: int, counts: Sequence[Count], row: dict[str, Any], reviews: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One labelling of the run: its policy, and what became of the queries under it."""
    version = row["label_version"]
    sums = _conservation(sampled, counts, version)
    dropped = [c for c in counts if c.stage == Stage.RELABEL and c.label_version == version and c.what.startswith(DROP)]
    return {
        **row,
        "policy": LabelPolicy(**row["policy"]).model_dump(mode="json"),
        "records": sums.records,
        "moved": _moved(counts, version),
        "dropped": {c.what.removeprefix(DROP): c.amount for c in dropped if c.amount},
        "queries_open": sums.queries_open,
        "holds": sums.holds,
        "reviewed": {each["decision"]: each["number"] for each in reviews if each["label_version"] == version},
    }


def _plain(stage: StageProgress) -> dict[str, Any]:
    return {**asdict(stage), "started_at": stage.started_at.isoformat() if stage.started_at else None}


def list_runs(connection: Connection, limit: int, after: str | None = None) -> list[dict[str, Any]]:
    """The newest runs, or those that come after the run named `after`: rows with the count of records."""
    rows = connection.execute(
        text(
            """
            SELECT run_id, name, state, created_at, finished_at, sampled_count,
                   (SELECT coalesce(sum(amount), 0)
                    FROM (SELECT * FROM counts UNION ALL SELECT * FROM count_deltas) AS counted
                    WHERE counted.run_id = runs.run_id AND what = 'records' AND label_version = 1) AS records
            FROM runs
            WHERE CAST(:after AS text) IS NULL
               OR (created_at, name) < (SELECT created_at, name FROM runs WHERE name = :after)
            ORDER BY created_at DESC, name DESC LIMIT :limit
            """
        ),
        {"after": after, "limit": limit},
    ).mappings()
    return [dict(row) for row in rows]
