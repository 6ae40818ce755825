"""From harvested docstrings to the demo's corpus: clean, drop with a reason, sample, hold out, write a BEIR folder.

A passage is a docstring without its summary line; the summary lines of some objects are the held-out queries, written
by people, each relevant to its own passage (known-item search). No summary may stand in any passage, so that a query
is never answered by copying. Every choice follows from the sources and the seed: no clock, no Python hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cli.demo.harvest import DocumentedObject, SourceRoot, environment_roots, harvest
from shared.errors import SettingError

BODY_CHARS = (200, 2_000)
SUMMARY_WORDS = (5, 25)  # fewer words are too vague to have one right answer
MIN_PROSE_WORDS = 25
HELD_OUT = 400
SHINGLE_WORDS = 5
NEAR_DUPLICATE_JACCARD = 0.5

# not one sentence in words: code, a signature, a link, markup, or the lead of a list
_NOT_A_SENTENCE = re.compile(r"->|::|>>>|://|[{}<>|=*@\\]|\w\(|[.!?]\s+[A-Z]|:$|^[^\w\"'`(]")
_ROLE = re.compile(r":[\w:+-]+:(?=`)")
_CODE = re.compile(r"\[?`+[~!.]*(?:_[a-z]+\.)?([^`]{1,100}?)(?:\s+<[^`>]*>)?`+_{0,2}\]?")
_ADMONITION = re.compile(r"\.\. (?:attention|caution|hint|important|note|seealso|tip|warning):: *")
_DIRECTIVE = re.compile(r"^( *)\.\. (?:(?:version\w+|deprecated)::.*\n(?:\1 +\S.*\n?)*|.*\n?)", re.MULTILINE)
_DOCTEST = re.compile(r"^ *>>>.*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"(?<![\w.(\[])[A-Za-z][a-z']+(?=[\s,.;:)]|$)")


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """What was built; `sha256` is over the sorted lines of corpus.jsonl, `dropped` counts objects by reason."""

    directory: Path
    passages: int
    test_queries: int
    dev_queries: int
    by_library: dict[str, int]
    dropped: dict[str, int]
    sha256: str


def build(
    directory: Path, passages: int = 2_000, seed: int = 0, roots: Sequence[SourceRoot] | None = None
) -> DemoCorpus:
    """Writes corpus.jsonl, queries.jsonl, qrels/test.tsv and qrels/dev.tsv below `directory`.

    A quarter of the passages, but at most 400, give test queries, as many others give development queries; the other
    summaries are used nowhere. Where the sources hold fewer good objects than `passages`, all are taken.
    Raises SettingError when `passages` is under 8.
    """
    if passages < 8:
        raise SettingError(f"the demo needs at least 8 passages to hold out queries from, not {passages}")
    harvested = harvest(environment_roots() if roots is None else roots)
    objects, dropped = select(harvested.objects)
    chosen = sample(objects, passages, seed)
    test, dev = hold_out(chosen, seed)
    corpus_lines = [_json({"_id": o.qualified_name, "title": "", "text": o.body}) for o in chosen]
    query_lines = [_json({"_id": _query_id(o), "text": o.summary}) for o in (*test, *dev)]
    (directory / "qrels").mkdir(parents=True, exist_ok=True)
    _write(directory / "corpus.jsonl", corpus_lines)
    _write(directory / "queries.jsonl", query_lines)
    for split, held_out in (("test", test), ("dev", dev)):
        rows = [f"{_query_id(o)}\t{o.qualified_name}\t1" for o in held_out]
        _write(directory / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *rows])
    return DemoCorpus(
        directory=directory,
        passages=len(chosen),
        test_queries=len(test),
        dev_queries=len(dev),
        by_library=dict(Counter(o.library for o in chosen).most_common()),
        dropped=dict(dropped),
        sha256=hashlib.sha256("\n".join(sorted(corpus_lines)).encode()).hexdigest(),
    )


def normalise(text: str) -> str:
    """Lower-case words joined by single blanks, without markup and punctuation: what the leak rule compares."""
    return " ".join(re.findall(r"[^\W_]+", _ROLE.sub("", text).lower()))


def select(objects: Iterable[DocumentedObject]) -> tuple[list[DocumentedObject], Counter[str]]:
    """The objects fit for the corpus, cleaned and in order of name, and the count of the others by reason."""
    dropped: Counter[str] = Counter()
    kept = []
    for candidate in sorted(objects, key=lambda o: o.qualified_name):
        cleaned = replace(candidate, summary=plain(candidate.summary), body=cut(plain(candidate.body)))
        reason = flaw(cleaned)
        if reason is None:
            kept.append(cleaned)
        else:
            dropped[reason] += 1
    filters: tuple[tuple[str, Callable[[Sequence[DocumentedObject]], set[int]]], ...] = (
        ("summary_repeated", repeated_summaries),
        ("body_duplicate", duplicate_bodies),
        ("contains_a_summary", leaking_bodies),
    )
    for reason, find in filters:
        indexes = find(kept)
        dropped[reason] += len(indexes)
        kept = [o for i, o in enumerate(kept) if i not in indexes]
    return kept, dropped


def plain(text: str) -> str:
    """`text` without reStructuredText's roles, code marks and directive lines."""
    text = _CODE.sub(r"\1", _ROLE.sub("", _DIRECTIVE.sub("", _ADMONITION.sub("", text))))
    return re.sub(r"\n\s*\n", "\n\n", text).strip()


def cut(body: str, limit: int = BODY_CHARS[1]) -> str:
    """The whole paragraphs of `body` that fit into `limit` characters; empty when the first does not fit."""
    if len(body) <= limit:
        return body
    end = body.rfind("\n\n", 0, limit + 2)
    return body[:end].rstrip() if end > 0 else ""


def flaw(candidate: DocumentedObject) -> str | None:
    """Why this cleaned object is no good for the corpus, as a reason code; None when it is."""
    words = len(candidate.summary.split())
    if not SUMMARY_WORDS[0] <= min(words, len(normalise(candidate.summary).split())) or words > SUMMARY_WORDS[1]:
        return "summary_length"
    if _NOT_A_SENTENCE.search(candidate.summary):
        return "summary_no_sentence"
    if not _mostly_letters(candidate.summary) or not _mostly_letters(candidate.body, 0.6):
        return "not_words"
    if not BODY_CHARS[0] <= len(candidate.body) <= BODY_CHARS[1]:
        return "body_length"
    if prose_words(candidate.body) < MIN_PROSE_WORDS:
        return "body_no_prose"
    return None


def prose_words(body: str) -> int:
    """Words that stand in running text or in descriptions of parameters, not in doctests, names or calls."""
    return len(_WORD.findall(_DOCTEST.sub("", body)))


def _mostly_letters(text: str, share: float = 0.85) -> bool:
    """Whether the characters, blanks aside, are ASCII letters for the most part, and all printable."""
    characters = "".join(text.split())
    return characters.isprintable() and sum(c.isascii() and c.isalpha() for c in characters) >= share * len(characters)


def repeated_summaries(objects: Sequence[DocumentedObject]) -> set[int]:
    """Indexes of the objects whose summary is also another's: such a query would have two right answers."""
    normalised = [normalise(o.summary) for o in objects]
    counts = Counter(normalised)
    return {i for i, summary in enumerate(normalised) if counts[summary] > 1}


def duplicate_bodies(objects: Sequence[DocumentedObject]) -> set[int]:
    """Indexes of the bodies that share half of their 5-word shingles, or all, with an earlier one that stays.

    MinHash signatures of 64 rows in 16 bands find the pairs (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, section 3.4), exact Jaccard decides.
    """
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**63, size=(64, 1), dtype=np.uint64) | np.uint64(1)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    shingles: list[NDArray[np.uint64]] = []
    duplicates = set()
    for i, candidate in enumerate(objects):
        shingles.append(_shingles(normalise(candidate.body)))
        signature = (shingles[i] * factors).min(axis=1)
        keys = [(band, rows.tobytes()) for band, rows in enumerate(signature.reshape(16, 4))]
        neighbours = {j for key in keys for j in buckets[key]}
        if any(_jaccard(shingles[i], shingles[j]) >= NEAR_DUPLICATE_JACCARD for j in sorted(neighbours)):
            duplicates.add(i)
            continue
        for key in keys:
            buckets[key].append(i)
    return duplicates


def _shingles(normalised: str) -> NDArray[np.uint64]:
    words = normalised.split()
    grams = [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
    hashes = np.unique(np.fromiter((crc32(gram.encode()) for gram in grams), np.uint64, len(grams)))
    hashes ^= hashes >> np.uint64(15)
    return hashes * np.uint64(0x9E3779B97F4A7C15)


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def leaking_bodies(objects: Sequence[DocumentedObject]) -> set[int]:
    """Indexes of the bodies in which a summary stands, its own object's or any other's, as normalised text.

    A summary's inner words stand whole in any text that holds it, so the first of them find the few texts to search.
    """
    by_inner_words: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for candidate in objects:
        summary = normalise(candidate.summary)
        by_inner_words[tuple(summary.split()[1:-1][:3])].add(summary)
    leaking = set()
    for i, candidate in enumerate(objects):
        body = normalise(candidate.body)
        words = body.split()
        grams = {tuple(words[start : start + size]) for size in (2, 3) for start in range(len(words))}
        if any(summary in body for gram in grams & by_inner_words.keys() for summary in by_inner_words[gram]):
            leaking.add(i)
    return leaking


def sample(objects: Sequence[DocumentedObject], passages: int, seed: int) -> list[DocumentedObject]:
    """At most `passages` objects in order of name, taken from the libraries in turn so that none dominates."""
    by_library: dict[str, list[DocumentedObject]] = defaultdict(list)
    for candidate in _shuffled(objects, f"{seed}:sample"):
        by_library[candidate.library].append(candidate)
    turns = [(turn, library) for library, members in by_library.items() for turn in range(len(members))]
    chosen = [by_library[library][turn] for turn, library in sorted(turns)[:passages]]
    return sorted(chosen, key=lambda o: o.qualified_name)


def hold_out(chosen: Sequence[DocumentedObject], seed: int) -> tuple[list[DocumentedObject], list[DocumentedObject]]:
    """Two disjoint sets whose summaries become queries: test, and development for choosing policies and settings."""
    size = min(HELD_OUT, len(chosen) // 4)
    shuffled = _shuffled(chosen, f"{seed}:hold-out")
    return shuffled[:size], shuffled[size : 2 * size]


def _shuffled(objects: Iterable[DocumentedObject], salt: str) -> list[DocumentedObject]:
    """In the order of a salted hash: an object that comes or goes moves no other."""
    return sorted(objects, key=lambda o: hashlib.sha256(f"{salt}:{o.qualified_name}".encode()).digest())


def _query_id(held_out: DocumentedObject) -> str:
    return f"summary:{held_out.qualified_name}"


def _json(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
