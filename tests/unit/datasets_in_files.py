"""Small datasets for tests: rows of invented text as the file or the parquet form that a dataset comes in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from pydantic import TypeAdapter

from services.trainer.mixture_config import DatasetSource

_SOURCE: TypeAdapter[DatasetSource] = TypeAdapter(DatasetSource)

LABELLED = [
    {"text": f"{label} text number {n}", "label": label}
    for n in range(8)
    for label in ("red", "green", "blue")
    if n < {"red": 8, "green": 5, "blue": 2}[label]
]


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet_file(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def dataset_source(kind: str, path: Path, **values: Any) -> DatasetSource:
    """A source of this kind, named after its kind."""
    named = {"kind": kind, "name": kind, "task_description": f"task of {kind}", "path": str(path)}
    return _SOURCE.validate_python({**named, **values})
