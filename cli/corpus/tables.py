"""Corpora in tables: parquet files, and datasets of the hub, row by row. A row's number stands where a line's would.

A row is what a line of a `.jsonl` file is: `_id`, `text` and, if it likes, `title`; other columns are ignored. Tables
often call the first `id`: that is taken where there is no `_id`. Memory holds one batch of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from cli.corpus.lines import BrokenRuleError, LocatedPassage, Skipped, passage_of
from shared.errors import InvalidInputError

HUB = "hf://"
BATCH_ROWS = 256


def read_parquet(path: Path) -> Iterator[LocatedPassage | Skipped]:
    return _passages(path, _parquet_rows(path))


def read_hub(address: str) -> Iterator[LocatedPassage | Skipped]:
    """A dataset by its address, streamed: hf://OWNER/NAME, and where there are several /CONFIG and /SPLIT behind it.

    Raises InvalidInputError for an address that is none, and for a dataset that the library cannot get.
    """
    return _passages(address, _hub_rows(address))


def _passages(path: Path | str, rows: Iterable[dict[str, Any]]) -> Iterator[LocatedPassage | Skipped]:
    for number, row in enumerate(rows, start=1):
        if "_id" not in row and "id" in row:
            row = {**row, "_id": row["id"]}
        try:
            passage = passage_of(row)
        except BrokenRuleError as broken:
            yield Skipped(path, number, broken.rule, broken.detail)
        else:
            yield LocatedPassage(passage, path, number)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in ("_id", "id", "title", "text")]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInputError(path, None, f"not a parquet file that can be read: {error}") from error


def _hub_rows(address: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # a second of imports that nobody else should wait for

    name, config, split = _parsed(address)
    try:
        dataset = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # whatever the libraries raise for a name that is none, or a hub out of reach
        rule = f"the dataset cannot be had ({type(error).__name__}: {error}); or download it, and name the folder"
        raise InvalidInputError(address, None, rule) from error
    if split is None:
        if len(dataset) > 1:
            splits = ", ".join(f"{HUB}{name}/{config or 'default'}/{each}" for each in dataset)
            raise InvalidInputError(address, None, f"there are several splits, name one: {splits}")
        (dataset,) = dataset.values()
    return iter(dataset)


def _parsed(address: str) -> tuple[str, str | None, str | None]:
    parts = address.removeprefix(HUB).split("/")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise InvalidInputError(address, None, "a dataset of the hub is hf://OWNER/NAME, hf://OWNER/NAME/CONFIG/SPLIT")
    config, split = [*parts[2:], None, None][:2]
    return "/".join(parts[:2]), config, split
