"""Label versions: from a run's stored scores, records under another policy, at the cost of no teacher call.

A version takes every query that has its scores when it is made. Queries that get them later, because their dead shard
was put back to work, are labelled in every version as soon as they have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, text

from shared.errors import NotDoneError, NotFoundError, SettingError, first_problem
from shared.ledger import Claim
from shared.records import LabelPolicy
from shared.runs import Run
from shared.schema import label_versions, runs


def find_policies(connection: Connection, run: Run) -> dict[int, LabelPolicy]:
    """The policies of all of the run's label versions, by version."""
    rows = connection.execute(
        select(label_versions.c.label_version, label_versions.c.policy)
        .where(label_versions.c.run_id == run.run_id)
        .order_by(label_versions.c.label_version)
    )
    return {row.label_version: LabelPolicy(**row.policy) for row in rows}


def find_policy(connection: Connection, run: Run, label_version: int) -> LabelPolicy:
    """The policy of one of the run's label versions. Raises NotFoundError."""
    policies = find_policies(connection, run)
    if label_version not in policies:
        there = ", ".join(map(str, policies))
        raise NotFoundError(f"run {run.name} has no label version {label_version}, only {there}")
    return policies[label_version]


def add_label_version(connection: Connection, run: Run, policy: LabelPolicy) -> int:
    """Labels the run's stored scores anew under another policy.

    What the policy leaves open is as it would be at the run's start. Returns the version that has this policy: an
    existing one where the run was labelled so before. Raises SettingError where the run's candidates cannot fill it or
    it asks for what was not kept, NotDoneError where the run is not done.
    """
    try:
        policy = run.config.policy(policy)
    except ValidationError as error:
        raise SettingError(f"run {run.name} cannot be labelled so: {first_problem(error)[1]}") from None
    state = connection.execute(select(runs.c.state).where(runs.c.run_id == run.run_id).with_for_update()).scalar_one()
    policies = find_policies(connection, run)
    for version, stored in policies.items():
        if stored == policy:
            return version
    if state != "done":
        raise NotDoneError(f"run {run.name} is {state}: only a run that is done can be labelled anew")
    if policy.min_token_log_prob is not None:
        _check_tokens(connection, run)
    version = max(policies) + 1
    row = {"run_id": run.run_id, "label_version": version, "policy": policy.model_dump(mode="json")}
    connection.execute(insert(label_versions).values(row))
    _label(connection, run, version, run.run_id)
    connection.execute(
        text("UPDATE runs SET state = 'running', finished_at = NULL WHERE run_id = :run_id"), {"run_id": run.run_id}
    )
    return version


def _check_tokens(connection: Connection, run: Run) -> None:
    """Raises SettingError where no query's tokens were counted: the version would be one of drops alone.

    Where some were, as in a run that follows such a one, the others are dropped and counted (`relabeler/select.py`).
    """
    counted = connection.execute(
        text(
            "SELECT bool_or(judge ->> 'query_tokens' IS NOT NULL) FROM queries "
            "WHERE run_id = :run_id AND ql_scores IS NOT NULL"
        ),
        {"run_id": run.run_id},
    ).scalar_one()
    if counted is False:  # None where nothing was judged
        raise SettingError(
            f"run {run.name} cannot be labelled so: it was judged before a query's tokens were counted, which "
            "min_token_log_prob divides by. Leave it out, or have all judged anew by `fretwork run start` without "
            "--follow"
        )


def label_latecomers(connection: Connection, run: Run, judged: Claim) -> None:
    """Hands a shard's queries on to the versions that were made before they had their scores. Call it when it ends.

    Where there are none, as in every run that is not done for the first time, it does nothing.
    """
    if judged.label_version != 1:
        return
    for version in find_policies(connection, run):
        if version != 1:
            _label(connection, run, version, judged.shard_id, judged.item_ids)


def _label(
    connection: Connection, run: Run, version: int, parent: UUID, query_ids: Sequence[UUID] | None = None
) -> None:
    """Shards over the queries that have scores, of all or of these; the others end as they do in the first version."""
    values = {
        "run_id": run.run_id,
        "version": version,
        "parent": str(parent),
        "shard_size": run.config.shard_size,
        "ids": None if query_ids is None else list(query_ids),
    }
    connection.execute(
        text(
            """
            INSERT INTO shards (shard_id, run_id, stage, label_version, state, item_ids, item_count)
            SELECT CAST(md5(:parent || '/labels/' || :version || '/' || number) AS uuid), :run_id,
                   'relabel', :version, 'ready', array_agg(query_id ORDER BY query_id), count(*)
            FROM (
                SELECT query_id, (row_number() OVER (ORDER BY query_id) - 1) / :shard_size AS number
                FROM queries WHERE run_id = :run_id AND ql_scores IS NOT NULL
                  AND (CAST(:ids AS uuid[]) IS NULL OR query_id = ANY (CAST(:ids AS uuid[])))
            ) AS numbered
            GROUP BY number
            """
        ),
        values,
    )
    connection.execute(
        text(
            """
            INSERT INTO drops (run_id, stage, label_version, item_id, reason, detail)
            SELECT drops.run_id, stage, :version, item_id, reason, detail
            FROM drops JOIN queries ON queries.run_id = drops.run_id AND query_id = item_id
            WHERE drops.run_id = :run_id AND stage = 'relabel' AND label_version = 1 AND ql_scores IS NULL
              AND (CAST(:ids AS uuid[]) IS NULL OR item_id = ANY (CAST(:ids AS uuid[])))
            """
        ),
        values,
    )
