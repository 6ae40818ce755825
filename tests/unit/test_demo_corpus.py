from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from cli.demo import corpus
from cli.demo.corpus import DemoCorpus, build, normalise
from cli.demo.harvest import DocumentedObject, environment_roots
from shared.errors import SettingError

STANDARD_LIBRARY = environment_roots()[:1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    return build(tmp_path_factory.mktemp("demo"), passages=300, roots=STANDARD_LIBRARY)


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


def _object(name: str, summary: str = "Do a thing to something else.", body: str = "", library: str = "a") -> DocumentedObject:
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


def test_the_same_sources_and_seed_give_the_same_files_and_another_seed_others(
    demo: DemoCorpus, tmp_path: Path
) -> None:
    again = build(tmp_path / "again", passages=300, roots=STANDARD_LIBRARY)
    other = build(tmp_path / "other", passages=300, seed=1, roots=STANDARD_LIBRARY)

    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"):
        assert (again.directory / name).read_bytes() == (demo.directory / name).read_bytes()
    assert again.sha256 == demo.sha256 != other.sha256


def test_every_harvested_object_is_kept_or_dropped_for_a_reason() -> None:
    harvested = corpus.harvest(STANDARD_LIBRARY).objects
    kept, dropped = corpus.select(harvested)

    assert len(kept) + dropped.total() == len(harvested)
    assert all(count > 0 for count in dropped.values())


def test_too_few_passages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least 8 passages"):
        build(tmp_path, passages=7)


def test_normalise_drops_case_markup_and_punctuation() -> None:
    assert normalise(":func:`~a.Run_It`,  the\n *Größe* (2nd)!") == "a run it the größe 2nd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return a :class:`~torch.Tensor` of ``dtype`` `x`_.", "Return a torch.Tensor of dtype x."),
        ("See :ref:`the guide <guide-label>` for more.", "See guide-label for more."),
        (".. versionadded:: 3.2\n\nText.\n\n.. note:: Mind this.\n", "Text.\n\nMind this."),
        ("An [`AutoModel`] from here.", "An AutoModel from here."),
    ],
)
def test_plain_takes_markup_off(text: str, expected: str) -> None:
    assert corpus.plain(text) == expected


def test_cut_ends_at_a_paragraph() -> None:
    assert corpus.cut("one two\n\nthree\n\nfour", 14) == "one two\n\nthree"
    assert corpus.cut("one two three", 12) == ""
