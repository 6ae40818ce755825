"""What a person decides about records is kept, may be changed, and holds for exports and trainings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, create_engine, insert, select, text
from typer.testing import CliRunner, Result

from cli.corpus.store import import_corpus
from cli.export.export import ExportFormat, export_run
from cli.main import app
from services.relabeler.fuse import fuse
from services.relabeler.save import save_records
from services.relabeler.select import select as choose
from services.trainer.ledger_records import LedgerRecords
from shared.labels import add_label_version
from shared.progress import conservation, describe
from shared.records import FRetRecord, LabelPolicy, RunConfig, query_id
from shared.reviews import list_doubtful, reviewed_records
from shared.runs import Run, start_run
from shared.schema import queries, runs, shards, training_runs
from shared.settings import settings
from shared.store import load_passages, load_queries
from shared.trainings import start_training
from tests.passages import write_corpus

# QL and RC of the six candidates, in order of their ids, best is highest; the seed is the first candidate
SCORES = {
    "agreed": ([9, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1]),  # the seed is (1, 1): no doubt
    "moved": ([5, 9, 4, 3, 2, 1], [5, 9, 4, 3, 2, 1]),  # another is (1, 1): 1
    "tied": ([8, 9, 4, 3, 2, 1], [9, 8, 4, 3, 2, 1]),  # (1, 2) against the seed's (2, 1): 1 + 1/2 + 1
    "disputed": ([9, 5, 4, 3, 2, 1], [7, 9, 8, 3, 2, 1]),  # the seed's (1, 3) against (2, 1): it is moved
}
DOUBTS = {"moved": 1.0, "tied": 2.5, "disputed": 1 + 1 / 2 + (1 - (3 / 2 - 4 / 3))}


@dataclass(frozen=True)
class Reviewed:
    engine: Engine
    run: Run
    ids: list[UUID]  # of the candidates
    names: dict[UUID, str]  # of the queries

    def query(self, name: str) -> UUID:
        return next(id_ for id_, other in self.names.items() if other == name)

    def records(self, until: int | None = None) -> dict[str, Any]:
        with self.engine.connect() as connection:
            found = connection.execute(select(reviewed_records(self.run.run_id, 1, until))).mappings()
            return {self.names[row["query_id"]]: dict(row) for row in found}


@pytest.fixture
def tea(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reviewed]:
    """A run with a record of each query in SCORES, as the relabeler writes them, the positive p_1."""
    monkeypatch.setenv("FRETWORK_DATABASE_URL", database_url)
    settings.cache_clear()
    engine = create_engine(database_url)
    import_corpus(engine, "tea", write_corpus(tmp_path / "tea.jsonl", 6))
    policy = LabelPolicy(positive="p_1")
    with engine.begin() as connection:
        run = start_run(connection, "tea", RunConfig(num_candidates=6, labels=policy))
        connection.execute(shards.update().values(state="done"))
        ids = list(connection.execute(text("SELECT passage_id FROM passages ORDER BY passage_id")).scalars())
        names = {query_id(run.fingerprint, ids[0], n): name for n, name in enumerate(SCORES)}
        rows = [
            {
                "run_id": run.run_id,
                "query_id": id_,
                "seed_passage_id": ids[0],
                "ordinal": n,
                "task_description": "search result",
                "query_text": f"a query that is {name}",
                "provenance": {},
                "candidate_ids": ids,
                "candidate_scores": [0.9 - step / 10 for step in range(6)],
                "ql_scores": [float(score) for score in SCORES[name][0]],
                "rc_scores": [float(score) for score in SCORES[name][1]],
            }
            for n, (id_, name) in enumerate(names.items())
        ]
        connection.execute(insert(queries), rows)
        texts = {id_: passage.text for id_, passage in load_passages(connection, run.corpus_id, ids).items()}
        made = []
        for stored in load_queries(connection, run, list(names)):
            fused = fuse(stored.candidate_ids, stored.ql_scores, stored.rc_scores)
            record = choose(stored, fused, texts, policy)
            assert isinstance(record, FRetRecord)
            made.append((record, record.positive_id != ids[0]))
        save_records(connection, run, 1, made)
    yield Reviewed(engine, run, ids, names)
    engine.dispose()
    settings.cache_clear()


Review = Callable[..., Result]


@pytest.fixture
def review(tea: Reviewed) -> Review:
    def invoke(*options: str, answers: str = "") -> Result:
        done = CliRunner().invoke(app, ["review", "tea-1", *options], input=answers, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    return invoke


def test_the_worst_come_first_and_what_is_sure_does_not_come(tea: Reviewed, review: Review) -> None:
    found = json.loads(review("--json").stdout)
    assert [tea.names[UUID(each["query_id"])] for each in found] == ["tied", "disputed", "moved"]
    assert [each["doubt"] for each in found] == pytest.approx([DOUBTS[name] for name in ("tied", "disputed", "moved")])
    assert found[2]["why"] == ["the positive is not the seed"]
    assert len(found[0]["why"]) == 3
    first, second, *_ = found[0]["candidates"]
    assert (first["passage_id"], first["ql_rank"], first["rc_rank"]) == (str(tea.ids[1]), 1, 2)
    assert (second["passage_id"], second["ql_score"], second["rc_score"]) == (str(tea.ids[0]), 8.0, 9.0)
    assert len(json.loads(review("--json", "--limit", "1").stdout)) == 1
    listed = review("--list")
    assert "a query that is moved" in listed.stdout
    assert "and the seed" not in listed.stdout
    assert "nothing decided" in listed.stderr


def test_by_one_rank_alone_the_first_is_as_sure_as_can_be(tea: Reviewed) -> None:
    """Its fused score is 1 and the next one's 1/2, where the sum of two ranks is 2 and at most 1."""
    policy = LabelPolicy(positive="p_1", fusion="rc")
    with tea.engine.begin() as connection:
        connection.execute(runs.update().values(state="done"))
        version = add_label_version(connection, tea.run, policy)
        texts = {id_: passage.text for id_, passage in load_passages(connection, tea.run.corpus_id, tea.ids).items()}
        made = []
        for stored in load_queries(connection, tea.run, list(tea.names)):
            fused = fuse(stored.candidate_ids, stored.ql_scores, stored.rc_scores, policy.fusion)
            record = choose(stored, fused, texts, policy)
            assert isinstance(record, FRetRecord)
            made.append((record, record.positive_id != tea.ids[0]))
        save_records(connection, tea.run, version, made)
        found = list_doubtful(connection, tea.run, version, 9)
    assert {tea.names[each.query_id]: each.thinness for each in found} == {"moved": 0, "tied": 0, "disputed": 0}


def test_decisions_hold_for_exports_and_trainings_and_may_be_changed(
    tea: Reviewed, review: Review, tmp_path: Path
) -> None:
    before = tea.records()
    said = review(answers="s\nx\n99\n3\nd\n")  # the seed; no answer, no candidate, the third candidate; out
    assert "1 to 6" in said.stderr
    assert "1 dropped, 2 swapped" in said.stderr
    assert json.loads(review("--json").stdout) == []

    after = tea.records()
    assert set(after) == {"agreed", "tied", "disputed"}
    assert after["agreed"] == before["agreed"]
    tied = after["tied"]
    assert (tied["positive_id"], tied["positive_changed"], tied["review"]) == (tea.ids[0], False, "swapped")
    assert (tied["positive_ql_rank"], tied["positive_rc_rank"]) == (2, 1)
    assert after["disputed"]["positive_id"] == tea.ids[2]
    assert all(row["positive_id"] not in row["negative_ids"] for row in after.values())

    with tea.engine.connect() as connection:
        sums = conservation(connection, tea.run.run_id)
        (version,) = describe(connection, tea.run)["label_versions"]
    assert (sums.records, sums.queries) == (4, 4), "a record that a person drops is still one of the ledger's"
    assert version["reviewed"] == {"dropped": 1, "swapped": 2}
    report = export_run(tea.engine, tea.run.run_id, 1, ExportFormat.JSONL, tmp_path / "export")
    assert (report.records, report.left_out) == (3, {"dropped_in_review": 1})
    rows = [json.loads(line) for line in (tmp_path / "export" / "train.jsonl").read_text().splitlines()]
    assert {tea.names[UUID(row["query_id"])]: row["review"] for row in rows} == {
        "agreed": None, "tied": "swapped", "disputed": "swapped",
    }  # fmt: skip
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| left out: dropped_in_review | 1 |" in card
    assert "| reviewed by a person | 1 dropped, 2 swapped |" in card

    # a training goes by what was decided when it was started, however long it takes
    with tea.engine.begin() as connection:
        started = start_training(connection, tea.run, 1, {}, "/nowhere")
        until = connection.execute(
            select(training_runs.c.reviews_until).where(training_runs.c.training_run_id == started)
        ).scalar_one()
    review("--decided", answers="a\nk\na\n")  # in the same order as before: tied, disputed, moved
    assert set(tea.records()) == set(before)
    assert tea.records()["tied"] == {**before["tied"], "review": "accepted"}
    assert tea.records()["disputed"]["positive_id"] == tea.ids[2]
    for source, wanted in (
        (LedgerRecords(tea.engine, tea.run.run_id, 1, until), {"agreed", "tied", "disputed"}),
        (LedgerRecords(tea.engine, tea.run.run_id, 1), set(before)),
    ):
        read = {tea.names[record.query_id]: record for record in source.page(None, 10)}
        assert set(read) == wanted
        assert source.count() == len(wanted)
        assert source.count_by("task", 1) == {"search result": len(wanted)}
        assert {tea.names[query] for query, _ in source.groups("task", None, 10)} == wanted
        assert read["tied"].positive.passage_id == tea.ids["moved" in wanted]
        assert source.find([tea.query("tied")]) == {tea.query("tied"): read["tied"]}


def test_a_choice_without_a_negative_is_none(tea: Reviewed, review: Review) -> None:
    with tea.engine.begin() as connection:
        connection.execute(
            text("UPDATE label_versions SET policy = policy || '{\"relative_margin\": 0.5}' WHERE label_version = 1")
        )
    said = review("--limit", "1", answers="6\nd\n")  # the last candidate has the lowest cosine: none is below it
    assert "leave no negative" in said.stderr
    assert "1 dropped" in said.stderr
