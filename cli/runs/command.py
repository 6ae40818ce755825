"""`fretwork run`: start, status, pause, resume, cancel, retry, dead, list, and `refuse`."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console

from cli.context import Context, say
from cli.runs.preview import preview
from cli.runs.refuse import refuse
from cli.runs.rounds import next_round
from cli.runs.settings import MaxHours, MaxTokens, parse_config, settings_help
from cli.runs.teacher import settle
from cli.runs.update import update
from cli.watch import stages_table, wait_for, watch_run
from shared import ledger
from shared.errors import FretworkError, NotFoundError, SettingError
from shared.progress import conservation, describe, list_runs, stage_progress
from shared.reading import count_dead, dead_shards
from shared.records import LabelPolicy, RunConfig
from shared.runs import cancel_run, find_run, find_unfinished, pause_run, resume_run, start_run

app = typer.Typer(no_args_is_help=True, help="Runs: from a corpus to FRet records.")


class Resume(StrEnum):
    NEVER = "never"
    IF_POSSIBLE = "if_possible"
    ALWAYS = "always"


@app.command(epilog=settings_help(RunConfig, "Settings of a run"))
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
    resume_: Annotated[
        Resume,
        typer.Option(
            "--resume",
            help="go on with the newest unfinished run of the same corpus and settings; if_possible also takes one "
            "that is done, and starts one where there is none",
        ),
    ] = Resume.NEVER,
    max_tokens: MaxTokens = None,
    max_hours: MaxHours = None,
) -> None:
    """Start a run: write queries for the corpus's passages, retrieve their neighbours, judge them, keep FRet records.

    Prints the run's name. Without --wait it is worked on by the workers of `fretwork up`.

    A run whose tokens or time are used up is paused and keeps all that it has: `fretwork run resume` goes on with it,
    and so does the same command with --resume if_possible, which makes a script safe to run again, --rounds and all.
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
            run = None
            if resume_ is not Resume.NEVER:
                run = find_unfinished(connection, corpus, config, or_done=resume_ is Resume.IF_POSSIBLE)
            if run is not None and run.state == "done":
                say(f"{run.name} is done already")
            elif run is not None:
                resume_run(connection, run, max_tokens=max_tokens, max_hours=max_hours)
                say(f"{run.name} goes on")
            elif resume_ is Resume.ALWAYS:
                raise NotFoundError(
                    f"no run of {corpus} with these settings is unfinished: `fretwork run list` shows the runs, "
                    "--resume if_possible starts one where there is none"
                )
            else:
                run = start_run(connection, corpus, config, max_tokens=max_tokens, max_hours=max_hours)
        typer.echo(run.name)
        if not wait:
            settings.say_if_nobody_works()
            return
        wait_for(engine, run.run_id, run.name)
        for _ in range(rounds - 1):
            run = next_round(engine, corpus, run, embedders or settings.home / "embedders")
            typer.echo(run.name)
            wait_for(engine, run.run_id, run.name)
        with engine.connect() as connection:
            records = conservation(connection, run.run_id).records
        if records:
            say(f"next: fretwork train {run.name} --output DIR (or fretwork export {run.name} --help)")
        else:
            say(f"no record came of it: fretwork run status {run.name} says why")


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
    if seen["queries_by_kind"]:
        by_kind = (f"{number:,} {kind}" for kind, number in seen["queries_by_kind"].items())
        typer.echo(f"queries by kind: {' · '.join(by_kind)}")
    for version in seen["label_versions"]:
        typer.echo(_labelled(version))
    for usage in seen["usage"]:
        typer.echo(
            f"tokens: {usage['stage']} · {usage['model']} · {usage['requests']:,} requests · "
            f"{usage['prompt_tokens']:,} prompt + {usage['completion_tokens']:,} completion"
        )
    for error in seen["dead"]:
        typer.echo(f"dead: {error['stage']} × {error['shards']}: {error['error_type']}: {error['error_message']}")
    if error := seen["given_back"]:
        typer.echo(f"given back: {error['stage']} × {error['shards']}: {error['error_type']}: {error['error_message']}")
    if seen["state"] == "paused":
        typer.echo(f"paused: {seen['paused_reason']}")
    if seen["dead"] or seen["state"] == "paused":
        raise typer.Exit(3)


def _labelled(version: dict[str, Any]) -> str:
    """A line about one labelling: the settings that are not the defaults, and what came of it."""
    policy = LabelPolicy(**version["policy"]).model_dump(exclude_defaults=True)
    parts = [f"{version['records']:,} records", f"{version['moved']:,} positives moved from the seed"]
    parts += [f"{number:,} dropped: {reason}" for reason, number in version["dropped"].items()]
    parts += [f"{number:,} {decision} in review" for decision, number in version["reviewed"].items()]
    if version["queries_open"]:
        parts.append(f"{version['queries_open']:,} queries not labelled")
    chosen = ", ".join(f"{name}={value}" for name, value in policy.items())
    return f"label version {version['label_version']} ({chosen}): {' · '.join(parts)}"


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
        settings.say_if_nobody_works()


app.command()(update)
app.command(epilog=settings_help(LabelPolicy, "Settings of a labelling"))(refuse)


@app.command()
def retry(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    shard: Annotated[UUID | None, typer.Option(help="only this one, as `run dead` names it")] = None,
) -> None:
    """Put a run's dead shards back to work, once what ended them is mended.

    A training on its records is put back where --shard names it, and goes on from its last checkpoint.
    """
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
    trainings: Annotated[
        bool,
        typer.Option("--trainings", help="end the trainings on its records instead, at their next step; the run stays"),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """End a run for good. What it has so far stays, and may be exported; it cannot be resumed or trained on.

    With --trainings it ends those on its records, which wait or are at work: `fretwork run dead` names them then, and
    `fretwork run retry RUN --shard ID` goes on with one from its last checkpoint.
    """
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
        if trainings:
            with engine.begin() as connection:
                ended = ledger.cancel_trainings(connection, found.run_id)
            typer.echo(f"{ended:,} trainings on {found.name} are cancelled")
            return
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
    """Show the shards that failed for good: stage, attempts, error and traceback. `retry` puts them back.

    At most a thousand of them; how many more there are stands at the end, on standard error.
    """
    settings: Context = context.obj
    with settings.database() as engine, engine.connect() as connection:
        of = find_run(connection, run)
        found = dead_shards(connection, of.run_id, limit=1000)
        more = count_dead(connection, of.run_id) - len(found)
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], default=str))
    else:
        for each in found:
            typer.echo(
                f"{each.shard_id} · {each.stage} · {each.items} items · "
                f"{each.failures} failures, {each.losses} losses, {each.setbacks} setbacks\n"
                f"{each.error_traceback or f'{each.error_type}: {each.error_message}'}"
            )
        if not found:
            say("no dead shards")
    if more > 0:
        say(f"{more:,} more shards of {of.name} are dead: GET /runs/{of.name}/dead has them page by page")


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
