"""What all processes know together of an LLM server: its row in the table `endpoints`.

A statement is a transaction of its own in a thread, so the loop never waits for the database. This room knows no SQL;
the breaker and the quota have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, RowMapping, TextClause

from shared.database import engine as process_engine


@dataclass(frozen=True, slots=True)
class SharedState:
    engine: Callable[[], Engine] = process_engine

    async def execute(self, statement: TextClause, **values: object) -> RowMapping | None:
        """The row that `statement` returns, if any. Raises SQLAlchemyError where the database does not answer."""
        return await asyncio.to_thread(self._execute, statement, values)

    def _execute(self, statement: TextClause, values: dict[str, Any]) -> RowMapping | None:
        with self.engine().begin() as connection:
            result = connection.execute(statement, values)
            return result.mappings().one_or_none() if result.returns_rows else None
