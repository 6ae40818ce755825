"""A training or an evaluation through the trainer's queue: put into it, and shown until it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine

from cli.watch import watch_shard
from services.trainer.config import EvaluationConfig, TrainingConfig
from shared.errors import InvalidInputError
from shared.runs import Run
from shared.trainings import find_training, start_evaluation, start_training


def train_and_watch(
    engine: Engine, run: Run, label_version: int, config: TrainingConfig, output_dir: Path, what: str
) -> UUID:
    """The training run's id; one of the same arguments is gone on with.

    Raises InvalidInputError where another's model stands at `output_dir`, FretworkError where the training fails.
    """
    with engine.begin() as connection:
        training_run_id = find_or_start(connection, run, label_version, config, output_dir)
    watch_shard(engine, "training_runs", training_run_id, what)
    return training_run_id


def find_or_start(
    connection: Connection,
    run: Run,
    label_version: int,
    config: TrainingConfig,
    output_dir: Path,
    *,
    reviewed: bool = True,
) -> UUID:
    """The training run of these arguments: one under way, or done with its model in its place; else a new one.

    Raises InvalidInputError where something else stands at `output_dir`.
    """
    asked = (connection, run, label_version, config.model_dump(mode="json"), str(output_dir))
    there = output_dir.exists()
    found = find_training(*asked, reviewed=reviewed, done=there)
    if found is None and there:
        raise InvalidInputError(
            output_dir, None, "it exists already, from another training: move it away, or name another by --output"
        )
    return found or start_training(*asked, reviewed=reviewed)


def evaluate_and_watch(engine: Engine, config: EvaluationConfig, what: str) -> dict[str, Any]:
    """What `services.trainer.evaluate.evaluate` returns. Raises FretworkError where it fails."""
    with engine.begin() as connection:
        evaluation_id = start_evaluation(connection, config.model_dump(mode="json"))
    return watch_shard(engine, "evaluations", evaluation_id, what)
