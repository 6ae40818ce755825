"""A training's processes on a machine with several GPUs: one for each, started by the first and ended with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist

from services.trainer.peers import ALONE, Peers


@contextmanager
def together(spec: Mapping[str, Any]) -> Iterator[Peers]:
    """This process among those that train as `spec` says; alone where there is one GPU or none.

    The first process starts the others. They hold no state of their own: they end when it does, by its pipes.
    """
    size, rank = torch.cuda.device_count(), spec.get("rank", 0)
    if size < 2:
        yield ALONE
        return
    meeting = Path(spec["work_dir"]).absolute() / "meeting"
    with ExitStack() as others:
        if rank == 0:
            meeting.parent.mkdir(parents=True, exist_ok=True)
            meeting.unlink(missing_ok=True)  # an earlier attempt's
            for other in range(1, size):
                _start(dict(spec) | {"rank": other}, others)
        torch.cuda.set_device(rank)
        yield Peers.join(rank, size, f"file://{meeting}", "nccl")
        dist.destroy_process_group()


def _start(spec: dict[str, Any], others: ExitStack) -> None:
    command = [sys.executable, "-m", "services.trainer.child", "train"]
    peer = others.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
    assert peer.stdin is not None  # noqa: S101 - a pipe
    peer.stdin.write(orjson.dumps(spec) + b"\n")
    peer.stdin.flush()
