"""Moves a shard from state to state: the only code that does. The states stand in `schema.SHARD_STATES`.

A claim raises `claim_seq`, which only ever grows (but for a crash of the server, see `claim`). Renewing and finishing
require the same `claim_seq`, so a worker whose lease ran out cannot write over its successor's work. Every function
takes a connection and leaves the commit to its caller; nothing here knows Celery.

No shard of a paused or cancelled run is claimed or rung for, while those that a worker holds may still be finished:
what was paid for is kept.
"""

from shared.ledger.failing import (
    HOPELESS,
    MAX_FAILURES,
    MAX_LOSSES_ALONE,
    MAX_SETBACKS,
    fail,
    forget_losses,
    reap,
    release,
)
from shared.ledger.index import reopen_index, retrieved, unindexed
from shared.ledger.opening import cancel_trainings, finish_runs, open_barriers, retry, to_ring
from shared.ledger.shards import MAX_LOSSES, Claim, add_shards, claim, finish, renew, shard_id

__all__ = [
    "HOPELESS",
    "MAX_FAILURES",
    "MAX_LOSSES",
    "MAX_LOSSES_ALONE",
    "MAX_SETBACKS",
    "Claim",
    "add_shards",
    "cancel_trainings",
    "claim",
    "fail",
    "finish",
    "finish_runs",
    "forget_losses",
    "open_barriers",
    "reap",
    "release",
    "renew",
    "reopen_index",
    "retrieved",
    "retry",
    "shard_id",
    "to_ring",
    "unindexed",
]
