"""The LLM as a transformers model in this process, for one machine without a server: the same numbers, more slowly.

The only room of `shared` that imports torch and transformers; `open_llm` imports it when it is needed and not before.
All work is done on one thread of its own, so calls wait for each other and no lock is held on the event loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import SettingError
from shared.llm import (
    Completion,
    Cut,
    LogLikelihood,
    PromptRefusedError,
    Sampling,
    Spent,
    UnusableScoresError,
    Usage,
)
from shared.llm.boundary import require_a_token_before, require_texts

T = TypeVar("T")

BATCH_TOKENS = 2048  # padding counted


@dataclass(frozen=True, slots=True)
class _Question:
    """log p(targets[i] | ids[: positions[i] + 1]) is asked for; ids (T,), positions and targets (K,)."""

    ids: list[int]
    positions: list[int]
    targets: list[int]


class LocalModel:
    """A causal language model and its tokenizer in memory. Not thread-safe: `LocalLLM` gives it a thread."""

    def __init__(self, name_or_path: str) -> None:
        """Raises SettingError where `name_or_path` leads to no causal language model with a fast tokenizer."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                dtype="auto" if self._device.type == "cuda" else torch.float32,
                output_loading_info=True,
            )
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path)
        except (OSError, ValueError, KeyError) as error:
            raise _no_model(name_or_path, str(error).strip().partition("\n")[0]) from error
        self._model, loading = loaded
        if loading["missing_keys"]:
            raise _no_model(name_or_path, f"its weights lack {min(loading['missing_keys'])}")
        if not getattr(self._tokenizer, "is_fast", False):
            raise _no_model(name_or_path, "its tokenizer has no tokenizer.json, from which token boundaries are read")
        self._model.to(self._device).eval()
        # the ids of the text alone: a post-processor adds special tokens, and may trim blanks off the offsets
        self._bare = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        self._bare.post_processor = None
        self._bare.no_truncation()
        self._bare.no_padding()
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self.context_tokens = _context_tokens(self._model.config, self._tokenizer)
        if not self._is_causal():
            raise _no_model(name_or_path, "its tokens see what comes after them")
        if self._ids("a")[-1:] != self._bare.encode("a").ids[-1:]:
            raise _no_model(name_or_path, "its tokenizer ends every text with a special token")

    def complete(self, prompt: str, sampling: Sampling, seed: int) -> tuple[Completion, Usage]:
        """Draws as vLLM does, temperature before top_p, with a generator of its own: no other call's draws change.

        At the end of the context a completion ends, as one that was cut off.
        """
        ids = self._fitting(self._ids(prompt))
        draws = torch.Generator(self._device).manual_seed(seed % 2**64)
        room = min(sampling.max_tokens, self.context_tokens - len(ids))
        ends = _end_ids(self._model, self._tokenizer)
        before = len(self._decode(ids))
        new: list[int] = []
        text, finished, past = "", False, None
        step = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            while len(new) < room and not finished:
                answer = self._model(input_ids=step, past_key_values=past, use_cache=True, **self._keep(1))
                past = answer.past_key_values
                new.append(_draw(answer.logits[0, -1].float(), sampling, draws))
                step = torch.tensor([new[-1:]], device=self._device)
                finished = new[-1] in ends
                text = self._decode(ids + new[: len(new) - finished])[before:]
                stops = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
                if stops:
                    text, finished = text[: min(stops)], True
        return Completion(text, finished), Usage(1, len(ids), len(new))

    def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> tuple[list[LogLikelihood], Usage]:
        questions = [self._question(prompt, continuation) for prompt in prompts]
        found = [LogLikelihood(fsum(row), len(row)) for row in self._ask(questions)]
        return found, Usage(len(prompts), sum(len(each.ids) for each in questions), 0)

    def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> tuple[list[list[float]], Usage]:
        """A label of one token is read off the prompt's last position, all such labels in one pass."""
        questions: list[_Question] = []
        cells: list[list[tuple[int, int]]] = []  # for each question the prompt and the label of each of its targets
        for row, prompt in enumerate(prompts):
            ids = self._fitting(self._ids(prompt))
            single: list[tuple[int, int]] = []
            for column, label in enumerate(labels):
                joint = self._ids(prompt + label)
                if joint[:-1] == ids:
                    single.append((column, joint[-1]))
                else:
                    questions.append(self._question(prompt, label))
                    cells.append([(row, column)] * len(questions[-1].targets))
            if single:
                questions.append(_Question(ids, [len(ids) - 1] * len(single), [one for _, one in single]))
                cells.append([(row, column) for column, _ in single])
        result = [[0.0] * len(labels) for _ in prompts]
        for answers, places in zip(self._ask(questions), cells, strict=True):
            for value, (row, column) in zip(answers, places, strict=True):
                result[row][column] += value
        return result, Usage(len(questions), sum(len(each.ids) for each in questions), 0)

    def count_tokens(self, text: str) -> int:
        return len(self._ids(text))

    def cut(self, text: str, max_tokens: int) -> Cut:
        encoded = self._bare.encode(text)
        if len(encoded.ids) <= max_tokens:
            return Cut(text, was_cut=False, tokens=len(encoded.ids))
        prefix = text[: min(start for start, _ in encoded.offsets[max_tokens:])]
        return Cut(prefix, was_cut=True, tokens=max_tokens)

    def _question(self, prompt: str, continuation: str) -> _Question:
        joint = prompt + continuation
        ids = self._fitting(self._ids(joint))
        length = tail_length(self._bare, prompt, continuation)
        require_a_token_before(len(ids), length)
        first = len(ids) - length
        return _Question(ids, list(range(first - 1, len(ids) - 1)), ids[first:])

    def _ask(self, questions: Sequence[_Question]) -> list[list[float]]:
        """The answers to all questions, (K,) each, in nats.

        Padded at the right: in a causal model what comes later changes nothing, so a batch gives what a prompt alone
        gives, whatever the kind of its position embeddings.
        """
        answers: list[list[float]] = [[] for _ in questions]
        with torch.inference_mode():
            for batch in _batches(questions):
                width = max(len(questions[number].ids) for number in batch)
                start = min([width - 1, *(at for number in batch for at in questions[number].positions)])
                ids = torch.zeros((len(batch), width), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, number in enumerate(batch):
                    length = len(questions[number].ids)
                    ids[row, :length] = torch.tensor(questions[number].ids)
                    mask[row, :length] = 1
                logits = self._model(
                    input_ids=ids.to(self._device),
                    attention_mask=mask.to(self._device),
                    use_cache=False,
                    **self._keep(width - start),
                ).logits
                for row, number in enumerate(batch):
                    question = questions[number]
                    at = torch.tensor(question.positions, device=self._device) - width + logits.shape[1]
                    targets = torch.tensor(question.targets, device=self._device)
                    log_probs = logits[row, at].float().log_softmax(-1)  # (K, V)
                    answers[number] = log_probs.gather(-1, targets[:, None])[:, 0].tolist()
        if not all(isfinite(value) for row in answers for value in row):
            raise UnusableScoresError("the model gives log-probabilities that are not a number")
        return answers

    def _keep(self, last: int) -> dict[str, int]:
        return {"logits_to_keep": last} if self._keeps_logits else {}

    def _is_causal(self) -> bool:
        """Whether the first token's output is the same whatever the second is."""
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([[1, 2], [1, 3]], device=self._device)).logits
        return bool(torch.allclose(logits[0, 0], logits[1, 0], atol=1e-3))

    def _ids(self, text: str) -> list[int]:
        return [int(one) for one in self._tokenizer(text, verbose=False)["input_ids"]]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _fitting(self, ids: list[int]) -> list[int]:
        """As vLLM has it: there has to be room for one token more."""
        if len(ids) >= self.context_tokens:
            raise PromptRefusedError(f"the prompt is {len(ids)} tokens: the model's context is {self.context_tokens}")
        return ids


@dataclass
class LocalLLM:
    """The protocol `shared.llm.LLM` over a `LocalModel`; a light view (`dataclasses.replace`)."""

    of: LocalModel
    model: str
    context_tokens: int
    spent: Spent
    _thread: ThreadPoolExecutor

    @classmethod
    def load(cls, name_or_path: str, spent: Spent) -> LocalLLM:
        of = LocalModel(name_or_path)
        return cls(of, name_or_path, of.context_tokens, spent, ThreadPoolExecutor(1, thread_name_prefix="local-llm"))

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        return await self._counted(lambda: self.of.complete(prompt, sampling, seed))

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        require_texts(prompts, continuation)
        return await self._counted(lambda: self.of.log_likelihoods(prompts, continuation))

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        for label in labels:
            require_texts(prompts, label)
        return await self._counted(lambda: self.of.label_log_probs(prompts, labels))

    async def count_tokens(self, text: str) -> int:
        return await self._apart(lambda: self.of.count_tokens(text))

    async def cut(self, text: str, max_tokens: int) -> Cut:
        return await self._apart(lambda: self.of.cut(text, max_tokens))

    async def _counted(self, call: Callable[[], tuple[T, Usage]]) -> T:
        result, usage = await self._apart(call)
        self.spent(usage)
        return result

    async def _apart(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def tail_length(bare: Tokenizer, prompt: str, continuation: str) -> int:
    """How many of the tokens of prompt + continuation belong to the continuation: `boundary.tail_length` by offsets.

    `bare` has no post-processor: one may trim blanks off the offsets. Where the prompt's own tokens are unchanged, the
    rest is the continuation's. Otherwise a token reaches to where the next character's tokens begin: a normalizer that
    joins characters (e + U+0301 -> é) gives the token the offsets of the first alone.
    """
    alone, joint = bare.encode(prompt).ids, bare.encode(prompt + continuation)
    if joint.ids[: len(alone)] == alone:
        return len(joint.ids) - len(alone)
    reach = following = len(prompt) + len(continuation)
    length = 0
    for start, end in reversed(joint.offsets):
        if following >= end:
            reach = following
        if reach <= len(prompt):
            break
        length, following = length + 1, start
    return length


def _batches(questions: Sequence[_Question]) -> Iterator[list[int]]:
    """Numbers of questions, those of like length together, at most BATCH_TOKENS to a batch, padding counted."""
    batch: list[int] = []
    for number in sorted(range(len(questions)), key=lambda number: len(questions[number].ids)):
        if batch and (len(batch) + 1) * len(questions[number].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _draw(logits: torch.Tensor, sampling: Sampling, draws: torch.Generator) -> int:
    """One token id from logits (V,). The smallest set of tokens is kept whose mass reaches top_p."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    mass_before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(mass_before >= sampling.top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=draws)])


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    named = model.generation_config.eos_token_id
    return {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}


def _context_tokens(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")
    found = [value for name in names if isinstance(value := getattr(text, name, None), int)]
    return int(min([*found, tokenizer.model_max_length]))


def _no_model(name_or_path: str, why: str) -> SettingError:
    return SettingError(
        f"FRETWORK_LLM__MODEL is {name_or_path}, which cannot be run here as a causal language model ({why}): name "
        "another folder or hub name, or set FRETWORK_LLM__BASE_URL to a server"
    )
