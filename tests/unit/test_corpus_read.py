"""Files become passages, and each rule is told with its file and line."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cli.corpus.lines import MAX_ID_CHARS, MAX_LINE_BYTES, MAX_TEXT_CHARS, LocatedPassage, Rule, Skipped
from cli.corpus.read import read_passages
from cli.corpus.tables import BATCH_ROWS
from cli.corpus.text_folder import PASSAGE_CHARS, read_text_folder
from shared.errors import InvalidInputError
from shared.records import passage_id

GOOD = b'{"_id": "good", "title": "t", "text": "x"}'


def jsonl(folder: Path, *lines: bytes) -> Path:
    path = folder / "passages.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def passages(path: Path) -> list[tuple[str, str, str]]:
    items = list(read_passages(path))
    assert all(isinstance(item, LocatedPassage) for item in items), items
    return [
        (item.passage.source_id, item.passage.title, item.passage.text)
        for item in items
        if isinstance(item, LocatedPassage)
    ]


BROKEN = {
    b"{": Rule.MALFORMED_JSON,
    GOOD + b" {}": Rule.MALFORMED_JSON,
    b'{"_id": "1", "text": "x", "score": NaN}': Rule.MALFORMED_JSON,
    b'{"_id": "1", "text": "x", "n": ' + b"9" * 5000 + b"}": Rule.MALFORMED_JSON,
    b"[" * 100_000: Rule.MALFORMED_JSON,
    b'["_id", "text"]': Rule.NOT_AN_OBJECT,
    b"null": Rule.NOT_AN_OBJECT,
    b'{"_id": "1", "text": "x", "text": "y"}': Rule.REPEATED_KEY,
    b'{"text": "x"}': Rule.MISSING_ID,
    b'{"_id": "", "text": "x"}': Rule.MISSING_ID,
    b'{"_id": "1", "title": "x"}': Rule.MISSING_TEXT,
    b'{"_id": "1", "text": " \\n\\t"}': Rule.MISSING_TEXT,
    b'{"_id": "1", "text": null}': Rule.MISSING_TEXT,
    b'{"_id": 1.5, "text": "x"}': Rule.NOT_A_STRING,
    b'{"_id": true, "text": "x"}': Rule.NOT_A_STRING,
    b'{"_id": "1", "text": ["x"]}': Rule.NOT_A_STRING,
    b'{"_id": "1", "text": "x", "title": {}}': Rule.NOT_A_STRING,
    b'{"_id": "1", "text": "caf\xe9"}': Rule.INVALID_UTF8,
    b'{"_id": "1", "text": "\xed\xa0\x80"}': Rule.INVALID_UTF8,
    b'{"_id": "1", "text": "x\x00y"}': Rule.NUL_BYTE,
    b'{"_id": "1", "text": "x\\u0000y"}': Rule.NUL_BYTE,
    b'{"_id": "1", "text": "x", "title": "\\u0000"}': Rule.NUL_BYTE,
    b'{"_id": "1\\u0000", "text": "x"}': Rule.NUL_BYTE,
    b'{"_id": "1", "text": "\\ud83d alone"}': Rule.UNPAIRED_SURROGATE,
    b'{"_id": "\\udc00", "text": "x"}': Rule.UNPAIRED_SURROGATE,
    b'{"_id": "' + b"i" * (MAX_ID_CHARS + 1) + b'", "text": "x"}': Rule.ID_TOO_LONG,
    b'{"_id": "1", "title": "t", "text": "' + b"x" * MAX_TEXT_CHARS + b'"}': Rule.TEXT_TOO_LONG,
    b'{"_id": "1", "text": "x", "other": "' + b"x" * MAX_LINE_BYTES + b'"}': Rule.LINE_TOO_LONG,
}


@pytest.mark.parametrize(("line", "rule"), BROKEN.items(), ids=[f"{n}-{r.code}" for n, r in enumerate(BROKEN.values())])
def test_a_broken_rule_is_told_with_its_line_and_what_follows_is_still_read(
    tmp_path: Path, line: bytes, rule: Rule
) -> None:
    path = jsonl(tmp_path, GOOD, b"", line, GOOD)

    before, broken, after = read_passages(path)

    assert isinstance(broken, Skipped)
    assert (broken.path, broken.line, broken.rule) == (path, 3, rule)
    assert isinstance(before, LocatedPassage)
    assert isinstance(after, LocatedPassage)
    assert (before.line, after.line) == (1, 4)
    error = broken.error()
    assert str(error).startswith(f"{path}:3: {rule.code}: {rule.value}")
    assert (error.path, error.line) == (path, 3)


def test_every_rule_that_one_line_can_break_is_tested_above() -> None:
    assert set(BROKEN.values()) == set(Rule) - {Rule.ID_WITH_TWO_TEXTS}


def test_limits_are_the_last_values_allowed(tmp_path: Path) -> None:
    longest = {"_id": "i" * MAX_ID_CHARS, "title": "t" * 10, "text": "\U0001f600" * (MAX_TEXT_CHARS - 10)}
    path = jsonl(tmp_path, json.dumps(longest).encode())  # twelve bytes to a character, as surrogate pairs

    assert passages(path) == [(longest["_id"], longest["title"], longest["text"])]


def test_byte_order_mark_carriage_returns_blank_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + b'{"_id": 7, "text": "\\ud83d\\ude00", "title": null}')

    assert passages(path) == [("good", "t", "x"), ("7", "", "\U0001f600")]


def test_a_beir_folder_is_read_by_its_corpus(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(GOOD)
    (tmp_path / "queries.jsonl").write_bytes(b"not a corpus")
    (tmp_path / "notes.md").write_text("not in a BEIR folder")

    (item,) = read_passages(tmp_path)

    assert isinstance(item, LocatedPassage)
    assert item.passage.passage_id == passage_id("t", "x")
    assert item.path == tmp_path / "corpus.jsonl"


def test_memory_is_bounded_by_the_longest_line_allowed(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b"\n" + b'{"_id": "1", "text": "')
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b'"}\n' + GOOD + b"\n")

    tracemalloc.start()
    items = list(read_passages(path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [item.line for item in items] == [1, 2, 3]
    assert isinstance(items[1], Skipped)
    assert items[1].rule is Rule.LINE_TOO_LONG
    assert peak_bytes < 5 * MAX_LINE_BYTES


def test_a_folder_of_texts_may_hold_tables_that_are_none_of_its_business(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data.parquet").touch()
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / "guide.md").write_text("a guide")
    assert [text for _, _, text in passages(tmp_path)] == ["read me", "a guide"]
    (tmp_path / "guide.md").unlink()
    (tmp_path / "tests").rename(tmp_path / ".venv")
    assert [text for _, _, text in passages(tmp_path)] == ["read me"]


def downloaded(path: Path) -> None:
    """A dataset of the hub: its README would be a corpus of its own."""
    (path / "data").mkdir(parents=True)
    (path / "README.md").write_text("about the data")
    (path / "data" / "train-00000.parquet").touch()


def with_its_license(path: Path) -> None:
    path.mkdir()
    (path / "LICENSE.md").write_text("all rights")
    table(path / "data.parquet", {"_id": "a", "text": "x"})


def test_a_folder_of_tables_may_have_texts_about_them(tmp_path: Path) -> None:
    with_its_license(tmp_path / "data")
    assert passages(tmp_path / "data") == [("a", "", "x")]


def test_a_folder_of_texts_may_have_lines_beside_them(tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("a guide")
    (tmp_path / "log.jsonl").write_text("{}")
    assert [text for _, _, text in passages(tmp_path)] == ["a guide"]


def mixed(path: Path) -> None:
    with_its_license(path)
    (path / "guide.md").write_text("a guide")


def lines_under_another_name(path: Path) -> None:
    path.mkdir()
    (path / "README.md").write_text("about the data")
    (path / "passages.jsonl").write_bytes(GOOD)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (mixed, "it has tables .data.parquet. and texts .guide.md.: move them apart"),
        (lines_under_another_name, "name passages.jsonl itself"),
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "no corpus.jsonl and no .txt or .md"),
        (lambda path: path.write_text("a,b"), "not a kind of corpus"),
        (downloaded, r"no .parquet file in it, but in .*corpus.csv.data"),
    ],
    ids=["tables-and-texts", "other-jsonl", "missing", "empty-folder", "unknown-kind", "dataset-folder"],
)
def test_a_path_that_is_no_corpus_is_an_error(tmp_path: Path, make: object, rule: str) -> None:
    path = tmp_path / "corpus.csv"
    assert callable(make)
    make(path)

    with pytest.raises(InvalidInputError, match=rule):
        list(read_passages(path))


# ---- tables


def table(path: Path, *rows: dict[str, Any]) -> Path:
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_a_parquet_file_is_read_by_its_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"_id": "a", "title": None, "text": "x", "url": "u"},
        {"_id": "b", "title": "t", "text": "y", "url": "v"},
    ]
    assert passages(table(tmp_path / "one.parquet", *rows)) == [("a", "", "x"), ("b", "t", "y")]
    assert passages(table(tmp_path / "two.parquet", {"id": 7, "text": "z"})) == [("7", "", "z")]
    assert [passage[0] for passage in passages(tmp_path)] == ["a", "b", "7"], "a folder's files, in their order"


def test_a_row_that_breaks_a_rule_is_told_by_its_number(tmp_path: Path) -> None:
    many: list[dict[str, Any]] = [{"_id": str(n), "text": "x"} for n in range(BATCH_ROWS + 1)]
    found = list(read_passages(table(tmp_path / "broken.parquet", *many, {"_id": "last", "text": " "})))
    (broken,) = [item for item in found if isinstance(item, Skipped)]
    assert (broken.line, broken.rule) == (BATCH_ROWS + 2, Rule.MISSING_TEXT)
    (wrong,) = read_passages(table(tmp_path / "wrong.parquet", {"_id": "a", "text": ["x"]}))
    assert isinstance(wrong, Skipped)
    assert wrong.rule is Rule.NOT_A_STRING
    for row in ({"docid": "a", "text": "x"}, {"_id": "a", "body": "x"}):
        there = ", ".join(row)
        with pytest.raises(InvalidInputError, match=rf"columns `_id` \(or `id`\) and `text`, and this has {there}"):
            list(read_passages(table(tmp_path / "others.parquet", row)))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(InvalidInputError, match=r"text\.parquet"):
        list(read_passages(tmp_path / "text.parquet"))


def test_a_dataset_is_read_as_the_hub_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a folder for a dataset of that name, so this is its own streaming, without the hub."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    table(folder / "corpus.parquet", {"_id": "a", "title": "t", "text": "x"}, {"_id": "b", "title": "", "text": ""})
    passage, broken = read_passages("hf://owner/name")
    assert isinstance(passage, LocatedPassage)
    assert (passage.passage.source_id, passage.path, passage.line) == ("a", "hf://owner/name", 1)
    assert str(cast(Skipped, broken).error()).startswith("hf://owner/name:2: missing-text")

    table(folder / "train.parquet", {"_id": "a", "title": "t", "text": "x"})
    (folder / "corpus.parquet").unlink()
    table(folder / "test.parquet", {"_id": "b", "title": "t", "text": "y"})
    with pytest.raises(InvalidInputError, match="several splits, name one: hf://owner/name/default/train"):
        list(read_passages("hf://owner/name"))
    (only,) = read_passages("hf://owner/name/default/test")
    assert isinstance(only, LocatedPassage)
    assert only.passage.source_id == "b"
    (tmp_path / "owner" / "empty").mkdir()
    for wrong in ("hf://name", "hf://owner//x", "hf://a/b/c/d/e", "hf://owner/empty"):
        with pytest.raises(InvalidInputError, match=wrong):
            list(read_passages(wrong))


# ---- text files


def test_a_text_folder_is_read_in_order_with_titles_and_ids(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.md").write_text("hidden")
    (tmp_path / "b" / "guide.MD").write_text("intro\n\n```\n# no heading\n```\n\n# The guide #\n\ntext\n")
    (tmp_path / "a.txt").write_text("# no heading in plain text\r\n\r\nsecond")
    (tmp_path / "empty.md").write_text("\n\n")
    (tmp_path / "ignored.py").write_text("code")

    def hashed(title: str, text: str) -> str:
        return passage_id(title, text).hex[:12]

    second, guide = "# no heading in plain text\n\nsecond", "intro\n\n```\n# no heading\n```\n\ntext"
    assert passages(tmp_path) == [
        (f"a.txt#{hashed('a', second)}", "a", second),
        (f"b/guide.MD#{hashed('The guide', guide)}", "The guide", guide),
    ]


def test_paragraphs_are_packed_and_a_heading_stays_with_what_follows_it(tmp_path: Path) -> None:
    first, second = "a" * 600, "b" * 590
    (tmp_path / "x.md").write_text(f"# Title\n\n{first}\n\n## Section\n\n### Part\n\n{second}\n\nlast\n")

    items = list(read_passages(tmp_path))

    assert [(item.passage.text, item.line) for item in items if isinstance(item, LocatedPassage)] == [
        (first, 3),
        (f"## Section\n### Part\n{second}\n\nlast", 5),
    ]


def test_a_long_paragraph_is_cut_behind_a_sentence(tmp_path: Path) -> None:
    sentence = "This one is exactly fifty characters long, I hope. "
    (tmp_path / "x.txt").write_text(sentence * 40)

    texts = [text for _, _, text in passages(tmp_path)]

    assert len(texts) == 2
    assert all(text.endswith("I hope.") for text in texts)


@given(st.text(st.sampled_from("ab#.` \n\té"), max_size=5000), st.sampled_from(["x.txt", "x.md"]))
def test_cutting_loses_no_word_and_keeps_to_the_limit(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    (folder / name).write_bytes(text.encode())

    found = [item.passage for item in read_text_folder(folder) if isinstance(item, LocatedPassage)]

    assert all(0 < len(passage.text) <= PASSAGE_CHARS for passage in found)
    kept = "".join("".join(passage.text.split()) for passage in found)
    whole = "".join(text.split())
    left_out = len(whole) - len(kept)  # nothing, or the line of the title
    assert any(kept == whole[:at] + whole[at + left_out :] for at in range(len(kept) + 1))
    if left_out:
        assert name == "x.md"
        assert all(passage.title != "x" for passage in found)


def test_a_broken_line_of_a_text_file_is_left_out_alone(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"one\ntwo \xff\nthree \x00\nfour\n")

    items = list(read_passages(tmp_path))

    assert [(item.line, item.rule) for item in items if isinstance(item, Skipped)] == [
        (2, Rule.INVALID_UTF8),
        (3, Rule.NUL_BYTE),
    ]
    assert [item.passage.text for item in items if isinstance(item, LocatedPassage)] == ["one\n\nfour"]


def test_a_paragraph_of_any_length_needs_no_more_memory_than_a_passage(tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("w") as file:
        for _ in range(4):
            file.write("no blank line, and so one paragraph of two megabytes\n" * 10_000)

    tracemalloc.start()
    count = sum(1 for _ in read_passages(tmp_path))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count > 1000
    assert peak_bytes < 2**19


def test_a_file_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        path.write_text("text")
    except OSError:
        pytest.skip("this file system takes no such name")

    (item,) = read_passages(tmp_path)

    assert isinstance(item, Skipped)
    assert (item.rule, item.line) == (Rule.UNPAIRED_SURROGATE, 1)
