"""Who teaches a run, settled before it starts: the default, the model that the endpoint serves, and that it can do it.

What would go wrong with every passage is refused here, in one sentence with what to change. Starts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from services.generator import prompt as generator
from services.relabeler import prompt as relabeler
from shared.errors import SettingError
from shared.llm import LLM
from shared.llm.loop import on_loop
from shared.llm.open import nothing, open_llm, open_run_llm
from shared.llm.probe import Endpoint, probe
from shared.llm.prompt import SEAM_TOKENS
from shared.llm.together import together
from shared.models import as_given
from shared.records import LLMConfig, RunConfig
from shared.settings import LLMSettings, settings

MIN_PASSAGE_TOKENS = 96  # some 70 words: less of a passage is hardly worth a query
MIN_COMPLETION_TOKENS = 48  # a task description and a query, both short


def settle(config: RunConfig, earlier: str | None = None) -> RunConfig:
    """The configuration that the run is frozen with: its teacher, and an LLM's model and prompts.

    Where the teacher was not chosen, it is `llm` if an LLM is configured. `earlier`: the run whose configuration this
    is. Raises SettingError where the LLM cannot be reached, cannot do what the teacher needs of it, or is another than
    the earlier run's.
    """
    named = settings().llm
    if named.base_url is None and named.model is not None:
        named = named.model_copy(update={"model": as_given(named.model)})
    if "teacher" not in config.model_fields_set and named.is_configured:
        # made anew from what was chosen, since other defaults follow the teacher
        config = RunConfig(**{**config.model_dump(exclude_unset=True), "teacher": "llm"})
    if config.teacher != "llm":
        return config
    found = _check_endpoint(named)
    prompts_sha256 = {"generate": generator.prompt_of(config.llm).sha256, **relabeler.prompts_of(config.llm).sha256}
    told = {"model": found.model, "context_tokens": found.context_tokens, "prompts_sha256": prompts_sha256}
    frozen = config.llm.model_copy(update=told)
    for name, is_so in told.items():
        chosen = getattr(config.llm, name)
        if chosen and chosen != is_so:
            if earlier:
                raise SettingError(
                    f"run {earlier} was made with llm.{name} {chosen!r}, and it is {is_so!r} now: serve the LLM as it "
                    "was then, with the same Fretwork, or start a run anew with `fretwork run start`"
                )
            raise SettingError(
                f"--set llm.{name}: it is found out when the run starts, and it is {is_so!r}: leave it out"
            )
    on_loop(_check_context(open_run_llm("to be", frozen, nothing), config.llm))
    return config.model_copy(update={"llm": frozen})


def _check_endpoint(named: LLMSettings) -> Endpoint:
    if named.base_url is not None:
        return on_loop(probe(named))
    llm = open_llm(named)
    return Endpoint(llm.model, llm.context_tokens)


async def _check_context(llm: LLM, config: LLMConfig) -> None:
    """Raises SettingError where a prompt, a completion or query, and MIN_PASSAGE_TOKENS of a passage do not fit."""
    room = llm.context_tokens - config.max_completion_tokens - MIN_PASSAGE_TOKENS - SEAM_TOKENS
    longest = await _longest(llm, _fixed_texts(config, config.num_examples))
    if longest <= room:
        return
    remedy = await _remedy(llm, config, room)
    raise SettingError(
        f"the model {llm.model} has a context of {llm.context_tokens:,} tokens, too small for prompts of {longest:,}, "
        f"{config.max_completion_tokens:,} for a completion and at least {MIN_PASSAGE_TOKENS} of a passage: serve it "
        f"with --max-model-len {longest + llm.context_tokens - room} or more{remedy}"
    )


async def _remedy(llm: LLM, config: LLMConfig, room: int) -> str:
    """The most examples that fit, or else what fits without any."""
    fitting = None
    shorter: list[str] = []
    for num_examples in count():
        texts = _fixed_texts(config, num_examples)
        bare = await _longest(llm, texts)
        if bare > room or texts == shorter:
            break
        fitting, shorter = num_examples, texts
    if fitting is not None:
        return f", or start with --set llm.num_examples={fitting}"
    completion = config.max_completion_tokens + room - bare
    if completion < MIN_COMPLETION_TOKENS:
        return ""
    return f", or start with --set llm.num_examples=0 --set llm.max_completion_tokens={completion}"


def _fixed_texts(config: LLMConfig, num_examples: int | None) -> list[str]:
    of = config.model_copy(update={"num_examples": num_examples})
    return [*generator.fixed_texts(of), *relabeler.fixed_texts(of)]


async def _longest(llm: LLM, texts: Sequence[str]) -> int:
    return max(await together(llm.count_tokens(text) for text in texts))
