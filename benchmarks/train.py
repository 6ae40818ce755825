"""How fast the trainer is, beside sentence-transformers': `make bench-train`, to benchmarks/results/train.json.

triplets_vs_st_default  triplets/s ÷ those of SentenceTransformerTrainer with CachedMultipleNegativesRankingLoss and
                        MatryoshkaLoss at its defaults
triplets_vs_st_best     the same with the best of the settings tried here (`ST_SETTINGS`)
peak_memory_vs_st       the process's largest resident size, on a GPU its most memory there, ÷ theirs at the defaults
loss_vs_st, ndcg_vs_st  the loss on triplets nobody trained on, and nDCG@10 on the demo's development queries, ÷ theirs
encode_vs_st            passages/s of embedding the demo's corpus ÷ those of SentenceTransformer.encode

Same base, triplets, order of magnitude of everything: batch size, lengths, dimensions, learning rate, schedule. Each
training runs in a process of its own, in turns, each turn one of each. Where there are several GPUs both have one. On a
GPU each run's account has its name and the share of its peak FLOP/s (benchmarks/trainers.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, ROOT, figure, write
from benchmarks.triplets import write_triplets

# what is tried to make sentence-transformers fast, each with bf16 where the processor has it (benchmarks/trainers.py)
ST_SETTINGS = ("default", "fast", "fast-uncached", "fast-uncached-eager", "fast-uncached-eager-nodropout")


def measured(what: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.trainers", what, str(folder), f"--batch={arguments.batch}"]
    first_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # theirs would use them all
    done = subprocess.run(
        [*command, f"--model={arguments.model}", f"--max-len={arguments.max_len}"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": first_gpu},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
    account: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"  {what}: {json.dumps(account)}\n")
    return account


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--triplets", type=int, default=1536)
    parser.add_argument("--passages", type=int, default=1000, help="of the demo's corpus")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-len", type=int, default=128, help="tokens of a query and of a passage")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="or a transformers config.json: random weights")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "train.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as name:
        folder = Path(name)
        write_triplets(folder, given.triplets, given.passages)
        tried = {settings: measured(f"st:{settings}", folder, given) for settings in ST_SETTINGS}
        best = max(tried, key=lambda settings: tried[settings]["triplets_per_s"])
        turns = []
        for _ in range(given.turns):
            turn = {"ours": measured("ours", folder, given), "default": measured("st:default", folder, given)}
            turn["best"] = measured(f"st:{best}", folder, given) if best != "default" else turn["default"]
            turns.append(turn | {"encode": measured("encode", folder, given)})
        write(given.output, figures(turns, best))


def figures(turns: Sequence[dict[str, dict[str, Any]]], best: str) -> list[dict[str, Any]]:
    def ratio(name: str, of: str, than: str, target: float) -> dict[str, Any]:
        values = [turn["ours"][of] / turn[than][of] for turn in turns]
        return figure(name, "ratio", target, values, [{each: turn[each] for each in ("ours", than)} for turn in turns])

    return [
        ratio("triplets_vs_st_default", "triplets_per_s", "default", 1.3),
        ratio("triplets_vs_st_best", "triplets_per_s", "best", 1.0) | {"best": best},
        ratio("peak_memory_vs_st", "peak_mb", "default", 1.0),
        ratio("loss_vs_st", "heldout_loss", "default", 1.0),
        ratio("ndcg_vs_st", "ndcg@10", "default", 1.0),
        figure(
            "encode_vs_st",
            "ratio",
            1.2,
            [turn["encode"]["ours"] / turn["encode"]["st"] for turn in turns],
            [turn["encode"] for turn in turns],
        ),
    ]


if __name__ == "__main__":
    main()
