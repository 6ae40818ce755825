"""Parquet in row groups of thousands of rows, whatever the batches that its rows come in.

Until the file is closed the writer keeps a description of every row group, with all of a record's columns some 70 kB
each. A row group for every batch would let an export's memory grow with the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

MAX_ROWS = 10_000
MAX_BYTES = 64 * 2**20  # of values in memory, uncompressed: passages may be long


def write_row_groups(batches: Iterable[list[dict[str, Any]]], path: Path, schema: pa.Schema) -> None:
    """Writes the rows in their order; a row group has at most MAX_ROWS and MAX_BYTES, or is one batch.

    Raises OSError where the file cannot be written.
    """
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        gathered: list[pa.Table] = []
        num_rows = num_bytes = 0
        for rows in batches:
            table = pa.Table.from_pylist(rows, schema)
            if gathered and (num_rows + table.num_rows > MAX_ROWS or num_bytes + table.nbytes > MAX_BYTES):
                writer.write_table(pa.concat_tables(gathered))
                gathered, num_rows, num_bytes = [], 0, 0
            gathered.append(table)
            num_rows += table.num_rows
            num_bytes += table.nbytes
        if gathered:
            writer.write_table(pa.concat_tables(gathered))
