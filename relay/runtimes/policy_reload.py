"""Puts a new policy set in the place of the live one, if it holds.

Requests under way keep the set they began with. Whatever is wrong with a new one is logged, and the old one stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING

from relay.errors import ConfigurationError, Finding
from relay.policy import load
from relay.runtimes.policy_files import read_folder
from relay.runtimes.prices import list_price

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from relay.pipeline import Pipeline
    from relay.policy.compiled import Policy
    from relay.telemetry.metrics import Metrics

LOOK_S = 0.5
"""Seconds between looks at the folder: two or three small files are read in a tenth of a millisecond, and some file
systems never tell of changes."""

_log = logging.getLogger("relay.policy")


def compiled(files: dict[str, str]) -> Policy:
    """A policy from its files and this process's environment; its warnings are logged.

    Raises:
        ConfigurationError: it does not hold.
    """
    policy, findings = load.check(files, os.environ, price_of=list_price)
    if policy is None:
        errors = sum(finding.severity == "error" for finding in findings)
        raise ConfigurationError(f"The policy set has {errors} error{'s' * (errors > 1)}.", findings)
    log_findings(findings)
    return policy


def log_findings(findings: Sequence[Finding]) -> None:
    """One message for each, with its place as fields."""
    for finding in findings:
        level = logging.ERROR if finding.severity == "error" else logging.WARNING
        fields = {"file": finding.file, "line": finding.line, "key": finding.key}
        _log.log(level, "%s", finding, extra={"event": "policy_finding", "fields": fields})


class PolicyReload:
    """Looks at a policy folder and reloads when its content has changed or when asked.

    A change counts when two looks have found the same: files are written one after the other, and none at once.

    Args:
        folder: of the set.
        pipeline: whose policy is changed.
        metrics: counts reloads.
        seen: the files of the set that is live now.
        admit: raises ConfigurationError for a policy that may not be served here.
        keep: told the files of each set that has become live.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        seen: dict[str, str],
        admit: Callable[[Policy], None],
        keep: Callable[[dict[str, str]], None],
    ) -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._metrics = metrics
        self._seen: dict[str, str] | str = seen
        self._admit = admit
        self._keep = keep
        self._found: dict[str, str] | str = seen  # by the latest look
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Reload soon, changed or not. Asked for twice before it begins, it is done once."""
        self._asked.set()

    async def run(self) -> None:
        """Look, and reload one set at a time, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once, and reload if there is reason to."""
        asked = self._asked.is_set()
        self._asked.clear()
        try:
            await self._reload(asked=asked)
        except ConfigurationError as error:
            self._refuse(error)
        except Exception as defect:  # noqa: BLE001 - it spoils one reload, not those to come
            _log.error("reload failed", exc_info=defect, extra={"event": "policy_refused"})

    async def _reload(self, *, asked: bool) -> None:
        # In threads: a slow disk or a large set would hold up streams.
        content = await asyncio.to_thread(self._read)
        before, self._found = self._found, content
        if not asked and (content == self._seen or content != before):
            return
        self._seen = content
        if isinstance(content, str):
            raise ConfigurationError(content)
        policy = await asyncio.to_thread(compiled, content)
        self._admit(policy)
        self._serve(content, policy)

    def _read(self) -> dict[str, str] | str:
        """The files, or why they cannot be read: seen once, either is no news."""
        try:
            return read_folder(self._folder)
        except ConfigurationError as error:
            return error.message

    def _refuse(self, error: ConfigurationError) -> None:
        self._metrics.policy_reloaded("refused")
        log_findings(error.findings)
        live = self._pipeline.policy.version
        fields = {"version": live, "folder": str(self._folder)}
        _log.error("new policy refused, still %s: %s", live, error, extra={"event": "policy_refused", "fields": fields})

    def _serve(self, files: dict[str, str], policy: Policy) -> None:
        before = self._pipeline.policy.version
        if policy.version == before:
            self._metrics.policy_reloaded("unchanged")
            _log.info("policy unchanged", extra={"event": "policy_unchanged", "fields": {"version": before}})
            return
        self._pipeline.policy = policy
        self._keep(files)
        self._metrics.policy_reloaded("loaded")
        fields = {"version": policy.version, "before": before}
        _log.info("policy reloaded", extra={"event": "policy_reloaded", "fields": fields})
