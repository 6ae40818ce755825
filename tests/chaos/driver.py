"""What a seed does to a stack, and when: pure, so that a seed that failed is done again to the letter."""

from __future__ import annotations

import random
from dataclasses import dataclass

# two of each worker that may have two, so that one takes over what the other lost
PROCESSES = ("generator", "generator-2", "relabeler", "relabeler-2", "retriever", "dispatcher")
WORKERS = PROCESSES[:-1]
EXTRA = ("generator-2", "relabeler-2")

# what may be done, and to whom
HARMS: dict[str, tuple[str, ...]] = {
    "kill": PROCESSES,
    "freeze": WORKERS,
    "freeze in its transaction": ("generator", "generator-2", "relabeler", "relabeler-2"),
    "restart redis": ("",),
    "restart postgres": ("in order", "by a crash"),
    "take the LLM away": ("",),
    "lose the index": ("", "with queries in it"),
    "ring twice": ("",),
    "terminate": EXTRA,
    "fill the disk": ("",),
}
LATEST_S = 12.0  # a run that nobody disturbs takes about as long
SHORT_LEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """`what` happens to `target`, `at_s` after the run's start."""

    at_s: float
    what: str
    target: str

    def __str__(self) -> str:
        return f"{self.what} {self.target}".strip()


def plan(seed: int) -> tuple[Event, ...]:
    """Four to six events in the order of their times. Every harm is the first draw of every tenth seed."""
    draw = random.Random(seed)  # noqa: S311 - a test's choice
    kinds = list(HARMS)
    chosen = [kinds[seed % len(kinds)], "kill", *draw.choices(kinds, k=draw.randint(2, 4))]
    events = [Event(round(draw.uniform(0.3, LATEST_S), 1), what, draw.choice(HARMS[what])) for what in chosen]
    return tuple(sorted(events, key=lambda event: event.at_s))


def lease_s(seed: int) -> float | None:
    """Five seconds, so that a seed is short; every tenth seed has the lease that is shipped, which None stands for."""
    return None if seed % 10 == 0 else SHORT_LEASE_S
