"""Everything that can be set. To add a setting, add a field with a kind, a default and a description here.

A setting stands here only while something in mlxm obeys it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from mlxm.settings.kinds import (
    Address,
    BodySize,
    ByteSize,
    Count,
    CountOrZero,
    HostNames,
    Library,
    MemoryShare,
    ModelNames,
    Origins,
    Port,
    Reserve,
    Seconds,
    SecondsOrZero,
)

CONFIG_NAME = "config.toml"


class Group(BaseModel):
    """A table of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(Group):
    """How `mlxm serve` listens and treats its clients."""

    host: Address = Field(default="127.0.0.1", description="The address to listen on.")
    port: Port = Field(default=6596, description="The port to listen on; 0 takes a free one.")
    drain_s: SecondsOrZero = Field(
        default=30.0, description="How long a server that was told to stop lets its requests finish."
    )
    max_body_bytes: BodySize = Field(default=10 * 1024**2, description="The largest request body that is accepted.")
    body_timeout_s: Seconds = Field(default=60.0, description="How long a client may take to send its request body.")
    send_timeout_s: Seconds = Field(
        default=30.0, description="How long a client may leave an answer unread before its request is cancelled."
    )
    max_requests: Count = Field(
        default=512, description="How many requests for text may be under way or wait; more are turned away."
    )
    keep_responses_s: SecondsOrZero = Field(
        default=30 * 86400.0, description="How long responses that clients ask to store are kept; 0 stores none."
    )
    allowed_hosts: HostNames = Field(
        default=(), description="Names that the server goes by besides localhost and the address it listens on."
    )
    allowed_origins: Origins = Field(
        default=(), description="Origins besides the server's own whose web pages may ask it."
    )


class TimeoutSettings(Group):
    """How long whole answers may take; where two apply, the smaller one counts."""

    local_s: Seconds = Field(default=900.0, description="How long an answer of a model on this machine may take.")
    chat_s: Seconds = Field(default=900.0, description="How long the answer to a chat may take.")
    completions_s: Seconds = Field(default=600.0, description="How long the answer to a completion may take.")


class LogSettings(Group):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important messages that are logged."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="The look of log lines; auto is console on a terminal and json elsewhere."
    )


class MemorySettings(Group):
    """How much memory models may take."""

    budget: MemoryShare = Field(
        default="80%", description="What all models may take together; what leaves the system too little is cut."
    )
    reserve: Reserve = Field(
        default="auto",
        description="What is left to the system in any case; auto is a fifth, at least 4 GB and at most 8.",
    )


class ModelsSettings(Group):
    """Which models are loaded, and which go when others need their memory."""

    max: CountOrZero = Field(default=0, description="How many models may be loaded; 0 is as many as memory holds.")
    keep_alive_s: SecondsOrZero = Field(
        default=1800.0,
        description="How long a model stays that nobody uses; 0 is until others need its memory.",
    )
    policy: Literal["lru", "lfu", "ttl"] = Field(
        default="lru",
        description="Which unused model goes first: the one unused for longest, the one least used, "
        "or the one whose time ends first.",
    )
    preload: ModelNames = Field(default=(), description="Models that are loaded at the start, and never evicted.")
    queue_s: Seconds = Field(default=60.0, description="How long requests wait for a model that finds no memory.")
    max_queued: Count = Field(default=256, description="How many requests may wait so.")


class PrepSettings(Group):
    """The limits of the process that renders templates and tokenizes."""

    timeout_s: Seconds = Field(default=2.0, description="How long preparing one request may take.")
    memory: ByteSize = Field(default=512 * 1000**2, description="How much memory preparing requests may take.")


class WorkerSettings(Group):
    """The processes that run models."""

    blas: Library = Field(
        default="auto",
        description="The BLAS library that computes on the CPU of Linux; auto takes the fastest one found, "
        "none keeps the one of MLX.",
    )
    load_timeout_s: Seconds = Field(default=300.0, description="How long loading a model may take.")
    max_rows: Count = Field(default=16, description="How many answers a model computes at once; the others wait.")
    spare: bool = Field(
        default=True, description="Whether a process without a model is kept ready, so that the next load is faster."
    )


class Settings(BaseSettings):
    """The value of every setting, and where each came from; made by `load_settings`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", title="mlxm config.toml")

    server: ServerSettings = ServerSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    log: LogSettings = LogSettings()
    memory: MemorySettings = MemorySettings()
    models: ModelsSettings = ModelsSettings()
    prep: PrepSettings = PrepSettings()
    worker: WorkerSettings = WorkerSettings()

    _home: Path
    _origins: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in counts: `Settings()` is all defaults, whatever the environment says."""
        return (init_settings,)

    @classmethod
    def from_layers(cls, home: Path, layers: list[dict[str, Any]], origins: Mapping[str, str]) -> Self:
        """Lay nested values over each other, the first on top; `origins` says where each name's value came from."""
        sources = tuple(InitSettingsSource(cls, layer) for layer in layers)
        settings = cls(_build_sources=(sources, {}))  # type: ignore[call-arg]  # mypy sees the fields only
        settings._home = home
        settings._origins = origins
        return settings

    @property
    def home(self) -> Path:
        """The folder of everything that mlxm keeps, except models."""
        return self._home

    @property
    def config_path(self) -> Path:
        """The file that people write."""
        return self._home / CONFIG_NAME

    def origin_of(self, name: str) -> str:
        """Where the value of a setting came from: flag, environment NAME, config.toml or default."""
        return self._origins.get(name, "default")
