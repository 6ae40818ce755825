"""The counts of runs: reads them, and adds up the deltas that the triggers of migration 0003 append.

Reading is exact at any moment, whether or not anybody adds up. Adding up is the dispatcher's, once a second; on the way
it notes when a stage began and what got done in every ten seconds, which the rates and the chart are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from shared.stages import Stage

BUCKET_S = 10


@dataclass(frozen=True, slots=True)
class Count:
    """`amount` of `what` (see `schema.counts`) at one stage of a run; label versions but the first are relabel's."""

    stage: str
    label_version: int
    what: str
    amount: int


COUNTS = """
    SELECT stage, label_version, what, CAST(sum(amount) AS bigint) AS amount
    FROM (SELECT * FROM counts WHERE run_id = :run_id
          UNION ALL SELECT * FROM count_deltas WHERE run_id = :run_id) AS of_run
    GROUP BY stage, label_version, what ORDER BY stage, label_version, what
"""


def read_counts(connection: Connection, run_id: UUID) -> list[Count]:
    return [Count(**row) for row in connection.execute(text(COUNTS), {"run_id": run_id}).mappings()]


def count(connection: Connection, run_id: UUID, stage: Stage, what: str, amount: int) -> None:
    """Adds to a count that no trigger keeps. Call it in the transaction that stores what is counted."""
    if amount:
        connection.execute(
            text(
                "INSERT INTO count_deltas (run_id, stage, label_version, what, amount) "
                "VALUES (:run_id, :stage, 1, :what, :amount)"
            ),
            {"run_id": run_id, "stage": stage, "what": what, "amount": amount},
        )


def add_up(connection: Connection) -> int:
    """Moves all deltas into `counts`, `run_stages` and `throughput`; returns how many there were.

    One statement, so that every snapshot sees each of them once.
    """
    return int(
        connection.execute(
            text(
                """
                WITH gone AS (DELETE FROM count_deltas RETURNING run_id, stage, label_version, what, amount),
                totals AS (
                    INSERT INTO counts AS kept (run_id, stage, label_version, what, amount)
                    SELECT run_id, stage, label_version, what, sum(amount) FROM gone GROUP BY 1, 2, 3, 4
                    ON CONFLICT (run_id, stage, label_version, what)
                    DO UPDATE SET amount = kept.amount + excluded.amount
                ),
                begun AS (
                    INSERT INTO run_stages (run_id, stage, started_at)
                    SELECT DISTINCT run_id, stage, now() FROM gone WHERE what = 'claimed' AND amount > 0
                    ON CONFLICT DO NOTHING
                ),
                got_done AS (
                    INSERT INTO throughput AS kept (run_id, stage, at, items)
                    SELECT run_id, stage, date_bin(make_interval(secs => :bucket_s), now(), 'epoch'), sum(amount)
                    FROM gone WHERE what = 'done' AND amount > 0 GROUP BY 1, 2
                    ON CONFLICT (run_id, stage, at) DO UPDATE SET items = kept.items + excluded.items
                )
                SELECT count(*) FROM gone
                """
            ),
            {"bucket_s": BUCKET_S},
        ).scalar_one()
    )
