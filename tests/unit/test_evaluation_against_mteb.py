"""Every kind of evaluation against the real mteb on the same model and texts, and intervals by definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from services.trainer.compare import Measured, resamples
from services.trainer.config import BeirFolder, ClassificationFolder, EvaluationConfig, StsFile
from services.trainer.evaluate import evaluate
from services.trainer.sts import Similarity, read_sts, spearman
from shared.errors import InvalidInputError
from tests.unit.tiny_model import WORDS, with_prompts

DIMS = (32, 8)


@pytest.fixture(scope="module")
def prompted(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model: the base with a prompt for each kind, and others that neither kind may take."""
    prompts = {"query": "title: ", "document": "text: ", "STS": "task: sum | ", "Classification": "task: key | "}
    return with_prompts(base, tmp_path_factory.mktemp("prompted"), prompts)


def sentences(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(2, 20)))) for _ in range(count)]


PAIRS = [
    {"sentence1": first, "sentence2": second, "score": round(float(score), 1)}
    for first, second, score in zip(
        sentences(200, 0), sentences(200, 1), np.random.default_rng(2).random(200) * 5, strict=True
    )
]


@pytest.fixture
def one_text_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors equal to the bit: in another batch they differ by 1e-7, and a text on a border gets another label."""
    monkeypatch.setattr("services.trainer.embed.CPU_CHUNK_TOKENS", 1)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mtebs(kind: str, model: str, dim: int, data: Any, samples_per_label: int = 8) -> Any:
    """The scores that mteb's own task classes give, at the dimension that sentence-transformers truncates to."""
    import mteb

    name = {"sts": "STSBenchmark", "classification": "Banking77Classification", "beir": "SciFact"}[kind]
    task = mteb.get_task(name)
    task.dataset, task.data_loaded = data, True
    if kind == "classification":
        task.samples_per_label = samples_per_label
    (result,) = mteb.evaluate(
        SentenceTransformer(model, truncate_dim=dim),
        task,
        cache=None,
        co2_tracker=False,
        encode_kwargs={"batch_size": 1, "show_progress_bar": False},
    ).task_results
    return result.scores["test"][0]


@pytest.mark.usefixtures("one_text_a_batch")
@pytest.mark.filterwarnings("ignore")  # mteb's
@pytest.mark.parametrize("which", ["base", pytest.param("prompted", marks=pytest.mark.slow)])
def test_correlation_is_mtebs(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(which)
    data = StsFile(path=str(written(tmp_path / "pairs.jsonl", PAIRS)))
    report = evaluate(EvaluationConfig(model=model, data=data, dims=DIMS))
    assert (report["kind"], report["main_metric"], report["pairs"]) == ("sts", "cosine_spearman", 200)
    for dim in DIMS:
        theirs = mtebs("sts", model, dim, DatasetDict(test=Dataset.from_list(PAIRS)))
        assert report["dims"][str(dim)]["cosine_spearman"] == pytest.approx(theirs["cosine_spearman"], abs=1e-6)
    assert report["dims"]["32"] != report["dims"]["8"]


@pytest.mark.usefixtures("one_text_a_batch")
@pytest.mark.filterwarnings("ignore")  # mteb's
@pytest.mark.parametrize(
    ("which", "samples_per_label"), [pytest.param("base", 8, marks=pytest.mark.slow), ("prompted", 16)]
)
def test_accuracy_is_mtebs(which: str, samples_per_label: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(which)
    rows = {
        # eleven labels, so that the order of numbers is not that of their texts; the last has few training texts
        split: [
            {"text": f"{WORDS[n % 11]} {text}", "label": n % 11 if n % 11 < 10 or n < 40 else 0}
            for n, text in enumerate(sentences(count, seed))
        ]
        for split, count, seed in (("train", 300, 3), ("test", 150, 4))
    }
    for split, of in rows.items():
        written(tmp_path / f"{split}.jsonl", of)
    data = ClassificationFolder(path=str(tmp_path), samples_per_label=samples_per_label)
    report = evaluate(EvaluationConfig(model=model, data=data, dims=DIMS))
    assert (report["labels"], report["train_texts"], report["test_texts"]) == (11, 300, 150)
    for dim in DIMS:
        loaded = DatasetDict({split: Dataset.from_list(of) for split, of in rows.items()})
        theirs = mtebs("classification", model, dim, loaded, samples_per_label)
        ours = report["dims"][str(dim)]
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-6)
        assert ours["f1_macro"] == pytest.approx(theirs["f1"], abs=1e-6)
        assert 0.2 < ours["accuracy"] < 1


@pytest.mark.usefixtures("one_text_a_batch")
@pytest.mark.filterwarnings("ignore")  # mteb's
@pytest.mark.parametrize("which", ["base", "prompted"])
def test_rankings_are_mtebs(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One passage in three has no title; grades are 0 to 2."""
    model = request.getfixturevalue(which)
    titles, texts, asked = sentences(30, 8), sentences(30, 9), sentences(12, 10)
    corpus = [{"id": f"p{n}", "title": titles[n] if n % 3 else "", "text": texts[n]} for n in range(30)]
    queries = [{"id": f"q{n}", "text": text} for n, text in enumerate(asked)]
    rng = np.random.default_rng(11)
    qrels = {f"q{n}": {f"p{found}": int(rng.integers(3)) for found in rng.choice(30, 6, False)} for n in range(12)}
    for name, rows in (("corpus", corpus), ("queries", queries)):
        written(tmp_path / f"{name}.jsonl", [{"_id": row["id"], **row} for row in rows])
    (tmp_path / "qrels").mkdir()
    judged = [f"{query}\t{passage}\t{grade}\n" for query, of in qrels.items() for passage, grade in of.items()]
    (tmp_path / "qrels" / "test.tsv").write_text("".join(judged))
    report = evaluate(EvaluationConfig(model=model, data=BeirFolder(path=str(tmp_path)), dims=DIMS))
    for dim in DIMS:
        of_split = {"corpus": Dataset.from_list(corpus), "queries": Dataset.from_list(queries), "top_ranked": None}
        theirs = mtebs("beir", model, dim, {"default": {"test": {**of_split, "relevant_docs": qrels}}})
        for metric, figure in report["dims"][str(dim)].items():
            expected = theirs[metric.replace("@", "_at_")]
            # mteb rounds to five places, all but MRR
            assert round(figure, 5) == pytest.approx(round(expected, 5), abs=1e-6), metric
            assert figure < 1 or metric == "recall@100"


def test_correlation_with_ties_and_weights_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 60).astype(float), rng.integers(0, 9, 60) / 3
    drawn = rng.integers(60, size=(50, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in drawn])
    expected = [spearmanr(first[row], second[row]).statistic for row in drawn]
    assert spearman(first, second, weights) == pytest.approx(expected, abs=1e-12)
    assert spearman(np.ones(60), second, weights[:1]) == [0.0]


def test_interval_of_a_correlation_is_of_pairs_drawn_together() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(80)
    columns = [scores + rng.normal(0, noise, 80) for noise in (1.0, 0.3)]
    before, after = (
        Measured({"cosine_spearman": spearmanr(scores, of).statistic}, [{"cosine": value} for value in of])
        for of in columns
    )
    judged = Similarity(("",) * 80, ("",) * 80, tuple(scores), tuple(range(80)))
    found = judged.differences(before, after, seed=5)["cosine_spearman"]
    drawn = next(resamples(80, 5))[:1000]
    each = [spearmanr(scores[r], columns[1][r])[0] - spearmanr(scores[r], columns[0][r])[0] for r in drawn]
    assert found["mean"] == pytest.approx(after.figures["cosine_spearman"] - before.figures["cosine_spearman"])
    assert found["ci95"] == pytest.approx(np.quantile(each, [0.025, 0.975]), abs=0.03)
    assert 0 < found["ci95"][0] < found["mean"] < found["ci95"][1]


def test_a_model_against_another_and_every_pair_in_a_file(base: str, prompted: str, tmp_path: Path) -> None:
    file = tmp_path / "per_query.jsonl"
    data = StsFile(path=str(written(tmp_path / "pairs.jsonl", PAIRS)))
    report = evaluate(EvaluationConfig(model=prompted, baseline=base, data=data, dims=DIMS, per_query_file=str(file)))
    for dim in ("32", "8"):
        found = report["delta"][dim]["cosine_spearman"]
        before, after = report["baseline"]["dims"][dim], report["dims"][dim]
        assert found["mean"] == after["cosine_spearman"] - before["cosine_spearman"]
        assert found["ci95"][0] < found["mean"] < found["ci95"][1]
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["line"] for line in lines if line["dim"] == 8] == list(range(1, 201))
    cosines = [line["baseline"]["cosine"] for line in lines if line["dim"] == 32]
    expected = spearmanr([pair["score"] for pair in PAIRS], cosines).statistic
    assert report["baseline"]["dims"]["32"]["cosine_spearman"] == pytest.approx(expected, abs=1e-9)


def test_every_test_text_in_a_file(base: str, prompted: str, tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [f'"{text}, {WORDS[n % 3]}",{WORDS[n % 3]}' for n, text in enumerate(sentences(60, 7))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,category", *rows]))
    file = tmp_path / "per_query.jsonl"
    data = ClassificationFolder(path=str(tmp_path))
    report = evaluate(EvaluationConfig(model=prompted, baseline=base, data=data, per_query_file=str(file)))
    lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [(line["line"], line["label"]) for line in lines] == [(n + 2, WORDS[n % 3]) for n in range(60)]
    mean = np.mean([line["model"]["accuracy"] for line in lines])
    assert report["dims"]["32"]["accuracy"] == pytest.approx(mean)
    found = report["delta"]["32"]["accuracy"]
    assert found["mean"] == report["dims"]["32"]["accuracy"] - report["baseline"]["dims"]["32"]["accuracy"]
    assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]


def test_reads_stsb_as_published_and_tables(tmp_path: Path) -> None:
    published = tmp_path / "sts-test.csv"
    published.write_text('main\tMSR\t2012test\t0001\t2.500\tA "girl.\tA boy.\nmain\tx\t2014\t7\t4\tC.\tD.\tlicence\t\n')
    assert read_sts(published) == Similarity(('A "girl.', "C."), ("A boy.", "D."), (2.5, 4.0), (1, 2))
    table = tmp_path / "a.tsv"
    table.write_text("score\tsentence2\tsentence1\n1\tb\ta\n\n2.5\td\tc\n")
    assert read_sts(table) == Similarity(("a", "c"), ("b", "d"), (1.0, 2.5), (2, 4))
    quoted = tmp_path / "a.csv"
    quoted.write_text('\ufeffsentence1,sentence2,score\n"a,\nb",c,1\nd,e,0\n')
    stored = tmp_path / "pairs.parquet"  # of some pages' size, which no byte of is text
    texts = [f"a {n}" for n in range(500)]
    columns = {"sentence1": texts, "sentence2": ["b"] * 500, "score": [n / 7 for n in range(500)]}
    parquet.write_table(pyarrow.table(columns), stored)
    assert read_sts(stored).first == tuple(texts)
    assert read_sts(quoted) == Similarity(("a,\nb", "d"), ("c", "e"), (1.0, 0.0), (2, 4))


@pytest.mark.parametrize(
    ("name", "text", "line", "rule"),
    [
        ("a.csv", "sentence1,sentence2\na,b\n", 2, "column score is missing"),
        ("a.csv", "sentence1,score\na,1\nb,2\n", 2, "column sentence2 is missing"),
        ("a.csv", "sentence1,sentence2,score\na,b,high\n", 2, "'high' is not a number"),
        ("a.csv", "sentence1,sentence2,score\na,b,nan\n", 2, "'nan' is not a number"),
        ("a.csv", "sentence1,sentence2,score\na,b,1,2\n", 2, "4 fields"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,1\n", None, "all scores are the same"),
        ("a.csv", "sentence1,sentence2,score\n", None, "no pair"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": null, "score": 1}\n{"score": 2}', 1, "sentence2 has to be a text"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n', 1, "True is not a number"),
        ("a.csv", "g\tf\t2012\t1\t2.5\ta\tb\ng\tf\t2012\t1\t2.5\ta\n", 2, "6 fields, and there are 7 columns"),
        ("a.parquet", "PAR1", None, "not a parquet file"),
        ("a.txt", "a", None, "not a kind of dataset"),
    ],
)
def test_pairs_that_break_a_rule(tmp_path: Path, name: str, text: str, line: int | None, rule: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=rule) as caught:
        evaluate(EvaluationConfig(model="not loaded", data=StsFile(path=str(tmp_path / name))))
    assert (caught.value.path, caught.value.line) == (tmp_path / name, line)


@pytest.mark.parametrize(
    ("files", "at", "line", "rule"),
    [
        ({"train.csv": "text,label\na,x\nb,y\n"}, "", None, "exactly one of test"),
        ({"train.csv": "text,label\na,x\n", "train.jsonl": ""}, "", None, "exactly one of train.*it has 2"),
        ({"train.csv": "text,label\na,x\nb,y\n", "test.csv": "text,label\nc,x\nd,z\n"}, "test.csv", 3, "label 'z'"),
        ({"train.csv": "text,label\na,x\nb,x\n", "test.csv": "text,label\nc,x\n"}, "train.csv", None, "two different"),
        ({"train.csv": "text,kind\na,x\n", "test.csv": ""}, "train.csv", 2, "label or category is missing"),
        ({"train.csv": "text,label\na,\n", "test.csv": ""}, "train.csv", 2, "not empty"),
        ({"train.csv": "text,label\na,x\nb,y\n", "test.csv": "text,label\n"}, "test.csv", None, "no text"),
    ],
)
def test_labelled_texts_that_break_a_rule(
    tmp_path: Path, files: dict[str, str], at: str, line: int | None, rule: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=rule) as caught:
        evaluate(EvaluationConfig(model="not loaded", data=ClassificationFolder(path=str(tmp_path))))
    assert (caught.value.path, caught.value.line) == (tmp_path / at, line)


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "per_query.jsonl"
    with pytest.raises(InvalidInputError, match="its folder has to be there"):
        evaluate(EvaluationConfig(model="not loaded", data=StsFile(path="x.csv"), per_query_file=str(file)))
