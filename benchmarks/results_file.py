"""A file of results: figures with the date, the machine and the commit that each was measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def figure(name: str, unit: str, target: float, values: Sequence[float], runs: Sequence[Any] = ()) -> dict[str, Any]:
    """A figure whose value is the median of `values`; `runs`, each run's own account of itself, else the values."""
    value = round(statistics.median(values), 3)
    sys.stdout.write(f"{name}: {value} {unit} (target {target})\n")
    return {"name": name, "value": value, "unit": unit, "target": target, "runs": list(runs or values)}


def write(path: Path, figures: Sequence[dict[str, Any]]) -> None:
    """Figures that were not measured this time stay as they were."""
    old = json.loads(path.read_text())["figures"] if path.exists() else []
    new = {each["name"] for each in figures}
    when = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": _commit(),
    }
    kept = [each for each in old if each["name"] not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": [*kept, *(each | when for each in figures)]}, indent=1) + "\n")


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
