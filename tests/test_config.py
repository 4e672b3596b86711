from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.config import SECRETS, Settings, load_settings, variable
from relay.errors import ConfigurationError, Finding


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No `RELAY_*` variables but those that the test sets, and a policy."""
    for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RELAY_POLICY", "policies/demo")
    return monkeypatch


def test_defaults_serve_on_loopback() -> None:
    """With nothing but a policy, one worker serves on 127.0.0.1:8080 and keeps everything in memory."""
    settings, findings = load_settings()
    assert settings.model_dump() == {
        "policy": Path("policies/demo"),
        "host": "127.0.0.1",
        "port": 8080,
        "workers": 1,
        "store": "memory",
        "log_level": "info",
        "log_format": None,
        "force_open": False,
        "shutdown_s": 30.0,
        "region": None,
        "state": None,
        "decision_log": None,
        "decision_log_bytes": 67_108_864,
        "decision_log_files": 4,
        "decision_sample": 0.0,
        "admin_key": None,
    }
    assert findings == []


def test_flags_win_over_variables(environ: pytest.MonkeyPatch) -> None:
    """A flag that was given beats its variable; one that was not leaves it alone."""
    environ.setenv("RELAY_PORT", "1")
    environ.setenv("RELAY_WORKERS", "2")
    settings, _ = load_settings(port=3, workers=None)
    assert (settings.port, settings.workers) == (3, 2)


def test_empty_variables_are_not_set(environ: pytest.MonkeyPatch) -> None:
    """`RELAY_PORT=` in a compose file means the default."""
    environ.setenv("RELAY_PORT", "")
    assert load_settings()[0].port == 8080


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RELAY_PORT", "http", 'found "http"; allowed is an integer from 0 to 65535'),
        ("RELAY_PORT", "70000", 'found "70000"; allowed is an integer from 0 to 65535'),
        ("RELAY_WORKERS", "0", 'found "0"; allowed is an integer from 1 to 256'),
        ("RELAY_STORE", "valkey://x", 'found "valkey://x"; allowed is "memory", the only store there is'),
        ("RELAY_LOG_LEVEL", "loud", 'found "loud"; allowed is "debug", "info", "warning" or "error"'),
        ("RELAY_LOG_FORMAT", "xml", 'found "xml"; allowed is "json" or "console"'),
        ("RELAY_FORCE_OPEN", "perhaps", 'found "perhaps"; allowed is "true" or "false"'),
        ("RELAY_SHUTDOWN_S", "-1", 'found "-1"; allowed is seconds, from 0 to 3600'),
        ("RELAY_ADMIN_KEY", "hunter2", "found a string; allowed is a secret of at least 16 characters"),
    ],
)
def test_a_wrong_value_is_named(environ: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    """The finding names the variable, what was found and what is allowed; of a secret never the value."""
    environ.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    finding = Finding("environment", 0, name, message)
    assert caught.value.findings == (finding,)
    assert str(finding) == f"environment: error: {name}: {message}"


def test_every_wrong_value_is_found(environ: pytest.MonkeyPatch) -> None:
    """One run names all that is wrong, a missing policy included."""
    environ.delenv("RELAY_POLICY")
    environ.setenv("RELAY_PORT", "x")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert {finding.key for finding in caught.value.findings} == {"RELAY_POLICY", "RELAY_PORT"}


def test_an_unknown_variable_is_a_warning(environ: pytest.MonkeyPatch) -> None:
    """A mistyped name does not keep the relay from serving, but is told with the nearest one."""
    environ.setenv("RELAY_PROT", "80")
    environ.setenv("RELAY_ZZZ", "80")
    assert [str(finding) for finding in load_settings()[1]] == [
        "environment: warning: RELAY_PROT: no such setting (did you mean RELAY_PORT?)",
        "environment: warning: RELAY_ZZZ: no such setting",
    ]


def test_words_may_be_in_capitals(environ: pytest.MonkeyPatch) -> None:
    """`RELAY_LOG_LEVEL=WARNING` is what other programs call it."""
    environ.setenv("RELAY_LOG_LEVEL", "WARNING")
    assert load_settings()[0].log_level == "warning"


def test_the_admin_key_does_not_show_itself(environ: pytest.MonkeyPatch) -> None:
    """Printing the settings prints no secret."""
    environ.setenv("RELAY_ADMIN_KEY", "sixteen characters")
    settings, _ = load_settings()
    assert "sixteen" not in repr(settings)
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "sixteen characters"


def test_every_setting_says_what_it_allows() -> None:
    """Messages can name what is allowed for each setting, and secrets are settings."""
    assert all(field.description for field in Settings.model_fields.values())
    assert set(Settings.model_fields) >= SECRETS
    assert variable("log_level") == "RELAY_LOG_LEVEL"
