"""Typed settings from the environment, prefix FRETWORK_: where the servers are and how patient a worker is.

What decides a run's records is no setting: it is `records.RunConfig`, frozen into the run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import SettingError


class LLMSettings(BaseModel):
    """Where the LLM is and how hard it may be pressed: FRETWORK_LLM__BASE_URL and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str | None = Field(
        None, description="an OpenAI-compatible server as http://host:8000/v1, or several, separated by commas"
    )
    model: str | None = Field(
        None,
        description="the model's name at the server (not needed where it serves one); without base_url a folder or hub "
        "name that is run in this process with transformers",
    )
    api_key: SecretStr | None = Field(None, description="sent as a bearer token")
    max_parallel_requests: int = Field(64, ge=1, description="at most this many in flight per process and endpoint")
    max_requests_per_minute: int | None = Field(None, ge=1, description="per endpoint, over all processes")
    max_tokens_per_minute: int | None = Field(None, ge=1, description="per endpoint, over all processes")
    max_retries: int = Field(5, ge=0, description="tries after the first before a shard is given back")
    timeout_s: float = Field(300.0, gt=0, description="how long one answer may take")

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, value: str | None) -> str | None:
        for url in value.split(",") if value else ():
            if not url.strip().startswith(("http://", "https://")):
                raise ValueError(f"{url.strip()!r} is no URL: it has to start with http:// or https://")
        return value

    @property
    def base_urls(self) -> tuple[str, ...]:
        return tuple(url.strip().rstrip("/") for url in (self.base_url or "").split(",") if url.strip())

    @property
    def is_configured(self) -> bool:
        return bool(self.base_urls) or self.model is not None


class Settings(BaseSettings):
    # the inputs are hidden because a key may stand under a name that is misspelt
    model_config = SettingsConfigDict(
        env_prefix="FRETWORK_",
        env_nested_delimiter="__",
        env_ignore_empty=True,  # how Compose and a line of .env say that there is none
        frozen=True,
        hide_input_in_errors=True,
    )

    home: Path = Field(Path(".fretwork"), description="where one machine keeps its state, models and vectors")
    database_url: SecretStr | None = Field(None, description="postgresql+psycopg://user:password@host:port/name")
    broker_url: SecretStr | None = Field(None, description="redis://:password@host:port/0")
    qdrant_url: str | None = Field(None, description="a Qdrant server; without it Qdrant runs inside the retriever")
    llm: LLMSettings = Field(LLMSettings(), description="the teacher `llm`")
    lease_s: float = Field(45.0, gt=0, description="how long a claimed shard is a worker's without a renewal")
    max_local_passages: int = Field(20_000, description="the largest corpus that the in-process Qdrant may hold")
    status_host: str = Field("127.0.0.1", description="the address on which the status API listens")
    status_port: int = Field(8765, ge=1, le=65535, description="the port on which the status API listens")
    status_token: SecretStr | None = Field(
        None, description="the bearer token for acting through the status API; without it one is made at first start"
    )
    status_read_from_anywhere: bool = Field(
        False, description="whoever can connect to the status API may read; else other machines need the token"
    )
    status_hosts: str = Field("", description="names that the status API is called by, separated by commas")
    status_fd: int | None = Field(None, description="the open socket that `fretwork up` hands to the status API")
    log_level: str = Field("INFO")

    @property
    def status_host_names(self) -> frozenset[str]:
        return frozenset(name.strip().lower() for name in self.status_hosts.split(",") if name.strip())

    @property
    def renew_every_s(self) -> float:
        """Four renewals to a lease and a little more, so that one lost round trip costs nothing."""
        return self.lease_s / 4.5

    def require_database_url(self) -> str:
        if self.database_url is None:
            raise SettingError(
                "FRETWORK_DATABASE_URL is not set: name a PostgreSQL server, or use `fretwork up`, which starts one"
            )
        return self.database_url.get_secret_value()

    def require_broker_url(self) -> str:
        if self.broker_url is None:
            raise SettingError("FRETWORK_BROKER_URL is not set: name a Redis server, or use `fretwork up`")
        return self.broker_url.get_secret_value()


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
