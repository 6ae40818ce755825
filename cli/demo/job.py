"""The demo's steps in order, through the same functions, queues and workers as a user's own corpus. Prints nothing.

It writes to `folder`: `heldout/` (a BEIR folder) and `<run>/<policy>/`, the trained models.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

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

Policy = Literal["seed", "p_1"]
POLICIES: tuple[Policy, ...] = ("seed", "p_1")


@dataclass
class Outcome:
    """What the demo found; `evaluation` is of the held-out test queries, `dev` of the development ones by policy."""

    corpus: DemoCorpus
    run: Run
    base: str
    seconds: dict[str, float] = field(default_factory=dict)
    stages: list[StageProgress] = field(default_factory=list)
    sums: Conservation | None = None
    positive_changed: float = 0.0
    dev: dict[Policy, float] = field(default_factory=dict)
    policy: Policy = "seed"
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
        versions = {"p_1": 1}
        with outcome.timed("relabel_as_seed"):
            with engine.begin() as connection:
                versions["seed"] = add_label_version(connection, run, LabelPolicy(positive="seed"))
            _watch(engine, run)
        models = {policy: folder / run.name / policy for policy in POLICIES}
        trainings: dict[Policy, UUID] = {}
        for policy in POLICIES:
            with outcome.timed(f"train_{policy}"):
                trainings[policy] = _train(engine, run, versions[policy], models[policy], seed, base)
        with outcome.timed("evaluate_dev"):
            for policy in POLICIES:
                found = _evaluate(engine, heldout, "dev", models[policy], f"development queries, {policy}")
                outcome.dev[policy] = found["dims"][max(found["dims"], key=int)]["ndcg@10"]
        # of equals the simpler: the seed needs no judge
        outcome.policy = "p_1" if outcome.dev["p_1"] > outcome.dev["seed"] else "seed"
        outcome.model_dir = models[outcome.policy]
        with outcome.timed("evaluate_test"):
            outcome.evaluation = _evaluate(engine, heldout, "test", outcome.model_dir, "test queries", base)
        write_model_card(outcome.model_dir, outcome.evaluation)
        with engine.connect() as connection:
            outcome.samples = [
                record for moved in (True, False) for record in list_records(connection, run, moved=moved, limit=10)
            ]
            outcome.figures = read_figures(connection, run, versions[outcome.policy], trainings[outcome.policy])
    return outcome


def _watch(engine: Engine, run: Run) -> None:
    dead = watch_run(engine, run.run_id, run.name)
    if dead:
        raise FretworkError(
            f"{dead} items of run {run.name} are dead: `fretwork run status {run.name}` names the errors"
        )


def _train(engine: Engine, run: Run, label_version: int, output_dir: Path, seed: int, base: str) -> UUID:
    what = f"training with positives `{output_dir.name}`"
    return train_and_watch(engine, run, label_version, training_config(seed, base), output_dir, what)


def _evaluate(
    engine: Engine, beir_dir: Path, split: str, model: Path, what: str, baseline: str | None = None
) -> dict[str, Any]:
    config = EvaluationConfig(model=str(model), baseline=baseline, data=BeirFolder(path=str(beir_dir), split=split))
    return evaluate_and_watch(engine, config, f"measuring on the {what}")


def _count(engine: Engine, outcome: Outcome) -> None:
    run_id = outcome.run.run_id
    with engine.connect() as connection:
        outcome.stages = stage_progress(connection, run_id)
        outcome.sums = conservation(connection, run_id)
        outcome.positive_changed = float(
            connection.execute(
                text(
                    "SELECT coalesce(avg(positive_changed::int), 0) FROM fret_records "
                    "WHERE run_id = :run_id AND label_version = 1"
                ),
                {"run_id": run_id},
            ).scalar_one()
        )
        for stage, seconds in connection.execute(
            text(
                "SELECT stage, extract(epoch FROM max(finished_at) - min(claimed_at)) FROM shards "
                "WHERE run_id = :run_id AND label_version = 1 AND state = 'done' GROUP BY stage"
            ),
            {"run_id": run_id},
        ):
            outcome.seconds[stage] = round(float(seconds), 1)
