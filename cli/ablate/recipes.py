"""The six cells of the Gecko paper's labelling table (arXiv 2403.20327): a positive times a hard negative. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from services.trainer.config import TrainingConfig
from shared.records import LabelPolicy

Positive = Literal["seed", "p_1"]
Negative = Literal["none", "sampled", "lowest"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to label a run's scored candidates and to train on the labels."""

    positive: Positive
    negative: Negative

    @property
    def name(self) -> str:
        return f"{self.positive}-{self.negative}"

    @property
    def policy(self) -> LabelPolicy:
        """The labelling to train on. Without hard negatives it is that of `lowest`, whose negatives are left out.

        It has no threshold: one would drop other queries under one recipe than under another, and the recipes would
        no more be compared on the same queries and steps.
        """
        return LabelPolicy(positive=self.positive, negative="lowest" if self.negative == "none" else self.negative)

    def training(self, config: TrainingConfig) -> TrainingConfig:
        """The tuned weights as they are: a share that each recipe chose for itself would hide what tells them apart."""
        return config.model_copy(update={"hard_negatives": self.negative != "none", "interpolation": 1.0})


RECIPES = tuple(
    Recipe(positive, negative) for positive in ("seed", "p_1") for negative in ("none", "sampled", "lowest")
)
BASELINE = RECIPES[0]


def compared(base: dict[str, Any], reports: dict[Recipe, dict[str, Any]]) -> dict[str, Any]:
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
                "model": report["model"],
                "figures": report["dims"][dim],
                "delta": report["delta"][dim],
            }
            for recipe, report in found.items()
        ],
    }
