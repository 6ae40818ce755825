"""The LLM teacher's judgement: what is asked, what is cut, what the numbers come to, and what ends a query."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.relabeler import prompted
from services.relabeler.judged import Judged
from services.relabeler.prompt import prompts_of
from services.relabeler.prompted import BYTES_PER_TOKEN, MAX_LIST_TOKENS, expected_grade, in_lists, judge, judge_all
from shared.llm import (
    Completion,
    Cut,
    EndpointDownError,
    LogLikelihood,
    PromptRefusedError,
    Sampling,
    UnusableScoresError,
)
from shared.llm.prompt import SEAM_TOKENS
from shared.records import Dropped, LLMConfig, Passage, TaskQuery
from tests.unit.tiny_llm import make_tiny_llm

TASK = "Given a query, find a passage that has the answer to the query"
QUERY = TaskQuery(UUID(int=99), UUID(int=1), 0, TASK, "how do owls hunt?")
GRADED, PEAK, BINARY = (
    LLMConfig(num_examples=0, relevance="graded"),
    LLMConfig(num_examples=0, relevance="graded", graded_score="peak"),
    LLMConfig(num_examples=0, relevance="binary"),
)
LABELS = [" none", " low", " high", " perfect"]


def passages(count: int, text: str = "Owls hear a mouse under the snow.") -> list[Passage]:
    return [Passage(UUID(int=n + 1), f"Owls {n}", f"{text} Number {n}.") for n in range(count)]


def likelihood(prompt: str, continuation: str) -> float:
    return -zlib.crc32((prompt + continuation).encode()) / 1e6


class LettersLLM:
    """A token is a character. Each score is a function of prompt and continuation alone; what was asked is kept."""

    model = "letters"

    def __init__(self, context_tokens: int = 100_000, score: Callable[[str, str], float] = likelihood) -> None:
        self.context_tokens, self.score = context_tokens, score
        self.scored: list[tuple[list[str], str]] = []
        self.labelled: list[tuple[list[str], list[str]]] = []
        self.counted: list[str] = []
        self.cuts = 0
        self.at_work = self.most_at_work = 0

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        raise AssertionError("a relabeler writes nothing")

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        self.scored.append((list(prompts), continuation))
        await self._call(prompts, continuation)
        return [LogLikelihood(self.score(prompt, continuation), len(continuation)) for prompt in prompts]

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        self.labelled.append((list(prompts), list(labels)))
        await self._call(prompts, max(labels, key=len))
        return [[self.score(prompt, label) for label in labels] for prompt in prompts]

    async def _call(self, prompts: Sequence[str], continuation: str) -> None:
        self.at_work += 1
        self.most_at_work = max(self.at_work, self.most_at_work)
        await asyncio.sleep(0.001)
        self.at_work -= 1
        for prompt in prompts:
            if len(prompt + continuation) + 1 > self.context_tokens:
                raise PromptRefusedError(f"{len(prompt + continuation)} characters")

    async def count_tokens(self, text: str) -> int:
        self.counted.append(text)
        return len(text)

    async def cut(self, text: str, max_tokens: int) -> Cut:
        self.cuts += 1
        return Cut(text[:max_tokens], len(text) > max_tokens, min(len(text), max_tokens))


def judged(llm: Any, found: list[Passage], config: LLMConfig = GRADED, query: TaskQuery = QUERY) -> Judged:
    result = asyncio.run(judge(llm, query, found, config, prompts_of(config)))
    assert isinstance(result, Judged)
    return result


def dropped(llm: Any, found: list[Passage], query: TaskQuery = QUERY) -> Dropped:
    result = asyncio.run(judge(llm, query, found, GRADED, prompts_of(GRADED)))
    assert isinstance(result, Dropped)
    assert result.item_id == query.query_id
    return result


# ---- what is asked


def test_a_querys_candidates_are_two_requests_in_their_order() -> None:
    llm = LettersLLM()
    found = passages(20)
    judgements = judged(llm, found).judgements
    ((ql_prompts, continuation),) = llm.scored
    ((rc_prompts, labels),) = llm.labelled
    assert llm.most_at_work == 2  # side by side
    assert continuation == " how do owls hunt?"
    assert labels == LABELS
    for passage, judgement, ql_prompt, rc_prompt in zip(found, judgements, ql_prompts, rc_prompts, strict=True):
        block = f"Title: {passage.title}\nPassage: {passage.text}"
        assert ql_prompt.endswith(f"\n\n{block}\nTask: {TASK}\nQuery:")
        assert rc_prompt.endswith(f"\n\nTask: {TASK}\nQuery: how do owls hunt?\n{block}\nRelevance:")
        assert judgement.passage_id == passage.passage_id
        assert judgement.ql_score == likelihood(ql_prompt, continuation)
        assert judgement.rc_score == expected_grade([likelihood(rc_prompt, label) for label in LABELS], [0, 1, 2, 3])
    assert len({judgement.ql_score for judgement in judgements}) == 20


def test_relevance_is_the_one_asked_for() -> None:
    def score(prompt: str, continuation: str) -> float:
        return {" no": -3.0, " yes": -0.25, " none": -4.0, " low": -3.0, " high": -2.0, " perfect": -1.0}.get(
            continuation, -9.0
        )

    for config, labels, wanted in ((BINARY, [" yes"], -0.25), (PEAK, [" perfect"], -1.0)):
        llm = LettersLLM(score=score)
        (judgement,) = judged(llm, passages(1), config).judgements
        assert (judgement.ql_score, judgement.rc_score) == (-9.0, wanted)
        assert llm.labelled[0][1] == labels
    # by hand: weights e^0, e^-1, e^-2, e^-3 of the grades 3, 2, 1, 0
    (judgement,) = judged(LettersLLM(score=score), passages(1), GRADED).judgements
    weights = [1, 0.367879441, 0.135335283, 0.049787068]
    wanted = (3 * weights[0] + 2 * weights[1] + weights[2]) / sum(weights)
    assert judgement.rc_score == pytest.approx(wanted, abs=1e-8)


def test_the_judge_column_says_how() -> None:
    for config, graded in ((GRADED, {"graded_score": "expected"}), (PEAK, {"graded_score": "peak"}), (BINARY, {})):
        found = judged(LettersLLM(), passages(2), config)
        assert found.by["query_tokens"] == found.judgements[0].query_tokens == len(f" {QUERY.query_text}")
        assert found.by == {
            "query_tokens": found.by["query_tokens"],
            "teacher": "llm",
            "model": "letters",
            "prompts_sha256": prompts_of(config).sha256,
            "relevance": config.relevance,
            "passages_cut": 0,
            **graded,
        }


def test_a_verbatim_query_is_shown_to_the_judge() -> None:
    llm = LettersLLM()
    judged(llm, [Passage(UUID(int=1), "", f"They ask: {QUERY.query_text} At night.")])
    assert "Passage: They ask: how do owls hunt? At night.\n" in llm.scored[0][0][0]


def test_a_passage_brings_no_blank_line_of_its_own() -> None:
    llm = LettersLLM()
    judged(llm, [Passage(UUID(int=1), " ", "One.\n\n \nTwo. {query} {}\r\n")])
    (ql_prompt,), _ = llm.scored[0]
    assert ql_prompt.endswith(f"\n\nPassage: One.\nTwo. {{query}} {{}}\nTask: {TASK}\nQuery:")


@given(sizes=st.lists(st.integers(0, 4 * MAX_LIST_TOKENS), max_size=12))
def test_lists_keep_their_order_and_their_limit(sizes: list[int]) -> None:
    prompts = [f"{number}" + "x" * size for number, size in enumerate(sizes)]
    lists = in_lists(prompts)
    assert [prompt for part in lists for prompt in part] == prompts
    for part in lists:
        assert part
        assert len(part) == 1 or sum(len(prompt) // BYTES_PER_TOKEN for prompt in part) <= MAX_LIST_TOKENS
    for part, following in pairwise(lists):
        assert sum(len(prompt) // BYTES_PER_TOKEN for prompt in [*part, following[0]]) > MAX_LIST_TOKENS


def test_long_lists_are_split_and_come_back_in_order() -> None:
    llm = LettersLLM()
    whole = passages(20, "Owls hear. " * 900)  # some 66,000 tokens in all
    scores = judged(llm, whole).judgements
    assert [len(prompts) for prompts, _ in llm.scored] == [len(prompts) for prompts, _ in llm.labelled] == [9, 9, 2]
    for passage, judgement in zip(whole, scores, strict=True):
        assert [judgement] == list(judged(LettersLLM(), [passage]).judgements)


@given(st.lists(st.floats(-50, 0), min_size=4, max_size=4))
def test_the_expected_grade_lies_among_the_grades(log_probs: list[float]) -> None:
    found = expected_grade(log_probs, [0, 1, 2, 3])
    assert 0 <= found <= 3
    assert found == pytest.approx(
        sum(k * math.exp(x) for k, x in enumerate(log_probs)) / sum(map(math.exp, log_probs)), abs=1e-9
    )
    assert expected_grade([x - 700 for x in log_probs], [0, 1, 2, 3]) == pytest.approx(found, abs=1e-9)


# ---- what is cut


def tight(room: int) -> LettersLLM:
    """A context that leaves `room` characters to a passage of QUERY, with no examples."""
    prompts = prompts_of(GRADED)
    texts = [
        f"{prompts.ql.render(QUERY, '')} {QUERY.query_text}",
        f"{prompts.rc.render(QUERY, '')} perfect",
    ]
    return LettersLLM(max(map(len, texts)) + room + SEAM_TOKENS + prompted.SCORED_TOKENS)


def test_passages_are_cut_to_the_context_and_the_query_is_not() -> None:
    prompted._head_tokens.clear()
    short, long = (
        Passage(UUID(int=1), "", "Owls are birds."),
        Passage(UUID(int=2), "Owls", "Owls hear a mouse under the snow. " * 9),
    )
    llm = tight(60)
    found = judged(llm, [short, long, short])
    assert found.by["passages_cut"] == 1
    (prompts, continuation), (rc_prompts, _) = llm.scored[0], llm.labelled[0]
    kept = f"Title: Owls\nPassage: {long.text}"[:60].rstrip()
    assert len(kept) == 59  # a blank at the end would stand before a line's end
    assert prompts[1].endswith(f"{kept}\nTask: {TASK}\nQuery:")
    assert rc_prompts[1].endswith(f"Query: {QUERY.query_text}\n{kept}\nRelevance:")
    assert continuation == f" {QUERY.query_text}"
    assert "\n\nPassage: Owls are birds.\nTask:" in prompts[0]


def test_what_fits_by_its_bytes_is_neither_counted_nor_cut() -> None:
    prompted._head_tokens.clear()
    llm = LettersLLM()
    judged(llm, passages(20))
    judged(llm, passages(20))
    heads = [prompt.head for prompt in prompts_of(GRADED).each]
    assert (llm.counted, llm.cuts) == (heads, 0)  # the heads once, and never again


def test_bytes_that_do_not_fit_are_counted_as_tokens() -> None:
    block = "Title: Owls\nPassage: " + "é" * 79  # 100 characters, 179 bytes
    llm = tight(100)
    assert judged(llm, [Passage(UUID(int=1), "Owls", "é" * 79)]).by["passages_cut"] == 0
    assert llm.cuts == 1
    assert block in llm.scored[0][0][0]
    assert judged(tight(99), [Passage(UUID(int=1), "Owls", "é" * 79)]).by["passages_cut"] == 1


def test_a_query_that_leaves_no_room_for_a_passage_ends() -> None:
    assert dropped(tight(prompted.MIN_PASSAGE_TOKENS - 1), passages(2)).reason == prompted.QUERY_TOO_LONG
    judged(tight(prompted.MIN_PASSAGE_TOKENS), passages(2))
    long = TaskQuery(UUID(int=5), UUID(int=1), 0, TASK, "owls " * 2000)
    assert dropped(LettersLLM(5000), passages(1), long).reason == prompted.QUERY_TOO_LONG


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real model of random weights with a context of 512 tokens and a byte-level tokenizer."""
    from shared.llm.local import LocalLLM

    return LocalLLM.load(make_tiny_llm(tmp_path_factory.mktemp("tiny")), lambda usage: None)


@pytest.mark.parametrize("config", [GRADED, PEAK, BINARY], ids=["expected", "peak", "binary"])
def test_a_real_model_never_refuses_what_was_cut_to_its_context(tiny: Any, config: LLMConfig) -> None:
    text = "Once upon a time there was a 😀 مرحبا café 中文 girl. "
    found = [Passage(UUID(int=n + 1), "", (text * 40)[n : n + length]) for n, length in enumerate((5, 300, 900, 2000))]
    result = judged(tiny, found, config)
    assert result.by["passages_cut"] == (1 if config == BINARY else 2)  # its prompt is shorter
    assert all(math.isfinite(score.ql_score) and score.ql_score < 0 for score in result.judgements)
    assert all(math.isfinite(score.rc_score) for score in result.judgements)
    if config == GRADED:
        assert all(0 < score.rc_score < 3 for score in result.judgements)
    # the cut is as long as it may be: a little more is refused
    prompts = prompts_of(config)
    block = f"Passage: {found[3].text}"
    with pytest.raises(PromptRefusedError):
        asyncio.run(tiny.log_likelihoods([prompts.ql.render(QUERY, block)], f" {QUERY.query_text}"))


def test_a_real_models_scores_are_those_of_each_prompt_alone(tiny: Any) -> None:
    prompts = prompts_of(PEAK)
    found = passages(5)
    together = judged(tiny, found, PEAK).judgements
    for passage, judgement in zip(found, together, strict=True):
        block = f"Title: {passage.title}\nPassage: {passage.text}"
        (ql,) = asyncio.run(tiny.log_likelihoods([prompts.ql.render(QUERY, block)], f" {QUERY.query_text}"))
        (rc,) = asyncio.run(tiny.log_likelihoods([prompts.rc.render(QUERY, block)], " perfect"))
        assert judgement.ql_score == pytest.approx(ql.total, abs=1e-3)
        assert judgement.rc_score == pytest.approx(rc.total, abs=1e-3)


# ---- what ends a query, and what does not


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PromptRefusedError("too long"), prompted.PROMPT_REFUSED),
        (UnusableScoresError("NaN"), prompted.UNUSABLE_SCORES),
    ],
)
def test_a_fault_of_the_item_ends_it_alone(error: Exception, reason: str) -> None:
    def score(prompt: str, continuation: str) -> float:
        if "bad" in prompt:
            raise error
        return likelihood(prompt, continuation)

    bad = TaskQuery(UUID(int=98), UUID(int=1), 0, TASK, "bad")
    queries = [(QUERY, passages(3)), (bad, passages(3)), (QUERY, passages(2))]
    first, second, third = asyncio.run(judge_all(LettersLLM(score=score), queries, GRADED, prompts_of(GRADED)))
    assert second == Dropped(bad.query_id, reason, str(error))
    assert isinstance(first, Judged)
    assert isinstance(third, Judged)
    assert (len(first.judgements), len(third.judgements)) == (3, 2)


def test_an_endpoints_error_is_no_reason_and_comes_out_bare() -> None:
    def score(prompt: str, continuation: str) -> float:
        if "Owls 7" in prompt:
            raise EndpointDownError("away")
        return 0.0

    queries = [(QUERY, passages(n)) for n in (1, 8, 2)]
    with pytest.raises(EndpointDownError, match="away"):
        asyncio.run(judge_all(LettersLLM(score=score), queries, GRADED, prompts_of(GRADED)))


def test_all_queries_of_a_shard_are_at_work_at_once() -> None:
    llm = LettersLLM()
    queries = [(QUERY, passages(2))] * 32
    assert len(asyncio.run(judge_all(llm, queries, GRADED, prompts_of(GRADED)))) == 32
    assert llm.most_at_work == 64
