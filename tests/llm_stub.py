"""An LLM server for tests and benchmarks: real HTTP, vLLM's dialect of the calls that Fretwork makes, a toy model.

    with StubLLM() as stub:
        stub.fault = lambda path, body, number: Fault(status=503) if number < 3 else None
        ... stub.base_url ... stub.seen ...

It runs in a thread; `python -m tests.llm_stub --port 8000` runs it as a process of its own. Its answers depend on the
request alone, so a run against it gives the same records every time, whatever the faults.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from aiohttp import web

from cli.stack.processes import free_port
from tests import llm_stub_model as model
from tests.llm_stub_answers import ENDLESS, NOT_SENT, Body, Fault, RefusedError, Server, chat, completions

__all__ = ["ENDLESS", "NOT_SENT", "Fault", "Seen", "StubLLM"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    path: str
    body: Body
    at: float  # time.monotonic()
    headers: dict[str, str]


class StubLLM:
    """A server on 127.0.0.1; `port=0` takes a free one, which no client is given while the server is away."""

    def __init__(
        self,
        *,
        port: int = 0,
        model_name: str = "stub",
        context_tokens: int = 4096,
        api_key: str | None = None,
        latency_s: float = 0.0,
        in_flight: int = 64,
        prompt_logprobs: bool = True,  # False: a server that ignores the wish
        label_token_ids: bool = True,  # False: an older vLLM, which ignores logprob_token_ids
        remember: bool = True,
    ) -> None:
        self.port, self.api_key, self.remember = port or free_port(), api_key, remember
        self.latency_s, self.in_flight = latency_s, in_flight
        self.server = Server(model_name, context_tokens, prompt_logprobs, label_token_ids)
        self.fault: Callable[[str, Body, int], Fault | None] | None = None
        self.seen: list[Seen] = []
        self.answered_at: list[float] = []  # time.monotonic() of each completed answer
        self.waiting = self.running = self.most_running = 0
        self._numbers = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-stub", daemon=True)
        self._runner: web.ServerRunner | None = None

    @property
    def root_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    def __enter__(self) -> StubLLM:
        self._thread.start()
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def go_away(self) -> None:
        """Breaks all connections and listens no more, until `come_back`."""
        self._run(self._stop())

    def come_back(self) -> None:
        """Listens again; where it does already, as when two have taken it away, nothing."""
        if self._runner is None:
            self._run(self.listen())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def listen(self) -> None:
        self._places = asyncio.Semaphore(self.in_flight)
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.05
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=1024, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path == "/health":
            return web.Response()
        if path == "/metrics":
            return web.Response(text=self._metrics())
        if path == "/stub":  # what a benchmark asks of a stub in another process; it begins anew each time
            told = {"answered_at": self.answered_at, "seen": [[one.path, one.body] for one in self.seen]}
            self.answered_at, self.seen = [], []
            return _json(orjson.dumps(told))
        raw = await request.read()
        body: Body = orjson.loads(raw) if raw else {}
        number, self._numbers = self._numbers, self._numbers + 1
        if self.remember:
            self.seen.append(Seen(path, body, time.monotonic(), dict(request.headers)))
        fault = self.fault(path, body, number) if self.fault is not None else None
        if path.startswith("/v1") and self.api_key not in (None, _bearer(request)):
            return _json(orjson.dumps({"error": "Unauthorized"}), 401)
        if fault is not None and fault.status != 200:
            await asyncio.sleep(fault.delay_s)
            return _error(fault.status, fault.says, fault.headers)
        try:
            answer = await self._answer(path, body, fault or Fault())
        except RefusedError as refused:
            return _error(refused.status, str(refused), {})
        except ValueError:
            return _error(400, "a token id is out of the vocabulary", {})
        if fault is None:
            return _json(answer)
        answer = fault.body if fault.body is not None else answer
        if fault.reset:
            return await _reset(request, answer)
        return _json(answer[: len(answer) // 2] if fault.truncated else answer)

    async def _answer(self, path: str, body: Body, fault: Fault) -> bytes:
        if path == "/v1/models":
            return self._models()
        if body.get("model") not in (None, self.server.model_name):
            raise RefusedError(404, f"The model `{body['model']}` does not exist.")
        if path == "/tokenize":
            ids = model.tokenize(body["prompt"], special=body.get("add_special_tokens", True))
            strings = [model.token_string(i) for i in ids] if body.get("return_token_strs") else None
            return orjson.dumps(
                {"count": len(ids), "max_model_len": self.server.context_tokens, "tokens": ids, "token_strs": strings}
            )
        if path == "/detokenize":
            return orjson.dumps({"prompt": model.detokenize(body["tokens"])})
        write = {"/v1/completions": completions, "/v1/chat/completions": chat}.get(path)
        if write is None:
            raise RefusedError(404, "Not Found")
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = write(self.server, body, fault)
            if self.latency_s + fault.delay_s:
                await asyncio.sleep(self.latency_s + fault.delay_s)
            self.answered_at.append(time.monotonic())
            return answer
        finally:
            self.running -= 1
            self._places.release()

    def _models(self) -> bytes:
        name, context_tokens = self.server.model_name, self.server.context_tokens
        entry = {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": context_tokens}
        return orjson.dumps({"object": "list", "data": [entry]})

    def _metrics(self) -> str:
        labels = f'{{engine="0",model_name="{self.server.model_name}"}}'
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {self.running}.0\n"
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{labels} {self.waiting}.0\n"
        )


def _bearer(request: web.BaseRequest) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def _error(status: int, message: str, headers: dict[str, str]) -> web.Response:
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    error = {"message": message, "type": kind, "param": None, "code": status}
    return _json(orjson.dumps({"error": error}), status, headers)


async def _reset(request: web.BaseRequest, answer: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(answer))})
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport is not None:
        request.transport.abort()
    return response


async def _serve(stub: StubLLM) -> None:
    await stub.listen()
    print(f"listening on {stub.base_url}", flush=True)  # noqa: T201 - who started it waits for this line
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--remember", action="store_true", help="keep the requests, for GET /stub")
    given = parser.parse_args()
    stub = StubLLM(
        port=given.port, latency_s=given.latency_ms / 1000, in_flight=given.in_flight, remember=given.remember
    )
    try:
        asyncio.run(_serve(stub))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
