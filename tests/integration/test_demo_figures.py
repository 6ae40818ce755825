"""What the demo's pictures are made of, read from a real ledger whose content is known."""

from __future__ import annotations

import json
from pathlib import Path

from sqlalchemy import Engine, insert

from cli.corpus.store import import_corpus
from cli.demo.figures import Scores, read_figures
from shared.records import RunConfig, passage_id, query_id
from shared.runs import start_run
from shared.schema import fret_records, queries, training_curve
from shared.trainings import start_training

TEXTS = ("The kettle boils.", "Green tea is brewed.", "A bicycle has two wheels.")


def test_ranks_scores_and_the_curve(engine: Engine, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    import_corpus(engine, "tea", corpus)
    ids = [passage_id("", text) for text in TEXTS]
    # by query: the scores of the three passages, of which the n-th is the seed of query n
    ql = [[-1.0, -2.0, -3.0], [-1.5, -2.5, -3.5], [-1.0, -3.0, -2.0]]
    rc = [[9.0, 5.0, 1.0], [8.0, 4.0, 0.0], [7.0, 1.0, 3.0]]
    with engine.begin() as connection:
        run = start_run(connection, "tea", RunConfig(num_candidates=3))
        for n in range(4):  # the last was never judged
            judged = n < 3
            seed = ids[n % 3]
            connection.execute(
                insert(queries).values(
                    run_id=run.run_id,
                    query_id=query_id(run.fingerprint, seed, n),
                    seed_passage_id=seed,
                    ordinal=n,
                    task_description="search result",
                    query_text=f"query {n}",
                    provenance={},
                    candidate_ids=ids,
                    candidate_scores=[0.5] * 3,
                    ql_scores=ql[n] if judged else None,
                    rc_scores=rc[n] if judged else None,
                )
            )
        for n, version in ((0, 1), (1, 1), (1, 2)):
            connection.execute(
                insert(fret_records).values(
                    run_id=run.run_id,
                    query_id=query_id(run.fingerprint, ids[n], n),
                    label_version=version,
                    positive_id=ids[0],
                    negative_ids=[ids[2], ids[1]],
                    positive_ql_rank=1,
                    positive_rc_rank=1,
                    positive_fused_score=2.0,
                    seed_fused_score=2.0,
                    positive_changed=n != 0,
                    negative_spans=[None, None],
                )
            )
        training_run_id = start_training(connection, run, 1, {}, "/nowhere")
        curve = [{"training_run_id": training_run_id, "step": step, "loss": 5.0 - step} for step in (1, 2, 3)]
        connection.execute(insert(training_curve), curve)
    with engine.connect() as connection:
        found = read_figures(connection, run, 1, training_run_id)
        second = read_figures(connection, run, 2, training_run_id)
    assert found.loss == [(1, 4.0), (2, 3.0), (3, 2.0)]
    assert found.seed_ranks == [1, 2]
    assert sorted(zip(*found.ql, strict=True)) == [(-1.5, -3.5), (-1.0, -3.0)]
    assert sorted(zip(*found.rc, strict=True)) == [(8.0, 0.0), (9.0, 1.0)]
    assert (second.ql, second.rc) == (Scores([-1.5], [-3.5]), Scores([8.0], [0.0]))
