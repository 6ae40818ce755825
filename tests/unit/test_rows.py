"""Datasets in every form they come in, read to the same rows; and what is said of broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from services.trainer import rows
from services.trainer.mixture_config import PairSource
from services.trainer.rows import read_rows
from shared.database import is_transient
from shared.errors import InvalidInputError, SetbackError, SettingError

ROWS = [
    {"query": 'who said "hello", and when', "positive": "Nobody.\nOr somebody."},
    {"query": "wie heißt er", "positive": "Jürgen"},
]


def source(path: Path, **values: object) -> PairSource:
    base = {"kind": "pair", "name": "x", "task_description": "question answering", "path": str(path)}
    return PairSource.model_validate({**base, **values})


def write_csv(folder: Path) -> Path:
    (folder / "x.csv").write_text(
        '\ufeffquery,positive\r\n"who said ""hello"", and when","Nobody.\nOr somebody."\r\n\r\nwie heißt er,Jürgen\r\n',
        encoding="utf-8",
        newline="",
    )
    return folder / "x.csv"


def write_jsonl(folder: Path) -> Path:
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "x.jsonl"


def write_parquet(folder: Path) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "x.parquet")
    return folder / "x.parquet"


def save_to_disk(folder: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def save_splits(folder: Path) -> Path:
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(folder / "saved")
    return folder / "saved"


def copy_repository(folder: Path) -> Path:
    (folder / "repository" / "data").mkdir(parents=True)
    write_parquet(folder).rename(folder / "repository" / "data" / "train-00000-of-00001.parquet")
    return folder / "repository"


@pytest.mark.parametrize(
    "write",
    [write_csv, write_jsonl, write_parquet, save_to_disk, save_splits, copy_repository],
    ids=lambda w: w.__name__,
)
def test_every_form_gives_the_same_rows(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    places, rows = zip(*read_rows(source(path)), strict=True)
    assert list(rows) == ROWS
    assert {Path(place[0]) for place in places} == {path}
    assert [place[1] for place in places] == {"x.csv": [2, 5], "x.jsonl": [1, 3]}.get(path.name, [1, 2])


def test_tabs_need_no_quotes_and_a_header_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "sts.csv"
    path.write_text('news\t4.5\t"Yes", he said\tHe said "yes\nnews\t1\ta\tb\tone\tmore\n')
    columns = ("genre", "score", "sentence1", "sentence2")
    rows = [row for _, row in read_rows(source(path, delimiter="\t", columns=columns))]
    assert rows[0] == {"genre": "news", "score": "4.5", "sentence1": '"Yes", he said', "sentence2": 'He said "yes'}
    assert rows[1]["sentence2"] == "b"


@pytest.mark.parametrize(
    ("name", "content", "line", "rule"),
    [
        ("x.csv", b"query,positive\na,b\n\nc\n", 4, "1 fields, and there are 2 columns: query, positive"),
        ("x.csv", b"query,positive\na,b,c\n", 2, "3 fields"),
        ("x.csv", b"query,query\n", 1, "two columns have the same name"),
        ("x.csv", b'query,positive\na,b\n"c,d\ne,f\n', 3, "not valid CSV"),
        ("x.csv", b"query,positive\na,\xff\n", 2, "not valid UTF-8"),
        ("x.jsonl", b'{"query": "a"}\n{"query": \n', 2, "not valid JSON"),
        ("x.jsonl", b"[]\n", 1, "has to be a JSON object"),
        ("x.parquet", b"PAR1", None, "not a parquet file"),
        ("x.xml", b"", None, "not a kind of dataset"),
    ],
)
def test_an_error_names_file_line_and_rule(
    tmp_path: Path, name: str, content: bytes, line: int | None, rule: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=rule) as caught:
        list(read_rows(source(path)))
    assert (caught.value.path, caught.value.line) == (path, line)


@pytest.mark.parametrize("name", ["no.csv", "no.jsonl", "no.parquet", "no"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="there is no such file"):
        list(read_rows(source(tmp_path / name)))


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot be read.*dev"):
        list(read_rows(source(save_splits(tmp_path), split="dev")))


def test_a_folder_that_breaks_off_is_told_with_the_row(tmp_path: Path) -> None:
    file = copy_repository(tmp_path) / "data" / "train-00000-of-00001.parquet"
    sound = file.read_bytes()
    file.write_bytes(sound[:4] + b"\xff" * 40 + sound[44:])
    with pytest.raises(InvalidInputError, match=r"repository:1: reading the dataset stopped at this row \("):
        list(read_rows(source(tmp_path / "repository")))


@pytest.mark.parametrize("error", [ConnectionError("Server Disconnected"), OSError(28, "No space left on device")])
def test_a_hub_that_is_away_in_the_middle_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def breaks_off(*_: object, **__: object) -> Iterator[dict[str, str]]:
        yield ROWS[0]
        raise error

    monkeypatch.setattr(rows, "load_dataset", breaks_off)
    with pytest.raises(type(error)) as caught:
        list(read_rows(source(tmp_path)))
    assert is_transient(caught.value)


@pytest.mark.parametrize(("error", "kind"), [(ConnectionError("away"), SetbackError), (KeyError("x"), SettingError)])
def test_a_hub_that_is_away_at_the_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(rows, "load_dataset", fails)
    asked = PairSource(kind="pair", name="x", task_description="t", hub="owner/name")
    with pytest.raises(kind, match=r"'owner/name' of the source 'x' cannot be loaded .*name a copy by `path`"):
        list(read_rows(asked))


def test_a_parquet_file_that_is_broken_behind_good_rows_is_told_with_the_row(tmp_path: Path) -> None:
    path = tmp_path / "late.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS * 1024), path, row_group_size=1024)
    second = parquet.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    sound = path.read_bytes()
    path.write_bytes(sound[:second] + b"\xff" * 40 + sound[second + 40 :])
    with pytest.raises(InvalidInputError, match=r"late\.parquet:1025: something in the 1,024 rows from this one on"):
        list(read_rows(source(path)))


def test_a_parquet_file_with_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    parquet.write_table(pyarrow.table({"query": broken, "positive": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InvalidInputError, match=r"x\.parquet:1: something in the 1,024 rows .* 'utf-8' codec"):
        list(read_rows(source(tmp_path / "x.parquet")))


def test_a_csv_file_may_hold_long_passages(tmp_path: Path) -> None:
    long = "word " * 100_000
    (tmp_path / "x.csv").write_text(f"query,positive\nq,{long}\n")
    assert [row for _, row in read_rows(source(tmp_path / "x.csv"))] == [{"query": "q", "positive": long}]
