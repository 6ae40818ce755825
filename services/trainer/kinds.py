"""What a row of each kind of dataset means: its checked values as ⟨query, positive, negatives⟩. Pure, no files.

A value of the wrong form is an InvalidInputError with its place: the mapping or the file is wrong. A row of the right
form that can be no example, such as one with an empty text, is left out and counted by its reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from services.trainer.lines import Where
from services.trainer.mixture_config import (
    ClassificationSource,
    ListSource,
    NliSource,
    PairSource,
    ScoredPairSource,
    TripletFields,
    TripletSource,
)
from services.trainer.rows import Row
from shared.errors import InvalidInputError
from shared.list_scores import standardised

NO_LABEL = -1  # what NLI and multiple-choice datasets write where nobody knows; elsewhere it is a label like any other


@dataclass(frozen=True, slots=True)
class TextExample:
    """One example's texts, not yet written for the encoder; the title is the positive's."""

    query: str
    positive: str
    title: str = ""
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextList:
    """A query's passages, no two alike, and the teacher's score of each (mean 0, deviation 1), not all equal."""

    query: str
    passages: tuple[str, ...]
    scores: tuple[float, ...]


def text_examples(
    source: PairSource | TripletSource | ScoredPairSource, rows: Iterable[Row], dropped: Counter[str]
) -> Iterator[TextExample]:
    """The examples of the rows, in order; what is left out is counted in `dropped`."""
    for where, row in rows:
        title, negatives = "", tuple[str, ...]()
        match source:
            case PairSource(fields=fields):
                query, positives = _text(where, row, fields.query), _texts(where, row, fields.positive)
                title = _title(where, row, fields.title)
            case TripletSource(fields=fields):
                query = _text(where, row, fields.query)
                if fields.options:
                    positives, negatives = _choice(where, row, fields)
                else:
                    positives = _texts(where, row, fields.positive or "")
                    negatives = tuple(text for name in fields.negatives for text in _texts(where, row, name))
            case ScoredPairSource(fields=fields):
                if _number(where, row, fields.score) < source.min_score:
                    dropped["score below min_score"] += 1
                    continue
                query, positives = _text(where, row, fields.first), _texts(where, row, fields.second)
        if not query or not positives:
            dropped["no query" if not query else "no positive"] += 1
            continue
        # what is a positive of the same row is no negative of it
        negatives = tuple(text for text in negatives if text not in positives)
        for positive in positives:
            yield TextExample(query, positive, title, negatives)


def scored_lists(source: ListSource, rows: Iterable[Row], dropped: Counter[str]) -> Iterator[TextList]:
    """The lists of the rows, in order; what is left out is counted in `dropped`."""
    fields = source.fields
    for where, row in rows:
        query = _text(where, row, fields.query)
        passages = [text for name in fields.passages for text in _items(where, row, name)]
        numbers = [
            _as_number(where, name, value) for name in fields.scores for value in _as_list(_value(where, row, name))
        ]
        if len(passages) != len(numbers):
            rule = f"a score for every passage is needed, and there are {len(passages)} in"
            raise InvalidInputError(
                *where, f"{rule} {', '.join(fields.passages)} and {len(numbers)} in {', '.join(fields.scores)}"
            )
        # a blank passage is none, and of one that stands there twice the first counts
        listed: dict[str, float] = {}
        for text, number in zip(passages, numbers, strict=True):
            if text.strip():
                listed.setdefault(text, number)
        scores = standardised(list(listed.values()))
        if not query:
            dropped["no query"] += 1
        elif len(listed) < 2:
            dropped["fewer than two passages"] += 1
        elif not any(scores):
            dropped["all scores equal"] += 1
        else:
            yield TextList(query, tuple(listed), tuple(scores))


def labelled_texts(
    source: ClassificationSource, rows: Iterable[Row], dropped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """(text, label) of each row that has both."""
    for where, row in rows:
        text, label = _text(where, row, source.fields.text), _label(where, row, source.fields.label)
        if not text or label is None:
            dropped["no text" if not text else "no label"] += 1
            continue
        yield text, label


def hypotheses(source: NliSource, rows: Iterable[Row], dropped: Counter[str]) -> Iterator[tuple[str, str, bool]]:
    """(premise, hypothesis, whether it follows) of each row whose hypothesis follows or contradicts."""
    entailment, contradiction = str(source.entailment), str(source.contradiction)
    for where, row in rows:
        premise, hypothesis = _text(where, row, source.fields.premise), _text(where, row, source.fields.hypothesis)
        label = _label(where, row, source.fields.label)
        if not premise or not hypothesis:
            dropped["no premise" if not premise else "no hypothesis"] += 1
        elif label in (None, str(NO_LABEL)):
            dropped["no label"] += 1
        elif label not in (entailment, contradiction):
            dropped["neither entailment nor contradiction"] += 1
        else:
            yield premise, hypothesis, label == entailment


def nli_examples(premise: str, following: list[str], contradicting: list[str]) -> Iterator[TextExample]:
    """An example for each hypothesis that follows; what contradicts is shared out among them."""
    for number, hypothesis in enumerate(following):
        own = contradicting[number :: len(following)] or contradicting[:1]
        yield TextExample(premise, hypothesis, negatives=tuple(own))


def _choice(where: Where, row: dict[str, Any], fields: TripletFields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The right option and the others; no right one where the answer is not told, as in MedMCQA's test split."""
    answer = _number(where, row, fields.answer or "", if_none=NO_LABEL)
    if answer == NO_LABEL:
        return (), ()
    options = [_text(where, row, name) for name in fields.options]
    if answer not in range(len(options)):
        raise InvalidInputError(*where, f"{fields.answer} is {answer:g}, and the options are 0 to {len(options) - 1}")
    right = options.pop(int(answer))
    return (right,) if right else (), tuple(filter(None, options))


def _value(where: Where, row: dict[str, Any], column: str) -> Any:
    try:
        return row[column]
    except KeyError:
        rule = f"there is no column {column!r}, only {', '.join(map(repr, row))}: map the names under `fields`"
        parted = next((f"`delimiter: {json.dumps(mark)}`" for mark in ";\t|" if mark in "".join(row)), None)
        if len(row) == 1 and parted:
            rule = f"there is one column, {next(iter(row))!r}: set {parted}, which separates its names"
        raise InvalidInputError(*where, rule) from None


def _texts(where: Where, row: dict[str, Any], column: str) -> tuple[str, ...]:
    """The texts in a text or a list of texts; blank ones and null are none."""
    return tuple(text for text in _items(where, row, column) if text.strip())


def _items(where: Where, row: dict[str, Any], column: str) -> list[str]:
    """A text, or the texts of a list of them, blank ones too; null is a blank one."""
    texts = _as_list(_value(where, row, column))
    for text in texts:
        if not isinstance(text, str | None):
            raise InvalidInputError(*where, f"{column} has to be a text, and is {type(text).__name__}: {text!r:.80}")
    return [text or "" for text in texts]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(where: Where, row: dict[str, Any], column: str) -> str:
    """The text, or "" for a blank one or null."""
    if isinstance(_value(where, row, column), list):
        raise InvalidInputError(*where, f"{column} has to be a text, and is a list")
    return "".join(_texts(where, row, column))


def _title(where: Where, row: dict[str, Any], column: str | None) -> str:
    return _text(where, row, column) if column else ""


def _label(where: Where, row: dict[str, Any], column: str) -> str | None:
    value = _value(where, row, column)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int):
        raise InvalidInputError(*where, f"{column} has to be a text or an integer, and is {value!r:.80}")
    return str(value)


def _number(where: Where, row: dict[str, Any], column: str, *, if_none: float = math.nan) -> float:
    return _as_number(where, column, _value(where, row, column), if_none=if_none)


def _as_number(where: Where, column: str, value: Any, *, if_none: float = math.nan) -> float:
    try:
        number = if_none if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInputError(*where, f"{column} has to be a number, and is {value!r:.80}")
    return number
