"""The trainer's door: a training run or an evaluation in, a model folder or its figures out. No torch here.

A training writes under `training/<id>/<claim_seq>/` and resumes from the newest complete checkpoint of any earlier
claim. The model moves to its place inside the finishing transaction, behind the fence: a worker that lost its lease
moves nothing, and one that dies in between moves the same model again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Table, exists, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import InterfaceError, OperationalError

from services.trainer.child_process import run_child
from shared.celery_app import app
from shared.database import engine
from shared.durably import replace_durably
from shared.errors import InvalidInputError, LeaseLostError
from shared.labels import find_policy
from shared.ledger import Claim, forget_losses
from shared.reviews import count_reviews
from shared.runs import find_run
from shared.schema import evaluations, shards, training_curve, training_runs
from shared.settings import settings
from shared.stages import Stage, task_name
from shared.worker import Output, perform

log = structlog.get_logger()


@app.task(name=task_name(Stage.TRAIN))  # type: ignore[untyped-decorator]
def train(shard_id: str) -> None:
    perform(Stage.TRAIN, shard_id, _train)
    _tidy(shard_id)


@app.task(name=task_name(Stage.EVALUATE))  # type: ignore[untyped-decorator]
def evaluate(shard_id: str) -> None:
    perform(Stage.EVALUATE, shard_id, _evaluate)


def _tidy(shard_id: str) -> None:
    """Removes what a training needed, checkpoints and all, once its model stands in its place."""
    with engine().connect() as connection:
        done = select(shards.c.item_ids).where(shards.c.shard_id == shard_id, shards.c.state == "done")
        for training_run_id in connection.execute(done).scalar_one_or_none() or ():
            shutil.rmtree(_folder(training_run_id), ignore_errors=True)


def _folder(training_run_id: UUID) -> Path:
    return settings().home.absolute() / "training" / str(training_run_id)


def _train(claim: Claim) -> Output:
    (training_run_id,) = claim.item_ids
    row = _load(training_runs, claim)
    with engine().connect() as connection:
        run = find_run(connection, row["run_id"])
        policy = find_policy(connection, run, row["label_version"])
        reviewed = count_reviews(connection, run.run_id, row["label_version"], row["reviews_until"])
    folder = _folder(training_run_id)
    earlier = [folder / str(seq) for seq in range(claim.claim_seq - 1, 0, -1)]
    specification = {
        "database_url": settings().require_database_url(),
        "run_id": str(row["run_id"]),
        "label_version": row["label_version"],
        "reviews_until": row["reviews_until"],
        "config": row["config"],
        "work_dir": str(folder / str(claim.claim_seq)),
        "resume_from": [str(path) for path in earlier if path.is_dir()],
        "about": {
            "run": run.name,
            "corpus_hash": run.corpus_hash,
            "teacher": run.config.teacher,
            "positive": policy.positive,
            "negative": policy.negative,
            **{f"{decision}_in_review": number for decision, number in reviewed.items()},
        },
    }
    result = run_child("train", specification, _progress_into(training_runs, claim))

    def save(connection: Connection) -> None:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # copying may take its time
        _move_into_place(Path(result["model_dir"]), Path(row["output_dir"]), str(training_run_id))
        _save_result(connection, training_runs, claim, result)

    return Output(save)


def _evaluate(claim: Claim) -> Output:
    row = _load(evaluations, claim)
    result = run_child("evaluate", {"config": row["config"]}, _progress_into(evaluations, claim))
    return Output(lambda connection: _save_result(connection, evaluations, claim, result))


def _load(table: Table, claim: Claim) -> dict[str, Any]:
    with engine().connect() as connection:
        return dict(connection.execute(select(table).where(_key(table) == claim.item_ids[0])).mappings().one())


def _key(table: Table) -> Any:
    (column,) = table.primary_key.columns
    return column


def _progress_into(table: Table, claim: Claim) -> Callable[[dict[str, Any]], None]:
    """Notes how far the work is. Raises LeaseLostError, which ends the child, where it was cancelled or taken over."""
    held = exists().where(
        shards.c.shard_id == claim.shard_id, shards.c.claim_seq == claim.claim_seq, shards.c.state == "claimed"
    )

    def save(progress: dict[str, Any]) -> None:
        try:
            with engine().begin() as connection:
                saved = connection.execute(
                    update(table).where(_key(table) == claim.item_ids[0], held).values(progress=progress)
                )
                if not saved.rowcount:
                    raise LeaseLostError(f"the {claim.stage} was cancelled, or another worker has it: ended here")
                if "loss" in progress:
                    _draw_on(connection, claim, progress)
        except (OperationalError, InterfaceError) as error:
            log.warning("progress not saved; the work goes on", error=str(error))

    return save


def _draw_on(connection: Connection, claim: Claim, progress: dict[str, Any]) -> None:
    """Adds a step to the curve. One that no attempt had come to shows that the training kills no worker: what it lost
    so far counts no longer, or a week's training would end with its third restart.
    """
    (training_run_id,) = claim.item_ids
    reached = exists().where(
        training_curve.c.training_run_id == training_run_id, training_curve.c.step >= progress["step"]
    )
    if not connection.execute(select(reached)).scalar_one():
        forget_losses(connection, claim)
    point = {"loss": progress["loss"]}
    key = {"training_run_id": training_run_id, "step": progress["step"]}
    connection.execute(
        insert(training_curve).values(key | point).on_conflict_do_update(index_elements=list(key), set_=point)
    )


def _save_result(connection: Connection, table: Table, claim: Claim, result: dict[str, Any]) -> None:
    connection.execute(update(table).where(_key(table) == claim.item_ids[0]).values(result=result))


def _move_into_place(model_dir: Path, output_dir: Path, training_run_id: str) -> None:
    """Puts the finished model where it was asked for; a reader sees the whole folder or none.

    Raises InvalidInputError where another thing stands there; what an earlier claim of this same training run put
    there is replaced.
    """
    marker = "fretwork_training.json"
    mark = json.dumps({"training_run_id": training_run_id})
    if output_dir.exists():
        standing = output_dir / marker
        if not standing.is_file() or standing.read_text() != mark:
            raise InvalidInputError(output_dir, None, "the output directory exists already; name another")
    partial = output_dir.with_name(f".{output_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model_dir, partial)
    (partial / marker).write_text(mark)
    replace_durably(partial, output_dir)
