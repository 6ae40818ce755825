"""Serves the status API until SIGTERM, on FRETWORK_STATUS_HOST and FRETWORK_STATUS_PORT or on a socket handed to it."""

from __future__ import annotations

import socket

import uvicorn

from services.status.app import create_app
from shared import telemetry
from shared.settings import settings

GRACE_S = 5


def main() -> None:
    telemetry.configure()
    handed = settings().status_fd
    config = uvicorn.Config(
        create_app(),
        host=settings().status_host,
        port=settings().status_port,
        log_config=None,  # telemetry's
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(config).run(sockets=None if handed is None else [socket.socket(fileno=handed)])


if __name__ == "__main__":
    main()
