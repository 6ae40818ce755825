"""Typed settings from the environment, prefix FRETWORK_: where the servers are and how patient a worker is.

What decides a run's records is no setting: it is `records.RunConfig`, frozen into the run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import SettingError


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FRETWORK_", env_nested_delimiter="__", frozen=True)

    home: Path = Field(Path(".fretwork"), description="where one machine keeps its state, models and vectors")
    database_url: SecretStr | None = Field(None, description="postgresql+psycopg://user:password@host:port/name")
    broker_url: SecretStr | None = Field(None, description="redis://:password@host:port/0")
    qdrant_url: str | None = Field(None, description="a Qdrant server; without it Qdrant runs inside the retriever")
    lease_s: float = Field(45.0, gt=0, description="how long a claimed shard is a worker's without a renewal")
    max_local_passages: int = Field(20_000, description="the largest corpus that the in-process Qdrant may hold")
    status_host: str = Field("127.0.0.1", description="the address on which the status API listens")
    status_port: int = Field(8765, ge=1, le=65535, description="the port on which the status API listens")
    log_level: str = Field("INFO")

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
