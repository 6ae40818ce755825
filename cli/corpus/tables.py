"""Corpora in tables: parquet files, and datasets of the hub, row by row. A row's number stands where a line's would.

A row is what a line of a `.jsonl` file is: `_id`, `text` and, if it likes, `title`; other columns are ignored. Tables
often call the first `id`: that is taken where there is no `_id`.

A parquet file may be small and hold much: a column stores a text that repeats once. So the footer decides how many rows
are read at a time, at most BATCH_BYTES of text or one row, and what is longer than a line may be, or no text at all,
never becomes a value of Python's. For the file's honesty about its own sizes there is no check.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import compute, parquet, types

from cli.corpus.lines import MAX_LINE_BYTES, BrokenRuleError, LocatedPassage, Rule, Skipped, passage_of
from shared.errors import InvalidInputError

HUB = "hf://"
BATCH_ROWS = 256
BATCH_BYTES = 2**28
READ_BYTES = 2**20
COLUMNS = ("_id", "id", "title", "text")


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
            for value in row.values():
                if isinstance(value, BrokenRuleError):
                    raise value
            passage = passage_of(row)
        except BrokenRuleError as broken:
            yield Skipped(path, number, broken.rule, broken.detail)
        else:
            yield LocatedPassage(passage, path, number)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows whose values are as a line's would be, or the BrokenRuleError that says why one is not."""
    row = 0
    try:
        # without a buffer, or with all of them beforehand, whole columns would be held
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            _check_columns(path, file.schema_arrow.names)
            wanted = [name for name in file.schema_arrow.names if name in COLUMNS]
            if len(set(wanted)) < len(wanted):
                raise InvalidInputError(path, None, f"a column stands twice: {', '.join(file.schema_arrow.names)}")
            for group in range(file.num_row_groups):
                # the group's sum and not its columns': of a broken column pyarrow's metadata ends the process
                rows_at_once = _rows_at_once(file.metadata.row_group(group).total_byte_size)
                for batch in file.iter_batches(rows_at_once, row_groups=[group], columns=wanted):
                    columns = [_values(column) for column in batch.columns]
                    for number in range(batch.num_rows):
                        yield {name: values[number] for name, values in zip(wanted, columns, strict=True)}
                    row += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a name of a column that is no text
        where = row + 1 if row else None
        raise InvalidInputError(path, where, f"not a parquet file that can be read: {error}") from error


def _check_columns(place: Path | str, names: Iterable[str]) -> None:
    there = list(names)
    if "text" not in there or not {"_id", "id"} & set(there):
        rule = (
            f"passages have the columns `_id` (or `id`) and `text`, and this has {', '.join(there)}: rename them first"
        )
        raise InvalidInputError(place, None, rule)


def _rows_at_once(group_bytes: int) -> int:
    """So many that a batch stays within BATCH_BYTES even if each row had a value as large as the whole row group."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(group_bytes, 1)))


def _values(column: pyarrow.Array) -> list[Any]:
    """The values of a batch's column; one by one where a text is too long or no text."""
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_string_view(column.type):
        column = column.cast(pyarrow.large_string())
    kind = column.type
    if types.is_integer(kind) or types.is_null(kind):
        return column.to_pylist()  # type: ignore[no-any-return]
    if not (types.is_string(kind) or types.is_large_string(kind)):
        wrong = BrokenRuleError(Rule.NOT_A_STRING, f"the column has the type {kind}")
        return [wrong if there else None for there in column.is_valid().to_pylist()]
    if (compute.max(compute.binary_length(column)).as_py() or 0) <= MAX_LINE_BYTES:
        try:
            return column.to_pylist()  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            pass  # one of them, so each by itself
    return [_text(scalar) for scalar in column]


def _text(scalar: pyarrow.Scalar) -> str | BrokenRuleError | None:
    raw = scalar.as_buffer()
    if raw is None:
        return None
    if raw.size > MAX_LINE_BYTES:
        return BrokenRuleError(Rule.LINE_TOO_LONG, f"a value of {raw.size:,} bytes")
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        return BrokenRuleError(Rule.INVALID_UTF8, f"byte {error.start + 1} of the value")


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
    row = 0
    try:
        for values in dataset:
            if row == 0:
                _check_columns(address, values)
            row += 1
            yield values
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the libraries raise for a broken file, or a hub that is out of reach by now
        rule = f"reading the dataset stopped at this row ({type(error).__name__}: {error})"
        raise InvalidInputError(address, row + 1, rule) from error


def _parsed(address: str) -> tuple[str, str | None, str | None]:
    parts = address.removeprefix(HUB).split("/")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise InvalidInputError(address, None, "a dataset of the hub is hf://OWNER/NAME, hf://OWNER/NAME/CONFIG/SPLIT")
    config, split = [*parts[2:], None, None][:2]
    return "/".join(parts[:2]), config, split
