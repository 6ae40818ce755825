"""The LLM teacher's judgement of a query's candidates: two scores of each by few-shot prompts (FRet, step 2).

QL(q, p) = log LLM(q | p, P_QL), summed over the query's tokens, and RC(q, p) from the log-probabilities of relevance
labels (Gecko, arXiv 2403.20327, section 3.2; graded labels: Zhuang et al., arXiv 2310.14122). Knows no queue and no
database.

Nothing is masked here, unlike in `statistical`: a claim that a passage states word for word is relevant to it, and the
LLM is to see that. That the query was copied matters to whoever trains on it, so records and exports name the span.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine, Sequence
from itertools import chain
from typing import Any

from services.relabeler.judged import Judged
from services.relabeler.prompt import Prompt, Prompts
from shared.llm import LLM, LogLikelihood, PromptRefusedError, UnusableScoresError
from shared.llm.prompt import SEAM_TOKENS, passage_block
from shared.llm.together import together
from shared.records import Dropped, Judgement, LLMConfig, Passage, TaskQuery

# Reason codes.
QUERY_TOO_LONG = "query_too_long"  # beside the prompt and the query the context has no room for a passage
PROMPT_REFUSED = "prompt_refused"  # the endpoint does not take one of the query's prompts
UNUSABLE_SCORES = "unusable_scores"  # the endpoint gives log-probabilities that are missing or not finite

SCORED_TOKENS = 1  # what a server generates beside the prompt that it scores
MIN_PASSAGE_TOKENS = 16  # less of a passage says nothing of it
MAX_LIST_TOKENS = 32_000  # of all prompts of one request; its answer, a log-probability for each, is some 3 MB then
BYTES_PER_TOKEN = 3  # roughly: 4 in English

# How long a prompt's head is: a fact of the model (by name) and the prompt (by hash), so it never ages.
_head_tokens: dict[tuple[str, str], int] = {}


async def judge_all(
    llm: LLM, queries: Sequence[tuple[TaskQuery, Sequence[Passage]]], config: LLMConfig, prompts: Prompts
) -> list[Judged | Dropped]:
    """`judge` for every query, all at once: the back end limits what is in flight. In the order given.

    Raises the first error of any query, by itself and not in a group; the other calls are cancelled then.
    """
    await together(head_tokens(llm, prompt) for prompt in prompts.each)  # once, before everyone asks
    return await together(judge(llm, query, passages, config, prompts) for query, passages in queries)


async def judge(
    llm: LLM, query: TaskQuery, passages: Sequence[Passage], config: LLMConfig, prompts: Prompts
) -> Judged | Dropped:
    """Both scores of each passage, in the order given; higher is better.

    `ql_score` is in nats. `rc_score` is the log-probability, in nats, of the label `yes` (binary) or of the highest
    grade (peak), or the mean grade (expected). A passage is cut by tokens to what the context leaves, alike for both
    scores; the query never is, and how many passages were is noted. Raises EndpointError where the back end does not
    answer.
    """
    blocks = [passage_block(passage.title, passage.text) for passage in passages]
    try:
        fitting = await fit(llm, query, blocks, prompts)
        if fitting is None:
            return Dropped(query.query_id, QUERY_TOO_LONG, f"for a context of {llm.context_tokens} tokens")
        both: list[Coroutine[Any, Any, Any]] = [
            query_likelihoods(llm, query, fitting, prompts.ql),
            relevances(llm, query, fitting, prompts.rc, config),
        ]
        likelihoods, rc_scores = await together(both)
    except PromptRefusedError as error:
        return Dropped(query.query_id, PROMPT_REFUSED, str(error))
    except UnusableScoresError as error:
        return Dropped(query.query_id, UNUSABLE_SCORES, str(error))
    judgements = [
        Judgement(passage.passage_id, likelihood.total, rc_score, likelihood.tokens)
        for passage, likelihood, rc_score in zip(passages, likelihoods, rc_scores, strict=True)
    ]
    cut = sum(fitted != block for fitted, block in zip(fitting, blocks, strict=True))
    made = _provenance(llm.model, config, prompts, passages_cut=cut)
    return Judged(judgements, {**made, "query_tokens": likelihoods[0].tokens} if likelihoods else made)


def _provenance(model: str, config: LLMConfig, prompts: Prompts, *, passages_cut: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "teacher": "llm",
        "model": model,
        "prompts_sha256": prompts.sha256,
        "relevance": config.relevance,
        "passages_cut": passages_cut,
    }
    return made | ({"graded_score": config.graded_score} if config.relevance == "graded" else {})


async def query_likelihoods(llm: LLM, query: TaskQuery, blocks: Sequence[str], prompt: Prompt) -> list[LogLikelihood]:
    """log p(query | passage) for each of the passages, in nats."""
    texts = [prompt.render(query, block) for block in blocks]
    answer = prompt.answer.format(query=query.query_text)
    found = await together(llm.log_likelihoods(part, answer) for part in in_lists(texts))
    return list(chain.from_iterable(found))


async def relevances(
    llm: LLM, query: TaskQuery, blocks: Sequence[str], prompt: Prompt, config: LLMConfig
) -> list[float]:
    """The relevance of each of the passages, by the labels that `config` asks for."""
    texts = [prompt.render(query, block) for block in blocks]
    expected = config.relevance == "graded" and config.graded_score == "expected"
    labels = prompt.labels if expected else prompt.labels[-1:]
    rows = chain.from_iterable(await together(llm.label_log_probs(part, labels) for part in in_lists(texts)))
    return [expected_grade(row, prompt.grades) if expected else row[0] for row in rows]


def expected_grade(log_probs: Sequence[float], grades: Sequence[int]) -> float:
    """Σ_k grade_k p_k, with p the softmax of the labels' log-probabilities (arXiv 2310.14122, expected relevance)."""
    highest = max(log_probs)
    weights = [math.exp(log_prob - highest) for log_prob in log_probs]
    return math.fsum(grade * weight for grade, weight in zip(grades, weights, strict=True)) / math.fsum(weights)


async def fit(llm: LLM, query: TaskQuery, blocks: Sequence[str], prompts: Prompts) -> list[str] | None:
    """The passages, cut to what both prompts leave of the context; None where that is next to nothing.

    Asks the back end for nothing where their bytes, which tokens cannot outnumber, fit as they are.
    """
    answers = (prompts.ql.answer.format(query=query.query_text), max(prompts.rc.labels, key=len))
    texts = ["".join([*prompt.around(query), answer]) for prompt, answer in zip(prompts.each, answers, strict=True)]
    heads = [await head_tokens(llm, prompt) for prompt in prompts.each]

    def room(tokens: Sequence[int]) -> int:
        return llm.context_tokens - SCORED_TOKENS - SEAM_TOKENS - max(map(sum, zip(heads, tokens, strict=True)))

    limit = room([len(text.encode()) for text in texts])
    if all(len(block.encode()) <= limit for block in blocks):
        return list(blocks)
    limit = room(await together(llm.count_tokens(text) for text in texts))
    if limit < MIN_PASSAGE_TOKENS:
        return None
    cuts = await together(llm.cut(block, limit) for block in blocks)
    return [cut.text.rstrip() if cut.was_cut else cut.text for cut in cuts]


def in_lists(prompts: Sequence[str]) -> list[list[str]]:
    """The prompts in their order, in lists of roughly MAX_LIST_TOKENS at most, or of one prompt."""
    lists: list[list[str]] = []
    size = 0
    for prompt in prompts:
        tokens = len(prompt.encode()) // BYTES_PER_TOKEN
        if not lists or size + tokens > MAX_LIST_TOKENS:
            lists.append([])
            size = 0
        lists[-1].append(prompt)
        size += tokens
    return lists


async def head_tokens(llm: LLM, prompt: Prompt) -> int:
    key = (llm.model, prompt.sha256)
    if key not in _head_tokens:
        _head_tokens[key] = await llm.count_tokens(prompt.head)
    return _head_tokens[key]
