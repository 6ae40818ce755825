"""mixtures/gecko.yaml: what each of its mappings makes of rows in the published form. The texts are invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mteb
import pytest

from cli.models.mixture_file import read_mixture
from services.trainer.config import TrainingConfig
from services.trainer.mixture_config import ClassificationSource, DatasetSource, FretSource
from services.trainer.prepare import load_prepared, prepare
from services.trainer.sources import DatasetExamples
from tests.unit.datasets_in_files import parquet_file

FILE = Path(__file__).parents[2] / "mixtures" / "gecko.yaml"
MIXTURE = read_mixture(FILE, ())
assert MIXTURE is not None
SOURCES = {source.name: source for source in MIXTURE.sources if not isinstance(source, FretSource)}
FRET = next(source for source in MIXTURE.sources if isinstance(source, FretSource))

_MEDMCQA: dict[str, Any] = {
    "exp": None,
    "choice_type": "single",
    "subject_name": "Anatomy",
    "topic_name": None,
    "id": "7",
}
_MEDMCQA |= {"opa": "Two", "opb": "Four", "opc": "Six", "opd": "Eight"}
_NLI = [
    ("A dog sleeps on a step.", "An animal rests.", 0),
    ("A dog sleeps on a step.", "The dog is old.", 1),
    ("A dog sleeps on a step.", "A dog runs.", 2),
    ("Two boats.", "There are boats.", -1),
]
_MNLI: dict[str, Any] = {"premise_binary_parse": "( )", "premise_parse": "(ROOT )", "hypothesis_binary_parse": "( )"}
_MNLI |= {"hypothesis_parse": "(ROOT )", "genre": "fiction", "promptID": 1, "pairID": "1e"}
_LABELLED = [
    {"text": f"{label} {n}", "label": number, "label_text": label}
    for number, label in enumerate(("good", "bad"))
    for n in range(2)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "nq": [{"query": "how tall is the old mill", "answer": "Old Mill The mill is 20 metres tall."}],
    "hotpotqa": [{"anchor": "who built the mill", "positive": "Mill: built by X.", "negative": "Hill: a hill."}],
    "fever": [
        {
            "query": "The mill burned down.",
            "positive": ["Mill It burned down in 1900.", "Fires The mill was one of them."],
            "negative": ["Hill A hill.", "Bill A name."],
        }
    ],
    "medmcqa": [
        {**_MEDMCQA, "question": "How many legs has a spider?", "cop": 3},
        {**_MEDMCQA, "question": "Untold", "cop": -1},
    ],
    "snli": [{"premise": premise, "hypothesis": text, "label": label} for premise, text, label in _NLI],
    "mnli": [{**_MNLI, "premise": premise, "hypothesis": text, "label": label} for premise, text, label in _NLI],
    **dict.fromkeys(
        ("banking77", "emotion", "imdb", "toxic_conversations", "amazon_counterfactual", "tweet_sentiment"), _LABELLED
    ),
}


def written(source: DatasetSource, folder: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """(query, positive, negatives) as the encoder reads them, in the order of the queries and positives."""
    file = parquet_file(folder / "rows.parquet", ROWS[source.name])
    prepare(source.model_copy(update={"hub": None, "path": str(file)}), folder / "out")
    prepared, dataset = load_prepared(folder / "out")
    examples = DatasetExamples(source, TrainingConfig(prompts="gecko"), prepared, dataset).examples(
        range(prepared.examples)
    )
    return sorted((example.query, example.positive, example.negatives) for example in examples)


def test_fret_has_half_of_the_batches_and_the_tasks_are_uniform() -> None:
    assert FRET.uniform_tasks
    others = sum(source.weight for source in SOURCES.values())
    assert FRET.weight / (FRET.weight + others) == pytest.approx(0.5, abs=0.05)


def test_every_mapping_has_rows_here() -> None:
    assert set(ROWS) == set(SOURCES)
    assert all(source.hub for source in SOURCES.values())


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        (
            "nq",
            [
                (
                    "task: question answering | query: how tall is the old mill",
                    "title: none | text: Old Mill The mill is 20 metres tall.",
                    (),
                )
            ],
        ),
        (
            "hotpotqa",
            [
                (
                    "task: question answering | query: who built the mill",
                    "title: none | text: Mill: built by X.",
                    ("title: none | text: Hill: a hill.",),
                )
            ],
        ),
        (
            "fever",
            [
                (
                    "task: fact checking | query: The mill burned down.",
                    f"title: none | text: {positive}",
                    ("title: none | text: Hill A hill.", "title: none | text: Bill A name."),
                )
                for positive in ("Fires The mill was one of them.", "Mill It burned down in 1900.")
            ],
        ),
        (
            "medmcqa",
            [
                (
                    "task: question answering | query: How many legs has a spider?",
                    "title: none | text: Eight",
                    tuple(f"title: none | text: {option}" for option in ("Two", "Four", "Six")),
                )
            ],
        ),
        *(
            (
                name,
                [
                    (
                        "task: sentence similarity | query: A dog sleeps on a step.",
                        "task: sentence similarity | query: An animal rests.",
                        ("task: sentence similarity | query: A dog runs.",),
                    )
                ],
            )
            for name in ("snli", "mnli")
        ),
    ],
)
def test_a_mapping(name: str, examples: list[tuple[str, str, tuple[str, ...]]], tmp_path: Path) -> None:
    assert written(SOURCES[name], tmp_path) == examples


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.kind == "classification"])
def test_a_mapping_of_a_classification_set(name: str, tmp_path: Path) -> None:
    before = f"task: {SOURCES[name].task_description} | query: "
    for query, positive, (negative,) in written(SOURCES[name], tmp_path):
        label, number = query.removeprefix(before).split()
        assert positive == f"{before}{label} {1 - int(number)}"
        assert negative.removeprefix(before).split()[0] == {"good": "bad", "bad": "good"}[label]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("banking77", "Banking77Classification"),
        ("emotion", "EmotionClassification"),
        ("imdb", "ImdbClassification"),
        ("toxic_conversations", "ToxicConversationsClassification"),
        ("amazon_counterfactual", "AmazonCounterfactualClassification"),
        ("tweet_sentiment", "TweetSentimentExtractionClassification"),
    ],
)
def test_the_classification_sets_are_read_as_their_publisher_reads_them(name: str, task: str) -> None:
    """The library mteb names the repository and the columns that its tasks take from it; it has the data nowhere."""
    published, source = mteb.get_task(task), SOURCES[name]
    assert isinstance(source, ClassificationSource)
    assert published.metadata.dataset["path"] == source.hub
    assert (published.input_column_name, published.label_column_name) == (source.fields.text, source.fields.label)
    if source.config:
        assert source.config in published.hf_subsets
