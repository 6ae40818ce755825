"""What rows of each kind become, what is left out and why, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pytest

from services.trainer import prepare as prepare_module
from services.trainer.prepare import load_prepared, prepare
from shared.errors import InvalidInputError
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl


def prepared(
    folder: Path, kind: str, rows: Sequence[dict[str, Any]], **values: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The examples as they are stored, and the counts of the rows left out by reason."""
    source = dataset_source(kind, jsonl(folder / "rows.jsonl", rows), **values)
    written = prepare(source, folder / "out")
    loaded, dataset = load_prepared(folder / "out")
    assert loaded == written
    assert written.examples == len(dataset)
    return list(dataset), written.dropped


def example(query: str, positive: str, *negatives: str, title: str = "") -> dict[str, Any]:
    return {"query": query, "positive": positive, "title": title, "negatives": list(negatives)}


def test_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"q": "a", "p": "b", "t": "T"},
        {"q": "c", "p": ["d", "e", " "], "t": None},
        {"q": " ", "p": "b", "t": ""},
        {"q": "f", "p": [], "t": ""},
        {"q": "f", "p": None, "t": ""},
    ]
    fields = {"query": "q", "positive": "p", "title": "t"}
    examples, dropped = prepared(tmp_path, "pair", rows, fields=fields)
    assert examples == [example("a", "b", title="T"), example("c", "d"), example("c", "e")]
    assert dropped == {"no query": 1, "no positive": 2}


def test_triplets(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "a", "positive": "b", "negative_1": "c", "negative_2": ["d", "e"]},
        {"query": "a", "positive": "b", "negative_1": None, "negative_2": ["b", ""]},
    ]
    fields = {"positive": "positive", "negatives": ["negative_1", "negative_2"]}
    examples, dropped = prepared(tmp_path, "triplet", rows, fields=fields)
    # what is the positive, or nothing, is no negative
    assert examples == [example("a", "b", "c", "d", "e"), example("a", "b")]
    assert dropped == {}


def test_a_multiple_choice(tmp_path: Path) -> None:
    rows = [{"query": "a", "x": "b", "y": "c", "z": "d", "right": right} for right in (1, "2", None, -1)]
    fields = {"options": ["x", "y", "z"], "answer": "right"}
    examples, dropped = prepared(tmp_path, "triplet", rows, fields=fields)
    assert examples == [example("a", "c", "b", "d"), example("a", "d", "b", "c")]
    assert dropped == {"no positive": 2}


def test_scored_pairs(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": f"b{score}", "score": score} for score in (3.9, "4", 5)]
    examples, dropped = prepared(tmp_path, "scored-pair", rows, min_score=4)
    assert examples == [example("a", "b4"), example("a", "b5")]
    assert dropped == {"score below min_score": 1}


def test_lists(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "a", "passages": ["b", "c", "d"], "scores": [2, "4", 6.0]},
        {"query": "a", "passages": ["b", " ", "c", "b", None], "scores": [3, 9, 1, 8, 7]},
        {"query": "", "passages": ["b", "c"], "scores": [1, 2]},
        {"query": "a", "passages": ["b"], "scores": [1]},
        {"query": "a", "passages": ["b", "b"], "scores": [1, 2]},
        {"query": "a", "passages": ["b", "c"], "scores": [0.7, 0.7]},
        {"query": "a", "passages": [], "scores": []},
    ]
    examples, dropped = prepared(tmp_path, "list", rows)
    deviation = 1.5**0.5  # of 2, 4, 6 in units of 2
    assert [(row["query"], row["passages"]) for row in examples] == [("a", ["b", "c", "d"]), ("a", ["b", "c"])]
    # a blank passage goes with its score, and a text counts where it stands first
    assert [row["scores"] for row in examples] == [pytest.approx([-deviation, 0, deviation]), [1, -1]]
    assert dropped == {"no query": 1, "fewer than two passages": 3, "all scores equal": 1}


def test_a_list_over_several_columns(tmp_path: Path) -> None:
    rows = [{"query": "a", "pos": ["b"], "neg": ["c", "d"], "pos_scores": [1], "neg_scores": [0, -1]}]
    fields = {"passages": ["pos", "neg"], "scores": ["pos_scores", "neg_scores"]}
    (listed,), _ = prepared(tmp_path, "list", rows, fields=fields)
    assert (listed["passages"], sorted(listed["scores"], reverse=True)) == (["b", "c", "d"], listed["scores"])
    columns = {"query": "a", "first": "b", "second": "c", "of_both": [1, 3]}
    (tmp_path / "flat").mkdir()
    fields = {"passages": ["first", "second"], "scores": ["of_both"]}
    (flat,), _ = prepared(tmp_path / "flat", "list", [columns], fields=fields)
    assert flat == {"query": "a", "passages": ["b", "c"], "scores": [-1, 1]}


def test_nli_is_grouped_by_premise_wherever_its_rows_stand(tmp_path: Path) -> None:
    said = [
        ("p", "follows 1", 0),
        ("q", "contradicts alone", 2),
        ("r", "follows alone", 0),
        ("p", "contradicts 1", 2),
        ("p", "neutral", 1),
        ("p", "unlabelled", -1),
        ("p", "follows 2", 0),
        ("p", "contradicts 2", 2),
        ("p", "contradicts 3", 2),
        ("p", "follows 1", 2),  # annotators differ
        ("s", "", 0),
    ]
    rows = [{"premise": premise, "hypothesis": text, "label": label} for premise, text, label in said]
    examples, dropped = prepared(tmp_path, "nli", rows)
    assert sorted(examples, key=lambda row: str(row["positive"])) == [
        example("p", "follows 1", "contradicts 1", "contradicts 3"),
        example("p", "follows 2", "contradicts 2"),
        example("r", "follows alone"),
    ]
    assert dropped == {
        "no hypothesis": 1,
        "neither entailment nor contradiction": 1,
        "no label": 1,
        "contradiction of a premise that nothing follows from": 1,
        "contradiction that follows as well": 1,
    }


def test_nli_with_labels_in_words(tmp_path: Path) -> None:
    rows = [{"premise": "p", "hypothesis": text, "label": text} for text in ("yes", "no", "maybe")]
    examples, _ = prepared(tmp_path, "nli", rows, entailment="yes", contradiction="no")
    assert examples == [example("p", "yes", "no")]


def test_texts_lie_together_by_label(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        *LABELLED,
        {"text": "x", "label": "once"},
        {"text": "", "label": "red"},
        {"text": "x", "label": None},
        *({"text": f"negative {n}", "label": -1} for n in range(2)),  # a label like any other here
    ]
    examples, dropped = prepared(tmp_path, "classification", rows)
    assert [row["text"].split()[0] for row in examples] == ["red"] * 8 + ["green"] * 5 + ["blue"] * 2 + ["negative"] * 2
    assert load_prepared(tmp_path / "out")[0].texts_by_label == {"red": 8, "green": 5, "blue": 2, "-1": 2}
    assert dropped == {"no text": 1, "no label": 1, "the only text of its label": 1}


@pytest.mark.parametrize("kind", ["pair", "classification", "nli", "list"])
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "BATCH", 200)

    def peak_bytes(count: int) -> int:
        """The most that Python and numpy hold at once, and what Arrow keeps, of so many rows of 400 characters."""
        rows = (
            {
                **{"query": text, "positive": text, "text": text, "premise": text, "hypothesis": text},
                **{"label": n % 2 * 2, "passages": [text, "x"], "scores": [1, 2]},
            }
            for n in range(count)
            for text in [f"{n} ".ljust(400, "x")]
        )
        file = tmp_path / f"{count}.jsonl"
        with file.open("wb") as lines:
            lines.writelines(orjson.dumps(row) + b"\n" for row in rows)
        arrow = pyarrow.total_allocated_bytes()
        tracemalloc.start()
        try:
            prepare(dataset_source(kind, file), tmp_path / str(count))
            return tracemalloc.get_traced_memory()[1] + int(pyarrow.total_allocated_bytes() - arrow)
        finally:
            tracemalloc.stop()

    assert peak_bytes(5_000) < peak_bytes(1_000) + 4_000 * 100  # an index; a text more in memory would be 4,000 × 400


@pytest.mark.parametrize(
    ("kind", "values", "row", "rule"),
    [
        ("pair", {}, {"query": "a", "answer": "b"}, "no column 'positive', only 'query', 'answer': map the names"),
        ("pair", {}, {"query": 1, "positive": "b"}, "query has to be a text, and is int: 1"),
        ("pair", {}, {"query": ["a"], "positive": "b"}, "query has to be a text, and is a list"),
        ("pair", {}, {"query": "a", "positive": ["b", 2]}, "positive has to be a text, and is int: 2"),
        ("triplet", {}, {"query": "a", "positive": "b"}, "no column 'negative'"),
        (
            "triplet",
            {"fields": {"options": ["x", "y"], "answer": "n"}},
            {"query": "a", "x": "b", "y": "c", "n": 2},
            "n is 2, and the options are 0 to 1",
        ),
        (
            "scored-pair",
            {"min_score": 4},
            {"sentence1": "a", "sentence2": "b", "score": "high"},
            "score has to be a num",
        ),
        ("classification", {}, {"text": "a", "label": 0.5}, "label has to be a text or an integer, and is 0.5"),
        ("nli", {}, {"premise": "a", "hypothesis": "b", "gold_label": 0}, "no column 'label'"),
        (
            "list",
            {},
            {"query": "a", "passages": ["b", 1], "scores": [1, 2]},
            "passages has to be a text, and is int: 1",
        ),
        ("list", {}, {"query": "a", "passages": ["b"], "scores": ["x"]}, "scores has to be a number, and is 'x'"),
        ("list", {}, {"query": "a", "passages": ["b"], "scores": [None]}, "scores has to be a number, and is None"),
        ("list", {}, {"query": "a", "passages": ["b"], "scores": [[1]]}, r"scores has to be a number, and is \[1\]"),
        ("list", {}, {"query": "a", "passages": ["b"], "scores": ["inf"]}, "scores has to be a number, and is 'inf'"),
        (
            "list",
            {},
            {"query": "a", "passages": ["b", "c"], "scores": [1]},
            "a score for every passage is needed, and there are 2 in passages and 1 in scores",
        ),
        ("list", {}, {"query": "a", "texts": ["b"], "scores": [1]}, "no column 'passages', only 'query', 'texts', 'sc"),
        ("pair", {}, {"query;positive": "a;b"}, "one column, 'query;positive': set `delimiter: \";\"`"),
    ],
)
def test_a_row_of_the_wrong_form_is_refused_with_its_place(
    tmp_path: Path, kind: str, values: dict[str, Any], row: dict[str, Any], rule: str
) -> None:
    good: dict[str, dict[str, Any]] = {
        "pair": {"query": "a", "positive": "b"},
        "triplet": {"query": "a", "positive": "b", "negative": "c", "x": "b", "y": "c", "n": 1},
        "scored-pair": {"sentence1": "a", "sentence2": "b", "score": 5},
        "classification": {"text": "a", "label": 1},
        "nli": {"premise": "a", "hypothesis": "b", "label": 0},
        "list": {"query": "a", "passages": ["b", "c"], "scores": [1, 2]},
    }
    with pytest.raises(InvalidInputError, match=rule) as caught:
        prepared(tmp_path, kind, [good[kind], row], **values)
    assert (caught.value.path, caught.value.line) == (tmp_path / "rows.jsonl", 2)


@pytest.mark.parametrize(
    ("kind", "rows", "rule"),
    [
        ("pair", [], "no row of it makes an example$"),
        (
            "nli",
            [{"premise": "a", "hypothesis": "b", "label": "entails"}],
            "1 neither entailment nor contradiction; `entailment`, now 0, and `contradiction`, 2, name labels",
        ),
        ("classification", [], "two labels with two texts each$"),
        (
            "classification",
            [{"text": "a", "label": 1}, {"text": "b", "label": 1}, {"text": "c", "label": 2}],
            "1 the only",
        ),
    ],
)
def test_a_dataset_that_gives_nothing_is_refused(tmp_path: Path, kind: str, rows: list[Any], rule: str) -> None:
    with pytest.raises(InvalidInputError, match=rule):
        prepared(tmp_path, kind, rows)


def test_a_score_that_no_pair_has_is_told(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": 0.9}]
    with pytest.raises(InvalidInputError, match=r"1 score below min_score; `min_score` is 4$"):
        prepared(tmp_path, "scored-pair", rows, min_score=4)
