"""The demo's report: report.json for programs (its keys stand in docs/report.md), report.html for people."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from cli.demo.figures import Figures
from cli.demo.job import Outcome
from cli.demo.plot import before_after_svg
from cli.demo.small_plots import loss_svg, scores_svg, seed_rank_svg
from shared.masking import copied_span, mask
from shared.reading import SampleRecord

METRICS = ("ndcg@10", "recall@10", "mrr@10")
PERCENTILES = (5, 25, 50, 75, 95)


def write_reports(folder: Path, outcome: Outcome) -> dict[str, Any]:
    """Writes both files into `folder` and returns what report.json holds."""
    report = make_report(outcome)
    _replace(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    environment = Environment(loader=PackageLoader("cli.demo"), autoescape=select_autoescape(["html", "j2"]))
    page = environment.get_template("report.html.j2").render(
        report=report,
        samples=[(sample, _masked(sample)) for sample in outcome.samples],
        stages=[asdict(stage) for stage in outcome.stages],
        plot=before_after_svg(
            {int(dim): figures["ndcg@10"] for dim, figures in report["before"].items()},
            {int(dim): figures["ndcg@10"] for dim, figures in report["after"].items()},
            {int(dim): (low, high) for dim, (low, high) in report["delta_ci95"].items()},
        ),
        small_plots=_small_plots(outcome.figures),
    )
    _replace(folder / "report.html", page)
    return report


def make_report(outcome: Outcome) -> dict[str, Any]:
    """Everything that the demo found, as plain values."""
    found, sums, figures = outcome.evaluation, outcome.sums, outcome.figures
    assert sums is not None  # noqa: S101 - counted before anything is trained
    dims = sorted(found["dims"], key=int, reverse=True)
    return {
        "before": {dim: {m: found["baseline"]["dims"][dim][m] for m in METRICS} for dim in dims},
        "after": {dim: {m: found["dims"][dim][m] for m in METRICS} for dim in dims},
        "delta": {dim: {m: found["delta"][dim][m] for m in METRICS} for dim in dims},
        "delta_ci95": {dim: found["delta"][dim]["ndcg@10"]["ci95"] for dim in dims},
        "counts": {
            "passages": sums.sampled,
            "queries": sums.queries,
            "records": sums.records,
            "test_queries": outcome.corpus.test_queries,
            "dev_queries": outcome.corpus.dev_queries,
        },
        "reasons": {str(stage.stage): stage.reasons for stage in outcome.stages if stage.reasons},
        "conservation_holds": sums.holds,
        "positive_changed": outcome.positive_changed,
        "seed_ranks": figures.seed_ranks,
        "scores": {
            name: {"positive": _percentiles(of.positives), "negative": _percentiles(of.negatives)}
            for name, of in (("ql", figures.ql), ("rc", figures.rc))
        },
        "loss": figures.loss,
        "seconds": outcome.seconds,
        "teacher": "offline (statistical methods, no LLM)",
        "base_model": outcome.base,
        "model_dir": str(outcome.model_dir),
        "run": {
            "name": outcome.run.name,
            "fingerprint": str(outcome.run.fingerprint),
            "config": outcome.run.config.model_dump(mode="json"),
        },
        "corpus": {
            "sha256": outcome.corpus.sha256,
            "by_library": outcome.corpus.by_library,
            "left_out": outcome.corpus.dropped,
        },
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("fretwork", "torch", "sentence-transformers", "transformers")},
    }


def _small_plots(figures: Figures) -> list[str]:
    plots = [
        seed_rank_svg(figures.seed_ranks),
        loss_svg(figures.loss),
        scores_svg("QL", "log-likelihood of the query, in nats", *figures.ql),
        scores_svg("RC", "BM25", *figures.rc),
    ]
    return [plot for plot in plots if plot]


def _percentiles(values: list[float]) -> dict[str, float]:
    """The values at PERCENTILES, by the nearest rank; nothing of nothing."""
    ordered = sorted(values)
    return {str(p): ordered[round(p / 100 * (len(ordered) - 1))] for p in PERCENTILES if ordered}


def _masked(sample: SampleRecord) -> str | None:
    """The positive without the query where it stands there, as training sees it nine times out of ten."""
    text = sample.positive.passage.text
    span = copied_span(sample.query_text, text)
    return mask(text, span) if span else None


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
