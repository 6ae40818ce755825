"""Answers of a real vLLM server, recorded, and a transport that replays them: same request, same answer, no socket.

tests/recordings/NAME.json: `calls`, each with path, request and answer; `transformers`, what the local back end gave
for the same texts and the same weights at the time (tests/awkward_texts.py). FRETWORK_TEST_VLLM_RECORD
in tests/vllm/test_exactness.py writes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FOLDER = Path(__file__).parent / "recordings"
NAMES = ("stories260K", "bytelevel")


@dataclass(frozen=True)
class Recording:
    calls: dict[tuple[str, str], bytes]  # (path, request) -> answer
    transformers: dict[str, Any]

    async def post(self, path: str, body: bytes, *, decoder: Callable[[bytes], T], **_: object) -> T:
        """As `Transport.post`. Raises KeyError for a request that was not recorded: then record anew."""
        return decoder(self.calls[path, _sorted(json.loads(body))])


@cache
def recording(name: str) -> Recording:
    loaded = json.loads((FOLDER / f"{name}.json").read_text())
    calls = {(call["path"], _sorted(call["request"])): json.dumps(call["answer"]).encode() for call in loaded["calls"]}
    return Recording(calls, loaded["transformers"])


def _sorted(request: dict[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)
