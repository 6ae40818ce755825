"""The trainer's subprocess: `python -m services.trainer.child train|evaluate`. The only process that imports torch.

The parent, the trainer's worker, writes one JSON object as the first line of standard input and keeps the pipe open:
when it closes, because the parent has died, this process ends at once. Standard output carries JSON lines: any number
of {"type": "progress", …}, then one {"type": "result", …} (exit status 0) or
{"type": "error", "error_type": …, "message": …, "transient": …} (exit status 1). Logs go to standard error.

    train     {"database_url", "run_id", "label_version", "reviews_until", "config": TrainingConfig, "work_dir",
               "resume_from": [dirs], "about": {…}}; the result is train's facts and "model_dir", from where the parent
               moves the model. On a machine with several GPUs this process starts a peer for each other one, a child of
               its own with the same specification and a "rank"; "processes" is another number of them.
    evaluate  {"config": EvaluationConfig}; the result is evaluate's report
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import orjson
import torch
from transformers.utils.logging import disable_progress_bar

from services.trainer.config import EvaluationConfig, TrainingConfig
from services.trainer.evaluate import evaluate
from services.trainer.gpus import ORPHANED, together
from services.trainer.ledger_records import LedgerRecords
from services.trainer.peers import Peers
from services.trainer.step import GPU_KEPT_TOKENS, out_of_memory
from services.trainer.train import Progress, train
from shared.database import is_transient, make_engine
from shared.errors import InvalidInputError

PROGRESS_EVERY_S = 0.5

Emit = Callable[[dict[str, Any]], None]


def main() -> int:
    # libraries may print: what is not ours goes to standard error
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    disable_progress_bar()  # a log is no terminal

    def emit(message: dict[str, Any]) -> None:
        lines.write(orjson.dumps(message) + b"\n")
        lines.flush()

    try:
        spec = orjson.loads(sys.stdin.buffer.readline())
        threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()
        result = {"train": run_training, "evaluate": run_evaluation}[sys.argv[1]](spec, emit)
    except Exception as error:
        traceback.print_exc()
        told = {"type": "error", "error_type": type(error).__name__, "message": str(error), **_where(error)}
        emit({**told, "transient": is_transient(error)})
        return 1
    emit({"type": "result", **result})
    return 0


def run_training(spec: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Trains as the spec says; progress is {"step", "total_steps", "loss", "examples_per_s", "eta_s"}, and before the
    first step, while a mixture is read, {"source", "rows"}, and while texts are encoded for the projection {"done",
    "total"}.
    """
    with together(spec, emit) as peers:
        return _train(spec, emit, peers)


def _train(spec: dict[str, Any], emit: Emit, peers: Peers) -> dict[str, Any]:
    source = LedgerRecords(
        make_engine(spec["database_url"]), UUID(spec["run_id"]), spec["label_version"], spec["reviews_until"]
    )
    say = _now_and_then(emit)

    def on_progress(progress: Progress) -> None:
        say(asdict(progress), progress.step == progress.total_steps)

    def on_rows(name: str, rows: int) -> None:
        say({"source": name, "rows": rows})

    def on_texts(done: int, total: int) -> None:
        say({"done": done, "total": total})

    config = TrainingConfig(**spec["config"])
    try:
        return train(
            config,
            source,
            Path(spec["work_dir"]),
            resume_from=[Path(folder) for folder in spec.get("resume_from", ())],
            about=spec.get("about"),
            on_progress=on_progress,
            on_rows=on_rows,
            on_texts=on_texts,
            peers=peers,
        )
    except torch.OutOfMemoryError as error:  # where keeping less does not help by itself: the optimizer, the base
        raise out_of_memory(GPU_KEPT_TOKENS if config.kept_tokens is None else config.kept_tokens, config) from error


def run_evaluation(spec: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Evaluates as the spec says; progress is {"done", "total"} in texts encoded."""
    say = _now_and_then(emit)

    def on_progress(done: int, total: int) -> None:
        say({"done": done, "total": total}, done == total)

    return evaluate(EvaluationConfig(**spec["config"]), on_progress=on_progress)


def _now_and_then(emit: Emit) -> Callable[..., None]:
    """Progress to emit, and whether it is the last of it; of all the rest one every PROGRESS_EVERY_S."""
    last = -PROGRESS_EVERY_S

    def say(progress: dict[str, Any], is_last: bool = False) -> None:
        nonlocal last
        if is_last or time.monotonic() - last >= PROGRESS_EVERY_S:
            emit({"type": "progress", **progress})
            last = time.monotonic()

    return say


def _where(error: Exception) -> dict[str, Any]:
    """What InvalidInputError is made of, so that the parent can raise the same."""
    if not isinstance(error, InvalidInputError):
        return {}
    return {"path": str(error.path), "line": error.line, "rule": error.rule}


def _end_with_parent(pipe: BinaryIO) -> None:
    while pipe.read(1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    # not sys.exit: the thread that reads standard input would hold the interpreter's shutdown
    code = main()
    sys.stderr.flush()
    os._exit(code)
