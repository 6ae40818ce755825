"""Evaluation of a tiny real encoder on a tiny BEIR folder: figures, differences, ties, progress."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import orjson
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from sklearn.metrics import ndcg_score
from typer.testing import CliRunner

from cli.main import app
from cli.models.command import comparison_table
from services.trainer.config import BeirFolder, EvaluationConfig, MtebTasks, TrainingConfig
from services.trainer.embed import embed
from services.trainer.evaluate import evaluate
from services.trainer.model_card import render
from services.trainer.retrieval import search
from shared.errors import SettingError
from tests.unit.tiny_model import with_prompts

PASSAGES = {f"p{n}": text for n, text in enumerate(["open a file", "close the file", "sort a list", "the time zone"])}
QUERIES = {"q1": "read file", "q2": "sort key", "q3": "date"}
QRELS = {"q1": {"p0": 2, "p1": 1}, "q2": {"p2": 1}, "q3": {"p3": 1}}


@pytest.fixture(scope="module")
def other(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model: the base with Gecko's prompts."""
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    return with_prompts(base, tmp_path_factory.mktemp("other"), prompts)


@pytest.fixture(scope="module")
def beir_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("beir")
    (folder / "qrels").mkdir()
    for name, texts in (("corpus", PASSAGES), ("queries", QUERIES)):
        lines = [json.dumps({"_id": id_, "title": "", "text": text}) for id_, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    lines = [f"{query}\t{passage}\t{grade}" for query, of in QRELS.items() for passage, grade in of.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return str(folder)


@pytest.mark.parametrize("dim", [32, 8])
def test_figures_are_those_of_the_encoded_texts(base: str, other: str, beir_dir: str, dim: int) -> None:
    report = evaluate(EvaluationConfig(model=other, baseline=base, data=BeirFolder(path=beir_dir), dims=(dim,)))
    grades = np.array([[QRELS[query].get(passage, 0) for passage in PASSAGES] for query in QUERIES])

    def expected(query_prompt: str, passage_prompt: str) -> float:
        model = SentenceTransformer(base, truncate_dim=dim)
        queries = model.encode([query_prompt + text for text in QUERIES.values()], normalize_embeddings=True)
        passages = model.encode([passage_prompt + text for text in PASSAGES.values()], normalize_embeddings=True)
        return float(ndcg_score(grades, queries @ passages.T, k=10))

    after = expected("task: search result | query: ", "title: none | text: ")
    before = expected("", "")
    assert report["dims"][str(dim)]["ndcg@10"] == pytest.approx(after, abs=1e-9)
    assert report["baseline"]["dims"][str(dim)]["ndcg@10"] == pytest.approx(before, abs=1e-9)
    delta = report["delta"][str(dim)]["ndcg@10"]
    assert delta["mean"] == pytest.approx(after - before, abs=1e-9)
    assert delta["ci95"][0] <= delta["mean"] <= delta["ci95"][1]
    assert report["dims"][str(dim)]["recall@100"] == 1.0
    assert (report["queries"], report["passages"]) == (3, 4)


def test_titles_stand_where_the_models_format_has_them(base: str, other: str, beir_dir: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("queries.jsonl", "qrels/test.tsv"):
        (tmp_path / name).write_bytes((Path(beir_dir) / name).read_bytes())
    rows = [{"_id": id_, "title": "string", "text": text} for id_, text in PASSAGES.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = evaluate(EvaluationConfig(model=other, baseline=base, data=BeirFolder(path=str(tmp_path))))
    model = SentenceTransformer(base)
    grades = np.array([[QRELS[query].get(passage, 0) for passage in PASSAGES] for query in QUERIES])
    for measured, query_prompt, passage_prompt in (
        (report["dims"], "task: search result | query: ", "title: string | text: "),
        (report["baseline"]["dims"], "", "string "),
    ):
        queries = model.encode([query_prompt + text for text in QUERIES.values()], normalize_embeddings=True)
        passages = model.encode([passage_prompt + text for text in PASSAGES.values()], normalize_embeddings=True)
        assert measured["32"]["ndcg@10"] == pytest.approx(ndcg_score(grades, queries @ passages.T, k=10), abs=1e-9)


def test_a_model_against_itself_differs_by_nothing(base: str, beir_dir: str, tmp_path: Path) -> None:
    file = tmp_path / "per_query.jsonl"
    seen: list[tuple[int, int]] = []
    report = evaluate(
        EvaluationConfig(
            model=base, baseline=base, data=BeirFolder(path=beir_dir), dims=(8, 32), per_query_file=str(file)
        ),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert list(report["dims"]) == ["32", "8"]
    assert all(of[metric] == {"mean": 0, "ci95": [0, 0]} for of in report["delta"].values() for metric in of)
    assert seen == [(3, 14), (7, 14), (10, 14), (14, 14)]
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [(line["query_id"], line["dim"]) for line in lines] == [(q, d) for d in (32, 8) for q in QUERIES]
    assert all(line["model"] == line["baseline"] for line in lines)
    mean = sum(line["model"]["mrr@10"] for line in lines[:3]) / 3
    assert report["dims"]["32"]["mrr@10"] == pytest.approx(mean)
    orjson.dumps(report)


def test_equal_scores_are_in_the_order_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    passages = torch.randn(5, 4, generator=generator).repeat(60, 1)  # 60 copies of each of five
    queries = torch.randn(70, 4, generator=generator)
    for query, found in zip(queries, search(queries, passages), strict=True):
        scores = (query @ passages[:5].T).tolist()
        best = sorted(range(5), key=lambda row: -scores[row])
        assert found == [row + 5 * copy for row in best[:2] for copy in range(60)][:100]


@pytest.mark.parametrize(("ignored", "rank"), [(False, 2), (True, 1)])
def test_a_query_may_be_kept_from_the_passage_of_its_id(base: str, tmp_path: Path, ignored: bool, rank: int) -> None:
    """As in ArguAna, whose queries are passages themselves."""
    texts = {"a": "sort a list by key", "b": "sort a list", "c": "the path of a file"}
    lines = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in texts.items())
    for name in ("corpus", "queries"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\na\tb\t1\n")
    data = BeirFolder(path=str(tmp_path), ignore_identical_ids=ignored)
    figures = evaluate(EvaluationConfig(model=base, data=data))["dims"]["32"]
    assert figures["mrr@10"] == 1 / rank


@pytest.mark.parametrize(("named", "measured"), [(None, ["32"]), ([16, 8], ["32", "16", "8"]), ([64, 32], ["32"])])
def test_a_model_is_measured_at_the_dimensions_that_it_names(
    base: str, beir_dir: str, tmp_path: Path, named: list[int] | None, measured: list[str]
) -> None:
    model = SentenceTransformer(base)
    assert model.transformers_model is not None
    if named:
        model.transformers_model.config.matryoshka_dimensions = named
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    report = evaluate(EvaluationConfig(model=str(tmp_path / "model"), baseline=base, data=BeirFolder(path=beir_dir)))
    assert list(report["dims"]) == list(report["baseline"]["dims"]) == measured


def test_refuses_a_dimension_that_a_model_lacks(base: str, beir_dir: str) -> None:
    with pytest.raises(SettingError, match=r"cannot measure at 64 dimensions.*has 32"):
        evaluate(EvaluationConfig(model=base, data=BeirFolder(path=beir_dir), dims=(64, 8)))


def test_the_card_shows_before_and_after(base: str, other: str, beir_dir: str) -> None:
    prompts = {"query": "", "document": ""}
    config = TrainingConfig(model_name_or_path="b").model_dump(mode="json")
    facts = {"run": "demo-1", "config": config, "dims": [32], "prompts": prompts}
    report = evaluate(EvaluationConfig(model=other, baseline=base, data=BeirFolder(path=beir_dir)))
    card = render(facts, report)
    before, after = (of["32"]["ndcg@10"] for of in (report["baseline"]["dims"], report["dims"]))
    assert f"| 32 | {before:.4f} → {after:.4f} | {after - before:+.4f} [" in card
    assert f"| 32 | {after:.4f} |" in render(
        facts, {key: report[key] for key in report if key not in ("baseline", "delta")}
    )
    assert "Not measured yet" in render(facts, None)


def test_an_evaluation_stored_when_there_were_beir_folders_alone_can_be_read() -> None:
    stored = {"model": "m", "baseline": None, "beir_dir": "/c", "split": "dev", "dims": [8], "seed": 0}
    expected = EvaluationConfig(model="m", data=BeirFolder(path="/c", split="dev"), dims=(8,))
    assert EvaluationConfig.model_validate(stored) == expected
    assert EvaluationConfig.model_validate(expected.model_dump(mode="json")) == expected


def test_mteb_gives_no_figures_of_single_items() -> None:
    with pytest.raises(ValidationError, match="--mteb takes no --per-query"):
        EvaluationConfig(model="m", data=MtebTasks(names=("STSBenchmark",)), per_query_file="/f.jsonl")


@pytest.mark.parametrize(
    "options", [[], ["--beir", "d", "--sts", "f"], ["--mteb", "STSBenchmark", "--classification", "d"]]
)
def test_the_command_measures_on_one_thing(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["evaluate", "m", *options])
    assert isinstance(result.exception, SettingError)
    assert "name one thing to measure the model on" in str(result.exception)


def test_the_table_shows_what_each_kind_measures() -> None:
    report: dict[str, Any] = {"kind": "mteb", "main_metric": "mean", "dims": {"8": {"mean": 0.5, "STS12": 0.5}}}
    report["baseline"] = {"model": "b", "dims": {"8": {"mean": 0.25, "STS12": 0.25}}}
    table = comparison_table(report)
    assert [column.header for column in table.columns] == ["dim", "model", "mean", "STS12", "Δ mean (95% interval)"]
    assert list(table.columns[2].cells) == ["0.2500", "0.5000"]
    assert list(table.columns[4].cells) == ["", ""]  # mteb gives no figures of single items


def test_encoding_in_batches_of_tokens_gives_sentence_transformers_vectors(base: str) -> None:
    model = SentenceTransformer(base)
    texts = [" ".join(["file", "sort a list"] * (n * 7 % 40)) for n in range(150)]  # some longer than the model reads
    done: list[int] = []
    vectors = embed(model, model.encode, None, texts, done.append)
    assert torch.allclose(vectors, model.encode(texts, convert_to_tensor=True), atol=1e-6)
    assert len(done) > 1
    assert (sorted(done), done[-1]) == (done, 150)


def test_where_memory_runs_out_fewer_texts_are_encoded_at_once_their_prompt_counted(base: str) -> None:
    model = SentenceTransformer(base, device="cpu")
    # as on a GPU, whose budget holds all texts at once
    on_gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), tokenizer=model.tokenizer, transformers_model=model, max_seq_length=64
    )
    texts, prompt = ["sort", *["sort a list"] * 299], "read the file "
    at_once: list[int] = []

    def tight(texts: list[str], **values: Any) -> torch.Tensor:
        at_once.append(len(texts))
        if len(texts) * 8 > 2048:  # three tokens of the prompt, three of a text and two special ones
            raise torch.OutOfMemoryError
        vectors: torch.Tensor = model.encode(texts, **values)
        return vectors

    done: list[int] = []
    vectors = embed(on_gpu, tight, prompt, texts, done.append)
    assert torch.allclose(vectors, model.encode(texts, prompt=prompt, convert_to_tensor=True), atol=1e-6)
    assert at_once == [300] * 5 + [256, 44]
    assert done == [256, 300]


@pytest.mark.parametrize("with_baseline", [False, True])
def test_a_gpu_without_room_for_the_least_is_an_error_that_says_what_to_free(
    base: str, beir_dir: str, with_baseline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(SentenceTransformer, "encode", full)
    baseline = base if with_baseline else None
    with pytest.raises(SettingError, match="the GPU's memory ran out: end what else holds it") as caught:
        evaluate(EvaluationConfig(model=base, baseline=baseline, data=BeirFolder(path=beir_dir)))
    assert ("leave the baseline out" in str(caught.value)) == with_baseline
