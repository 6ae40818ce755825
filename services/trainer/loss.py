"""Gecko's contrastive loss: eq. 3 of Lee et al. 2024 (arXiv 2403.20327), with Matryoshka dimensions.

    L_i = −log e^{s(q_i,p_i⁺)/τ} / ( Σ_j [ e^{s(q_i,p_j⁺)/τ} + 1[j≠i] e^{s(q_i,q_j)/τ} ] + Σ_k e^{s(q_i,p_ik⁻)/τ} )

s is the cosine, τ the temperature, p_ik⁻ the query's *own* hard negatives (the paper has one). The paper masks nothing;
here an in-batch j is left out where q_j = q_i or p_j⁺ = p_i⁺, as in Gemini Embedding (arXiv 2503.07891), because such a
j is no negative. Matryoshka (MRL): the weighted sum of the same loss over the first d coordinates, normalised again.

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
    *,
    temperature: float,
    weight_by_dim: Mapping[int, float],
    same_tower_negatives: bool = True,
) -> Tensor:
    """The batch's mean loss in nats, summed over the dimensions: a scalar.

    Args:
        queries: (B, D), of any length: they are normalised here.
        positives: (B, D).
        negatives: (M, D), the hard negatives of all queries, in any order; M may be 0.
        negative_owners: (M,), the row in `queries` that each hard negative belongs to.
        query_ids: (B,) integers; equal means the same query.
        positive_ids: (B,) integers; equal means the same passage.
        temperature: τ > 0.
        weight_by_dim: the weight of each Matryoshka dimension, each at most D.
        same_tower_negatives: whether the other queries of the batch stand in the denominator.
    """
    rows = torch.arange(len(queries), device=queries.device)
    # (B, B): j is i itself, or no negative for i
    same = (query_ids[:, None] == query_ids) | (positive_ids[:, None] == positive_ids)
    own = negative_owners == rows[:, None]  # (B, M)
    total = queries.new_zeros(())
    for dim, weight in weight_by_dim.items():
        q, p, n = (F.normalize(embeddings[:, :dim], dim=-1) for embeddings in (queries, positives, negatives))
        scores = [
            (q @ p.T).masked_fill(same & (rows[:, None] != rows), -torch.inf),
            (q @ n.T).masked_fill(~own, -torch.inf),
        ]
        if same_tower_negatives:
            scores.append((q @ q.T).masked_fill(same, -torch.inf))
        # the first B columns are the positives, so row i's target is i; -inf is an exact 0 in sum and gradient
        total = total + weight * F.cross_entropy(torch.cat(scores, dim=1) / temperature, rows)
    return total
