"""The server's back end over recorded answers of a real vLLM, and boundaries where no recording has them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm import PromptRefusedError, Usage
from shared.llm.boundary import require_a_token_before, require_texts, shared_length, tail_length
from shared.llm.server import ServerLLM
from shared.llm.transport import Transport
from tests.awkward_texts import CUTS, LABELS, PAIRS, PROMPTS
from tests.recorded import NAMES, recording

PER_TOKEN = 1e-3  # the largest difference between the back ends that is taken for rounding


def server(name: str, spent: list[Usage] | None = None) -> ServerLLM:
    return ServerLLM(cast(Transport, recording(name)), "tiny", 512, ([] if spent is None else spent).append)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_a_recorded_likelihood_is_that_of_transformers(name: str, number: int) -> None:
    prompt, continuation = PAIRS[number]
    (found,) = asyncio.run(server(name).log_likelihoods([prompt], continuation))
    total, tokens = recording(name).transformers["log_likelihoods"][number]
    assert found.tokens == tokens
    assert found.total == pytest.approx(total, abs=PER_TOKEN * tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_list_of_prompts_is_one_request_and_gives_each_its_own(name: str) -> None:
    spent: list[Usage] = []
    found = asyncio.run(server(name, spent).log_likelihoods(PROMPTS, PAIRS[0][1]))
    expected = recording(name).transformers["list"]
    assert [each.tokens for each in found] == [tokens for _, tokens in expected]
    for each, (total, tokens) in zip(found, expected, strict=True):
        assert each.total == pytest.approx(total, abs=PER_TOKEN * tokens)
    assert [usage.requests for usage in spent] == [len(PROMPTS)]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_labels_of_one_token_and_of_several_are_those_of_transformers(name: str) -> None:
    found = asyncio.run(server(name).label_log_probs(PROMPTS, LABELS))
    for row, expected in zip(found, recording(name).transformers["labels"], strict=True):
        assert row == pytest.approx(expected, abs=PER_TOKEN)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", range(len(CUTS)))
def test_a_recorded_cut_is_that_of_transformers(name: str, number: int) -> None:
    text, max_tokens = CUTS[number]
    cut = asyncio.run(server(name).cut(text, max_tokens))
    assert [cut.text, cut.was_cut] == recording(name).transformers["cuts"][number]
    assert text.startswith(cut.text)
    assert cut.tokens <= max_tokens


def test_a_text_of_fewer_bytes_than_tokens_allowed_needs_no_request() -> None:
    cut = asyncio.run(ServerLLM(cast(Transport, None), "m", 512, lambda _: None).cut("é" * 10, 21))
    assert (cut.text, cut.was_cut, cut.tokens) == ("é" * 10, False, 21)


def _words(text: str) -> list[bytes]:
    """Tokens of up to three letters; what is not ASCII goes byte by byte."""
    return re.findall(rb"[ab ]{1,3}|[\x00-\xff]", text.encode())


def _threes(text: str) -> list[bytes]:
    """Tokens of three bytes, wherever characters begin and end."""
    content = text.encode()
    return [content[start : start + 3] for start in range(0, len(content), 3)]


async def _joined(tokens: Sequence[bytes]) -> str:
    return b"".join(tokens).decode(errors="replace")


@pytest.mark.parametrize("tokenize", [_words, _threes])
@given(st.text("ab é😀\n", min_size=1), st.text("ab é😀\n", min_size=1))
def test_the_tail_is_what_holds_a_byte_of_the_continuation(
    tokenize: Callable[[str], list[bytes]], prompt: str, continuation: str
) -> None:
    tokens = tokenize(prompt + continuation)
    length = asyncio.run(tail_length(cast(Any, tokenize(prompt)), cast(Any, tokens), cast(Any, _joined)))
    ends = [sum(map(len, tokens[: count + 1])) for count in range(len(tokens))]
    assert length == sum(end > len(prompt.encode()) for end in ends)


class _Table:
    """A decoder given by the text of each prefix."""

    def __init__(self, texts: dict[tuple[int, ...], str]) -> None:
        self.texts = texts

    async def __call__(self, ids: Sequence[int]) -> str:
        return self.texts[tuple(ids)]


@pytest.mark.parametrize(
    ("prompt_ids", "joint_ids", "texts", "length"),
    [
        # a token of which only the last byte is the continuation's
        pytest.param(
            [1, 2, 3],
            [1, 2, 4, 5],
            {(1, 2, 3): "aé", (1, 2, 4, 5): "aéü", (1, 2): "a", (1, 2, 4): "aé\ufffd"},
            2,
            id="token across the boundary and inside a character",
        ),
        # SentencePiece's byte fallback: a run of bytes that is not whole yet decodes to U+FFFD from its start
        pytest.param(
            [1, 9],
            [1, 5, 6, 7, 8],
            {
                (1, 9): "é",
                (1, 5, 6, 7, 8): "éü",
                (1,): "",
                (1, 5): "\ufffd",
                (1, 5, 6): "é",
                (1, 5, 6, 7): "\ufffd\ufffd\ufffd",
            },
            2,
            id="run of bytes",
        ),
        # NFC joins the prompt's e with the continuation's accent: the one token of both is the continuation's too
        pytest.param([1, 2, 3], [1, 2, 4], {(1, 2, 3): "xe", (1, 2, 4): "xé", (1, 2): "x"}, 1, id="characters joined"),
    ],
)
def test_a_boundary_where_tokens_merge(
    prompt_ids: list[int], joint_ids: list[int], texts: dict[Any, str], length: int
) -> None:
    assert asyncio.run(tail_length(prompt_ids, joint_ids, _Table(texts))) == length


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_shared_length(a: list[int], b: list[int]) -> None:
    length = shared_length(a, b)
    assert a[:length] == b[:length]
    assert a[length : length + 1] != b[length : length + 1] or length == len(a) == len(b)


def test_what_has_no_boundary_is_refused() -> None:
    with pytest.raises(ValueError, match="continuation is empty"):
        require_texts(["a"], "")
    with pytest.raises(ValueError, match="prompt is empty"):
        require_texts(["a", ""], "b")
    with pytest.raises(PromptRefusedError, match="in front"):
        require_a_token_before(3, 3)
