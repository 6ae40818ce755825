"""The stub's answers as vLLM writes them: pure functions from a request's body to the body of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import orjson

from tests import llm_stub_model as model

Body = dict[str, Any]
ENDLESS = "and on " * 5000


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request; several may at once."""

    delay_s: float = 0.0  # on top of the latency, and it holds its place among those in flight
    status: int = 200  # another one comes with an error in place of the answer
    says: str = "the stub was told to say so"  # the error's message
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of the answer
    reset: bool = False  # the connection breaks in mid-answer
    truncated: bool = False  # half the answer, as if it were all of it
    log_probs: bytes | None = None  # in place of every log-probability: b"null", b"NaN"
    completion: str | None = None  # in place of every completion: "", ENDLESS


# vLLM has worked out a NaN or an infinity, and its JSON cannot hold it
NOT_SENT = Fault(status=400, says="Out of range float values are not JSON compliant")


@dataclass(frozen=True, slots=True)
class Server:
    """What a server is, as far as its answers show it."""

    model_name: str
    context_tokens: int
    prompt_logprobs: bool
    label_token_ids: bool


class RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def completions(server: Server, body: Body, fault: Fault) -> bytes:
    """The answer of /v1/completions. Raises RefusedError where one of the prompts does not fit the context."""
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices = [_choice(server, index, prompt, body, fault) for index, prompt in enumerate(prompts)]
    read, written = sum(choice.read for choice in choices), sum(choice.written for choice in choices)
    return (
        b'{"id":"cmpl-stub","object":"text_completion","created":0,"model":"%s","choices":[%s],"usage":'
        b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null}}'
    ) % (server.model_name.encode(), b",".join(choice.json for choice in choices), read, read + written, written)


def chat(server: Server, body: Body, fault: Fault) -> bytes:
    """The answer of /v1/chat/completions, for other programs that are measured against the stub."""
    prompt = "\n".join(str(message["content"]) for message in body["messages"])
    read = _fitting(server, model.count(prompt), 0)
    text, written, finished = _written(prompt, body, fault, body.get("max_completion_tokens") or 1024)
    message = {"role": "assistant", "content": text}
    return orjson.dumps(
        {
            "id": "chatcmpl-stub",
            "object": "chat.completion",
            "created": 0,
            "model": server.model_name,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop" if finished else "length"}],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    json: bytes
    read: int
    written: int


def _choice(server: Server, index: int, prompt: str, body: Body, fault: Fault) -> _Choice:
    scored = b"null"
    if body.get("prompt_logprobs") is not None and server.prompt_logprobs:
        whole = model.score(prompt)
        read, scored = whole.tokens, whole.entries
    else:
        read = model.count(prompt)
    _fitting(server, read, body.get("max_tokens") or 16)
    text, written, finished = _written(prompt, body, fault, 16)
    logprobs = b"null" if body.get("logprobs") is None else _top_logprobs(server, prompt, text, body)
    if fault.log_probs is not None:
        scored, logprobs = _spoilt(scored, fault.log_probs), _spoilt(logprobs, fault.log_probs)
    choice = (
        b'{"index":%d,"text":%s,"logprobs":%s,"finish_reason":"%s","stop_reason":null,"token_ids":null,'
        b'"prompt_logprobs":%s,"prompt_token_ids":null,"routed_experts":null}'
    ) % (index, orjson.dumps(text), logprobs, b"stop" if finished else b"length", scored)
    return _Choice(choice, read, written)


def _fitting(server: Server, read: int, max_tokens: int) -> int:
    if read + max_tokens > server.context_tokens:
        raise RefusedError(
            400,
            f"This model's maximum context length is {server.context_tokens} tokens. However, you requested "
            f"{max_tokens} output tokens and your prompt contains {read} input tokens. "
            "Please reduce the length of the input prompt.",
        )
    return read


def _written(prompt: str, body: Body, fault: Fault, default_tokens: int) -> tuple[str, int, bool]:
    text = fault.completion if fault.completion is not None else _write(prompt, body.get("seed"))
    stop: Sequence[str] = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    return model.cut_off(text, body.get("max_tokens") or default_tokens, stop)


@lru_cache(maxsize=8192)
def _write(prompt: str, seed: int | None) -> str:
    return model.write(prompt, seed)


def _top_logprobs(server: Server, prompt: str, text: str, body: Body) -> bytes:
    """Of the first token alone: nobody asks for more."""
    (sampled, *_) = model.tokenize(text, special=False) or [model.BOS]
    wanted = (body.get("logprob_token_ids") or []) if server.label_token_ids else []
    named = {
        f"token_id:{token_id}" if body.get("return_tokens_as_token_ids") else model.detokenize([token_id]): value
        for token_id, value in model.next_log_probs(prompt, [sampled, *wanted]).items()
    }
    first, value = next(iter(named.items()))
    return orjson.dumps({"text_offset": [0], "token_logprobs": [value], "tokens": [first], "top_logprobs": [named]})


def _spoilt(answer: bytes, value: bytes) -> bytes:
    """The answer with `value` for every log-probability: JSON, or what a server takes for it."""
    if answer == b"null":
        return answer
    loaded = orjson.loads(answer)
    if isinstance(loaded, list):
        for entry in loaded:
            for found in (entry or {}).values():
                found["logprob"] = "spoilt"
    else:
        loaded["token_logprobs"] = ["spoilt"]
        loaded["top_logprobs"] = [dict.fromkeys(top, "spoilt") for top in loaded["top_logprobs"]]
    return orjson.dumps(loaded).replace(b'"spoilt"', value)
