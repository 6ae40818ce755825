"""Server-sent events: how a run changes, looked at once a second for all who listen to it together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.sse import ServerSentEvent

LOOK_EVERY_S = 1.0

Look = Callable[[], dict[str, Any]]


class Watch:
    """The newest look at each run that somebody listened to. A look is shared by all who want one at that time."""

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self.is_ending = is_ending
        self._looks: dict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = {}

    async def newest(self, name: str, look: Look) -> dict[str, Any]:
        begun_at, task = self._looks.get(name, (0.0, None))
        if task is None or time.monotonic() - begun_at >= LOOK_EVERY_S:
            task = asyncio.create_task(asyncio.to_thread(look))
            self._looks[name] = (time.monotonic(), task)
        return await asyncio.shield(task)


async def changes(watch: Watch, event: str, name: str, look: Look) -> AsyncIterator[ServerSentEvent]:
    """What `look` returns, at once and whenever it is another; ends when the server ends.

    Where the database does not answer, a comment says so and the next look tries again.
    """
    last: dict[str, Any] | None = None
    while not watch.is_ending():
        try:
            seen = await watch.newest(name, look)
        except Exception as error:
            yield ServerSentEvent(comment=f"not seen: {type(error).__name__}")
        else:
            if seen != last:
                last = seen
                yield ServerSentEvent(event=event, data=seen)
        await asyncio.sleep(LOOK_EVERY_S)
