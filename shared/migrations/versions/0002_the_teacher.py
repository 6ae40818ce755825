"""the LLM teacher: endpoints and their caps, token usage, a run's budget

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("open_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column("requests_tat", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tokens_tat", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("base_url", name=op.f("endpoints_pkey")),
    )
    op.create_table(
        "llm_usage",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("llm_usage_run_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "stage", "model", name=op.f("llm_usage_pkey")),
    )
    op.add_column("runs", sa.Column("max_tokens", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("paused_reason", sa.Text(), nullable=True))
    op.drop_constraint(op.f("runs_state_check"), "runs", type_="check")
    op.create_check_constraint(op.f("runs_state_check"), "runs", "state in ('running', 'paused', 'done')")
    op.add_column("shards", sa.Column("setbacks", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("shards", "setbacks")
    op.execute("UPDATE runs SET state = 'running' WHERE state = 'paused'")
    op.drop_constraint(op.f("runs_state_check"), "runs", type_="check")
    op.create_check_constraint(op.f("runs_state_check"), "runs", "state in ('running', 'done')")
    op.drop_column("runs", "paused_reason")
    op.drop_column("runs", "deadline_at")
    op.drop_column("runs", "max_tokens")
    op.drop_table("llm_usage")
    op.drop_table("endpoints")
