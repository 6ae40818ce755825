"""The listwise losses against their definitions written out as loops, in float64: values and gradients."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from services.trainer.config import ListLoss
from services.trainer.listwise import COSINE_OF_A_DEVIATION, listwise_loss

TAU, TEACHER = 0.07, 0.8
WEIGHTS = {8: 1.0, 5: 0.5, 2: 2.0}
B, P, D = 5, 9, 8

LISTS = {
    "whole": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 2, 4], [1, 3, 5, 7], [6, 7, 8, 0]],
    "shorter ones": [[0, 1, 2, 3], [4, 5], [8, 0, 2], [1, 3, 5, 7], [6, 7]],
    "none, and one of one": [[0, 1, 2, 3], [], [8], [1, 3, 5], [6, 7]],
    "shared passages": [[0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 1, 0], [0, 2, 1]],
}


def looped(queries: Tensor, passages: Tensor, lists: list[list[int]], scores: list[list[float]], form: str) -> Tensor:
    """One exponential, or one pair, at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for dim, weight in WEIGHTS.items():
        for q, members, wanted in zip(queries, lists, scores, strict=True):
            cosines = [
                torch.dot(q[:dim], passages[m, :dim]) / (q[:dim].norm() * passages[m, :dim].norm()) for m in members
            ]
            if len(members) < 2:
                continue
            if form == "kl":
                whole = [passages[m] for m in range(P)]
                cosines = [torch.dot(q[:dim], p[:dim]) / (q[:dim].norm() * p[:dim].norm()) for p in whole]
                of_passage = [dict(zip(members, wanted, strict=True)).get(m, min(wanted)) for m in range(P)]
                teacher = [math.exp(score / TEACHER) for score in of_passage]
                student = [torch.exp(cosine / TAU) for cosine in cosines]
                for t, s in zip(teacher, student, strict=True):
                    share = t / sum(teacher)
                    total = total + weight / B * share * (math.log(share) - torch.log(s / sum(student)))
            else:
                pairs = [(k, other) for k, other in product(range(len(members)), repeat=2) if k != other]
                for k, other in pairs:
                    margin = COSINE_OF_A_DEVIATION * (wanted[k] - wanted[other])
                    total = total + weight / B * (cosines[k] - cosines[other] - margin) ** 2 / len(pairs)
    return total


@pytest.mark.parametrize(("case", "form"), list(product(LISTS, ("kl", "margin-mse"))))
def test_value_and_gradients_are_those_of_the_definition(case: str, form: ListLoss) -> None:
    lists = LISTS[case]
    generator = torch.Generator().manual_seed(1)
    queries, passages = (
        torch.randn(rows, D, dtype=torch.float64, generator=generator, requires_grad=True) for rows in (B, P)
    )
    width = max(map(len, lists))
    scores = torch.randn(B, width, dtype=torch.float64, generator=generator)
    members = torch.tensor([[*members, *[-1] * (width - len(members))] for members in lists])
    parts = [
        listwise_loss(
            queries,
            passages,
            members,
            scores,
            form=form,
            temperature=TAU,
            teacher_temperature=TEACHER,
            weight_by_dim=WEIGHTS,
            rows=rows,
        )
        for rows in (slice(0, 2), slice(2, B))
    ]
    ours = parts[0] + parts[1]
    of_lists = [row[: len(members)].tolist() for row, members in zip(scores, lists, strict=True)]
    expected = looped(queries, passages, lists, of_lists, form)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-6)
    assert expected.item() > 1e-3
    for got, wanted in zip(
        torch.autograd.grad(ours, (queries, passages)), torch.autograd.grad(expected, (queries, passages)), strict=True
    ):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-6)
        assert got.abs().max() > 1e-4


@pytest.mark.parametrize("form", ["kl", "margin-mse"])
def test_a_student_that_has_the_teachers_scores_has_nothing_to_learn(form: ListLoss) -> None:
    cosines = torch.tensor([[0.9, 0.5, 0.1, -0.3]], dtype=torch.float64)
    passages = torch.stack([cosines[0], (1 - cosines[0] ** 2).sqrt()], dim=1).requires_grad_()
    scale = TAU / TEACHER if form == "kl" else COSINE_OF_A_DEVIATION
    loss = listwise_loss(
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        passages,
        torch.tensor([[2, 0, 1, 3]]),
        cosines[:, [2, 0, 1, 3]] / scale + 3.0,  # a constant is in no softmax, and in no margin
        form=form,
        temperature=TAU,
        teacher_temperature=TEACHER,
        weight_by_dim={2: 1.0},
    )
    assert loss.item() == pytest.approx(0, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, passages)
    assert gradient.abs().max() < 1e-7
