"""Sends requests to the LLM servers and brings back their answers, however the servers behave.

A call waits for a place at the least loaded server that answers, is sent, and is tried again where that may help:

    no connection, reset, timeout, 5xx, no answer in the body   `max_retries` times; counts towards the breaker
    429, 503                                                    for ten minutes; lowers the limit, honours Retry-After
    400, 413, 422                                               never: PromptRefusedError; of its kinds NotFiniteError
    401, 403, 404 and whatever else is no answer                at another server; opens the breaker at once

Everything here runs on one event loop. This room knows no field of a request or an answer (the caller's decoder does),
and neither a prompt nor a key ever stands in its errors and logs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from shared.llm import AnswerError, CallFailedError, EndpointError, NotFiniteError, PromptRefusedError
from shared.llm.places import Places
from shared.llm.refusal import NOT_FINITE, message, retry_after_s, without_secrets
from shared.llm.replica import BUSY, Answer, AnswerTooLongError, Replica
from shared.llm.shared_state import SharedState
from shared.metrics import LLM_CALL_SECONDS
from shared.settings import LLMSettings

T = TypeVar("T")

PATIENCE_S = 600.0
FIRST_BACK_OFF_S = 0.25
MOST_BACK_OFF_S = 30.0
MOST_REST_S = 10.0  # of a whole server that asks for no longer one
CONNECT_S = 10.0
KEEP_ALIVE_S = 4.0  # below the 5 s after which vLLM's server hangs up: a call must not meet a connection that closes
GET_S = 30.0

PROMPT_REFUSED = frozenset({400, 413, 422})


class NoSuchRouteError(EndpointError):
    """The server has none of vLLM's own routes under this name."""


class _BusyError(Exception):
    pass


class _FailedError(Exception):
    pass


class _RefusesAllError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Call:
    """`lane`: the calls that its latency is judged among. A call beside the model has none, and no prompts."""

    path: str
    body: bytes
    lane: tuple[str, int] | None
    prompts: int


class Transport:
    """The calls of one process to its LLM servers. `shared` is None where there is no database: the breaker and the
    caps are then the process's own.
    """

    def __init__(self, settings: LLMSettings, shared: SharedState | None) -> None:
        self._settings = settings
        self._replicas = [Replica(base_url, settings, shared) for base_url in settings.base_urls]
        self._key = settings.api_key.get_secret_value() if settings.api_key else None
        passwords = (URL(base_url).password for base_url in settings.base_urls)
        self._secrets = [secret for secret in (self._key, *passwords) if secret]
        self._places = Places(self._replicas, self._probe)
        self._examinations: dict[Replica, asyncio.Task[None]] = {}
        # tokenising is no work for the model: it takes no place, but must not open sockets without end
        self._beside = asyncio.Semaphore(settings.max_parallel_requests)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        kind: str,
        decoder: Callable[[bytes], T],
        weight: int = 1,
        tokens_of: Callable[[T], int] | None = None,
        root: bool = False,
    ) -> T:
        """Sends `body` (JSON) to `path` under a server's address and returns what `decoder` makes of the answer.

        `kind` names calls that take about as long as each other, `weight` is how many prompts this one holds,
        `tokens_of` what its answer counts against the cap on tokens. `root=True` is for vLLM's own routes, which lie
        beside /v1 and cost the model nothing: they count against no cap and no limit.

        Raises EndpointError; of its kinds CallFailedError where meanwhile other calls were answered, EndpointDownError
        without trying, NoSuchRouteError with `root`. Raises PromptRefusedError.
        """
        if not root:
            call = _Call(path, body, (kind, len(body).bit_length() // 2), weight)
            return await self._persist(call, decoder, tokens_of)
        async with self._beside:
            return await self._persist(_Call(path, body, None, 0), decoder, None)

    async def get(self, path: str) -> bytes:
        """The first server's answer, or another's where that gives none. Raises EndpointError."""
        for replica in self._replicas[:-1]:
            try:
                return await self._get(replica, path)
            except EndpointError:
                continue
        return await self._get(self._replicas[-1], path)

    def loads(self) -> list[dict[str, Any]]:
        """What each server has in hand of this process, as `workers.llm` keeps it. From any thread."""
        return [
            {
                "endpoint": replica.name,
                "in_flight": replica.sent,
                "limit": replica.limit.value,
                "waiting": replica.waiting,
                "is_open": replica.breaker.is_open,
                "error": without_secrets(replica.breaker.error, self._secrets),
            }
            for replica in self._replicas
        ]

    async def aclose(self) -> None:
        await self._places.stop()
        for task in [*self._examinations.values()]:
            task.cancel()
            await asyncio.wait({task})
        for replica in self._replicas:
            await replica.stop()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _persist(self, call: _Call, decoder: Callable[[bytes], T], tokens_of: Callable[[T], int] | None) -> T:
        started_at = time.monotonic()
        give_up_at = started_at + PATIENCE_S
        failures = busy = 0
        avoid: Replica | None = None
        while True:
            place = await self._places.take(call.prompts, avoid)
            replica, sent_at = place.replica, time.monotonic()
            try:
                value = await self._try(replica, call, decoder, tokens_of)
            except (_FailedError, _RefusesAllError) as error:
                for_all = isinstance(error, _RefusesAllError)
                avoid, failures = replica, failures + (not for_all)
                giving_up = failures > self._settings.max_retries or time.monotonic() > give_up_at
                in_a_row = replica.breaker.failed(sent_at, replica.answer_expected_s)
                if for_all:
                    await replica.breaker.open(str(error))
                elif in_a_row or (giving_up and not self._has_answered_since(started_at)):
                    await self._examine(replica, str(error))
                if giving_up:
                    said = f"{replica.name}: {error} (tried {failures} times)"
                    answers_others = self._has_answered_since(started_at)
                    raise (CallFailedError(said) if answers_others else EndpointError(said)) from None
                back_off_s = 0.0 if for_all else _jittered(failures)
            except _BusyError as error:
                replica.breaker.succeeded()
                busy += 1
                back_off_s = _jittered(busy)
                if time.monotonic() + back_off_s > give_up_at:
                    raise EndpointError(
                        f"{replica.name} was too busy ({error}) for {PATIENCE_S:.0f} s, {busy} times in all: lower "
                        "FRETWORK_LLM__MAX_REQUESTS_PER_MINUTE or FRETWORK_LLM__MAX_PARALLEL_REQUESTS"
                    ) from None
            except (PromptRefusedError, NoSuchRouteError):
                replica.breaker.succeeded()
                raise
            else:
                replica.breaker.succeeded()
                return value
            finally:
                self._places.give_back(place)
            if back_off_s:
                await asyncio.sleep(back_off_s)

    def _has_answered_since(self, time_s: float) -> bool:
        return any(replica.answered_at > time_s for replica in self._replicas)

    async def _examine(self, replica: Replica, error: str) -> None:
        """Opens the breaker, unless the server answers the smallest call: then it may be about what it was asked."""
        if replica not in self._examinations:
            self._examinations[replica] = asyncio.create_task(self._open_if_in_trouble(replica, error))
        # whoever waits may be cancelled, by another call of its shard
        await asyncio.wait({self._examinations[replica]})

    async def _open_if_in_trouble(self, replica: Replica, error: str) -> None:
        try:
            if await replica.trouble(self._open_session()) is None:
                replica.breaker.succeeded()
            else:
                await replica.breaker.open(error)
        finally:
            del self._examinations[replica]

    async def _probe(self, replica: Replica) -> None:
        """Asks a server that was away once more, if no other process does, and tells all of them what became of it."""
        if not await replica.breaker.claim_probe():
            return
        trouble = await replica.trouble(self._open_session())
        if trouble is None:
            await replica.breaker.probe_succeeded()
        else:
            await replica.breaker.open(without_secrets(trouble, self._secrets), probing=True)

    async def _try(
        self, replica: Replica, call: _Call, decoder: Callable[[bytes], T], tokens_of: Callable[[T], int] | None
    ) -> T:
        session = self._open_session()
        reserved = 0.0
        if call.lane is not None:
            replica.watch_queue(session)
            if replica.quota.is_capped:
                reserved = await replica.quota.admit(len(call.body))
            replica.sent += 1
        sent_at, status = time.monotonic(), "error"
        try:
            answer = await replica.send(session, call.path, call.body, root=call.lane is None)
            status = str(answer.status)
            if answer.status != 200:
                raise self._not_answered(replica, answer, call.body, sent_at, root=call.lane is None)
            value = decoder(answer.body)
            if call.lane is not None:
                replica.answered(call.lane, answer.latency_s, time.monotonic())
        except TimeoutError:
            now, status = time.monotonic(), "timeout"
            replica.refused(sent_at, now)
            replica.failed(now)
            raise _FailedError(f"no whole answer within {self._settings.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, AnswerError, AnswerTooLongError) as error:
            replica.failed(time.monotonic())
            raise _FailedError(self._said(error)) from None
        finally:
            if call.lane is not None:
                replica.sent -= 1
                LLM_CALL_SECONDS.labels(replica.name, call.lane[0], status).observe(time.monotonic() - sent_at)
        if tokens_of is not None and replica.quota.is_capped:
            replica.quota.charge(tokens_of(value), reserved, len(call.body))
        return value

    def _not_answered(self, replica: Replica, answer: Answer, body: bytes, sent_at: float, *, root: bool) -> Exception:
        status = answer.status
        if status in BUSY:
            self._rest(replica, answer, sent_at)
            return _BusyError(f"status {status}")
        if status >= 500 or status == 408:
            replica.failed(time.monotonic())
            return _FailedError(f"status {status}")
        words = message(answer.body, body, self._secrets)
        if status in PROMPT_REFUSED:
            kind = NotFiniteError if NOT_FINITE in answer.body else PromptRefusedError
            return kind(f"the LLM endpoint refuses the prompt (status {status}): {words}")
        if root and status in (404, 405):
            return NoSuchRouteError(f"{replica.name} answers {status}: {words}")
        return _RefusesAllError(_what_to_set(status, words))

    def _rest(self, replica: Replica, answer: Answer, sent_at: float) -> None:
        """Sends nothing for as long as the server asks for; for a moment where it answers nobody and asks for none."""
        now = time.monotonic()
        rounds = replica.refused(sent_at, now)
        pause_s = retry_after_s(answer.retry_after)
        if pause_s is None and rounds > 1:
            pause_s = min(MOST_REST_S, _jittered(rounds - 1))
        if pause_s:
            replica.paused_until = max(replica.paused_until, now + pause_s)
            # a loop's timer may fire a clock tick too early, and nobody would ring again
            asyncio.get_running_loop().call_at(replica.paused_until + 0.001, self._places.hand_out)

    async def _get(self, replica: Replica, path: str) -> bytes:
        timeout_s = min(GET_S, self._settings.timeout_s)
        try:
            answer = await replica.get(self._open_session(), path, root=False, timeout_s=timeout_s)
        except TimeoutError:
            raise EndpointError(f"{replica.name} does not answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, AnswerTooLongError) as error:
            raise EndpointError(f"{replica.name} does not answer: {self._said(error)}") from None
        if answer.status != 200:
            words = _what_to_set(answer.status, message(answer.body, b"{}", self._secrets))
            raise EndpointError(f"{replica.name}: {words}")
        return answer.body

    def _said(self, error: Exception) -> str:
        return without_secrets(str(error) or type(error).__name__, self._secrets)[:200]

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s, sock_connect=CONNECT_S),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _jittered(times: int) -> float:
    """Full jitter: anything up to 0.25 s, doubled each time, 30 s at most."""
    return random.uniform(0, min(MOST_BACK_OFF_S, FIRST_BACK_OFF_S * 2**times))  # noqa: S311 - no secret


def _what_to_set(status: int, words: str) -> str:
    said = f"status {status}" + (f" ({words})" if words else "")
    if status in (401, 403):
        return f"{said}: set FRETWORK_LLM__API_KEY to a key that the server takes"
    if status == 404:
        return (
            f"{said}: set FRETWORK_LLM__MODEL to a model that it serves, or FRETWORK_LLM__BASE_URL to its /v1 address"
        )
    return f"{said}: no answer of an OpenAI-compatible server, set FRETWORK_LLM__BASE_URL to its /v1 address"
