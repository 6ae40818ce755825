"""From fused candidates to an FRet record: which one is the positive, and which are the hard negatives.

Pure: a change of policy reads stored scores and makes a new label version, without the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID, uuid5

from services.relabeler.fuse import Fused
from shared.masking import copied_span
from shared.records import Dropped, FRetRecord, LabelPolicy
from shared.store import StoredQuery

# Reason codes.
TOO_FEW_CANDIDATES = "too_few_candidates"  # there is no other passage that could be the negative
SEED_NOT_A_CANDIDATE = "seed_not_a_candidate"  # its passage is gone, so nothing can be said about the seed
BELOW_MIN_RELEVANCE = "below_min_relevance"  # the judge's rc_score of the positive is below the policy's
SEED_NOT_RETRIEVED = "seed_not_retrieved"  # the seed is not among the policy's first by cosine (round_trip)
SEED_NOT_PREFERRED = "seed_not_preferred"  # nor among the judge's (round_trip_judge)
UNLIKELY_QUERY = "unlikely_query"  # its log-likelihood over its tokens is below the policy's (min_token_log_prob)
TOKENS_UNKNOWN = "query_tokens_unknown"  # min_token_log_prob is set, and the query was judged before they were counted
NO_NEGATIVE_LEFT = "no_negative_left"  # the policy's range, margin and max_score leave out every candidate


def select(
    stored: StoredQuery, fused: Sequence[Fused], texts: Mapping[UUID, str], policy: LabelPolicy
) -> FRetRecord | Dropped:
    """The record of one query, from its candidates best first (`fuse`) and their texts by passage id.

    `stored` brings the candidates' cosines and rc_scores. Raises KeyError when `texts` lacks a chosen passage, and
    ValueError for a policy that leaves the positive open: a run's own (`RunConfig.policy`) does not.
    """
    query = stored.query
    if policy.positive is None:
        raise ValueError("the label policy does not say which candidate is the positive: RunConfig.policy fills it in")
    if len(fused) < 2:
        return Dropped(query.query_id, TOO_FEW_CANDIDATES, f"{len(fused)} candidates")
    seed = next((candidate for candidate in fused if candidate.passage_id == query.seed_passage_id), None)
    if seed is None:
        return Dropped(query.query_id, SEED_NOT_A_CANDIDATE)
    if distrusted := _distrust(stored, fused, policy):
        return distrusted
    positive = fused[0] if policy.positive == "p_1" else seed
    relevance = dict(zip(stored.candidate_ids, stored.rc_scores, strict=True))[positive.passage_id]
    if policy.min_relevance is not None and relevance < policy.min_relevance:
        return Dropped(query.query_id, BELOW_MIN_RELEVANCE, f"rc_score {relevance:.4g}")
    record = record_of(stored, fused, positive.passage_id, texts, policy)
    return record or Dropped(query.query_id, NO_NEGATIVE_LEFT)


def _distrust(stored: StoredQuery, fused: Sequence[Fused], policy: LabelPolicy) -> Dropped | None:
    """Why the policy does not trust the query to be its seed's; None where it does.

    Round trip: Promptagator (arXiv 2209.11755), with a retriever and k = 1. Likelihood by token: InPars (arXiv
    2202.05144), with the writer's own.
    """
    query, seed = stored.query, stored.query.seed_passage_id
    if policy.round_trip is not None:
        by_cosine = sorted(zip(stored.candidate_scores, stored.candidate_ids, strict=True), key=lambda p: (-p[0], p[1]))
        rank = next(rank for rank, (_, id_) in enumerate(by_cosine, start=1) if id_ == seed)
        if rank > policy.round_trip:
            return Dropped(query.query_id, SEED_NOT_RETRIEVED, f"rank {rank}")
    if policy.round_trip_judge is not None:
        rank = next(rank for rank, each in enumerate(fused, start=1) if each.passage_id == seed)
        if rank > policy.round_trip_judge:
            return Dropped(query.query_id, SEED_NOT_PREFERRED, f"rank {rank}")
    if policy.min_token_log_prob is not None:
        if not stored.query_tokens:
            return Dropped(query.query_id, TOKENS_UNKNOWN)
        of_seed = dict(zip(stored.candidate_ids, stored.ql_scores, strict=True))[seed] / stored.query_tokens
        if of_seed < policy.min_token_log_prob:
            return Dropped(query.query_id, UNLIKELY_QUERY, f"{of_seed:.4g} a token")
    return None


def record_of(
    stored: StoredQuery, fused: Sequence[Fused], positive_id: UUID, texts: Mapping[UUID, str], policy: LabelPolicy
) -> FRetRecord | None:
    """The record with this candidate as the positive; None where the policy leaves no negative beside it.

    Raises StopIteration where it or the seed is no candidate.
    """
    query = stored.query
    seed = next(candidate for candidate in fused if candidate.passage_id == query.seed_passage_id)
    positive = next(candidate for candidate in fused if candidate.passage_id == positive_id)
    cosines = dict(zip(stored.candidate_ids, stored.candidate_scores, strict=True))
    negative_ids = select_negatives(
        query.query_id, positive_id, [candidate.passage_id for candidate in fused], cosines, policy
    )
    if not negative_ids:
        return None
    return FRetRecord(
        query_id=query.query_id,
        positive_id=positive_id,
        negative_ids=negative_ids,
        positive_ql_rank=positive.ql_rank,
        positive_rc_rank=positive.rc_rank,
        positive_fused_score=positive.fused_score,
        seed_fused_score=seed.fused_score,
        runner_up_fused_score=max(each.fused_score for each in fused if each is not positive),
        positive_span=copied_span(query.query_text, texts[positive_id]),
        negative_spans=tuple(copied_span(query.query_text, texts[id_]) for id_ in negative_ids),
    )


def select_negatives(
    query_id: UUID, positive_id: UUID, best_first: Sequence[UUID], cosines: Mapping[UUID, float], policy: LabelPolicy
) -> tuple[UUID, ...]:
    """Up to `policy.num_negatives` candidates that are not the positive; fewer, or none, where too few are eligible.

    Eligible are those within the range of the order `best_first`, positive left out, whose cosine is below `max_score`
    and below (1 - relative_margin) times the positive's (NV-Retriever, arXiv 2407.15831: TopK-PercPos). Where the
    positive's cosine is negative, the margin is taken off it all the same: the limit is always below the positive's.

    `lowest` takes the last ones, the very last first. `sampled` takes the first by a hash of query and passage: at
    random, and whether one comes before another depends on these two and the query alone.
    """
    others = [id_ for id_ in best_first if id_ != positive_id]
    limit = cosines[positive_id] - (policy.relative_margin or 0.0) * abs(cosines[positive_id])
    eligible = [
        id_
        for id_ in others[policy.range_min : policy.range_max]
        if (policy.relative_margin is None or cosines[id_] < limit)
        and (policy.max_score is None or cosines[id_] < policy.max_score)
    ]
    if policy.negative == "sampled":
        order = sorted(eligible, key=lambda id_: uuid5(query_id, str(id_)))
    else:
        order = eligible[::-1]
    return tuple(order[: policy.num_negatives])
