"""Several small queries in one statement: one round trip, which is what they cost where the machine is full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text


def read_together(
    connection: Connection, queries: Mapping[str, str], values: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each query by its name, all of one snapshot. Values are as JSON has them: a time is a text."""
    columns = [
        f"(SELECT coalesce(jsonb_agg(to_jsonb(found)), '[]') FROM ({query}) AS found) AS {name}"  # noqa: S608 - ours
        for name, query in queries.items()
    ]
    return dict(connection.execute(text(f"SELECT {', '.join(columns)}"), values).mappings().one())
