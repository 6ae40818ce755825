"""Ranking metrics against pytrec_eval's and scikit-learn's on random rankings, and the bootstrap by its definition."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from sklearn.metrics import ndcg_score

from services.trainer.compare import paired_bootstrap
from services.trainer.metrics import METRICS, ranking_metrics


@pytest.mark.parametrize("seed", range(50))
def test_ndcg_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 200))
    grades = rng.integers(0, 4, size) * (rng.random(size) < 0.3)
    scores = rng.permutation(size).astype(float)
    ranking = [str(index) for index in np.argsort(-scores)]
    ours = ranking_metrics(ranking, {str(index): int(grade) for index, grade in enumerate(grades)})
    assert ours["ndcg@10"] == pytest.approx(ndcg_score([grades], [scores], k=10), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_every_metric_is_pytrec_evals(seed: int) -> None:
    """100 queries each: up to 150 passages, graded and negative judgements, some of passages that are not ranked."""
    rng = np.random.default_rng(seed)
    qrels: dict[str, dict[str, int]] = {}
    rankings: dict[str, list[str]] = {}
    for number in range(100):
        size = int(rng.integers(1, 150))
        judged = rng.choice(size + 5, int(rng.integers(1, size + 5)), replace=False)
        qrels[f"q{number}"] = {f"p{passage}": int(rng.integers(-1, 4)) for passage in judged}
        rankings[f"q{number}"] = [f"p{passage}" for passage in rng.permutation(size)][:100]
    runs = {
        depth: {query: {p: -float(rank) for rank, p in enumerate(ids[:depth])} for query, ids in rankings.items()}
        for depth in (10, 100)
    }
    names = {"ndcg_cut_10", "recall_1", "recall_5", "recall_10", "recall_100", "map_cut_100", "map"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(runs[100])
    ranks = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(runs[10])
    for query, ranking in rankings.items():
        expected = theirs[query]
        assert ranking_metrics(ranking, qrels[query]) == pytest.approx(
            {
                "ndcg@10": expected["ndcg_cut_10"],
                **{f"recall@{depth}": expected[f"recall_{depth}"] for depth in (1, 5, 10, 100)},
                "mrr@10": ranks[query]["recip_rank"],
                "map@100": expected["map_cut_100"],
            },
            abs=1e-6,
        )
        assert expected["map"] == expected["map_cut_100"]  # rankings are 100 deep


def test_recall_and_reciprocal_rank() -> None:
    ranking = [f"p{rank}" for rank in range(1, 101)]
    metrics = ranking_metrics(ranking, {"p3": 1, "p7": 2, "p50": 1, "unranked": 1, "p1": 0})
    assert metrics["recall@1"] == 0
    assert metrics["recall@5"] == 1 / 4
    assert metrics["recall@10"] == 2 / 4
    assert metrics["recall@100"] == 3 / 4
    assert metrics["mrr@10"] == 1 / 3
    assert metrics["map@100"] == (1 / 3 + 2 / 7 + 3 / 50) / 4
    assert list(metrics) == list(METRICS)


def test_nothing_relevant_counts_as_0() -> None:
    assert set(ranking_metrics(["a", "b"], {"a": 0}).values()) == {0.0}


def test_a_first_relevant_passage_below_rank_10_is_no_reciprocal_rank() -> None:
    ranking = [f"p{rank}" for rank in range(1, 12)]
    assert ranking_metrics(ranking, {"p11": 1})["mrr@10"] == 0.0


def test_interval_is_the_normal_approximations_on_many_queries() -> None:
    rng = np.random.default_rng(3)
    before = rng.random(2000)
    after = before + rng.normal(0.02, 0.1, 2000)
    low, high = paired_bootstrap(before, after)
    mean, error = (after - before).mean(), (after - before).std() / np.sqrt(2000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05 * error * 2)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.05 * error * 2)


def test_interval_is_seeded_and_paired() -> None:
    rng = np.random.default_rng(4)
    before = rng.random(100)
    after = np.roll(before, 1)
    assert paired_bootstrap(before, after, seed=1) == paired_bootstrap(before, after, seed=1)
    assert paired_bootstrap(before, after, seed=1) != paired_bootstrap(before, after, seed=2)
    sure = paired_bootstrap(before, before + 0.1)  # the same gain for every query leaves no doubt
    assert sure == pytest.approx((0.1, 0.1))
