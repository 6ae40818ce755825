"""Errors, logs and the ledger hold no key, no prompt and no password, whatever a server sends back."""

from __future__ import annotations

import itertools
import logging
from contextlib import aclosing

import pytest
import structlog
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import Engine, text

from shared.llm import EndpointError, PromptRefusedError
from shared.llm.loop import on_loop
from shared.llm.transport import Transport
from tests.integration.llm.asking import KEY, PROMPT, ask, run, server, settings, state_of


@pytest.mark.usefixtures("hasty")
def test_neither_key_nor_prompt_nor_password_stands_in_an_error_or_a_log(
    engines: list[Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[Exception] = []

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        status = next(statuses)
        what = f"{(await request.read()).decode()} {dict(request.headers)}"
        return web.json_response({"error": {"message": f"bad key {KEY} {what}"}}, status=status)

    async def work() -> None:
        async with server(echo) as url:
            wish = settings(url, max_retries=0, api_key=SecretStr(KEY))
            for _ in range(8):
                async with aclosing(Transport(wish, state_of(engines[0]))) as sender:
                    try:
                        await ask(sender)
                    except (EndpointError, PromptRefusedError) as error:
                        errors.append(error)
                    try:
                        await sender.get("/models")
                    except EndpointError as error:
                        errors.append(error)
                with engines[0].begin() as connection:
                    errors.extend(map(Exception, connection.execute(text("SELECT error FROM endpoints")).scalars()))
                    connection.execute(text("DELETE FROM endpoints"))

    statuses = itertools.cycle([400, 400, 401, 401, 404, 404, 500, 500, 302])
    with structlog.testing.capture_logs() as logs:
        on_loop(work())
        with pytest.raises(EndpointError) as caught:
            run(settings("http://me:pass-9876@127.0.0.1:9/v1", max_retries=0), ask)
        errors.append(caught.value)
    assert len(errors) > 15
    assert logs
    for said in [*map(str, errors), *map(repr, errors), str(logs), caplog.text]:
        assert KEY not in said
        assert PROMPT[:12] not in said
        assert "pass-9876" not in said
