"""The requests of a generation, without sending them: what a bare client has to ask to ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.runs.teacher import settle
from services.generator.prompt import prompt_of
from services.generator.prompted import write_all
from shared import store
from shared.llm import LLM, Completion, Cut, LogLikelihood, Sampling
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
from shared.records import RunConfig
from shared.runs import draft_run, sample_passages
from shared.settings import settings
from tests.e2e.stack import Stack


@dataclass
class Recorder:
    """An LLM whose completions are noted and not made; whatever is about tokens, the real one answers."""

    llm: LLM
    model: str
    context_tokens: int
    asked: list[tuple[str, Sampling, int]] = field(default_factory=list)

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        self.asked.append((prompt, sampling, seed))
        return Completion(" none", finished=True)

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        return await self.llm.log_likelihoods(prompts, continuation)

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        return await self.llm.label_log_probs(prompts, labels)

    async def count_tokens(self, text: str) -> int:
        return await self.llm.count_tokens(text)

    async def cut(self, text: str, max_tokens: int) -> Cut:
        return await self.llm.cut(text, max_tokens)


def bodies_of(stack: Stack, corpus: str, config: RunConfig) -> list[dict[str, Any]]:
    """The bodies of /v1/completions that a run's generation sends first for each of its passages."""
    config = settle(config)
    with stack.engine.connect() as connection:
        run = draft_run(connection, corpus, config)
        found = store.load_passages(connection, run.corpus_id, sample_passages(connection, run, run.sampled_count))
    llm = open_llm(settings().llm)
    recorder = Recorder(llm, llm.model, llm.context_tokens)
    on_loop(
        write_all(
            recorder,
            list(found.values()),
            config.llm,
            prompt_of(config.llm),
            run_fingerprint=run.fingerprint,
            queries_per_passage=config.queries_per_passage,
            seed=config.seed,
        )
    )
    return [
        {
            "model": recorder.model,
            "prompt": prompt,
            "n": 1,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop),
            "seed": seed,
        }
        for prompt, sampling, seed in recorder.asked
    ]
