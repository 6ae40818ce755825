"""From fused candidates to an FRet record: which one is the positive, and which the hard negative.

Pure: a change of policy reads stored scores and makes a new label version, without the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from services.relabeler.fuse import Fused
from shared.masking import verbatim_span
from shared.records import Dropped, FRetRecord, LabelPolicy, TaskQuery

# Reason codes.
TOO_FEW_CANDIDATES = "too_few_candidates"  # no passage is left to be the negative
SEED_NOT_A_CANDIDATE = "seed_not_a_candidate"  # its passage is gone, so nothing can be said about the seed


def select(
    query: TaskQuery, fused: Sequence[Fused], texts: Mapping[UUID, str], policy: LabelPolicy
) -> FRetRecord | Dropped:
    """The record of one query, from its candidates best first (`fuse`) and their texts by passage id.

    The negative is the last candidate that is not the positive. Raises KeyError when `texts` lacks a chosen passage.
    """
    if len(fused) < 2:
        return Dropped(query.query_id, TOO_FEW_CANDIDATES, f"{len(fused)} candidates")
    seed = next((candidate for candidate in fused if candidate.passage_id == query.seed_passage_id), None)
    if seed is None:
        return Dropped(query.query_id, SEED_NOT_A_CANDIDATE)
    positive = fused[0] if policy.positive == "p_1" else seed
    negative = fused[-1] if fused[-1] != positive else fused[-2]
    return FRetRecord(
        query_id=query.query_id,
        positive_id=positive.passage_id,
        negative_ids=(negative.passage_id,),
        positive_ql_rank=positive.ql_rank,
        positive_rc_rank=positive.rc_rank,
        positive_fused_score=positive.fused_score,
        seed_fused_score=seed.fused_score,
        positive_span=verbatim_span(query.query_text, texts[positive.passage_id]),
        negative_spans=(verbatim_span(query.query_text, texts[negative.passage_id]),),
    )
