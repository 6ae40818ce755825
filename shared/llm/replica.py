"""One LLM server as this process sees it: how many calls it bears and has in hand, how long it takes, whether it rests.

It sends one request and says what came of it; which server a call goes to and what follows from a failure is the
transport's to decide.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from math import exp

import aiohttp
import orjson
from yarl import URL

from shared.llm import AnswerError
from shared.llm.answers import read_completion
from shared.llm.breaker import Breaker
from shared.llm.pressure import Limit
from shared.llm.quota import Quota
from shared.llm.shared_state import SharedState
from shared.settings import LLMSettings

BUSY = frozenset({429, 503})
SMALLEST_CALL_S = 60.0
MOST_ANSWER_BYTES = 64 * 2**20
ASK_QUEUE_EVERY_S = 2.0
ASK_AGAIN_AFTER_S = 60.0
FIRST_LATENCY_S = 0.5
MOST_EXPECTED_S = 10.0
FAILED_LATENCY_S = 1.0
FORGET_S = 30.0
SMOOTHING = 0.2

_WAITING = re.compile(rb"^vllm:num_requests_waiting(?:\{.*\})? ([0-9.eE+]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    retry_after: str | None
    latency_s: float


class AnswerTooLongError(ValueError):
    """The answer is longer than any that was asked for."""


class Replica:
    def __init__(self, base_url: str, settings: LLMSettings, shared: SharedState | None) -> None:
        address = URL(base_url)
        self.base_url = base_url
        self.name = str(address.with_user(None))  # for errors, logs and the table: a password may stand in the address
        self.limit = Limit(settings.max_parallel_requests)
        self.breaker = Breaker(self.name, shared)
        self.quota = Quota(self.name, settings.max_requests_per_minute, settings.max_tokens_per_minute, shared)
        self.calls = 0  # that hold a place
        self.prompts = 0  # in these calls
        self.sent = 0  # of these calls, those that the server has
        self.paused_until = 0.0
        self.waiting: float | None = None  # inside the server, by its own count; None where it does not say
        self._busy_rounds = 0
        self._latency_s, self._latency_at = FIRST_LATENCY_S, 0.0
        self._failed_at = self.answered_at = float("-inf")
        self._urls: dict[tuple[str, bool], URL] = {}
        self._root = base_url.removesuffix("/v1")
        self._smallest_call = orjson.dumps(
            {"prompt": "a", "max_tokens": 1, "temperature": 0} | ({"model": settings.model} if settings.model else {})
        )
        self._watcher: asyncio.Task[None] | None = None
        self._ask_again_at = 0.0

    def url(self, path: str, *, root: bool) -> URL:
        url = self._urls.get((path, root))
        if url is None:
            url = self._urls[path, root] = URL((self._root if root else self.base_url) + path)
        return url

    def has_place(self, now: float) -> bool:
        return self.calls < self.limit.value and now >= self.paused_until and not self.breaker.is_open

    def cost(self, now: float) -> float:
        """What one more prompt would have to wait, roughly: the load times the latency, which fades while unused."""
        answering_s = self._latency_s * (1.0 if self.sent else exp((self._latency_at - now) / FORGET_S))
        # one that fails at once must not look like one that answers at once
        failing_s = FAILED_LATENCY_S * exp((self._failed_at - now) / FORGET_S)
        return (self.prompts + 1) * max(answering_s, failing_s, 1e-3)

    @property
    def answer_expected_s(self) -> float:
        """In what time a call in flight should have been answered; 0 where there is none."""
        return min(2 * self._latency_s, MOST_EXPECTED_S) if self.sent else 0.0

    def answered(self, kind: Hashable, latency_s: float, now: float) -> None:
        self._busy_rounds, self._failed_at = 0, float("-inf")
        self._latency_s += (latency_s - self._latency_s) * SMOOTHING
        self._latency_at = self.answered_at = now
        self.limit.answered(kind, latency_s, self.sent, now)

    def failed(self, now: float) -> None:
        self._failed_at = now

    def refused(self, sent_at: float, now: float) -> int:
        """How many round trips in a row have brought refusals and no answer."""
        if self.limit.refused(sent_at, now):
            self._busy_rounds += 1
        return self._busy_rounds

    async def send(self, session: aiohttp.ClientSession, path: str, body: bytes, *, root: bool) -> Answer:
        """One request and its whole answer, whatever its status. Raises aiohttp.ClientError, OSError, TimeoutError or
        AnswerTooLongError.
        """
        return await _whole(session.post(self.url(path, root=root), data=body, allow_redirects=False))

    async def get(self, session: aiohttp.ClientSession, path: str, *, root: bool, timeout_s: float) -> Answer:
        """Like `send`, without a body."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        return await _whole(session.get(self.url(path, root=root), timeout=timeout, allow_redirects=False))

    async def trouble(self, session: aiohttp.ClientSession) -> str | None:
        """What is wrong with the server; None where it answers the smallest call, or is only busy."""
        try:
            async with asyncio.timeout(SMALLEST_CALL_S):
                answer = await self.send(session, "/completions", self._smallest_call, root=False)
                if answer.status == 200:
                    read_completion(answer.body)
                    self.answered_at = time.monotonic()
        except TimeoutError:
            return f"no whole answer within {SMALLEST_CALL_S:g} s"
        except (aiohttp.ClientError, OSError, AnswerError, AnswerTooLongError) as error:
            return str(error) or type(error).__name__
        return None if answer.status == 200 or answer.status in BUSY else f"status {answer.status}"

    def watch_queue(self, session: aiohttp.ClientSession) -> None:
        """Asks a vLLM server every two seconds how many requests wait in it, for as long as calls are in flight."""
        if self._watcher is None and time.monotonic() >= self._ask_again_at:
            self._watcher = asyncio.create_task(self._watch_queue(session))

    async def stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        await self.breaker.stop()

    async def _watch_queue(self, session: aiohttp.ClientSession) -> None:
        try:
            while True:
                await asyncio.sleep(ASK_QUEUE_EVERY_S)
                if not self.sent:
                    return
                self.waiting = waiting = await self._ask_queue(session)
                if waiting is None:
                    self._ask_again_at = time.monotonic() + ASK_AGAIN_AFTER_S
                    return
                self.limit.queued(waiting, time.monotonic())
        finally:
            self.waiting = None
            self.limit.queued(0, time.monotonic())
            self._watcher = None

    async def _ask_queue(self, session: aiohttp.ClientSession) -> float | None:
        """None where the server does not say."""
        try:
            answer = await self.get(session, "/metrics", root=True, timeout_s=ASK_QUEUE_EVERY_S)
        except (aiohttp.ClientError, OSError, TimeoutError, AnswerTooLongError):
            return None
        return waiting_requests(answer.body) if answer.status == 200 else None


async def _whole(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> Answer:
    sent_at = time.monotonic()
    async with request as response:
        chunks, size = [], 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > MOST_ANSWER_BYTES:
                raise AnswerTooLongError(f"an answer of more than {MOST_ANSWER_BYTES // 2**20} MiB")
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return Answer(response.status, body, response.headers.get("Retry-After"), time.monotonic() - sent_at)


def waiting_requests(metrics: bytes) -> float | None:
    """The sum of vLLM's gauge over its label sets (engines, models); None where there is none."""
    found = _WAITING.findall(metrics)
    return sum(map(float, found)) if found else None
