"""Who teaches a run is settled before it starts, against a server that speaks HTTP; and what a preview shows of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from cli.corpus.store import import_corpus
from cli.runs.preview import preview
from cli.runs.settings import parse_config
from cli.runs.teacher import MIN_PASSAGE_TOKENS, settle
from services.generator.prompt import fixed_texts as generator_texts
from services.generator.prompt import prompt_of
from services.relabeler.prompt import fixed_texts as relabeler_texts
from services.relabeler.prompt import prompts_of
from shared.errors import SettingError
from shared.records import LLMConfig, RunConfig
from shared.settings import settings
from tests.llm_stub import Fault, StubLLM
from tests.llm_stub_model import count
from tests.passages import write_corpus

Use = Callable[..., None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Sets FRETWORK_LLM__… for this test alone; without arguments none is set."""
    for name in ("BASE_URL", "MODEL", "API_KEY"):
        monkeypatch.delenv(f"FRETWORK_LLM__{name}", raising=False)

    def set_to(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"FRETWORK_LLM__{name.upper()}", value)
        settings.cache_clear()

    set_to()
    yield set_to
    monkeypatch.undo()
    settings.cache_clear()


def test_without_an_llm_the_teacher_is_offline(use: Use) -> None:
    assert settle(RunConfig()) == RunConfig()
    with pytest.raises(SettingError, match="FRETWORK_LLM__BASE_URL"):
        settle(RunConfig(teacher="llm"))


def test_an_llm_that_is_configured_teaches_unless_told_otherwise(use: Use) -> None:
    with StubLLM(model_name="stub-7b") as stub:
        use(base_url=stub.base_url)
        settled = settle(parse_config(["llm.temperature=0.5", "num_candidates=5"]))
        assert (settled.teacher, settled.labels.positive) == ("llm", "p_1")
        assert (settled.llm.temperature, settled.num_candidates) == (0.5, 5)
        assert settled.llm.model == "stub-7b"
        assert settled.llm.prompts_sha256 == {
            "generate": prompt_of(settled.llm).sha256,
            **prompts_of(settled.llm).sha256,
        }
        assert settle(settled) == settled
        asked = len(stub.seen)
        assert settle(RunConfig(teacher="offline")) == RunConfig(teacher="offline")
        assert len(stub.seen) == asked


@pytest.mark.parametrize(("chosen", "positive"), [("labels.negative=sampled", "p_1"), ("labels.positive=seed", "seed")])
def test_what_was_chosen_stays_and_the_rest_follows_the_teacher(use: Use, chosen: str, positive: str) -> None:
    with StubLLM() as stub:
        use(base_url=stub.base_url)
        assert settle(parse_config([chosen])).labels.positive == positive


def test_the_model_is_not_for_the_run_to_choose(use: Use) -> None:
    with StubLLM() as stub:
        use(base_url=stub.base_url)
        with pytest.raises(SettingError, match=r"--set llm.model: .*'stub'"):
            settle(parse_config(["llm.model=another"]))
        use(model="another")
        with pytest.raises(SettingError, match=r"does not serve 'another'.*FRETWORK_LLM__MODEL.*stub"):
            settle(RunConfig())


def test_what_follows_a_run_says_that_the_llm_is_another(use: Use) -> None:
    with StubLLM() as stub:
        use(base_url=stub.base_url)
        frozen = settle(RunConfig())
        assert settle(frozen, "tea-1") == frozen
        other = frozen.model_copy(update={"llm": frozen.llm.model_copy(update={"context_tokens": 512})})
        with pytest.raises(SettingError, match=r"run tea-1 was made with llm.context_tokens 512, and it is \d+ now"):
            settle(other, "tea-1")


def longest(num_examples: int | None) -> int:
    config = LLMConfig(num_examples=num_examples)
    return max(map(count, [*generator_texts(config), *relabeler_texts(config)]))


def test_a_context_that_is_too_small_names_the_numbers_and_remedies_that_work(use: Use) -> None:
    needed = longest(2) + 160 + MIN_PASSAGE_TOKENS + 8
    with StubLLM(context_tokens=needed) as stub:
        use(base_url=stub.base_url)
        with pytest.raises(SettingError, match=f"context of {needed:,} tokens") as refused:
            settle(RunConfig())
        assert f"prompts of {longest(None):,}" in str(refused.value)
        assert "\n" not in str(refused.value)
        (fitting,) = re.findall(r"--set (llm.num_examples=\d+)$", str(refused.value))
        assert fitting == "llm.num_examples=2"
        assert settle(parse_config([fitting])).llm.num_examples == 2
        with pytest.raises(SettingError):
            settle(parse_config(["llm.num_examples=3"]))
        (length,) = re.findall(r"--max-model-len (\d+)", str(refused.value))
    with StubLLM(context_tokens=int(length)) as longer:
        use(base_url=longer.base_url)
        assert settle(RunConfig()).llm.num_examples is None


def test_a_context_that_holds_no_example_asks_for_shorter_completions(use: Use) -> None:
    with StubLLM(context_tokens=longest(0) + 100 + MIN_PASSAGE_TOKENS + 8) as stub:
        use(base_url=stub.base_url)
        with pytest.raises(SettingError) as refused:
            settle(RunConfig())
        remedies = re.findall(r"--set (\S+)", str(refused.value))
        assert remedies == ["llm.num_examples=0", "llm.max_completion_tokens=100"]
        assert settle(parse_config(remedies)).llm.max_completion_tokens == 100
    with StubLLM(context_tokens=longest(0) + 20 + MIN_PASSAGE_TOKENS + 8) as stub:
        use(base_url=stub.base_url)
        with pytest.raises(SettingError, match=r"--max-model-len \d+ or more$"):
            settle(RunConfig())


def test_a_preview_shows_all_that_is_sent_and_comes_back_and_reckons_the_run(
    use: Use, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_marked(path: str, body: dict[str, Any], number: int) -> Fault | None:
        bad = path == "/v1/completions" and "seed" in body and "zzbad" in body["prompt"]
        return Fault(completion="I would rather not.") if bad else None

    engine = create_engine(database_url)
    import_corpus(engine, "good", write_corpus(tmp_path / "good.jsonl", 3))
    import_corpus(engine, "bad", write_corpus(tmp_path / "bad.jsonl", 1, start=3, mark="zzbad"))
    with StubLLM() as stub:
        use(base_url=stub.base_url)
        stub.fault = refuse_marked
        config = settle(parse_config(["llm.num_examples=1", "num_candidates=4"]))
        stub.seen.clear()
        preview(engine, "good", config, 2)
        shown = capsys.readouterr()
        completions = [seen.body for seen in stub.seen if "seed" in seen.body]
        assert len(completions) == 2
        head = prompt_of(config.llm).head
        assert shown.out.count(head) == 1, "what all prompts begin with is shown once"
        for body in completions:
            assert body["prompt"].startswith(head)
            assert body["prompt"].removeprefix(head) in shown.out
            assert f"seed {body['seed']}" in shown.out
        assert len(re.findall(r"^   query: \S", shown.out, re.MULTILINE)) == 2
        assert re.search(r"tokens: [\d,]+ prompt \+ [\d,]+ completion in 1 requests; [\d,]+ to score", shown.out)
        for line in ("would sample 3 of 3 passages", "generate: about", "relabel: about", "in all: about", "assumed:"):
            assert line in shown.err
        preview(engine, "bad", config, 1)
        shown = capsys.readouterr()
        assert shown.out.count("malformed: no_query") == config.llm.max_attempts == 3
        assert "dropped: no_query 3 attempts: 3 × no_query" in shown.out
        assert "relabel: unknown" in shown.err
    with engine.connect() as connection:
        written = connection.execute(text("SELECT (SELECT count(*) FROM runs) + (SELECT count(*) FROM queries)"))
        assert written.scalar_one() == 0
    engine.dispose()
