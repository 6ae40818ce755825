"""Turns a dataset into an Arrow file of checked examples to draw from at random. One pass before training.

So every row is checked, and counted if it is left out, before the first step, whatever it was stored in; and what was
a stream has an order of chance and a position. It costs the dataset's texts once more on the disk, and no memory that
grows with it but an index while kinds whose rows go together are sorted: 12 bytes a row of `classification`, 16 a row
of `nli`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy
import numpy.typing
import orjson
import pyarrow
from datasets import Dataset

from services.trainer.kinds import (
    TextExample,
    hypotheses,
    labelled_texts,
    nli_examples,
    scored_lists,
    text_examples,
)
from services.trainer.mixture_config import (
    ClassificationSource,
    DatasetSource,
    ListSource,
    NliSource,
    ScoredPairSource,
)
from services.trainer.rows import Row, read_rows
from shared.errors import InvalidInputError

BATCH = 1000  # rows written, and rows read in the order of an index, at once

_TEXT = pyarrow.string()
EXAMPLES = pyarrow.schema(
    [("query", _TEXT), ("positive", _TEXT), ("title", _TEXT), ("negatives", pyarrow.list_(_TEXT))]
)
LISTS = pyarrow.schema(
    [("query", _TEXT), ("passages", pyarrow.list_(_TEXT)), ("scores", pyarrow.list_(pyarrow.float64()))]
)
_LABELLED = pyarrow.schema([("text", _TEXT)])
_HYPOTHESES = pyarrow.schema([("premise", _TEXT), ("hypothesis", _TEXT), ("follows", pyarrow.bool_())])


@dataclass(frozen=True, slots=True)
class Prepared:
    """What there is to say of a prepared dataset."""

    examples: int
    dropped: dict[str, int]
    """Rows that make no example, by reason."""
    texts_by_label: dict[str, int]
    """Of `classification`: the texts lie together by label, in this order."""


def prepare(source: DatasetSource, folder: Path, on_rows: Callable[[int], None] = lambda _: None) -> Prepared:
    """Writes the source's examples into `folder`, and what there is to say of them; says how many rows it has read.

    Raises InvalidInputError for a row that breaks a rule, and where no row makes an example; SettingError for a hub
    dataset that cannot be had.
    """
    folder.mkdir(parents=True)
    rows, dropped = _told(read_rows(source), on_rows), Counter[str]()
    texts_by_label: dict[str, int] = {}
    file = folder / "examples.arrow"
    if isinstance(source, ClassificationSource):
        texts_by_label = _write_by_label(file, labelled_texts(source, rows, dropped), dropped)
        examples = sum(texts_by_label.values())
    elif isinstance(source, NliSource):
        examples = _write(file, EXAMPLES, map(asdict, _by_premise(folder, hypotheses(source, rows, dropped), dropped)))
    elif isinstance(source, ListSource):
        examples = _write(file, LISTS, map(asdict, scored_lists(source, rows, dropped)))
    else:
        examples = _write(file, EXAMPLES, map(asdict, text_examples(source, rows, dropped)))
    place = source.path or source.hub or ""
    counted = "; rows left out: " + ", ".join(f"{n} {reason}" for reason, n in dropped.items()) if dropped else ""
    if isinstance(source, ClassificationSource) and len(texts_by_label) < 2:
        raise InvalidInputError(place, None, f"classification takes two labels with two texts each{counted}")
    if examples == 0:
        raise InvalidInputError(place, None, f"no row of it makes an example{counted}{_choice_of(source)}")
    prepared = Prepared(examples, dict(dropped), texts_by_label)
    (folder / "prepared.json").write_bytes(orjson.dumps(asdict(prepared)))
    return prepared


def _choice_of(source: DatasetSource) -> str:
    """The setting of the source that may be why none of its rows is taken."""
    match source:
        case NliSource():
            return (
                f"; `entailment`, now {source.entailment!r}, and `contradiction`, {source.contradiction!r}, name labels"
            )
        case ScoredPairSource():
            return f"; `min_score` is {source.min_score:g}"
    return ""


def _told(rows: Iterator[Row], on_rows: Callable[[int], None]) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number % BATCH == 0:
            on_rows(number)
        yield row


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` has come to its end there."""
    return (folder / "prepared.json").is_file()


def load_prepared(folder: Path) -> tuple[Prepared, Dataset]:
    """What `prepare` wrote; the dataset is mapped into memory, which holds only what is read from it."""
    return Prepared(**orjson.loads((folder / "prepared.json").read_bytes())), _mapped(folder / "examples.arrow")


def _write_by_label(file: Path, texts: Iterable[tuple[str, str]], dropped: Counter[str]) -> dict[str, int]:
    """Writes the texts together by label, and returns how many each has; a label's only text has no positive."""
    raw = file.with_name("raw.arrow")
    numbers: dict[str, int] = {}
    labels = array("i")

    def noted() -> Iterator[dict[str, str]]:
        for text, label in texts:
            labels.append(numbers.setdefault(label, len(numbers)))
            yield {"text": text}

    _write(raw, _LABELLED, noted())
    label_of = numpy.asarray(labels)
    counts = numpy.bincount(label_of, minlength=len(numbers))
    order = numpy.argsort(label_of, kind="stable")
    _write(file, _LABELLED, _in_order(raw, order[counts[label_of[order]] > 1]))
    raw.unlink()
    if alone := int((counts == 1).sum()):
        dropped["the only text of its label"] += alone
    return {label: int(counts[number]) for label, number in numbers.items() if counts[number] > 1}


def _by_premise(folder: Path, rows: Iterable[tuple[str, str, bool]], dropped: Counter[str]) -> Iterator[TextExample]:
    """Examples made of all that was said of a premise, wherever it stood in the dataset."""
    raw = folder / "raw.arrow"
    hashes = array("Q")

    def noted() -> Iterator[dict[str, Any]]:
        for premise, hypothesis, follows in rows:
            hashes.append(int.from_bytes(hashlib.blake2b(premise.encode(), digest_size=8).digest()))
            yield {"premise": premise, "hypothesis": hypothesis, "follows": follows}

    _write(raw, _HYPOTHESES, noted())
    order = numpy.argsort(numpy.asarray(hashes), kind="stable")
    for premise, group in groupby(_in_order(raw, order), key=lambda row: row["premise"]):
        by_kind: dict[bool, list[str]] = {True: [], False: []}
        for row in group:
            by_kind[row["follows"]].append(row["hypothesis"])
        if not by_kind[True]:
            dropped["contradiction of a premise that nothing follows from"] += len(by_kind[False])
        following = set(by_kind[True])
        agreed = [text for text in by_kind[False] if text not in following]
        if disputed := len(by_kind[False]) - len(agreed):
            dropped["contradiction that follows as well"] += disputed
        yield from nli_examples(premise, by_kind[True], agreed)
    raw.unlink()


def _write(file: Path, schema: pyarrow.Schema, rows: Iterable[dict[str, Any]]) -> int:
    """Writes the rows as an Arrow stream and returns their number."""
    rows, count = iter(rows), 0
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
            count += len(batch)
    return count


def _in_order(file: Path, order: numpy.typing.NDArray[numpy.int64]) -> Iterator[dict[str, Any]]:
    dataset = _mapped(file)
    for start in range(0, len(order), BATCH):
        columns = dataset[order[start : start + BATCH]]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _mapped(file: Path) -> Dataset:
    return Dataset.from_file(str(file))
