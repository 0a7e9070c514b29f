"""Settings: one JSON file, read once at start and then frozen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

CONFIG_VARIABLE = "MILLRACE_BACKEND_CONFIG"

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class ConfigError(Exception):
    """A file the backend needs is missing or wrong; the text says which and how."""


class Strict(BaseModel):
    """Frozen, and an unknown or mistyped key is an error rather than a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Shape = TypeVar("Shape", bound=Strict)


class Model(Strict):
    """One entry of GET /v1/models. `created` is in Unix seconds."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    created: int = 0
    owned_by: str = "millrace"


class Settings(Strict):
    """Everything the backend is told; it computes no settings of its own.

    Names end in their unit. Times are in seconds, sizes in bytes.
    """

    # LiteLLM's pass-through root; requests go to {upstream_url}/v1/chat/completions.
    upstream_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
    # A file name in $CREDENTIALS_DIRECTORY (systemd LoadCredential), never the key itself.
    upstream_key_credential: PlainName
    # The hashes of the clients' keys: those of the inventory, and those that `./millrace key` made.
    keys_file: Path
    issued_keys_file: Path | None = None
    # Signs the cookie of those who log in with a browser; a credential as above. Each start makes
    # one up where there is none, and every session ends with it.
    session_secret_credential: PlainName | None = None
    session_seconds: Annotated[int, Field(ge=60, le=400 * 86_400)] = 30 * 86_400
    # From one address (of IPv6: one /64), before it is answered with 429 unheard.
    wrong_keys_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    models: Annotated[list[Model], Field(min_length=1)]

    heartbeat_seconds: Seconds = 15
    connect_timeout_seconds: Seconds = 5
    # From sending the request to the first byte of the answer: queueing and prefill.
    first_byte_timeout_seconds: Seconds = 600
    # Upstream silent in mid-stream. vLLM's own keep-alive comments count as life.
    idle_timeout_seconds: Seconds = 300
    # Must stay under the upstream's own keep-alive (uvicorn's default is 5 s), or a request now
    # and then meets a connection that is just being closed, and a POST cannot be retried.
    upstream_keepalive_seconds: Seconds = 4
    ready_probe_interval_seconds: Seconds = 10
    ready_max_age_seconds: Seconds = 60
    # What the hardware guard found at boot and before each start of an engine; there may be none.
    hardware_reports: Path = Path("/run/millrace/hardware")
    # What the stream check leaves for GET /v1/status; there may be none.
    streamcheck_summary: Path = Path("/var/lib/millrace-streamcheck/summary.json")
    # Where each instance serves /metrics on loopback, by MILLRACE_INSTANCE; empty serves none.
    metrics_ports: dict[str, Annotated[int, Field(ge=1, le=65_535)]] = {}
    # A request waits so long for an engine or gateway that is being restarted; 0: not at all.
    restart_wait_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 120
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 * 1024 * 1024
    # Fields of requests that are let through beside those of apis.py.
    extra_fields: list[PlainName] = []
    # Answers that one request may ask for: its prompts times `n`.
    most_choices: Annotated[int, Field(ge=1, le=1024)] = 8
    # What one chat stream keeps for readers that come back, and what all of them keep together. A
    # quarter may be events that nobody has had yet; then the engine waits. A token takes about 300.
    stream_buffer_bytes: Annotated[int, Field(ge=4096, le=1 << 30)] = 8 * 1024 * 1024
    streams_buffer_bytes: Annotated[int, Field(ge=4096, le=1 << 36)] = 256 * 1024 * 1024
    # A chat stream is aborted when nobody has read it for so long: a tunnel, a reload.
    stream_grace_seconds: Seconds = 30
    # After its end it can be asked for again for so long, while there are not too many of them.
    stream_linger_seconds: Seconds = 300
    streams_kept_per_key: Annotated[int, Field(ge=1, le=100_000)] = 64
    streams_kept: Annotated[int, Field(ge=1, le=100_000)] = 1024
    # Where what several backends share is kept: memory:// for one; redis://…, rediss://… or
    # redis+unix://… (Valkey as well). Chat streams then outlive the backend that makes them, and
    # the limits of a key hold over all backends.
    store_url: Annotated[
        str, StringConstraints(pattern=r"^(memory://|(rediss?|redis\+unix)://\S+)$")
    ] = "memory://"
    # Answers under way at once, in all; who comes then waits, or is told to come again (503).
    house_streams: Annotated[int, Field(ge=1, le=100_000)] = 1024
    house_queue_length: Annotated[int, Field(ge=0, le=100_000)] = 1024
    house_wait_seconds: Seconds = 60
    # Of a key with a limit of tokens: set aside for an answer whose bound the client did not say.
    reserved_answer_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 1024
    # Where each instance listens for the others, by MILLRACE_INSTANCE: who asks for a stream that
    # lives in one that drains is passed on to it.
    stream_peers: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,16}$")], Path] = {}
    # Where each instance hears how answers ended that nginx fetched itself, by MILLRACE_INSTANCE.
    express_ends: dict[Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,16}$")], Path] = {}
    # Nothing was heard of such an answer for so long: it counts as ended.
    longest_stream_seconds: Seconds = 3600
    # Open streams may finish for so long after SIGTERM; keep systemd's TimeoutStopSec above it.
    drain_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    # For whoever keeps a connection to us: longer than its pool does, or reuse races the close.
    keepalive_seconds: Annotated[int, Field(ge=1, le=3600)] = 80

    @property
    def has_redis(self) -> bool:
        """Whether the store is a Redis and not this process's memory."""
        return self.store_url != "memory://"

    @field_validator("upstream_url")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: list[Model]) -> list[Model]:
        if len({model.id for model in value}) != len(value):
            raise ValueError("two models have the same id")
        return value


def read_json_file(path: Path, shape: type[Shape]) -> Shape:
    """Read `path` as `shape`; raise ConfigError with one line per mistake."""
    try:
        return shape.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(explain(str(path), error)) from error


def explain(source: str, error: ValidationError) -> str:
    """Say what is wrong in plain lines, without repeating values: a file may hold secrets."""

    def line(mistake: Any) -> str:
        where = ".".join(str(part) for part in mistake["loc"]) or "the file"
        return f"{source}: {where}: {mistake['msg']}"

    return "\n".join(line(mistake) for mistake in error.errors(include_input=False))


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, or from the file that MILLRACE_BACKEND_CONFIG names.

    Raises ConfigError.
    """
    if path is None:
        named = os.environ.get(CONFIG_VARIABLE)
        if not named:
            raise ConfigError(f"{CONFIG_VARIABLE} is not set: name the settings file with it")
        path = Path(named)
    return read_json_file(path, Settings)


def read_credential(name: str) -> str:
    """Return the secret that systemd passed under `name`; raise ConfigError if there is none."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(
            "CREDENTIALS_DIRECTORY is not set: run under systemd with LoadCredential="
            f"{name}:…, or set it to a folder that holds a file {name}"
        )
    path = Path(folder) / name
    try:
        secret = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"cannot read credential {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"credential {path} is not plain ASCII") from error
    if not secret or not secret.isprintable() or " " in secret:
        raise ConfigError(f"credential {path} must hold one key and nothing else")
    return secret
