"""Which server a call goes to, and who waits where none has a free place: first come, first served.

A free place is at a server whose breaker is closed, that asked for no pause and has fewer calls in hand than its limit.
This room sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from shared.llm import EndpointDownError
from shared.llm.replica import Replica


@dataclass(frozen=True, slots=True)
class Place:
    """A call's right to be sent to `replica`, to be given back."""

    replica: Replica
    prompts: int


class Places:
    def __init__(self, replicas: Sequence[Replica], probe: Callable[[Replica], Coroutine[Any, Any, None]]) -> None:
        """`probe` finds out whether a server answers again, and says so to its breaker."""
        self._replicas, self._probe = replicas, probe
        self._waiting: deque[tuple[asyncio.Future[Place], int]] = deque()
        self._probes: dict[Replica, asyncio.Task[None]] = {}
        self._wake: asyncio.TimerHandle | None = None

    async def take(self, prompts: int, avoid: Replica | None) -> Place:
        """Waits for a place for a call of so many prompts, at another server than `avoid` if there is one.

        `prompts` 0 is a call that is no work for the model: it takes no place and waits for none. Where no server
        answers, and it is time to ask one again, the answer is waited for. Raises EndpointDownError where none answers.
        """
        for replica in self._replicas:
            await replica.breaker.refresh()
        self._start_probes()
        if self._none_answers and self._probes:
            await asyncio.wait(self._probes.values(), return_when=asyncio.FIRST_COMPLETED)
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

    async def stop(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
        for task in [*self._probes.values()]:
            task.cancel()
            await asyncio.wait({task})

    @property
    def _none_answers(self) -> bool:
        return all(replica.breaker.is_open for replica in self._replicas)

    def _start_probes(self) -> None:
        """In tasks of their own: whoever waits for one may be cancelled, by another call of its shard."""
        for replica in self._replicas:
            if replica.breaker.is_open and not replica.breaker.remaining_s and replica not in self._probes:
                self._probes[replica] = asyncio.create_task(self._run_probe(replica))

    async def _run_probe(self, replica: Replica) -> None:
        try:
            await self._probe(replica)
        finally:
            del self._probes[replica]
            self.hand_out()

    def _wake_for_the_next_probe(self) -> None:
        """Calls that wait for a place at one server may have it at another, once that answers again."""
        if self._wake is not None:
            self._wake.cancel()
        due = [each.breaker.remaining_s for each in self._replicas if each.breaker.is_open and each not in self._probes]
        self._wake = asyncio.get_running_loop().call_later(min(due) + 0.001, self._on_wake) if due else None

    def _on_wake(self) -> None:
        self._start_probes()
        self.hand_out()

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
        if self._waiting and self._none_answers and not self._probes:
            for turn, _ in self._waiting:
                if not turn.done():
                    turn.set_exception(self._down())
            self._waiting.clear()
        if self._waiting:
            self._wake_for_the_next_probe()

    def _free(self, avoid: Replica | None = None) -> Replica | None:
        now = time.monotonic()
        return self._cheapest([replica for replica in self._replicas if replica.has_place(now)], avoid)

    def _cheapest(self, replicas: Sequence[Replica], avoid: Replica | None) -> Replica | None:
        if len(replicas) < 2:
            return replicas[0] if replicas else None
        now = time.monotonic()
        return min(replicas, key=lambda each: (each is avoid, each.cost(now)))

    def _taken(self, replica: Replica, prompts: int) -> Place:
        replica.calls += prompts > 0
        replica.prompts += prompts
        return Place(replica, prompts)

    def _down(self) -> EndpointDownError:
        return EndpointDownError(
            "no LLM endpoint answers: "
            + "; ".join(
                f"{replica.name}: {replica.breaker.error} (next try in {replica.breaker.remaining_s:.0f} s)"
                for replica in self._replicas
            )
        )
