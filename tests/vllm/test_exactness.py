"""The two back ends against each other: a real vLLM server, and transformers on the same weights in this process.

FRETWORK_TEST_VLLM_URL     the server, http://127.0.0.1:8000/v1 for one
FRETWORK_TEST_VLLM_MODEL   the folder or hub name of what it serves
FRETWORK_TEST_VLLM_RECORD  a name: write what the server answers to tests/recordings/NAME.json, which the unit tests
                           replay; `python -m tests.unit.tiny_llm FOLDER` makes the model of `bytelevel`

The server has to hold float32 weights (`--dtype float32`) for differences this small.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from shared.llm import LLM, PromptRefusedError, Sampling
from shared.llm.local import LocalLLM
from shared.llm.loop import on_loop
from shared.llm.probe import probe
from shared.llm.server import ServerLLM
from shared.llm.transport import Transport
from shared.settings import LLMSettings
from tests.awkward_texts import CUTS, LABELS, PAIRS, PROMPTS
from tests.recorded import FOLDER

pytestmark = pytest.mark.vllm

T = TypeVar("T")

PER_TOKEN = 1e-3


class Recorder(Transport):
    """A transport that also keeps what passes through it."""

    calls: dict[str, dict[str, Any]]

    async def post(self, path: str, body: bytes, *, decoder: Callable[[bytes], T], **how: Any) -> T:
        def keep(answer: bytes) -> T:
            content = json.loads(answer)
            content.pop("id", None)
            content.pop("created", None)
            self.calls[f"{path} {body.decode()}"] = {"path": path, "request": json.loads(body), "answer": content}
            return decoder(answer)

        return await super().post(path, body, decoder=keep, **how)


@pytest.fixture(scope="module")
def settings() -> LLMSettings:
    url = os.environ.get("FRETWORK_TEST_VLLM_URL")
    if url is None:
        pytest.skip("FRETWORK_TEST_VLLM_URL names no vLLM server")
    return LLMSettings(base_url=url)


@pytest.fixture(scope="module")
def there(settings: LLMSettings) -> Iterator[ServerLLM]:
    endpoint = on_loop(probe(settings))
    transport = Recorder(settings, None)
    transport.calls = {}
    yield ServerLLM(transport, endpoint.model, endpoint.context_tokens, lambda _: None)
    on_loop(transport.aclose())


@pytest.fixture(scope="module")
def here() -> LocalLLM:
    name_or_path = os.environ.get("FRETWORK_TEST_VLLM_MODEL")
    if name_or_path is None:
        pytest.skip("FRETWORK_TEST_VLLM_MODEL does not say which model the server holds")
    return LocalLLM.load(name_or_path, lambda _: None)


@pytest.mark.parametrize(("prompt", "continuation"), PAIRS)
def test_likelihoods_agree(there: ServerLLM, here: LocalLLM, prompt: str, continuation: str) -> None:
    (served,) = on_loop(there.log_likelihoods([prompt], continuation))
    (local,) = on_loop(here.log_likelihoods([prompt], continuation))
    assert served.tokens == local.tokens > 0
    assert served.total == pytest.approx(local.total, abs=PER_TOKEN * local.tokens)


def test_likelihoods_of_a_list_agree(there: ServerLLM, here: LocalLLM) -> None:
    served = on_loop(there.log_likelihoods(PROMPTS, PAIRS[0][1]))
    local = on_loop(here.log_likelihoods(PROMPTS, PAIRS[0][1]))
    assert [each.tokens for each in served] == [each.tokens for each in local]
    for one, other in zip(served, local, strict=True):
        assert one.total == pytest.approx(other.total, abs=PER_TOKEN * other.tokens)


def test_labels_agree(there: ServerLLM, here: LocalLLM) -> None:
    for served, local in zip(
        on_loop(there.label_log_probs(PROMPTS, LABELS)), on_loop(here.label_log_probs(PROMPTS, LABELS)), strict=True
    ):
        assert served == pytest.approx(local, abs=PER_TOKEN)


@pytest.mark.parametrize(("text", "max_tokens"), CUTS)
def test_cuts_agree(there: ServerLLM, here: LocalLLM, text: str, max_tokens: int) -> None:
    served, local = on_loop(there.cut(text, max_tokens)), on_loop(here.cut(text, max_tokens))
    assert (served.text, served.was_cut) == (local.text, local.was_cut)
    assert on_loop(there.count_tokens(text)) == on_loop(here.count_tokens(text))


def test_greedy_completions_agree(there: ServerLLM, here: LocalLLM) -> None:
    for sampling in (Sampling(0.0, 1.0, 20), Sampling(0.0, 1.0, 40, ("\n", "e"))):
        served = on_loop(there.complete("Once upon a time", sampling, 1))
        assert served == on_loop(here.complete("Once upon a time", sampling, 1))


def test_a_completion_ends_with_the_context_on_both(there: ServerLLM, here: LocalLLM) -> None:
    assert there.context_tokens == here.context_tokens
    long = on_loop(here.cut("Once upon a time there was a cat. " * there.context_tokens, there.context_tokens - 5)).text
    served, local = (on_loop(llm.complete(long, Sampling(0.0, 1.0, 50), 1)) for llm in (there, here))
    assert served == local
    for llm in (there, here):
        with pytest.raises(PromptRefusedError):
            on_loop(llm.log_likelihoods([long], " Once upon a time there was a cat."))


def test_a_seed_decides_a_completion(there: ServerLLM) -> None:
    warm = Sampling(0.9, 0.95, 24)
    one, same, other = (on_loop(there.complete("Once upon a time", warm, seed)) for seed in (7, 7, -8))
    assert one == same != other


def test_calls_side_by_side_do_not_disturb_each_other(there: ServerLLM) -> None:
    """A batch on the server changes the last digits only."""
    alone = [on_loop(there.log_likelihoods(PROMPTS, continuation)) for _, continuation in PAIRS[:6]]
    together = on_loop(_all(there, [continuation for _, continuation in PAIRS[:6]]))
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.tokens == b.tokens
            assert a.total == pytest.approx(b.total, abs=PER_TOKEN * a.tokens)


async def _all(llm: LLM, continuations: list[str]) -> list[Any]:
    calls: list[Coroutine[Any, Any, Any]] = [llm.log_likelihoods(PROMPTS, each) for each in continuations]
    return await asyncio.gather(*calls)


def test_what_was_said_is_recorded_where_that_is_asked_for(there: ServerLLM, here: LocalLLM) -> None:
    name = os.environ.get("FRETWORK_TEST_VLLM_RECORD")
    if name is None:
        pytest.skip("FRETWORK_TEST_VLLM_RECORD is not set")
    recorder = there.transport
    assert isinstance(recorder, Recorder)
    recorder.calls.clear()
    fresh = ServerLLM(recorder, there.model, there.context_tokens, there.spent)  # one that knows no label's id yet
    expected: dict[str, list[Any]] = {}
    for llm in (fresh, here):
        expected = {"log_likelihoods": [], "cuts": []}
        for prompt, continuation in PAIRS:
            (found,) = on_loop(llm.log_likelihoods([prompt], continuation))
            expected["log_likelihoods"].append([found.total, found.tokens])
        together = on_loop(llm.log_likelihoods(PROMPTS, PAIRS[0][1]))
        expected["list"] = [[found.total, found.tokens] for found in together]
        expected["labels"] = on_loop(llm.label_log_probs(PROMPTS, LABELS))
        for text, max_tokens in CUTS:
            cut = on_loop(llm.cut(text, max_tokens))
            expected["cuts"].append([cut.text, cut.was_cut])
    calls = ",\n".join(json.dumps(call) for call in recorder.calls.values())
    (FOLDER / f"{name}.json").write_text(f'{{"transformers": {json.dumps(expected)},\n"calls": [\n{calls}\n]}}\n')
