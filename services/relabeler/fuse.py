"""Reciprocal rank fusion of the two scores as Gecko has it: R = 1/r_QL + 1/r_RC, without the usual k of 60.

Lee et al. 2024, arXiv 2403.20327, section 3.2. One rank alone, which that paper compares with, is R = 1/r of it. Pure;
the teacher is not asked again to fuse again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal
from uuid import UUID

Fusion = Literal["rrf", "ql", "rc"]


@dataclass(frozen=True, slots=True)
class Fused:
    """A candidate's ranks, from 1, and their fusion, in (0, 2]."""

    passage_id: UUID
    ql_rank: int
    rc_rank: int
    fused_score: float


def fuse(
    passage_ids: Sequence[UUID], ql_scores: Sequence[float], rc_scores: Sequence[float], fusion: Fusion = "rrf"
) -> list[Fused]:
    """The candidates of one query, best first, whatever order they came in.

    Equal scores are ranked by passage id. Equal fusions, as of ranks (1, 2) and (2, 1), are ordered by QL rank, which
    is this project's choice: the paper names none. Raises ValueError when the three lengths differ or an id repeats.
    """
    if len(set(passage_ids)) != len(passage_ids):
        raise ValueError("a passage stands twice among the candidates")
    ql_ranks = _ranks(passage_ids, ql_scores)
    rc_ranks = _ranks(passage_ids, rc_scores)
    fused = [
        Fused(id_, ql_ranks[id_], rc_ranks[id_], _score(ql_ranks[id_], rc_ranks[id_], fusion)) for id_ in passage_ids
    ]
    return sorted(fused, key=lambda f: (-f.fused_score, f.ql_rank))


def _score(ql_rank: int, rc_rank: int, fusion: Fusion) -> float:
    if fusion == "rrf":
        # exact until the end: in floating point 1/3 + 1/15 is less than 1/5 + 1/5, which it equals
        return float(Fraction(1, ql_rank) + Fraction(1, rc_rank))
    return 1 / (ql_rank if fusion == "ql" else rc_rank)


def _ranks(passage_ids: Sequence[UUID], scores: Sequence[float]) -> dict[UUID, int]:
    best_first = sorted(zip(passage_ids, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return {id_: rank for rank, (id_, _) in enumerate(best_first, start=1)}
