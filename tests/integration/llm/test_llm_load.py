"""How many calls are in flight, which of several servers they go to, and what a cap a minute lets through."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing

import pytest
from aiohttp import web
from sqlalchemy import Engine, text

from shared.llm import replica
from shared.llm.loop import on_loop
from shared.llm.transport import Transport
from tests.integration.llm.asking import ask, ask_all, both, run, server, settings, state_of
from tests.llm_stub import StubLLM


def test_sixty_four_are_in_flight_soon(stub: StubLLM) -> None:
    stub.latency_s = 0.05
    run(settings(stub), lambda sender: ask_all(sender, 400))
    assert stub.most_running == 64


def test_a_growing_queue_in_the_server_lowers_the_limit(stub: StubLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "ASK_QUEUE_EVERY_S", 0.05)

    async def work(sender: Transport) -> int:
        calls = [asyncio.create_task(ask(sender, number)) for number in range(30)]
        for waiting in range(1, 5):
            stub.waiting = waiting
            await asyncio.sleep(0.06)
        lowered = sender._replicas[0].limit.value
        stub.waiting = 0
        await asyncio.gather(*calls)
        return lowered

    stub.latency_s = 0.3
    assert run(settings(stub), work) < 12


def test_a_server_without_metrics_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "ASK_QUEUE_EVERY_S", 0.02)
    asked = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/metrics":
            return web.Response(status=404)
        await asyncio.sleep(0.1)
        return web.json_response({"choices": [{"text": "yes"}]})

    async def work() -> None:
        async with server(handle) as url, aclosing(Transport(settings(url), None)) as sender:
            for number in range(4):
                assert await ask(sender, number) == "yes"

    on_loop(work())
    assert asked.count("/metrics") == 1
    assert asked.count("/v1/completions") == 4


def test_a_slow_one_of_three_gets_clearly_fewer_calls() -> None:
    with StubLLM(latency_s=0.02) as one, StubLLM(latency_s=0.4) as slow, StubLLM(latency_s=0.02) as two:
        run(settings(one, slow, two, max_parallel_requests=8), lambda sender: ask_all(sender, 400))
        counts = [len(each.seen) for each in (one, slow, two)]
    assert sum(counts) == 400
    assert counts[1] < min(counts[0], counts[2]) / 5
    assert min(counts[0], counts[2]) > 0.7 * max(counts[0], counts[2])


@pytest.mark.usefixtures("hasty")
def test_one_of_three_that_is_down_is_done_without() -> None:
    with StubLLM(latency_s=0.01) as one, StubLLM() as down, StubLLM(latency_s=0.01) as two:
        down.go_away()
        answers = run(settings(one, down, two), lambda sender: ask_all(sender, 200))
        assert len(answers) == len(one.answered_at) + len(two.answered_at) == 200


@pytest.mark.usefixtures("hasty")
def test_one_of_three_that_comes_back_is_used_again() -> None:
    with StubLLM(latency_s=0.01) as one, StubLLM(latency_s=0.01) as back:
        back.go_away()

        async def work(sender: Transport) -> None:
            await ask_all(sender, 50)
            await asyncio.to_thread(back.come_back)
            until = time.monotonic() + 10
            while len(back.answered_at) < 10 and time.monotonic() < until:
                await ask_all(sender, 50)

        run(settings(one, back), work)
        assert len(back.answered_at) >= 10


def test_requests_per_minute_hold_over_two_processes(stub: StubLLM, engines: list[Engine]) -> None:
    async def work(first: Transport, second: Transport) -> None:
        await asyncio.gather(ask_all(first, 25), ask_all(second, 25))

    both([settings(stub, max_requests_per_minute=1200)] * 2, engines, work)  # 20 a second
    at = sorted(seen.at for seen in stub.seen)
    assert len(at) == 50
    # in any stretch of time what the cap gives, a second's worth reserved ahead, and a little for a late process
    for start, end in itertools.combinations(range(50), 2):
        assert end - start < 20 * (at[end] - at[start]) + 20 + 5
    assert 1.3 < at[-1] - at[0] < 5


@pytest.mark.parametrize("with_database", [True, False])
def test_tokens_per_minute_are_paid_back(stub: StubLLM, engines: list[Engine], with_database: bool) -> None:
    """30 calls of 100 tokens at 100 tokens in 50 ms; the first have only an estimate to go by."""

    async def work(sender: Transport) -> float:
        began = time.monotonic()
        for number in range(30):
            await ask(sender, number, tokens_of=lambda _: 100)
        return time.monotonic() - began

    shared = state_of(engines[0]) if with_database else None
    assert 1.2 < run(settings(stub, max_tokens_per_minute=120_000), work, shared) < 3


def test_no_cap_no_row(stub: StubLLM, engines: list[Engine]) -> None:
    run(settings(stub), lambda sender: ask_all(sender, 20), state_of(engines[0]))
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM endpoints")).scalar_one() == 0
