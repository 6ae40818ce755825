"""The frozen values that cross a stage, and the frozen configuration of a run.

Ids are deterministic: a passage's comes from its content, a query's from its run's fingerprint, its seed passage and
its ordinal. So doing a shard twice writes the same rows, and the same corpus, configuration and seed give the same
records on any machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from shared.masking import Span

QueryKind = Literal["sentence", "title", "keywords"]

NAMESPACE = UUID("6f0a6c1e-3c54-5b0e-9a2e-0d2f8e6b7a11")


def passage_id(title: str, text: str) -> UUID:
    return uuid5(NAMESPACE, f"{title}\x1f{text}")


def query_id(run_fingerprint: UUID, seed_passage_id: UUID, ordinal: int) -> UUID:
    return uuid5(run_fingerprint, f"{seed_passage_id}:{ordinal}")


@dataclass(frozen=True, slots=True)
class Passage:
    passage_id: UUID
    title: str
    text: str
    source_id: str = ""


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """A query with its task description; `seed_passage_id` is provenance, not assumed to be the positive."""

    query_id: UUID
    seed_passage_id: UUID
    ordinal: int
    task_description: str
    query_text: str
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """The offline teacher's QueryKind, or what the LLM's task asks for; `other` where nobody wrote it down."""
        return str(self.provenance.get("kind", "other"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A retrieved passage: rank from 1, score the cosine rounded to 1e-5."""

    passage_id: UUID
    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """The teacher's raw scores of one candidate for one query; higher is better, in nats for a likelihood."""

    passage_id: UUID
    ql_score: float
    rc_score: float
    query_tokens: int | None = None  # that the likelihood is of; None where nobody kept it


@dataclass(frozen=True, slots=True)
class Dropped:
    """An item that ended without an output, and the code that it is counted under."""

    item_id: UUID
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FRetRecord:
    """One ⟨task, query, positive, negatives⟩ with the spans in which the query stands verbatim."""

    query_id: UUID
    positive_id: UUID
    negative_ids: tuple[UUID, ...]
    positive_ql_rank: int
    positive_rc_rank: int
    positive_fused_score: float
    seed_fused_score: float
    runner_up_fused_score: float  # the best of the other candidates'
    positive_span: Span | None = None
    negative_spans: tuple[Span | None, ...] = ()


class LabelPolicy(BaseModel):
    """How stored scores become a positive and negatives; changing it needs no teacher (a new label version).

    Candidates are ordered by fused rank; `range_min` and `range_max` count in that order with the positive left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Literal["p_1", "seed"] | None = Field(
        None,
        description="p_1: the best by fused rank, as in the paper, the default with the teacher llm; seed: the passage "
        "the query was made from, the default with the offline teacher, for which it is the better of the two "
        "(docs/decisions.md)",
    )
    fusion: Literal["rrf", "ql", "rc"] = Field(
        "rrf", description="what candidates are ordered by: rrf: both ranks, as in the paper; ql, rc: one of them alone"
    )
    negative: Literal["lowest", "sampled"] = Field(
        "lowest",
        description="lowest: the last by fused rank, the paper's p_20; sampled: at random, seeded by the query",
    )
    num_negatives: int = Field(1, ge=1, le=3, description="hard negatives per record; where fewer are left, fewer")
    range_min: int = Field(0, ge=0, description="leave out this many of the best candidates after the positive")
    range_max: int | None = Field(None, ge=1, description="take negatives from the best this many after the positive")
    relative_margin: float | None = Field(
        None, gt=0, lt=1, description="keep a negative only if its cosine is below (1 - this) x the positive's: 0.05"
    )
    max_score: float | None = Field(None, gt=-1, description="keep a negative only if its cosine is below this")
    min_relevance: float | None = Field(
        None, description="drop a query whose positive has an rc_score (a log-probability, or a grade) below this"
    )

    round_trip: int | None = Field(
        None,
        ge=1,
        description="keep a query only if its seed passage is among the first this many of its candidates by cosine",
    )
    round_trip_judge: int | None = Field(
        None, ge=1, description="keep a query only if its seed is among the judge's first this many"
    )
    min_token_log_prob: float | None = Field(
        None,
        le=0,
        description="keep a query only if its log-likelihood given its seed, over its tokens, is at least this: -4",
    )

    @model_validator(mode="after")
    def _leaves_room(self) -> LabelPolicy:
        if self.range_max is not None and self.range_max < self.range_min + self.num_negatives:
            raise ValueError(
                f"from range_min={self.range_min} to range_max={self.range_max} there is no room for "
                f"num_negatives={self.num_negatives}: raise range_max to {self.range_min + self.num_negatives} or more"
            )
        return self


class LLMConfig(BaseModel):
    """What decides an LLM teacher's queries and scores; the endpoint's address and pace do not (`settings.llm`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field("", description="the model's name; taken from the endpoint when the run starts")
    context_tokens: int | None = Field(
        None, description="the model's context; taken from the endpoint, as the model is"
    )
    temperature: float = Field(0.7, ge=0, le=2, description="of generation; scoring draws nothing")
    top_p: float = Field(0.95, gt=0, le=1, description="of generation")
    max_completion_tokens: int = Field(160, ge=8, description="the most that one task-query pair may take")
    max_attempts: int = Field(3, ge=1, le=10, description="completions asked for before a passage ends as malformed")
    task_sampling: Literal["free", "uniform"] = Field(
        "free",
        description="free: the LLM writes the task description; uniform: one of the prompt's, its kind drawn uniformly",
    )
    relevance: Literal["graded", "binary"] = Field("graded", description="the label set of relevance classification")
    graded_score: Literal["expected", "peak"] = Field(
        "expected", description="expected: the mean grade; peak: the log-probability of the highest grade"
    )
    num_examples: int | None = Field(None, ge=0, description="few-shot examples in each prompt; all by default")
    prompts_sha256: dict[str, str] = Field({}, description="hashes of the prompts; filled in when the run starts")


class RunConfig(BaseModel):
    """Everything that decides a run's records; frozen into the run and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, description="seeds every choice that the run makes")
    teacher: Literal["offline", "llm"] = Field(
        "offline",
        description="who writes and judges queries: llm (where FRETWORK_LLM__BASE_URL or FRETWORK_LLM__MODEL is set, "
        "the default), or offline, a set of statistical methods and no LLM",
    )
    llm: LLMConfig = Field(LLMConfig(), description="llm.temperature and so on: settings of the teacher `llm`")
    embedder: str = Field("all-MiniLM-L6-v2", description="SentenceTransformer folder, hub name or all-MiniLM-L6-v2")
    num_seed_passages: int | None = Field(None, ge=1, description="generate from a sample of this size; all by default")
    queries_per_passage: int = Field(
        default_factory=lambda before: 1 if before.get("teacher") == "llm" else 3,
        ge=1,
        le=20,
        description="task–query pairs written for each seed passage: by default 1 by an LLM, and 3 by the offline "
        "teacher, whose queries cost nothing",
    )
    query_kinds: dict[QueryKind, float] = Field(
        {"sentence": 1, "title": 1, "keywords": 1},
        validate_default=True,
        description="the kinds of the offline teacher's queries, each with its share: the most informative sentences, "
        "the title, and the most informative words; what a query copies of its passage is taken out where that is "
        'trained on. query_kinds.title=2 changes one share, query_kinds={"sentence":1} has sentences alone',
    )
    num_candidates: int = Field(20, ge=2, le=100, description="the paper's N")
    candidates: Literal["hybrid", "dense"] = Field(
        "hybrid",
        description="hybrid: passages near to the query by the embedder's vectors and by BM25, in turn, so that some "
        "are there that the embedder does not find by itself; dense: by the vectors alone, as in the paper",
    )
    near_duplicate_cosine: float = Field(0.98, gt=0, le=1, description="queries this close count as one")
    shard_size: int = Field(32, ge=1, le=1024, description="items per shard")
    follows: UUID | None = Field(
        None,
        description="an earlier run's id: its vectors, and its LLM's queries and judgements, are taken over where they "
        "would come out the same; `--follow` sets it",
    )
    labels: LabelPolicy = Field(
        LabelPolicy(),
        validate_default=True,
        description="labels.positive and so on: how the judged candidates become a positive and negatives",
    )

    @field_validator("query_kinds")
    @classmethod
    def _are_the_offline_teachers(
        cls, query_kinds: dict[QueryKind, float], info: ValidationInfo
    ) -> dict[QueryKind, float]:
        if info.data.get("teacher") == "llm" and query_kinds != cls.model_fields["query_kinds"].default:
            raise ValueError("the teacher llm writes its own queries: leave this out, or set teacher=offline")
        if not query_kinds or not all(0 < share < math.inf for share in query_kinds.values()):
            raise ValueError(
                "name at least one kind of query, each with a share above 0; leave a kind out to have none of it, as "
                'in query_kinds={"sentence":1}'
            )
        # in one order, for the draw goes by it and PostgreSQL keeps another
        return {kind: float(query_kinds[kind]) for kind in get_args(QueryKind) if kind in query_kinds}

    @field_validator("labels")
    @classmethod
    def _fit_the_run(cls, labels: LabelPolicy, info: ValidationInfo) -> LabelPolicy:
        others = info.data.get("num_candidates", 100) - 1  # absent where it is refused itself
        if labels.range_min + labels.num_negatives > others:
            raise ValueError(
                f"num_candidates={others + 1} leaves {others} beside the positive, too few for "
                f"range_min={labels.range_min} and num_negatives={labels.num_negatives}"
            )
        if labels.positive is None:
            labels = labels.model_copy(update={"positive": "p_1" if info.data.get("teacher") == "llm" else "seed"})
            labels.model_fields_set.discard("positive")  # nobody chose it: made anew, another teacher has its own
        return labels

    def policy(self, labels: LabelPolicy) -> LabelPolicy:
        """Another policy for this run's scores, with what it leaves open filled in as it would be at the start.

        Raises pydantic's ValidationError for one that this run's candidates cannot fill.
        """
        return RunConfig(**{**self.model_dump(), "labels": labels}).labels

    def sha256(self) -> str:
        """The hash of what decides the records: the shard size and what is taken over do not, so they are left out.

        A setting that came later stands in it only where it is not what runs had before: earlier hashes, and with them
        the ids of queries, stay what they were.
        """
        content = self.model_dump(mode="json", exclude={"shard_size", "follows"})
        if self.labels.fusion == "rrf":
            del content["labels"]["fusion"]
        for name in ("round_trip", "round_trip_judge", "min_token_log_prob"):
            if content["labels"][name] is None:
                del content["labels"][name]
        if self.query_kinds == {"sentence": 1} or self.teacher == "llm":
            del content["query_kinds"]
        if self.candidates == "dense":
            del content["candidates"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
