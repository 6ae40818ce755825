"""The process's one event loop: a daemon thread, started when first needed (after a fork, never before).

Worker threads hand it coroutines and wait; sockets, limits and breakers live on it alone and so need no locks. This
room knows nothing of what runs on the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from shared.errors import TooSlowError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
_parents: list[asyncio.AbstractEventLoop | None] = []  # kept: thrown away, they would take the parent's sockets along


def on_loop(coroutine: Coroutine[Any, Any, T], limit_s: float | None = None) -> T:
    """Runs `coroutine` on the process's loop and waits for it; raises what it raises.

    It is cancelled where the waiting thread is interrupted, and after `limit_s` seconds, with a TooSlowError. Raises
    RuntimeError on the loop's own thread, which would wait for itself.
    """
    if limit_s is not None:
        coroutine = _limited(coroutine, limit_s)
    loop = _running()
    if threading.current_thread() is _thread:
        coroutine.close()
        raise RuntimeError("on_loop was called on the loop itself: await the coroutine instead")
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    finally:
        future.cancel()  # nothing happens to one that is done


async def _limited(coroutine: Coroutine[Any, Any, T], limit_s: float) -> T:
    timer = asyncio.timeout(limit_s)
    try:
        async with timer:
            return await coroutine
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise TooSlowError(f"the calls of this shard took longer than {limit_s:g} s") from error


def _running() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="llm-loop", daemon=True)
            _thread.start()
        return _loop


def _forget() -> None:
    """In a forked child, which has the parent's memory and none of its threads."""
    global _lock, _loop, _thread
    _parents.append(_loop)
    _lock, _loop, _thread = threading.Lock(), None, None


os.register_at_fork(after_in_child=_forget)
