"""Losses over a query's whole judged list: the student's cosines are drawn to the teacher's scores. No encoder here.

    kl          Σ_k t_k (log t_k − log s_k),  t = softmax(z / T),  s = softmax(c / τ),  over all passages of the batch
    margin-mse  the mean over all pairs (k, l) of a list of ((c_k − c_l) − m (z_k − z_l))²

z are the teacher's scores of the query's candidates, standardised (`shared/list_scores.py`), c the student's cosines, τ
its temperature, T the teacher's, m what one standard deviation is worth as a cosine. For KL a passage that is in the
batch and no candidate of the query has the z of its last one: no retriever brought it. Without those the divergence
says nothing of where a query stands among all else, and training moves it there (docs/decisions.md). Both are means
over the queries, and weighted sums over the Matryoshka dimensions. KL over a list: CADET (Tamber et al., arXiv
2505.19274); margins: Hofstätter et al., arXiv 2010.02666, there of one positive and one negative, here of every pair
of a list.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from services.trainer.config import ListLoss

COSINE_OF_A_DEVIATION = 0.05  # m: over 20 neighbours all-MiniLM-L6-v2's cosines spread about so far


def listwise_loss(
    queries: Tensor,
    passages: Tensor,
    members: Tensor,
    scores: Tensor,
    *,
    form: ListLoss,
    temperature: float | Tensor,
    teacher_temperature: float,
    weight_by_dim: Mapping[int, float],
    rows: slice = slice(None),
) -> Tensor:
    """The batch's mean loss, summed over the dimensions: a scalar. The shares of all `rows` add up to it.

    Args:
        queries: (B, D), of any length: they are normalised here.
        passages: (P, D), every passage of the batch once.
        members: (B, K) integers, the rows in `passages` of each query's list; -1 where a list is shorter. A query
            whose list has no two passages counts as a loss of 0.
        scores: (B, K), the teacher's, standardised; what stands beside a -1 is not read.
        form: `kl` or `margin-mse`.
        temperature: τ > 0, of the student.
        teacher_temperature: T > 0.
        weight_by_dim: the weight of each Matryoshka dimension, each at most D.
        rows: the queries whose share is wanted: (R, P) cosines are held at a time, and not (B, P).
    """
    mine, there = members[rows].clamp(min=0), members[rows] >= 0  # (R, K)
    wanted = scores[rows].to(queries.dtype)
    teacher = _over_all(wanted / teacher_temperature, mine, there, len(passages)) if form == "kl" else wanted
    is_list = (there.sum(dim=-1) > 1).to(queries.dtype)  # (R,)
    total = queries.new_zeros(())
    for dim, weight in weight_by_dim.items():
        asked, found = F.normalize(queries[rows, :dim], dim=-1), F.normalize(passages[:, :dim], dim=-1)
        cosines = asked @ found.T  # (R, P)
        if form == "kl":
            log_t, log_s = teacher.log_softmax(dim=-1), (cosines / temperature).log_softmax(dim=-1)
            of_rows = (log_t.exp() * (log_t - log_s)).sum(dim=-1)
        else:
            of_rows = _margin_error(cosines.gather(1, mine), COSINE_OF_A_DEVIATION * teacher, there)
        total = total + weight * (is_list * of_rows).sum() / len(queries)
    return total


def _over_all(scores: Tensor, members: Tensor, there: Tensor, passages: int) -> Tensor:
    """The scores (R, K) of each row's members as (R, P); every other passage has the row's lowest one."""
    lowest = scores.masked_fill(~there, torch.inf).amin(dim=-1, keepdim=True)  # (R, 1); of an empty row inf
    over_all = torch.where(lowest.isinf(), 0.0, lowest).expand(-1, passages).contiguous()
    # what is not there is written over a column too many, so that it hides no member
    over_all = F.pad(over_all, (0, 1))
    return over_all.scatter(1, torch.where(there, members, passages), scores)[:, :passages]


def _margin_error(student: Tensor, teacher: Tensor, there: Tensor) -> Tensor:
    """The mean of (d_k − d_l)² over the ordered pairs of different entries that are there, d = student − teacher: (R,).

    Σ_kl (d_k − d_l)² = 2 n Σ d² − 2 (Σ d)²: no (R, K, K) is needed.
    """
    error = (student - teacher).masked_fill(~there, 0.0)
    count = there.sum(dim=-1)
    squares = 2 * (count * error.square().sum(dim=-1) - error.sum(dim=-1).square())
    return squares / (count * (count - 1)).clamp(min=1)
