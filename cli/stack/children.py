"""The list of Fretwork's own processes on one machine: a worker per queue, the dispatcher, the status API."""

from __future__ import annotations

import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cli.stack.processes import Child, ChildSpec
from cli.stack.state import Addresses
from shared.models import as_given

# threads per queue; the retriever's second reads the database while the first embeds
WORKERS: Mapping[str, int] = {"retriever": 2, "generator": 4, "relabeler": 4, "trainer": 1}
TOKEN_FILE = "status.token"  # noqa: S105 - its name
TORCH_QUEUES = ("retriever", "trainer")


def worker(home: Path, addresses: Addresses, queue: str, threads: int) -> ChildSpec:
    command = (
        *("-m", "celery", "-A", f"services.{queue}.tasks", "worker", "--queues", queue, "--hostname", f"{queue}@%h"),
        *("--pool", "threads", "--concurrency", str(threads), "--loglevel", "INFO"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    math_threads = str(cores if queue in TORCH_QUEUES else 1)
    env = {"OMP_NUM_THREADS": math_threads, "MKL_NUM_THREADS": math_threads}
    if queue != "trainer":  # its child tokenizes while all cores wait for it, and forks nothing afterwards
        env["TOKENIZERS_PARALLELISM"] = "false"
    return _python(queue, command, home, addresses, env, ready=_says_ready)


def dispatcher(home: Path, addresses: Addresses) -> ChildSpec:
    return _python("dispatcher", ("-m", "services.dispatcher"), home, addresses, {})


def status(home: Path, addresses: Addresses, listener_fd: int) -> ChildSpec:
    """It is handed the open socket, so that nobody takes the port while it starts, or starts again, and the token."""
    ours = {"FRETWORK_STATUS_FD": str(listener_fd), "FRETWORK_STATUS_TOKEN": status_token(home)}
    url = f"{addresses.status_url}/healthz"
    spec = _python("status", ("-m", "services.status"), home, addresses, {}, ours, lambda child: _answers(url))
    return replace(spec, pass_fds=(listener_fd,))


def status_token(home: Path) -> str:
    """FRETWORK_STATUS_TOKEN, or one that is made once and kept in the home, for its owner alone to read."""
    chosen = os.environ.get("FRETWORK_STATUS_TOKEN")
    if chosen:
        return chosen
    file = home / TOKEN_FILE
    with suppress(FileExistsError), open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
        new.write(f"{secrets.token_urlsafe(32)}\n")
    return file.read_text().strip()


def _python(
    name: str,
    arguments: tuple[str, ...],
    home: Path,
    addresses: Addresses,
    env: Mapping[str, str],
    ours: Mapping[str, str] | None = None,
    ready: Callable[[Child], bool] = lambda child: True,
) -> ChildSpec:
    """A Python program of ours. It runs in the home: Celery imports from where it stands before anything else, and a
    user's own folder may well hold a package `services` or `shared`.
    """
    forced = {
        **(ours or {}),
        "FRETWORK_HOME": str(home),
        "FRETWORK_DATABASE_URL": addresses.database_url,
        "FRETWORK_BROKER_URL": addresses.broker_url or "",
        "PYTHONSAFEPATH": "1",
    }
    model = os.environ.get("FRETWORK_LLM__MODEL")
    if model and not os.environ.get("FRETWORK_LLM__BASE_URL"):
        forced["FRETWORK_LLM__MODEL"] = as_given(model)  # it may be a folder
    if os.environ.get("FRETWORK_LOG_LEVEL", "").upper() != "DEBUG":
        forced["FRETWORK_LOG_LEVEL"] = "INFO"  # that a worker is ready is read from its log
    return ChildSpec(name, (sys.executable, *arguments), {**env, **os.environ, **forced}, home, ready=ready)


def _says_ready(child: Child) -> bool:
    return f"{child.spec.name}@" in (output := child.output()) and " ready." in output


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - our own address
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
