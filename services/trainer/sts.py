"""Semantic textual similarity: Spearman's correlation of the cosines of pairs with people's scores, as in MTEB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.metrics.pairwise import paired_cosine_distances

from services.trainer.compare import Measured, difference, interval, resamples
from services.trainer.embed import OnProgress, embed
from services.trainer.lines import Where, lines, text_of
from services.trainer.rows import read_table
from shared.errors import InvalidInputError

COLUMNS = ("sentence1", "sentence2", "score")
PUBLISHED_COLUMNS = ("genre", "filename", "year", "number", "score", "sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class Similarity:
    """Pairs of sentences, and their scores, the more alike the higher."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]
    line_numbers: tuple[int, ...]
    main_metric = "cosine_spearman"

    @property
    def sizes(self) -> dict[str, int]:
        return {"pairs": len(self.scores)}

    @property
    def item_names(self) -> list[dict[str, Any]]:
        return [{"line": line, "score": score} for line, score in zip(self.line_numbers, self.scores, strict=True)]

    @property
    def text_count(self) -> int:
        return 2 * len(self.scores)

    def measure(self, model: SentenceTransformer, dims: Sequence[int], on_progress: OnProgress) -> dict[int, Measured]:
        """The cosine of every pair and their Spearman correlation with the scores, at every dimension.

        Both sentences stand behind the prompt that the model names STS, as in mteb: without one if it has none.
        """
        vectors = embed(model, model.encode, model.prompts.get("STS"), [*self.first, *self.second], on_progress).numpy()
        first, second = np.split(vectors, 2)
        return {dim: self._measured(first[:, :dim], second[:, :dim]) for dim in dims}

    def differences(self, before: Measured, after: Measured, seed: int) -> dict[str, dict[str, Any]]:
        """Of the correlation, pairs drawn with replacement."""
        scores, old, new = np.array(self.scores), before.column("cosine"), after.column("cosine")
        resampled = []
        for drawn in resamples(len(scores), seed):
            weights = np.stack([np.bincount(row, minlength=len(scores)) for row in drawn])
            resampled.append(spearman(scores, new, weights) - spearman(scores, old, weights))
        mean = after.figures[self.main_metric] - before.figures[self.main_metric]
        return {self.main_metric: difference(mean, interval(np.concatenate(resampled)))}

    def _measured(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> Measured:
        cosines = 1 - paired_cosine_distances(first, second)  # mteb's own: what rounds to equal there does so here
        (correlation,) = spearman(np.array(self.scores), cosines, np.ones((1, len(cosines)), dtype=np.int64))
        return Measured({self.main_metric: float(correlation)}, [{"cosine": float(cosine)} for cosine in cosines])


def spearman(first: NDArray[Any], second: NDArray[Any], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) Spearman correlations of two (N,) columns, item n counted `weights[r, n]` times in the r-th.

    Equal values share their average rank. A column that is constant correlates with nothing: 0.
    """
    middle = (weights.sum(1, keepdims=True) + 1) / 2
    a, b = _ranks(first, weights) - middle, _ranks(second, weights) - middle
    spread = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
    covariance = (weights * a * b).sum(1)
    found: NDArray[np.float64] = np.divide(covariance, spread, out=np.zeros(len(weights)), where=spread > 0)
    return found


def _ranks(values: NDArray[Any], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R, N): the rank of each value among those that are counted."""
    order = np.argsort(values, kind="stable")
    _, starts, group_of = np.unique(values[order], return_index=True, return_inverse=True)
    of_group = np.add.reduceat(weights[:, order], starts, axis=1)
    average = of_group.cumsum(1) - (of_group - 1) / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = average[:, group_of]
    return ranks


def read_sts(path: Path) -> Similarity:
    """The pairs of a .csv, .tsv or .jsonl with the COLUMNS, or of a file of STS-B in the form it was published in.

    Raises InvalidInputError: a column is missing, a score is no number, or the scores are all the same.
    """
    pairs = [
        (text_of(where, row, "sentence1"), text_of(where, row, "sentence2"), _score(where, row), where[1])
        for where, row in (read_table(path, "\t", PUBLISHED_COLUMNS) if _is_published_stsb(path) else read_table(path))
    ]
    if not pairs:
        raise InvalidInputError(path, None, "no pair in it: nothing can be measured")
    first, second, scores, line_numbers = zip(*pairs, strict=True)
    if len(set(scores)) == 1:
        raise InvalidInputError(path, None, "all scores are the same: nothing can correlate with them")
    return Similarity(first, second, scores, line_numbers)


def _is_published_stsb(path: Path) -> bool:
    """Whether the file has no line of names but begins with a pair: tabs, and the score in the fifth field."""
    if path.suffix.lower() == ".parquet":  # which is no text
        return False
    fields = next((line for _, line in lines(path)), "").split("\t")
    return len(fields) >= len(PUBLISHED_COLUMNS) and _number(fields[4]) is not None


def _score(where: Where, row: Mapping[str, object]) -> float:
    if "score" not in row:
        raise InvalidInputError(*where, f"the column score is missing; there are {', '.join(row)}")
    score = _number(row["score"])
    if score is None:
        raise InvalidInputError(*where, f"the score {row['score']!r} is not a number")
    return score


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
