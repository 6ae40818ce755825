"""A corpus that changes: passages leave it, are replaced or come back, and each change is a version."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from cli.corpus.remove import read_ids, remove_passages
from cli.corpus.store import import_corpus
from shared.errors import InvalidInputError, NotFoundError, SettingError
from shared.records import RunConfig, passage_id
from shared.runs import start_run
from shared.schema import corpora, passages
from shared.store import load_passages
from tests.integration.corpus_rows import A, B, C, Line, everything, jsonl, recounted, statistics, stored


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
        assert gone in load_passages(connection, early.corpus_id, [gone]), "its text stays, for the run that has it"


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
