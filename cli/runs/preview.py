"""`run start --preview N`: what a few passages would give and what the run would cost, before it is paid for.

Writes nothing to the ledger. With the teacher `llm` it makes the calls that the previewed passages need, and no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import typer
from sqlalchemy import Engine

from cli.context import say
from cli.runs.estimate import Cost, Estimate, Sample, estimate
from services.generator import offline, prompted
from services.generator.parse import Pair
from services.generator.prompt import Prompt, prompt_of
from services.relabeler.judged import Judged
from services.relabeler.prompt import prompts_of
from services.relabeler.prompted import judge
from shared import store
from shared.llm import LLM, Usage
from shared.llm.loop import on_loop
from shared.llm.open import open_llm
from shared.llm.together import together
from shared.records import Dropped, Passage, RunConfig, TaskQuery
from shared.runs import Run, draft_run, sample_passages
from shared.settings import settings


def preview(engine: Engine, corpus: str, config: RunConfig, count: int) -> None:
    """Prints the queries of `count` sampled passages or the reasons why there are none, and what the run would cost.

    For the teacher `llm` also each prompt, completion and token count. `config` is as `teacher.settle` left it.
    """
    with engine.connect() as connection:
        run = draft_run(connection, corpus, config)
        ids = sample_passages(connection, run, count)
        found = store.load_passages(connection, run.corpus_id, ids)
    passages = [found[passage_id] for passage_id in ids]
    if config.teacher == "llm" and passages:
        _preview_llm(run, passages)
    else:
        _preview_offline(engine, run, passages)


def _preview_offline(engine: Engine, run: Run, passages: Sequence[Passage]) -> None:
    with engine.connect() as connection:
        statistics = store.load_statistics(connection, run, offline.needed_terms(passages))
    for passage in passages:
        typer.echo(f"\n── {passage.source_id}  {passage.title}\n{passage.text}")
        written = offline.write_queries(
            passage,
            statistics,
            run_fingerprint=run.fingerprint,
            queries_per_passage=run.config.queries_per_passage,
            kinds=run.config.query_kinds,
        )
        _echo_outcome(written)
    say(
        f"the run would sample {run.sampled_count:,} of {run.passage_count:,} passages; "
        "the offline teacher uses no LLM tokens"
    )


def _echo_outcome(written: Sequence[TaskQuery] | Dropped) -> None:
    if isinstance(written, Dropped):
        typer.echo(f"   dropped: {written.reason} {written.detail}")
        return
    for query in written:
        typer.echo(f"   task:  {query.task_description} ({query.kind})\n   query: {query.query_text}")


@dataclass
class _Tally:
    usage: Usage = field(default_factory=Usage)

    def add(self, usage: Usage) -> None:
        self.usage += usage


@dataclass(frozen=True, slots=True)
class _Previewed:
    passage: Passage
    written: Sequence[prompted.Written]
    outcome: list[TaskQuery] | Dropped
    sample: Sample


def _preview_llm(run: Run, passages: Sequence[Passage]) -> None:
    prompt = prompt_of(run.config.llm)
    views = []
    for passage in passages:  # a view each, so that each one's tokens are counted apart
        generation, scoring = _Tally(), _Tally()
        named = settings().llm
        views.append((passage, open_llm(named, generation.add), generation, open_llm(named, scoring.add), scoring))
    previewed = on_loop(_preview_all(run, prompt, views))
    for number, seen in enumerate(previewed):
        _echo(prompt, seen, with_head=number == 0)
    samples = [seen.sample for seen in previewed]
    _say_estimate(run, samples, estimate(samples, run.sampled_count, run.config, settings().llm))


async def _preview_all(
    run: Run, prompt: Prompt, views: Sequence[tuple[Passage, LLM, _Tally, LLM, _Tally]]
) -> list[_Previewed]:
    await prompted.passage_limit(views[0][1], run.config.llm, prompt)
    return await together(_preview_one(run, prompt, *view) for view in views)


async def _preview_one(
    run: Run, prompt: Prompt, passage: Passage, writer: LLM, generation: _Tally, judging: LLM, scoring: _Tally
) -> _Previewed:
    config = run.config.llm
    written: list[prompted.Written] = []
    started = time.monotonic()
    cut = await prompted.cut_passage(writer, passage, config, prompt)
    for ordinal in range(run.config.queries_per_passage):
        written.append(
            await prompted.write_query(
                writer,
                passage,
                cut,
                config,
                prompt,
                run_fingerprint=run.fingerprint,
                ordinal=ordinal,
                seed=run.config.seed,
            )
        )
    generation_s = time.monotonic() - started
    outcome = prompted.outcome(writer.model, passage, config, prompt, run.fingerprint, written)
    queries = [] if isinstance(outcome, Dropped) else outcome
    prompts = prompts_of(config)
    scored, scoring_s = 0, 0.0
    for query in queries:
        started = time.monotonic()
        judged = await judge(judging, query, [passage], config, prompts)
        if isinstance(judged, Judged):
            scored += 1
            scoring_s += 2 * (time.monotonic() - started)  # both scores are asked for at once
    sample = Sample(generation.usage, generation_s, len(queries), scoring.usage, scoring_s, scored)
    return _Previewed(passage, written, outcome, sample)


def _echo(prompt: Prompt, seen: _Previewed, *, with_head: bool) -> None:
    """All that was sent and came back; the part that all prompts begin with is shown once."""
    typer.echo(f"\n── {seen.passage.source_id}  {seen.passage.title}")
    for one in seen.written:
        shown = one.prompt if with_head and one.ordinal == 0 else f"[…] {one.prompt.removeprefix(prompt.head)}"
        typer.echo(f"   prompt {one.ordinal + 1}:\n{shown}")
        if one.cut.was_cut:
            typer.echo(f"   the passage was cut to {one.cut.tokens:,} tokens")
        for attempt in one.attempts:
            ended = "" if attempt.completion.finished else " (cut off at max_completion_tokens)"
            typer.echo(f"   completion, seed {attempt.seed}{ended}:\n{attempt.completion.text}")
            if not isinstance(attempt.parsed, Pair):
                typer.echo(f"   malformed: {attempt.parsed.reason}")
    _echo_outcome(seen.outcome)
    usage = seen.sample.generation
    typer.echo(
        f"   tokens: {usage.prompt_tokens:,} prompt + {usage.completion_tokens:,} completion in {usage.requests:,} "
        f"requests; {seen.sample.scoring.tokens:,} to score against the passage itself"
    )


def _say_estimate(run: Run, samples: Sequence[Sample], found: Estimate) -> None:
    config, named = run.config, settings().llm
    used = sum(sample.generation.tokens + sample.scoring.tokens for sample in samples)
    say(
        f"\nthis preview used {used:,} tokens of {config.llm.model}. The run would sample {run.sampled_count:,} of "
        f"{run.passage_count:,} passages:"
    )
    say(f"   generate: {_shown(found.generate)}")
    if found.relabel is None:
        say("   relabel: unknown, since no previewed query could be scored; what is shown above says why")
    else:
        say(f"   relabel: {_shown(found.relabel)}")
        say(f"   in all: {_shown(found.generate + found.relabel)}")
    say(
        f"   assumed: passages like these {len(samples)}, {config.num_candidates} candidates as long as the seed "
        "passage for each query, no query dropped as a duplicate, one generator and one relabeler"
    )
    if named.base_urls:
        in_flight = named.max_parallel_requests * len(named.base_urls)
        say(
            f"   the shorter time is for endpoints that answer {in_flight} requests at once as quickly as these, "
            "the longer for such as were as busy with the preview as they can be"
        )


def _shown(cost: Cost) -> str:
    """To two digits: more would claim what a few passages cannot tell."""
    tokens = float(f"{cost.tokens:.2g}")
    least, most = _duration(cost.least_s), _duration(cost.most_s)
    return f"about {tokens:,.0f} tokens in {least if least == most else f'{least} to {most}'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
