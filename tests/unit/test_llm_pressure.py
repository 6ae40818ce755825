"""The adaptive limit against simulated endpoints, on a clock of their own, and what a refusal says."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from math import inf, nan

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm.pressure import START, Limit
from shared.llm.refusal import message, retry_after_s
from shared.llm.replica import waiting_requests


class Simulated:
    """An endpoint that works on `servers` calls at once, takes `most` (429 beyond that), and a caller that always has
    another call to make.
    """

    def __init__(self, limit: Limit, seconds: Callable[[float], float], *, servers: float = inf, most: float = inf):
        self.limit, self.seconds, self.servers, self.most = limit, seconds, servers, most
        self.now, self.in_flight, self.answers = 0.0, 0, 0
        self.limits: list[tuple[float, int]] = []
        self._free = [0.0] * int(servers) if servers < inf else []
        self._events: list[tuple[float, int, float, bool]] = []
        self._number = 0

    def run(self, until: float) -> Simulated:
        while True:
            while self.in_flight < self.limit.value:
                self._send()
            if self._events[0][0] > until:
                return self
            self.now, _, sent_at, refused = heapq.heappop(self._events)
            if refused:
                self.limit.refused(sent_at, self.now)
            else:
                self.answers += 1
                self.limit.answered("call", self.now - sent_at, self.in_flight, self.now)
            self.in_flight -= 1
            self.limits.append((self.now, self.limit.value))

    def mean_limit(self, since: float) -> float:
        values = [value for at, value in self.limits if at >= since]
        return sum(values) / len(values)

    def _send(self) -> None:
        self._number += 1
        refused = self.in_flight >= self.most
        self.in_flight += 1
        if refused:
            done = self.now + 0.005
        elif self._free:
            start = max(self.now, heapq.heappop(self._free))
            done = start + self.seconds(self.now)
            heapq.heappush(self._free, done)
        else:
            done = self.now + self.seconds(self.now)
        heapq.heappush(self._events, (done, self._number, self.now, refused))


def test_a_fast_endpoint_gets_all_it_may_get_within_a_second() -> None:
    world = Simulated(Limit(64), lambda _: 0.05).run(until=3.0)
    reached = next(at for at, value in world.limits if value == 64)
    assert reached < 0.5
    assert world.limit.value == 64


def test_latencies_that_scatter_by_the_prompts_length_do_not_hold_it_back() -> None:
    rng = random.Random(1)  # noqa: S311 - a simulation
    world = Simulated(Limit(64), lambda _: rng.expovariate(1 / 0.2)).run(until=20.0)
    assert world.mean_limit(since=5.0) > 55


def test_prompts_that_become_longer_for_good_hold_it_back_for_a_while_only() -> None:
    """Ten times as long after 0.15 s, before the limit is reached."""
    world = Simulated(Limit(256), lambda now: 0.05 if now < 0.15 else 0.5)
    world.run(until=5.0)
    held = world.limit.value
    assert held < 256
    world.run(until=200.0)
    assert world.limit.value > held
    assert world.limit.value > 200


def test_a_queue_that_nobody_reports_is_kept_short() -> None:
    """16 at once and 50 ms each: 64 in flight would be four times the latency for the same throughput."""
    world = Simulated(Limit(64), lambda _: 0.05, servers=16).run(until=120.0)
    assert 16 <= world.mean_limit(since=60.0) <= 40
    assert world.answers > 0.97 * 120 * 16 / 0.05


def test_a_cap_on_calls_in_flight_is_approached_and_hardly_exceeded() -> None:
    world = Simulated(Limit(64), lambda _: 0.05, most=24).run(until=60.0)
    assert 17 <= world.mean_limit(since=10.0) <= 25
    assert world.answers > 0.75 * 60 * 24 / 0.05


def test_a_burst_of_refusals_shrinks_it_once_per_round_trip() -> None:
    limit = Limit(64)
    before = limit.value
    assert limit.refused(sent_at=1.0, now=1.05)
    assert not limit.refused(sent_at=1.0, now=1.05)
    assert not limit.refused(sent_at=1.04, now=1.09)
    assert limit.value == int(before * 0.7)
    assert limit.refused(sent_at=1.06, now=1.11)
    assert limit.value == int(before * 0.7 * 0.7)


def test_after_a_storm_what_was_borne_before_is_reached_again_soon() -> None:
    limit = Limit(64)
    world = Simulated(limit, lambda _: 0.05)
    world.run(until=1.0)
    for step in range(20):
        limit.refused(sent_at=1.0 + step, now=1.0 + step)
    assert limit.value == 1
    world.run(until=3.0)
    assert limit.value >= 44


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = Limit(64)
    for number in range(1000):
        limit.answered("call", 0.05, in_flight=4, now=number * 0.05)
    assert limit.value == START


def test_a_few_that_wait_for_the_next_step_are_no_queue() -> None:
    limit = Limit(64)
    for second, waiting in enumerate((0, 1, 2, 4, 1, 3)):
        limit.queued(waiting, now=float(second))
        for _ in range(16):
            limit.answered("call", 0.05, in_flight=limit.value, now=float(second))
    assert limit.value == 64


def test_calls_that_wait_inside_the_server_hold_it_and_a_growing_queue_shrinks_it() -> None:
    limit = Limit(64)
    limit.queued(5, now=0.0)
    for number in range(100):
        limit.answered("call", 0.05, in_flight=limit.value, now=number * 0.01)
    assert limit.value == START
    limit.queued(9, now=2.0)
    assert limit.value == int(START * 0.7)
    limit.queued(7, now=4.0)
    assert limit.value == int(START * 0.7)
    limit.queued(0, now=6.0)
    for number in range(100):
        limit.answered("call", 0.05, in_flight=limit.value, now=6 + number * 0.01)
    assert limit.value > int(START * 0.7)


@given(
    most=st.integers(1, 200),
    steps=st.lists(
        st.tuples(st.sampled_from(["answered", "refused", "queued"]), st.floats(0, 400), st.integers(0, 300)),
        max_size=300,
    ),
)
def test_it_never_leaves_its_bounds(most: int, steps: list[tuple[str, float, int]]) -> None:
    limit, now = Limit(most), 0.0
    for what, seconds, count in steps:
        now += seconds
        if what == "answered":
            limit.answered(count % 3, seconds, count, now)
        elif what == "refused":
            limit.refused(now - seconds, now)
        else:
            limit.queued(count, now)
        assert 1 <= limit.value <= most


@given(st.lists(st.floats(0.001, 300), min_size=1, max_size=400))
def test_answers_alone_lower_it_by_no_more_than_one_step_at_a_time(latencies: list[float]) -> None:
    limit, now, seen = Limit(64), 0.0, []
    for latency_s in latencies:
        now += latency_s
        limit.answered("call", latency_s, limit.value, now)
        seen.append(limit.value)
    assert all(after >= int(before * 0.7) for before, after in pairwise(seen))


def test_retry_after_is_seconds_or_a_date_and_ten_minutes_at_most() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert retry_after_s("7") == 7
    assert retry_after_s("0.5") == 0.5
    assert retry_after_s("Fri, 02 Jan 2026 03:04:35 GMT", now) == 30
    assert retry_after_s("Fri, 02 Jan 2026 03:04:00 GMT", now) == 0
    assert retry_after_s("86400") == 600
    assert retry_after_s("-3") == 0
    assert retry_after_s(str(nan)) is None
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None


def test_the_servers_words_are_found_and_shortened() -> None:
    openai = orjson.dumps({"error": {"message": "maximum context length is 512 tokens", "code": 400}})
    assert message(openai, b"{}", []) == "maximum context length is 512 tokens"
    fastapi = orjson.dumps({"detail": [{"loc": ["body", "n"], "msg": "too many", "input": "the prompt"}]})
    assert message(fastapi, b"{}", []) == "too many"
    assert message(b"<html>no</html>", b"{}", []) == "<html>no</html>"
    assert len(message(b"x" * 5000, b"{}", [])) == 200
    assert message(b'{"a": 1}', b"{}", []) == ""


@given(prompt=st.text(min_size=12, max_size=300), before=st.text(max_size=30))
def test_the_servers_words_never_quote_the_prompt(prompt: str, before: str) -> None:
    request = orjson.dumps({"prompt": ["another", prompt]})
    for quoted in (prompt, repr(prompt), prompt[:200]):
        said = message(orjson.dumps({"error": {"message": f"{before} {quoted} is too long"}}), request, [])
        plain = " ".join(prompt.split())
        assert not any(said[start : start + 12] in plain for start in range(len(said) - 11))


def test_the_servers_words_never_hold_a_secret() -> None:
    said = message(b'{"error": {"message": "no such key: sk-1234567890"}}', b"{}", ["sk-1234567890"])
    assert said == "no such key: ***"


def test_waiting_requests_are_summed_over_the_engines() -> None:
    metrics = b"""# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a{}"} 3.0
vllm:num_requests_waiting{engine="1",model_name="a{}"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
"""
    assert waiting_requests(metrics) == 7
    assert waiting_requests(b"vllm:num_requests_waiting 2.0\n") == 2
    assert waiting_requests(b"process_cpu_seconds_total 1.0\n") is None


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_small_maximum_is_where_it_starts(most: int) -> None:
    assert Limit(most).value == most
