"""The transport against a server that misbehaves: each call gets its own answer, or an error that says why not."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from contextlib import aclosing

import orjson
import pytest
from aiohttp import web

from shared.errors import SetbackError, TooSlowError
from shared.llm import CallFailedError, EndpointError, PromptRefusedError, replica, transport
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
from shared.llm.transport import NoSuchRouteError, Transport
from tests.integration.llm.asking import PROMPT, ask, ask_all, run, server, settings
from tests.llm_stub import Fault, StubLLM


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


def test_get_asks_the_next_server_and_raises_what_the_last_one_says(stub: StubLLM) -> None:
    async def work(sender: Transport) -> bytes:
        with pytest.raises(EndpointError, match="status 404"):
            await sender.get("/nothing")
        return await sender.get("/models")

    models = run(settings("http://127.0.0.1:9/v1", stub), work)
    assert orjson.loads(models)["data"][0]["id"] == stub.server.model_name


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
