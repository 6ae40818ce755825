"""counts kept by triggers, throughput, the workers' heartbeats, cancelled runs, the status API's token

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

# Statement triggers: whoever moves a shard, by whatever statement, its stage's counts follow in the same transaction.
# They only append, so no worker waits for another; the dispatcher sums up (shared/counts.py).
_COUNT_SHARDS = """
CREATE FUNCTION count_shards() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
    SELECT run_id, stage, label_version, state, sum(item_count) FROM new_rows
    WHERE run_id IS NOT NULL GROUP BY 1, 2, 3, 4;
  ELSIF TG_OP = 'UPDATE' THEN
    INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
    SELECT run_id, stage, label_version, state, sum(item_count) FROM (
      SELECT run_id, stage, label_version, state, item_count FROM new_rows
      UNION ALL SELECT run_id, stage, label_version, state, -item_count FROM old_rows
    ) AS moved WHERE run_id IS NOT NULL GROUP BY 1, 2, 3, 4 HAVING sum(item_count) <> 0;
  ELSE
    INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
    SELECT run_id, stage, label_version, state, -sum(item_count) FROM old_rows
    WHERE EXISTS (SELECT FROM runs WHERE runs.run_id = old_rows.run_id) GROUP BY 1, 2, 3, 4;
  END IF;
  RETURN NULL;
END $$
"""
_COUNT_DROPS = """
CREATE FUNCTION count_drops() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
  SELECT run_id, stage, label_version, 'drop:' || reason, count(*) FROM new_rows GROUP BY 1, 2, 3, 4;
  RETURN NULL;
END $$
"""
# All queries of a passage come by one statement (Output.store of the generator), so its seeds are distinct in it.
_COUNT_QUERIES = """
CREATE FUNCTION count_queries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
  SELECT run_id, 'generate', 1, 'queries', count(*) FROM new_rows GROUP BY run_id
  UNION ALL
  SELECT run_id, 'generate', 1, 'seeds', count(DISTINCT seed_passage_id) FROM new_rows GROUP BY run_id;
  RETURN NULL;
END $$
"""
_COUNT_RECORDS = """
CREATE FUNCTION count_records() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO count_deltas (run_id, stage, label_version, what, amount)
  SELECT run_id, 'relabel', label_version, 'records', count(*) FROM new_rows GROUP BY 1, 3
  UNION ALL
  SELECT run_id, 'relabel', label_version, 'moved', count(*) FROM new_rows WHERE positive_changed GROUP BY 1, 3;
  RETURN NULL;
END $$
"""
_TRIGGERS = {
    "shards_inserted": ("INSERT ON shards REFERENCING NEW TABLE AS new_rows", "count_shards"),
    "shards_updated": ("UPDATE ON shards REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows", "count_shards"),
    "shards_deleted": ("DELETE ON shards REFERENCING OLD TABLE AS old_rows", "count_shards"),
    "drops_inserted": ("INSERT ON drops REFERENCING NEW TABLE AS new_rows", "count_drops"),
    "queries_inserted": ("INSERT ON queries REFERENCING NEW TABLE AS new_rows", "count_queries"),
    "records_inserted": ("INSERT ON fret_records REFERENCING NEW TABLE AS new_rows", "count_records"),
}
_COUNT_WHAT_IS_THERE = """
INSERT INTO counts (run_id, stage, label_version, what, amount)
SELECT run_id, stage, label_version, state, sum(item_count) FROM shards WHERE run_id IS NOT NULL GROUP BY 1, 2, 3, 4
UNION ALL
SELECT run_id, stage, label_version, 'drop:' || reason, count(*) FROM drops GROUP BY 1, 2, 3, 4
UNION ALL
SELECT run_id, 'generate', 1, 'queries', count(*) FROM queries GROUP BY 1
UNION ALL
SELECT run_id, 'generate', 1, 'seeds', count(DISTINCT seed_passage_id) FROM queries GROUP BY 1
UNION ALL
SELECT run_id, 'relabel', label_version, 'records', count(*) FROM fret_records GROUP BY 1, 3
UNION ALL
SELECT run_id, 'relabel', label_version, 'moved', count(*) FROM fret_records WHERE positive_changed GROUP BY 1, 3
"""


def upgrade() -> None:
    op.create_table(
        "counts",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("counts_run_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "stage", "label_version", "what", name=op.f("counts_pkey")),
    )
    op.create_table(
        "count_deltas",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("count_deltas_run_id_fkey"), ondelete="CASCADE"),
    )
    # emptied every second: vacuum by the row, not by a share of a table that has next to none
    op.execute("ALTER TABLE count_deltas SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)")
    op.create_table(
        "run_stages",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("run_stages_run_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "stage", name=op.f("run_stages_pkey")),
    )
    op.create_table(
        "throughput",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("items", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("throughput_run_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "stage", "at", name=op.f("throughput_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("shards", sa.Integer(), nullable=False),
        sa.Column("llm", postgresql.JSONB(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker", name=op.f("workers_pkey")),
    )
    op.create_table(
        "status_token",
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("status_token_pkey")),
    )
    op.create_table(
        "training_curve",
        sa.Column("training_run_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["training_run_id"],
            ["training_runs.training_run_id"],
            name=op.f("training_curve_training_run_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("training_run_id", "step", name=op.f("training_curve_pkey")),
    )
    op.create_index("shards_dead", "shards", ["run_id", "shard_id"], postgresql_where=sa.text("state = 'dead'"))
    op.create_index(
        "fret_records_moved",
        "fret_records",
        ["run_id", "label_version", "query_id"],
        postgresql_where=sa.text("positive_changed"),
    )
    op.drop_constraint(op.f("runs_state_check"), "runs", type_="check")
    op.create_check_constraint(op.f("runs_state_check"), "runs", "state in ('running', 'paused', 'cancelled', 'done')")
    for function in (_COUNT_SHARDS, _COUNT_DROPS, _COUNT_QUERIES, _COUNT_RECORDS):
        op.execute(function)
    for name, (event, function) in _TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} AFTER {event} FOR EACH STATEMENT EXECUTE FUNCTION {function}()")
    op.execute(_COUNT_WHAT_IS_THERE)


def downgrade() -> None:
    for name, (event, _) in _TRIGGERS.items():
        op.execute(f"DROP TRIGGER {name} ON {event.split()[2]}")
    for function in ("count_shards", "count_drops", "count_queries", "count_records"):
        op.execute(f"DROP FUNCTION {function}()")
    op.execute("UPDATE runs SET state = 'paused' WHERE state = 'cancelled'")
    op.drop_constraint(op.f("runs_state_check"), "runs", type_="check")
    op.create_check_constraint(op.f("runs_state_check"), "runs", "state in ('running', 'paused', 'done')")
    op.drop_index("fret_records_moved", "fret_records")
    op.drop_index("shards_dead", "shards")
    for table in ("training_curve", "status_token", "workers", "throughput", "run_stages", "count_deltas", "counts"):
        op.drop_table(table)
