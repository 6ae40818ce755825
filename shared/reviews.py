"""What people decided about records, and the records as they are with it: what is exported and trained on.

The relabeler's record stays as it is. A decision is a row beside it, the newest of a record counts, and none is ever
changed: a training reads those that there were when it was started, however long it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Subquery, case, func, insert, or_, select, text

from shared.labels import find_policy
from shared.records import FRetRecord
from shared.runs import Run
from shared.schema import fret_records, reviews

Decision = Literal["accepted", "swapped", "dropped"]
DROPPED = "dropped_in_review"

# what a record has of the passage that a person made the positive, where one did
_OF_THE_POSITIVE = (
    "positive_id",
    "negative_ids",
    "positive_ql_rank",
    "positive_rc_rank",
    "positive_fused_score",
    "positive_changed",
    "positive_span",
    "negative_spans",
)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A record worth a person's eye. `doubt` is the sum of the three below it.

    `moved`: 1 where the positive is not the seed. `disagreement`: |1/ql_rank - 1/rc_rank| of the positive, in [0, 1).
    `thinness`: 1 less what its fused score is ahead of the best other candidate's, and not less than 0; more than 1
    where another is better. Of one rank alone (fusion `ql` or `rc`) the best that there is is 1 and the next 1/2, so
    what it is ahead counts twice.
    """

    query_id: UUID
    positive_id: UUID  # the relabeler's
    doubt: float
    moved: float
    disagreement: float
    thinness: float
    decision: Decision | None
    chosen_id: UUID | None  # the positive of a person's choice, where that is the decision

    @property
    def why(self) -> list[str]:
        """What there is to look at, in words."""
        found = {
            "the positive is not the seed": self.moved,
            "QL and RC disagree about the positive": self.disagreement,
            "another candidate is about as good, or better": self.thinness,
        }
        return [reason for reason, weight in found.items() if weight > 0]


def _latest(run_id: UUID, label_version: int, until: int | None) -> Subquery:
    """The newest decision of each record, up to the review `until`."""
    newest = (
        select(func.max(reviews.c.review_id))
        .where(reviews.c.run_id == run_id, reviews.c.label_version == label_version)
        .group_by(reviews.c.query_id)
    )
    if until is not None:
        newest = newest.where(reviews.c.review_id <= until)
    return select(reviews).where(reviews.c.review_id.in_(newest)).subquery()


def reviewed_records(run_id: UUID, label_version: int, until: int | None = None) -> Subquery:
    """The columns of fret_records and the column `review`, the decision or null; without the dropped records.

    `until` leaves out the reviews after that one.
    """
    latest = _latest(run_id, label_version, until)
    swapped = latest.c.decision == "swapped"
    columns = [
        case((swapped, latest.c[column.name]), else_=column).label(column.name)
        if column.name in _OF_THE_POSITIVE
        else column
        for column in fret_records.c
    ]
    return (
        select(*columns, latest.c.decision.label("review"))
        .select_from(fret_records.outerjoin(latest, latest.c.query_id == fret_records.c.query_id))
        .where(fret_records.c.run_id == run_id, fret_records.c.label_version == label_version)
        .where(or_(latest.c.decision.is_(None), latest.c.decision != "dropped"))
        .subquery("reviewed_records")
    )


def count_reviews(connection: Connection, run_id: UUID, label_version: int, until: int | None = None) -> dict[str, int]:
    """How many of a label version's records have each decision (up to that review); what none has is left out."""
    latest = _latest(run_id, label_version, until)
    rows = connection.execute(
        select(latest.c.decision, func.count()).group_by(latest.c.decision).order_by(latest.c.decision)
    )
    return {row[0]: row[1] for row in rows}


def save_review(
    connection: Connection,
    run: Run,
    label_version: int,
    query_id: UUID,
    decision: Decision,
    record: tuple[FRetRecord, bool] | None = None,
) -> None:
    """Writes a decision down; for `swapped`, `record` is what becomes of the record, and whether its positive is moved.

    `accepted` takes the record as the relabeler made it, also where an earlier decision was another.
    """
    values: dict[str, Any] = {}
    if record is not None:
        made, changed = record
        values = {name: getattr(made, name) for name in _OF_THE_POSITIVE if name != "positive_changed"}
        values.update(
            negative_ids=list(made.negative_ids),
            positive_changed=changed,
            positive_span=list(made.positive_span) if made.positive_span else None,
            negative_spans=[list(span) if span else None for span in made.negative_spans],
        )
    key = {"run_id": run.run_id, "label_version": label_version, "query_id": query_id}
    connection.execute(insert(reviews).values(**key, decision=decision, **values))


def list_doubtful(
    connection: Connection, run: Run, label_version: int, limit: int, *, decided: bool = False
) -> list[Doubtful]:
    """The records that are most in doubt, the worst first; those that have a decision, or those that have none.

    It looks at every record of the version, and holds `limit` of them.
    """
    weight = 1 if find_policy(connection, run, label_version).fusion == "rrf" else 2
    rows = connection.execute(
        text(
            """
            SELECT query_id, positive_id, moved + disagreement + thinness AS doubt, moved, disagreement, thinness,
                   decision, chosen_id
            FROM (
                SELECT query_id, fret_records.positive_id, decision, latest.positive_id AS chosen_id,
                       CAST(CAST(fret_records.positive_changed AS int) AS float) AS moved,
                       abs(CAST(1 AS float) / fret_records.positive_ql_rank
                           - CAST(1 AS float) / fret_records.positive_rc_rank) AS disagreement,
                       greatest(0, 1 - :weight * (positive_fused_score - coalesce(runner_up_fused_score, 0)))
                         AS thinness
                FROM fret_records LEFT JOIN LATERAL (
                    SELECT decision, positive_id FROM reviews
                    WHERE reviews.run_id = fret_records.run_id AND reviews.query_id = fret_records.query_id
                      AND reviews.label_version = fret_records.label_version
                    ORDER BY review_id DESC LIMIT 1
                ) AS latest ON true
                WHERE run_id = :run_id AND label_version = :label_version
            ) AS weighed
            WHERE (decision IS NOT NULL) = :decided AND (decision IS NOT NULL OR moved + disagreement + thinness > 0)
            ORDER BY doubt DESC, query_id LIMIT :limit
            """
        ),
        {"run_id": run.run_id, "label_version": label_version, "limit": limit, "decided": decided, "weight": weight},
    ).mappings()
    return [Doubtful(**row) for row in rows]
