"""A server that is down: what a process does without it, and what processes tell each other, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
import structlog
from sqlalchemy import Engine, text

from shared.llm import EndpointDownError, EndpointError, breaker
from shared.llm.together import together
from shared.llm.transport import Transport
from tests.integration.llm.asking import TRIPS, ask, both, run, settings, state_of
from tests.llm_stub import Fault, StubLLM


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("status", "setting"), [(401, "FRETWORK_LLM__API_KEY"), (404, "FRETWORK_LLM__MODEL")])
def test_a_server_that_refuses_everybody_is_taken_for_down_at_once(stub: StubLLM, status: int, setting: str) -> None:
    stub.fault = lambda path, body, number: Fault(status=status)

    async def work(sender: Transport) -> None:
        for _ in range(5):
            with pytest.raises(EndpointDownError, match=setting):
                await ask(sender)

    run(settings(stub), work)
    assert len(stub.seen) == 1


@pytest.mark.usefixtures("hasty")
def test_a_long_outage_costs_few_requests_and_ends_by_itself(stub: StubLLM) -> None:
    stub.fault = lambda path, body, number: Fault(status=500)

    async def work(sender: Transport) -> list[BaseException | str]:
        until, errors = time.monotonic() + 3.0, []
        while time.monotonic() < until:
            errors += await asyncio.gather(*(ask(sender, number) for number in range(8)), return_exceptions=True)
            await asyncio.sleep(0.02)
        assert all(isinstance(each, EndpointError) for each in errors)
        assert sum(isinstance(each, EndpointDownError) for each in errors) > 500
        # until five failed in a row, and one whenever an opening ran out: 0.25, 0.5, 1, 1 s
        assert len(stub.seen) <= 8 * 5 + 6
        stub.fault = None
        while True:
            try:
                return [await ask(sender)]
            except EndpointDownError:
                await asyncio.sleep(0.05)

    assert run(settings(stub), work)


@pytest.mark.usefixtures("hasty")
def test_calls_that_wait_for_a_place_are_told_when_the_server_goes_down(stub: StubLLM) -> None:
    stub.latency_s = 0.2

    async def work(sender: Transport) -> Sequence[BaseException | str]:
        calls = [asyncio.create_task(ask(sender, number)) for number in range(200)]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(stub.go_away)
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = run(settings(stub, max_parallel_requests=16), work)
    assert len(ended) == 200
    assert sum(isinstance(each, EndpointDownError) for each in ended) > 150
    assert all(isinstance(each, EndpointError | str) for each in ended)


@pytest.fixture
def unhurried(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first opening outlasts what a busy machine needs for the assertions that rely on it."""
    monkeypatch.setattr(breaker, "FIRST_S", 2.0)


@pytest.mark.usefixtures("unhurried")
def test_what_one_process_finds_down_another_does_not_ask(stub: StubLLM, engines: list[Engine]) -> None:
    stub.fault = lambda path, body, number: Fault(status=500)

    async def work(first: Transport, second: Transport) -> None:
        with pytest.raises(EndpointError):
            await ask(first)
        tried = len(stub.seen)
        assert tried == TRIPS
        with pytest.raises(EndpointDownError, match="status 500"):
            await ask(second)
        assert len(stub.seen) == tried

    both([settings(stub, max_retries=breaker.FAILURES - 1)] * 2, engines, work)
    with engines[0].connect() as connection:
        row = connection.execute(text("SELECT base_url, failures, error, open_until FROM endpoints")).one()
    assert row[:3] == (stub.base_url, 1, "status 500")
    assert row[3] is not None


@pytest.mark.usefixtures("unhurried")
def test_one_process_of_all_probes_and_its_success_is_everybodys(stub: StubLLM, engines: list[Engine]) -> None:
    stub.fault = lambda path, body, number: Fault(status=500) if number < TRIPS else Fault(delay_s=1.0)

    async def work(first: Transport, second: Transport) -> None:
        for sender in (first, second):
            with pytest.raises(EndpointError):
                await ask(sender)
        await asyncio.sleep(2.1)  # until it may be probed
        calls = [asyncio.create_task(ask(sender, number)) for number in range(5) for sender in (first, second)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        # one probe; the calls of the process that made it waited for its end, the other's were not sent
        assert sum(isinstance(each, str) for each in ended) == 5
        assert sum(isinstance(each, EndpointDownError) for each in ended) == 5
        assert len(stub.seen) == TRIPS + 1 + 5
        await asyncio.sleep(breaker.READ_EVERY_S)
        stub.fault = None
        assert await ask(first)
        assert await ask(second)

    both([settings(stub, max_retries=breaker.FAILURES - 1)] * 2, engines, work)
    with engines[0].connect() as connection:
        assert connection.execute(text("SELECT failures, error, open_until FROM endpoints")).one() == (0, "", None)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("with_database", [True, False])
def test_an_outage_ends_though_the_calls_of_a_shard_cancel_one_another(
    stub: StubLLM, engines: list[Engine], with_database: bool
) -> None:
    async def shard(sender: Transport) -> bool:
        try:
            return len(await together(ask(sender, number) for number in range(5))) == 5
        except EndpointError:
            return False

    async def work(sender: Transport) -> None:
        stub.fault = lambda path, body, number: Fault(status=500)
        for _ in range(10):
            assert not await shard(sender)
        stub.fault = None
        async with asyncio.timeout(5):
            while not await shard(sender):
                await asyncio.sleep(0.05)

    run(settings(stub, max_retries=0), work, state_of(engines[0]) if with_database else None)


@pytest.mark.usefixtures("hasty")
def test_a_probe_that_fails_doubles_the_time(stub: StubLLM, engines: list[Engine]) -> None:
    stub.fault = lambda path, body, number: Fault(status=500)

    async def work(first: Transport, second: Transport) -> None:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            for sender in (first, second):
                with pytest.raises(EndpointError):
                    await ask(sender)
            await asyncio.sleep(0.02)

    both([settings(stub)] * 2, engines, work)
    with engines[0].connect() as connection:
        failures = connection.execute(text("SELECT failures FROM endpoints")).scalar_one()
    assert failures == len(stub.seen) - TRIPS + 1
    assert 3 <= failures <= 5  # after 0.25, 0.75, 1.75 s


def test_without_the_database_the_process_acts_on_what_it_knows(stub: StubLLM, engines: list[Engine]) -> None:
    with engines[0].begin() as connection:
        connection.execute(text("ALTER TABLE endpoints RENAME TO elsewhere"))
    with structlog.testing.capture_logs() as logs:
        assert run(settings(stub), ask, state_of(engines[0]))
    assert logs[0]["event"] == "circuit breaker not read"
