"""The tables. Postgres is the truth; the queue only says that there may be work.

Only `shared/ledger/` moves a shard's state; the transitions stand as comments beside `SHARD_STATES`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

SHARD_STATES = (
    "waiting",  # behind a barrier      -> ready (dispatcher: open_barriers)
    "ready",  # may be claimed          -> claimed (worker: claim), dead (cancel_trainings)
    "claimed",  # a worker holds it     -> done (finish), ready, split or dead (release, reap, fail), dead (cancelled),
    #                                      waiting (release, where its barrier closed again)
    "done",  # its outputs are stored   -> ready (only the index: reopen_index)
    "dead",  # failed too often         -> ready, or waiting where its barrier is closed (retry)
)


def _created_at() -> Column[datetime]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now())


corpora = Table(
    "corpora",
    metadata,
    Column("corpus_id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column(
        "version", Integer, nullable=False, server_default="0"
    ),  # + 1 by an import that adds, a removal that removes
    Column("passage_count", BigInteger, nullable=False, server_default="0"),
    Column("term_count", BigInteger, nullable=False, server_default="0"),
    # of the sorted passage ids, which are hashes of the content: equal corpora have equal hashes
    Column("content_hash", Text, nullable=False, server_default=""),
    _created_at(),
)

passages = Table(
    "passages",
    metadata,
    Column("corpus_id", Uuid, ForeignKey("corpora.corpus_id", ondelete="CASCADE"), primary_key=True),
    Column("passage_id", Uuid, primary_key=True),  # UUIDv5 of title and text: the content hash
    Column("source_id", Text, nullable=False),  # the `_id` in the file that it came from
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("added_version", Integer, nullable=False),
    Column("removed_version", Integer),  # the first that is without it; the row stays for the runs that had it
    Index(
        "passages_source_id", "corpus_id", "source_id", unique=True, postgresql_where=text("removed_version IS NULL")
    ),
)

corpus_terms = Table(
    "corpus_terms",
    metadata,
    Column("corpus_id", Uuid, ForeignKey("corpora.corpus_id", ondelete="CASCADE"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("term", Text, primary_key=True),
    Column("document_frequency", BigInteger, nullable=False),
    Column("collection_frequency", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),  # corpus name and a number: scifact-1
    Column("corpus_id", Uuid, ForeignKey("corpora.corpus_id"), nullable=False),
    # frozen with the run: what the corpus was, and its statistics
    Column("corpus_version", Integer, nullable=False),
    Column("corpus_hash", Text, nullable=False),
    Column("passage_count", BigInteger, nullable=False),
    Column("term_count", BigInteger, nullable=False),
    Column("config", JSONB, nullable=False),
    Column("config_hash", Text, nullable=False),
    Column("sampled_count", BigInteger, nullable=False),  # seed passages that queries are generated from
    Column("fingerprint", Uuid, nullable=False),  # UUIDv5 of corpus_hash and config_hash; query ids come from it
    # running -> paused (dispatcher: budget.pause_runs; runs.pause_run), done (dispatcher: finish_runs)
    # paused  -> running (runs.resume_run), done (dispatcher: finish_runs)
    # running, paused -> cancelled (runs.cancel_run), which is the end: no shard of it is claimed any more
    # done    -> running (retry, add_label_version)
    Column("state", Text, nullable=False, server_default="running"),
    # the budget: no setting of the records, so no part of config, and a resume may change it
    Column("max_tokens", BigInteger),
    Column("deadline_at", DateTime(timezone=True)),
    Column("paused_reason", Text),  # while paused: why, and the command that goes on
    _created_at(),
    Column("finished_at", DateTime(timezone=True)),
    CheckConstraint("state in ('running', 'paused', 'cancelled', 'done')", name="state"),
)

llm_usage = Table(  # what a run's LLM calls cost, flushed by each worker's meter
    "llm_usage",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False, server_default="0"),  # prompts, also those sent in one list
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
)

endpoints = Table(  # what all processes know together of an LLM server: its circuit breaker and its caps
    "endpoints",
    metadata,
    Column("base_url", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default="0"),  # openings in a row
    Column("open_until", DateTime(timezone=True)),  # no call before this; null: the breaker is closed
    Column("error", Text, nullable=False, server_default=""),  # what opened it
    # theoretical arrival times (the generic cell rate algorithm): how far the caps are reserved
    Column("requests_tat", DateTime(timezone=True)),
    Column("tokens_tat", DateTime(timezone=True)),
)

# How many of what a run has, exact in any snapshot as the sum of both tables: triggers (migration 0003) append a delta
# for every change of shards, drops, queries and records, and the dispatcher adds the deltas up (shared/counts.py).
# `what`: a shard's state (in items), drop:REASON, queries, seeds, records, moved (records whose positive is no seed),
# and, written by the services themselves: judged (candidates), taken_over (judgements, and queries, of an earlier run),
# kind:KIND (queries by what they are).
counts = Table(
    "counts",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("label_version", Integer, primary_key=True, autoincrement=False),
    Column("what", Text, primary_key=True),
    Column("amount", BigInteger, nullable=False),
)

count_deltas = Table(
    "count_deltas",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False),
    Column("stage", Text, nullable=False),
    Column("label_version", Integer, nullable=False),
    Column("what", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
)

run_stages = Table(  # when a stage's first shard was claimed
    "run_stages",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("started_at", DateTime(timezone=True), nullable=False),
)

throughput = Table(  # items that got done in the ten seconds from `at` on
    "throughput",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("at", DateTime(timezone=True), primary_key=True),
    Column("items", BigInteger, nullable=False),
)

workers = Table(  # the processes at work, by their own word every few seconds (shared/heartbeat.py)
    "workers",
    metadata,
    Column("worker", Text, primary_key=True),  # host:pid:queue, as in shards.claimed_by
    Column("queue", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False),
    Column("shards", Integer, nullable=False),  # in hand
    Column("llm", JSONB, nullable=False),  # one object per LLM server that it calls
    Column("metrics", Text, nullable=False),  # its counters and histograms in Prometheus' text format
)

status_token = Table(  # of the bearer token that acting through the status API takes, where no setting names one
    "status_token",
    metadata,
    Column("sha256", Text, primary_key=True),
    _created_at(),
)

label_versions = Table(
    "label_versions",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("label_version", Integer, primary_key=True),
    Column("policy", JSONB, nullable=False),  # records.LabelPolicy
    _created_at(),
)

shards = Table(
    "shards",
    metadata,
    Column("shard_id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE")),  # null: an evaluation of some model
    Column("stage", Text, nullable=False),
    Column("label_version", Integer, nullable=False, server_default="1"),  # told apart by relabel alone
    Column("state", Text, nullable=False),
    Column("item_ids", ARRAY(Uuid), nullable=False),
    Column("item_count", Integer, nullable=False),
    Column("claim_seq", Integer, nullable=False, server_default="0"),  # the fence, with claimed_by
    Column("failures", Integer, nullable=False, server_default="0"),  # permanent errors
    Column("losses", Integer, nullable=False, server_default="0"),  # leases that ran out
    Column("setbacks", Integer, nullable=False, server_default="0"),  # calls that failed where others did not
    Column("claimed_by", Text),  # host:pid:queue, kept when done
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("not_before", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("rung_at", DateTime(timezone=True)),  # the last doorbell
    Column("claimed_at", DateTime(timezone=True)),
    Column("finished_at", DateTime(timezone=True)),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("error_traceback", Text),
    _created_at(),
    CheckConstraint("state in ('waiting', 'ready', 'claimed', 'done', 'dead')", name="state"),
    Index("shards_by_stage", "run_id", "stage", "state"),
    Index("shards_ready", "stage", "not_before", postgresql_where=text("state = 'ready'")),
    Index("shards_dead", "run_id", "shard_id", postgresql_where=text("state = 'dead'")),
    Index("shards_leased", "lease_expires_at", postgresql_where=text("state = 'claimed'")),
)

drops = Table(  # every item that ended without an output, and why
    "drops",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("label_version", Integer, primary_key=True, server_default="1"),
    Column("item_id", Uuid, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
)

queries = Table(
    "queries",
    metadata,
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("query_id", Uuid, primary_key=True),
    Column("seed_passage_id", Uuid, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("task_description", Text, nullable=False),
    Column("query_text", Text, nullable=False),
    Column("provenance", JSONB, nullable=False),  # teacher, prompt hash, model, sampling parameters
    # one entry per candidate, in retrieval order; null until the stage that writes them
    Column("candidate_ids", ARRAY(Uuid)),
    Column("candidate_scores", ARRAY(Double)),
    Column("ql_scores", ARRAY(Double)),
    Column("rc_scores", ARRAY(Double)),
    Column("judge", JSONB),
)

fret_records = Table(
    "fret_records",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("query_id", Uuid, primary_key=True),
    Column("label_version", Integer, primary_key=True),
    Column("positive_id", Uuid, nullable=False),
    Column("negative_ids", ARRAY(Uuid), nullable=False),
    Column("positive_ql_rank", Integer, nullable=False),
    Column("positive_rc_rank", Integer, nullable=False),
    Column("positive_fused_score", Double, nullable=False),
    Column("seed_fused_score", Double, nullable=False),
    Column("runner_up_fused_score", Double),  # the best of the other candidates'; null in records of before 0004
    Column("positive_changed", Boolean, nullable=False),  # the positive is not the seed passage
    # where the query stands verbatim, [start, end) in characters of the passage's text; null: nowhere
    Column("positive_span", ARRAY(Integer)),
    Column("negative_spans", JSONB, nullable=False),  # one [start, end] or null per negative
    ForeignKeyConstraint(["run_id", "query_id"], ["queries.run_id", "queries.query_id"], ondelete="CASCADE"),
    Index("fret_records_by_version", "run_id", "label_version", "query_id"),
    Index("fret_records_moved", "run_id", "label_version", "query_id", postgresql_where=text("positive_changed")),
)

reviews = Table(  # what people decided; the newest of a record counts, and none is changed (shared/reviews.py)
    "reviews",
    metadata,
    Column("review_id", BigInteger, Identity(always=True), primary_key=True),
    Column("run_id", Uuid, nullable=False),
    Column("query_id", Uuid, nullable=False),
    Column("label_version", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    # where it is swapped: the record with the passage that was chosen, as in fret_records
    Column("positive_id", Uuid),
    Column("negative_ids", ARRAY(Uuid)),
    Column("positive_ql_rank", Integer),
    Column("positive_rc_rank", Integer),
    Column("positive_fused_score", Double),
    Column("positive_changed", Boolean),
    Column("positive_span", ARRAY(Integer)),
    Column("negative_spans", JSONB),
    _created_at(),
    CheckConstraint("decision in ('accepted', 'swapped', 'dropped')", name="decision"),
    ForeignKeyConstraint(
        ["run_id", "query_id", "label_version"],
        ["fret_records.run_id", "fret_records.query_id", "fret_records.label_version"],
        ondelete="CASCADE",
    ),
    Index("reviews_of_records", "run_id", "label_version", "query_id", "review_id"),
)

training_runs = Table(
    "training_runs",
    metadata,
    Column("training_run_id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False),
    Column("label_version", Integer, nullable=False),
    Column("reviews_until", BigInteger, nullable=False, server_default="0"),  # the newest review that it reads
    Column("config", JSONB, nullable=False),  # services/trainer: TrainingConfig
    Column("output_dir", Text, nullable=False),
    # its state is its shard's; progress is written while it runs, the result when it is done
    Column("progress", JSONB, nullable=False, server_default="{}"),  # step, total_steps, loss, rate
    Column("result", JSONB),
    _created_at(),
)

training_curve = Table(  # the loss about twice a second; after a resume the steps since the checkpoint come anew
    "training_curve",
    metadata,
    Column("training_run_id", Uuid, ForeignKey("training_runs.training_run_id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("loss", Double, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("evaluation_id", Uuid, primary_key=True),
    Column("config", JSONB, nullable=False),  # services/trainer: EvaluationConfig
    Column("progress", JSONB, nullable=False, server_default="{}"),
    Column("result", JSONB),
    _created_at(),
)
