"""The process's one back end, made at first use and kept: what it is, the settings decide.

Torch comes in here and only where a local model is asked for, so that the services that speak to a server run without.
"""

from __future__ import annotations

import atexit
import os
from collections import defaultdict
from dataclasses import replace
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any

import orjson

from shared import heartbeat
from shared.errors import SettingError, TooSlowError
from shared.llm import LLM, AnswerError, EndpointDownError, EndpointError, Spent, Usage
from shared.llm.answers import read_context_tokens, read_models
from shared.llm.loop import on_loop
from shared.llm.probe import chosen_model
from shared.llm.server import ServerLLM
from shared.llm.shared_state import SharedState
from shared.llm.transport import Transport
from shared.models import as_given
from shared.records import LLMConfig
from shared.settings import LLMSettings
from shared.settings import settings as process_settings

OPEN_WITHIN_S = 30.0  # others of this process wait meanwhile, with their shards claimed

_making = Lock()
_open: defaultdict[int, list[Transport]] = defaultdict(list)  # by process


def nothing(_: Usage) -> None:
    """For a caller that does not count."""


def open_llm(settings: LLMSettings, spent: Spent = nothing) -> LLM:
    """The LLM that the settings name, for a thread that is not the event loop's; `spent` hears what each call cost.

    Raises SettingError where none is named or the local one cannot be run, EndpointDownError where the server
    cannot be asked what it serves.
    """
    if not settings.is_configured:
        raise SettingError(
            "no LLM is configured: set FRETWORK_LLM__BASE_URL to a server such as http://host:8000/v1, or "
            "FRETWORK_LLM__MODEL to a folder or hub name to run in this process"
        )
    pid = os.getpid()
    with _making:
        kept = _kept_server(settings, pid) if settings.base_url is not None else _kept_local(settings.model or "", pid)
    llm: LLM = replace(kept, spent=spent)
    return llm


def open_run_llm(run_name: str, config: LLMConfig, spent: Spent) -> LLM:
    """`open_llm` for a run, with the model and the context that it was started with.

    Raises SettingError where the settings name another model, EndpointDownError where the context is now a shorter one.
    """
    named, model = process_settings().llm, config.model
    if named.model is not None and (named.model if named.base_url is not None else as_given(named.model)) != model:
        raise SettingError(
            f"run {run_name} was started with the model {model!r}, and this worker's is {named.model!r}: "
            "set FRETWORK_LLM__BASE_URL and FRETWORK_LLM__MODEL as they were when the run started"
        )
    # by its name, so that a server that is down at this moment need not be asked what it serves
    llm = open_llm(named.model_copy(update={"model": model}) if named.is_configured else named, spent)
    context_tokens = config.context_tokens or llm.context_tokens
    if llm.context_tokens < context_tokens:
        raise EndpointDownError(
            f"run {run_name} was started with a context of {context_tokens:,} tokens, and {model} is served with "
            f"{llm.context_tokens:,} now: serve it as before"
        )
    return replace(llm, context_tokens=context_tokens)  # type: ignore[type-var] # both back ends are dataclasses


# By process, and never let go: a forked child has none of the threads that these stand on, and if it threw away its
# copy of a session, the parent's sockets would fall silent with it, since both share one epoll.
@cache
def _kept_server(settings: LLMSettings, pid: int) -> ServerLLM:
    try:
        return on_loop(_opened(_transport(settings, pid), settings), OPEN_WITHIN_S)
    except TooSlowError:
        raise EndpointDownError(f"the LLM endpoint did not say what it serves within {OPEN_WITHIN_S:g} s") from None


async def _opened(transport: Transport, settings: LLMSettings) -> ServerLLM:
    """Whatever of the endpoint is not as it was when the run started may change back, and is about no shard."""
    model = settings.model
    try:
        if model is None:
            model = chosen_model("the LLM endpoint", read_models(await transport.get("/models")), None).id
        body = orjson.dumps({"model": model, "prompt": "a"})
        context_tokens = await transport.post(
            "/tokenize", body, kind="tokenize", decoder=read_context_tokens, root=True
        )
    except (SettingError, AnswerError, EndpointError) as error:
        raise EndpointDownError(str(error)) from error
    return ServerLLM(transport, model, context_tokens, nothing)


@cache
def _transport(settings: LLMSettings, pid: int) -> Transport:
    transport = Transport(settings, SharedState() if process_settings().database_url is not None else None)
    _open[pid].append(transport)
    return transport


def close() -> None:
    """Closes this process's connections to LLM servers, where there are any; they are opened anew when needed."""
    with _making:
        for transport in _open.pop(os.getpid(), []):
            on_loop(transport.aclose())
        _kept_server.cache_clear()
        _transport.cache_clear()


def _loads() -> list[dict[str, Any]]:
    return [load for transport in list(_open.get(os.getpid(), ())) for load in transport.loads()]


atexit.register(close)
heartbeat.llm_loads = _loads


@cache
def _kept_local(name_or_path: str, _pid: int) -> Any:
    try:
        local = import_module("shared.llm.local")
    except ImportError as error:
        raise SettingError(
            f"FRETWORK_LLM__MODEL without FRETWORK_LLM__BASE_URL runs {name_or_path} in this process, which needs "
            f"torch and transformers ({error}): pip install 'fretwork[local]', or set FRETWORK_LLM__BASE_URL"
        ) from error
    return local.LocalLLM.load(name_or_path, nothing)
