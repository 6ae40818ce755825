"""Where a continuation begins among the tokens of prompt and continuation, tokenised as one text.

The continuation's tokens are those that hold at least one of its characters, or a part of one. tokens(a + b) is seldom
tokens(a) + tokens(b), so the boundary is read off ids and decoded text, never assumed. Nothing here calls a server:
what turns ids into text is handed in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from shared.llm import PromptRefusedError


def require_texts(prompts: Sequence[str], continuation: str) -> None:
    """Raises ValueError for a prompt or a continuation of no characters: it has no boundary and no log-probability."""
    if not continuation:
        raise ValueError("the continuation is empty: it has no log-probability")
    if not all(prompts):
        raise ValueError("a prompt is empty: the first token of a text has no log-probability")


def require_a_token_before(joint_length: int, tail_length: int) -> None:
    """Raises PromptRefusedError where the continuation has all of the tokens, the first included.

    Only a prompt of a few characters comes to this, and only where the tokenizer puts no special token in front.
    """
    if tail_length >= joint_length:
        raise PromptRefusedError(
            "the prompt is so short that its first token holds a part of what follows it, and a text's first token has "
            "no log-probability: put something in front of it"
        )


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many leading elements `a` and `b` have in common."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next((i for i in range(length) if a[i] != b[i]), length)


async def tail_length(
    prompt_ids: Sequence[int], joint_ids: Sequence[int], decode: Callable[[Sequence[int]], Awaitable[str]]
) -> int:
    """How many of `joint_ids` belong to the continuation.

    `prompt_ids` are the tokens of the prompt alone, `joint_ids` those of prompt + continuation, both with the leading
    special tokens. Where the first are a prefix of the second, the rest is the continuation's. Otherwise tokens merged
    across the boundary, and it is sought in the decoded text, from the last token that both share: the boundary is the
    end of what both texts share, so that it holds too where a normalizer has joined characters (e + U+0301 -> é).

    A prefix of ids is decoded and not a tail, since decoders drop a leading space and keep what stands before it. A
    prefix that ends inside a character decodes to something (U+FFFD) in its place: that character counts as begun,
    unless a later prefix ends exactly at the boundary (a decoder may garble a whole run of bytes for its last one).
    """
    shared = shared_length(prompt_ids, joint_ids)
    if shared == len(prompt_ids):
        return len(joint_ids) - shared
    joint_text = await decode(joint_ids)
    boundary = shared_length(await decode(prompt_ids), joint_text)
    before, passed = shared, False
    for count in range(shared, len(joint_ids) + 1):
        text = await decode(joint_ids[:count])
        whole = shared_length(text, joint_text)
        begun = len(text) > whole
        if not begun and whole >= boundary:
            # a token ends here; where it ends at the boundary, this is exact
            return len(joint_ids) - (count if whole == boundary else before)
        passed = passed or whole + begun > boundary
        if not passed:
            before = count
    return len(joint_ids) - before
