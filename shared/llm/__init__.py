"""The LLM as the services see it: one protocol, and two back ends that give the same numbers.

`shared.llm.server` speaks to an OpenAI-compatible server (vLLM) over HTTP, `shared.llm.local` runs a transformers model
in this process. This room holds what both agree on; it knows no prompt, no passage and no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import FretworkError, SetbackError, TransientError


class EndpointError(TransientError):
    """The LLM endpoint did not give a usable answer; the shard goes back and is tried again."""


class CallFailedError(EndpointError, SetbackError):
    """One call failed time after time while the endpoint answered others: it may be about what was asked."""


class EndpointDownError(EndpointError):
    """No LLM endpoint answers at present: its circuit breaker is open, and no call is made until it closes."""


class PromptRefusedError(FretworkError):
    """The endpoint refuses this one prompt (too long, for example): the item ends with a reason, its shard goes on."""


class NotFiniteError(PromptRefusedError):
    """The answer held numbers that are none (NaN), so the server could not send it: vLLM says that with status 400."""


class UnusableScoresError(FretworkError):
    """The endpoint answers this one prompt with a log-probability that is missing or not a number, time after time."""


class AnswerError(ValueError):
    """The body is no valid answer to the request; raised by decoders, and treated like a server's error."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What calls cost, in tokens as the back end counts them; `requests` counts prompts, also those of a list."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


# Called once per answered call. It may raise (as when the run's budget is spent): the call then raises that error.
Spent = Callable[[Usage], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn; it goes into the provenance of what comes of it."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """`finished` is False where the model was cut off at `max_tokens`."""

    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """Σ log p of a continuation's tokens, in nats, and how many they are."""

    total: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a text that its first tokens hold, or all of it. `tokens` is an upper bound."""

    text: str
    was_cut: bool
    tokens: int


class LLM(Protocol):
    """A causal language model. All methods may be called concurrently, on the process's one event loop.

    A continuation's tokens are those tokens of `prompt + continuation`, tokenised as one text, that hold at least one
    of the continuation's characters: tokens(a + b) is not assumed to be tokens(a) + tokens(b).

    Every method raises EndpointError where the back end gives no usable answer after all patience, EndpointDownError
    where it is known to give none, and PromptRefusedError where it refuses the prompt.
    """

    model: str
    context_tokens: int

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        """One completion of `prompt`. The same seed gives the same text wherever the back end can promise it."""

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        """log p(continuation | prompt) for each of the prompts, in their order.

        Raises UnusableScoresError where a log-probability is missing or not finite, ValueError for an empty
        continuation.
        """

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        """log p(label | prompt) in nats, a row per prompt and a column per label; a label may be several tokens.

        Not normalised over the labels. Raises UnusableScoresError as `log_likelihoods` does.
        """

    async def count_tokens(self, text: str) -> int:
        """How many tokens `text` is as a prompt, special tokens and all."""

    async def cut(self, text: str, max_tokens: int) -> Cut:
        """What the first `max_tokens` tokens of `text` hold, special tokens not counted; never a part of a character.

        Tokenised again it is at most that many tokens: merges (BPE), best paths (unigram) and longest matches
        (WordPiece) that end at a token's end do not depend on what follows it. A pre-tokenizer that looks ahead may
        break the rule by a token or two, so leave room where one more would matter.
        """
