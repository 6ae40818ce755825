"""An export's parquet file is written in row groups of bounded size, and in memory that does not grow with the run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cli.export.parquet_jsonl import SCHEMA, write_parquet
from cli.export.row_groups import MAX_BYTES, MAX_ROWS, write_row_groups

STATUS = Path("/proc/self/status")
TEXT = pa.schema([("text", pa.string())])


def rows_of(count: int, size: int) -> Iterator[list[dict[str, Any]]]:
    """`count` rows with a value in each of an export's columns, in batches of `size`."""
    for start in range(0, count, size):
        yield [{field.name: _value(field.type, number) for field in SCHEMA} for number in range(start, start + size)]


def _value(kind: pa.DataType, number: int) -> Any:
    if pa.types.is_list(kind):
        return [_value(kind.value_type, number)]
    return str(number) if pa.types.is_string(kind) else number % 2 == 0 if pa.types.is_boolean(kind) else number


def peak_mb(rows: int, size: int, path: Path) -> float:
    """The most memory of a process that writes so many rows in such batches; run as a program, this file writes."""
    written = subprocess.run(
        [sys.executable, "-m", __name__, str(rows), str(size), str(path)], check=True, capture_output=True, text=True
    )
    return float(written.stdout)


@pytest.mark.skipif(not STATUS.exists(), reason="Linux alone says what a process's memory was at most")
def test_thousands_of_batches_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    few = peak_mb(MAX_ROWS, 500, tmp_path / "few")
    many = peak_mb(4 * MAX_ROWS, 20, tmp_path / "many")

    assert many - few <= 50
    written = parquet.ParquetFile(tmp_path / "many")
    assert [written.metadata.row_group(n).num_rows for n in range(written.num_row_groups)] == [MAX_ROWS] * 4
    assert written.read(["query_id"])["query_id"].to_pylist() == [str(number) for number in range(4 * MAX_ROWS)]


def test_long_passages_make_row_groups_of_fewer_rows(tmp_path: Path) -> None:
    path, passage, batches = tmp_path / "long", "a passage " * 10_000, 150
    write_row_groups(([{"text": passage}] * 10 for _ in range(batches)), path, TEXT)

    groups = parquet.ParquetFile(path)
    rows = [groups.metadata.row_group(n).num_rows for n in range(groups.num_row_groups)]
    assert sum(rows) == 10 * batches
    assert max(rows) * len(passage) <= MAX_BYTES < (rows[0] + 10) * (len(passage) + 8)


if __name__ == "__main__":
    write_parquet(rows_of(int(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]))
    print(next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")))  # noqa: T201
