"""Whether the endpoints that the settings name can do the teacher's work, asked before a run starts.

Each thing that would go wrong later is told here in one sentence that names the setting to change. Nothing is tried
twice, no breaker and no cap is touched; only what a run needs is asked, with a prompt of three words.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import isfinite
from typing import NoReturn

import aiohttp
import orjson

from shared.errors import SettingError
from shared.llm import AnswerError
from shared.llm.answers import ServedModel, read_context_tokens, read_models, read_scores, read_text, read_tokens
from shared.llm.refusal import NOT_FINITE
from shared.settings import LLMSettings

URL, MODEL, KEY = "FRETWORK_LLM__BASE_URL", "FRETWORK_LLM__MODEL", "FRETWORK_LLM__API_KEY"
NO_NUMBERS = (
    "gives prompt log-probabilities that are missing or no log-probabilities",
    "start vLLM without --logprobs-mode and check that the model's weights are whole and its context is not too long",
)
WORDS = "Once upon a"
QUICK_S = 10.0  # for what a server answers at once
BUSY_S = 60.0  # for a score, which may wait behind the prompts of others


@dataclass(frozen=True, slots=True)
class Endpoint:
    model: str
    context_tokens: int


async def probe(settings: LLMSettings) -> Endpoint:
    """What the endpoints serve, all of them the same.

    Raises SettingError where one does not answer, refuses the key, is no LLM server, does not serve the model, or gives
    no usable prompt log-probabilities.
    """
    if not settings.base_urls:
        raise SettingError(f"{URL} is not set: name an OpenAI-compatible server such as http://host:8000/v1")
    headers = {"Content-Type": "application/json"}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key.get_secret_value()}"
    async with aiohttp.ClientSession(headers=headers) as session:
        found = await asyncio.gather(*(_Probe(session, url, settings.model).run() for url in settings.base_urls))
    models = {endpoint.model for endpoint in found}
    if len(models) > 1:
        served = ", ".join(
            f"{_without_password(url)} {each.model!r}" for url, each in zip(settings.base_urls, found, strict=True)
        )
        raise SettingError(
            f"the addresses in {URL} serve different models ({served}): set {MODEL} to one that all serve"
        )
    return Endpoint(found[0].model, min(endpoint.context_tokens for endpoint in found))


class _Probe:
    def __init__(self, session: aiohttp.ClientSession, url: str, model: str | None) -> None:
        self._session, self._url, self._wanted = session, url, model
        self._name = _without_password(url)

    async def run(self) -> Endpoint:
        model = chosen_model(self._name, await self._models(), self._wanted)
        ids = await self._scored_ids(model.id)
        context_tokens = await self._tokenizer(model.id, ids)
        return Endpoint(model.id, context_tokens)

    async def _models(self) -> list[ServedModel]:
        status, body = await self._ask("GET", f"{self._url}/models", None, QUICK_S)
        if status != 200:
            self._refuse(f"answers {status} to /models, so it is no LLM server", self._correct_address)
        try:
            models = read_models(body)
        except AnswerError:
            self._refuse("answers /models with something that is no list of models", self._correct_address)
        if not models:
            self._refuse("serves no model", "load one into the server")
        return models

    async def _scored_ids(self, model: str) -> list[int]:
        """The ids of a prompt's tokens after the first, as the completion names them."""
        wish = {"model": model, "prompt": [WORDS], "prompt_logprobs": 0, "max_tokens": 1, "temperature": 0}
        status, body = await self._ask("POST", f"{self._url}/completions", wish, BUSY_S)
        if NOT_FINITE in body:
            self._refuse(*NO_NUMBERS)
        if status != 200:
            self._refuse(
                f"serves {model!r} but answers {status} to /completions, as a server of embeddings does",
                f"set {URL} to a server of a generative model (vLLM: --runner generate)",
            )
        try:
            scored = read_scores(body, 1).prompts[0].whole()
        except AnswerError:
            self._refuse(
                "gives no prompt log-probabilities, by which passages are judged", "use vLLM's server, 0.9 or later"
            )
        if not all(isfinite(value) for value in scored.log_probs[1:]):
            self._refuse(*NO_NUMBERS)
        return scored.ids[1:]

    async def _tokenizer(self, model: str, scored_ids: list[int]) -> int:
        root = self._url.removesuffix("/v1")
        wish = {"model": model, "prompt": WORDS, "add_special_tokens": True}
        status, body = await self._ask("POST", f"{root}/tokenize", wish, QUICK_S)
        bare_status, bare_body = await self._ask(
            "POST", f"{root}/tokenize", wish | {"add_special_tokens": False}, QUICK_S
        )
        text_status, text_body = await self._ask(
            "POST", f"{root}/detokenize", {"model": model, "tokens": scored_ids}, QUICK_S
        )
        if not status == bare_status == text_status == 200:
            self._refuse(
                f"answers {max(status, bare_status, text_status)} to /tokenize or /detokenize, which tell where tokens "
                "begin",
                "use vLLM's server, and let a proxy in front of it pass these two on",
            )
        try:
            ids, bare, _ = read_tokens(body), read_tokens(bare_body), read_text(text_body)
            context_tokens = read_context_tokens(body)
        except AnswerError:
            self._refuse("answers /tokenize with something else", "use vLLM's server")
        if ids[1:] != scored_ids:
            self._refuse(
                "tokenizes a prompt otherwise in /tokenize than in /completions", "use vLLM's server, 0.9 or later"
            )
        if ids[-len(bare) :] != bare:
            self._refuse("has a tokenizer that ends every prompt with a special token", "serve another model")
        return context_tokens

    async def _ask(self, method: str, url: str, body: dict[str, object] | None, timeout_s: float) -> tuple[int, bytes]:
        data = None if body is None else orjson.dumps(body)
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=QUICK_S)
        try:
            async with self._session.request(method, url, data=data, timeout=timeout) as answer:
                status, content = answer.status, await answer.read()
        except TimeoutError:
            self._refuse(f"did not answer within {timeout_s:g} s", "start the server, or correct the address")
        except aiohttp.InvalidURL:
            self._refuse("is no address", "correct it")
        except aiohttp.ClientError as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            self._refuse(f"does not answer ({why})", "start the server, or correct the address")
        if status in (401, 403):
            raise SettingError(f"{self._name} refuses the key ({status}): set {KEY} to one that it takes")
        return status, content

    _correct_address = "it has to be an OpenAI-compatible server's address, usually one that ends in /v1"

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise SettingError(f"{self._name}, named by {URL}, {what}: {instead}")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def chosen_model(url: str, served: list[ServedModel], wanted: str | None) -> ServedModel:
    """The model that is meant among those served. Raises SettingError where there is none, or more than one."""
    names = ", ".join(model.id for model in served)
    if wanted is None:
        if len(served) > 1:
            raise SettingError(f"{url} serves several models: set {MODEL} to one of {names}")
        return served[0]
    for model in served:
        if model.id == wanted:
            return model
    raise SettingError(f"{url} does not serve {wanted!r}: set {MODEL} to what it serves ({names})")
