"""The frozen values that cross a stage, and the frozen configuration of a run.

Ids are deterministic: a passage's comes from its content, a query's from its run's fingerprint, its seed passage and
its ordinal. So doing a shard twice writes the same rows, and the same corpus, configuration and seed give the same
records on any machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field

from shared.masking import Span

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
    positive_span: Span | None = None
    negative_spans: tuple[Span | None, ...] = ()


class LabelPolicy(BaseModel):
    """How stored scores become a positive and negatives; changing it needs no teacher (a new label version)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Literal["p_1", "seed"] = Field(
        "seed",
        description="seed: the passage the query was made from, the better of the two for the offline teacher "
        "(docs/decisions.md); p_1: the best by fused rank, as in the paper, for a judge that can be trusted",
    )
    negative: Literal["lowest"] = Field("lowest", description="lowest: the last by fused rank, the paper's p_20")


class RunConfig(BaseModel):
    """Everything that decides a run's records; frozen into the run and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, description="seeds every choice that the run makes")
    teacher: Literal["offline"] = Field(
        "offline", description="who writes and judges queries; offline is a set of statistical methods and no LLM"
    )
    embedder: str = Field("all-MiniLM-L6-v2", description="SentenceTransformer folder, hub name or all-MiniLM-L6-v2")
    num_seed_passages: int | None = Field(None, ge=1, description="generate from a sample of this size; all by default")
    queries_per_passage: int = Field(1, ge=1, le=20, description="task–query pairs written for each seed passage")
    num_candidates: int = Field(20, ge=2, le=100, description="the paper's N")
    near_duplicate_cosine: float = Field(0.98, gt=0, le=1, description="queries this close count as one")
    shard_size: int = Field(32, ge=1, le=1024, description="items per shard")
    labels: LabelPolicy = Field(
        LabelPolicy(), description="labels.positive: seed, or p_1, the judge's favourite; labels.negative: lowest"
    )

    def sha256(self) -> str:
        """The hash of what decides the records: the shard size does not, so it is left out."""
        content = self.model_dump(mode="json", exclude={"shard_size"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
