"""The evaluations of a training as the status API reads them: of any kind, and as stored before there were kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, update

from cli.corpus.store import import_corpus
from services.trainer.config import EvaluationConfig, StsFile, TrainingConfig
from shared.reading import read_training
from shared.records import RunConfig
from shared.runs import start_run
from shared.schema import evaluations
from shared.trainings import start_evaluation, start_training


def test_evaluations_of_a_model(database_url: str, tmp_path: Path) -> None:
    engine = create_engine(database_url)
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"_id": "a", "title": "", "text": "sort a list"}\n')
    import_corpus(engine, "texts", corpus)
    old = {"model": "/m", "baseline": None, "beir_dir": "/c", "split": "dev", "dims": None, "seed": 0}
    new = EvaluationConfig(model="/m", data=StsFile(path="/f.csv")).model_dump(mode="json")
    results: list[dict[str, Any]] = [{"dims": {}}, {"main_metric": "cosine_spearman", "dims": {}}]
    with engine.begin() as connection:
        run = start_run(connection, "texts", RunConfig())
        training = start_training(connection, run, 1, TrainingConfig().model_dump(mode="json"), "/m")
    for config, result in zip((old, new), results, strict=True):
        with engine.begin() as connection:  # one transaction each: they are read in the order of their times
            evaluation_id = start_evaluation(connection, config)
            connection.execute(
                update(evaluations).where(evaluations.c.evaluation_id == evaluation_id).values(result=result)
            )
    with engine.connect() as connection:
        read = read_training(connection, training).evaluations
    engine.dispose()
    assert read == [
        {"data": {"kind": "beir", "path": "/c", "split": "dev"}, "result": {"main_metric": "ndcg@10", "dims": {}}},
        {"data": {"kind": "sts", "path": "/f.csv"}, "result": results[1]},
    ]
