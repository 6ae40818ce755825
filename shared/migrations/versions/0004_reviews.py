"""reviews, and the runner-up's score by which people find what to look at; corpora that lose passages

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("passages", sa.Column("removed_version", sa.Integer()))
    op.drop_constraint(op.f("passages_corpus_id_source_id_key"), "passages", type_="unique")
    op.create_index(
        "passages_source_id",
        "passages",
        ["corpus_id", "source_id"],
        unique=True,
        postgresql_where=sa.text("removed_version IS NULL"),
    )
    op.add_column("fret_records", sa.Column("runner_up_fused_score", sa.Double()))
    op.add_column("training_runs", sa.Column("reviews_until", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "reviews",
        sa.Column("review_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("query_id", sa.Uuid(), nullable=False),
        sa.Column("label_version", sa.Integer(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=False),
        sa.Column("positive_id", sa.Uuid()),
        sa.Column("negative_ids", postgresql.ARRAY(sa.Uuid())),
        sa.Column("positive_ql_rank", sa.Integer()),
        sa.Column("positive_rc_rank", sa.Integer()),
        sa.Column("positive_fused_score", sa.Double()),
        sa.Column("positive_changed", sa.Boolean()),
        sa.Column("positive_span", postgresql.ARRAY(sa.Integer())),
        sa.Column("negative_spans", postgresql.JSONB()),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("decision in ('accepted', 'swapped', 'dropped')", name=op.f("reviews_decision_check")),
        sa.ForeignKeyConstraint(
            ["run_id", "query_id", "label_version"],
            ["fret_records.run_id", "fret_records.query_id", "fret_records.label_version"],
            name=op.f("reviews_run_id_query_id_label_version_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("review_id", name=op.f("reviews_pkey")),
    )
    op.create_index("reviews_of_records", "reviews", ["run_id", "label_version", "query_id", "review_id"])


def downgrade() -> None:
    # the version before knows nothing of removed passages: they come back, under a name that none has
    op.execute(
        "UPDATE passages SET source_id = source_id || ' removed ' || passage_id WHERE removed_version IS NOT NULL"
    )
    op.drop_index("passages_source_id", "passages")
    op.create_unique_constraint(op.f("passages_corpus_id_source_id_key"), "passages", ["corpus_id", "source_id"])
    op.drop_column("passages", "removed_version")
    op.drop_table("reviews")
    op.drop_column("training_runs", "reviews_until")
    op.drop_column("fret_records", "runner_up_fused_score")
