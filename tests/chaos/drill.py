"""Carries out what a seed plans, on a run that goes on, and looks at the ledger all the while."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from shared.progress import conservation
from shared.runs import Run
from tests.chaos.driver import Event
from tests.chaos.harm import BEGUN, WAITING, Harm, World, harm

TIMEOUT_S = 300.0
LOOK_EVERY_S = 0.05


@dataclass
class Seen:
    """What was done, what went wrong, and how long the slowest of a killed process's shards was with nobody."""

    did: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recovery_s: float = 0.0
    looks: int = 0


def carry_out(world: World, run: Run, events: Sequence[Event], seed: int) -> Seen:
    """Returns when the run is done and what was begun is over. Raises TimeoutError where that takes TIMEOUT_S."""
    seen = Seen(world.did, world.wrong)
    for kept in (world.did, world.wrong, world.lost):
        kept.clear()
    coming = [(event.at_s, harm(world, run, event, seed)) for event in events]
    going: dict[Harm, bool] = {}
    started = time.monotonic()
    try:
        while True:
            past_s = time.monotonic() - started
            going |= {each: WAITING for at_s, each in coming if at_s <= past_s}
            coming = [(at_s, each) for at_s, each in coming if at_s > past_s]
            going = {each: state for each in going if (state := next(each, None)) is not None}
            world.keep_extras()
            is_over = _look(world, run, seen)
            if is_over and BEGUN not in going.values():
                return Seen(list(seen.did), list(seen.wrong), seen.recovery_s, seen.looks)
            if past_s > TIMEOUT_S:
                raise TimeoutError(f"seed {seed}: not done after {TIMEOUT_S:.0f} s; did {seen.did}")
            time.sleep(LOOK_EVERY_S)
    finally:
        for each in going:
            each.close()


def _look(world: World, run: Run, seen: Seen) -> bool:
    """Whether the run is done; PostgreSQL may be away."""
    now = time.monotonic()
    try:
        with world.stack.engine.connect() as connection:
            sums = conservation(connection, run.run_id)
            state = connection.execute(text("SELECT state FROM runs WHERE run_id = :id"), {"id": run.run_id}).scalar()
            claims = connection.execute(text("SELECT shard_id, claim_seq FROM shards WHERE state = 'claimed'")).all()
    except OperationalError:
        return False
    seen.looks += 1
    if not sums.holds:
        world.wrong.append(f"the counts do not add up: {sums}")
    for lost in world.lost.keys() - {(row.shard_id, row.claim_seq) for row in claims}:
        seen.recovery_s = max(seen.recovery_s, now - world.lost.pop(lost))
    return state == "done" and not world.lost
