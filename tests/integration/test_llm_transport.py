"""The transport against servers that misbehave, and what processes share about them, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import orjson
import pytest
import structlog
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, text

from shared.errors import SetbackError, TooSlowError
from shared.llm import (
    AnswerError,
    CallFailedError,
    EndpointDownError,
    EndpointError,
    PromptRefusedError,
    breaker,
    replica,
    transport,
)
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
from shared.llm.shared_state import SharedState
from shared.llm.together import together
from shared.llm.transport import NoSuchRouteError, StatusError, Transport
from shared.settings import LLMSettings
from tests.llm_stub import Fault, StubLLM

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


@pytest.fixture
def stub() -> Iterator[StubLLM]:
    with StubLLM() as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-offs and openings a twentieth as long."""
    monkeypatch.setattr(transport, "FIRST_BACK_OFF_S", 0.0125)
    monkeypatch.setattr(breaker, "FIRST_S", 0.25)
    monkeypatch.setattr(breaker, "MOST_S", 1.0)


@pytest.fixture
def engines(database_url: str) -> Iterator[list[Engine]]:
    """One for each of two processes."""
    made = [create_engine(database_url) for _ in range(2)]
    yield made
    for each in made:
        each.dispose()


def state_of(each: Engine) -> SharedState:
    return SharedState(lambda: each)


@asynccontextmanager
async def server(handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


# --- one server, one process ---


def test_answers_come_back_to_the_calls_they_belong_to(stub: StubLLM) -> None:
    stub.latency_s = 0.01
    answers = run(settings(stub), lambda sender: ask_all(sender, 100))
    assert len(set(answers)) > 50
    assert answers == run(settings(stub, max_parallel_requests=1), lambda sender: ask_all(sender, 100))


def test_a_pause_that_the_server_asks_for_is_kept_by_all_calls(stub: StubLLM) -> None:
    stub.fault = lambda path, body, number: Fault(status=429, headers={"Retry-After": "1"}) if number == 0 else None

    async def work(sender: Transport) -> list[str]:
        first = asyncio.create_task(ask(sender, 0))
        await asyncio.sleep(0.2)
        return [await ask(sender, 1), await first]

    assert all(run(settings(stub), work))
    refused, *later = [seen.at for seen in stub.seen]
    assert len(later) == 2
    assert min(later) - refused >= 0.99


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("status", [429, 503])
def test_a_storm_of_refusals_ends_with_every_answer_exactly_once(stub: StubLLM, status: int) -> None:
    stub.latency_s, calm_at = 0.02, time.monotonic() + 0.3
    stub.fault = lambda path, body, number: (
        Fault(status=status) if stub.running >= 6 or time.monotonic() < calm_at else None
    )
    answers = run(settings(stub, max_retries=0), lambda sender: ask_all(sender, 200))
    assert len(stub.answered_at) == len(answers) == 200
    assert stub.most_running <= 6
    assert len(stub.seen) < 600
    stub.fault = None
    assert answers == run(settings(stub), lambda sender: ask_all(sender, 200))


def test_a_server_that_refuses_everything_for_ever_ends_by_patience(
    stub: StubLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "PATIENCE_S", 0.5)
    stub.fault = lambda path, body, number: Fault(status=429)
    with pytest.raises(EndpointError, match="too busy"):
        run(settings(stub), ask)


FAULTS: dict[str, Fault] = {
    "500": Fault(status=500),
    "502": Fault(status=502),
    "reset": Fault(reset=True),
    "truncated": Fault(truncated=True),
    "not JSON": Fault(body=b"<html>Bad gateway</html>"),
    "JSON of something else": Fault(body=b'{"hello": 1}'),
    "empty": Fault(body=b""),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_went_wrong_is_tried_again(stub: StubLLM, fault: Fault) -> None:
    stub.fault = lambda path, body, number: fault if number % 3 == 0 else None
    answers = run(settings(stub, max_retries=20), lambda sender: ask_all(sender, 60))
    stub.fault = None
    assert answers == run(settings(stub), lambda sender: ask_all(sender, 60))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_tries_come_to_an_end(stub: StubLLM, fault: Fault) -> None:
    stub.fault = lambda path, body, number: fault
    with pytest.raises(EndpointError, match="tried 3 times"):
        run(settings(stub, max_retries=2), ask)
    assert len(stub.seen) == 3 + 1  # and the smallest call, which tells a server that is away from a bad prompt


@pytest.mark.usefixtures("hasty")
def test_a_call_that_fails_while_others_are_answered_is_told_from_a_server_that_is_away(stub: StubLLM) -> None:
    async def both(sender: Transport) -> list[str | BaseException]:
        return await asyncio.gather(ask(sender, 0, "poison"), ask_all(sender, 20), return_exceptions=True)  # type: ignore[return-value]

    stub.fault = lambda path, body, number: Fault(status=500) if "poison" in str(body) else None
    error, answers = run(settings(stub, max_retries=2), both)
    assert isinstance(error, CallFailedError)
    assert len(answers) == 20  # type: ignore[arg-type]
    for max_retries in (0, 2, 5):  # it is told also where nothing else is asked, and the breaker stays closed
        with pytest.raises(CallFailedError):
            run(settings(stub, max_retries=max_retries), lambda sender: ask(sender, 0, "poison"))
    stub.fault = lambda path, body, number: Fault(status=500)
    with pytest.raises(EndpointError) as caught:
        run(settings(stub, max_retries=2), ask)
    assert not isinstance(caught.value, SetbackError)


def test_calls_that_take_too_long_together_are_given_up() -> None:
    with pytest.raises(TooSlowError, match=r"longer than 0\.05 s"):
        on_loop(asyncio.sleep(10), limit_s=0.05)
    with pytest.raises(TimeoutError, match="its own"):
        on_loop(_raise(TimeoutError("its own")), limit_s=10)


async def _raise(error: Exception) -> None:
    raise error


def test_starting_a_program_leaves_the_calls_of_this_process_alone(stub: StubLLM) -> None:
    # a preexec_fn makes subprocess fork, and the child forget what it cannot use
    wish = settings(stub, timeout_s=5, max_retries=0)
    before = on_loop(open_llm(wish).count_tokens("how many"))
    subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None, check=True)
    assert on_loop(open_llm(wish).count_tokens("how many")) == before


def test_an_answer_that_never_ends_is_bounded_by_the_timeout() -> None:
    async def trickle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in itertools.count():
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    async def work() -> None:
        async with (
            server(trickle) as url,
            aclosing(Transport(settings(url, timeout_s=0.4, max_retries=0), None)) as one,
        ):
            await ask(one)

    began = time.monotonic()
    with pytest.raises(EndpointError, match=r"no whole answer within 0\.4 s"):
        on_loop(work())
    assert time.monotonic() - began < 2


def test_an_answer_without_bounds_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "MOST_ANSWER_BYTES", 2**20)
    sent = 0

    async def flood(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    async def work() -> None:
        async with server(flood) as url, aclosing(Transport(settings(url, max_retries=0), None)) as sender:
            await ask(sender)

    with pytest.raises(EndpointError, match="an answer of more than 1 MiB"):
        on_loop(work())
    assert sent < 50 * 2**20


def test_a_prompt_that_is_refused_is_not_sent_again_and_not_repeated_in_the_error(stub: StubLLM) -> None:
    with pytest.raises(PromptRefusedError, match="maximum context length is 4096 tokens") as caught:
        run(settings(stub), lambda sender: ask(sender, prompt=PROMPT * 2000))
    assert len(stub.seen) == 1
    assert PROMPT[:12] not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_refused_prompts_leave_the_breaker_closed(stub: StubLLM) -> None:
    stub.fault = lambda path, body, number: Fault(status=400) if number < 20 else None

    async def work(sender: Transport) -> str:
        refused = await asyncio.gather(*(ask(sender, number) for number in range(20)), return_exceptions=True)
        assert all(isinstance(each, PromptRefusedError) for each in refused)
        return await ask(sender)

    assert run(settings(stub), work)


def test_a_route_that_the_server_has_not_closes_nothing(stub: StubLLM) -> None:
    async def work(sender: Transport) -> str:
        with pytest.raises(NoSuchRouteError):
            await sender.post("/nothing", b"{}", kind="tokenize", decoder=bytes, root=True)
        return await ask(sender)

    assert run(settings(stub), work)


def test_vllms_own_routes_lie_beside_v1(stub: StubLLM) -> None:
    async def work(sender: Transport) -> int:
        body = orjson.dumps({"prompt": PROMPT})
        return len(
            orjson.loads(await sender.post("/tokenize", body, kind="tokenize", decoder=bytes, root=True))["tokens"]
        )

    assert run(settings(stub), work) > 5
    assert [seen.path for seen in stub.seen] == ["/tokenize"]


def test_get_asks_the_next_server_and_get_all_asks_every_one(stub: StubLLM) -> None:
    async def work(sender: Transport) -> tuple[bytes, int]:
        with pytest.raises(EndpointError, match="does not answer"):
            await sender.get_all("/models")
        with pytest.raises(StatusError, match="status 404") as caught:
            await sender.get("/nothing")
        return await sender.get("/models"), caught.value.status

    models, status = run(settings("http://127.0.0.1:9/v1", stub), work)
    assert orjson.loads(models)["data"][0]["id"] == stub.server.model_name
    assert status == 404
    assert list(run(settings(stub), lambda sender: sender.get_all("/models"))) == [stub.base_url]


def test_calls_that_are_cancelled_give_their_places_back(stub: StubLLM) -> None:
    stub.latency_s = 0.2

    async def work(sender: Transport) -> str:
        calls = [asyncio.create_task(ask(sender, number)) for number in range(10)]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        return await ask(sender)

    assert run(settings(stub, max_parallel_requests=2), work)


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


# --- several servers ---


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


# --- down for everybody ---


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


# --- what processes share ---


@pytest.fixture
def unhurried(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first opening outlasts what a busy machine needs for the assertions that rely on it."""
    monkeypatch.setattr(breaker, "FIRST_S", 2.0)


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


# --- secrets ---


@pytest.mark.usefixtures("hasty")
def test_neither_key_nor_prompt_nor_password_stands_in_an_error_or_a_log(
    engines: list[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[Exception] = []

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        status = next(statuses)
        what = f"{(await request.read()).decode()} {dict(request.headers)}"
        return web.json_response({"error": {"message": f"bad key {KEY} {what}"}}, status=status)

    async def work() -> None:
        async with server(echo) as url:
            wish = settings(url, max_retries=0, api_key=SecretStr(KEY))
            for _ in range(8):
                async with aclosing(Transport(wish, state_of(engines[0]))) as sender:
                    try:
                        await ask(sender)
                    except (EndpointError, PromptRefusedError) as error:
                        errors.append(error)
                    try:
                        await sender.get("/models")
                    except EndpointError as error:
                        errors.append(error)
                with engines[0].begin() as connection:
                    errors.extend(map(Exception, connection.execute(text("SELECT error FROM endpoints")).scalars()))
                    connection.execute(text("DELETE FROM endpoints"))

    statuses = itertools.cycle([400, 400, 401, 401, 404, 404, 500, 500, 302])
    with structlog.testing.capture_logs() as logs:
        on_loop(work())
        with pytest.raises(EndpointError) as caught:
            run(settings("http://me:pass-9876@127.0.0.1:9/v1", max_retries=0), ask)
        errors.append(caught.value)
    assert len(errors) > 15
    assert logs
    for said in [*map(str, errors), *map(repr, errors), str(logs), caplog.text]:
        assert KEY not in said
        assert PROMPT[:12] not in said
        assert "pass-9876" not in said


# --- the loop ---


def test_the_loop_raises_what_the_coroutine_raises_and_refuses_to_wait_for_itself() -> None:
    async def fails() -> None:
        raise KeyError("here")

    async def nested() -> None:
        on_loop(asyncio.sleep(0))

    with pytest.raises(KeyError, match="here"):
        on_loop(fails())
    with pytest.raises(RuntimeError, match="await the coroutine instead"):
        on_loop(nested())


def test_threads_share_one_loop() -> None:
    loops = []

    async def which() -> None:
        loops.append(asyncio.get_running_loop())

    threads = [threading.Thread(target=lambda: on_loop(which())) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(loops) == 4
    assert len(set(map(id, loops))) == 1


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    script = """
import asyncio, os
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
on_loop(asyncio.sleep(0))
child = os.fork()
if not child:
    on_loop(asyncio.sleep(0))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "7\n", done.stderr


def test_an_interrupted_wait_cancels_the_coroutine() -> None:
    script = """
import asyncio, signal
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
async def long():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
try:
    on_loop(long())
except KeyboardInterrupt:
    on_loop(asyncio.sleep(0.1))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "cancelled\n", done.stderr
