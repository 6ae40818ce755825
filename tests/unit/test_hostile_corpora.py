"""Whatever a file holds, its reader gives what the ledger can hold, or names file and line; in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cli.corpus.lines import MAX_LINE_BYTES, LocatedPassage, Rule, Skipped, checked_passage
from cli.corpus.read import read_passages
from cli.corpus.tables import BATCH_BYTES
from shared.errors import InvalidInputError

RTL = "\u202eשלום \u2067مرحبا\u2069 \u200f"
PIECES = (
    *(b'{"_id": "1", "text": "x"}', b'{"_id": "', b'", "title": "', b'", "text": "', b'"}', b"{", b"[", b'"', b"null"),
    *(b"\x00", b"\\u0000", b"\\ud83d", b"\\ude00", b"\xed\xa0\x80", b"\xff", b"\xc3", b"\xef\xbb\xbf", RTL.encode()),
    *(b"\n", b"\r\n", b"\r", b"\x85", "\u2028".encode(), b"# ", b"```", b"9" * 5000, b"[" * 2000),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def read(path: Path) -> list[LocatedPassage | Skipped]:
    """What a reader makes of a file; nothing of one that it refuses. Any other error fails the test."""
    try:
        items = list(read_passages(path))
    except InvalidInputError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - it may be refused, and need not
        return []
    for item in items:
        assert item.line > 0
        if isinstance(item, LocatedPassage):
            made = item.passage
            assert checked_passage(made.source_id, made.title, made.text) == made
        else:
            assert str(item.error()).startswith(f"{item.path}:{item.line}: {item.rule.code}")
    return items


@pytest.mark.parametrize("name", ["x.jsonl", "text/x.txt", "text/x.md", "x.parquet"])
@given(pieces=st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=20)), max_size=30))
@example(pieces=[b'{"_id": "1", "text": "', RTL.encode(), b'"}'])
def test_any_bytes_are_passages_or_told(folder: Path, name: str, pieces: list[bytes]) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(pieces))
    read(path)
    if path.parent != folder:
        read(path.parent)
        path.unlink()


def test_text_from_right_to_left_stays_as_it_is(folder: Path) -> None:
    parquet.write_table(pa.table({"_id": [RTL], "text": [RTL]}), folder / "rtl.parquet")
    (item,) = read(folder / "rtl.parquet")
    assert isinstance(item, LocatedPassage)
    assert (item.passage.source_id, item.passage.text) == (RTL, RTL)


# ---- tables


@pytest.fixture(scope="module")
def sound(folder: Path) -> bytes:
    """A parquet file of 40 rows in four groups, some without a title."""
    rows = range(40)
    columns = {"_id": [str(n) for n in rows], "title": [f"t{n % 3}" if n % 2 else None for n in rows]}
    table = pa.table({**columns, "text": [f"Passage {n} {RTL}" for n in rows]})
    parquet.write_table(table, folder / "sound.parquet", row_group_size=10)
    return (folder / "sound.parquet").read_bytes()


@given(data=st.data())
@settings(max_examples=150, derandomize=True)  # of the code that reads it some is C++, whose abort no test survives
def test_a_broken_parquet_file_is_refused_or_read(folder: Path, sound: bytes, data: st.DataObject) -> None:
    broken = bytearray(sound)
    for at in data.draw(st.lists(st.integers(0, len(sound) - 1), max_size=4)):
        broken[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(sound)), st.integers(0, len(sound))))
    (folder / "broken.parquet").write_bytes(broken[:cut])
    read(folder / "broken.parquet")


def test_what_is_broken_behind_good_rows_is_told_with_the_row(folder: Path, sound: bytes) -> None:
    third = parquet.ParquetFile(folder / "sound.parquet").metadata.row_group(2).column(0).dictionary_page_offset
    path = folder / "late.parquet"
    path.write_bytes(sound[:third] + b"\xff" * 40 + sound[third + 40 :])
    with pytest.raises(InvalidInputError, match=r"late\.parquet:21: not a parquet file that can be read"):
        list(read_passages(path))


def test_a_dataset_that_breaks_off_is_told_with_its_address(
    tmp_path: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes a folder for a dataset of that name."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "owner" / "name" / "corpus.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(sound[:4] + b"\xff" * 40 + sound[44:])
    with pytest.raises(InvalidInputError, match="hf://owner/name:1: reading the dataset stopped at this row"):
        list(read_passages("hf://owner/name"))


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffx")]
)


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        (pa.array([b"x", None]), Rule.NOT_A_STRING),
        (pa.array([["x"], None]), Rule.NOT_A_STRING),
        (pa.array([{"text": "x"}, None]), Rule.NOT_A_STRING),
        (pa.array([True, None]), Rule.NOT_A_STRING),
        (pa.array([2**62, None], pa.timestamp("us")), Rule.NOT_A_STRING),  # no time that Python has
        (pa.array([7, None]), Rule.NOT_A_STRING),
        (pa.array(["a\0", None]), Rule.NUL_BYTE),
        (NOT_UTF8, Rule.INVALID_UTF8),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value.code,
)
def test_a_column_that_holds_no_text_is_told_by_row(folder: Path, column: pa.Array, rule: Rule) -> None:
    parquet.write_table(pa.table({"_id": ["a", "b"], "text": column}), folder / "wrong.parquet")
    first, second = read(folder / "wrong.parquet")
    assert isinstance(first, Skipped)
    assert (first.line, first.rule) == (1, rule)
    if rule is Rule.INVALID_UTF8:
        assert isinstance(second, LocatedPassage), "the text beside it is one"
    else:
        assert isinstance(second, Skipped)
        assert second.rule is Rule.MISSING_TEXT


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_texts_of_every_kind_are_read(folder: Path, kind: pa.DataType) -> None:
    column = pa.array(["one", "two"], pa.string()).cast(kind)
    parquet.write_table(pa.table({"_id": column, "text": column}), folder / "kinds.parquet")
    assert [item.passage.text for item in read(folder / "kinds.parquet") if isinstance(item, LocatedPassage)] == [
        "one",
        "two",
    ]


def test_a_column_that_stands_twice_is_refused(folder: Path) -> None:
    twice = pa.table([pa.array(["1"]), pa.array(["x"]), pa.array(["y"])], names=["_id", "text", "text"])
    parquet.write_table(twice, folder / "twice.parquet")
    with pytest.raises(InvalidInputError, match=r"twice\.parquet: a column stands twice: _id, text, text"):
        list(read_passages(folder / "twice.parquet"))


def test_a_small_file_that_holds_gigabytes_is_read_in_bounded_memory(folder: Path) -> None:
    """One text of 32 MiB, stored once and meant 64 times: two gigabytes to whoever reads them all at once."""
    rows, path = 64, folder / "bomb.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2**25]))
    parquet.write_table(pa.table({"_id": [str(n) for n in range(rows)], "text": texts}), path, compression="zstd")
    assert path.stat().st_size < 2**16
    usual, counting = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counting)
    tracemalloc.start()
    try:
        items = read(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)

    assert [(item.line, item.rule) for item in items if isinstance(item, Skipped)] == [
        (number, Rule.LINE_TOO_LONG) for number in range(1, rows + 1)
    ]
    assert counting.max_memory() < 3 * BATCH_BYTES
    assert peak_bytes < MAX_LINE_BYTES
