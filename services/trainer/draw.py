"""What is drawn when: functions of seed and position alone, so that a training goes on anywhere without a memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

_ROUNDS = 4
_64_BITS = 2**64 - 1


def permuted(position: int, count: int, key: str) -> int:
    """Where `position` of 0 … count - 1 lands in an order of chance that `key` decides.

    A Feistel network over the smallest power of 4 that holds `count`, walked until it lands below `count` (Black and
    Rogaway 2002): no list of the order, whatever the count.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(key)
    while True:
        left, right = position >> half, position & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        position = left << half | right
        if position < count:
            return position


def source_draws(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Which source each step's batch is of, by weight, from the first step on and without end."""
    rng = random.Random(f"{seed}:sources")  # noqa: S311
    while True:
        yield rng.choices(range(len(weights)), weights)[0]


@lru_cache(maxsize=256)  # a batch asks for one key, or for two, a thousand times
def _round_keys(key: str) -> list[int]:
    rng = random.Random(key)  # noqa: S311
    return [rng.getrandbits(64) for _ in range(_ROUNDS)]


def _mixed(value: int) -> int:
    """SplitMix64's output function (Steele et al. 2014)."""
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _64_BITS
    return value ^ value >> 31
