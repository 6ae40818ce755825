"""`fretwork ablate` on a real ledger: ten trainings of a tiny model, from labels that no judge is asked for.

The queues' workers are a thread of this process, so that torch is imported once and not by twenty children.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from rich.console import Console
from sqlalchemy import Engine, create_engine, delete, insert, select, text, update
from sqlalchemy.pool import NullPool

from cli.ablate.command import recipe_table
from cli.ablate.job import count_records, run_ablation
from cli.ablate.recipes import recipes_of
from cli.corpus.store import import_corpus
from services.trainer import child
from services.trainer.config import BeirFolder, TrainingConfig
from shared import ledger
from shared.counts import count
from shared.errors import FretworkError, InvalidInputError, NotDoneError
from shared.records import LLMConfig, RunConfig, query_id
from shared.reviews import save_review
from shared.runs import Run, find_run, start_run
from shared.schema import evaluations, fret_records, label_versions, queries, shards, training_runs
from shared.stages import Stage
from tests.own_process import process_on
from tests.servers import until
from tests.unit.tiny_model import DIM, WORDS, make_tiny_model

PASSAGES, QUERIES = 24, 16
RECIPES = recipes_of("p_1", ["title", "sentence"])


@pytest.fixture
def engine(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Engine]:
    """An engine; that of the workers in this process leads to the same database, and no LLM is configured."""
    with process_on(database_url, broker_url=broker_url, home=str(tmp_path / "home")) as made:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield made
        torch.set_num_threads(threads)


@pytest.fixture
def beir(tmp_path: Path) -> BeirFolder:
    rng = random.Random(0)  # noqa: S311
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = [" ".join(rng.sample(WORDS, rng.randint(6, 16))) for _ in range(PASSAGES)]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"p{n}", "title": "", "text": text}) + "\n" for n, text in enumerate(texts))
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": " ".join(texts[n].split()[-2:])}) + "\n" for n in range(PASSAGES))
    )
    (folder / "qrels" / "dev.tsv").write_text("".join(f"q{n}\tp{n}\t1\n" for n in range(PASSAGES)))
    return BeirFolder(path=str(folder), split="dev")


@pytest.fixture
def run(engine: Engine, beir: BeirFolder) -> Run:
    """A finished run of an LLM teacher, which nobody could ask again: its scores are stored, its records are p_1's."""
    rng = random.Random(1)  # noqa: S311
    import_corpus(engine, "words", Path(beir.path) / "corpus.jsonl")
    with engine.begin() as connection:
        run = start_run(connection, "words", RunConfig(teacher="llm", num_candidates=5, llm=LLMConfig(model="gone")))
        connection.execute(update(shards).values(state="done"))
        ids = list(connection.execute(text("SELECT passage_id FROM passages ORDER BY source_id")).scalars())
        made: list[dict[str, Any]] = []
        for seed in ids[:QUERIES]:
            candidates = [seed, *rng.sample([id_ for id_ in ids if id_ != seed], 4)]
            made.append(
                {
                    "run_id": run.run_id,
                    "query_id": query_id(run.fingerprint, seed, 0),
                    "seed_passage_id": seed,
                    "ordinal": 0,
                    "task_description": "search result",
                    "query_text": " ".join(rng.sample(WORDS, 3)),
                    "provenance": {"kind": "sentence" if len(made) % 3 == 0 else "title"},
                    "candidate_ids": candidates,
                    "candidate_scores": [0.9 - place / 10 for place in range(5)],
                    "ql_scores": [rng.uniform(-9, -1) for _ in candidates],
                    "rc_scores": [rng.uniform(0, 3) for _ in candidates],
                }
            )
        connection.execute(insert(queries), made)
        for kind, number in Counter(row["provenance"]["kind"] for row in made).items():
            count(connection, run.run_id, Stage.GENERATE, f"kind:{kind}", number)
        ledger.add_shards(connection, run.run_id, Stage.RELABEL, [[row["query_id"] for row in made]], parent=run.run_id)
    return run


@pytest.fixture
def _workers(engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Does what is ready, through the services' own doors, and ends runs as the dispatcher does."""
    from services.relabeler import tasks as relabeler
    from services.trainer import tasks as trainer

    doors: dict[str, Callable[[str], None]] = {
        Stage.RELABEL: relabeler.relabel,
        Stage.TRAIN: trainer.train,
        Stage.EVALUATE: trainer.evaluate,
    }

    def run_here(
        kind: str, specification: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        works = {"train": child.run_training, "evaluate": child.run_evaluation}
        return works[kind](json.loads(json.dumps(specification)), on_progress)

    monkeypatch.setattr(trainer, "run_child", run_here)
    # a child ends with its connections; here they have to be closed
    monkeypatch.setattr(child, "make_engine", partial(create_engine, poolclass=NullPool))
    stopped = Event()

    def work() -> None:
        while not stopped.wait(0.02):
            with engine.begin() as connection:
                ready = connection.execute(select(shards.c.shard_id, shards.c.stage).where(shards.c.state == "ready"))
                claimable = [(row.shard_id, row.stage) for row in ready]
            for shard_id, stage in claimable:
                doors[stage](str(shard_id))
            with engine.begin() as connection:
                ledger.finish_runs(connection)

    thread = Thread(target=work)
    thread.start()
    yield
    stopped.set()
    thread.join()


@pytest.fixture
def training(tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(
        model_name_or_path=make_tiny_model(tmp_path / "base"),
        per_device_train_batch_size=8,
        matryoshka_dims=(8,),
        learning_rate=5e-3,
        query_max_len=16,
        passage_max_len=32,
    )


@pytest.mark.usefixtures("_workers")
def test_the_papers_table(engine: Engine, run: Run, beir: BeirFolder, training: TrainingConfig, tmp_path: Path) -> None:
    output = tmp_path / "models"
    output.mkdir()
    finished(engine, run)
    with engine.begin() as connection:  # a review is of one labelling: the recipes compare the labellings as they are
        dropped = connection.execute(select(fret_records.c.query_id).limit(1)).scalar_one()
        save_review(connection, run, 1, dropped, "dropped")
    result = run_ablation(engine, run, training, beir, output)

    assert result["llm_tokens"] == 0
    assert result["records"] == QUERIES
    assert result["steps"] == {recipe.name: 2 for recipe in RECIPES}
    assert sorted(path.name for path in output.iterdir()) == sorted(recipe.name for recipe in RECIPES)
    # a label version for each policy, the run's own among them; trainings without negatives take one that is there
    versions = result["label_versions"]
    assert versions["p_1-lowest"] == versions["p_1-none"] == 1
    assert versions["seed-lowest"] == versions["seed-none"]
    with engine.connect() as connection:
        stored = connection.execute(select(label_versions)).all()
        trained = connection.execute(select(training_runs)).all()
        measured = connection.execute(select(evaluations)).all()
    found = {(row.policy["positive"], row.policy["negative"], row.policy["round_trip"]) for row in stored}
    assert len(found) == len(stored) == 5
    assert Counter(row.config["hard_negatives"] for row in trained) == {True: 8, False: 2}
    assert Counter(row.config["loss"] for row in trained) == {"contrastive": 6, "listwise": 1, "both": 3}
    assert {row.config["interpolation"] for row in trained} == {1.0}
    assert {row.result["examples"] for row in trained} == {QUERIES}
    (of_a_kind,) = (row for row in trained if (row.config["mixture"] or {}).get("sources", [{}])[0].get("kinds"))
    assert of_a_kind.config["mixture"]["sources"][0]["kinds"] == ["title"]
    assert of_a_kind.result["records"] == 10
    assert len(measured) == 1 + 9  # the base, and each but the first, which is the others' baseline

    weights = {(output / recipe.name / "model.safetensors").read_bytes() for recipe in RECIPES}
    assert len(weights) == 10
    assert result["dim"] == DIM
    assert [(each["positive"], each["negative"], each["loss"], each["queries"]) for each in result["recipes"]] == [
        (recipe.positive, recipe.negative, recipe.loss, recipe.queries) for recipe in RECIPES
    ]
    first, *others = result["recipes"]
    assert first["delta"] is None
    for each in others:
        delta = each["delta"]["ndcg@10"]
        assert delta["mean"] == pytest.approx(each["figures"]["ndcg@10"] - first["figures"]["ndcg@10"])
        assert delta["ci95"][0] <= delta["mean"] <= delta["ci95"][1]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(recipe_table(result))
    lines = shown.get().splitlines()
    assert len(lines) == 1 + 1 + 10
    assert f"{others[-1]['figures']['ndcg@10']:.4f}" in lines[-1]

    # the same again is there already; another setting finds its places taken
    assert run_ablation(engine, run, training, beir, output) == result
    with engine.connect() as connection:
        assert connection.execute(select(training_runs)).all() == trained
    other = training.model_copy(update={"seed": 1})
    with pytest.raises(InvalidInputError, match="seed-none: it exists already"):
        run_ablation(engine, run, other, beir, output)


@pytest.mark.usefixtures("_workers")
def test_data_that_cannot_be_read_are_an_error_before_anything_is_trained(
    engine: Engine, run: Run, beir: BeirFolder, training: TrainingConfig, tmp_path: Path
) -> None:
    finished(engine, run)
    nowhere = beir.model_copy(update={"split": "test"})
    with pytest.raises(FretworkError, match=r"measuring the base failed: .*test\.tsv"):
        run_ablation(engine, run, training, nowhere, tmp_path)
    with engine.connect() as connection:
        assert connection.execute(select(training_runs)).all() == []
        assert len(connection.execute(select(label_versions)).all()) == 1


@pytest.mark.usefixtures("_workers")
def test_labellings_of_other_queries_are_not_compared(engine: Engine, run: Run) -> None:
    finished(engine, run)
    with engine.begin() as connection:
        assert count_records(connection, run, {1}) == QUERIES
        one = select(fret_records.c.query_id).limit(1).scalar_subquery()
        connection.execute(
            text("INSERT INTO label_versions (run_id, label_version, policy) VALUES (:id, 2, '{}')"), {"id": run.run_id}
        )
        connection.execute(
            text(
                "INSERT INTO fret_records SELECT run_id, query_id, 2, positive_id, negative_ids, positive_ql_rank, "
                "positive_rc_rank, positive_fused_score, seed_fused_score, positive_changed, positive_span, "
                "negative_spans FROM fret_records"
            )
        )
        connection.execute(
            delete(fret_records).where(fret_records.c.label_version == 2, fret_records.c.query_id == one)
        )
        with pytest.raises(NotDoneError, match=f"1 of {QUERIES} queries of run words-1 have no record"):
            count_records(connection, run, {1, 2})


def finished(engine: Engine, run: Run) -> None:
    """Waits until the workers have made the run's own records."""

    def done() -> bool:
        with engine.connect() as connection:
            return find_run(connection, run.run_id).state == "done"

    until(done, 30)
