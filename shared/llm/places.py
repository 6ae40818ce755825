"""Which server a call goes to, and who waits where none has a free place: first come, first served.

A free place is at a server whose breaker is closed, that asked for no pause and has fewer calls in hand than its limit.
This room sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from shared.llm import EndpointDownError
from shared.llm.replica import Replica


@dataclass(frozen=True, slots=True)
class Place:
    """A call's right to be sent to `replica`, to be given back. `probing` calls find out whether it answers again."""

    replica: Replica
    prompts: int
    probing: bool = False


class Places:
    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._waiting: deque[tuple[asyncio.Future[Place], int]] = deque()

    async def take(self, prompts: int, avoid: Replica | None) -> Place:
        """Waits for a place for a call of so many prompts, at another server than `avoid` if there is one.

        `prompts` 0 is a call that is no work for the model: it takes no place and waits for none. Raises
        EndpointDownError where no server answers.
        """
        for replica in self._replicas:
            await replica.breaker.refresh()
            if replica.breaker.is_open and await replica.breaker.claim_probe():
                return self._taken(replica, prompts, probing=True)
        if not prompts:
            if best := self._cheapest([each for each in self._replicas if not each.breaker.is_open], avoid):
                return Place(best, 0)
            raise self._down()
        if not self._waiting and (best := self._free(avoid)):
            return self._taken(best, prompts)
        turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, prompts))
        self.hand_out()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(turn.result())
            raise

    def give_back(self, place: Place) -> None:
        place.replica.calls -= place.prompts > 0
        place.replica.prompts -= place.prompts
        self.hand_out()

    def hand_out(self) -> None:
        """Gives the free places to those who wait, and an error where no server answers."""
        while self._waiting and (best := self._free()):
            turn, prompts = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._taken(best, prompts))
        if self._waiting and all(replica.breaker.is_open for replica in self._replicas):
            for turn, _ in self._waiting:
                if not turn.done():
                    turn.set_exception(self._down())
            self._waiting.clear()

    def _free(self, avoid: Replica | None = None) -> Replica | None:
        now = time.monotonic()
        return self._cheapest([replica for replica in self._replicas if replica.has_place(now)], avoid)

    def _cheapest(self, replicas: Sequence[Replica], avoid: Replica | None) -> Replica | None:
        if len(replicas) < 2:
            return replicas[0] if replicas else None
        now = time.monotonic()
        return min(replicas, key=lambda each: (each is avoid, each.cost(now)))

    def _taken(self, replica: Replica, prompts: int, *, probing: bool = False) -> Place:
        replica.calls += prompts > 0
        replica.prompts += prompts
        return Place(replica, prompts, probing)

    def _down(self) -> EndpointDownError:
        return EndpointDownError(
            "no LLM endpoint answers: "
            + "; ".join(
                f"{replica.name}: {replica.breaker.error} (next try in {replica.breaker.remaining_s:.0f} s)"
                for replica in self._replicas
            )
        )
