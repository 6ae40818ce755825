from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from math import isnan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm import AnswerError, Usage
from shared.llm.answers import (
    UNNAMED,
    ScoredPrompt,
    read_completion,
    read_context_tokens,
    read_models,
    read_next_tokens,
    read_scores,
    read_text,
    read_tokens,
)
from tests.recorded import recording

USAGE = {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2}


def body(*choices: dict[str, Any], usage: dict[str, int] | None = USAGE) -> bytes:
    numbered = [{"index": number, "text": "", "finish_reason": "length"} | each for number, each in enumerate(choices)]
    return json.dumps({"choices": numbered, "usage": usage, "model": "m"}).encode()


def scored(*log_probs: Any) -> dict[str, Any]:
    steps = [{str(number): {"logprob": value, "rank": 1}} for number, value in enumerate(log_probs, start=10)]
    return {"prompt_logprobs": [None, *steps]}


def top(log_probs: dict[str, Any]) -> dict[str, Any]:
    return {"logprobs": {"top_logprobs": [log_probs], "tokens": [next(iter(log_probs))]}}


def test_a_completion_says_whether_it_was_cut_off() -> None:
    done = read_completion(body({"text": " hello", "finish_reason": "stop"}))
    assert (done.completion.text, done.completion.finished, done.usage) == (" hello", True, Usage(1, 7, 2))
    assert not read_completion(body({"text": " hello"})).completion.finished


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_completion_that_the_server_gave_up_is_none(reason: str | None) -> None:
    with pytest.raises(AnswerError, match="ended"):
        read_completion(body({"text": " hel", "finish_reason": reason}))


def test_scores_name_each_token_but_the_first() -> None:
    found = read_scores(body(scored(-1.5, -2), scored(-0.25)), 2)
    assert [prompt.whole().ids for prompt in found.prompts] == [[UNNAMED, 10, 11], [UNNAMED, 10]]
    assert found.prompts[0].whole().log_probs[1:] == [-1.5, -2.0]
    assert isnan(found.prompts[0].whole().log_probs[0])
    assert found.usage == Usage(2, 7, 2)


def test_of_several_tokens_the_first_is_the_prompts() -> None:
    two = {"prompt_logprobs": [None, {"5": {"logprob": -9.0, "rank": 80}, "6": {"logprob": -0.1, "rank": 1}}]}
    assert read_scores(body(two), 1).prompts[0].whole().ids == [UNNAMED, 5]


def test_choices_are_put_in_the_order_of_their_prompts() -> None:
    found = read_scores(body(scored(-1.0) | {"index": 1}, scored(-2.0) | {"index": 0}), 2)
    assert [prompt.whole().log_probs[1] for prompt in found.prompts] == [-2.0, -1.0]


@pytest.mark.parametrize("value", [None, 0.5, 12.0, pytest.param("NaN", id="NaN"), "Infinity", "-Infinity", "1e999"])
def test_what_is_no_log_probability_is_nan_and_leaves_the_others(value: Any) -> None:
    text = body(scored(-1.0, "here", -3.0)).replace(b'"here"', json.dumps(value).strip('"').encode())
    log_probs = read_scores(text, 1).prompts[0].whole().log_probs
    assert isnan(log_probs[2])
    assert (log_probs[1], log_probs[3]) == (-1.0, -3.0)


def test_labels_are_told_by_their_ids() -> None:
    by_id, by_text = top({"token_id:17": -1.0, "token_id:9": None}), top({" yes": -2.0, "token_id:x": -1.0})
    found = read_next_tokens(body(by_id, by_text), 2)
    assert found.rows[0].keys() == {17, 9}
    assert found.rows[0][17] == -1.0
    assert isnan(found.rows[0][9])
    assert found.rows[1] == {}
    assert read_next_tokens(body(top({f"token_id:{'9' * 5000}": -1.0})), 1).rows == [{}]


GOOD_SCORES = body(scored(-1.0), scored(-2.0))


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Bad gateway</html>", id="page"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"error": {"message": "no"}}', id="error"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b'{"choices": [{"text": "\xff"}]}', id="not UTF-8 inside"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(body(scored(-1.0)), id="too few"),
        pytest.param(body(scored(-1.0), scored(-1.0), scored(-1.0)), id="too many"),
        pytest.param(body(scored(-1.0), scored(-1.0) | {"index": 0}), id="one twice"),
        pytest.param(body(scored(-1.0), {}), id="one without"),
        pytest.param(body(scored(-1.0), {"prompt_logprobs": []}), id="one with none"),
    ],
)
def test_what_is_no_answer_is_refused(bad: bytes) -> None:
    assert len(read_scores(GOOD_SCORES, 2).prompts) == 2
    with pytest.raises(AnswerError):
        read_scores(bad, 2)
    with pytest.raises(AnswerError):
        read_next_tokens(bad, 2)


@pytest.mark.parametrize("steps", [[None, None], [None, {"1": {"logprob": "-1"}}], [None, -1.0], [None, {}]])
def test_a_list_of_another_form_is_refused_when_it_is_read(steps: list[Any]) -> None:
    (prompt,) = read_scores(body({"prompt_logprobs": steps}), 1).prompts
    for read in (prompt.whole, lambda: prompt.tail(1)):
        with pytest.raises(AnswerError):
            read()


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@given(
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from(['}},{"', "}},{", '}},{"7', "\\", '"', "}", "a"]))),
    st.data(),
)
def test_a_tail_is_the_end_of_the_whole_whatever_the_tokens_say(
    separators: tuple[str, str], tokens: list[tuple[int, str]], data: st.DataObject
) -> None:
    steps = [None, *({str(token): {"logprob": -1.0 - token, "decoded_token": text}} for token, text in tokens)]
    prompt = ScoredPrompt(json.dumps(steps, separators=separators).encode())
    length = data.draw(st.integers(0, len(tokens)))
    assert prompt.tail(length).ids == [token for token, _ in tokens[len(tokens) - length :]]
    assert prompt.tail(length).log_probs == [-1.0 - token for token, _ in tokens[len(tokens) - length :]]


def test_every_truncation_of_an_answer_is_refused() -> None:
    for length in range(len(GOOD_SCORES)):
        with pytest.raises(AnswerError):
            read_scores(GOOD_SCORES[:length], 2)


_EVERY_READER: list[Callable[[bytes], object]] = [
    *(read_completion, read_tokens, read_text, read_models, read_context_tokens),
    lambda answer: [prompt.whole() for prompt in read_scores(answer, 2).prompts],
    lambda answer: [prompt.tail(1) for prompt in read_scores(answer, 2).prompts],
    lambda answer: read_next_tokens(answer, 1),
]
_ANSWERS = (
    *(GOOD_SCORES, body({"text": " hello", "finish_reason": "stop"}), body(top({"token_id:17": -1.0}))),
    b'{"count": 2, "max_model_len": 512, "tokens": [1, 403]}',
    b'{"prompt": "<s> Once", "data": [{"id": "tiny", "root": "/m"}]}',
)
_HOSTILE = (
    *(b"\x00", b"\\u0000", b"\\ud800", b"\xed\xa0\x80", b"\xff", "\u202eשלום".encode(), b"9" * 400, b"-1e999", b"NaN"),
    *(b"null", b"{}", b"[]", b'""', b"[" * 20_000, b'{"a":' * 20_000, b'"' + b"x" * 10 * 2**20 + b'"'),
)


@given(st.sampled_from(_ANSWERS), st.sampled_from(_HOSTILE), st.data())
def test_whatever_a_server_sends_is_read_or_refused(answer: bytes, hostile: bytes, data: st.DataObject) -> None:
    """Somewhere in an answer stands what belongs in none. Any error but AnswerError fails the test."""
    first = data.draw(st.integers(0, len(answer)))
    last = data.draw(st.integers(first, len(answer)))
    for read in _EVERY_READER:
        with suppress(AnswerError):
            read(answer[:first] + hostile + answer[last:])


def test_tokens_are_counted_where_the_server_does_not() -> None:
    assert read_scores(body(scored(-1.0, -2.0), scored(-1.0), usage=None), 2).usage == Usage(2, 5, 2)


@pytest.mark.parametrize("read", [read_tokens, read_text, read_models, read_context_tokens])
def test_other_answers_are_refused_too(read: Callable[[bytes], object]) -> None:
    with pytest.raises(AnswerError):
        read(b'{"detail": "Not Found"}')


def test_the_other_answers() -> None:
    tokens = b'{"count": 2, "max_model_len": 512, "tokens": [1, 403], "token_strs": null}'
    assert (read_tokens(tokens), read_context_tokens(tokens)) == ([1, 403], 512)
    assert read_text(b'{"prompt": "<s> Once"}') == "<s> Once"
    assert [model.id for model in read_models(b'{"object": "list", "data": [{"id": "tiny", "root": "/m"}]}')] == [
        "tiny"
    ]


def test_a_recorded_answer_of_vllm_is_read_whole() -> None:
    """Every log-probability that the server sent is there, as JSON has it."""
    found = 0
    for (path, request), answer in recording("stories260K").calls.items():
        asked = json.loads(request)
        if path != "/completions" or "prompt_logprobs" not in asked:
            continue
        for prompt, choice in zip(
            read_scores(answer, len(asked["prompt"])).prompts, json.loads(answer)["choices"], strict=True
        ):
            steps = [next(iter(step.items())) for step in choice["prompt_logprobs"][1:]]
            whole = prompt.whole()
            assert whole.ids[1:] == [int(token) for token, _ in steps]
            assert whole.log_probs[1:] == [entry["logprob"] for _, entry in steps]
            for length in range(len(steps) + 1):
                tail = prompt.tail(length)
                assert (tail.ids, tail.log_probs) == (
                    whole.ids[len(whole.ids) - length :],
                    whole.log_probs[len(whole.ids) - length :],
                )
            found += len(steps)
    assert found > 200
