"""Starts runs; pauses, resumes and cancels them.

Everything that a start needs is one transaction in SQL, so a corpus of any size costs the caller no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Connection, insert, select, text

from shared.budget import find_budget, set_limits
from shared.errors import FretworkError, NotDoneError, NotFoundError, SettingError
from shared.records import NAMESPACE, RunConfig
from shared.schema import corpora, label_versions, runs
from shared.settings import settings
from shared.stages import Stage

# what earlier runs had without saying so, where the default is another now
_BEFORE: dict[str, Any] = {"candidates": "dense"}
_BEFORE_OFFLINE: dict[str, Any] = {"query_kinds": {"sentence": 1}, "queries_per_passage": 1}


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was frozen at its start."""

    run_id: UUID
    name: str
    corpus_id: UUID
    corpus_version: int
    corpus_hash: str
    passage_count: int
    term_count: int
    sampled_count: int
    fingerprint: UUID
    config: RunConfig
    state: str


def find_run(connection: Connection, name_or_id: str | UUID) -> Run:
    """The run of that name or id; `latest` is the newest. Raises NotFoundError."""
    query = select(*(runs.c[field.name] for field in fields(Run)))
    if isinstance(name_or_id, UUID):
        query = query.where(runs.c.run_id == name_or_id)
    elif name_or_id == "latest":
        query = query.order_by(runs.c.created_at.desc(), runs.c.name).limit(1)
    else:
        query = query.where(runs.c.name == name_or_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no run {name_or_id!r}: `fretwork run list` shows the runs")
    return Run(**{**row, "config": as_stored(row["config"])})


def as_stored(config: dict[str, Any]) -> RunConfig:
    """A run's configuration as the ledger has it, also of a run that was started by an earlier version."""
    values = {**_BEFORE, **({} if config.get("teacher") == "llm" else _BEFORE_OFFLINE), **config}
    if values.pop("titles_as_queries", False):  # then the title was the first query; its turn is one of chance now
        values["query_kinds"] = {"title": 1, "sentence": 1}
    return RunConfig(**values)


def draft_run(connection: Connection, corpus_name: str, config: RunConfig) -> Run:
    """The run that `start_run` would start now; nothing is written. Raises NotFoundError without such a corpus."""
    corpus = connection.execute(select(corpora).where(corpora.c.name == corpus_name)).mappings().one_or_none()
    if corpus is None:
        raise NotFoundError(f"there is no corpus {corpus_name!r}: `fretwork corpus add {corpus_name} PATH` makes it")
    number = connection.execute(
        text("SELECT count(*) + 1 FROM runs WHERE corpus_id = :corpus_id"), {"corpus_id": corpus["corpus_id"]}
    ).scalar_one()
    if config.follows is not None:
        _check_can_follow(find_run(connection, config.follows), config)
    fingerprint = uuid5(NAMESPACE, f"{corpus['content_hash']}:{config.sha256()}")
    return Run(
        run_id=uuid5(fingerprint, f"{corpus_name}:{number}"),
        name=f"{corpus_name}-{number}",
        corpus_id=corpus["corpus_id"],
        corpus_version=corpus["version"],
        corpus_hash=corpus["content_hash"],
        passage_count=corpus["passage_count"],
        term_count=corpus["term_count"],
        sampled_count=min(config.num_seed_passages or corpus["passage_count"], corpus["passage_count"]),
        fingerprint=fingerprint,
        config=config,
        state="running",
    )


def _check_can_follow(earlier: Run, config: RunConfig) -> None:
    """Raises SettingError where its queries and judgements would be others, NotDoneError before it is done."""
    decisive = {"teacher"} | ({"seed", "queries_per_passage", "llm"} if config.teacher == "llm" else set())
    ours, theirs = (_flat(one.model_dump(include=decisive)) for one in (config, earlier.config))
    differing = ", ".join(name for name in ours if ours[name] != theirs.get(name))
    if differing:
        raise SettingError(f"run {earlier.name} cannot be followed: it had another value of {differing}")
    if earlier.state not in ("done", "cancelled"):
        raise NotDoneError(f"run {earlier.name} is {earlier.state}: only a finished run can be followed")


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    of_llm = values.pop("llm", {})
    return values | {f"llm.{name}": value for name, value in of_llm.items()}


def find_followed(connection: Connection, run: Run) -> Run | None:
    """The run whose LLM's queries and judgements this one takes over; None where it asks for everything itself."""
    if run.config.follows is None or run.config.teacher != "llm":
        return None
    return find_run(connection, run.config.follows)


def start_run(
    connection: Connection,
    corpus_name: str,
    config: RunConfig,
    *,
    max_tokens: int | None = None,
    max_hours: float | None = None,
) -> Run:
    """Freezes corpus and configuration into a run, with its index and generate shards ready.

    The run is paused once its LLM calls have used `max_tokens` (prompts and completions), or `max_hours` from now
    (`shared.budget`). Raises NotFoundError where there is no such corpus, SettingError where it does not fit the
    in-process Qdrant, the teacher uses no tokens to be limited, or the run that it follows cannot be followed.
    """
    _lock_corpus(connection, corpus_name)  # the run's number counts those before it
    run = draft_run(connection, corpus_name, config)
    _check_local_index(run)
    frozen = {field.name: getattr(run, field.name) for field in fields(run)}
    connection.execute(
        insert(runs).values({**frozen, "config": config.model_dump(mode="json"), "config_hash": config.sha256()})
    )
    connection.execute(
        insert(label_versions).values(run_id=run.run_id, label_version=1, policy=config.labels.model_dump(mode="json"))
    )
    set_limits(connection, run.run_id, config.teacher, max_tokens, max_hours)
    _shard_passages(connection, run, Stage.INDEX, run.passage_count)
    _shard_passages(connection, run, Stage.GENERATE, run.sampled_count)
    return run


def _lock_corpus(connection: Connection, corpus_name: str) -> None:
    """One start at a time."""
    connection.execute(select(corpora.c.corpus_id).where(corpora.c.name == corpus_name).with_for_update())


def find_unfinished(
    connection: Connection, corpus_name: str, config: RunConfig, *, or_done: bool = False
) -> Run | None:
    """The newest run of the same fingerprint, corpus and configuration, that is running or paused; None where none is.

    `or_done`: or, where none is, that is done. No other run of this corpus starts before the transaction ends. Raises
    NotFoundError without such a corpus.
    """
    _lock_corpus(connection, corpus_name)
    wanted = draft_run(connection, corpus_name, config)
    found = connection.execute(
        select(runs.c.run_id)
        .where(
            runs.c.corpus_id == wanted.corpus_id,
            runs.c.fingerprint == wanted.fingerprint,
            runs.c.state.in_(("running", "paused", *(["done"] if or_done else []))),
        )
        .order_by(runs.c.state == "done", runs.c.created_at.desc(), runs.c.name)
        .limit(1)
    ).scalar_one_or_none()
    return find_run(connection, found) if found else None


def resume_run(
    connection: Connection, run: Run, *, max_tokens: int | None = None, max_hours: float | None = None
) -> None:
    """paused -> running, with new limits: tokens since the run's start, hours from now; None keeps the old limit.

    A run that is running only gets the limits. Raises SettingError where its budget would be spent at once,
    FretworkError where it is done; roll the transaction back then.
    """
    by_id = {"run_id": run.run_id}
    state = connection.execute(text("SELECT state FROM runs WHERE run_id = :run_id FOR UPDATE"), by_id).scalar_one()
    if state in ("done", "cancelled"):
        raise FretworkError(f"run {run.name} is {state}: there is nothing to resume")
    set_limits(connection, run.run_id, run.config.teacher, max_tokens, max_hours)
    budget = find_budget(connection, run.run_id)
    if budget.spent:
        raise SettingError(
            f"run {run.name} has used {budget.used_tokens:,} tokens and may use {budget.max_tokens:,}: "
            "give it more with --max-tokens N, which counts from the run's start"
        )
    if budget.late:
        raise SettingError(f"the time of run {run.name} is up: give it more with --max-hours H, which counts from now")
    connection.execute(text("UPDATE runs SET state = 'running', paused_reason = NULL WHERE run_id = :run_id"), by_id)
    if state == "paused":
        # doorbells that rang in the meantime claimed nothing: these ring at the next tick
        connection.execute(text("UPDATE shards SET rung_at = NULL WHERE run_id = :run_id AND state = 'ready'"), by_id)


def pause_run(connection: Connection, run: Run, why: str = "paused by hand") -> None:
    """running -> paused. Shards in hand are finished or given back; `resume_run` goes on. Raises FretworkError else."""
    _leave(connection, run, ("running",), "paused", f"{why}: `fretwork run resume {run.name}` goes on")


def cancel_run(connection: Connection, run: Run) -> None:
    """running or paused -> cancelled, for good; what it has so far stays. Raises FretworkError in another state."""
    _leave(connection, run, ("running", "paused"), "cancelled", None)


def _leave(connection: Connection, run: Run, states: tuple[str, ...], to: str, reason: str | None) -> None:
    by_id = {"run_id": run.run_id}
    state = connection.execute(text("SELECT state FROM runs WHERE run_id = :run_id FOR UPDATE"), by_id).scalar_one()
    if state not in states:
        raise FretworkError(f"run {run.name} is {state}: only a run that is {' or '.join(states)} can be {to}")
    connection.execute(
        text(
            "UPDATE runs SET state = CAST(:to AS text), paused_reason = :reason, "
            "finished_at = CASE WHEN CAST(:to AS text) = 'cancelled' THEN now() END WHERE run_id = :run_id"
        ),
        {**by_id, "to": to, "reason": reason},
    )


def _check_local_index(run: Run) -> None:
    limit = settings().max_local_passages
    if settings().qdrant_url is None and run.passage_count > limit:
        raise SettingError(
            f"the corpus has {run.passage_count:,} passages and the in-process Qdrant holds at most {limit:,}: "
            "set FRETWORK_QDRANT_URL to a Qdrant server"
        )


# the first by a hash of seed and id: a sample that depends on nothing else
_SAMPLE = """
    SELECT passage_id FROM passages
    WHERE corpus_id = :corpus_id AND added_version <= :version
      AND (removed_version IS NULL OR removed_version > :version)
    ORDER BY md5(:seed || CAST(passage_id AS text)) LIMIT :sample
"""


def _sample_of(run: Run, size: int) -> dict[str, Any]:
    return {
        "corpus_id": run.corpus_id,
        "version": run.corpus_version,
        "seed": f"{run.config.seed}:",
        "sample": size,
    }


def sample_passages(connection: Connection, run: Run, size: int) -> list[UUID]:
    """The first `size` passages that the run samples."""
    return list(connection.execute(text(_SAMPLE), _sample_of(run, size)).scalars())


def _shard_passages(connection: Connection, run: Run, stage: Stage, size: int) -> None:
    """Ready shards over a sample of the corpus, in order of the passages' ids."""
    connection.execute(
        text(
            f"""
            INSERT INTO shards (shard_id, run_id, stage, state, item_ids, item_count)
            SELECT CAST(md5(CAST(:run_id AS text) || :stage || number) AS uuid), :run_id, :stage, 'ready',
                   array_agg(passage_id ORDER BY passage_id), count(*)
            FROM (
                SELECT passage_id, (row_number() OVER (ORDER BY passage_id) - 1) / :shard_size AS number
                FROM ({_SAMPLE}) AS sampled
            ) AS numbered
            GROUP BY number
            """  # noqa: S608 - our own constant
        ),
        {
            "run_id": run.run_id,
            "stage": stage,
            "shard_size": run.config.shard_size,
            **_sample_of(run, size),
        },
    )
