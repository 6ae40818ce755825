"""What a server says where it gives no answer: pure functions over its headers and its body.

Nothing here returns a part of the request or a secret: what comes out goes into errors, and from there into logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import orjson

NOT_FINITE = b"not JSON compliant"  # Python's json on NaN and infinity: vLLM passes its words on

MOST_PAUSE_S = 600.0
MOST_CHARACTERS = 200
ECHO_CHARACTERS = 12  # as many in a row from the prompt are taken for a quotation


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for, from 0 to 600; it gives seconds or an HTTP date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), MOST_PAUSE_S) if seconds == seconds else None


def message(answer: bytes, request: bytes, secrets: Iterable[str]) -> str:
    """The server's own words, at most 200 characters, up to where they quote the request's prompt."""
    words = without_secrets(" ".join(_words(answer).split()), secrets)
    end = min(_quotation(words, request), MOST_CHARACTERS)
    return words if end >= len(words) else words[: min(end, MOST_CHARACTERS - 1)].rstrip() + "…"


def without_secrets(words: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        words = words.replace(secret, "***")
    return words


def _words(answer: bytes) -> str:
    """Of OpenAI's {"error": {"message": …}}, of FastAPI's {"detail": … or [{"msg": …}]}, or the text as it is."""
    try:
        found = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return answer[:4096].decode(errors="replace")
    for key in ("error", "detail", "message"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    if isinstance(found, list):
        return "; ".join(str(each["msg"]) for each in found if isinstance(each, dict) and "msg" in each)
    return found if isinstance(found, str) else ""


def _quotation(words: str, request: bytes) -> int:
    """Where `words` begins to quote the request's prompts; its length where it does not."""
    try:
        asked = orjson.loads(request)
    except orjson.JSONDecodeError:
        return 0
    prompt = asked.get("prompt", "") if isinstance(asked, dict) else ""
    prompts = [prompt] if isinstance(prompt, str) else [each for each in prompt if isinstance(each, str)]
    plain = "\n".join(" ".join(each.split()) for each in prompts)
    starts = [words.find(each) for each in prompts if 3 < len(each) <= ECHO_CHARACTERS and each in words]
    for start in range(min(len(words), MOST_CHARACTERS) - ECHO_CHARACTERS + 1):
        if words[start : start + ECHO_CHARACTERS] in plain:
            starts.append(start)
            break
    return min(starts, default=len(words))
