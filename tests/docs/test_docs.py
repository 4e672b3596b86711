"""What the documentation names exists, and what exists is documented."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import TYPE_CHECKING, Any, cast

import click
import pytest
from packaging.requirements import Requirement

from relay import cli, config, errors
from relay.app import create_app
from relay.commands.serve import serve
from relay.messages import Outcome
from relay.probes import Probes
from relay.runtimes.container import register_gauges
from relay.telemetry.events import RequestEvent
from relay.telemetry.metrics import Metrics
from tests.docs.markdown import PAGES, ROOT, anchors, code, first_code, links, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.routing import Route

    from relay.pipeline import Pipeline

OPERATIONS = "docs/operations.md"
SENT_UPSTREAM = {"accept", "user-agent"}
"""Headers that the same modules write into requests."""

NO_PIPELINE = cast("Pipeline", None)
"""For what registers itself without looking at the pipeline yet."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Links within the project lead to a file, and to a heading of it."""
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_metrics() -> None:
    """Metrics, their types and their labels."""
    metrics = Metrics()
    register_gauges(metrics, NO_PIPELINE, Probes(NO_PIPELINE))
    documented = {
        (code(row["metric"])[0], row["type"], tuple(code(row["labels"]))) for row in rows(OPERATIONS, "Metrics")
    }
    assert documented == {(name, family.kind, family.labels) for name, family in metrics._families.items()}


def test_settings() -> None:
    """Settings: their variables, their flags and their defaults."""
    table = rows(OPERATIONS, "Settings")
    fields = {config.variable(name): field for name, field in config.Settings.model_fields.items()}
    assert first_code([row["variable"] for row in table]) == {*fields}
    assert {flag for row in table for flag in code(row["flag"])} == {opt for p in serve.params for opt in p.opts}

    documented = {code(row["variable"])[0]: code(row["default"])[:1] for row in table}
    for variable, field in fields.items():
        if not field.is_required() and field.default is not None:
            assert documented[variable] == [str(field.default).lower().removesuffix(".0")]


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Each command that does something, by how it is called."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


def test_command_line() -> None:
    """Commands and their options; those of `relay serve` are the settings."""
    existing = set()
    for path, command in commands(cli.main, "relay"):
        options = (
            {} if command is serve else {opt for p in command.params if isinstance(p, click.Option) for opt in p.opts}
        )
        existing |= {path, *(f"{path} {option}" for option in options)}
    assert first_code([row["command"] for row in rows(OPERATIONS, "Command line")]) == existing


def test_endpoints() -> None:
    """Endpoints and their methods."""
    app = create_app(NO_PIPELINE, metrics=Metrics(), admin_key=None)
    routes = cast("list[Route]", app.routes)
    existing = {f"{method} {route.path}" for route in routes for method in (route.methods or set()) - {"HEAD"}}
    assert first_code([row["endpoint"] for row in rows(OPERATIONS, "Endpoints")]) == existing


def test_request_log_fields() -> None:
    """Fields of the line that each request leaves in the log."""
    documented = [code(row["field"])[0] for row in rows(OPERATIONS, "Log events")]
    assert documented == list(RequestEvent.__struct_fields__)


def test_lifecycle_events() -> None:
    """Names of the other lines in the log: each is given where the line is written."""
    existing = set()
    for node in nodes(*(ROOT / "relay").rglob("*.py")):
        match node:
            case ast.Dict(keys=[ast.Constant(value="event"), *_], values=[ast.Constant(value=name), *_]):
                existing.add(name)
    assert first_code([row["lifecycle event"] for row in rows(OPERATIONS, "Log events", table=1)]) == existing


def test_outcomes() -> None:
    """Outcomes."""
    assert first_code([row["outcome"] for row in rows("docs/architecture.md", "Outcomes")]) == {*Outcome}


def kinds(error: type[errors.RelayError]) -> Iterator[type[errors.RelayError]]:
    """The classes below this one that stand for something that happens, not for a group of others."""
    for kind in error.__subclasses__():
        if "code" in vars(kind) or not kind.__subclasses__():
            yield kind
        yield from kinds(kind)


def test_errors() -> None:
    """Error codes, with their status and type."""
    existing = {
        (kind.code or "none", str(kind.status), kind.type)
        for kind in kinds(errors.RelayError)
        if kind is not errors.ConfigurationError  # no client sees it: the relay does not start
    }
    table = rows("docs/api.md", "Errors")
    assert {(row["code"].strip("`"), row["status"], row["type"].strip("`")) for row in table} == existing


def nodes(*modules: Path) -> Iterator[ast.AST]:
    """The syntax trees of modules, node by node."""
    for module in modules:
        yield from ast.walk(ast.parse(module.read_text()))


def test_response_headers() -> None:
    """Response headers: pairs of a name and a value are written in these modules alone."""
    existing = set()
    for node in nodes(*(ROOT / "relay" / name for name in ("exchange.py", "errors.py", "app.py"))):
        match node:
            case ast.Tuple(elts=[ast.Constant(value=bytes(name)), _]):
                existing.add(name.decode())
    assert first_code([row["header"] for row in rows("docs/api.md", "Response headers")]) == existing - SENT_UPSTREAM


def test_dependencies() -> None:
    """Each dependency has its reason."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    documented = first_code([row["package"] for row in rows("docs/dependencies.md", "Runtime")])
    assert documented == {Requirement(line).name for line in project["project"]["dependencies"]}
    documented = first_code([row["package"] for row in rows("docs/dependencies.md", "Development")])
    groups = project["dependency-groups"]
    assert documented == {Requirement(line).name for line in groups["dev"] + groups["demo"]}


def test_dependencies_are_used() -> None:
    """Each runtime dependency is imported somewhere."""
    sources = "\n".join(path.read_text() for path in (ROOT / "relay").rglob("*.py"))
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for line in project["project"]["dependencies"]:
        module = Requirement(line).name.replace("-", "_")
        assert re.search(rf"^\s*(import|from) {module}\b", sources, re.MULTILINE), module


def test_make_targets() -> None:
    """`make` says of each target what it is for."""
    makefile = (ROOT / "Makefile").read_text()
    declared = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    assert re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE) == declared


def test_parts() -> None:
    """The architecture page names every part there is."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    parts = re.findall(r"^```\n(relay/.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    existing = {path.name for path in (ROOT / "relay").glob("[a-z]*") if path.suffix == ".py" or path.is_dir()}
    assert existing == {name.rstrip("/") for name in re.findall(r"\b[a-z_]+(?:\.py|/)", parts)} - {"relay"}
