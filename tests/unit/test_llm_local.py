"""The local back end on a real, tiny model, held against what a real vLLM said of the same weights (recorded)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from math import fsum
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import SettingError
from shared.llm import PromptRefusedError, Sampling, Usage
from shared.llm.local import BATCH_TOKENS, LocalLLM
from shared.llm.open import open_llm
from shared.settings import LLMSettings
from tests.awkward_texts import CUTS, LABELS, PAIRS, PROMPTS
from tests.unit.test_llm_boundary import PER_TOKEN, server
from tests.unit.tiny_llm import CONTEXT_TOKENS, make_tiny_llm
from tests.unit.tiny_model import make_tiny_model

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=12)
WARM = Sampling(temperature=0.9, top_p=0.9, max_tokens=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_llm(tmp_path_factory.mktemp("tiny_llm"))


@pytest.fixture(scope="module")
def llm(folder: str) -> LocalLLM:
    return LocalLLM.load(folder, lambda _: None)


@pytest.mark.parametrize(("prompt", "continuation"), PAIRS)
def test_a_likelihood_is_what_vllm_said(llm: LocalLLM, prompt: str, continuation: str) -> None:
    (here,) = asyncio.run(llm.log_likelihoods([prompt], continuation))
    (there,) = asyncio.run(server("bytelevel").log_likelihoods([prompt], continuation))
    assert here.tokens == there.tokens > 0
    assert here.total == pytest.approx(there.total, abs=PER_TOKEN * here.tokens)


def test_labels_are_what_vllm_said(llm: LocalLLM) -> None:
    here = asyncio.run(llm.label_log_probs(PROMPTS, LABELS))
    there = asyncio.run(server("bytelevel").label_log_probs(PROMPTS, LABELS))
    for row, expected in zip(here, there, strict=True):
        assert row == pytest.approx(expected, abs=PER_TOKEN)


@pytest.mark.parametrize(("text", "max_tokens"), CUTS)
def test_a_cut_is_the_longest_that_fits(llm: LocalLLM, text: str, max_tokens: int) -> None:
    cut = asyncio.run(llm.cut(text, max_tokens))
    assert text.startswith(cut.text)
    assert cut.was_cut == (cut.text != text)
    assert asyncio.run(llm.count_tokens(cut.text)) <= cut.tokens <= max_tokens
    if cut.was_cut:
        assert asyncio.run(llm.count_tokens(text[: len(cut.text) + 1])) > max_tokens


def test_a_likelihood_is_the_sum_that_transformers_gives_for_the_whole_text(llm: LocalLLM, folder: str) -> None:
    """Without any of this project's code: one text, one pass, all log-probabilities."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt, continuation = "Query: what is", " a passage that has the answer?"
    ids = tokenizer(prompt + continuation, return_tensors="pt")["input_ids"]
    before = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    (found,) = asyncio.run(llm.log_likelihoods([prompt], continuation))
    assert found.tokens == ids.shape[1] - before
    assert found.total == pytest.approx(fsum(log_probs[before - 1 :].tolist()), abs=1e-4)


def test_a_batch_gives_what_each_prompt_gives_alone(llm: LocalLLM) -> None:
    prompts = [" ".join(["the cat sat on the mat"] * count) for count in (1, 2, 29, 70, 3, 50, 65, 68)]
    sizes = [asyncio.run(llm.count_tokens(prompt)) for prompt in prompts]
    assert len(prompts) * max(sizes) > BATCH_TOKENS  # more than one batch
    together = asyncio.run(llm.log_likelihoods(prompts, ", and the dog"))
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = asyncio.run(llm.log_likelihoods([prompt], ", and the dog"))
        assert found.total == pytest.approx(alone.total, abs=1e-5 * alone.tokens)
    labels = asyncio.run(llm.label_log_probs(prompts, LABELS))
    for prompt, row in zip(prompts, labels, strict=True):
        assert row == pytest.approx(asyncio.run(llm.label_log_probs([prompt], LABELS))[0], abs=1e-4)


def test_a_greedy_completion_is_that_of_transformers(llm: LocalLLM, folder: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("Once upon", return_tensors="pt")["input_ids"]
    generated = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    expected = tokenizer.decode(generated[0], skip_special_tokens=True).removeprefix("Once upon")
    completion = asyncio.run(llm.complete("Once upon", GREEDY, seed=0))
    assert completion.text == expected
    assert not completion.finished


def test_a_seed_decides_a_completion_and_touches_no_other_draw(llm: LocalLLM) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    texts = [asyncio.run(llm.complete("Once upon", WARM, seed)).text for seed in (1, 1, 2, -3, 2**63 + 5)]
    assert torch.equal(torch.rand(3), expected)
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_a_small_top_p_leaves_the_likeliest_token_alone(llm: LocalLLM) -> None:
    narrow = Sampling(temperature=1.0, top_p=1e-6, max_tokens=12)
    assert asyncio.run(llm.complete("Once", narrow, 3)) == asyncio.run(llm.complete("Once", GREEDY, 0))


def test_a_completion_ends_with_the_context(folder: str) -> None:
    spent: list[Usage] = []
    llm = LocalLLM.load(folder, spent.append)
    long = asyncio.run(llm.cut("Once upon a time. " * CONTEXT_TOKENS, CONTEXT_TOKENS - 5)).text
    assert not asyncio.run(llm.complete(long, GREEDY, 0)).finished
    assert spent[0].tokens == CONTEXT_TOKENS
    assert 0 < spent[0].completion_tokens < GREEDY.max_tokens


def test_a_stop_string_ends_a_completion_and_is_no_part_of_it(llm: LocalLLM) -> None:
    whole = asyncio.run(llm.complete("Once upon", GREEDY, 0)).text
    stop = whole[5:8]
    completion = asyncio.run(llm.complete("Once upon", Sampling(0.0, 1.0, 12, ("never there", stop)), 0))
    assert completion.text == whole[: whole.index(stop)]
    assert completion.finished


def test_what_calls_cost_is_told_in_tokens(folder: str) -> None:
    spent: list[Usage] = []
    llm = LocalLLM.load(folder, spent.append)
    prompts = ["the cat sat", "the dog"]
    asyncio.run(llm.log_likelihoods(prompts, " there"))
    tokens = [asyncio.run(llm.count_tokens(prompt + " there")) for prompt in prompts]
    asyncio.run(llm.complete(prompts[0], GREEDY, 0))
    assert spent == [Usage(2, sum(tokens), 0), Usage(1, asyncio.run(llm.count_tokens("the cat sat")), 12)]


def test_a_prompt_longer_than_the_context_is_refused(llm: LocalLLM) -> None:
    assert llm.context_tokens == CONTEXT_TOKENS
    long = " cat" * (CONTEXT_TOKENS - 1)
    size = asyncio.run(llm.count_tokens(long))
    assert size >= CONTEXT_TOKENS - 1
    with pytest.raises(PromptRefusedError, match=f"context is {CONTEXT_TOKENS}"):
        asyncio.run(llm.log_likelihoods([long], " sat on the mat"))
    with pytest.raises(PromptRefusedError, match="context"):
        asyncio.run(llm.complete(long + " sat on the mat", GREEDY, 0))
    with pytest.raises(PromptRefusedError, match="so short"):
        asyncio.run(llm.log_likelihoods(["Qu"], "ery"))


def test_it_is_what_opens_where_only_a_model_is_named(folder: str) -> None:
    settings = LLMSettings(model=folder)
    first, second = open_llm(settings), open_llm(settings)
    assert isinstance(first, LocalLLM)
    assert isinstance(second, LocalLLM)
    assert first.of is second.of  # loaded once
    assert (first.model, first.context_tokens) == (folder, CONTEXT_TOKENS)


def test_who_may_open_it_starts_without_torch() -> None:
    program = "import sys, shared.llm.open, shared.llm.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["no folder", "an empty folder", "an encoder", "half a model"])
def test_a_folder_without_a_causal_model_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if kind == "an empty folder":
        path.mkdir()
    elif kind == "an encoder":
        make_tiny_model(path)
    elif kind == "half a model":
        make_tiny_llm(path)
        model = AutoModelForCausalLM.from_pretrained(path)
        state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
        model.save_pretrained(path, state_dict=state)
    with pytest.raises(SettingError, match=r"FRETWORK_LLM__MODEL is .*FRETWORK_LLM__BASE_URL") as refused:
        LocalLLM.load(str(path), lambda _: None)
    assert "\n" not in str(refused.value)
