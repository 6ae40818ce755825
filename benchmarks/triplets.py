"""Triplets to train on and queries to measure with, from the demo's corpus: the same for whoever is measured.

A triplet is a passage's most informative sentence (the offline teacher's query), the passage without it, and another
passage. They are files, because each of the trainers that are compared runs in a process of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid5

from cli.demo.corpus import build
from services.generator.extractive import sentences
from services.trainer.fret_records import Record
from shared.masking import mask, verbatim_span
from shared.records import NAMESPACE, Passage

Triplet = tuple[str, str, str]
MIN_WORDS = 8


def write_triplets(folder: Path, count: int, passages: int) -> Path:
    """Writes triplets.jsonl, `[anchor, positive, negative]` a line, and a BEIR folder `heldout`; returns the first."""
    heldout = folder / "heldout"
    build(heldout, passages)
    texts = [json.loads(line)["text"] for line in (heldout / "corpus.jsonl").read_text().splitlines()]
    rng = random.Random(0)  # noqa: S311
    triplets = []
    for text in texts:
        for sentence in [found for found in sentences(text) if len(found.split()) >= MIN_WORDS][:3]:
            rest = mask(text, verbatim_span(sentence, text))
            if len(rest.split()) >= MIN_WORDS:
                triplets.append((sentence, rest, rng.choice(texts)))
    rng.shuffle(triplets)
    file = folder / "triplets.jsonl"
    file.write_text("".join(json.dumps(triplet) + "\n" for triplet in triplets[:count]))
    return file


def read_triplets(file: Path) -> list[Triplet]:
    return [
        (anchor, positive, negative) for anchor, positive, negative in map(json.loads, file.read_text().splitlines())
    ]


def records_of(triplets: Sequence[Triplet]) -> list[Record]:
    """The same as FRet records."""

    def passage(text: str) -> Passage:
        return Passage(uuid5(NAMESPACE, text), "", text)

    return [
        Record(
            uuid5(NAMESPACE, f"{number}:{anchor}"),
            "search result",
            anchor,
            passage(positive),
            (passage(negative),),
            None,
            (None,),
        )
        for number, (anchor, positive, negative) in enumerate(triplets)
    ]
