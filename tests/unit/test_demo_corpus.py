from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from cli.demo import corpus
from cli.demo.corpus import DemoCorpus, build, normalise
from cli.demo.harvest import DocumentedObject, SourceRoot, environment_roots, harvest
from shared.errors import SettingError

STANDARD_LIBRARY = environment_roots()[0]
SOME_PACKAGES = [  # enough for a corpus of 40, and read in a moment
    SourceRoot(name, STANDARD_LIBRARY.path / name, name) for name in ("asyncio", "email", "tkinter", "unittest")
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    return build(tmp_path_factory.mktemp("demo"), passages=300, roots=[STANDARD_LIBRARY])


def _rows(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["_id"]: row["text"] for row in rows}


def _qrels(demo: DemoCorpus, split: str) -> dict[str, str]:
    header, *lines = (demo.directory / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    rows = [line.split("\t") for line in lines]
    assert all(score == "1" for _, _, score in rows)
    return {query: passage for query, passage, _ in rows}


def _leaks(queries: Iterable[str], passages: Iterable[str]) -> list[tuple[str, str]]:
    """Every (query, passage) of which the one stands in the other; by brute force, to check the clever way."""
    texts = [normalise(text) for text in passages]
    return [(query, text) for query in map(normalise, queries) for text in texts if query in text]


def _object(
    name: str, summary: str = "Do a thing to something else.", body: str = "", library: str = "a"
) -> DocumentedObject:
    return DocumentedObject(name, library, summary, body or f"{name} is prose. " * 20)


def test_no_held_out_summary_stands_in_any_passage(demo: DemoCorpus) -> None:
    queries, passages = _rows(demo.directory / "queries.jsonl"), _rows(demo.directory / "corpus.jsonl")

    assert len(queries) == 150
    assert _leaks(queries.values(), passages.values()) == []


def test_the_leak_check_finds_a_planted_leak(demo: DemoCorpus) -> None:
    queries, passages = _rows(demo.directory / "queries.jsonl"), _rows(demo.directory / "corpus.jsonl")
    query, victim = next(iter(queries.values())), next(iter(passages))
    passages[victim] += f"\n\nSee also:  *{query.upper()}*".replace(" ", "\n  ")

    assert [found for found, _ in _leaks(queries.values(), passages.values())] == [normalise(query)]


def test_the_held_out_queries_are_two_disjoint_sets_each_with_its_own_passage(demo: DemoCorpus) -> None:
    queries, passages = _rows(demo.directory / "queries.jsonl"), _rows(demo.directory / "corpus.jsonl")
    test, dev = _qrels(demo, "test"), _qrels(demo, "dev")

    assert (len(passages), len(test), len(dev)) == (300, 75, 75) == (demo.passages, demo.test_queries, demo.dev_queries)
    assert set(test.values()).isdisjoint(dev.values())
    assert set(test) | set(dev) == set(queries)
    assert set(test.values()) | set(dev.values()) <= set(passages)
    assert len({normalise(text) for text in queries.values()}) == 150


def test_the_same_sources_and_seed_give_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        build(tmp_path / name, passages=40, seed=seed, roots=SOME_PACKAGES)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )

    assert first.passages == 40
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"):
        assert (again.directory / name).read_bytes() == (first.directory / name).read_bytes()
    assert again.sha256 == first.sha256 != other.sha256


def test_every_harvested_object_is_kept_or_dropped_for_a_reason() -> None:
    harvested = harvest(SOME_PACKAGES).objects
    kept, dropped = corpus.select(harvested)

    assert len(kept) > 40
    assert len(kept) + dropped.total() == len(harvested)


def test_too_few_passages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least 8 passages"):
        build(tmp_path, passages=7)


def test_normalise_drops_case_markup_and_punctuation() -> None:
    assert normalise(":func:`~a.Run_It`,  the\n *Größe* (2nd)!") == "a run it the größe 2nd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return a :class:`~torch.Tensor` of ``dtype`` `x`_.", "Return a torch.Tensor of dtype x."),
        ("The :class:`_engine.Row` of :ref:`the guide <guide-label>`.", "The Row of the guide."),
        ("An [`AutoModel`] from `here <https://localhost>`__.", "An AutoModel from here."),
        (".. versionadded:: 3.2\n   The name is new.\n\nText.\n\n.. note:: Mind this.\n", "Text.\n\nMind this."),
    ],
)
def test_plain_takes_markup_off(text: str, expected: str) -> None:
    assert corpus.plain(text) == expected


def test_cut_ends_at_a_paragraph() -> None:
    assert corpus.cut("one two\n\nthree\n\nfour", 14) == "one two\n\nthree"
    assert corpus.cut("one two three", 12) == ""


PROSE = "This paragraph tells the reader at some length what the object is for, and when one would want another. " * 3
DOCTEST = ">>> compute(1, 2)\nthree words of output, nothing that anybody wrote for a reader to learn from\n" * 4


@pytest.mark.parametrize(
    ("summary", "body", "reason"),
    [
        ("Do a thing to something else.", PROSE, None),
        ("Do a thing.", PROSE, "summary_length"),
        ("word " * 26, PROSE, "summary_length"),
        ("run(wind, sails=3, *others) -> Boat or None at all", PROSE, "summary_no_sentence"),
        ("Do a thing to it. Then do another.", PROSE, "summary_no_sentence"),
        ("Führt die Größe über Ähnliches hinüber nach Östürk.", PROSE, "not_words"),
        ("Do a thing to something else.", PROSE + "\0", "not_words"),
        ("Do a thing to something else.", "Too short to be found.", "body_length"),
        ("Do a thing to something else.", PROSE * 8, "body_length"),
        ("Do a thing to something else.", DOCTEST, "body_no_prose"),
    ],
)
def test_what_is_no_good_is_named(summary: str, body: str, reason: str | None) -> None:
    assert corpus.flaw(_object("a.b", summary, body)) == reason


def test_repeated_summaries_are_found_on_all_sides() -> None:
    objects = [_object("a", "Run it now."), _object("b", "Walk on now."), _object("c", "run :meth:`it` NOW")]

    assert corpus.repeated_summaries(objects) == {0, 2}


def test_exact_and_near_duplicate_bodies_are_found_and_the_first_stays() -> None:
    words = [f"word{i}" for i in range(100)]
    near = [*words[:90], *(f"other{i}" for i in range(10))]  # Jaccard of 5-word shingles: 86 / 106
    far = [*words[:40], *(f"other{i}" for i in range(60))]  # 36 / 156
    objects = [_object(f"o{i}", body=" ".join(body)) for i, body in enumerate((words, far, words, near))]

    assert corpus.duplicate_bodies(objects) == {2, 3}


@pytest.mark.parametrize(
    "body",
    [
        "Well: RETURN the *longest* common prefix, they say.",
        "It will return\n  the longest common prefixes of all.",  # ends inside a word, which a substring does too
        "To preturn the longest common prefix is nothing.",
    ],
)
def test_a_body_that_holds_any_summary_is_found(body: str) -> None:
    objects = [
        _object("a", "Return the longest common prefix."),
        _object("b", "Walk over all the files.", body),
        _object("c", "Close the door behind you.", "Return the longest, common suffix, or the prefix."),
    ]

    assert corpus.leaking_bodies(objects) == {1}


def test_the_sample_takes_the_libraries_in_turn_and_stays_when_an_object_comes() -> None:
    objects = [_object(f"big.{i}", library="big") for i in range(50)]
    objects += [_object(f"small.{i}", library="small") for i in range(3)]

    chosen = corpus.sample(objects, 10, seed=0)

    assert sum(o.library == "small" for o in chosen) == 3
    assert set(corpus.sample(objects, 9, seed=0)) < set(chosen)
    assert corpus.sample(list(reversed(objects)), 10, seed=0) == chosen
    assert corpus.sample(objects, 100, seed=0) == sorted(objects, key=lambda o: o.qualified_name)
