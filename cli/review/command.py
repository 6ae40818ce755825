"""`fretwork review`: the records that are worth a person's eye, the worst first, and what is decided about them."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import Engine

from cli.context import Context, say
from cli.review.case import Case, Decided, load_cases
from shared.labels import find_policy
from shared.reviews import count_reviews, list_doubtful, save_review
from shared.runs import Run, find_run

SHOWN_CANDIDATES = 5
SHOWN_CHARS = 700
QUESTION = "[a]ccept, the [s]eed or a number as the positive, [d]rop, s[k]ip, [q]uit"


def review(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="the run's name, or `latest`")],
    label_version: Annotated[int, typer.Option(help="which labelling of the run's queries")] = 1,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many records")] = 20,
    decided: Annotated[bool, typer.Option("--decided", help="those that have a decision, to change it")] = False,
    list_: Annotated[bool, typer.Option("--list", help="show them, and ask nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON array, and ask nothing")] = False,
) -> None:
    """Look at the records that are most in doubt, and decide about each.

    Most in doubt are those whose positive is not the seed, about which QL and RC disagree, or where another candidate
    is about as good. Accept a record as it is, make another candidate its positive, or drop it from what is exported
    and trained on. A decision is kept at once, holds for this label version, and may be changed with --decided; a
    training goes by those that there were when it was started.
    """
    settings: Context = context.obj
    with settings.database() as engine:
        with engine.connect() as connection:
            found = find_run(connection, run)
            policy = find_policy(connection, found, label_version)
            doubtful = list_doubtful(connection, found, label_version, limit, decided=decided)
            cases = load_cases(connection, found, policy, doubtful)
        if as_json:
            typer.echo(json.dumps([case.plain() for case in cases]))
            return
        if not cases:
            say("no record has a decision" if decided else "no record without a decision is in doubt")
        for number, case in enumerate(cases, start=1):
            _show(case, f"{number} of {len(cases)}")
            if not list_ and not _decide(engine, found, label_version, case):
                break
        with engine.connect() as connection:
            counts = count_reviews(connection, found.run_id, label_version)
    so_far = ", ".join(f"{count:,} {decision}" for decision, count in counts.items()) or "nothing decided"
    say(f"{found.name}, label version {label_version}: {so_far}")


def _show(case: Case, which: str) -> None:
    console = Console(highlight=False)
    doubtful, query = case.doubtful, case.stored.query
    console.rule(f"{which} · doubt {doubtful.doubt:.2f}: {'; '.join(doubtful.why)}", align="left")
    if doubtful.decision:
        chosen = f", {case.number(doubtful.chosen_id)} is the positive" if doubtful.chosen_id else ""
        console.print(f"decided: {doubtful.decision}{chosen}", style="yellow")
    console.print(Text.assemble(("task   ", "dim"), query.task_description))
    console.print(Text.assemble(("query  ", "dim"), (query.query_text, "bold")))
    shown = {*range(1, min(SHOWN_CANDIDATES, len(case.fused)) + 1), case.seed_number, case.number(doubtful.positive_id)}
    for number in sorted(shown):
        candidate = case.fused[number - 1]
        passage = case.passages[candidate.passage_id]
        roles = [
            role
            for role, passage_id in (("the positive", doubtful.positive_id), ("the seed", query.seed_passage_id))
            if passage_id == candidate.passage_id
        ]
        place = f"{number}  {' and '.join(roles)}  QL {candidate.ql_rank}., RC {candidate.rc_rank}.  {passage.title}"
        console.print(Text(place, style="green" if roles else "cyan"))
        cut = passage.text[:SHOWN_CHARS]
        console.print(Text(cut + (" …" if len(cut) < len(passage.text) else "")))


def _decide(engine: Engine, run: Run, label_version: int, case: Case) -> bool:
    """Asks until there is an answer, and keeps it; False where the person stops."""
    while True:
        answer = typer.prompt(QUESTION).strip().lower()
        if answer in ("k", "q"):
            return bool(answer == "k")
        decided: Decided | None
        if answer == "a":
            decided = ("accepted", None)
        elif answer == "d":
            decided = ("dropped", None)
        elif answer == "s":
            decided = case.choose(case.seed_number)
        elif answer.isdecimal() and 1 <= int(answer) <= len(case.fused):
            decided = case.choose(int(answer))
        else:
            say(f"a, s, d, k, q, or the number of a candidate, 1 to {len(case.fused)}")
            continue
        if decided is None:
            say("the labelling's settings leave no negative beside that passage: choose another, or drop the record")
            continue
        with engine.begin() as connection:
            save_review(connection, run, label_version, case.doubtful.query_id, *decided)
        return True
