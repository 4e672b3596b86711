"""Puts a new policy set in the place of the live one, if it holds.

Requests under way keep the set they began with. Whatever is wrong with a new one is logged, and the old one stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import watchfiles

from relay.errors import ConfigurationError, Finding
from relay.policy import load
from relay.runtimes.policy_files import read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from relay.pipeline import Pipeline
    from relay.policy.compiled import Policy
    from relay.telemetry.metrics import Metrics

_log = logging.getLogger("relay.policy")


def compiled(files: dict[str, str]) -> Policy:
    """A policy from its files and this process's environment; its warnings are logged.

    Raises:
        ConfigurationError: it does not hold.
    """
    policy, findings = load.check(files, os.environ)
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
    """Watches a policy folder and reloads when its content changes or when asked.

    Args:
        folder: of the set.
        pipeline: whose policy is changed.
        metrics: counts reloads.
        admit: raises ConfigurationError for a policy that may not be served here.
        keep: told the files of each set that has become live.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: Pipeline,
        metrics: Metrics,
        *,
        admit: Callable[[Policy], None],
        keep: Callable[[dict[str, str]], None],
    ) -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._metrics = metrics
        self._admit = admit
        self._keep = keep
        self._wanted = asyncio.Event()

    def ask(self) -> None:
        """Reload soon. Asked for twice before it begins, it is done once."""
        self._wanted.set()

    async def watch(self) -> None:
        """Ask for a reload whenever something in the folder changes, until cancelled.

        Not only files that end in .toml: a Kubernetes ConfigMap changes by a symbolic link beside them.
        """
        try:
            async for _ in watchfiles.awatch(self._folder, watch_filter=None, recursive=False):
                self.ask()
        except (OSError, RuntimeError) as error:  # the latter from its inotify, kqueue, …
            told = "the policy folder is not watched any more (%s); SIGHUP still reloads"
            _log.warning(told, error, extra={"event": "policy_unwatched"})

    async def run(self) -> None:
        """Reload, one at a time, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                # In a thread: compiling a large set takes long enough for streams to notice.
                files, policy = await asyncio.to_thread(self._load)
            except ConfigurationError as error:
                self._refuse(error)
            except Exception as defect:  # noqa: BLE001 - it spoils one reload, not those to come
                _log.error("reload failed", exc_info=defect, extra={"event": "policy_refused"})
            else:
                self._serve(files, policy)

    def _load(self) -> tuple[dict[str, str], Policy]:
        files = read_folder(self._folder)
        policy = compiled(files)
        self._admit(policy)
        return files, policy

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
