"""A server's answers as values: pure functions from the bytes of vLLM's /v1/completions, /tokenize and /models.

Typed decoding (msgspec) skips what is not asked for. A body that is no answer to the question is an AnswerError, which
the transport treats as a server's failure; a log-probability that is missing or no number stays NaN here, and it is the
caller that decides what becomes of its prompt. This room sends nothing and knows no tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite, nan
from typing import TypeVar

import msgspec

from shared.llm import AnswerError, Completion, Usage

S = TypeVar("S")

UNNAMED = -1

# the end of one token's entry in prompt_logprobs and the start of the next one's: where a tail is cut, and how far in
_BETWEEN, _TO_NEXT = b'}},{"', 3

# a log-probability is at most 0; what lies above by more than rounding is something else (raw logits, for example)
_ROUNDING = 1e-4
_ID_DIGITS = 18  # Python itself reads no number of thousands of digits


class _LogProb(msgspec.Struct):
    logprob: float | None = None


class _LogProbs(msgspec.Struct):
    top_logprobs: list[dict[str, float | None] | None] | None = None


class _Choice(msgspec.Struct):
    index: int
    text: str = ""
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None
    prompt_logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0


class _Body(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]
    max_model_len: int | None = None


class _Text(msgspec.Struct):
    prompt: str


class ServedModel(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct):
    data: list[ServedModel]


_BODY = msgspec.json.Decoder(_Body)
_STEPS = msgspec.json.Decoder(list[dict[int, _LogProb] | None])
_TOKENS = msgspec.json.Decoder(_Tokens)
_TEXT = msgspec.json.Decoder(_Text)
_MODELS = msgspec.json.Decoder(_Models)


@dataclass(frozen=True, slots=True)
class Completed:
    completion: Completion
    usage: Usage


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Token ids and their log-probabilities in nats, (T,) each; NaN where there is none.

    A prompt's first token is named by no answer and has no log-probability: it stands here as UNNAMED and NaN.
    """

    ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt's `prompt_logprobs`, as the JSON list that came: most of it is a prompt's beginning, which nobody reads.

    Both methods raise AnswerError where the list is of another form than vLLM's.
    """

    json: bytes

    def whole(self) -> TokenScores:
        return _scores_of(_decode(self.json, _STEPS))

    def tail(self, length: int) -> TokenScores:
        """The last `length` tokens; cut out of the JSON where it is as compact as vLLM writes it.

        A token's text may end in what stands between two tokens, but then no digit follows the quotation mark.
        """
        start = len(self.json)
        try:
            for _ in range(length):
                start = self.json.rindex(_BETWEEN, 0, start)
                while not self.json[start + len(_BETWEEN) : start + len(_BETWEEN) + 1].isdigit():
                    start = self.json.rindex(_BETWEEN, 0, start)
            steps = _STEPS.decode(b"[" + self.json[start + _TO_NEXT :]) if length else []
        except (ValueError, msgspec.MsgspecError, RecursionError):
            steps = []
        if len(steps) == length:
            return _scores_of(steps)
        scores = self.whole()
        first = len(scores.ids) - length
        return TokenScores(scores.ids[first:], scores.log_probs[first:])


@dataclass(frozen=True, slots=True)
class Scored:
    prompts: list[ScoredPrompt]
    usage: Usage


@dataclass(frozen=True, slots=True)
class NextTokens:
    """For each prompt the log-probabilities, in nats, of those next tokens that the answer names; NaN for a bad one."""

    rows: list[dict[int, float]]
    usage: Usage


def read_completion(body: bytes) -> Completed:
    """The answer to one prompt. Raises AnswerError, also where the server gave up in the middle."""
    answer = _decode(body, _BODY)
    (choice,) = _in_order(answer, 1)
    if choice.finish_reason not in ("stop", "length"):
        raise AnswerError(f"the completion ended for the reason {choice.finish_reason!r}, not with stop or length")
    if answer.usage is None:
        raise AnswerError("the answer does not say how many tokens it cost (usage)")
    return Completed(Completion(choice.text, finished=choice.finish_reason == "stop"), _usage(answer, 1, 0))


def read_scores(body: bytes, count: int) -> Scored:
    """The answer to `count` prompts with prompt_logprobs. Raises AnswerError where a prompt has no such list at all."""
    answer = _decode(body, _BODY)
    prompts = [ScoredPrompt(bytes(choice.prompt_logprobs)) for choice in _in_order(answer, count)]
    for number, prompt in enumerate(prompts):
        if not prompt.json.startswith(b"[") or len(prompt.json) < len(b"[null]"):
            raise AnswerError(f"prompt {number} of {count} came back without prompt_logprobs")
    counted = 0 if answer.usage else sum(len(prompt.whole().ids) for prompt in prompts)
    return Scored(prompts, _usage(answer, count, counted))


def read_next_tokens(body: bytes, count: int) -> NextTokens:
    """The answer to `count` prompts with logprobs of one generated token, named by its id (`token_id:17`)."""
    answer = _decode(body, _BODY)
    if answer.usage is None:
        raise AnswerError("the answer does not say how many tokens it cost (usage)")
    rows = []
    for choice in _in_order(answer, count):
        steps = choice.logprobs.top_logprobs if choice.logprobs else None
        if not steps or steps[0] is None:
            raise AnswerError(f"prompt {choice.index} of {count} came back without logprobs")
        row = {}
        for name, value in steps[0].items():
            kind, _, number = name.rpartition(":")
            if kind == "token_id" and number.isdecimal() and len(number) <= _ID_DIGITS:
                row[int(number)] = _log_prob(value)
        rows.append(row)
    return NextTokens(rows, _usage(answer, count, 0))


def read_tokens(body: bytes) -> list[int]:
    """The ids in the answer of /tokenize."""
    return _decode(body, _TOKENS).tokens


def read_context_tokens(body: bytes) -> int:
    """The longest that prompt and completion may be together, in tokens, as the answer of /tokenize has it."""
    found = _decode(body, _TOKENS).max_model_len
    if found is None:
        raise AnswerError("the answer of /tokenize does not say how long the context is (max_model_len)")
    return found


def read_text(body: bytes) -> str:
    """The text in the answer of /detokenize."""
    return _decode(body, _TEXT).prompt


def read_models(body: bytes) -> list[ServedModel]:
    """The models in the answer of /models."""
    return _decode(body, _MODELS).data


def _decode(body: bytes, decoder: msgspec.json.Decoder[S]) -> S:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        why = str(error)
    # NaN and Infinity are no JSON, but some servers write them. Then the body is an answer, and the numbers are none
    try:
        clean = json.loads(
            body, parse_constant=lambda _: None, parse_float=lambda s: x if isfinite(x := float(s)) else None
        )
        return decoder.decode(json.dumps(clean))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise AnswerError(f"{len(body)} bytes that are no such answer: {why}") from None


def _in_order(answer: _Body, count: int) -> list[_Choice]:
    choices = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in choices] != list(range(count)):
        raise AnswerError(f"{count} prompts were asked and the answer is to {[choice.index for choice in choices]}")
    return choices


def _scores_of(steps: list[dict[int, _LogProb] | None]) -> TokenScores:
    """Where a step names several tokens, the first is the prompt's own (vLLM's order)."""
    ids, log_probs = [], []
    for number, step in enumerate(steps):
        if step:
            token, found = next(iter(step.items()))
            ids.append(token)
            log_probs.append(_log_prob(found.logprob))
        elif number:
            raise AnswerError(f"the prompt's token {number} has no entry in prompt_logprobs")
        else:
            ids.append(UNNAMED)
            log_probs.append(nan)
    return TokenScores(ids, log_probs)


def _log_prob(value: float | None) -> float:
    return value if value is not None and isfinite(value) and value <= _ROUNDING else nan


def _usage(answer: _Body, count: int, prompt_tokens: int) -> Usage:
    if answer.usage is None:
        return Usage(count, prompt_tokens, count)
    return Usage(count, answer.usage.prompt_tokens, answer.usage.completion_tokens)
