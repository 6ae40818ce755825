"""The paper's bootstrap (arXiv 2403.20327, section 3.2): an embedder of the run's own for its next round.

What retrieves the candidates of a first round is somebody's embedder. Trained on that round's queries and their seed
passages, with in-batch negatives alone, it retrieves those of the next. The queries stay, and so does what an LLM said
of a candidate: only candidates that are new are judged.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from cli.context import say
from cli.models.queued import train_and_watch
from cli.watch import watch_run
from services.trainer.config import TrainingConfig
from shared.labels import add_label_version
from shared.records import LabelPolicy
from shared.runs import Run, find_unfinished, resume_run, start_run


def next_round(engine: Engine, corpus: str, run: Run, folder: Path) -> Run:
    """Trains `folder`/`run.name` on a finished run and starts the run that retrieves with it.

    What an earlier call has of both is gone on with. Raises FretworkError where the training fails.
    """
    output = folder.absolute() / run.name
    was_there = output.exists()
    with engine.begin() as connection:
        version = add_label_version(connection, run, LabelPolicy(positive="seed"))
    watch_run(engine, run.run_id, run.name)
    training = TrainingConfig(
        model_name_or_path=run.config.embedder, hard_negatives=False, loss="contrastive", seed=run.config.seed
    )
    train_and_watch(engine, run, version, training, output, "training the next round's embedder")
    say(f"the next round retrieves with {output}")
    config = run.config.model_copy(update={"embedder": str(output), "follows": run.run_id})
    with engine.begin() as connection:
        found = find_unfinished(connection, corpus, config, or_done=was_there)
        if found is not None and found.state == "paused":
            resume_run(connection, found)
        return found or start_run(connection, corpus, config)
