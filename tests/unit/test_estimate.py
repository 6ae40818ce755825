"""The estimate of a run's cost, worked by hand."""

from __future__ import annotations

import pytest

from cli.runs.estimate import Cost, Sample, estimate
from shared.llm import Usage
from shared.records import RunConfig
from shared.settings import LLMSettings

# Two passages: one gave its query at once, the other at the third attempt; both were scored against themselves.
FIRST = Sample(Usage(1, 1000, 40), 2.0, 1, Usage(2, 800, 2), 1.0, 1)
SECOND = Sample(Usage(3, 3000, 200), 6.0, 1, Usage(2, 1000, 2), 1.0, 1)
BARREN = Sample(Usage(3, 3000, 480), 9.0, 0, Usage(), 0.0, 0)
CONFIG = RunConfig(num_candidates=20)
SERVER = LLMSettings(base_url="http://one:8000/v1", max_parallel_requests=8)


def test_requests_tokens_and_seconds_of_both_stages() -> None:
    found = estimate([FIRST, SECOND], 100, CONFIG, SERVER)
    # 4 requests, 4,240 tokens and 8 s for 2 passages: 50 times as much, with 8 in flight or the samples' 2
    assert found.generate == Cost(200, 212_000, 50.0, 200.0)
    # 902 tokens and 1 s a pair on average; 100 queries with 20 candidates each; two lists a query, so 4 were in flight
    assert found.relabel == Cost(200, 902 * 2000, 250.0, 500.0)
    assert found.generate + found.relabel == Cost(400, 212_000 + 1_804_000, 300.0, 700.0)


def test_passages_without_a_query_cost_completions_and_no_scores() -> None:
    found = estimate([FIRST, BARREN], 100, CONFIG, SERVER)
    assert found.generate.requests == 200
    assert found.relabel == Cost(100, 802 * 50 * 20, 125.0, 500.0)


def test_without_a_scored_query_relabelling_is_unknown() -> None:
    assert estimate([BARREN], 100, CONFIG, SERVER).relabel is None


def test_queries_that_could_not_be_scored_are_taken_to_be_like_those_that_were() -> None:
    unscored = Sample(Usage(1, 1000, 40), 2.0, 1, Usage(), 0.0, 0)
    assert estimate([FIRST, unscored], 100, CONFIG, SERVER).relabel == Cost(200, 802 * 2000, 250.0, 1000.0)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 50.0),
        ({"base_url": "http://one/v1,http://two/v1"}, 25.0),
        ({"max_requests_per_minute": 60}, 200.0),
        ({"max_requests_per_minute": 100_000}, 50.0),
        ({"max_tokens_per_minute": 106_000}, 120.0),
        ({"max_requests_per_minute": 60, "base_url": "http://one/v1,http://two/v1"}, 100.0),
        ({"base_url": None, "model": "folder", "max_requests_per_minute": 1}, 200.0),  # in this process, one by one
    ],
)
def test_time_by_what_is_in_flight_and_by_the_caps(settings: dict[str, object], seconds: float) -> None:
    named = LLMSettings(**{**SERVER.model_dump(exclude_unset=True), **settings})
    assert estimate([FIRST, SECOND], 100, CONFIG, named).generate.least_s == pytest.approx(seconds)


def test_more_samples_than_may_be_in_flight_leave_no_range() -> None:
    named = LLMSettings(base_url="http://one:8000/v1", max_parallel_requests=2)
    found = estimate([FIRST, SECOND, BARREN], 300, CONFIG, named)
    assert found.generate.least_s == found.generate.most_s == 17.0 * 100 / 2
