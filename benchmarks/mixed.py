"""What two other datasets in the mixture do to the demo's model: `make bench-quality BANKING77=FOLDER STSB=FOLDER`.

demo_ndcg10_delta         nDCG@10 of the demo's model on its test queries, at the full dimension, less the base's
mixed_demo_ndcg10         nDCG@10 on the demo's test queries of a model trained on FRet, banking77 and stsb ÷ that of
                          the demo's own model
mixed_banking77_accuracy  accuracy of the logistic probe on banking77's test split, less the base's
mixed_stsb_spearman       Spearman's correlation on stsb's test split, less the base's

The model sees FRet as often as the demo's does: half of its batches are FRet's, and there are twice as many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.command_line import fretwork
from benchmarks.results_file import figure
from cli.models.options import DEFAULTS
from shared.models import WHEEL_MODEL

MIN_SCORE = 4  # of 5: the two sentences say the same but for unimportant details
STSB_COLUMNS = ["genre", "file", "year", "id", "score", "sentence1", "sentence2"]


def mixture(banking77: Path, stsb: Path, records: int) -> dict[str, Any]:
    """mixture.yaml: half of the batches of FRet, a quarter of each dataset's train split."""
    return {
        "max_steps": 2 * -(-records // DEFAULTS.per_device_train_batch_size),
        "sources": [
            {"kind": "fret", "weight": 2},
            {
                "kind": "classification",
                "name": "banking77",
                "path": str(banking77 / "train.csv"),
                "task_description": "intent classification",
                "fields": {"text": "text", "label": "category"},
            },
            {
                "kind": "scored-pair",
                "name": "stsb",
                "path": str(stsb / "sts-train.csv"),
                "task_description": "sentence similarity",
                "delimiter": "\t",
                "columns": STSB_COLUMNS,
                "fields": {"first": "sentence1", "second": "sentence2", "score": "score"},
                "min_score": MIN_SCORE,
            },
        ],
    }


def measured(home: Path, banking77: Path, stsb: Path) -> list[dict[str, Any]]:
    """The demo, a training beside it, and the three figures."""
    fretwork(home, "demo")
    demo = json.loads((home / "demo" / "report.json").read_text())
    sources = home / "mixture.yaml"
    sources.write_text(yaml.safe_dump(mixture(banking77, stsb, demo["counts"]["records"])))
    model = home / "mixed"
    label_version = "2" if demo["policy"]["chosen"] == "seed" else "1"
    trained = ("--label-version", label_version, "--matryoshka-dims", "256,128,64")
    fretwork(home, "train", demo["run"]["name"], "--mixture", str(sources), "--output", str(model), *trained)

    def compared(baseline: str, *on: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(
            fretwork(home, "evaluate", str(model), "--baseline", baseline, "--json", *on)
        )
        return {"after": report["dims"], "before": report["baseline"]["dims"], "delta": report["delta"]}

    def first(figures: dict[str, Any], metric: str) -> float:
        return float(next(iter(figures.values()))[metric])

    on_demo = compared(demo["model_dir"], "--beir", str(home / "demo" / "heldout"))
    on_banking77 = compared(WHEEL_MODEL, "--classification", str(banking77))
    on_stsb = compared(WHEEL_MODEL, "--sts", str(stsb / "sts-test.csv"))
    ratio = first(on_demo["after"], "ndcg@10") / first(on_demo["before"], "ndcg@10")
    accuracy = first(on_banking77["after"], "accuracy") - first(on_banking77["before"], "accuracy")
    spearman = first(on_stsb["after"], "cosine_spearman") - first(on_stsb["before"], "cosine_spearman")
    delta = first(demo["after"], "ndcg@10") - first(demo["before"], "ndcg@10")
    of_demo = {name: demo[name] for name in ("before", "after", "delta_ci95", "policy")}
    return [
        figure("demo_ndcg10_delta", "nDCG@10, after less before", 0.06, [delta], [of_demo]),
        figure("mixed_demo_ndcg10", "ratio", 1, [ratio], [on_demo]),
        figure("mixed_banking77_accuracy", "accuracy, after less before", 0, [accuracy], [on_banking77]),
        figure("mixed_stsb_spearman", "Spearman, after less before", 0, [spearman], [on_stsb]),
    ]
