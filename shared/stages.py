"""The only routing table: each stage's queue, Celery task, time limit, what it waits for and what follows it.

A new stage is a line here, a task in its service's tasks.py, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    INDEX = "index"
    GENERATE = "generate"
    RETRIEVE = "retrieve"
    DEDUP = "dedup"
    RELABEL = "relabel"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True)
class Route:
    """Where a stage's shards go.

    `after` names the stages of the same run that must have no open shard before this one's shards may start: a
    barrier, opened by the dispatcher alone. `then` is the stage that a shard's surviving items go on to.
    """

    queue: str
    max_shard_s: float
    items: str
    after: frozenset[Stage] = frozenset()
    then: Stage | None = None

    @property
    def max_calls_s(self) -> float:
        """What a shard's calls to an LLM may take together; the rest is for finding the LLM, and for the ledger."""
        return self.max_shard_s - 180


ROUTES: dict[Stage, Route] = {
    Stage.INDEX: Route("retriever", 600, "passages"),
    Stage.GENERATE: Route("generator", 900, "passages", then=Stage.RETRIEVE),
    Stage.RETRIEVE: Route("retriever", 600, "queries", after=frozenset({Stage.INDEX}), then=Stage.DEDUP),
    Stage.DEDUP: Route(
        "retriever",
        600,
        "queries",
        after=frozenset({Stage.INDEX, Stage.GENERATE, Stage.RETRIEVE}),
        then=Stage.RELABEL,
    ),
    Stage.RELABEL: Route("relabeler", 900, "queries"),
    Stage.TRAIN: Route("trainer", 7 * 24 * 3600, "training runs"),
    Stage.EVALUATE: Route("trainer", 24 * 3600, "evaluations"),
}

# What a run consists of; training and evaluation start by their own commands, once it is done.
RUN_STAGES = (Stage.INDEX, Stage.GENERATE, Stage.RETRIEVE, Stage.DEDUP, Stage.RELABEL)
QUEUES = tuple(dict.fromkeys(route.queue for route in ROUTES.values()))


def task_name(stage: Stage) -> str:
    """The Celery task that works on a stage's shards, e.g. `relabeler.relabel`."""
    return f"{ROUTES[stage].queue}.{stage}"
