"""Starts trainings and evaluations, which go through the trainer's queue; finds trainings again."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, cast, func, insert, select
from sqlalchemy.dialects.postgresql import JSONB, array

from shared import ledger
from shared.runs import Run
from shared.schema import evaluations, reviews, shards, training_runs
from shared.stages import Stage

_NEWEST = func.coalesce(func.max(reviews.c.review_id), 0)


def start_training(
    connection: Connection,
    run: Run,
    label_version: int,
    config: dict[str, Any],
    output_dir: str,
    *,
    reviewed: bool = True,
) -> UUID:
    """A training run over one label version of a run's records, and its shard in the trainer's queue.

    `reviewed`: whether it reads the records as people's reviews have left them by now, or as they were labelled.
    """
    training_run_id = uuid4()
    connection.execute(
        insert(training_runs).values(
            training_run_id=training_run_id,
            run_id=run.run_id,
            label_version=label_version,
            reviews_until=select(_NEWEST).scalar_subquery() if reviewed else 0,
            config=config,
            output_dir=output_dir,
        )
    )
    ledger.add_shards(connection, run.run_id, Stage.TRAIN, [[training_run_id]], parent=training_run_id)
    return training_run_id


def find_training(
    connection: Connection,
    run: Run,
    label_version: int,
    config: dict[str, Any],
    output_dir: str,
    *,
    reviewed: bool = True,
    done: bool = False,
) -> UUID | None:
    """The newest training that `start_training` would start the like of, and that waits or is at work.

    `done`: or that is done.
    """
    states = ["ready", "claimed", *(["done"] if done else [])]
    unreviewed = training_runs.c.reviews_until == 0
    return connection.execute(
        select(training_runs.c.training_run_id)
        .join(
            shards,
            (shards.c.run_id == training_runs.c.run_id)
            & (shards.c.stage == Stage.TRAIN)
            & (shards.c.item_ids == array([training_runs.c.training_run_id])),
        )
        .where(
            training_runs.c.run_id == run.run_id,
            training_runs.c.label_version == label_version,
            training_runs.c.reviews_until >= _newest_review(run, label_version) if reviewed else unreviewed,
            training_runs.c.config == cast(config, JSONB),
            training_runs.c.output_dir == output_dir,
            shards.c.state.in_(states),
        )
        .order_by(training_runs.c.created_at.desc())
        .limit(1)
    ).scalar_one_or_none()


def start_evaluation(connection: Connection, config: dict[str, Any]) -> UUID:
    """An evaluation of a model, and its shard in the trainer's queue."""
    evaluation_id = uuid4()
    connection.execute(insert(evaluations).values(evaluation_id=evaluation_id, config=config))
    ledger.add_shards(connection, None, Stage.EVALUATE, [[evaluation_id]], parent=evaluation_id)
    return evaluation_id


def _newest_review(run: Run, label_version: int) -> Any:
    """The newest of this labelling: a training that has it reads the same as one that starts now."""
    of_this = (reviews.c.run_id == run.run_id) & (reviews.c.label_version == label_version)
    return select(_NEWEST).where(of_this).scalar_subquery()
