"""Runs a training or an evaluation as a child process, so that the worker itself never imports torch.

The child reads its specification on the first line of its standard input and ends when that pipe closes: when this
process dies, however it dies, the child does too. Its standard output carries one JSON object a line: `progress`,
and at last `result` or `error`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from shared import errors


def run_child(
    kind: str, specification: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The child's result, for kind `train` or `evaluate`.

    Raises the error that the child reports, where it is one of shared.errors; FretworkError for any other end.
    """
    last: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "services.trainer.child", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None  # noqa: S101 - a pipe
        assert child.stdout is not None  # noqa: S101 - a pipe
        try:
            child.stdin.write(json.dumps(specification) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                last = json.loads(line)
                if last["type"] == "progress":
                    on_progress(last)
        finally:
            child.stdin.close()
    if last.get("type") == "result":
        return last
    if last.get("type") == "error":
        raise _error(last)
    raise errors.FretworkError(
        f"the {kind} process ended with exit status {child.returncode} and no result; its log is the trainer's"
        + hint(child.returncode)
    )


def hint(exit_status: int) -> str:
    """What may have ended a process of which nothing else is known."""
    killed = exit_status == -signal.SIGKILL
    return "; perhaps memory ran out: for a training, lower --kept-tokens, then --passage-max-len" if killed else ""


def _error(reported: dict[str, Any]) -> Exception:
    """The reported error again: what the ledger does next depends on its class."""
    message = str(reported["message"])
    if reported["error_type"] == "InvalidInputError":
        return errors.InvalidInputError(reported.get("path", ""), reported.get("line"), reported.get("rule", message))
    known = getattr(errors, str(reported["error_type"]), None)
    if isinstance(known, type) and issubclass(known, errors.FretworkError):
        return known(message)
    kind = errors.TransientError if reported.get("transient") else errors.FretworkError
    return kind(f"{reported['error_type']}: {message}")
