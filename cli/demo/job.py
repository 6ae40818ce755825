"""The demo's steps in order, through the same functions, queues and workers as a user's own corpus. Prints nothing.

It writes to `folder`: `heldout/` (a BEIR folder) and `<run>/model/`, the trained model. What is trained is what `run
start` and `train` do without options.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from cli.context import Context, say
from cli.corpus.store import import_corpus
from cli.demo.corpus import DemoCorpus, build
from cli.demo.figures import Figures, read_figures
from cli.demo.settings import run_config, training_config
from cli.models.queued import evaluate_and_watch, train_and_watch
from cli.watch import watch_run
from services.trainer.config import BeirFolder, EvaluationConfig
from services.trainer.model_card import write_model_card
from shared.errors import FretworkError
from shared.labels import add_label_version
from shared.progress import Conservation, StageProgress, conservation, stage_progress
from shared.reading import SampleRecord, list_records
from shared.records import LabelPolicy
from shared.runs import Run, start_run


@dataclass
class Outcome:
    """What the demo found; `evaluation` is of the held-out test queries."""

    corpus: DemoCorpus
    run: Run
    base: str
    seconds: dict[str, float] = field(default_factory=dict)
    stages: list[StageProgress] = field(default_factory=list)
    sums: Conservation | None = None
    positive_changed: float = 0.0
    model_dir: Path = Path()
    evaluation: dict[str, Any] = field(default_factory=dict)
    samples: list[SampleRecord] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 1)


def run_demo(settings: Context, folder: Path, passages: int, seed: int, base: str) -> Outcome:
    """The whole job. Raises FretworkError where a part of it died."""
    say("reading the documentation of the installed libraries")
    started = time.monotonic()
    heldout = folder / "heldout"
    corpus = build(heldout, passages, seed)
    harvested_s = round(time.monotonic() - started, 1)
    say(
        f"{corpus.passages:,} passages of {len(corpus.by_library)} libraries; held out: {corpus.test_queries} test and "
        f"{corpus.dev_queries} development queries"
    )
    with settings.database(workers=True) as engine:
        name = f"demo-{corpus.sha256[:8]}"
        imported_at = time.monotonic()
        import_corpus(engine, name, heldout)
        imported_s = round(time.monotonic() - imported_at, 1)
        with engine.begin() as connection:
            run = start_run(connection, name, run_config(seed, base))
        outcome = Outcome(corpus, run, base, {"harvest": harvested_s, "import": imported_s})
        with outcome.timed("run"):
            _watch(engine, run)
        _count(engine, outcome)
        with outcome.timed("relabel_as_p_1"):  # nothing is trained on these: they show what the judge would have chosen
            with engine.begin() as connection:
                favourites = add_label_version(connection, run, LabelPolicy(positive="p_1"))
            _watch(engine, run)
        outcome.positive_changed = _changed(engine, run, favourites)
        outcome.model_dir = folder / run.name / "model"
        with outcome.timed("train"):
            training = train_and_watch(engine, run, 1, training_config(seed, base), outcome.model_dir, "training")
        with outcome.timed("evaluate"):
            outcome.evaluation = _evaluate(engine, heldout, outcome.model_dir, base)
        write_model_card(outcome.model_dir, outcome.evaluation)
        with engine.connect() as connection:
            outcome.samples = [
                record
                for moved in (True, False)
                for record in list_records(connection, run, label_version=favourites, moved=moved, limit=10)
            ]
            outcome.figures = read_figures(connection, run, 1, training)
    return outcome


def _watch(engine: Engine, run: Run) -> None:
    dead = watch_run(engine, run.run_id, run.name)
    if dead:
        raise FretworkError(
            f"{dead} items of run {run.name} are dead: `fretwork run status {run.name}` names the errors"
        )


def _evaluate(engine: Engine, beir_dir: Path, model: Path, baseline: str) -> dict[str, Any]:
    config = EvaluationConfig(model=str(model), baseline=baseline, data=BeirFolder(path=str(beir_dir)))
    return evaluate_and_watch(engine, config, "measuring on the test queries")


def _count(engine: Engine, outcome: Outcome) -> None:
    run_id = outcome.run.run_id
    with engine.connect() as connection:
        outcome.stages = stage_progress(connection, run_id)
        outcome.sums = conservation(connection, run_id)
        for stage, seconds in connection.execute(
            text(
                "SELECT stage, extract(epoch FROM max(finished_at) - min(claimed_at)) FROM shards "
                "WHERE run_id = :run_id AND label_version = 1 AND state = 'done' GROUP BY stage"
            ),
            {"run_id": run_id},
        ):
            outcome.seconds[stage] = round(float(seconds), 1)


def _changed(engine: Engine, run: Run, label_version: int) -> float:
    share = text(
        "SELECT coalesce(avg(positive_changed::int), 0) FROM fret_records "
        "WHERE run_id = :run_id AND label_version = :label_version"
    )
    with engine.connect() as connection:
        found = connection.execute(share, {"run_id": run.run_id, "label_version": label_version})
        return float(found.scalar_one())
