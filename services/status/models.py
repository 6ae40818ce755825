"""What the status API answers, typed. The figures themselves come from shared/progress.py."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.progress import StageProgress, TokenUsage
from shared.records import RunConfig
from shared.stages import Stage


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = Field(examples=["0.1.0"])


class RunSummary(BaseModel):
    run_id: UUID
    name: str = Field(examples=["scifact-1"])
    state: Literal["running", "paused", "done"]
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
                    "state": "paused",
                    "paused_reason": "used 3,200,123 of 3,200,000 tokens: `fretwork run resume scifact-1 "
                    "--max-tokens N` goes on",
                    "max_tokens": 3_200_000,
                    "deadline_at": "2026-03-01T18:00:00Z",
                    "config": RunConfig().model_dump(mode="json"),
                    "stages": [
                        {
                            "stage": "generate",
                            "total": 5183,
                            "done": 4192,
                            "claimed": 128,
                            "dead": 32,
                            "rate": 68.5,
                            "eta_s": 14.0,
                            "reasons": {"no_sentence": 11},
                        }
                    ],
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
    state: Literal["running", "paused", "done"]
    paused_reason: str | None = Field(description="while paused: why, and the command that resumes the run")
    max_tokens: int | None = Field(description="tokens after which the run is paused; null: no limit")
    deadline_at: datetime | None = Field(description="when the run is paused if it is not done; null: no limit")
    config: RunConfig
    stages: list[StageProgress] = Field(description="in order; items, items/s of the last minute, seconds to go")
    usage: list[TokenUsage] = Field(description="what the calls of each stage to each model cost so far")
    conservation: ConservationFigures
    dead: list[DeadShards]


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457); `detail` says what to do."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no run 'scifact-9': GET /runs lists the runs"])
