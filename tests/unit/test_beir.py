"""Reading a BEIR folder: what is there, and for each broken rule the file, the line and the rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.beir import BeirPassage, read_beir
from shared.errors import InvalidInputError

CORPUS = '{"_id": "b", "title": "T", "text": "two"}\n{"_id": "a", "text": "one"}\n'
QUERIES = '{"_id": "q1", "text": "first?"}\n{"_id": "q2", "text": "unjudged"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t0\n"


def folder(tmp_path: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS) -> Path:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text(queries, encoding="utf-8")
    (tmp_path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return tmp_path


def test_reads_in_the_order_of_ids_and_only_what_is_judged(tmp_path: Path) -> None:
    data = read_beir(folder(tmp_path))
    assert data.passages == (BeirPassage("a", "", "one"), BeirPassage("b", "T", "two"))
    assert data.query_texts == {"q1": "first?"}
    assert data.qrels == {"q1": {"a": 2, "b": 0}}


def test_reads_qrels_without_a_header_and_with_blank_lines(tmp_path: Path) -> None:
    assert read_beir(folder(tmp_path, qrels="q1\ta\t1\r\n\nq2\tb\t1\n")).qrels == {"q1": {"a": 1}, "q2": {"b": 1}}


def test_takes_what_an_import_takes(tmp_path: Path) -> None:
    """Ids that are numbers, titles that are null, and a header in somebody's own words."""
    corpus = '{"_id": 7, "title": null, "text": "one"}\n'
    qrels = "query\tpassage\trelevance\n1\t7\t1\n"
    data = read_beir(folder(tmp_path, corpus, '{"_id": 1, "text": "first?"}\n', qrels))
    assert data.passages == (BeirPassage("7", "", "one"),)
    assert data.qrels == {"1": {"7": 1}}


@pytest.mark.parametrize(
    ("broken", "file", "line", "rule"),
    [
        ({"corpus": CORPUS + "{"}, "corpus.jsonl", 3, "JSON"),
        ({"corpus": CORPUS + "[]\n"}, "corpus.jsonl", 3, "object"),
        ({"corpus": CORPUS + '{"text": "x"}\n'}, "corpus.jsonl", 3, "_id"),
        ({"corpus": CORPUS + '{"_id": "", "text": "x"}\n'}, "corpus.jsonl", 3, "_id"),
        ({"corpus": CORPUS + '{"_id": "c", "text": null}\n'}, "corpus.jsonl", 3, "text"),
        ({"corpus": CORPUS + '{"_id": "c", "title": 1, "text": "x"}\n'}, "corpus.jsonl", 3, "title"),
        ({"corpus": CORPUS + '{"_id": "a", "text": "again"}\n'}, "corpus.jsonl", 3, "twice"),
        ({"queries": QUERIES + '{"_id": "q1", "text": "again"}\n'}, "queries.jsonl", 3, "twice"),
        ({"qrels": QRELS + "q1 a 1\n"}, "qrels/test.tsv", 4, "tabs"),
        ({"qrels": QRELS + "q9\ta\t1\n"}, "qrels/test.tsv", 4, "'q9'"),
        ({"qrels": QRELS + "q1\tz\t1\n"}, "qrels/test.tsv", 4, "'z'"),
        ({"qrels": QRELS + "q2\ta\thigh\n"}, "qrels/test.tsv", 4, "integer"),
        ({"qrels": "q1\ta\thigh\n"}, "qrels/test.tsv", 1, "integer"),
        ({"qrels": QRELS + "q1\ta\t1\n"}, "qrels/test.tsv", 4, "two scores"),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, "qrels/test.tsv", None, "no judgement"),
    ],
)
def test_an_error_names_file_line_and_rule(
    tmp_path: Path, broken: dict[str, str], file: str, line: int | None, rule: str
) -> None:
    with pytest.raises(InvalidInputError, match=rule) as caught:
        read_beir(folder(tmp_path, **broken))
    assert (caught.value.path, caught.value.line) == (tmp_path / file, line)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "queries.jsonl").write_bytes(QUERIES.encode() + b'{"_id": "q3", "text": "\xff"}\n')
    with pytest.raises(InvalidInputError, match="UTF-8") as caught:
        read_beir(tmp_path)
    assert caught.value.line == 3


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"dev\.tsv.*no such file; the folder has qrels for --split test$"):
        read_beir(folder(tmp_path), "dev")
