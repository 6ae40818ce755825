"""`fretwork ablate`: what the labelling is worth, by the paper's table, on a run's own records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.ablate.job import run_ablation
from cli.context import Context
from cli.models import options
from cli.models.command import parse_dims, validated
from cli.models.options import DEFAULTS
from services.trainer.config import BeirFolder, TrainingConfig
from shared.errors import InvalidInputError
from shared.models import as_given
from shared.runs import find_run

NAMES = {
    "p_1": "p₁",
    "seed": "seed",
    "none": "no negative",
    "sampled": "random neighbour",
    "lowest": "pₙ, the last",
}
LISTS = {"listwise": "whole lists", "both": f"lists, {DEFAULTS.contrastive_weight:g} × labels"}


def ablate(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run whose records to train on, or `latest`")],
    output: Annotated[Path, typer.Option("--output", "--output-dir", help="where the model folders go")],
    beir: Annotated[Path, typer.Option(help="what to measure on: corpus.jsonl, queries.jsonl, qrels/{split}.tsv")],
    split: Annotated[str, typer.Option(help="which qrels of the folder")] = "test",
    model_name_or_path: options.ModelNameOrPath = DEFAULTS.model_name_or_path,
    prompts: options.PromptsOption = DEFAULTS.prompts,
    learning_rate: options.LearningRate = DEFAULTS.learning_rate,
    num_train_epochs: options.NumTrainEpochs = DEFAULTS.num_train_epochs,
    per_device_train_batch_size: options.BatchSize = DEFAULTS.per_device_train_batch_size,
    temperature: options.Temperature = DEFAULTS.temperature,
    matryoshka_dims: options.MatryoshkaDims = None,
    query_max_len: options.QueryMaxLen = DEFAULTS.query_max_len,
    passage_max_len: options.PassageMaxLen = DEFAULTS.passage_max_len,
    seed: options.Seed = DEFAULTS.seed,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Train on a run's queries in about ten ways and measure each.

    {seed, p_1} × {no, a random, the lowest hard negative}, contrastively; then whole lists, lists and labels together,
    queries filtered by a round trip, and one kind of query alone. The labels come from the run's stored scores, without
    the teacher. All take as many steps. The same command again goes on where it was stopped.
    """
    training = validated(
        TrainingConfig,
        model_name_or_path=as_given(model_name_or_path),
        prompts=prompts,
        learning_rate=learning_rate,
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=per_device_train_batch_size,
        temperature=temperature,
        matryoshka_dims=parse_dims(matryoshka_dims, "--matryoshka-dims"),
        query_max_len=query_max_len,
        passage_max_len=passage_max_len,
        seed=seed,
    )
    output = output.absolute()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(output, None, f"the folder cannot be made: {error.strerror}") from error
    settings: Context = context.obj
    with settings.database(workers=True) as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
        result = run_ablation(engine, found, training, BeirFolder(path=str(beir.absolute()), split=split), output)
    if as_json:
        typer.echo(json.dumps(result))
        return
    Console().print(recipe_table(result))
    typer.echo(
        f"\nAt {result['dim']} dimensions, {result['queries']:,} queries over {result['passages']:,} passages.\n"
        f"Each: {result['records']:,} records or a part of them, {result['steps'][result['baseline']]:,} steps. "
        f"Labelling anew cost {result['llm_tokens']:,} LLM tokens.\nThe models: {output}"
    )


def recipe_table(result: dict[str, Any]) -> Table:
    """A line for the base and for each recipe, with the difference from the first recipe and its 95% interval."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("trained on", "queries", "nDCG@10", "MRR@10", "Δ nDCG@10 (95% interval)"):
        table.add_column(title, justify="left" if title in ("trained on", "queries") else "right")
    lines = [("nothing", "", result["base"]["figures"], None)]
    lines += [(_what(recipe), recipe["queries"], recipe["figures"], recipe["delta"]) for recipe in result["recipes"]]
    for what, queries, figures, delta in lines:
        shown = ""
        if delta is not None:
            low, high = delta["ndcg@10"]["ci95"]
            shown = f"{delta['ndcg@10']['mean']:+.4f} ({low:+.4f} to {high:+.4f})"
        elif queries:
            shown = "compared with"
        table.add_row(what, queries, *(f"{figures[name]:.4f}" for name in ("ndcg@10", "mrr@10")), shown)
    return table


def _what(recipe: dict[str, Any]) -> str:
    if recipe["loss"] == "contrastive":
        return f"{NAMES[recipe['positive']]}; {NAMES[recipe['negative']]}"
    return LISTS[recipe["loss"]]
