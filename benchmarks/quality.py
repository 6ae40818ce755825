"""What the offline teacher's training gains on a judged collection, no label used: `make bench-quality BEIR=FOLDER`.

scifact_ndcg10_before  nDCG@10 of the base on the collection's test queries, at the full dimension
scifact_ndcg10_after   the same after training, the mean over the seeds

Everything goes through the command line, as a user's would: `corpus add`, `run start`, and for each seed `train` and
`evaluate`. The settings are in RUN and TRAIN; they were chosen on another collection (docs/decisions.md), and the
share of the tuned weights on the run's own held-out records. The figures are named after SciFact, which they are for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, figure, write
from services.trainer.model_card import FACTS_FILE

BASE = "all-MiniLM-L6-v2"
DIMS = "384,256,128"
RUN = ("--set", "titles_as_queries=true")
TRAIN = ("--learning-rate", "2e-5")


def fretwork(home: Path, *arguments: str) -> str:
    """What the command prints as data; what it says beside goes through."""
    sys.stderr.write(f"  fretwork {' '.join(arguments)}\n")
    command = [sys.executable, "-m", "cli.main", "--home", str(home), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def trained(home: Path, run: str, beir: Path, seed: int, split: str) -> dict[str, Any]:
    """The report on a model trained with this seed."""
    model = home / f"model-{seed}"
    fretwork(home, "train", run, "--output", str(model), "--seed", str(seed), *TRAIN)
    # the base is the same each time, and measuring it takes minutes
    compared = ("--split", split, "--dims", DIMS, "--json", *(() if seed else ("--baseline", BASE)))
    report: dict[str, Any] = json.loads(fretwork(home, "evaluate", str(model), "--beir", str(beir), *compared))
    facts = json.loads((model / FACTS_FILE).read_text())
    return {
        "seed": seed,
        "share": facts.get("interpolation"),
        "dims": report["dims"],
        "baseline": report.get("baseline", {}).get("dims"),
        "delta": report.get("delta"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beir", type=Path, required=True, help="a BEIR folder: SciFact's")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed-passages", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    given = parser.parse_args()
    full = DIMS.split(",")[0]
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        home = Path(folder)
        fretwork(home, "corpus", "add", "quality", str(given.beir.resolve()))
        sample = ("--set", f"num_seed_passages={given.seed_passages}")
        run = fretwork(home, "run", "start", "--corpus", "quality", "--wait", *sample, *RUN).strip()
        sys.stderr.write(f"  {run}\n")
        reports = [trained(home, run, given.beir.resolve(), seed, given.split) for seed in range(given.seeds)]
    after = [report["dims"][full]["ndcg@10"] for report in reports]
    before = [reports[0]["baseline"][full]["ndcg@10"]]
    write(
        given.output,
        [
            figure("scifact_ndcg10_before", "nDCG@10", 0.645, before),
            figure("scifact_ndcg10_after", "nDCG@10", 0.665, [statistics.mean(after)], reports),
        ],
    )


if __name__ == "__main__":
    main()
