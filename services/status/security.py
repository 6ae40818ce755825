"""Who may ask, and what a browser may do with the answers.

Reading is free on this machine; from elsewhere it needs the token, unless FRETWORK_STATUS_READ_FROM_ANYWHERE says that
whoever can connect may read. Acting needs the token always. No other site's page gets at either: there is no CORS, and
a name in `Host` that is not ours (DNS rebinding) is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import MutableMapping
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.status import bearer
from services.status.problems import problem
from shared.settings import settings

MAX_BODY_BYTES = 64 * 1024
CHALLENGE = {"WWW-Authenticate": "Bearer"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_bearer = HTTPBearer(auto_error=False, description="what acting needs; see docs/status-api.md for where it is")
Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def may_read(request: Request, given: Given) -> None:
    """Raises HTTPException 401."""
    if given is None and (_is_this_machine(request) or settings().status_read_from_anywhere):
        return
    _check(request, given, "reading from another machine")


def may_act(request: Request, given: Given) -> None:
    """Raises HTTPException 401."""
    _check(request, given, "this")


def _check(request: Request, given: HTTPAuthorizationCredentials | None, what: str) -> None:
    if given is None:
        raise HTTPException(401, f"{what} needs a token: send it as `Authorization: Bearer TOKEN`", CHALLENGE)
    with request.app.state.engine().connect() as connection:
        if not bearer.is_valid(connection, given.credentials):
            raise HTTPException(401, "this is not the token: docs/status-api.md says where it is", CHALLENGE)


def _is_this_machine(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:  # a name, as a test's client has
        return False


def _is_ours(host: str) -> bool:
    """Whether a Host header names this server: an address, `localhost`, or a name of FRETWORK_STATUS_HOSTS."""
    name = host.rsplit("]", 1)[0].removeprefix("[") if host.startswith("[") else host.rsplit(":", 1)[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in {"localhost", *settings().status_host_names}
    return True


class Guard:
    """ASGI middleware: refuses a foreign Host with 403 and a body that says it is too large with 413.

    On every answer it sets the headers that browsers heed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _set_headers(scope, message)
            await send(message)

        headers = Headers(scope=scope)
        host, length = headers.get("host", ""), headers.get("content-length", "")
        answer: ASGIApp = self.app
        if not _is_ours(host):
            answer = problem(403, f"this server is not called {host!r}: name it in FRETWORK_STATUS_HOSTS if it is")
        elif length.isdecimal() and int(length) > MAX_BODY_BYTES:
            answer = problem(413, f"a body holds at most {MAX_BODY_BYTES:,} bytes, and this one has {length}")
        await answer(scope, receive, send_guarded)


def _set_headers(scope: MutableMapping[str, Any], message: Message) -> None:
    headers = MutableHeaders(raw=message["headers"])
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    # a static file may be kept if the server is asked whether it is still the same
    headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
