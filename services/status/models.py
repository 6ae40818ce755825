"""What the status API takes and answers, typed. The figures come from shared/progress.py, fleet.py and reading.py."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from shared.budget import MOST_HOURS, MOST_TOKENS
from shared.fleet import LLMLoad, Queue, Worker
from shared.progress import StageProgress, TokenUsage
from shared.reading import DeadShard, SampleRecord
from shared.records import LabelPolicy, RunConfig
from shared.stages import Stage

RunState = Literal["running", "paused", "cancelled", "done"]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str


class Dependency(BaseModel):
    name: str = Field(description="database, broker, qdrant, llm, or llm 1, llm 2 … where there are several")
    ok: bool
    reason: str | None = Field(None, description="why it is not ok")
    seconds: float | None = Field(None, description="how long its answer took")


class Readiness(BaseModel):
    ready: bool = Field(description="whether database and broker answer")
    dependencies: list[Dependency]


class RunSummary(BaseModel):
    run_id: UUID
    name: str
    state: RunState
    created_at: datetime
    finished_at: datetime | None
    sampled_count: int = Field(description="seed passages that queries are generated from")
    records: int = Field(description="FRet records so far, of label version 1")


class RunPage(BaseModel):
    runs: list[RunSummary] = Field(description="newest first")
    next: str | None = Field(description="`after` of the next page; null on the last")


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
    error_type: str | None
    error_message: str | None


class GivenBack(BaseModel):
    """Shards of one stage that failed in the same way and wait to be tried again."""

    stage: Stage
    shards: int = Field(description="of the hundred that were given back last")
    error_type: str
    error_message: str


class LabelVersion(BaseModel):
    """One labelling of the run's stored scores; `fretwork run refuse` makes another."""

    label_version: int
    created_at: datetime
    policy: LabelPolicy
    records: int
    moved: int = Field(description="records whose positive is another passage than the seed")
    dropped: dict[str, int] = Field(description="queries by the reason that this labelling has no record of them")
    queries_open: int = Field(description="not labelled yet, or in a shard that is dead")
    holds: bool = Field(description="whether the queries add up; false is a fault of Fretwork")
    reviewed: dict[str, int] = Field(
        description="records by what a person decided: accepted, swapped, dropped; dropped ones are among `records`"
    )


class RunStatus(BaseModel):
    """The object that `fretwork run status --json` prints."""

    run_id: UUID
    run: str = Field(description="the run's name")
    corpus: str
    state: RunState
    created_at: datetime
    finished_at: datetime | None
    paused_reason: str | None = Field(description="while paused: why, and the command that resumes the run")
    max_tokens: int | None = Field(description="tokens after which the run is paused; null: no limit")
    used_tokens: int = Field(description="prompt and completion tokens of all calls so far")
    deadline_at: datetime | None = Field(description="when the run is paused if it is not done; null: no limit")
    config: RunConfig
    records: int = Field(description="FRet records so far, of label version 1")
    moved: int = Field(description="records whose positive is another passage than the seed, of label version 1")
    judged: int = Field(description="candidates that the teacher judged for this run")
    judgements_taken_over: int = Field(description="those that an earlier run had judged, which this one follows")
    queries_taken_over: int = Field(description="queries that the earlier run had written")
    queries_by_kind: dict[str, int] = Field(description="queries by what they are: sentence, title, keywords, …")
    stages: list[StageProgress] = Field(description="in order; items, items/s, seconds to go")
    llm: LLMLoad | None = Field(description="calls in flight at the LLM servers; null: the teacher is offline")
    usage: list[TokenUsage] = Field(description="what the calls of each stage to each model cost so far")
    conservation: ConservationFigures
    dead: list[DeadShards]
    given_back: GivenBack | None = Field(
        description="the commonest error of the shards that went back to their queue last; null: none waits there"
    )
    label_versions: list[LabelVersion] = Field(description="in order; the first is the run's own")


class RecordPage(BaseModel):
    records: list[SampleRecord]
    next: UUID | None = Field(description="`after` of the next page; null on the last")


class DeadPage(BaseModel):
    dead: list[DeadShard]
    next: UUID | None = Field(description="`after` of the next page; null on the last")


class Queues(BaseModel):
    queues: list[Queue]


class Workers(BaseModel):
    workers: list[Worker]


class TrainingProgress(BaseModel):
    """Empty at first; while a mixture is read its source and rows, then the texts encoded, and then the last step."""

    source: str | None = Field(None, description="of the mixture, which is being read")
    rows: int | None = Field(None, description="of it, read so far")
    done: int | None = Field(None, description="texts that were encoded for the projection so far")
    total: int | None = Field(None, description="of so many")
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = Field(None, description="of the batch of that step")
    examples_per_s: float | None = None
    eta_s: float | None = None


class Measured(BaseModel):
    """An evaluation of the model, as `fretwork evaluate --json` prints it: `dims`, and with a baseline `delta`."""

    model_config = ConfigDict(from_attributes=True)

    data: dict[str, Any] = Field(
        description="what it was measured on: `kind`, `path` …, as the evaluation was asked for"
    )
    result: dict[str, Any] = Field(description="`main_metric` names the figure to look at first")


class TrainingStatus(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    training_run_id: UUID
    run: str = Field(description="the run whose records it trains on")
    label_version: int
    state: Literal["waiting", "ready", "claimed", "done", "dead"] = Field(description="claimed: it is being worked on")
    created_at: datetime
    output_dir: str = Field(description="where the model folder goes")
    config: dict[str, Any] = Field(description="the trainer's configuration")
    progress: TrainingProgress
    curve: list[tuple[int, float]] = Field(description="step and loss, at most 500 points")
    result: dict[str, Any] | None = Field(description="the trainer's facts about the finished model")
    evaluations: list[Measured]
    error: str | None


class Trainings(BaseModel):
    training_runs: list[TrainingStatus] = Field(description="newest first")


MaxTokens = Annotated[
    int, Field(ge=1, le=MOST_TOKENS, description="pause the run once its LLM calls have used so many")
]
MaxHours = Annotated[float, Field(gt=0, le=MOST_HOURS, description="pause the run after this time from now")]


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"max_tokens": 5_000_000}]})

    max_tokens: MaxTokens | None = None
    max_hours: MaxHours | None = None


class StartRun(BaseModel):
    model_config = ConfigDict(extra="forbid")
    EXAMPLES: ClassVar[dict[str, Any]] = {
        "offline": {"value": {"corpus": "scifact", "config": {"teacher": "offline", "num_seed_passages": 1000}}},
        "like an earlier run": {"value": {"corpus": "scifact", "like": "scifact-1", "max_hours": 8}},
    }

    corpus: str = Field(max_length=300, pattern=r"^[^\x00]+$", description="the name of a corpus")
    like: str | None = Field(
        None, max_length=300, pattern=r"^[^\x00]+$", description="an earlier run whose settings are taken over"
    )
    config: dict[str, Any] = Field({}, description="settings of the run, over the defaults or those of `like`")
    max_tokens: MaxTokens | None = None
    max_hours: MaxHours | None = None


class Retry(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"shard_id": None}]})

    shard_id: UUID | None = Field(None, description="one dead shard; null: all of the run's")


class RetriedShards(BaseModel):
    shards: int = Field(description="how many were put back")


class Problem(BaseModel):
    """An error as application/problem+json (RFC 9457); `detail` says what to do."""

    type: Literal["about:blank"] = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no run 'scifact-9': GET /runs lists the runs"])
