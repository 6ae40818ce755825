"""An import on a real PostgreSQL: all of it or nothing, once and not twice, with the statistics that it should have."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text

from cli.corpus import version as corpus_version
from cli.corpus.lines import Rule, Skipped
from cli.corpus.remove import read_ids, remove_passages
from cli.corpus.store import ImportReport, import_corpus
from shared.errors import InvalidInputError, NotFoundError, SettingError
from shared.records import RunConfig, passage_id
from shared.runs import start_run
from shared.schema import corpora, corpus_terms, passages
from shared.store import load_passages
from shared.terms import passage_terms
from tests.servers import until

Line = tuple[str, str, str]  # _id, title, text

A: Line = ("a", "Alpha", "the first letter of the Greek alphabet")
B: Line = ("b", "", "the second letter")
C: Line = ("c", "Gamma", "the third; the third again")


def jsonl(folder: Path, lines: Sequence[Line | bytes], name: str = "passages.jsonl") -> Path:
    path = folder / name
    path.write_bytes(
        b"".join(
            (
                line
                if isinstance(line, bytes)
                else json.dumps(dict(zip(("_id", "title", "text"), line, strict=True))).encode()
            )
            + b"\n"
            for line in lines
        )
    )
    return path


def everything(engine: Engine) -> dict[str, list[Any]]:
    """All rows of all three tables, with the transactions that wrote them."""
    with engine.connect() as connection:
        return {
            table.name: sorted(connection.execute(text(f"SELECT xmin, * FROM {table.name}")).all(), key=str)  # noqa: S608
            for table in (corpora, passages, corpus_terms)
        }


def stored(engine: Engine) -> dict[str, tuple[str, str, int]]:
    with engine.connect() as connection:
        return {row.source_id: (row.title, row.text, row.added_version) for row in connection.execute(select(passages))}


def statistics(engine: Engine, version: int) -> dict[str, tuple[int, int]]:
    """The document and the collection frequency of each term."""
    with engine.connect() as connection:
        rows = connection.execute(select(corpus_terms).where(corpus_terms.c.version == version))
        return {row.term: (row.document_frequency, row.collection_frequency) for row in rows}


def recounted(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    per_passage = [Counter(passage_terms(title, body)) for _, title, body in lines]
    return {
        term: (sum(term in counts for counts in per_passage), sum(counts[term] for counts in per_passage))
        for term in set().union(*per_passage)
    }


def test_an_import_stores_passages_statistics_and_a_hash_of_the_content(engine: Engine, tmp_path: Path) -> None:
    report = import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))

    assert (report.version, report.passage_count, report.added, report.unchanged, report.duplicates) == (1, 3, 3, 0, 0)
    assert stored(engine) == {id_: (title, body, 1) for id_, title, body in (A, B, C)}
    assert statistics(engine, 1) == recounted([A, B, C])
    with engine.connect() as connection:
        corpus = connection.execute(select(corpora)).one()
        ids = set(connection.execute(select(passages.c.passage_id)).scalars())
    assert ids == {passage_id(title, body) for _, title, body in (A, B, C)}
    assert corpus.content_hash == hashlib.sha256(b"".join(id_.bytes for id_ in sorted(ids))).hexdigest()
    assert corpus.term_count == sum(len(passage_terms(title, body)) for _, title, body in (A, B, C))
    assert (corpus.name, corpus.version, corpus.passage_count) == ("greek", 1, 3)


def test_importing_twice_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [A, B, ("b again", *B[1:])])
    import_corpus(engine, "greek", path)
    before = everything(engine)

    report = import_corpus(engine, "greek", path)

    assert (report.version, report.added, report.unchanged, report.duplicates) == (1, 0, 2, 1)
    assert everything(engine) == before


def test_growing_by_steps_gives_the_same_corpus_as_one_import(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_version, "MAX_COUNTED_TERMS", 3)  # so that counts reach the database in many parts
    import_corpus(engine, "steps", jsonl(tmp_path, [A, B]))
    with engine.begin() as connection:
        start_run(connection, "steps", RunConfig())
    first = statistics(engine, 1)

    report = import_corpus(engine, "steps", jsonl(tmp_path, [B, C]))

    assert (report.version, report.added, report.unchanged, report.passage_count) == (2, 1, 1, 3)
    assert [version for _, _, version in stored(engine).values()] == [1, 1, 2]
    assert statistics(engine, 1) == first == recounted([A, B])  # what a run was frozen with stays
    assert statistics(engine, 2) == recounted([A, B, C])
    import_corpus(engine, "once", jsonl(tmp_path, [C, B, A]))
    with engine.connect() as connection:
        steps, once = connection.execute(
            select(corpora.c.content_hash, corpora.c.term_count, corpora.c.passage_count).order_by(
                corpora.c.name.desc()
            )
        ).all()
    assert steps == once


def test_a_text_under_a_second_id_is_counted_and_left_out(engine: Engine, tmp_path: Path) -> None:
    again = ("a2", *A[1:])
    report = import_corpus(engine, "greek", jsonl(tmp_path, [A, again, A, B]))

    assert (report.added, report.unchanged, report.duplicates) == (2, 1, 1)
    assert sorted(stored(engine)) == ["a", "b"]

    report = import_corpus(engine, "greek", jsonl(tmp_path, [again, C]))

    assert (report.added, report.unchanged, report.duplicates, report.version) == (1, 0, 1, 2)
    assert sorted(stored(engine)) == ["a", "b", "c"]


BROKEN = [
    (b"{not json}", Rule.MALFORMED_JSON),
    (b'{"text": "x"}', Rule.MISSING_ID),
    (b'{"_id": "x", "text": ""}', Rule.MISSING_TEXT),
    (b'{"_id": "x", "text": "\xff"}', Rule.INVALID_UTF8),
    (b'{"_id": "x", "text": "\\u0000"}', Rule.NUL_BYTE),
    (b'{"_id": "x", "text": "\\udead"}', Rule.UNPAIRED_SURROGATE),
    (json.dumps({"_id": "x", "text": "x" * 100_001}).encode(), Rule.TEXT_TOO_LONG),
    (b'{"_id": "b", "text": "another text"}', Rule.ID_WITH_TWO_TEXTS),
    (b'{"_id": "b", "title": "another title", "text": "the second letter"}', Rule.ID_WITH_TWO_TEXTS),
]


@pytest.mark.parametrize("there_before", [False, True], ids=["new-corpus", "existing-corpus"])
def test_a_line_that_breaks_a_rule_leaves_nothing_behind(engine: Engine, tmp_path: Path, there_before: bool) -> None:
    if there_before:
        import_corpus(engine, "greek", jsonl(tmp_path, [A]))
    before = everything(engine)

    for line, rule in BROKEN:
        path = jsonl(tmp_path, [A, B, line, C])
        with pytest.raises(InvalidInputError) as raised:
            import_corpus(engine, "greek", path)

        assert (raised.value.path, raised.value.line) == (path, 3)
        assert str(raised.value).startswith(f"{path}:3: {rule.code}: ")
        assert everything(engine) == before


def test_skip_invalid_imports_the_rest_and_names_each_line(engine: Engine, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [A, B, *(line for line, _ in BROKEN), C])
    told: list[Skipped] = []

    report = import_corpus(engine, "greek", path, skip_invalid=True, on_skipped=told.append)

    assert [(skipped.path, skipped.line, skipped.rule) for skipped in told] == [
        (path, number, rule) for number, (_, rule) in enumerate(BROKEN, start=3)
    ]
    assert report.skipped == Counter(rule.code for _, rule in BROKEN)
    assert (report.added, report.unchanged, report.duplicates) == (3, 0, 0)
    assert stored(engine) == {id_: (title, body, 1) for id_, title, body in (A, B, C)}


def test_an_id_that_stands_for_another_text_in_the_corpus(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B]))
    path = jsonl(tmp_path, [C, ("a", "Alpha", "a new text"), ("a", "Alpha", "a new text"), A])

    with pytest.raises(InvalidInputError, match=r"jsonl:2: id-with-two-texts: .*version 1 of the corpus"):
        import_corpus(engine, "greek", path)

    told: list[Skipped] = []
    report = import_corpus(engine, "greek", path, skip_invalid=True, on_skipped=told.append)

    assert [skipped.line for skipped in told] == [2, 3]
    assert (report.added, report.unchanged, report.duplicates) == (1, 1, 0)
    assert stored(engine)["a"] == (*A[1:], 1)


def test_texts_come_back_to_the_letter(engine: Engine, tmp_path: Path) -> None:
    texts = [
        "\\N",
        "\\.",
        "tab\tand\\tbackslash",
        "line\nfeed\r\n",
        "\x01\x7f\x85",
        "“”'\"",
        "\U0001f600é",
        " x ",
        "‮abc",
    ]
    import_corpus(engine, "odd", jsonl(tmp_path, [(body, body, body) for body in texts]))

    assert stored(engine) == {body: (body, body, 1) for body in texts}


def test_a_file_without_a_passage_makes_no_corpus(engine: Engine, tmp_path: Path) -> None:
    for lines in ([], [b"{}", b"{}"]):
        with pytest.raises(InvalidInputError, match="no passage to import"):
            import_corpus(engine, "empty", jsonl(tmp_path, lines), skip_invalid=True)

    assert everything(engine) == {"corpora": [], "passages": [], "corpus_terms": []}


def test_a_name_that_cannot_be_a_corpus(engine: Engine, tmp_path: Path) -> None:
    for name in ("", "two words", "../up", "-x", "x" * 64):
        with pytest.raises(InvalidInputError, match="no name for a corpus"):
            import_corpus(engine, name, jsonl(tmp_path, [A]))


def test_two_imports_of_one_name_wait_for_each_other(engine: Engine, tmp_path: Path) -> None:
    first_path = jsonl(tmp_path, [A, B], "first.jsonl")
    second_path = jsonl(tmp_path, [B, C], "second.jsonl")
    holds_the_lock, may_go_on = threading.Event(), threading.Event()
    reports: dict[str, ImportReport] = {}

    def pause(_: int) -> None:
        holds_the_lock.set()
        assert may_go_on.wait(30)

    def first() -> None:
        reports["first"] = import_corpus(engine, "greek", first_path, on_progress=pause)

    def second() -> None:
        reports["second"] = import_corpus(engine, "greek", second_path)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert holds_the_lock.wait(30)
    threads[1].start()
    until(lambda: _waiting_for_a_lock(engine) == 1, 30)
    may_go_on.set()
    for thread in threads:
        thread.join(30)

    assert (reports["first"].version, reports["first"].added) == (1, 2)
    assert (reports["second"].version, reports["second"].added, reports["second"].unchanged) == (2, 1, 1)
    assert statistics(engine, 2) == recounted([A, B, C])


def _waiting_for_a_lock(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(
            connection.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
            ).scalar_one()
        )


def test_an_import_that_is_killed_leaves_nothing_behind(engine: Engine, database_url: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path, [(str(number), "", f"passage {number}") for number in range(2_500)])
    script = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import create_engine
from cli.corpus.remove import read_ids, remove_passages
from cli.corpus.store import ImportReport, import_corpus
def kill(read):
    if read >= 2_000:
        os.kill(os.getpid(), signal.SIGKILL)
import_corpus(create_engine(sys.argv[1]), "greek", Path(sys.argv[2]), on_progress=kill)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, database_url, str(path)],
        cwd=Path(__file__).parents[2],
        env=os.environ,
        check=False,
    )

    assert ended.returncode == -signal.SIGKILL
    assert everything(engine) == {"corpora": [], "passages": [], "corpus_terms": []}
    assert import_corpus(engine, "greek", path).added == 2_500


def removed(engine: Engine, *source_ids: str) -> tuple[int, int, int]:
    report = remove_passages(engine, "greek", [(source_id, "here", 1) for source_id in source_ids])
    return report.version, report.removed, report.passage_count


def test_a_corpus_without_a_passage_is_the_one_that_never_had_it(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))
    with engine.begin() as connection:
        start_run(connection, "greek", RunConfig())
    first = statistics(engine, 1)
    assert removed(engine, "b", "b") == (2, 1, 2)
    before = everything(engine)
    assert removed(engine, "b") == (2, 0, 2)
    assert everything(engine) == before
    assert statistics(engine, 1) == first
    assert statistics(engine, 2) == recounted([A, C])
    import_corpus(engine, "never", jsonl(tmp_path, [A, C]))
    with engine.connect() as connection:
        rows = connection.execute(select(corpora.c.content_hash, corpora.c.term_count, corpora.c.passage_count)).all()
    assert rows[0] == rows[1]


def test_a_removed_passage_may_come_back_or_another_take_its_id(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))
    removed(engine, "a", "b")
    other: Line = ("b", "Beta", "another text")
    report = import_corpus(engine, "greek", jsonl(tmp_path, [other, ("b2", *B[1:]), C]))
    assert (report.version, report.added, report.unchanged, report.passage_count) == (3, 2, 1, 3)
    assert statistics(engine, 3) == recounted([other, B, C])
    with engine.connect() as connection:
        there = connection.execute(select(passages.c.source_id).where(passages.c.removed_version.is_(None))).scalars()
        assert set(there) == {"b", "b2", "c"}


def test_replacing_leaves_what_is_there_now(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))
    with engine.begin() as connection:
        start_run(connection, "greek", RunConfig())
    edited: Line = ("a", "Alpha", "the first letter, edited")
    now = jsonl(tmp_path, [edited, B])
    report = import_corpus(engine, "greek", now, replace=True)
    assert (report.version, report.added, report.removed, report.unchanged, report.passage_count) == (2, 1, 2, 1, 2)
    assert statistics(engine, 2) == recounted([edited, B])
    assert statistics(engine, 1) == recounted([A, B, C])
    before = everything(engine)
    report = import_corpus(engine, "greek", now, replace=True)
    assert (report.version, report.added, report.removed, report.unchanged) == (2, 0, 0, 2)
    import_corpus(engine, "never", now)
    with pytest.raises(SettingError, match="--skip-invalid would remove"):
        import_corpus(engine, "greek", now, replace=True, skip_invalid=True)
    with pytest.raises(InvalidInputError, match="jsonl:2"):
        import_corpus(engine, "greek", jsonl(tmp_path, [C, b"{"]), replace=True)
    with engine.connect() as connection:
        rows = connection.execute(select(corpora.c.content_hash, corpora.c.term_count, corpora.c.passage_count)).all()
    assert rows[0] == rows[1]
    assert everything(engine)["passages"][: len(before["passages"])] == before["passages"]


def test_replacing_gives_what_stays_the_ids_that_it_has_now(engine: Engine, tmp_path: Path) -> None:
    """As of rows that are numbered: one more at the top gives every passage the next one's `_id`."""
    import_corpus(engine, "greek", jsonl(tmp_path, [("1", *A[1:]), ("2", *B[1:]), ("3", *C[1:])]))
    swapped = jsonl(tmp_path, [("1", *B[1:]), ("2", *A[1:]), ("3", *C[1:])])
    report = import_corpus(engine, "greek", swapped, replace=True)
    assert (report.version, report.added, report.removed, report.unchanged, report.duplicates) == (1, 0, 0, 3, 0)
    assert stored(engine) == {"1": (*B[1:], 1), "2": (*A[1:], 1), "3": (*C[1:], 1)}
    new = ("1", "", "on top")
    report = import_corpus(engine, "greek", jsonl(tmp_path, [new, ("2", *B[1:]), ("3", *A[1:])]), replace=True)
    assert (report.version, report.added, report.removed, report.unchanged) == (2, 1, 1, 2)
    with engine.connect() as connection:
        there = select(passages.c.source_id, passages.c.text).where(passages.c.removed_version.is_(None))
        texts = {row.source_id: row.text for row in connection.execute(there)}
    assert texts == {"1": "on top", "2": B[2], "3": A[2]}
    assert statistics(engine, 2) == recounted([new, B, A])
    twice = jsonl(tmp_path, [("x", *A[1:]), ("x", *B[1:])])
    with pytest.raises(InvalidInputError, match="jsonl:2: id-with-two-texts"):
        import_corpus(engine, "greek", twice, replace=True)


def test_an_edited_text_is_new_where_it_was_edited_alone(engine: Engine, tmp_path: Path) -> None:
    paragraphs = [f"{letter} " * 500 for letter in "abc"]  # each a passage
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "x.md").write_text("\n\n".join(paragraphs))
    import_corpus(engine, "notes", folder)
    (folder / "x.md").write_text("\n\n".join(["z " * 500, *paragraphs[:2], "edited " * 150]))
    report = import_corpus(engine, "notes", folder, replace=True)
    assert (report.added, report.removed, report.unchanged) == (2, 1, 2)


def test_later_runs_are_without_it_and_earlier_ones_as_they_were(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))
    with engine.begin() as connection:
        early = start_run(connection, "greek", RunConfig())
    removed(engine, "b")
    gone = passage_id(*B[1:])
    with engine.begin() as connection:
        late = start_run(connection, "greek", RunConfig())
        for run, count in ((early, 3), (late, 2)):
            indexed = set(
                connection.execute(
                    text("SELECT unnest(item_ids) FROM shards WHERE run_id = :id AND stage = 'index'"),
                    {"id": run.run_id},
                ).scalars()
            )
            assert len(indexed) == count == run.passage_count
            assert (gone in indexed) is (run is early)
        assert gone in load_passages(connection, early, [gone]), "its text stays, for the run that has it"


def test_terms_are_kept_of_the_versions_that_runs_have_and_of_the_last(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A]))
    import_corpus(engine, "latin", jsonl(tmp_path, [A, B]))
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B]))
    with engine.begin() as connection:
        start_run(connection, "greek", RunConfig())
    import_corpus(engine, "greek", jsonl(tmp_path, [C]))
    removed(engine, "a")

    with engine.connect() as connection:
        kept = connection.execute(
            text(
                "SELECT DISTINCT name, corpus_terms.version FROM corpora JOIN corpus_terms USING (corpus_id) "
                "ORDER BY 1, 2"
            )
        ).all()
    assert kept == [("greek", 2), ("greek", 4), ("latin", 1)]
    assert statistics(engine, 2) == recounted([A, B])
    assert statistics(engine, 4) == recounted([B, C])


def test_an_id_that_is_none_removes_nothing(engine: Engine, tmp_path: Path) -> None:
    import_corpus(engine, "greek", jsonl(tmp_path, [A, B, C]))
    before = everything(engine)
    (tmp_path / "ids.txt").write_text("a\n\nnobody\n")
    for ids, said in (
        (read_ids(tmp_path / "ids.txt"), r"ids\.txt:3: .*'nobody'"),
        ([(id_, "here", None) for id_ in "abc"], "no passage of the corpus would be left"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            remove_passages(engine, "greek", ids)
    with pytest.raises(NotFoundError, match="latin"):
        remove_passages(engine, "latin", [])
    assert everything(engine) == before
