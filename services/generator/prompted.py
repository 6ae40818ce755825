"""The LLM teacher's queries: LLM(P_QG, p_seed) → (t, q), FRet's first step (Gecko, arXiv 2403.20327).

Task description and query come out together, in one completion. A malformed completion is asked for again with another
seed, and a passage that gets no well-formed one ends with a reason. Knows no queue and no database.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from services.generator.parse import Malformed, Pair, parse
from services.generator.prompt import STOP, Prompt
from shared.errors import SettingError
from shared.llm import LLM, Completion, Cut, PromptRefusedError, Sampling
from shared.llm.prompt import SEAM_TOKENS, passage_block
from shared.llm.together import together
from shared.records import Dropped, LLMConfig, Passage, TaskQuery, query_id

PROMPT_REFUSED = "prompt_refused"  # reason code: the endpoint does not take this prompt

# How long a prompt is without its passage: a fact of the model (by name) and the prompt (by hash), so it never ages.
_fixed_tokens: dict[tuple[str, str], int] = {}


@dataclass(frozen=True, slots=True)
class Attempt:
    seed: int
    completion: Completion
    parsed: Pair | Malformed


@dataclass(frozen=True, slots=True)
class Written:
    """How one query came about; or why it did not: then `pair` is None, and the last attempt or `refusal` says why."""

    ordinal: int
    prompt: str
    cut: Cut
    attempts: tuple[Attempt, ...] = ()
    pair: Pair | None = None
    refusal: str = ""

    @property
    def reasons(self) -> list[str]:
        """What was wrong with each malformed completion, and with the prompt if it was refused."""
        malformed = [attempt.parsed.reason for attempt in self.attempts if isinstance(attempt.parsed, Malformed)]
        return [*malformed, PROMPT_REFUSED] if self.refusal else malformed


async def write_all(
    llm: LLM,
    passages: Sequence[Passage],
    config: LLMConfig,
    prompt: Prompt,
    *,
    run_fingerprint: UUID,
    queries_per_passage: int,
    seed: int,
) -> list[list[TaskQuery] | Dropped]:
    """`write_queries` for every passage, all at once: the back end limits what is in flight. In the order given.

    Raises the first error of any passage, by itself and not in a group; the other calls are cancelled then.
    """
    await passage_limit(llm, config, prompt)  # once, before everyone asks for it
    return await together(
        write_queries(
            llm,
            passage,
            config,
            prompt,
            run_fingerprint=run_fingerprint,
            queries_per_passage=queries_per_passage,
            seed=seed,
        )
        for passage in passages
    )


async def write_queries(
    llm: LLM,
    passage: Passage,
    config: LLMConfig,
    prompt: Prompt,
    *,
    run_fingerprint: UUID,
    queries_per_passage: int,
    seed: int,
) -> list[TaskQuery] | Dropped:
    """A query for each of `queries_per_passage` ordinals that yields one, or the last reason if none does.

    Raises EndpointError where the back end does not answer, SettingError where its context has no room for a passage.
    """
    cut = await cut_passage(llm, passage, config, prompt)
    written = await together(
        write_query(llm, passage, cut, config, prompt, run_fingerprint=run_fingerprint, ordinal=ordinal, seed=seed)
        for ordinal in range(queries_per_passage)
    )
    return outcome(llm.model, passage, config, prompt, run_fingerprint, written)


async def cut_passage(llm: LLM, passage: Passage, config: LLMConfig, prompt: Prompt) -> Cut:
    """The passage's block, as far as it fits beside the prompt. Raises what `write_queries` raises."""
    return await llm.cut(passage_block(passage.title, passage.text), await passage_limit(llm, config, prompt))


async def write_query(
    llm: LLM,
    passage: Passage,
    cut: Cut,
    config: LLMConfig,
    prompt: Prompt,
    *,
    run_fingerprint: UUID,
    ordinal: int,
    seed: int,
) -> Written:
    """Asks for one query of the passage until a completion is well-formed, at most `config.max_attempts` times.

    `cut` is `cut_passage`'s. At temperature 0 every attempt would give the same text, so there is one.
    """
    # the same passage, seed and settings give the same query in any run, so that another run can take it over
    key = f"{seed}:{passage.passage_id}:{ordinal}"
    task_description = prompt.draw_task(_draw(f"{key}:kind"), _draw(key))
    text = prompt.render(cut.text, task_description)
    attempts: list[Attempt] = []
    for attempt in range(config.max_attempts if config.temperature else 1):
        drawn = _draw(f"{key}:{attempt}")
        try:
            completion = await llm.complete(text, sampling(config), drawn)
        except PromptRefusedError as error:
            return Written(ordinal, text, cut, tuple(attempts), refusal=str(error))
        parsed = parse(completion, task_description, passage_text=passage.text, example_queries=prompt.example_queries)
        attempts.append(Attempt(drawn, completion, parsed))
        if isinstance(parsed, Pair):
            return Written(ordinal, text, cut, tuple(attempts), parsed)
    return Written(ordinal, text, cut, tuple(attempts))


def outcome(
    model: str,
    passage: Passage,
    config: LLMConfig,
    prompt: Prompt,
    run_fingerprint: UUID,
    written: Sequence[Written],
) -> list[TaskQuery] | Dropped:
    """What a passage's ordinals came to; where some failed, the first query's provenance says which, and why."""
    lost = {str(one.ordinal): one.reasons for one in written if one.pair is None}
    queries: list[TaskQuery] = []
    for one in written:
        if one.pair is None:
            continue
        provenance: dict[str, Any] = {
            "teacher": "llm",
            "kind": prompt.kind_of(one.pair.task_description),
            "model": model,
            "prompt_sha256": prompt.sha256,
            "task_sampling": config.task_sampling,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_completion_tokens": config.max_completion_tokens,
            "seed": one.attempts[-1].seed,
            "attempts": len(one.attempts),
        }
        if one.reasons:
            provenance["malformed"] = one.reasons
        if one.cut.was_cut:
            provenance["passage_cut_to_tokens"] = one.cut.tokens
        if lost and not queries:
            provenance["lost_ordinals"] = lost
        queries.append(
            TaskQuery(
                query_id=query_id(run_fingerprint, passage.passage_id, one.ordinal),
                seed_passage_id=passage.passage_id,
                ordinal=one.ordinal,
                task_description=one.pair.task_description,
                query_text=one.pair.query_text,
                provenance=provenance,
            )
        )
    if queries:
        return queries
    reasons = [reason for one in written for reason in one.reasons]
    counted = ", ".join(f"{count} × {reason}" for reason, count in Counter(reasons).items())
    refusal = next((f": {one.refusal}" for one in written if one.refusal), "")
    return Dropped(passage.passage_id, reasons[-1], f"{len(reasons)} attempts: {counted}{refusal}")


async def passage_limit(llm: LLM, config: LLMConfig, prompt: Prompt) -> int:
    """How many tokens of a passage fit beside the prompt and the completion. Raises SettingError where none do."""
    key = (llm.model, prompt.sha256)
    if key not in _fixed_tokens:
        _fixed_tokens[key] = await llm.count_tokens(prompt.longest_fixed_text())
    fixed = _fixed_tokens[key] + SEAM_TOKENS + config.max_completion_tokens
    if fixed >= llm.context_tokens:
        raise SettingError(
            f"the generator's prompt and its completion take {fixed:,} tokens, and {llm.model} has a context of "
            f"{llm.context_tokens:,}: lower llm.num_examples or serve the model with a longer --max-model-len"
        )
    return llm.context_tokens - fixed


def sampling(config: LLMConfig) -> Sampling:
    return Sampling(config.temperature, config.top_p, config.max_completion_tokens, STOP)


def _draw(key: str) -> int:
    """31 bits of a hash: a seed that every server takes, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
