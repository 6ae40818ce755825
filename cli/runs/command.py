"""`fretwork run`: start, status, pause, resume, cancel, retry, dead, list."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from sqlalchemy import Engine

from cli.context import Context, say
from cli.runs.preview import preview
from cli.runs.rounds import next_round
from cli.runs.teacher import settle
from cli.stack import running_stack
from cli.watch import stages_table, watch_run
from shared import ledger
from shared.errors import FretworkError, RunPausedError, SettingError
from shared.models import as_given
from shared.progress import conservation, describe, list_runs, stage_progress
from shared.reading import dead_shards
from shared.records import RunConfig
from shared.runs import Run, cancel_run, find_run, pause_run, resume_run, start_run
from shared.settings import settings as environment

app = typer.Typer(no_args_is_help=True, help="Runs: from a corpus to FRet records.")


MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", metavar="N", help="pause the run once its LLM calls have used this many tokens in all"
    ),
]
MaxHours = Annotated[
    float | None, typer.Option("--max-hours", metavar="H", help="pause the run after this time from now")
]


def _settings_help(group: type[BaseModel], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name, field in group.model_fields.items():
        if isinstance(field.default, BaseModel):
            lines += _settings_help(type(field.default), f"{prefix}{name}.")
        else:
            default = "" if field.default in (None, "", {}) else f" (default {field.default})"
            lines.append(f"{prefix}{name}{default}: {field.description}")
    return lines


SETTINGS_HELP = "\n\n".join(_settings_help(RunConfig))


def parse_config(assignments: list[str]) -> RunConfig:
    """`--set key=value` to a configuration; `labels.positive=seed` reaches into a group. Raises SettingError."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingError(f"--set takes key=value, and {assignment!r} has no '='")
        try:
            parsed: Any = json.loads(value)
        except ValueError:
            parsed = value  # a bare word is a string
        *groups, last = key.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise SettingError(f"--set {key}: {group} was given a value of its own before")
        target[last] = parsed
    if isinstance(values.get("embedder"), str):
        values["embedder"] = as_given(values["embedder"])
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingError(
            f"--set {where}: {first['msg']}. `fretwork run start --help` lists the settings of a run"
        ) from None


@app.command(epilog="[bold]Settings of a run[/bold] (--set key=value)\n\n" + SETTINGS_HELP.replace("[", r"\["))
def start(
    context: typer.Context,
    corpus: Annotated[str, typer.Option(help="the corpus to work on")],
    preview_n: Annotated[
        int, typer.Option("--preview", metavar="N", min=0, help="show what N passages would give, and start nothing")
    ] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="watch the run until it is done")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a setting of the run, see below")
    ] = None,
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="take over what this earlier run's LLM wrote and judged, where it would come out the same",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            max=5,
            help="after each round but the last an embedder is trained on its queries and their seed passages, and the "
            "next retrieves with it, as in the paper; implies --wait, and limits are the first round's",
        ),
    ] = 1,
    embedders: Annotated[
        Path | None, typer.Option(help="with --rounds: where their embedders go; HOME/embedders by default")
    ] = None,
    max_tokens: MaxTokens = None,
    max_hours: MaxHours = None,
) -> None:
    """Start a run: write queries for the corpus's passages, retrieve their neighbours, judge them, keep FRet records.

    Prints the run's name. Without --wait it is worked on by the workers of `fretwork up`.

    A run whose tokens or time are used up is paused and keeps all that it has: `fretwork run resume` goes on with it.
    """
    config = settle(parse_config(assignments or []))
    settings: Context = context.obj
    if preview_n:
        with settings.database() as engine:
            preview(engine, corpus, config, preview_n)
        return
    wait = wait or rounds > 1
    with settings.database(workers=wait) as engine:
        with engine.begin() as connection:
            if follow is not None:
                config = config.model_copy(update={"follows": find_run(connection, follow).run_id})
            run = start_run(connection, corpus, config, max_tokens=max_tokens, max_hours=max_hours)
        typer.echo(run.name)
        if not wait:
            _say_if_nobody_works(settings)
            return
        _watch(engine, run)
        for _ in range(rounds - 1):
            run = next_round(engine, corpus, run, embedders or settings.home / "embedders")
            typer.echo(run.name)
            _watch(engine, run)
        with engine.connect() as connection:
            records = conservation(connection, run.run_id).records
        if records:
            say(f"next: fretwork train {run.name} --output DIR (or fretwork export {run.name} --help)")
        else:
            say(f"no record came of it: fretwork run status {run.name} says why")


def _watch(engine: Engine, run: Run) -> None:
    """Until the run is done. Raises typer.Exit 3 where it pauses or has dead items."""
    try:
        dead = watch_run(engine, run.run_id, run.name)
    except RunPausedError as paused:
        say(str(paused))
        raise typer.Exit(3) from None
    if dead:
        say(f"{dead:,} items are dead: fretwork run status {run.name} names the errors")
        raise typer.Exit(3)


def _say_if_nobody_works(settings: Context) -> None:
    if running_stack(settings.home) is None and environment().database_url is None:
        say("nothing works on it yet: start the workers with `fretwork up`")


@app.command()
def status(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    watch: Annotated[bool, typer.Option("--watch", help="stay until the run is done or paused")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show how far a run is: items per stage, rate, ETA, drops and reasons, tokens, and whether the counts add up."""
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
        if watch:
            with suppress(FretworkError):  # paused or cancelled: its status says so
                watch_run(engine, found.run_id, found.name)
        with engine.connect() as connection:
            seen = describe(connection, find_run(connection, found.run_id))
            stages = stage_progress(connection, found.run_id)
    if as_json:
        typer.echo(json.dumps(seen))
        return
    Console().print(stages_table(f"run {seen['run']} ({seen['state']})", stages))
    sums = seen["conservation"]
    typer.echo(
        f"{sums['records']:,} records · {sums['queries']:,} queries · {sums['sampled']:,} passages sampled · "
        f"the counts {'add up' if sums['holds'] else 'DO NOT add up: please report this'}"
    )
    if seen["queries_taken_over"] or seen["judgements_taken_over"]:
        typer.echo(
            f"taken over from an earlier run: {seen['queries_taken_over']:,} queries and "
            f"{seen['judgements_taken_over']:,} judgements · judged for this one: {seen['judged']:,}"
        )
    for usage in seen["usage"]:
        typer.echo(
            f"tokens: {usage['stage']} · {usage['model']} · {usage['requests']:,} requests · "
            f"{usage['prompt_tokens']:,} prompt + {usage['completion_tokens']:,} completion"
        )
    for error in seen["dead"]:
        typer.echo(f"dead: {error['stage']} × {error['shards']}: {error['error_type']}: {error['error_message']}")
    if seen["state"] == "paused":
        typer.echo(f"paused: {seen['paused_reason']}")
    if seen["dead"] or seen["state"] == "paused":
        raise typer.Exit(3)


@app.command()
def resume(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    max_tokens: MaxTokens = None,
    max_hours: MaxHours = None,
) -> None:
    """Go on with a paused run under new limits, or give a running one other limits.

    Tokens count from the run's start, hours from now; a limit that is not given stays as it was.
    """
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.begin() as connection:
            found = find_run(connection, run)
            resume_run(connection, found, max_tokens=max_tokens, max_hours=max_hours)
        typer.echo(f"{found.name} goes on")
        _say_if_nobody_works(settings)


@app.command()
def retry(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    shard: Annotated[UUID | None, typer.Option(help="only this one, as `run dead` names it")] = None,
) -> None:
    """Put a run's dead shards back to work, once what ended them is mended."""
    settings: Context = context.obj
    with settings.database() as engine, engine.begin() as connection:
        found = find_run(connection, run)
        put_back = ledger.retry(connection, found.run_id, shard)
    if shard is not None and not put_back:
        raise SettingError(f"{found.name} has no dead shard {shard}: `fretwork run dead {found.name}` lists them")
    typer.echo(f"{put_back:,} shards of {found.name} are ready again")


@app.command()
def pause(context: typer.Context, run: Annotated[str, typer.Argument(help="the run's name, or `latest`")]) -> None:
    """Pause a run: nothing new is started, what is in hand is finished or given back. `resume` goes on."""
    settings: Context = context.obj
    with settings.database() as engine, engine.begin() as connection:
        found = find_run(connection, run)
        pause_run(connection, found)
    typer.echo(f"{found.name} is paused: fretwork run resume {found.name}")


@app.command()
def cancel(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """End a run for good. What it has so far stays, and may be exported; it cannot be resumed or trained on."""
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
        if not yes:
            typer.confirm(f"cancel {found.name} for good?", abort=True)
        with engine.begin() as connection:
            cancel_run(connection, found)
    typer.echo(f"{found.name} is cancelled")


@app.command()
def dead(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON array")] = False,
) -> None:
    """Show the shards that failed for good: stage, attempts, error and traceback. `retry` puts them back."""
    settings: Context = context.obj
    with settings.database() as engine, engine.connect() as connection:
        found = dead_shards(connection, find_run(connection, run).run_id, limit=1000)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], default=str))
        return
    for each in found:
        typer.echo(
            f"{each.shard_id} · {each.stage} · {each.items} items · {each.failures} failures, {each.losses} losses\n"
            f"{each.error_traceback or f'{each.error_type}: {each.error_message}'}"
        )
    if not found:
        say("no dead shards")


@app.command("list")
def list_(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="one JSON array")] = False
) -> None:
    """List the runs, newest first."""
    settings: Context = context.obj
    with settings.database() as engine, engine.connect() as connection:
        found = list_runs(connection, limit=1000)
    if as_json:
        typer.echo(json.dumps(found, default=str))
        return
    if not found:
        say("no run yet: fretwork run start --corpus NAME")
    for row in found:
        typer.echo(f"{row['name']}\t{row['state']}\t{row['records']:,} records of {row['sampled_count']:,} passages")
