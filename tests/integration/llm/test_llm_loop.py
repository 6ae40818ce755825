"""The one event loop of a process that the calls run on: threads, forks and interrupts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from shared.llm.loop import on_loop


def test_the_loop_raises_what_the_coroutine_raises_and_refuses_to_wait_for_itself() -> None:
    async def fails() -> None:
        raise KeyError("here")

    async def nested() -> None:
        on_loop(asyncio.sleep(0))

    with pytest.raises(KeyError, match="here"):
        on_loop(fails())
    with pytest.raises(RuntimeError, match="await the coroutine instead"):
        on_loop(nested())


def test_threads_share_one_loop() -> None:
    loops = []

    async def which() -> None:
        loops.append(asyncio.get_running_loop())

    threads = [threading.Thread(target=lambda: on_loop(which())) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(loops) == 4
    assert len(set(map(id, loops))) == 1


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    script = """
import asyncio, os
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
on_loop(asyncio.sleep(0))
child = os.fork()
if not child:
    on_loop(asyncio.sleep(0))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "7\n", done.stderr


def test_an_interrupted_wait_cancels_the_coroutine() -> None:
    script = """
import asyncio, signal
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
async def long():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise
signal.setitimer(signal.ITIMER_REAL, 0.3)
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
try:
    on_loop(long())
except KeyboardInterrupt:
    on_loop(asyncio.sleep(0.1))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "cancelled\n", done.stderr
