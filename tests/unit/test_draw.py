"""Orders of chance without a memory."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from services.trainer.draw import permuted, source_draws


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_every_place_is_taken_once(count: int) -> None:
    assert sorted(permuted(n, count, "a") for n in range(count)) == list(range(count))


def test_another_key_is_another_order_and_neighbours_part() -> None:
    first, second = ([permuted(n, 1000, key) for n in range(1000)] for key in "ab")
    assert first == [permuted(n, 1000, "a") for n in range(1000)]
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 20  # 1 is expected of chance
    steps = [abs(a - b) for a, b in pairwise(first)]
    assert sum(steps) / len(steps) == pytest.approx(1000 / 3, rel=0.1)  # as of numbers drawn independently


def test_sources_come_by_weight() -> None:
    drawn = list(islice(source_draws([3, 1], seed=0), 20_000))
    assert drawn == list(islice(source_draws([3, 1], seed=0), 20_000))
    assert drawn != list(islice(source_draws([3, 1], seed=1), 20_000))
    assert Counter(drawn)[0] == pytest.approx(15_000, abs=250)
