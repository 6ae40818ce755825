"""A training's processes on a machine with several GPUs: one for each, started by the first and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
import torch
import torch.distributed as dist

from services.trainer.child_process import hint
from services.trainer.peers import ALONE, Peers

ORPHANED = 3  # exit status of a process whose starter is gone


@contextmanager
def together(spec: Mapping[str, Any], tell: Callable[[dict[str, Any]], None]) -> Iterator[Peers]:
    """This process among those that train as `spec` says; alone where there is one GPU or none.

    The first process starts the others. They hold no state of their own: they end when it does, by its pipes. Where
    one of them ends before its time, the others would wait for it: the first tells of its error and ends at once.
    `spec["processes"]` is another number than the machine has GPUs.
    """
    gpus, rank = torch.cuda.device_count(), spec.get("rank", 0)
    size = spec.get("processes", gpus)
    if size < 2:
        yield ALONE
        return
    meeting = Path(spec["work_dir"]).absolute() / "meeting"
    with ExitStack() as others:
        if rank == 0:
            meeting.parent.mkdir(parents=True, exist_ok=True)
            meeting.unlink(missing_ok=True)  # an earlier attempt's
            for other in range(1, size):
                _start(dict(spec) | {"rank": other, "processes": size}, others, tell)
        if gpus:
            torch.cuda.set_device(rank)
        yield Peers.join(rank, size, f"file://{meeting}", "nccl" if gpus else "gloo")
        dist.destroy_process_group()


def _start(spec: dict[str, Any], others: ExitStack, tell: Callable[[dict[str, Any]], None]) -> None:
    command = [sys.executable, "-m", "services.trainer.child", "train"]
    peer = others.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert peer.stdin is not None  # noqa: S101 - a pipe
    assert peer.stdout is not None  # noqa: S101 - a pipe
    # it ends when this closes; Popen would first close what `_watch` is reading, and wait for that for ever
    others.callback(peer.stdin.close)
    peer.stdin.write(orjson.dumps(spec) + b"\n")
    peer.stdin.flush()
    threading.Thread(target=_watch, args=(peer, peer.stdout, spec["rank"], tell), daemon=True).start()


def _watch(peer: subprocess.Popen[bytes], lines: IO[bytes], rank: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Ends this process where the peer has failed: it may stand in a sum that will never come."""
    last = {"type": "none"}
    for line in lines:
        last = orjson.loads(line)
    code = peer.wait()
    if code in (0, ORPHANED):
        return
    if last["type"] != "error":
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        message = f"the training's process {rank} {ended}{hint(code)}"
        last = {"type": "error", "error_type": "FretworkError", "message": message}
    tell(last)
    os._exit(1)
