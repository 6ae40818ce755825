"""A toy language model for the stub: an exact tokenizer, log-probabilities and completions, all functions of the text.

No dictionary and no state: a token's id is its bytes, so all replicas agree and every id decodes. A word is cut into
pieces of at most seven letters that take the blank before them along, so texts merge where they are joined, as in real
tokenizers; what is not ASCII goes byte by byte, as SentencePiece's byte fallback does. The log-probability of a token
is a hash of all the text up to its end: other contexts give other numbers, and they do not add up to one.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import orjson

BOS = 1
BOS_TEXT = "<s>"
_TOKEN = re.compile(rb" ?[A-Za-z0-9]{1,7}|[\x00-\xff]", re.DOTALL)
_LETTERS = b" ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"  # six bits each: an id fits 64 bits


@lru_cache(maxsize=100_000)
def _id(token: bytes) -> int:
    """An odd number for letters and digits, an even one for a single byte that is none."""
    if len(token) == 1 and token not in _LETTERS:
        return (256 + token[0]) << 1
    packed = 1
    for letter in token:
        packed = packed << 6 | _LETTERS.index(letter)
    return packed << 1 | 1


def _bytes(token_id: int) -> bytes:
    if token_id == BOS:
        return b""
    if not token_id & 1:
        return bytes([(token_id >> 1) - 256])
    packed, letters = token_id >> 1, []
    while packed > 1:
        letters.append(_LETTERS[packed & 63])
        packed >>= 6
    return bytes(reversed(letters))


def token_string(token_id: int) -> str:
    """The token as a SentencePiece vocabulary writes it."""
    if token_id == BOS:
        return BOS_TEXT
    token = _bytes(token_id)
    return f"<0x{token[0]:02X}>" if token[0] >= 0x80 else token.decode().replace(" ", "▁")


def tokenize(text: str, *, special: bool = True) -> list[int]:
    return [BOS] * special + [_id(token) for token in _TOKEN.findall(text.encode())]


def detokenize(token_ids: Sequence[int]) -> str:
    pieces = (BOS_TEXT.encode() if token_id == BOS else _bytes(token_id) for token_id in token_ids)
    return b"".join(pieces).decode(errors="replace")


def log_prob(state: int) -> float:
    """Of the token that ends the text with this crc32, in nats: between -8 and 0."""
    return -((state * 2_654_435_761) % 2**32 or 1) / 2**29


@dataclass(frozen=True, slots=True)
class Scored:
    """A stretch of text: its tokens, their log-probabilities as vLLM writes them, and the crc32 up to its end."""

    tokens: int
    entries: bytes
    state: int


# A new line is a token of its own, so a text is scored line by line, and lines in the same context only once: all
# prompts of a run start alike.
@lru_cache(maxsize=8192)
def _scored(line: bytes, state: int) -> Scored:
    entries = []
    for token in _TOKEN.findall(line):
        state = zlib.crc32(token, state)
        decoded = orjson.dumps(token.decode(errors="replace"))
        entries.append(
            b'{"%d":{"logprob":%.12f,"rank":%d,"decoded_token":%s}}'
            % (_id(token), log_prob(state), 1 + state % 97, decoded)
        )
    return Scored(len(entries), b",".join(entries), state)


def score(text: str) -> Scored:
    """All of a prompt: `entries` is the JSON list `prompt_logprobs`, which starts with null for BOS."""
    tokens, parts, state = 1, [b"null"], 0
    for line in text.encode().splitlines(keepends=True):
        scored = _scored(line, state)
        tokens, state = tokens + scored.tokens, scored.state
        parts.append(scored.entries)
    return Scored(tokens, b"[" + b",".join(parts) + b"]", state)


@lru_cache(maxsize=8192)
def _counted(line: bytes) -> int:
    return sum(1 for _ in _TOKEN.finditer(line))


def count(text: str) -> int:
    """How many tokens a prompt has, BOS and all."""
    return 1 + sum(map(_counted, text.encode().splitlines(keepends=True)))


def next_log_probs(text: str, token_ids: Sequence[int]) -> dict[int, float]:
    """The log-probability of each token right after a text: the same number that `score` gives for it there."""
    state = zlib.crc32(text.encode())
    return {token_id: log_prob(zlib.crc32(_bytes(token_id), state)) for token_id in token_ids}


TASKS = (
    "Given a query, find a passage that has the answer to the query.",
    "Given a query, find a passage that might show up as a search result.",
    "Given a query, find a passage that allows you to check whether the query is true or not.",
    "Given a query, find a passage that means much the same.",
)
_WORD = re.compile(r"\w{3,}")


def write(prompt: str, seed: int | None) -> str:
    """What a well-behaved LLM writes: a task description and a query made of the prompt's last passage.

    A prompt that ends in `Query:` gets the query alone. The same prompt and seed give the same text.
    """
    draw = random.Random(zlib.crc32(prompt.encode(), seed or 0))  # noqa: S311 - a toy
    passage = prompt[prompt.rfind("\nPassage:") + 1 :].removeprefix("Passage:").partition("\nTask:")[0]
    words = _WORD.findall(passage[:2000]) or ["nothing"]
    at = draw.randrange(len(words))
    query = " ".join([*words[at : at + draw.randint(3, 8)], f"{draw.randrange(10_000)}"]).lower()
    if prompt.rstrip().endswith("Query:"):
        return f" {query}\n"
    return f" {draw.choice(TASKS)}\nQuery: {query}\n"


def cut_off(text: str, max_tokens: int, stop: Sequence[str]) -> tuple[str, int, bool]:
    """A completion as the server hands it out: cut at a stop string or at `max_tokens`; its tokens; finished or not."""
    token_ids = tokenize(text, special=False)
    finished = len(token_ids) < max_tokens  # one more would be the end of the text
    text = text if finished else detokenize(token_ids[:max_tokens])
    found = [at for string in stop if (at := text.find(string)) >= 0]
    if found:
        kept = text[: min(found)]
        return kept, len(tokenize(kept, special=False)) + 1, True
    return text, min(len(token_ids) + finished, max_tokens), finished
