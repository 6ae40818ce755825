"""Reads a BEIR folder: corpus.jsonl, queries.jsonl, qrels/{split}.tsv. No model here.

What breaks the format's rules is an InvalidInputError with file, line and rule; nothing is guessed or skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.trainer.lines import Where, json_lines, lines, text_of
from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class BeirPassage:
    passage_id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class BeirData:
    """A corpus with the queries of one split and their judgements, in the order of their ids."""

    passages: tuple[BeirPassage, ...]
    query_texts: dict[str, str]
    qrels: dict[str, dict[str, int]]  # query id → passage id → grade


def read_beir(folder: Path, split: str = "test") -> BeirData:
    """The folder's corpus, and those of its queries that the split judges.

    Raises InvalidInputError: a file is missing, a line is not what the format says, an id stands twice, or a judgement
    names a query or passage that is not there.
    """
    passages: dict[str, BeirPassage] = {}
    for where, row in json_lines(folder / "corpus.jsonl"):
        passage_id = _id(where, row)
        if passage_id in passages:
            raise InvalidInputError(*where, f"the _id {passage_id!r} stands twice")
        title = "" if row.get("title") is None else text_of(where, row, "title")
        passages[passage_id] = BeirPassage(passage_id, title, text_of(where, row, "text"))
    query_texts: dict[str, str] = {}
    for where, row in json_lines(folder / "queries.jsonl"):
        query_id = _id(where, row)
        if query_id in query_texts:
            raise InvalidInputError(*where, f"the _id {query_id!r} stands twice")
        query_texts[query_id] = text_of(where, row, "text")
    qrels = _read_qrels(folder / "qrels" / f"{split}.tsv", passages, query_texts)
    return BeirData(
        tuple(passages[passage_id] for passage_id in sorted(passages)),
        {query_id: query_texts[query_id] for query_id in sorted(qrels)},
        {query_id: qrels[query_id] for query_id in sorted(qrels)},
    )


def _read_qrels(path: Path, passages: dict[str, BeirPassage], query_texts: dict[str, str]) -> dict[str, dict[str, int]]:
    if not path.is_file():
        there = sorted(each.stem for each in path.parent.glob("*.tsv"))
        rule = f"there is no such file; the folder has qrels for --split {' or '.join(there)}" if there else None
        raise InvalidInputError(path, None, rule or "there is no such file")
    qrels: dict[str, dict[str, int]] = {}
    for where, line in lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise InvalidInputError(*where, "a line of qrels has three fields parted by tabs: query-id corpus-id score")
        query_id, passage_id, score = fields
        if where[1] == 1 and query_id not in query_texts and not score.strip().lstrip("-").isdecimal():
            continue  # the header, whatever its words
        if query_id not in query_texts:
            raise InvalidInputError(*where, f"the query {query_id!r} is not in queries.jsonl")
        if passage_id not in passages:
            raise InvalidInputError(*where, f"the passage {passage_id!r} is not in corpus.jsonl")
        try:
            grade = int(score)
        except ValueError:
            raise InvalidInputError(*where, f"the score {score!r} is not an integer") from None
        if qrels.setdefault(query_id, {}).setdefault(passage_id, grade) != grade:
            raise InvalidInputError(*where, f"query {query_id!r} and passage {passage_id!r} have two scores")
    if not qrels:
        raise InvalidInputError(path, None, "no judgement in it: nothing can be measured")
    return qrels


def _id(where: Where, row: dict[str, object]) -> str:
    value = row.get("_id")
    if type(value) is int:  # as `corpus add` takes it
        value = str(value)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(*where, "_id has to be a text that is not empty, or an integer")
    return value
