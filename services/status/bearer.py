"""The bearer token that acting needs: FRETWORK_STATUS_TOKEN, or one made at the first start and shown that once.

The database keeps the SHA-256 of a token that was made, never the token.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256

from sqlalchemy import Connection, text

from shared.errors import SettingError
from shared.settings import settings


def make_first_token(connection: Connection) -> str | None:
    """A new token if there is none yet, neither set nor made before; else None."""
    if settings().status_token is not None:
        return None
    connection.execute(text("LOCK TABLE status_token"))  # two that start at once make one
    if connection.execute(text("SELECT count(*) FROM status_token")).scalar_one():
        return None
    return replace_token(connection)


def replace_token(connection: Connection) -> str:
    """A new token in the place of the one before. Raises SettingError where FRETWORK_STATUS_TOKEN decides."""
    if settings().status_token is not None:
        raise SettingError("FRETWORK_STATUS_TOKEN is the token: change it there, and restart the status API")
    made = secrets.token_urlsafe(32)
    connection.execute(text("DELETE FROM status_token"))
    connection.execute(text("INSERT INTO status_token (sha256) VALUES (:sha256)"), {"sha256": _digest(made)})
    return made


def is_valid(connection: Connection, given: str) -> bool:
    """In a time that does not depend on how much of it is right. Raises SettingError where there is no token yet."""
    return hmac.compare_digest(_digest(given), _expected(connection))


def _expected(connection: Connection) -> str:
    chosen = settings().status_token
    if chosen is not None:
        return _digest(chosen.get_secret_value())
    kept = connection.execute(text("SELECT sha256 FROM status_token")).scalar_one_or_none()
    if kept is None:
        raise SettingError("no token has been made yet: restart the status API, or set FRETWORK_STATUS_TOKEN")
    return str(kept)


def _digest(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
