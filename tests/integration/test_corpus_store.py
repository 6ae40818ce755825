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
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from cli.corpus import version as corpus_version
from cli.corpus.lines import Rule, Skipped
from cli.corpus.store import ImportReport, import_corpus
from shared.errors import InvalidInputError
from shared.records import RunConfig, passage_id
from shared.runs import start_run
from shared.schema import corpora, passages
from shared.terms import passage_terms
from tests.integration.corpus_rows import A, B, C, everything, jsonl, recounted, statistics, stored
from tests.servers import until


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
