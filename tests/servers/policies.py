"""Policy text for the tests: providers at given places, one route `auto` over all of them."""

from __future__ import annotations

import json
from typing import Any

NAMES = ("first", "second", "third")
"""Of the models and their providers, in the order in which `auto` tries them."""

UPSTREAM_KEY = "sk-upstream-secret"
ENVIRON = {"UPSTREAM_KEY": UPSTREAM_KEY}
"""What policies refer to."""


def policy(*base_urls: str, attempts: int | None = None, provider: dict[str, Any] | None = None, **tables: Any) -> str:
    """A policy file.

    Args:
        base_urls: one provider for each, with one model of the same name.
        attempts: of the route; by default one for each candidate.
        provider: further keys of each provider.
        tables: further tables of the file, in place of the defaults if they have the same name.
    """
    names = NAMES[: len(base_urls)]
    shared = {"dialect": "openai", "api_key": {"env": "UPSTREAM_KEY"}, **(provider or {})}
    document = {
        "version": 1,
        "access": {"open": True},
        "providers": {name: {"base_url": url, **shared} for name, url in zip(names, base_urls, strict=True)},
        "models": {name: {"provider": name, "upstream": f"{name}-upstream"} for name in names},
        "routes": [{"name": "auto", "candidates": names, "attempts": attempts or len(names)}],
        **tables,
    }
    return "\n".join(f"{key} = {_toml(value)}" for key, value in document.items())


def _toml(value: Any) -> str:
    """TOML's inline form: JSON's, but for tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
