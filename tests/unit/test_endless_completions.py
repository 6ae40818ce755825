"""A completion without end is read in a moment, whatever it is made of: no pattern goes over it again and again."""

from __future__ import annotations

import time

import pytest

from services.generator.parse import MAX_QUERY_CHARS, Pair, parse
from shared.llm import Completion

SIZE = 2**17
QUERY = "how do owls hunt?"


@pytest.mark.parametrize(
    "piece",
    [
        *("word ", "word\n", "*", "* ", "`", '"', "<", "[", "1. ", "- ", " ", "\n", "\t", "\x00", "\r", "\u2028", "_"),
        *(
            "Task: ",
            "Task:\n",
            "Query: ",
            "query ",
            "your ",
            "search query ",
            "\ufffd",
            chr(0xD800),
            "\u202eשלום ",
            "猫",
        ),
    ],
    ids=ascii,
)
def test_much_of_anything_is_read_in_a_moment(piece: str) -> None:
    long = piece * (SIZE // len(piece))
    started = time.process_time()
    for text in (long, f" {long}\nQuery: {QUERY}", f" a task\nQuery: {long}", f" a task\nQuery: {QUERY}\n{long}"):
        for finished in (True, False):
            parsed = parse(Completion(text, finished), None, passage_text=long)
            if isinstance(parsed, Pair):
                assert len(parsed.query_text) <= MAX_QUERY_CHARS
    assert time.process_time() - started < 20  # quadratic, it would be minutes
