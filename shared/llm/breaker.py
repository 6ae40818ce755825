"""The circuit breaker of one LLM server, shared by all processes through the table `endpoints`.

It opens after five failures in a row in a process, or at once where the server refuses everybody, and stays open for
5 s, doubling to 60 s. Then one caller over all processes wins the right to probe with the smallest call: its success
closes the breaker for everybody, its failure doubles the time. So a server that is away for an hour costs a call a
minute.

Without a database the breaker is this process's own. Where the database does not answer it acts on what it last knew:
a ledger that is away stops the work by itself.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import RowMapping, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from shared.llm.shared_state import SharedState

log = structlog.get_logger()

FAILURES = 5
FIRST_S = 5.0
MOST_S = 60.0
PROBE_S = 60.0  # the winner's call may take longer; then another one tries as well
READ_EVERY_S = 1.0
READ_PATIENCE_S = 1.0

_READ = text(
    "SELECT failures, extract(epoch FROM open_until - now())::float AS open_s, error "
    "FROM endpoints WHERE base_url = :url"
)
# closed -> open; a breaker that others opened meanwhile stays as they left it
_TRIP = text(
    """
    INSERT INTO endpoints AS e (base_url, failures, open_until, error)
    VALUES (:url, 1, now() + make_interval(secs => :open_s), :error)
    ON CONFLICT (base_url) DO UPDATE SET failures = 1, open_until = excluded.open_until, error = excluded.error
    WHERE e.open_until IS NULL
    """
)
# open -> open, after a probe that failed
_DOUBLE = text(
    """
    UPDATE endpoints SET failures = failures + 1, error = :error,
        open_until = now() + make_interval(secs => least(:most_s, :first_s * power(2, least(failures, 30))))
    WHERE base_url = :url AND open_until IS NOT NULL
    """
)
# open -> open, and the caller is the one that probes
_CLAIM = text(
    """
    UPDATE endpoints SET open_until = now() + make_interval(secs => :probe_s)
    WHERE base_url = :url AND open_until <= now() RETURNING base_url
    """
)
_CLOSE = text("UPDATE endpoints SET failures = 0, open_until = NULL, error = '' WHERE base_url = :url")


class Breaker:
    """Closed (calls go through) or open (they do not). All times are this process's monotonic clock, in seconds."""

    def __init__(self, url: str, shared: SharedState | None) -> None:
        self.url, self._shared = url, shared
        self.error = ""
        self._open_until: float | None = None
        self._openings = 0
        self._failures = 0
        self._failing_since = self._counted_at = 0.0
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._claiming = False

    @property
    def is_open(self) -> bool:
        return self._open_until is not None

    @property
    def remaining_s(self) -> float:
        return max(0.0, (self._open_until or 0.0) - time.monotonic())

    async def refresh(self) -> None:
        """Learns what other processes found out, at most once a second, and waits a second for it at most."""
        if self._shared is None or time.monotonic() - self._read_at < READ_EVERY_S:
            return
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait({self._reading}, timeout=READ_PATIENCE_S)

    async def stop(self) -> None:
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def claim_probe(self) -> bool:
        """Whether the caller is the one that may try the server now; `probe_succeeded` or `open` has to follow."""
        if self._open_until is None or self._claiming or time.monotonic() < self._open_until:
            return False
        if self._shared is None:
            self._open_until = time.monotonic() + PROBE_S
            return True
        self._claiming = True
        try:
            won = await self._write(_CLAIM, probe_s=PROBE_S) is not None
            await self._read()
        finally:
            self._claiming = False
        return won

    def succeeded(self) -> None:
        self._failures = 0

    async def probe_succeeded(self) -> None:
        """open -> closed, for everybody."""
        if self._open_until is not None:
            self._close()
        await self._write(_CLOSE)

    def failed(self, sent_at: float, streak_s: float) -> bool:
        """A call failed; whether enough have in a row to think that the server is away.

        Calls in flight together that fail together count as one. And errors come faster than answers: five in a row
        tell nothing until calls from before the first of them could have been answered, within `streak_s`.
        """
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        if not self._failures or sent_at >= self._counted_at:
            self._failures, self._counted_at = self._failures + 1, now
        return self._failures >= FAILURES and now - self._failing_since >= streak_s

    async def open(self, error: str, *, probing: bool = False) -> None:
        """closed -> open, or open for longer, after a probe that failed."""
        if self.is_open and not probing:
            return
        self._openings += 1
        open_s = min(MOST_S, FIRST_S * 2 ** (min(self._openings, 30) - 1))
        self._open(open_s, error)
        if probing:
            await self._write(_DOUBLE, first_s=FIRST_S, most_s=MOST_S, error=error)
        else:
            await self._write(_TRIP, open_s=FIRST_S, error=error)
        if self._shared is not None:
            await self._read()

    def _open(self, open_s: float, error: str) -> None:
        if self._open_until is None:
            log.warning("LLM endpoint is down: no calls until it answers again", endpoint=self.url, error=error)
        self._open_until, self.error = time.monotonic() + open_s, error

    def _close(self) -> None:
        log.warning("LLM endpoint answers again", endpoint=self.url)
        self._open_until, self.error, self._openings, self._failures = None, "", 0, 0

    async def _read(self) -> None:
        if self._shared is None:
            return
        try:
            row = await self._shared.execute(_READ, url=self.url)
        except SQLAlchemyError as error:
            log.warning("circuit breaker not read", endpoint=self.url, error_type=type(error).__name__)
            return
        finally:
            self._reading, self._read_at = None, time.monotonic()
        if row is not None and row["open_s"] is not None:
            self._openings = row["failures"]
            self._open(row["open_s"], row["error"])
        elif self._open_until is not None:
            self._close()

    async def _write(self, statement: TextClause, **values: object) -> RowMapping | None:
        if self._shared is None:
            return None
        try:
            return await self._shared.execute(statement, url=self.url, **values)
        except SQLAlchemyError as error:
            log.warning("circuit breaker not written", endpoint=self.url, error_type=type(error).__name__)
            return None
