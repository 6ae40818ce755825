"""Serves the status API on FRETWORK_STATUS_HOST and FRETWORK_STATUS_PORT until SIGTERM."""

from __future__ import annotations

import uvicorn

from services.status.app import create_app
from shared import telemetry
from shared.settings import settings

GRACE_S = 5


def main() -> None:
    telemetry.configure()
    uvicorn.run(
        create_app(),
        host=settings().status_host,
        port=settings().status_port,
        log_config=None,  # telemetry's
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


if __name__ == "__main__":
    main()
