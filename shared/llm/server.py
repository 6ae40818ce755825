"""The LLM behind an OpenAI-compatible server, in vLLM's dialect of /v1/completions (text prompts, lists of them).

Scores are asked for as `prompt_logprobs: 0`, which names each token of the prompt by its id; the label's as
`logprob_token_ids`, which the server's prefix cache serves, prompt log-probabilities being no good for that
(vllm PR #23399). This room builds requests and puts answers together; sending, waiting and trying again are the
transport's, and what an answer says is read by `answers`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import fsum, isfinite
from typing import TypeVar

import orjson

from shared.llm import (
    AnswerError,
    Completion,
    Cut,
    EndpointError,
    LogLikelihood,
    NotFiniteError,
    Sampling,
    Spent,
    UnusableScoresError,
)
from shared.llm.answers import (
    Completed,
    NextTokens,
    Scored,
    ScoredPrompt,
    TokenScores,
    read_completion,
    read_next_tokens,
    read_scores,
    read_text,
    read_tokens,
)
from shared.llm.boundary import require_a_token_before, require_texts, shared_length, tail_length
from shared.llm.transport import Transport

MAX_LABEL_TAILS = 4096
FEW = 4
UTF8_BYTES = 4  # of a character, at most
BEGUN = "\ufffd"  # what a decoder writes for a character of which it has some bytes only

S = TypeVar("S", Scored, NextTokens)

# what a label is after a prompt: the id of its one token, or None where it is several or merges with the prompt
LabelIds = tuple[int | None, ...]


@dataclass
class ServerLLM:
    """The protocol `shared.llm.LLM` over HTTP; a light view of what the process shares (`dataclasses.replace`)."""

    transport: Transport
    model: str
    context_tokens: int
    spent: Spent
    _label_ids: OrderedDict[tuple[str, tuple[str, ...]], LabelIds] = field(default_factory=OrderedDict)

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        answer: Completed = await self.transport.post(
            "/completions",
            self._body(
                prompt=prompt,
                n=1,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                # without these the model's generation_config.json decides, and the same sampling is another one
                top_k=-1,
                min_p=0.0,
                repetition_penalty=1.0,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                seed=_signed(seed),
            ),
            kind="complete",
            decoder=read_completion,
            tokens_of=lambda answer: answer.usage.tokens,
        )
        self.spent(answer.usage)
        return answer.completion

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        """One request for all prompts, and one to /tokenize beside it; another where the first had unusable numbers.

        The first prompt's boundary is found by ids (`boundary.tail_length`). A prompt whose last tokens are the same as
        the first one's has its boundary there too, as the same text is decoded; any other is looked into by itself.
        """
        require_texts(prompts, continuation)
        if not prompts:
            return []
        scored, first_ids = await asyncio.gather(
            self._score([prompt + continuation for prompt in prompts]), self._tokenize(prompts[0])
        )
        try:
            length = await self._tail_length(prompts[0], first_ids, continuation, scored[0])
            first_tail = scored[0].tail(length)
            tails = [first_tail]
            for prompt, other in zip(prompts[1:], scored[1:], strict=True):
                tail = other.tail(length)
                if not length or tail.ids != first_tail.ids:
                    own = await self._tail_length(prompt, await self._tokenize(prompt), continuation, other)
                    tail = other.tail(own)
                tails.append(tail)
            found = [_sum(tail) for tail in tails]
            if not all(isfinite(each.total) for each in found):
                # the tokens are the same the second time, their numbers need not be
                again = await self._score([prompt + continuation for prompt in prompts])
                found = [_sum(prompt.tail(len(tail.ids))) for prompt, tail in zip(again, tails, strict=True)]
                _refuse_unusable([each.total for each in found])
        except AnswerError as error:
            raise EndpointError(f"an LLM endpoint answers in a form that is not vLLM's: {error}") from error
        return found

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        """One request for all prompts where each label is one token after them, and one more for each that is not."""
        for label in labels:
            require_texts(prompts, label)
        if not prompts or not labels:
            return [[] for _ in prompts]
        ids = [await self._ids_of_labels(prompt, tuple(labels)) for prompt in prompts]
        named = [[one for one in row if one is not None] for row in ids]
        rows: list[dict[int, float]] = [{} for _ in prompts]
        if any(named):
            rows = await self._score_next(prompts, named)
        result = [
            [row.get(one) if one is not None else None for one in of_prompt]
            for row, of_prompt in zip(rows, ids, strict=True)
        ]
        for column, label in enumerate(labels):
            missing = [number for number, row in enumerate(result) if row[column] is None]
            if missing:
                found = await self.log_likelihoods([prompts[number] for number in missing], label)
                for number, each in zip(missing, found, strict=True):
                    result[number][column] = each.total
        return [[value for value in row if value is not None] for row in result]

    async def count_tokens(self, text: str) -> int:
        return len(await self._tokenize(text))

    async def cut(self, text: str, max_tokens: int) -> Cut:
        """No request where the text's UTF-8 bytes are fewer than `max_tokens`, else two.

        A token holds at least one byte, and a tokenizer may put one blank in front of a text. (One whose normalizer
        makes text longer, as NFKC does of a few ligatures, is the exception that this shortcut leaves out.)
        """
        bound = len(text.encode()) + 1
        if bound <= max_tokens:
            return Cut(text, was_cut=False, tokens=bound)
        ids = await self._tokenize(text, special=False)
        if len(ids) <= max_tokens:
            return Cut(text, was_cut=False, tokens=len(ids))
        return Cut(await self._prefix(text, ids, max_tokens), was_cut=True, tokens=max_tokens)

    async def _prefix(self, text: str, ids: Sequence[int], kept: int) -> str:
        """The characters of `text` that the first `kept` tokens hold wholly.

        Where they end inside a character, fewer are decoded too: some decoders give up the whole run of bytes then.
        """
        found = []
        for fewer in range(min(kept, UTF8_BYTES) + 1):
            decoded = await self._detokenize(ids[: kept - fewer])
            if text.startswith(prefix := decoded.rstrip(BEGUN)):
                found.append(prefix)
            if decoded == prefix or text.startswith(decoded):
                break
        return max(found, key=len) if found else await self._longest_prefix(text, kept)

    async def _longest_prefix(self, text: str, max_tokens: int) -> str:
        """By halving, for a tokenizer whose tokens do not decode to the text that they came from."""
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(await self._tokenize(text[:middle], special=False)) <= max_tokens:
                low = middle
            else:
                high = middle - 1
        return text[:low]

    async def _score(self, texts: Sequence[str]) -> list[ScoredPrompt]:
        body = self._body(prompt=list(texts), prompt_logprobs=0, max_tokens=1, temperature=0)
        answer: Scored = await self._ask_scores("score", body, partial(read_scores, count=len(texts)), len(texts))
        return answer.prompts

    async def _score_next(self, prompts: Sequence[str], named: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """For each prompt the log-probabilities of the tokens named for it, those of them that the server gives."""
        wanted = sorted(set().union(*named))
        body = self._body(
            prompt=list(prompts),
            max_tokens=1,
            temperature=0,
            logprobs=1,
            logprob_token_ids=wanted,
            return_tokens_as_token_ids=True,
        )
        rows: list[dict[int, float]] = []
        for _ in range(2):
            decoder = partial(read_next_tokens, count=len(prompts))
            answer: NextTokens = await self._ask_scores("label", body, decoder, len(prompts))
            rows = answer.rows
            if all(isfinite(row.get(one, 0.0)) for row, ids in zip(rows, named, strict=True) for one in ids):
                return rows
        _refuse_unusable([row.get(one, 0.0) for row, ids in zip(rows, named, strict=True) for one in ids])
        return rows

    async def _ask_scores(self, kind: str, body: bytes, decoder: Callable[[bytes], S], weight: int) -> S:
        """Asked again where the answer held NaN and the server could not send it, which may be one replica's fault."""
        for last in (False, True):
            try:
                answer = await self.transport.post(
                    "/completions", body, kind=kind, decoder=decoder, weight=weight, tokens_of=lambda a: a.usage.tokens
                )
            except NotFiniteError as error:
                if last:
                    raise UnusableScoresError(f"the endpoint was asked twice: {error}") from error
            else:
                break
        self.spent(answer.usage)
        return answer

    async def _ids_of_labels(self, prompt: str, labels: tuple[str, ...]) -> LabelIds:
        """Told by the prompt's last line: no tokenizer in use merges across a line's start with what follows it."""
        tail = prompt[max(0, prompt.rfind("\n", 0, len(prompt.rstrip()))) :]
        key = (tail, labels)
        if key in self._label_ids:
            self._label_ids.move_to_end(key)
            return self._label_ids[key]
        alone, *joint = await asyncio.gather(self._tokenize(tail), *(self._tokenize(tail + each) for each in labels))
        ids = tuple(each[-1] if each[:-1] == alone else None for each in joint)
        self._label_ids[key] = ids
        if len(self._label_ids) > MAX_LABEL_TAILS:
            self._label_ids.popitem(last=False)
        return ids

    async def _tail_length(self, prompt: str, prompt_ids: list[int], continuation: str, scored: ScoredPrompt) -> int:
        # the answer does not name its first token: the prompt's, unless what follows a few tokens merged with them all
        ids = [prompt_ids[0], *scored.whole().ids[1:]]
        if len(prompt_ids) < FEW or shared_length(prompt_ids, ids) < len(prompt_ids):
            ids = await self._tokenize(prompt + continuation)
        length = await tail_length(prompt_ids, ids, self._detokenize)
        require_a_token_before(len(ids), length)
        return length

    async def _tokenize(self, text: str, *, special: bool = True) -> list[int]:
        body = self._body(prompt=text, add_special_tokens=special)
        return await self.transport.post("/tokenize", body, kind="tokenize", decoder=read_tokens, root=True)

    async def _detokenize(self, ids: Sequence[int]) -> str:
        body = self._body(tokens=list(ids))
        return await self.transport.post("/detokenize", body, kind="tokenize", decoder=read_text, root=True)

    def _body(self, **fields: object) -> bytes:
        return orjson.dumps({"model": self.model, **fields})


def _sum(tail: TokenScores) -> LogLikelihood:
    return LogLikelihood(fsum(tail.log_probs), len(tail.ids))


def _refuse_unusable(values: Sequence[float]) -> None:
    bad = sum(not isfinite(value) for value in values)
    if bad:
        raise UnusableScoresError(
            f"the endpoint was asked twice, and {bad} of {len(values)} log-probabilities are missing or not a number"
        )


def _signed(seed: int) -> int:
    """`seed` in the 64 bits with a sign that servers take."""
    return (seed + 2**63) % 2**64 - 2**63
