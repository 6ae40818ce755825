"""What is in the tables themselves: the counts that `shared.counts` must say at every moment, and all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from shared.counts import read_counts

_TRUTH = """
    SELECT stage, label_version, state, sum(item_count) FROM shards WHERE run_id = :id GROUP BY 1, 2, 3
    UNION ALL
    SELECT stage, label_version, 'drop:' || reason, count(*) FROM drops WHERE run_id = :id GROUP BY 1, 2, 3
    UNION ALL
    SELECT 'generate', 1, 'queries', count(*) FROM queries WHERE run_id = :id
    UNION ALL
    SELECT 'generate', 1, 'kind:' || (provenance ->> 'kind'), count(*) FROM queries
    WHERE run_id = :id AND jsonb_exists(provenance, 'kind') GROUP BY 3
    UNION ALL
    SELECT 'generate', 1, 'seeds', count(DISTINCT seed_passage_id) FROM queries WHERE run_id = :id
    UNION ALL
    SELECT 'relabel', label_version, 'records', count(*) FROM fret_records WHERE run_id = :id GROUP BY 2
    UNION ALL
    SELECT 'relabel', label_version, 'moved', count(*) FILTER (WHERE positive_changed)
    FROM fret_records WHERE run_id = :id GROUP BY 2
    UNION ALL
    SELECT 'relabel', 1, 'judged', sum(cardinality(ql_scores) - coalesce(CAST(judge ->> 'taken_over' AS int), 0))
    FROM queries WHERE run_id = :id
    UNION ALL
    SELECT 'relabel', 1, 'taken_over', sum(CAST(judge ->> 'taken_over' AS int)) FROM queries WHERE run_id = :id
"""
Counts = dict[tuple[str, int, str], int]


def counts_and_truth(connection: Connection, run_id: UUID) -> tuple[Counts, Counts]:
    """What is counted and what is there, without the zeros; both from one snapshot if the transaction has one."""
    there = connection.execute(text(_TRUTH), {"id": run_id}).all()
    counted = read_counts(connection, run_id)
    return (
        {(count.stage, count.label_version, count.what): count.amount for count in counted if count.amount},
        {(stage, version, what): int(amount) for stage, version, what, amount in there if amount},
    )


def every_row(connection: Connection, without: Mapping[str, Sequence[str]] | None = None) -> dict[str, list[Any]]:
    """Every row of every table but Alembic's, without the columns that `without` names of a table."""
    tables = connection.execute(
        text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
    ).scalars()
    return {
        table: list(
            connection.execute(
                text(f"SELECT to_jsonb(t) - CAST(:new AS text[]) AS row FROM {table} AS t ORDER BY row"),  # noqa: S608
                {"new": list((without or {}).get(table, ()))},
            ).scalars()
        )
        for table in tables
    }
