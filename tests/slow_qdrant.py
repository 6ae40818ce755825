"""A server that speaks as much of Qdrant's REST API as the retriever asks for, and is slow when it is told to be.

It keeps no vector: it is for what a call may hold and how long it may take, which Qdrant's local mode has no limits of.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any


@dataclass
class SlowQdrant:
    url: str = ""
    slow: set[str] = field(default_factory=set)  # ends of the paths that get no answer; "" is all of them
    status: int = 200  # 408: says itself that each call took too long; 429: has too many
    searches: list[int] = field(default_factory=list)  # how many each call held
    points: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, body: Any) -> Any:
        if any(path.endswith(end) for end in self.slow):
            self.over.wait(30)
        if path.endswith("/points/query/batch"):
            self.searches.append(len(body["searches"]))
            return [{"points": []} for _ in body["searches"]]
        if path.endswith("/exists"):
            return {"exists": True}
        if path.endswith("/points/count"):
            return {"count": 10**6}
        if body and "batch" in body:
            self.points.append(len(body["batch"]["ids"]))
            return {"operation_id": 1, "status": "completed"}
        return []  # of the points that are looked up


@contextmanager
def slow_qdrant() -> Iterator[SlowQdrant]:
    state = SlowQdrant()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            path = self.path.partition("?")[0]
            result = state.answer(path, body)
            about = {"title": "qdrant", "version": version("qdrant-client")}
            answer = json.dumps(about if path == "/" else {"result": result, "status": "ok", "time": 0}).encode()
            self.send_response(state.status)
            if state.status == 429:
                self.send_header("Retry-After", "1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PUT = do_GET  # noqa: N815 - the names that the standard library looks for

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return None

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # who waited for it is gone
                return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield state
        finally:
            state.over.set()
            server.shutdown()
            thread.join()
