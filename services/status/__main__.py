"""Serves the status API until SIGTERM, on FRETWORK_STATUS_HOST and FRETWORK_STATUS_PORT or on a socket handed to it.

python -m services.status                serves
python -m services.status --new-token    replaces the token that acting needs, and shows the new one
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable

import structlog
import uvicorn
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from services.status import bearer
from services.status.app import create_app
from shared import telemetry
from shared.database import engine
from shared.errors import FretworkError
from shared.settings import settings

GRACE_S = 5
log = structlog.get_logger()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.status", description="The status API.")
    parser.add_argument("--new-token", action="store_true", help="replace the token that acting needs, and show it")
    if parser.parse_args().new_token:
        try:
            _show_token(bearer.replace_token)
        except (FretworkError, OperationalError) as error:
            sys.exit(f"error: {error}")
        return
    telemetry.configure()
    try:
        _show_token(bearer.make_first_token)
    except (FretworkError, OperationalError) as error:
        log.warning("no token was looked for: the database does not answer as it should", error=str(error))
    _serve()


def _show_token(make: Callable[[Connection], str | None]) -> None:
    """On standard error, once: only its hash is kept."""
    with engine().begin() as connection:
        made = make(connection)
    if made is not None:
        sys.stderr.write(
            f"The token for acting through the status API, shown this once: {made}\n"
            "Send it as `Authorization: Bearer TOKEN`; `python -m services.status --new-token` replaces it.\n"
        )


def _serve() -> None:
    handed = settings().status_fd
    config = uvicorn.Config(
        create_app(is_ending=lambda: server.should_exit),
        host=settings().status_host,
        port=settings().status_port,
        log_config=None,  # telemetry's
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is who connects: a header could claim to be this machine
        timeout_graceful_shutdown=GRACE_S,
    )
    server = uvicorn.Server(config)
    server.run(sockets=None if handed is None else [socket.socket(fileno=handed)])


if __name__ == "__main__":
    main()
