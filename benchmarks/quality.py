"""What training is worth: `make bench-quality BEIR=FOLDER`, and `BANKING77=FOLDER STSB=FOLDER` for benchmarks/mixed.py.

scifact_ndcg10_before      nDCG@10 of the base on the collection's test queries, at the full dimension, as it comes
scifact_ndcg10_before_512  the same of the base reading as far as the trained models do: the rest is what training did
scifact_ndcg10_after       the same after training, the mean over the seeds

No label is used. Everything goes through the command line, as a user's would: `corpus add`, `run start`, and for each
seed `train` and `evaluate`. The settings are in RUN and TRAIN; the labelling and the rate were chosen on another
collection (docs/decisions.md), the length because seven in ten of SciFact's abstracts go on after the 256 tokens that
the base's folder reads, and the share of the tuned weights on the run's own held-out records. The figures are named
after SciFact, which they are for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from benchmarks import mixed
from benchmarks.command_line import fretwork
from benchmarks.results_file import RESULTS, figure, write
from services.trainer.model_card import FACTS_FILE
from shared.models import WHEEL_MODEL, resolve_model

DIMS = "384,256,128"
RUN = (
    *("--set", "titles_as_queries=true", "--set", "labels.negative=sampled", "--set", "labels.num_negatives=2"),
    *("--set", "labels.range_min=2", "--set", "labels.range_max=15"),
)
PASSAGE_MAX_LEN = 512
TRAIN = ("--learning-rate", "2e-5", "--passage-max-len", str(PASSAGE_MAX_LEN))


def longer_base(folder: Path) -> str:
    """The base, but reading as far as what is trained: a model folder."""
    model = SentenceTransformer(resolve_model(WHEEL_MODEL), device="cpu")
    model.max_seq_length = PASSAGE_MAX_LEN
    model.save(str(folder), create_model_card=False)
    return str(folder)


def evaluated(home: Path, model: str, beir: Path, split: str, *options: str) -> dict[str, Any]:
    asked = ("--beir", str(beir), "--split", split, "--dims", DIMS, "--json", *options)
    report: dict[str, Any] = json.loads(fretwork(home, "evaluate", model, *asked))
    return report


def trained(home: Path, run: str, beir: Path, seed: int, split: str) -> dict[str, Any]:
    """The report on a model trained with this seed."""
    model = home / f"model-{seed}"
    fretwork(home, "train", run, "--output", str(model), "--seed", str(seed), *TRAIN)
    # the base is the same each time, and measuring it takes minutes
    report = evaluated(home, str(model), beir, split, *(() if seed else ("--baseline", longer_base(home / "base"))))
    facts = json.loads((model / FACTS_FILE).read_text())
    return {
        "seed": seed,
        "share": facts.get("interpolation"),
        "dims": report["dims"],
        "baseline": report.get("baseline", {}).get("dims"),
        "delta": report.get("delta"),
    }


def measured(home: Path, beir: Path, split: str, seeds: int, seed_passages: int) -> list[dict[str, Any]]:
    """A run over the collection, `seeds` trainings on it, and the three figures."""
    fretwork(home, "corpus", "add", "quality", str(beir))
    sample = ("--set", f"num_seed_passages={seed_passages}")
    run = fretwork(home, "run", "start", "--corpus", "quality", "--wait", *sample, *RUN).strip()
    reports = [trained(home, run, beir, seed, split) for seed in range(seeds)]
    base = evaluated(home, WHEEL_MODEL, beir, split)["dims"]
    longer = reports[0]["baseline"]
    full = DIMS.split(",")[0]
    after = statistics.mean(report["dims"][full]["ndcg@10"] for report in reports)
    return [
        figure("scifact_ndcg10_before", "nDCG@10", 0.645, [base[full]["ndcg@10"]], [base]),
        figure("scifact_ndcg10_before_512", "nDCG@10", 0.645, [longer[full]["ndcg@10"]], [longer]),
        figure("scifact_ndcg10_after", "nDCG@10", 0.665, [after], reports),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beir", type=Path, help="a BEIR folder: SciFact's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed-passages", type=int, default=1000)
    parser.add_argument("--banking77", type=Path, help="a folder with train.csv and test.csv, as published")
    parser.add_argument("--stsb", type=Path, help="a folder with sts-train.csv and sts-test.csv, as published")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    given = parser.parse_args()
    if not given.beir and not (given.banking77 and given.stsb):
        parser.error("name --beir, or --banking77 and --stsb, or all three")
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        if given.beir:
            collection = measured(Path(folder), given.beir.resolve(), given.split, given.seeds, given.seed_passages)
            write(given.output, collection)
        if given.banking77 and given.stsb:
            datasets = (given.banking77.resolve(), given.stsb.resolve())
            write(given.output, mixed.measured(Path(folder), *datasets))


if __name__ == "__main__":
    main()
