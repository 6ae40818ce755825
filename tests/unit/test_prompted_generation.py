"""The LLM teacher's queries: what is read from a completion, what is asked again, and what a passage ends with."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.generator import parse as codes
from services.generator.parse import Malformed, Pair, parse
from services.generator.prompt import STOP, load_prompt
from services.generator.prompted import PROMPT_REFUSED, write_all, write_queries
from shared.errors import SettingError
from shared.llm import Completion, Cut, EndpointError, LogLikelihood, PromptRefusedError, Sampling
from shared.records import Dropped, LLMConfig, Passage, TaskQuery, query_id

TASK = "Given a query, find a passage that has the answer"
QUERY = "how do owls hunt at night?"
GOOD = f" {TASK}\nQuery: {QUERY}"


def read(text: str, *, finished: bool = True, task: str | None = None) -> Pair | str:
    """What `parse` makes of a completion: a pair, or the reason code."""
    parsed = parse(Completion(text, finished), task, passage_text="Owls see well.", example_queries=("an example",))
    return parsed.reason if isinstance(parsed, Malformed) else parsed


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"{GOOD}\n",
        f" {TASK}\r\nQuery: {QUERY}\r\n",
        f" {TASK} \n\t query :   {QUERY}  ",
        f" {TASK}\nQUERY: {QUERY}",
        f" {TASK}\nQuery：{QUERY}",
        f"\nTask: {TASK}\nQuery: {QUERY}",
        f" Task: {TASK}\nQuery: {QUERY}",
        f" Sure! Here is one.\nTask: {TASK}\nQuery: {QUERY}",
        f"\nTask description: {TASK}\nSearch query: {QUERY}",
        f"\n**Task:** {TASK}\n**Query:** {QUERY}",
        f"\n**Task**: {TASK}\n**Query**: {QUERY}",
        f"\n**Task: {TASK}**\n**Query: {QUERY}**",
        f"\n__Task__: {TASK}\n__Query__: *{QUERY}*",
        f"\n## Task: {TASK}\n## Query: {QUERY}",
        f"\n- Task: {TASK}\n- Query: {QUERY}",
        f"\n1. Task: {TASK}\n2. **Query:** {QUERY}",
        f"\n> Task: {TASK}\n> Query: `{QUERY}`",
        f"\n• Task 1: {TASK}\n• Query 1: {QUERY}",
        f'\n"Task": "{TASK}"\n"Query": "{QUERY}"',
        f' "{TASK}"\nQuery: "{QUERY}"',
        f" “{TASK}”\nQuery: “{QUERY}”",
        f' - {TASK}\nQuery: "**{QUERY}**"',
        f"\nTask:\n{TASK}\nQuery:\n{QUERY}",
        " Given a query, find\n a passage that has the answer\nQuery: how do\x00 owls\thunt at night?",
        f"{GOOD}\nExplanation: owls hunt.\nQuery: another one",
    ],
)
def test_form_is_mended(text: str) -> None:
    assert read(text) == Pair(TASK, QUERY)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Query: SELECT * FROM owls WHERE wings = *", "SELECT * FROM owls WHERE wings = *"),
        ('Query: "night" and "day"', '"night" and "day"'),
        ("Query: 'tis the owl's", "'tis the owl's"),
        ("Query: **kwargs in python", "**kwargs in python"),
        ("Query: 1. FC Köln squad", "1. FC Köln squad"),
        ("Query: task: what is it", "task: what is it"),
        ("Query: كيف تصطاد البومة", "كيف تصطاد البومة"),
        ("Query: 🦉 3", "🦉 3"),
        ("Query: \u2028 owls\u2028", "owls"),
        ("Query: __init__ of a class", "__init__ of a class"),
        ("Query: __init__", "__init__"),
    ],
)
def test_content_is_left_alone(text: str, query: str) -> None:
    assert read(f" {TASK}\n{text}") == Pair(TASK, query)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", codes.EMPTY_COMPLETION),
        (" \n ", codes.EMPTY_COMPLETION),
        (f" {TASK}", codes.NO_QUERY),
        (f" {TASK}\n{QUERY}", codes.NO_QUERY),
        (f"\nQuery: {QUERY}", codes.EMPTY_TASK),
        (f" ...\nQuery: {QUERY}", codes.EMPTY_TASK),
        (f" {TASK}\nQuery:", codes.EMPTY_QUERY),
        (f" {TASK}\nQuery: ...", codes.EMPTY_QUERY),
        (f" {TASK}\nQuery: ''", codes.EMPTY_QUERY),
        (f" {TASK}\nQuery: \u200b", codes.EMPTY_QUERY),
        (f" {'word ' * 65}\nQuery: {QUERY}", codes.OVERLONG_TASK),
        (f" {TASK}\nQuery: {'word ' * 97}", codes.OVERLONG_QUERY),
        (f" {TASK}\nQuery: {'猫' * 1025}", codes.OVERLONG_QUERY),
        (f" {TASK}\nQuery: an ow\ufffd", codes.BROKEN_TEXT),
        (f" {TASK}\nQuery: an ow{chr(0xD83E)}", codes.BROKEN_TEXT),
        (f" {TASK}\nQuery: <query>", codes.PLACEHOLDER),
        (f" {TASK}\nQuery: [Your query here]", codes.PLACEHOLDER),
        (f" {{task description}}\nQuery: {QUERY}", codes.PLACEHOLDER),
        (f" {TASK}\nQuery:  an  example ", codes.COPIED_EXAMPLE),
        (f" {TASK}\nQuery: owls see well.", codes.COPIED_PASSAGE),
    ],
)
def test_each_malformed_kind_has_its_code(text: str, reason: str) -> None:
    assert read(text) == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", codes.ENDLESS_COMPLETION),
        (f" {TASK} and so on and", codes.ENDLESS_COMPLETION),
        (f" {TASK}\nQuery: how do ow", codes.ENDLESS_COMPLETION),
        (f"{GOOD}\n", Pair(TASK, QUERY)),
        (f"{GOOD}\nThis is bec", Pair(TASK, QUERY)),
        (f"{GOOD}\n\n", Pair(TASK, QUERY)),
    ],
)
def test_a_completion_that_was_cut_off_counts_if_its_lines_are_complete(text: str, expected: Pair | str) -> None:
    assert read(text, finished=False) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f" {QUERY}", Pair(TASK, QUERY)),
        (f"\n{QUERY}\nQuery: another", Pair(TASK, QUERY)),
        (f" Query: {QUERY}", Pair(TASK, QUERY)),
        (f" Task: {TASK}\nQuery: {QUERY}", Pair(TASK, QUERY)),
        (f' "{QUERY}"\n', Pair(TASK, QUERY)),
        (" Task: and nothing else", codes.EMPTY_QUERY),
        (" ???", codes.EMPTY_QUERY),
    ],
)
def test_with_a_given_task_the_first_line_is_the_query(text: str, expected: Pair | str) -> None:
    assert read(text, task=TASK) == expected


_pieces = st.lists(
    st.one_of(
        st.sampled_from("*\"'“”`> aé猫{}"),
        st.sampled_from(["Task: ", "Query: ", "query", "**", "- ", "1. ", "<query>", "owls hunt"]),
        st.sampled_from(["\n", "\r", "\x85", "\u2028", "\x00", "\t", "\ufffd", chr(0xD800), "word " * 70]),
    ),
    max_size=24,
).map("".join)


@given(text=st.one_of(_pieces, st.text(max_size=200)), finished=st.booleans(), task=st.sampled_from([None, TASK]))
@example(text='Query: "', finished=True, task=None)
def test_whatever_is_written_gives_a_clean_pair_or_a_reason(text: str, finished: bool, task: str | None) -> None:
    parsed = parse(Completion(text, finished), task)
    if isinstance(parsed, Malformed):
        assert parsed.reason in {value for name, value in vars(codes).items() if name.isupper() and value != "T"}
        return
    for field, words, chars in (
        (parsed.task_description, codes.MAX_TASK_WORDS, codes.MAX_TASK_CHARS),
        (parsed.query_text, codes.MAX_QUERY_WORDS, codes.MAX_QUERY_CHARS),
    ):
        assert field == field.strip()
        assert len(field.splitlines()) == 1
        assert any(map(str.isalnum, field))
        assert len(field.split()) <= words
        assert len(field) <= chars
        assert "\x00" not in field
        field.encode()


_plain = st.text(alphabet=st.sampled_from("abc owl é猫1?.,-"), min_size=1, max_size=60).map(lambda s: f"x{s.strip()}y")


@given(task=_plain, query=_plain, wrap=st.sampled_from(["", '"', "**", "`"]))
def test_a_pair_as_the_examples_have_it_comes_back_unchanged(task: str, query: str, wrap: str) -> None:
    text = f" {wrap}{task}{wrap}\nQuery: {wrap}{query}{wrap}"
    clean = Pair(" ".join(task.split()), " ".join(query.split()))
    assert parse(Completion(text, True), None) == clean


# ---- what is asked, and again


RUN = UUID(int=7)
OWL = Passage(UUID(int=1), "Owls", "Owls hear a mouse under the snow. " * 3)


class ScriptedLLM:
    """Answers by a function of prompt and seed; a token is a character."""

    model = "scripted"

    def __init__(self, answer: Callable[[str, int], str | Exception], context_tokens: int = 20_000) -> None:
        self.answer, self.context_tokens = answer, context_tokens
        self.asked: list[tuple[str, int, Sampling]] = []

    async def complete(self, prompt: str, sampling: Sampling, seed: int) -> Completion:
        self.asked.append((prompt, seed, sampling))
        answer = self.answer(prompt, seed)
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, finished=True)

    async def count_tokens(self, text: str) -> int:
        return len(text)

    async def cut(self, text: str, max_tokens: int) -> Cut:
        return Cut(text[:max_tokens], len(text) > max_tokens, min(len(text), max_tokens))

    async def log_likelihoods(self, prompts: Sequence[str], continuation: str) -> list[LogLikelihood]:
        raise AssertionError("a generator scores nothing")

    async def label_log_probs(self, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
        raise AssertionError("a generator scores nothing")


def in_turn(*answers: str | Exception) -> Callable[[str, int], str | Exception]:
    left = iter(answers)
    return lambda prompt, seed: next(left)


def write(
    llm: ScriptedLLM, config: LLMConfig, *, passage: Passage = OWL, count: int = 1, seed: int = 5
) -> list[TaskQuery] | Dropped:
    prompt = load_prompt(config.num_examples, config.task_sampling)
    return asyncio.run(
        write_queries(llm, passage, config, prompt, run_fingerprint=RUN, queries_per_passage=count, seed=seed)
    )


def the_one(written: list[TaskQuery] | Dropped) -> TaskQuery:
    assert isinstance(written, list)
    (query,) = written
    return query


FREE = LLMConfig(model="scripted", num_examples=2)
UNIFORM = LLMConfig(model="scripted", num_examples=2, task_sampling="uniform")


def test_a_query_carries_its_origin() -> None:
    llm = ScriptedLLM(in_turn(GOOD))
    query = the_one(write(llm, FREE))
    ((prompt, seed, sampling),) = llm.asked
    assert prompt.endswith(f"Title: Owls\nPassage: {OWL.text.strip()}\nTask:")
    assert sampling == Sampling(FREE.temperature, FREE.top_p, FREE.max_completion_tokens, STOP)
    assert query == TaskQuery(query_id(RUN, OWL.passage_id, 0), OWL.passage_id, 0, TASK, QUERY, query.provenance)
    assert query.provenance == {
        "teacher": "llm",
        "kind": "other",
        "model": "scripted",
        "prompt_sha256": load_prompt(2, "free").sha256,
        "task_sampling": "free",
        "temperature": 0.7,
        "top_p": 0.95,
        "max_completion_tokens": 160,
        "seed": seed,
        "attempts": 1,
    }


def test_a_malformed_completion_is_asked_for_again_with_another_seed() -> None:
    llm = ScriptedLLM(in_turn("", f" {TASK}", GOOD))
    query = the_one(write(llm, FREE))
    seeds = [seed for _, seed, _ in llm.asked]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len({prompt for prompt, _, _ in llm.asked}) == 1
    assert query.provenance["malformed"] == [codes.EMPTY_COMPLETION, codes.NO_QUERY]
    assert (query.provenance["attempts"], query.provenance["seed"]) == (3, seeds[2])


def test_after_max_attempts_the_passage_ends_with_the_last_reason() -> None:
    llm = ScriptedLLM(in_turn("", f" {TASK}", f" {TASK}", GOOD))
    dropped = write(llm, FREE)
    assert dropped == Dropped(OWL.passage_id, codes.NO_QUERY, "3 attempts: 1 × empty_completion, 2 × no_query")
    assert len(llm.asked) == FREE.max_attempts == 3


def test_at_temperature_0_nothing_is_asked_twice() -> None:
    llm = ScriptedLLM(in_turn("", GOOD))
    dropped = write(llm, FREE.model_copy(update={"temperature": 0.0}))
    assert dropped == Dropped(OWL.passage_id, codes.EMPTY_COMPLETION, "1 attempts: 1 × empty_completion")


def test_a_refused_prompt_is_the_items_own_fault() -> None:
    dropped = write(ScriptedLLM(in_turn("", PromptRefusedError("too long by 3"))), FREE)
    assert isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.detail) == (
        PROMPT_REFUSED,
        "2 attempts: 1 × empty_completion, 1 × prompt_refused: too long by 3",
    )


def test_a_passage_survives_with_the_ordinals_that_came_off() -> None:
    seeds_of_first: set[int] = set()
    probe = ScriptedLLM(lambda prompt, seed: "?")
    write(probe, FREE, count=1)
    seeds_of_first.update(seed for _, seed, _ in probe.asked)
    llm = ScriptedLLM(lambda prompt, seed: "?" if seed in seeds_of_first else GOOD)
    written = write(llm, FREE, count=3)
    assert isinstance(written, list)
    assert [query.ordinal for query in written] == [1, 2]
    assert [query.query_id for query in written] == [query_id(RUN, OWL.passage_id, i) for i in (1, 2)]
    assert written[0].provenance["lost_ordinals"] == {"0": [codes.NO_QUERY] * 3}
    assert "lost_ordinals" not in written[1].provenance
    assert len({query.provenance["seed"] for query in written}) == 2


def test_a_passage_without_any_ordinal_is_dropped() -> None:
    dropped = write(ScriptedLLM(lambda prompt, seed: "?"), FREE, count=2)
    assert dropped == Dropped(OWL.passage_id, codes.NO_QUERY, "6 attempts: 6 × no_query")


def test_an_endpoints_error_is_no_reason() -> None:
    # raised as it is: a worker tells by its class that the shard may be tried again
    with pytest.raises(EndpointError, match="away"):
        write(ScriptedLLM(in_turn(GOOD, EndpointError("away"))), FREE, count=2)


def test_the_same_run_asks_the_same_and_another_seed_something_else() -> None:
    def asked(seed: int, config: LLMConfig = UNIFORM) -> list[tuple[str, int, Sampling]]:
        llm = ScriptedLLM(lambda prompt, seed: "?")
        write(llm, config, count=4, seed=seed)
        return sorted(llm.asked, key=lambda call: call[1])

    assert asked(5) == asked(5)
    assert not {seed for _, seed, _ in asked(5)} & {seed for _, seed, _ in asked(6)}


def test_tasks_are_drawn_uniformly_and_stand_in_the_prompt() -> None:
    prompt = load_prompt(2, "uniform")
    drawn: dict[str, int] = dict.fromkeys(prompt.task_descriptions, 0)
    for number in range(1000):
        passage = Passage(UUID(int=number), "", "Owls.")
        llm = ScriptedLLM(in_turn(f" {QUERY}"))
        query = the_one(write(llm, UNIFORM, passage=passage))
        assert llm.asked[0][0].endswith(f"\nPassage: Owls.\nTask: {query.task_description}\nQuery:")
        assert query.query_text == QUERY
        drawn[query.task_description] += 1
    wordings = Counter(prompt.kind_of_task.values())
    expected = {task: 1000 / len(wordings) / wordings[kind] for task, kind in prompt.kind_of_task.items()}
    chi_squared = sum((count - expected[task]) ** 2 / expected[task] for task, count in drawn.items())
    assert len(drawn) == len(prompt.task_descriptions) == 20
    assert chi_squared < 43.8  # p = 0.001 at 19 degrees of freedom; the draw itself is fixed


def test_a_long_passage_is_cut_to_what_the_context_leaves() -> None:
    fixed = len(load_prompt(2, "uniform").longest_fixed_text())
    llm = ScriptedLLM(in_turn(f" {QUERY}"), context_tokens=fixed + UNIFORM.max_completion_tokens + 100)
    llm.model = "cutting"
    query = the_one(write(llm, UNIFORM))
    assert query.provenance["passage_cut_to_tokens"] == 92
    prompt = llm.asked[0][0]
    assert len(prompt) + UNIFORM.max_completion_tokens <= llm.context_tokens
    assert f"\n\nTitle: Owls\nPassage: {OWL.text.strip()}"[:94] in prompt


def test_a_context_without_room_for_a_passage_names_the_remedy() -> None:
    llm = ScriptedLLM(in_turn(), context_tokens=500)
    llm.model = "narrow"
    with pytest.raises(SettingError, match=r"context of 500: lower llm.num_examples"):
        write(llm, FREE)


def test_a_shards_passages_are_asked_at_once_and_come_back_in_order() -> None:
    passages = [Passage(UUID(int=n), f"Owl {n}", "Owls.") for n in range(8)]
    llm = ScriptedLLM(lambda prompt, seed: "?" if "Owl 3" in prompt else GOOD)
    written = asyncio.run(
        write_all(llm, passages, FREE, load_prompt(2, "free"), run_fingerprint=RUN, queries_per_passage=1, seed=5)
    )
    assert [isinstance(item, Dropped) for item in written] == [n == 3 for n in range(8)]
    assert [item[0].seed_passage_id for item in written if isinstance(item, list)] == [
        passage.passage_id for passage in passages if passage.title != "Owl 3"
    ]
