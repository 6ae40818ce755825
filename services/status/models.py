"""What the status API answers, typed. The figures themselves come from shared/progress.py."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.fleet import LLMLoad
from shared.progress import StageProgress, TokenUsage
from shared.records import RunConfig
from shared.stages import Stage

RunState = Literal["running", "paused", "cancelled", "done"]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = Field(examples=["0.1.0"])


class RunSummary(BaseModel):
    run_id: UUID
    name: str = Field(examples=["scifact-1"])
    state: RunState
    created_at: datetime
    finished_at: datetime | None
    sampled_count: int = Field(description="seed passages that queries are generated from", examples=[5183])
    records: int = Field(description="FRet records so far", examples=[4790])


class RunPage(BaseModel):
    runs: list[RunSummary] = Field(description="newest first")
    next: str | None = Field(description="`after` of the next page; null on the last", examples=["scifact-1"])


class ConservationFigures(BaseModel):
    """Passages sampled = seeds + dropped + open; queries = records + dropped + open. Label version 1."""

    sampled: int
    seeds_with_queries: int
    passages_dropped: int
    passages_open: int
    queries: int
    records: int
    queries_dropped: int
    queries_open: int
    holds: bool = Field(description="whether both sums add up; false is a fault of Fretwork")


class DeadShards(BaseModel):
    """Shards of one stage that ended with the same error; `retry` puts them back."""

    stage: Stage
    shards: int
    error_type: str
    error_message: str


class RunStatus(BaseModel):
    """The object that `fretwork run status --json` prints."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run_id": "0f8d1c9e-6a53-5d0e-8c11-2b1f6b7f4a10",
                    "run": "scifact-1",
                    "corpus": "scifact",
                    "state": "paused",
                    "created_at": "2026-03-01T09:00:00Z",
                    "finished_at": None,
                    "paused_reason": "used 3,200,123 of 3,200,000 tokens: `fretwork run resume scifact-1 "
                    "--max-tokens N` goes on",
                    "max_tokens": 3_200_000,
                    "used_tokens": 3_200_123,
                    "deadline_at": "2026-03-01T18:00:00Z",
                    "config": RunConfig().model_dump(mode="json"),
                    "records": 0,
                    "moved": 0,
                    "stages": [
                        {
                            "stage": "generate",
                            "total": 5183,
                            "done": 4192,
                            "claimed": 128,
                            "dead": 32,
                            "rate_1m": 68.5,
                            "rate_10m": 61.2,
                            "eta_s": 14.0,
                            "started_at": "2026-03-01T09:00:20Z",
                            "reasons": {"no_sentence": 11},
                        }
                    ],
                    "llm": {
                        "in_flight": 96,
                        "limit": 128,
                        "waiting": 0.0,
                        "endpoints": [
                            {
                                "endpoint": "http://vllm:8000/v1",
                                "in_flight": 96,
                                "limit": 128,
                                "waiting": 0.0,
                                "is_open": False,
                                "error": None,
                            }
                        ],
                    },
                    "usage": [
                        {
                            "stage": "generate",
                            "model": "Qwen/Qwen3-8B",
                            "requests": 4210,
                            "prompt_tokens": 2947523,
                            "completion_tokens": 252600,
                        }
                    ],
                    "conservation": {
                        "sampled": 5183,
                        "seeds_with_queries": 4181,
                        "passages_dropped": 11,
                        "passages_open": 991,
                        "queries": 4181,
                        "records": 0,
                        "queries_dropped": 0,
                        "queries_open": 4181,
                        "holds": True,
                    },
                    "dead": [
                        {"stage": "generate", "shards": 1, "error_type": "KeyError", "error_message": "UUID('6f…')"}
                    ],
                }
            ]
        }
    )

    run_id: UUID
    run: str = Field(description="the run's name")
    corpus: str
    state: RunState
    created_at: datetime
    finished_at: datetime | None = None
    paused_reason: str | None = Field(description="while paused: why, and the command that resumes the run")
    max_tokens: int | None = Field(description="tokens after which the run is paused; null: no limit")
    used_tokens: int = Field(description="prompt and completion tokens of all calls so far")
    deadline_at: datetime | None = Field(description="when the run is paused if it is not done; null: no limit")
    config: RunConfig
    records: int = Field(description="FRet records so far, of label version 1")
    moved: int = Field(description="records whose positive is another passage than the seed, of label version 1")
    stages: list[StageProgress] = Field(description="in order; items, items/s, seconds to go")
    llm: LLMLoad | None = Field(description="calls in flight at the LLM servers; null: the teacher is offline")
    usage: list[TokenUsage] = Field(description="what the calls of each stage to each model cost so far")
    conservation: ConservationFigures
    dead: list[DeadShards]


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457); `detail` says what to do."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no run 'scifact-9': GET /runs lists the runs"])
