"""Whether what Fretwork leans on answers: asked at once, each within two seconds, with the reason where it does not."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError

import redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from services.status.models import Dependency, Readiness
from shared.errors import FretworkError
from shared.settings import settings

LIMIT_S = 2.0
NEEDED = ("database", "broker")
_pool = ThreadPoolExecutor(16, thread_name_prefix="readiness")


def ask_all(engine: Callable[[], Engine]) -> Readiness:
    """Ready is: database and broker answer. Qdrant and LLM servers are reported, where they are configured."""
    asked_at = time.monotonic()
    asked = [(name, _pool.submit(_timed, probe)) for name, probe in _probes(engine)]
    found = [_dependency(name, future, asked_at + LIMIT_S) for name, future in asked]
    return Readiness(ready=all(each.ok for each in found if each.name in NEEDED), dependencies=found)


def _probes(engine: Callable[[], Engine]) -> list[tuple[str, Callable[[], None]]]:
    def database() -> None:
        with engine().connect() as connection:
            connection.execute(text("SELECT 1"))

    def broker() -> None:
        client = redis.Redis.from_url(
            settings().require_broker_url(), socket_timeout=LIMIT_S, socket_connect_timeout=LIMIT_S
        )
        with client:
            client.ping()

    probes: list[tuple[str, Callable[[], None]]] = [("database", database), ("broker", broker)]
    qdrant_url = settings().qdrant_url
    if qdrant_url is not None:
        probes.append(("qdrant", _answers(f"{qdrant_url.rstrip('/')}/readyz")))
    # a model list is what every server of this protocol has; most ask no key for it, and a 401 is an answer too
    urls = settings().llm.base_urls
    names = ["llm"] if len(urls) == 1 else [f"llm {number}" for number in range(1, len(urls) + 1)]
    return probes + [(name, _answers(f"{url}/models")) for name, url in zip(names, urls, strict=True)]


def _answers(url: str) -> Callable[[], None]:
    def probe() -> None:
        whole = urllib.parse.urlsplit(url)
        bare = whole._replace(netloc=whole.netloc.rpartition("@")[2]).geturl()  # urllib cannot read a password
        try:
            urllib.request.urlopen(bare, timeout=LIMIT_S).close()  # noqa: S310 - the operator's own address
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:
                raise

    return probe


def _timed(probe: Callable[[], None]) -> float:
    started_at = time.monotonic()
    probe()
    return time.monotonic() - started_at


def _dependency(name: str, future: Future[float], until: float) -> Dependency:
    try:
        seconds = future.result(timeout=max(0.0, until - time.monotonic()))
    except LateError:
        return Dependency(name=name, ok=False, reason=f"no answer within {LIMIT_S:g} s")
    except FretworkError as error:
        return Dependency(name=name, ok=False, reason=str(error))
    except (SQLAlchemyError, redis.RedisError, http.client.HTTPException, ValueError, OSError) as error:
        # the class alone: a driver's message may hold an address with its password
        return Dependency(name=name, ok=False, reason=f"{type(error).__name__}: it does not answer as it should")
    return Dependency(name=name, ok=True, seconds=round(seconds, 4))
