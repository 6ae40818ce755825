"""`fretwork train` and `fretwork evaluate`: both go through the trainer's queue, like all else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cli.context import Context, say
from cli.models import options
from cli.models.mixture_file import read_mixture
from cli.models.options import DEFAULTS, described
from cli.models.queued import evaluate_and_watch
from cli.watch import watch_shard
from services.trainer.config import EvaluationConfig, ListLoss, Loss, TrainingConfig
from services.trainer.model_card import FACTS_FILE, write_model_card
from shared.errors import InvalidInputError, NotDoneError, SettingError, first_problem
from shared.labels import find_policy
from shared.list_scores import JudgedBy
from shared.models import as_given
from shared.reviews import DROPPED, count_reviews
from shared.runs import find_run
from shared.trainings import find_training, start_training

WORTH_SAYING = 0.01  # of the positives or queries, of which 200 are looked at


def train(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run whose records to train on, or `latest`")],
    output: Annotated[Path, typer.Option("--output", "--output-dir", help="where the model folder goes; a new folder")],
    model_name_or_path: options.ModelNameOrPath = DEFAULTS.model_name_or_path,
    learning_rate: options.LearningRate = DEFAULTS.learning_rate,
    num_train_epochs: options.NumTrainEpochs = DEFAULTS.num_train_epochs,
    per_device_train_batch_size: options.BatchSize = DEFAULTS.per_device_train_batch_size,
    temperature: options.Temperature = DEFAULTS.temperature,
    matryoshka_dims: options.MatryoshkaDims = None,
    matryoshka_weights: Annotated[str | None, typer.Option(help=described("matryoshka_weights"))] = None,
    query_max_len: options.QueryMaxLen = DEFAULTS.query_max_len,
    passage_max_len: options.PassageMaxLen = DEFAULTS.passage_max_len,
    prompts: options.PromptsOption = DEFAULTS.prompts,
    loss: Annotated[Loss, typer.Option(help=described("loss"))] = DEFAULTS.loss,
    contrastive_weight: Annotated[
        float, typer.Option(help=described("contrastive_weight"))
    ] = DEFAULTS.contrastive_weight,
    list_length: Annotated[int, typer.Option(help=described("list_length"))] = DEFAULTS.list_length,
    list_loss: Annotated[ListLoss, typer.Option(help=described("list_loss"))] = DEFAULTS.list_loss,
    judged_by: Annotated[JudgedBy, typer.Option(help=described("judged_by"))] = DEFAULTS.judged_by,
    retriever_weight: Annotated[float, typer.Option(help=described("retriever_weight"))] = DEFAULTS.retriever_weight,
    positive_bonus: Annotated[float, typer.Option(help=described("positive_bonus"))] = DEFAULTS.positive_bonus,
    teacher_temperature: Annotated[
        float, typer.Option(help=described("teacher_temperature"))
    ] = DEFAULTS.teacher_temperature,
    near_positive: Annotated[float, typer.Option(help=described("near_positive"))] = DEFAULTS.near_positive,
    hard_negatives: Annotated[bool, typer.Option(help=described("hard_negatives"))] = DEFAULTS.hard_negatives,
    same_tower_negatives: Annotated[
        bool, typer.Option(help=described("same_tower_negatives"))
    ] = DEFAULTS.same_tower_negatives,
    train_what: Annotated[
        Literal["both", "queries"], typer.Option("--train", help=described("train"))
    ] = DEFAULTS.train,
    projection: Annotated[bool, typer.Option(help=described("projection"))] = DEFAULTS.projection,
    soft_mask_margin: Annotated[
        float | None, typer.Option(help=described("soft_mask_margin"))
    ] = DEFAULTS.soft_mask_margin,
    hardness: Annotated[float, typer.Option(help=described("hardness"))] = DEFAULTS.hardness,
    spread_out: Annotated[float, typer.Option(help=described("spread_out"))] = DEFAULTS.spread_out,
    averaging: Annotated[float, typer.Option(help=described("averaging"))] = DEFAULTS.averaging,
    interpolation: Annotated[float | None, typer.Option(help=described("interpolation"))] = DEFAULTS.interpolation,
    kept_tokens: Annotated[int | None, typer.Option(help=described("kept_tokens"))] = DEFAULTS.kept_tokens,
    onnx: Annotated[bool, typer.Option(help=described("onnx"))] = DEFAULTS.onnx,
    seed: options.Seed = DEFAULTS.seed,
    label_version: Annotated[int, typer.Option(help="which labelling of the run's queries")] = 1,
    mixture: Annotated[
        Path | None, typer.Option(help="a YAML file of what to train on; the run's records are its source of kind fret")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="one more source of the mixture, as a YAML mapping; may be repeated")
    ] = None,
) -> None:
    """Train an encoder on a run's records and write it as a SentenceTransformer folder."""
    config = validated(
        TrainingConfig,
        model_name_or_path=as_given(model_name_or_path),
        learning_rate=learning_rate,
        num_train_epochs=num_train_epochs,
        per_device_train_batch_size=per_device_train_batch_size,
        temperature=temperature,
        matryoshka_dims=parse_dims(matryoshka_dims, "--matryoshka-dims"),
        matryoshka_weights=matryoshka_weights.split(",") if matryoshka_weights else None,
        query_max_len=query_max_len,
        passage_max_len=passage_max_len,
        prompts=prompts,
        loss=loss,
        contrastive_weight=contrastive_weight,
        list_length=list_length,
        list_loss=list_loss,
        judged_by=judged_by,
        retriever_weight=retriever_weight,
        positive_bonus=positive_bonus,
        teacher_temperature=teacher_temperature,
        near_positive=near_positive,
        hard_negatives=hard_negatives,
        same_tower_negatives=same_tower_negatives,
        train=train_what,
        projection=projection,
        soft_mask_margin=soft_mask_margin,
        hardness=hardness,
        spread_out=spread_out,
        averaging=averaging,
        interpolation=interpolation,
        kept_tokens=kept_tokens,
        onnx=onnx,
        seed=seed,
        mixture=read_mixture(mixture, source or ()),
    )
    output = output.absolute()
    if output.exists():
        raise InvalidInputError(output, None, "the output directory exists already; name another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(output, None, f"its folder cannot be made: {error.strerror}") from error
    settings: Context = context.obj
    with settings.database(workers=True) as engine:
        with engine.begin() as connection:
            found = find_run(connection, run)
            find_policy(connection, found, label_version)
            if found.state != "done":
                raise NotDoneError(
                    f"run {found.name} is not done yet: watch it with `fretwork run status {found.name}`"
                )
            asked = (connection, found, label_version, config.model_dump(mode="json"), str(output))
            under_way = find_training(*asked)
            training_run_id = under_way or start_training(*asked)
            dropped = count_reviews(connection, found.run_id, label_version).get("dropped")
        if dropped:
            say(f"{dropped:,} records left out: {DROPPED}")
        if under_way:
            say("this training was started before: going on with it")
        try:
            facts = watch_shard(engine, "training_runs", training_run_id, "training")
        except KeyboardInterrupt:
            say(
                "not ended: it goes on as soon as a trainer works, and the same command shows it again; "
                f"`fretwork run cancel {found.name} --trainings` ends it"
            )
            raise
    for share, what, option, read in (
        ("share_cut", "positives", "--passage-max-len", config.passage_max_len),
        ("share_of_queries_cut", "queries", "--query-max-len", config.query_max_len),
    ):
        if facts.get(share, 0) >= WORTH_SAYING:
            most = facts["longest_input"]
            more = f"; {option} reads more, up to {most:,}" if most > read else ""
            say(f"about {facts[share]:.0%} of the {what} are longer than the {read:,} tokens that were read{more}")
    if "development_ndcg@10" in facts and facts["interpolation"] == 0:
        projected = facts.get("projection") and not facts.get("base_as_it_is")
        what = "the base's encoder behind the fitted projection" if projected else "the base"
        say(f"tuning the encoder did not help on the run's held-out queries: the folder holds {what}")
    typer.echo(output)
    say(f"next: fretwork evaluate {output} --beir DIR --baseline {model_name_or_path} --card")


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a SentenceTransformer folder, hub name, or all-MiniLM-L6-v2")],
    beir: Annotated[
        Path | None, typer.Option(help="a BEIR folder: corpus.jsonl, queries.jsonl, qrels/{split}.tsv")
    ] = None,
    sts: Annotated[
        Path | None,
        typer.Option(help="pairs: a table of sentence1, sentence2, score (.csv, .tsv, .jsonl, .parquet), or STS-B"),
    ] = None,
    classification: Annotated[
        Path | None, typer.Option(help="a folder with train and test, tables as well, of text, label")
    ] = None,
    mteb: Annotated[
        list[str] | None, typer.Option(help="a task for the library mteb to fetch and measure; may be given often")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="a model to compare with, as before against after")] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            help="dimensions to measure at, e.g. 384,256; if left out those that the model was trained for, or the "
            "full one; with --mteb the full one"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="with --beir: which qrels of the folder")] = "test",
    ignore_identical_ids: Annotated[
        bool,
        typer.Option("--ignore-identical-ids", help="with --beir: no query finds the passage that has its own id"),
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="with --beir: put the figures into the model's card, README.md")
    ] = False,
    samples_per_label: Annotated[
        int, typer.Option(help="with --classification: training texts per label in each experiment")
    ] = 8,
    per_query: Annotated[
        Path | None, typer.Option(help="a file for the figures of every query, pair or test text, a JSON line each")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Measure a model by --beir, --sts, --classification or --mteb, with 95% intervals against a baseline."""
    asked: list[dict[str, Any]] = []
    if beir:
        given = {"path": str(beir.absolute()), "split": split, "ignore_identical_ids": ignore_identical_ids}
        asked.append({"kind": "beir", **given})
    if sts:
        asked.append({"kind": "sts", "path": str(sts.absolute())})
    if classification:
        path = str(classification.absolute())
        asked.append({"kind": "classification", "path": path, "samples_per_label": samples_per_label})
    if mteb:
        asked.append({"kind": "mteb", "names": mteb})
    if len(asked) != 1:
        raise SettingError("name one thing to measure the model on: --beir, --sts, --classification or --mteb")
    if card and not (beir and (Path(model) / FACTS_FILE).is_file()):
        raise SettingError("--card takes --beir, and a folder that `fretwork train` has written")
    config = validated(
        EvaluationConfig,
        model=as_given(model),
        baseline=as_given(baseline) if baseline else None,
        data=asked[0],
        dims=parse_dims(dims, "--dims"),
        per_query_file=str(per_query.absolute()) if per_query else None,
    )
    settings: Context = context.obj
    with settings.database(workers=True) as engine:
        result = evaluate_and_watch(engine, config, "evaluation")
    if card:
        write_model_card(Path(model), result)
        say(f"the figures stand in {Path(model) / 'README.md'}")
    if as_json:
        typer.echo(json.dumps(result))
    else:
        Console().print(comparison_table(result))


TITLES = {
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "mrr@10": "MRR@10",
    "map@100": "MAP@100",
    "cosine_spearman": "Spearman",
    "accuracy": "Accuracy",
    "f1_macro": "F1 (macro)",
}


def comparison_table(result: dict[str, Any]) -> Table:
    """A line per dimension and model, with the main metric's difference and its interval where there are any."""
    main = result["main_metric"]
    names = [name for name in next(iter(result["dims"].values())) if name in TITLES or result["kind"] == "mteb"]
    titles = [TITLES.get(name, name) for name in names]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("dim", "model", *titles, f"Δ {TITLES.get(main, main)} (95% interval)"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for dim, after in sorted(result["dims"].items(), key=lambda item: -int(item[0])):
        rows = [("after" if result.get("baseline") else "model", after)]
        if result.get("baseline"):
            rows.insert(0, ("before", result["baseline"]["dims"][dim]))
        for label, figures in rows:
            delta = ""
            if label == "after" and "delta" in result:
                found = result["delta"][dim][main]
                low, high = found["ci95"]
                delta = f"{found['mean']:+.4f} ({low:+.4f} to {high:+.4f})"
            table.add_row(dim, label, *(f"{figures[name]:.4f}" for name in names), delta)
    return table


def parse_dims(value: str | None, option: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"{option} takes numbers above 0 with commas between, as in 384,256; got {value!r}")
    return tuple(int(part) for part in parts)


def validated(kind: type[Any], /, **values: Any) -> Any:
    try:
        return kind(**values)
    except ValidationError as error:
        place, said = first_problem(error)
        # the option is the last name: a value may stand in a list, and what is measured in `data`
        option = next((f"--{name.replace('_', '-')}: " for name in reversed(place) if isinstance(name, str)), "")
        raise SettingError(option + said) from None
