"""A record in doubt with all that a person needs to decide about it, and what becomes of it by the decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from services.relabeler.fuse import Fused, fuse
from services.relabeler.select import record_of
from shared.records import FRetRecord, LabelPolicy, Passage
from shared.reviews import Decision, Doubtful
from shared.runs import Run
from shared.store import StoredQuery, load_passages, load_queries

Decided = tuple[Decision, tuple[FRetRecord, bool] | None]  # what `save_review` takes


@dataclass(frozen=True, slots=True)
class Case:
    """`fused` are the candidates, best first: a candidate's number is its place in it, from 1."""

    doubtful: Doubtful
    stored: StoredQuery
    fused: Sequence[Fused]
    passages: dict[UUID, Passage]
    policy: LabelPolicy

    @property
    def seed_number(self) -> int:
        return self.number(self.stored.query.seed_passage_id)

    def number(self, passage_id: UUID) -> int:
        return next(at for at, candidate in enumerate(self.fused, start=1) if candidate.passage_id == passage_id)

    def choose(self, number: int) -> Decided | None:
        """The decision that makes this candidate the positive; None where the policy leaves no negative beside it."""
        chosen = self.fused[number - 1].passage_id
        if chosen == self.doubtful.positive_id:
            return "accepted", None
        texts = {passage_id: passage.text for passage_id, passage in self.passages.items()}
        record = record_of(self.stored, self.fused, chosen, texts, self.policy)
        return None if record is None else ("swapped", (record, chosen != self.stored.query.seed_passage_id))

    def plain(self) -> dict[str, Any]:
        """For --json."""
        ql = dict(zip(self.stored.candidate_ids, self.stored.ql_scores, strict=True))
        rc = dict(zip(self.stored.candidate_ids, self.stored.rc_scores, strict=True))
        return {
            "query_id": str(self.doubtful.query_id),
            "task_description": self.stored.query.task_description,
            "query_text": self.stored.query.query_text,
            "doubt": self.doubtful.doubt,
            "why": self.doubtful.why,
            "seed_passage_id": str(self.stored.query.seed_passage_id),
            "positive_id": str(self.doubtful.positive_id),
            "decision": self.doubtful.decision,
            "chosen_id": str(self.doubtful.chosen_id) if self.doubtful.chosen_id else None,
            "candidates": [
                {
                    "passage_id": str(each.passage_id),
                    "source_id": self.passages[each.passage_id].source_id,
                    "title": self.passages[each.passage_id].title,
                    "text": self.passages[each.passage_id].text,
                    "ql_score": ql[each.passage_id],
                    "rc_score": rc[each.passage_id],
                    "ql_rank": each.ql_rank,
                    "rc_rank": each.rc_rank,
                    "fused_score": each.fused_score,
                }
                for each in self.fused
            ],
        }


def load_cases(connection: Connection, run: Run, policy: LabelPolicy, found: Sequence[Doubtful]) -> list[Case]:
    """The cases in the order of `found`."""
    stored = load_queries(connection, run, [doubtful.query_id for doubtful in found])
    wanted = {passage_id for query in stored for passage_id in query.candidate_ids}
    passages = load_passages(connection, run.corpus_id, wanted) if wanted else {}
    return [
        Case(
            doubtful,
            query,
            fuse(query.candidate_ids, query.ql_scores, query.rc_scores, policy.fusion),
            {passage_id: passages[passage_id] for passage_id in query.candidate_ids},
            policy,
        )
        for doubtful, query in zip(found, stored, strict=True)
    ]
