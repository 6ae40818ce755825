"""What training is worth, with the defaults of every command: `make bench-quality SCIFACT=… CRANFIELD=… …`.

    scifact_ndcg10_before      nDCG@10 of the base on SciFact's test queries, at the full dimension, as it comes
    scifact_ndcg10_before_512  the same of the base reading 512 tokens, where seven in ten abstracts end
    scifact_ndcg10_after       the same after training, the mean over the seeds
    scifact_128_vs_base_full   nDCG@10 of the trained model at 128 dimensions, less the base's at its full dimension
    cranfield_ndcg10_delta     the same as the next one, on every second of Cranfield's queries
    list_cost_ratio            time of a training at the defaults (8 candidates a query) ÷ that of --loss contrastive
    list_cost_ratio_20         the same at --list-length 20
    query_cost_ratio           the same of --train queries
    demo_ndcg10_delta          nDCG@10 at the full dimension after training less before, the mean over the seeds
    banking77_accuracy_delta   accuracy after less before, of the models of SciFact's first seed, which saw none of it
    stsb_spearman_delta        Spearman's correlation, likewise

No label is used in training. Everything goes through the command line, as a user's would: `corpus add`, `run start`,
and for each seed `train` and `evaluate`, all of them without options: what is measured are the defaults. They were
chosen on SciFact's train split, the other half of Cranfield's queries and the demo's development queries.
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
from cli.demo.corpus import build
from services.trainer.model_card import FACTS_FILE
from shared.models import WHEEL_MODEL, resolve_model

DIMS = (384, 256, 128, 64)
FULL = str(DIMS[0])
COST_PASSAGES = 600
FACTS = ("records", "interpolation", "seconds", "development_ndcg@10", "projection")


def longer_base(folder: Path) -> str:
    """The base, but reading 512 tokens: a model folder."""
    model = SentenceTransformer(resolve_model(WHEEL_MODEL), device="cpu")
    model.max_seq_length = 512
    model.save(str(folder), create_model_card=False)
    return str(folder)


def every_second(beir: Path, folder: Path) -> Path:
    """A BEIR folder with the same corpus and queries, and the judgements of every second judged query.

    The others are those that defaults may be chosen on.
    """
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / name).symlink_to(beir / name)
    header, *lines = (beir / "qrels" / "test.tsv").read_text().splitlines()
    judged = {line.split("\t")[0] for line in lines}
    ids = [json.loads(line)["_id"] for line in (beir / "queries.jsonl").read_text().splitlines()]
    held_out = set([id_ for id_ in ids if id_ in judged][1::2])
    kept = [header, *(line for line in lines if line.split("\t")[0] in held_out)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(kept) + "\n")
    return folder


def evaluated(home: Path, model: str, *on: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(fretwork(home, "evaluate", model, "--json", *on))
    return report


def trained(home: Path, run: str, beir: Path, seed: int) -> dict[str, Any]:
    """The report on a model trained with this seed, beside the base."""
    model = home / f"{run}-{seed}"
    fretwork(home, "train", run, "--output", str(model), "--seed", str(seed))
    dims = ("--dims", ",".join(map(str, DIMS)))
    report = evaluated(home, str(model), "--beir", str(beir), *dims, "--baseline", WHEEL_MODEL)
    facts = json.loads((model / FACTS_FILE).read_text())
    return {
        "seed": seed,
        "model": str(model),
        **{name: facts[name] for name in FACTS if name in facts},
        "dims": report["dims"],
        "baseline": report["baseline"]["dims"],
        "delta": report["delta"],
    }


def collection(home: Path, name: str, beir: Path, seeds: int) -> list[dict[str, Any]]:
    """A run over the collection, and a report for each seed."""
    fretwork(home, "corpus", "add", name, str(beir), "--skip-invalid")  # Cranfield has two passages without text
    run = fretwork(home, "run", "start", "--corpus", name, "--wait").strip()
    return [trained(home, run, beir, seed) for seed in range(seeds)]


def mean(reports: list[dict[str, Any]], of: str, dim: str = FULL) -> float:
    return statistics.mean(report[of][dim]["ndcg@10"] for report in reports)


def scifact(home: Path, beir: Path, seeds: int, others: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    reports = collection(home, "scifact", beir, seeds)
    before, after = mean(reports, "baseline"), mean(reports, "dims")
    longer = evaluated(home, longer_base(home / "base"), "--beir", str(beir), "--dims", FULL)["dims"]
    found = [
        figure("scifact_ndcg10_before", "nDCG@10", 0.645, [before]),
        figure("scifact_ndcg10_before_512", "nDCG@10", 0.654, [longer[FULL]["ndcg@10"]]),
        figure("scifact_ndcg10_after", "nDCG@10", 0.685, [after], reports),
        figure("scifact_128_vs_base_full", "nDCG@10", 0, [mean(reports, "dims", "128") - before]),
    ]
    for name, on in others.items():
        report = evaluated(home, reports[0]["model"], *on, "--dims", FULL, "--baseline", WHEEL_MODEL)
        metric = report["main_metric"]
        delta = report["dims"][FULL][metric] - report["baseline"]["dims"][FULL][metric]
        found.append(figure(f"{name}_delta", f"{metric}, after less before", -0.005, [delta], [report]))
    return found


def costs(home: Path) -> list[dict[str, Any]]:
    """What lists cost a record, on a part of SciFact: the same records by each loss, in turns."""
    sample = ("--set", f"num_seed_passages={COST_PASSAGES}")
    run = fretwork(home, "run", "start", "--corpus", "scifact", "--wait", *sample).strip()
    ways = {
        "contrastive": ("--loss", "contrastive"),
        "list_cost_ratio": (),
        "list_cost_ratio_20": ("--list-length", "20"),
        "query_cost_ratio": ("--train", "queries"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(2):
        for name, options in ways.items():
            model = home / f"cost-{name}-{turn}"
            fretwork(home, "train", run, "--output", str(model), "--interpolation", "1", *options)
            seconds[name].append(json.loads((model / FACTS_FILE).read_text())["seconds"])
    targets = {"list_cost_ratio": 2, "list_cost_ratio_20": 4, "query_cost_ratio": 1}
    return [
        figure(
            name, "ratio", target, [of / than for of, than in zip(seconds[name], seconds["contrastive"], strict=True)]
        )
        for name, target in targets.items()
    ]


def gained(home: Path, name: str, beir: Path, seeds: int, target: float) -> list[dict[str, Any]]:
    reports = collection(home, name, beir, seeds)
    delta = mean(reports, "dims") - mean(reports, "baseline")
    of_128 = mean(reports, "dims", "128") - mean(reports, "baseline")
    return [
        figure(f"{name}_ndcg10_delta", "nDCG@10, after less before", target, [delta], reports),
        figure(f"{name}_128_vs_base_full", "nDCG@10", 0, [of_128]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scifact", type=Path, help="SciFact as a BEIR folder")
    parser.add_argument("--cranfield", type=Path, help="Cranfield as a BEIR folder")
    parser.add_argument("--demo", action="store_true", help="the demo's corpus")
    parser.add_argument("--banking77", type=Path, help="a folder with train.csv and test.csv, as published")
    parser.add_argument("--stsb", type=Path, help="a folder with sts-train.csv and sts-test.csv, as published")
    parser.add_argument("--mixed", action="store_true", help="the demo with --banking77 and --stsb in the mixture")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    given = parser.parse_args()
    others = {}
    if given.banking77:
        others["banking77_accuracy"] = ("--classification", str(given.banking77.resolve()))
    if given.stsb:
        others["stsb_spearman"] = ("--sts", str(given.stsb.resolve() / "sts-test.csv"))
    if not (given.scifact or given.cranfield or given.demo or given.mixed):
        parser.error("name --scifact, --cranfield, --demo or --mixed, or several")
    with tempfile.TemporaryDirectory(prefix="fretwork-bench-") as folder:
        home = Path(folder)
        if given.scifact:
            write(given.output, scifact(home, given.scifact.resolve(), given.seeds, others))
            write(given.output, costs(home))
        if given.cranfield:
            half = every_second(given.cranfield.resolve(), home / "half")
            write(given.output, gained(home, "cranfield", half, given.seeds, 0.05))
        if given.demo:
            build(home / "heldout")
            write(given.output, gained(home, "demo", home / "heldout", given.seeds, 0.07))
        if given.mixed:
            if not (given.banking77 and given.stsb):
                parser.error("--mixed takes --banking77 and --stsb")
            write(given.output, mixed.measured(home, given.banking77.resolve(), given.stsb.resolve()))


if __name__ == "__main__":
    main()
