"""What the report's pictures are made of, read from the ledger once the demo is over. Writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from services.relabeler.fuse import fuse
from shared.reading import read_training
from shared.runs import Run

ROWS_AT_ONCE = 500


class Scores(NamedTuple):
    """One score of all records' positives and first negatives, record by record."""

    positives: list[float]
    negatives: list[float]


@dataclass(frozen=True, slots=True)
class Figures:
    """`loss` is (step, loss); `seed_ranks[n]` how many seed passages stand at the fused rank n + 1."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    seed_ranks: list[int] = field(default_factory=list)
    ql: Scores = field(default_factory=lambda: Scores([], []))
    rc: Scores = field(default_factory=lambda: Scores([], []))


def read_figures(connection: Connection, run: Run, label_version: int, training_run_id: UUID) -> Figures:
    """Of the run's judged queries, the records of one label version, and the training on them."""
    ql, rc = _scores(connection, run, label_version)
    return Figures(read_training(connection, training_run_id).curve, _seed_ranks(connection, run), ql, rc)


def _seed_ranks(connection: Connection, run: Run) -> list[int]:
    rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
        text(
            "SELECT seed_passage_id, candidate_ids, ql_scores, rc_scores FROM queries "
            "WHERE run_id = :run_id AND ql_scores IS NOT NULL"
        ),
        {"run_id": run.run_id},
    )
    ranks: Counter[int] = Counter()
    for seed, *judged in rows:
        for rank, candidate in enumerate(fuse(*judged), start=1):
            if candidate.passage_id == seed:
                ranks[rank] += 1
    return [ranks[rank] for rank in range(1, max(ranks, default=0) + 1)]


def _scores(connection: Connection, run: Run, label_version: int) -> tuple[Scores, Scores]:
    rows = connection.execute(
        text(
            """
            SELECT ql_scores[array_position(candidate_ids, positive_id)],
                   ql_scores[array_position(candidate_ids, negative_ids[1])],
                   rc_scores[array_position(candidate_ids, positive_id)],
                   rc_scores[array_position(candidate_ids, negative_ids[1])]
            FROM fret_records JOIN queries USING (run_id, query_id)
            WHERE run_id = :run_id AND label_version = :label_version ORDER BY query_id
            """
        ),
        {"run_id": run.run_id, "label_version": label_version},
    )
    ql, rc = Scores([], []), Scores([], [])
    for positive_ql, negative_ql, positive_rc, negative_rc in rows:
        ql.positives.append(positive_ql)
        ql.negatives.append(negative_ql)
        rc.positives.append(positive_rc)
        rc.negatives.append(negative_rc)
    return ql, rc
