"""Gecko's contrastive loss: eq. 3 of Lee et al. 2024 (arXiv 2403.20327), with Matryoshka dimensions.

    L_i = −log e^{s(q_i,p_i⁺)/τ} / ( Σ_j [ e^{s(q_i,p_j⁺)/τ} + 1[j≠i] e^{s(q_i,q_j)/τ} ] + Σ_k e^{s(q_i,p_ik⁻)/τ} )

s is the cosine, τ the temperature, p_ik⁻ the query's *own* hard negatives (the paper has one). The paper masks nothing;
here an in-batch j is left out where q_j = q_i or p_j⁺ = p_i⁺, as in Gemini Embedding (arXiv 2503.07891), or where one's
query is the other's positive, as among sentences of similarity data: such a j is no negative. Matryoshka (MRL): the
weighted sum of the same loss over the first d coordinates, normalised again.

What successors added, each off unless asked for (docs/training.md):
    soft mask    a negative with s > s(q_i,p_i⁺) + margin is left out: likely a false one (Qwen3-Embedding, 2506.05176)
    hardness     an own negative's term is multiplied by e^{α·sg(s)}, sg: no gradient (EmbeddingGemma, 2509.20354)
    spread-out   λ × the mean s² of two different queries, and of two different positives (GOR, 1708.06320)

Why not sentence-transformers (6.2): its MultipleNegativesRankingLoss, with directions query_to_doc and query_to_query,
comes near, but it scores every query against all hard negatives of the batch, not its own alone, and it takes no ids,
so it cannot leave out duplicates. No encoder here: embeddings in, a scalar out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere


def gecko_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    negative_owners: Tensor,
    query_ids: Tensor,
    positive_ids: Tensor,
    positive_texts: Tensor,
    *,
    temperature: float | Tensor,
    weight_by_dim: Mapping[int, float],
    in_batch_negatives: bool = True,
    same_tower_negatives: bool = True,
    soft_mask_margin: float | None = None,
    hardness: float = 0.0,
    spread_out: float = 0.0,
    left_out: Tensor | None = None,
    rows: slice = slice(None),
) -> Tensor:
    """The batch's mean loss in nats, summed over the dimensions: a scalar. The shares of all `rows` add up to it.

    Args:
        queries: (B, D), of any length: they are normalised here.
        positives: (B, D).
        negatives: (M, D), the hard negatives of all queries, in any order; M may be 0.
        negative_owners: (M,), the row in `queries` that each hard negative belongs to.
        query_ids: (B,) integers; equal means the same query.
        positive_ids: (B,) integers; equal means the same passage, or another with the same label.
        positive_texts: (B,) integers in the numbering of `query_ids`: equal to one of those means the same text.
        temperature: τ > 0.
        weight_by_dim: the weight of each Matryoshka dimension, each at most D.
        in_batch_negatives: whether the other positives of the batch stand in the denominator.
        same_tower_negatives: whether its other queries do.
        soft_mask_margin: negatives nearer than the positive by more than this cosine are left out; None: none is.
        hardness: α of the own negatives' weight.
        spread_out: λ of the spread-out regulariser.
        left_out: (B, B) booleans, the in-batch positives that are no negatives of a query for another reason.
        rows: the queries whose share is wanted: (R, B) scores are held at a time, and not (B, B).
    """
    every = torch.arange(len(queries), device=queries.device)
    mine = every[rows]  # (R,)
    itself = mine[:, None] == every  # (R, B)
    # j is i itself, or no negative for i
    same = itself | (query_ids[rows, None] == query_ids) | (positive_ids[rows, None] == positive_ids)
    same |= (query_ids[rows, None] == positive_texts) | (positive_texts[rows, None] == query_ids)
    of_others = same if in_batch_negatives else torch.ones_like(same)
    if left_out is not None:
        of_others = of_others | left_out[rows]
    own = negative_owners == mine[:, None]  # (R, M)
    total = queries.new_zeros(())
    for dim, weight in weight_by_dim.items():
        q, p, n = (F.normalize(embeddings[:, :dim], dim=-1) for embeddings in (queries, positives, negatives))
        asked = q[rows]
        of_positives, of_own = asked @ p.T, asked @ n.T  # (R, B), (R, M)
        too_near = torch.inf if soft_mask_margin is None else of_positives[itself][:, None] + soft_mask_margin
        scores = [
            (of_positives / temperature).masked_fill(~itself & (of_others | (of_positives > too_near)), -torch.inf),
            (of_own / temperature + hardness * of_own.detach()).masked_fill(~own | (of_own > too_near), -torch.inf),
        ]
        if same_tower_negatives:
            of_queries = asked @ q.T  # (R, B)
            scores.append((of_queries / temperature).masked_fill(same | (of_queries > too_near), -torch.inf))
        # the first B columns are the positives, so row i's target is i; -inf is an exact 0 in sum and gradient
        share = F.cross_entropy(torch.cat(scores, dim=1), mine, reduction="sum") / len(every)
        if spread_out:
            pairs = len(every) * max(len(every) - 1, 1)
            for cosines in (asked @ q.T, p[rows] @ p.T):
                share = share + spread_out * cosines.masked_fill(same, 0.0).square().sum() / pairs
        total = total + weight * share
    return total
