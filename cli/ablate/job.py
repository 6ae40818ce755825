"""The ablation's steps in order, through the queues and workers that everything else goes through. Prints nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from cli.ablate.recipes import BASELINE, FILTERED, compared, recipes_of
from cli.models.queued import evaluate_and_watch, find_or_start
from cli.watch import watch_run, watch_shard
from services.trainer.config import BeirFolder, EvaluationConfig, TrainingConfig
from shared.budget import find_budget
from shared.errors import NotDoneError
from shared.labels import add_label_version
from shared.progress import describe
from shared.records import LabelPolicy
from shared.runs import Run


def run_ablation(engine: Engine, run: Run, training: TrainingConfig, data: BeirFolder, output: Path) -> dict[str, Any]:
    """Trains and measures every recipe; the models stay in `output`. What `compared` returns, and what it took.

    The base is measured first: it belongs to the table, and data that cannot be read are an error before anything is
    trained. A training that an earlier call with the same arguments started is gone on with, or taken as it is.

    Raises FretworkError where a part of it died, NotDoneError where the run is not done or the recipes' records are
    not of the same queries.
    """
    with engine.connect() as connection:
        tokens_before = find_budget(connection, run.run_id).used_tokens
    of_base = EvaluationConfig(model=training.model_name_or_path, data=data)
    base = evaluate_and_watch(engine, of_base, "measuring the base")
    with engine.connect() as connection:
        kinds = describe(connection, run)["queries_by_kind"]
    recipes = recipes_of(run.config.labels.positive or "seed", sorted(kinds, key=lambda kind: (-kinds[kind], kind)))
    policies = dict.fromkeys(recipe.policy for recipe in recipes)
    by_policy = {policy: _label_version(engine, run, policy) for policy in policies}
    versions = {recipe: by_policy[recipe.policy] for recipe in recipes}
    with engine.connect() as connection:
        of_all = {version for recipe, version in versions.items() if recipe.queries != FILTERED}
        records = count_records(connection, run, of_all)
    started = {}
    for recipe, version in versions.items():
        with engine.begin() as connection:  # one after the other: they are trained in the order that they are shown in
            asked = recipe.training(training, records)
            # reviews are of one labelling each: a recipe that has some would train on other queries than the next
            started[recipe] = find_or_start(connection, run, version, asked, output / recipe.name, reviewed=False)
    trained = {
        recipe: watch_shard(engine, "training_runs", training_run_id, f"training {recipe.name}")
        for recipe, training_run_id in started.items()
    }
    reports = {}
    for recipe in recipes:
        if recipe != BASELINE:
            models = {"model": str(output / recipe.name), "baseline": str(output / BASELINE.name)}
            config = EvaluationConfig(**models, data=data)
            reports[recipe] = evaluate_and_watch(engine, config, f"measuring {recipe.name}")
    with engine.connect() as connection:
        tokens_after = find_budget(connection, run.run_id).used_tokens
    return {
        "run": run.name,
        "teacher": run.config.teacher,
        "llm_tokens": tokens_after - tokens_before,
        "records": records,
        "steps": {recipe.name: result["steps"] for recipe, result in trained.items()},
        "label_versions": {recipe.name: version for recipe, version in versions.items()},
        "training": training.model_dump(mode="json", exclude={"hard_negatives", "interpolation", "loss", "mixture"}),
        "data": data.model_dump(mode="json"),
        **compared(recipes, base, reports),
    }


def _label_version(engine: Engine, run: Run, policy: LabelPolicy) -> int:
    """The run's label version of the policy; where there is none it is made, from the stored scores."""
    with engine.begin() as connection:
        version = add_label_version(connection, run, policy)
    watch_run(engine, run.run_id, run.name)  # what of it died, and matters, `count_records` finds
    return version


def count_records(connection: Connection, run: Run, label_versions: set[int]) -> int:
    """How many queries have a record, which all of the label versions must have for the same ones.

    Raises NotDoneError where they have not, or where there is none.
    """
    everywhere, somewhere = connection.execute(
        text(
            """
            SELECT count(*) FILTER (WHERE versions = :number), count(*) FROM (
                SELECT count(*) AS versions FROM fret_records
                WHERE run_id = :run_id AND label_version = ANY(:versions) GROUP BY query_id
            ) AS by_query
            """
        ),
        {"run_id": run.run_id, "versions": sorted(label_versions), "number": len(label_versions)},
    ).one()
    if everywhere != somewhere or not somewhere:
        raise NotDoneError(
            f"{somewhere - everywhere} of {somewhere} queries of run {run.name} have no record under some of the "
            f"labellings, so the recipes cannot be compared: `fretwork run status {run.name}` says why"
        )
    return int(everywhere)
