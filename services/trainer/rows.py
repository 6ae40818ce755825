"""Reads a dataset row by row, whatever it is stored in, each row with its place, and knows nothing of its meaning.

Memory holds a row, or a batch of rows of a parquet file or a hub's stream. What breaks a format's rules is an
InvalidInputError with file, line and rule; what goes away by itself, as a hub or room on the disk comes back, is raised
as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from datasets import DatasetDict, load_dataset, load_from_disk
from huggingface_hub.errors import OfflineModeIsEnabled
from pyarrow import parquet

from services.trainer.lines import Where, json_lines, text_lines
from services.trainer.mixture_config import DatasetSource
from shared.database import is_transient
from shared.errors import InvalidInputError, SetbackError, SettingError

Row = tuple[Where, dict[str, Any]]

csv.field_size_limit(2**24)  # characters; the reader's own limit of 2^17 refuses long passages

PARQUET_ROWS = 1024  # read at once
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_rows(source: DatasetSource) -> Iterator[Row]:
    """The source's rows in their order; a row of a dataset has its number for a line.

    Raises InvalidInputError for what is missing, of no known kind or broken, SettingError for a dataset that the hub
    does not give out, SetbackError where it does not answer.
    """
    if source.path is None:
        return _read_hub(source)
    path = Path(source.path)
    if path.is_dir():
        return _read_folder(source, path)
    return read_table(path, source.delimiter, source.columns)


def read_table(path: Path, delimiter: str | None = None, columns: tuple[str, ...] | None = None) -> Iterator[Row]:
    """The rows of a file; of a csv file, `delimiter` and `columns` where it has no commas or no header."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path, delimiter or ("\t" if suffix == ".tsv" else ","), columns)
    if suffix == ".jsonl":
        return json_lines(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    rule = f"not a kind of dataset: name a {', '.join(TABLE_SUFFIXES)} file, or a folder"
    raise InvalidInputError(path, None, rule if path.exists() else "there is no such file or folder")


def _read_csv(path: Path, delimiter: str, columns: tuple[str, ...] | None) -> Iterator[Row]:
    # tab-separated files, STS-B's among them, have bare quotes in their texts
    lines = (line for _, line in text_lines(path))
    reader = (
        csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        if delimiter == "\t"
        else csv.reader(lines, delimiter=delimiter, strict=True)
    )
    names = columns
    line = 1
    try:
        for fields in reader:
            if names is None:
                names = tuple(fields)
                if len(set(names)) != len(names):
                    raise InvalidInputError(path, line, "two columns have the same name")
            elif fields:
                # STS-B has two more fields in some lines than in others, and no header
                if len(fields) < len(names) or (columns is None and len(fields) > len(names)):
                    rule = f"the line has {len(fields)} fields, and there are {len(names)} columns: {', '.join(names)}"
                    raise InvalidInputError(path, line, rule)
                yield (path, line), dict(zip(names, fields, strict=False))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InvalidInputError(path, line, f"not valid CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise InvalidInputError(path, None, "there is no such file")
    number: int | None = None
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield (path, number), row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a broken page, or a text that is no UTF-8
        if is_transient(error):
            raise
        if number is None:
            raise InvalidInputError(path, None, f"not a parquet file that can be read: {error}") from None
        rule = f"something in the {PARQUET_ROWS:,} rows from this one on cannot be read: {error}"
        raise InvalidInputError(path, number + 1, rule) from None


def _read_folder(source: DatasetSource, path: Path) -> Iterator[Row]:
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            dataset = load_from_disk(str(path))
            if isinstance(dataset, DatasetDict):
                dataset = dataset[source.split]
        else:
            dataset = load_dataset(str(path), source.config, split=source.split, streaming=True)
    except Exception as error:  # whatever the library raises for a folder without data, a configuration or a split
        rule = f"the dataset cannot be read: {type(error).__name__}: {error}"
        raise InvalidInputError(path, None, rule) from error
    return _numbered(dataset, path)


def _read_hub(source: DatasetSource) -> Iterator[Row]:
    assert source.hub is not None  # noqa: S101 - a source has a path or a hub name
    try:
        dataset = load_dataset(source.hub, source.config, split=source.split, streaming=True)
    except Exception as error:  # whatever the libraries raise for a name that is none, or a hub out of reach
        # a hub that is away may be back, unless nobody is to ask it (HF_HUB_OFFLINE)
        away = is_transient(error) and not isinstance(error, OfflineModeIsEnabled)
        kind = SetbackError if away else SettingError
        raise kind(
            f"the dataset {source.hub!r} of the source {source.name!r} cannot be loaded ({type(error).__name__}: "
            f"{error}); look at its name, config and split, or where the hub is out of reach name a copy by `path`"
        ) from error
    return _numbered(dataset, source.hub)


def _numbered(dataset: Iterable[dict[str, Any]], name: Path | str) -> Iterator[Row]:
    number = 0
    try:
        for number, row in enumerate(dataset, start=1):
            yield (name, number), row
    except Exception as error:  # whatever the library raises for a broken file
        if is_transient(error) or isinstance(error, MemoryError):
            raise
        rule = f"reading the dataset stopped at this row ({type(error).__name__}: {error})"
        raise InvalidInputError(name, number + 1, rule) from error
