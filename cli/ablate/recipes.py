"""The rows of an ablation: the Gecko paper's labelling table (arXiv 2403.20327), and other ways to train. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from services.trainer.config import Loss, TrainingConfig
from services.trainer.mixture_config import FretSource, Mixture
from shared.records import LabelPolicy

Positive = Literal["seed", "p_1"]
Negative = Literal["none", "sampled", "lowest"]

ALL, FILTERED = "all", "filtered"
ROUND_TRIP = 3  # of the filtered queries: the seed is among the retriever's first so many


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to label a run's scored candidates and to train on the labels.

    `queries` are ALL, FILTERED by a round trip, or those of the kind that it names.
    """

    positive: Positive
    negative: Negative
    loss: Loss = "contrastive"
    queries: str = ALL

    @property
    def name(self) -> str:
        if self.loss == "contrastive":
            return f"{self.positive}-{self.negative}"
        return self.loss if self.queries == ALL else f"{self.loss}-{self.queries.replace(' ', '-')}"

    @property
    def policy(self) -> LabelPolicy:
        """The labelling to train on. Without hard negatives it is that of `lowest`, whose negatives are left out.

        But for FILTERED it has no threshold: one would drop other queries under one recipe than under another, and the
        recipes would no more be compared on the same queries.
        """
        negative: Literal["sampled", "lowest"] = "lowest" if self.negative == "none" else self.negative
        round_trip = ROUND_TRIP if self.queries == FILTERED else None
        return LabelPolicy(positive=self.positive, negative=negative, round_trip=round_trip)

    def training(self, config: TrainingConfig, records: int) -> TrainingConfig:
        """The tuned weights as they are: a share that each recipe chose for itself would hide what tells them apart.

        On a part of the queries it takes as many steps as on all `records`.
        """
        changes: dict[str, Any] = {
            "hard_negatives": self.negative != "none",
            "interpolation": 1.0,
            "loss": self.loss,
        }
        if self.queries != ALL:
            kinds = () if self.queries == FILTERED else (self.queries,)
            steps = config.num_train_epochs * ceil(records / config.per_device_train_batch_size)
            changes["mixture"] = Mixture(sources=(FretSource(kind="fret", kinds=kinds),), max_steps=steps)
        return config.model_copy(update=changes)


OF_THE_PAPER = tuple(
    Recipe(positive, negative) for positive in ("seed", "p_1") for negative in ("none", "sampled", "lowest")
)
BASELINE = OF_THE_PAPER[0]


def recipes_of(positive: Positive, kinds: Collection[str]) -> tuple[Recipe, ...]:
    """The paper's six; the losses over whole lists; filtered queries; and where there are several kinds, one of them.

    Args:
        positive: the run's own, which the rows that are not the paper's have.
        kinds: of the run's queries, the commonest first.
    """
    alone = kinds if len(kinds) > 1 else ()
    return (
        *OF_THE_PAPER,
        Recipe(positive, "lowest", "listwise"),
        Recipe(positive, "lowest", "both"),
        Recipe(positive, "lowest", "both", FILTERED),
        *(Recipe(positive, "lowest", "both", kind) for kind in list(alone)[:1]),
    )


def compared(recipes: Sequence[Recipe], base: dict[str, Any], reports: dict[Recipe, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all at the full dimension, JSON-able.

    Args:
        base: the evaluation of the base model.
        reports: those of every recipe but BASELINE, each with BASELINE's model as its baseline.
    """
    dim = max(base["dims"], key=int)
    before = next(iter(reports.values()))["baseline"]
    found = {BASELINE: {**before, "delta": {dim: None}}, **reports}
    return {
        "dim": int(dim),
        "queries": base["queries"],
        "passages": base["passages"],
        "base": {"model": base["model"], "figures": base["dims"][dim]},
        "baseline": BASELINE.name,
        "recipes": [
            {
                "positive": recipe.positive,
                "negative": recipe.negative,
                "loss": recipe.loss,
                "queries": recipe.queries,
                "model": found[recipe]["model"],
                "figures": found[recipe]["dims"][dim],
                "delta": found[recipe]["delta"][dim],
            }
            for recipe in recipes
        ],
    }
