"""Settings of the process, from `RELAY_*` variables and from flags of the command line, which win.

What a request meets is in the policy files; here is only where the relay listens and how it tells of itself.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.errors import ConfigurationError, Finding
from relay.policy.schema import NAME, PATTERN_WORDS
from relay.policy.wording import found
from relay.telemetry.events import Level, Style

PREFIX = "RELAY_"


class Settings(BaseSettings):
    """All settings; `RELAY_` and the name in capitals is the variable.

    Attributes:
        policy: folder of the policy set.
        host: address to listen on.
        port: TCP port to listen on; 0 takes a free one.
        workers: processes that serve, on one port.
        store: where the use of keys is kept.
        log_level: quieter messages and request lines are not written.
        log_format: `json`, `console`, or unset: `console` on a terminal, else `json`.
        force_open: serve a policy that needs no keys on an address that is not loopback.
        shutdown_s: seconds that running requests get to finish when the relay is told to stop.
        region: where this relay stands: the speed of models is known by region.
        state: folder in which what was learned outlives the process; unset keeps none of it.
        decision_log: file that decisions are written to, for `relay replay`; unset writes none.
        decision_log_bytes: a file of them that is larger makes room for a fresh one.
        decision_log_files: full ones that are kept, per worker.
        decision_sample: share of requests whose decision goes to the log.
        admin_key: `/metrics` wants it as a bearer token; unset leaves `/metrics` open.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    policy: Path = Field(description="the folder of a policy set")
    host: str = Field(default="127.0.0.1", description="an address of this machine")
    port: int = Field(default=8080, ge=0, le=65_535, description="an integer from 0 to 65535")
    workers: int = Field(default=1, ge=1, le=256, description="an integer from 1 to 256")
    store: Literal["memory"] = Field(default="memory", description='"memory", the only store there is')
    log_level: Level = Field(default="info", description='"debug", "info", "warning" or "error"')
    log_format: Style | None = Field(default=None, description='"json" or "console"')
    force_open: bool = Field(default=False, description='"true" or "false"')
    shutdown_s: float = Field(default=30.0, ge=0, le=3600, description="seconds, from 0 to 3600")
    region: str | None = Field(default=None, pattern=NAME, description=PATTERN_WORDS[NAME])
    state: Path | None = Field(default=None, description="the path of a folder")
    decision_log: Path | None = Field(default=None, description="the path of a file")
    decision_log_bytes: int = Field(
        default=67_108_864, ge=65_536, le=2**40, description="bytes, from 65536 to 1099511627776"
    )
    decision_log_files: int = Field(default=4, ge=1, le=1000, description="an integer from 1 to 1000")
    decision_sample: float = Field(default=0.0, ge=0, le=1, description="a share, from 0 to 1")
    admin_key: SecretStr | None = Field(default=None, min_length=16, description="a secret of at least 16 characters")

    @field_validator("log_level", "log_format", "store", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


SECRETS = frozenset({"admin_key"})
"""Settings whose value no message repeats."""


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + setting.upper()


def load_settings(**flags: Any) -> tuple[Settings, list[Finding]]:
    """Read the settings.

    Args:
        flags: settings given on the command line; None was not given.

    Returns:
        The settings, and a warning for each `RELAY_*` variable that is none of them.

    Raises:
        ConfigurationError: with one finding per setting that does not hold.
    """
    try:
        settings = Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        findings = [_finding(str(details["loc"][0]), details["type"], details["input"]) for details in error.errors()]
        raise ConfigurationError(f"The settings do not hold. {findings[0]}", findings) from None
    return settings, _unknown_variables()


def _finding(setting: str, kind: str, value: Any) -> Finding:
    allowed = Settings.model_fields[setting].description
    if kind == "missing":
        message = f"not set; it must be {allowed}, for example policies/demo"
    else:
        message = f"found {found(value, secret=setting in SECRETS)}; allowed is {allowed}"
    return Finding("environment", 0, variable(setting), message)


def _unknown_variables() -> list[Finding]:
    known = [variable(name) for name in Settings.model_fields]
    unknown = [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]
    return [Finding("environment", 0, name, _no_such_setting(name, known), "warning") for name in sorted(unknown)]


def _no_such_setting(name: str, known: list[str]) -> str:
    close = get_close_matches(name.upper(), known, n=1, cutoff=0.7)
    return f"no such setting (did you mean {close[0]}?)" if close else "no such setting"
