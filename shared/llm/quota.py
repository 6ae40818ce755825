"""Requests per minute and tokens per minute at one LLM server, over all processes, by the generic cell rate algorithm.

The server's row in `endpoints` holds for each cap the time up to which it is reserved. One statement reserves for as
many callers as wait, up to about a second's worth. A call's tokens are estimated by its body's size and corrected after
its answer, with the next reservation: in debt, the next call waits. Where no cap is set nothing here runs.

A request is one HTTP request, as gateways count them, whether it holds one prompt or a list.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from sqlalchemy import text

from shared.llm.shared_state import SharedState

FIRST_TOKENS_PER_BYTE = 0.3
SMOOTHING = 0.1

_RESERVE = text(
    """
    INSERT INTO endpoints AS e (base_url, requests_tat, tokens_tat)
    VALUES (:url, now() + make_interval(secs => :requests_s), now() + make_interval(secs => :tokens_s))
    ON CONFLICT (base_url) DO UPDATE SET
        requests_tat = greatest(e.requests_tat, now()) + make_interval(secs => :requests_s),
        tokens_tat = greatest(e.tokens_tat, now()) + make_interval(secs => :tokens_s)
    RETURNING extract(epoch FROM requests_tat - now())::float AS requests_s,
        extract(epoch FROM tokens_tat - now())::float AS tokens_s
    """
)


class Quota:
    """What one process takes of the caps. `None` is no cap."""

    def __init__(
        self, url: str, requests_per_minute: int | None, tokens_per_minute: int | None, shared: SharedState | None
    ) -> None:
        self._url, self._shared = url, shared
        self._s_per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._s_per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._tokens_per_byte = FIRST_TOKENS_PER_BYTE
        self._correction = 0.0  # tokens
        self._waiting: deque[float] = deque()  # tokens that each is going to take
        self._granted, self._ready_at = 0, 0.0
        self._turn = asyncio.Lock()
        self._own_tat = [float("-inf"), float("-inf")]  # requests, tokens: without a database

    @property
    def is_capped(self) -> bool:
        return bool(self._s_per_request or self._s_per_token)

    async def admit(self, body_bytes: int) -> float:
        """Waits until one more request fits under the caps; returns the tokens that were reserved for it.

        Raises SQLAlchemyError where the database does not answer: an unknown cap is not to be broken.
        """
        estimate = body_bytes * self._tokens_per_byte
        self._waiting.append(estimate)
        try:
            await self._turn.acquire()
        except asyncio.CancelledError:
            with suppress(ValueError):  # or it is in a block already, whose next caller has its place
                self._waiting.remove(estimate)
            raise
        try:
            if not self._granted:
                count, tokens = self._block()
                wait_s = await self._reserve(count, tokens)
                self._granted, self._ready_at = count, time.monotonic() + wait_s
            # whoever is cancelled here leaves the block to the next, which waits for the same moment
            await asyncio.sleep(self._ready_at - time.monotonic())
            self._granted -= 1
        finally:
            self._turn.release()
        return estimate

    def charge(self, tokens: int, estimate: float, body_bytes: int) -> None:
        """Corrects what was reserved for an answered call to what it took."""
        self._correction += tokens - estimate
        self._tokens_per_byte += (tokens / max(1, body_bytes) - self._tokens_per_byte) * SMOOTHING

    def _block(self) -> tuple[int, float]:
        """The callers to reserve for, at least one and at most about a second's worth, and their tokens."""
        count, tokens = 0, 0.0
        while self._waiting:
            next_tokens = tokens + self._waiting[0]
            if count and ((count + 1) * self._s_per_request > 1 or next_tokens * self._s_per_token > 1):
                break
            self._waiting.popleft()
            count, tokens = count + 1, next_tokens
        return max(1, count), tokens

    async def _reserve(self, count: int, tokens: float) -> float:
        """How long to wait before the block may be used, in seconds."""
        correction, self._correction = self._correction, 0.0
        requests_s, tokens_s = count * self._s_per_request, (tokens + correction) * self._s_per_token
        if self._shared is None:
            now = time.monotonic()
            self._own_tat = [max(self._own_tat[0], now) + requests_s, max(self._own_tat[1], now) + tokens_s]
            reserved_s = [tat - now for tat in self._own_tat]
        else:
            row = await self._shared.execute(_RESERVE, url=self._url, requests_s=requests_s, tokens_s=tokens_s)
            assert row is not None  # noqa: S101 - an upsert always returns its row
            reserved_s = [row["requests_s"], row["tokens_s"]]
        return max(0.0, reserved_s[0] - requests_s, reserved_s[1] - tokens * self._s_per_token)
