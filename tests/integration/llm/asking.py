"""Calls through the transport, as the tests make them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import orjson
from aiohttp import web
from sqlalchemy import Engine

from shared.llm import AnswerError, breaker
from shared.llm.loop import on_loop
from shared.llm.shared_state import SharedState
from shared.llm.transport import Transport
from shared.settings import LLMSettings
from tests.llm_stub import StubLLM

T = TypeVar("T")

TRIPS = breaker.FAILURES + 1  # calls until the breaker opens: the last one is the smallest, which tells who is at fault

PROMPT = "Once upon a time there was a passage that nobody may read in a log"
KEY = "sk-very-secret-1234"


def settings(*stubs: StubLLM | str, **fields: Any) -> LLMSettings:
    urls = [stub if isinstance(stub, str) else stub.base_url for stub in stubs]
    return LLMSettings(base_url=",".join(urls), **{"timeout_s": 10.0, **fields})


def text_of(answer: bytes) -> str:
    try:
        return str(orjson.loads(answer)["choices"][0]["text"])
    except (orjson.JSONDecodeError, KeyError) as error:
        raise AnswerError("no completion in the answer") from error


async def ask(sender: Transport, number: int = 0, prompt: str = PROMPT, **fields: Any) -> str:
    body = orjson.dumps({"prompt": f"{prompt} {number}", "max_tokens": 100, "seed": number})
    return await sender.post("/completions", body, kind="complete", decoder=text_of, **fields)


async def ask_all(sender: Transport, count: int) -> list[str]:
    return await asyncio.gather(*(ask(sender, number) for number in range(count)))


def run(wish: LLMSettings, work: Callable[[Transport], Coroutine[Any, Any, T]], shared: SharedState | None = None) -> T:
    async def all_of_it() -> T:
        async with aclosing(Transport(wish, shared)) as sender:
            return await work(sender)

    return on_loop(all_of_it())


def state_of(each: Engine) -> SharedState:
    return SharedState(lambda: each)


@asynccontextmanager
async def server(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


def both(
    wishes: Sequence[LLMSettings],
    engines: Sequence[Engine],
    work: Callable[[Transport, Transport], Coroutine[Any, Any, T]],
) -> T:
    """Two transports that know of each other only through the database."""

    async def all_of_it() -> T:
        first, second = (Transport(wish, state_of(each)) for wish, each in zip(wishes, engines, strict=True))
        async with aclosing(first), aclosing(second):
            return await work(first, second)

    return on_loop(all_of_it())
