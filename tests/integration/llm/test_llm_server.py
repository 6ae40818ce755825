"""The server's back end, the probe and `open_llm` over real HTTP, against the stub that speaks vLLM's dialect."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from shared.errors import SettingError
from shared.llm import EndpointError, PromptRefusedError, Sampling, UnusableScoresError, Usage
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
from shared.llm.probe import Endpoint, probe
from shared.llm.server import ServerLLM
from shared.llm.transport import Transport
from shared.settings import LLMSettings
from tests import llm_stub_model
from tests.llm_stub import NOT_SENT, Fault, StubLLM

PROMPTS = ["Passage: the cat sat\n\nQuery:", "Passage: a dog 😀\n\nQuery:", "Passage: سلام\n\nQuery:"]


@pytest.fixture
def connect() -> Iterator[Callable[..., ServerLLM]]:
    made: list[Transport] = []

    def connected(stub: StubLLM, spent: Callable[[Usage], None] = lambda _: None, **how: Any) -> ServerLLM:
        made.append(Transport(LLMSettings(base_url=stub.base_url, **how), None))
        return ServerLLM(made[-1], "stub", 4096, spent)

    yield connected
    for transport in made:
        on_loop(transport.aclose())


Connect = Callable[..., ServerLLM]


def asked(stub: StubLLM, path: str) -> list[dict[str, Any]]:
    return [seen.body for seen in stub.seen if seen.path == path]


def expected(prompt: str, continuation: str) -> float:
    """The sum over the tokens that end after the prompt, by the toy model's own numbers."""
    steps = json.loads(llm_stub_model.score(prompt + continuation).entries)
    tokens = llm_stub_model.tokenize(prompt + continuation)
    ends = [len(llm_stub_model.detokenize(tokens[1 : count + 1]).encode()) for count in range(len(tokens))]
    holds = [end > len(prompt.encode()) for end in ends]
    return sum(
        float(next(iter(step.values()))["logprob"]) for step, held in zip(steps[1:], holds[1:], strict=True) if held
    )


def test_a_list_is_scored_in_one_request(stub: StubLLM, connect: Connect) -> None:
    spent: list[Usage] = []
    found = on_loop(connect(stub, spent.append).log_likelihoods(PROMPTS, " what sat there?"))
    assert [each.total for each in found] == pytest.approx([expected(each, " what sat there?") for each in PROMPTS])
    (request,) = asked(stub, "/v1/completions")
    assert request["prompt"] == [f"{prompt} what sat there?" for prompt in PROMPTS]
    assert (request["prompt_logprobs"], request["max_tokens"]) == (0, 1)
    assert len(asked(stub, "/tokenize")) == 1
    assert spent == [Usage(3, sum(llm_stub_model.count(f"{each} what sat there?") for each in PROMPTS), 3)]


def test_a_query_that_starts_in_mid_word(stub: StubLLM, connect: Connect) -> None:
    (found,) = on_loop(connect(stub).log_likelihoods(["the ca"], "t sat"))
    steps = json.loads(llm_stub_model.score("the cat sat").entries)
    assert found.total == pytest.approx(sum(next(iter(step.values()))["logprob"] for step in steps[2:]))
    assert found.tokens == 2


def test_labels_of_one_token_are_one_request_and_an_older_server_gives_the_same(connect: Connect) -> None:
    labels = [" yes", " no", " not at all", "x"]
    prompts = [f"{prompt}\nRelevant:" for prompt in PROMPTS]
    with StubLLM() as stub:
        llm = connect(stub)
        found = on_loop(llm.label_log_probs(prompts, labels))
        assert len(asked(stub, "/v1/completions")) == 2  # one for " yes", " no" and "x", one for " not at all"
        tokenized = len(asked(stub, "/tokenize"))
        assert on_loop(llm.label_log_probs(prompts, labels)) == found
        assert len(asked(stub, "/tokenize")) == tokenized + 1  # of the prompt before " not at all"
    with StubLLM(label_token_ids=False) as older:
        again = on_loop(connect(older).label_log_probs(prompts, labels))
    for row, other, prompt in zip(found, again, prompts, strict=True):
        assert row == pytest.approx(other)
        assert row == pytest.approx([expected(prompt, label) for label in labels])


NO_SCORES = [*(Fault(log_probs=spoilt) for spoilt in (b"null", b"NaN", b"-Infinity", b"3.5")), NOT_SENT]


@pytest.mark.parametrize("spoilt", NO_SCORES, ids=["null", "NaN", "-Infinity", "3.5", "not sent"])
def test_scores_that_are_none_are_asked_for_once_more(stub: StubLLM, connect: Connect, spoilt: Fault) -> None:
    llm = connect(stub)
    good = on_loop(llm.log_likelihoods(PROMPTS, " what?"))
    labels = on_loop(llm.label_log_probs(PROMPTS, [" yes", " no"]))
    for call, right in (
        (lambda: llm.log_likelihoods(PROMPTS, " what?"), good),
        (lambda: llm.label_log_probs(PROMPTS, [" yes", " no"]), labels),
    ):
        left = 1

        def fault(path: str, body: dict[str, Any], number: int) -> Fault | None:
            nonlocal left
            if path != "/v1/completions" or left == 0:
                return None
            left -= 1
            return spoilt

        stub.fault = fault
        assert on_loop(call()) == right
        left = 1000
        stub.seen.clear()
        with pytest.raises(UnusableScoresError, match="asked twice"):
            on_loop(call())
        assert len(asked(stub, "/v1/completions")) == 2


def test_an_answer_to_fewer_prompts_is_tried_again_and_then_an_endpoint_error(stub: StubLLM, connect: Connect) -> None:
    llm = connect(stub, max_retries=1)
    good = on_loop(llm.log_likelihoods(PROMPTS, " what?"))
    short = json.dumps({"choices": [], "usage": {"prompt_tokens": 1}}).encode()
    bad = {1}
    stub.fault = lambda path, body, number: (
        Fault(body=short) if path == "/v1/completions" and len(asked(stub, path)) in bad else None
    )
    stub.seen.clear()
    assert on_loop(llm.log_likelihoods(PROMPTS, " what?")) == good
    bad.update(range(100))
    with pytest.raises(EndpointError):
        on_loop(llm.log_likelihoods(PROMPTS, " what?"))


def test_a_completion_is_asked_for_as_it_was_sampled(stub: StubLLM, connect: Connect) -> None:
    llm, prompt = connect(stub), "Once upon a time"
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=9, stop=("\n\n",))
    first = on_loop(llm.complete(prompt, sampling, seed=2**64 - 1))
    (request,) = asked(stub, "/v1/completions")
    assert request | {"top_k": -1, "n": 1, "seed": -1, "temperature": 0.5, "top_p": 0.9, "max_tokens": 9} == request
    assert request["stop"] == ["\n\n"]
    assert first == on_loop(llm.complete(prompt, sampling, seed=-1))
    assert not first.finished
    assert on_loop(llm.complete(prompt, Sampling(0.5, 0.9, 500), seed=1)).finished


def test_a_prompt_longer_than_the_context_is_refused(connect: Connect) -> None:
    with StubLLM(context_tokens=64) as stub, pytest.raises(PromptRefusedError, match="64 tokens"):
        on_loop(connect(stub).log_likelihoods(["word " * 100], "query"))


def test_who_is_told_what_a_call_cost_may_end_it(stub: StubLLM, connect: Connect) -> None:
    def refuse(_: Usage) -> None:
        raise RuntimeError("the budget is spent")

    with pytest.raises(RuntimeError, match="budget"):
        on_loop(connect(stub, refuse).complete("Once", Sampling(0.5, 0.9, 9), seed=1))


def test_a_long_text_is_cut_between_characters(stub: StubLLM, connect: Connect) -> None:
    llm = connect(stub)
    for text in ("the cat sat on the mat " * 5, "سلام عليكم " * 9, "😀" * 20):
        for max_tokens in (1, 2, 5, 9):
            cut = on_loop(llm.cut(text, max_tokens))
            assert cut.was_cut
            assert text.startswith(cut.text)
            assert llm_stub_model.count(cut.text) - 1 <= cut.tokens <= max_tokens
            assert llm_stub_model.count(text[: len(cut.text) + 1]) - 1 > max_tokens


def test_the_llm_is_opened_once_and_each_view_counts_for_itself(stub: StubLLM) -> None:
    settings = LLMSettings(base_url=stub.base_url)
    first, second = list[Usage](), list[Usage]()
    llm, other = open_llm(settings, first.append), open_llm(settings, second.append)
    assert (llm.model, llm.context_tokens) == ("stub", 4096)
    assert isinstance(llm, ServerLLM)
    assert isinstance(other, ServerLLM)
    assert llm.transport is other.transport
    on_loop(llm.complete("Once", Sampling(0.5, 0.9, 9), seed=1))
    assert len(first) == 1
    assert not second
    on_loop(llm.transport.aclose())
    with pytest.raises(SettingError, match="FRETWORK_LLM__BASE_URL"):
        open_llm(LLMSettings())


# --- the probe ---


def refused(**settings: Any) -> str:
    started = time.monotonic()
    with pytest.raises(SettingError) as error:
        on_loop(probe(LLMSettings(**settings)))
    assert time.monotonic() - started < 15
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_good_endpoint_says_what_it_serves(stub: StubLLM) -> None:
    assert on_loop(probe(LLMSettings(base_url=stub.base_url))) == Endpoint("stub", 4096)
    assert on_loop(probe(LLMSettings(base_url=stub.base_url, model="stub"))) == Endpoint("stub", 4096)


def test_an_endpoint_where_nothing_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
    said = refused(base_url=f"http://127.0.0.1:{port}/v1")
    assert f"127.0.0.1:{port}" in said
    assert "FRETWORK_LLM__BASE_URL" in said
    assert "does not answer" in said


def test_a_password_in_an_address_is_not_shown(stub: StubLLM) -> None:
    said = refused(base_url=f"http://me:hidden@127.0.0.1:{stub.port}/v1", model="llama")
    assert "hidden" not in said
    assert stub.base_url in said


def test_an_endpoint_that_accepts_and_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.llm.probe.QUICK_S", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        said = refused(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
    assert "did not answer within 0.5 s" in said


def test_a_wrong_key_is_named_and_not_shown() -> None:
    with StubLLM(api_key="right-key") as stub:
        for key in (None, "wrong-key"):
            said = refused(base_url=stub.base_url, api_key=key)
            assert "FRETWORK_LLM__API_KEY" in said
            assert "-key" not in said
        assert on_loop(probe(LLMSettings(base_url=stub.base_url, api_key="right-key"))).model == "stub"


def test_a_model_that_is_not_served(stub: StubLLM) -> None:
    said = refused(base_url=stub.base_url, model="llama")
    assert "FRETWORK_LLM__MODEL" in said
    assert "'llama'" in said
    assert "stub" in said


def test_no_prompt_log_probabilities() -> None:
    with StubLLM(prompt_logprobs=False) as stub:
        said = refused(base_url=stub.base_url)
    assert "no prompt log-probabilities" in said
    assert "vLLM" in said


@pytest.mark.parametrize("spoilt", [Fault(log_probs=b"null"), Fault(log_probs=b"NaN"), NOT_SENT])
def test_prompt_log_probabilities_that_are_none(stub: StubLLM, spoilt: Fault) -> None:
    stub.fault = lambda path, body, number: spoilt if path == "/v1/completions" else None
    assert "prompt log-probabilities" in refused(base_url=stub.base_url)


@pytest.mark.parametrize(
    ("path", "fault", "says"),
    [
        ("/v1/models", Fault(body=b"<!doctype html><title>Welcome</title>"), "no list of models"),
        ("/v1/models", Fault(status=404), "no LLM server"),
        ("/v1/models", Fault(body=b'{"object": "list", "data": []}'), "serves no model"),
        ("/v1/completions", Fault(status=404), "as a server of embeddings does"),
        ("/v1/completions", Fault(body=b'{"choices": [{"index": 0, "text": "hi"}]}'), "no prompt log-probabilities"),
        ("/tokenize", Fault(status=404), "/tokenize"),
        ("/detokenize", Fault(body=b"{}"), "/tokenize"),
        ("/tokenize", Fault(body=b'{"count": 3, "max_model_len": 9, "tokens": [1, 2, 3]}'), "otherwise in /tokenize"),
    ],
)
def test_what_is_no_llm_server(stub: StubLLM, path: str, fault: Fault, says: str) -> None:
    stub.fault = lambda asked_path, body, number: fault if asked_path == path else None
    said = refused(base_url=stub.base_url)
    assert says in said
    assert "FRETWORK_LLM__BASE_URL" in said


def test_each_of_several_addresses_is_asked(stub: StubLLM) -> None:
    with StubLLM(context_tokens=2048) as smaller:
        both = f"{stub.base_url}, {smaller.base_url}"
        assert on_loop(probe(LLMSettings(base_url=both))) == Endpoint("stub", 2048)
        smaller.fault = lambda path, body, number: Fault(status=500)
        assert smaller.base_url in refused(base_url=both)
    with StubLLM(model_name="another") as another:
        said = refused(base_url=f"{stub.base_url},{another.base_url}")
        assert "different models" in said
        assert "FRETWORK_LLM__MODEL" in said
