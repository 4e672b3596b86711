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
from relay.runtimes.prices import list_price

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from relay.pipeline import Pipeline
    from relay.policy.compiled import Policy
    from relay.telemetry.metrics import Metrics

LOOK_S = 5
"""Seconds between looks at a folder that tells of no change: some network file systems never do."""

STEP_MS = 500
"""Milliseconds between looks at what the system has told: watchfiles' thread takes the interpreter for each of them."""

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
    """Watches a policy folder and reloads when its content changes or when asked.

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
        self._look = asyncio.Event()
        self._look.set()  # the folder may have changed since `seen` was read
        self._asked = False

    def ask(self) -> None:
        """Reload soon, changed or not. Asked for twice before it begins, it is done once."""
        self._asked = True
        self._look.set()

    async def _watch(self) -> None:
        """Look at the folder whenever something in it changes; every `LOOK_S` in any case.

        Not only when a file that ends in .toml does: a Kubernetes ConfigMap changes by a symbolic link beside them.
        """
        changes = watchfiles.awatch(
            self._folder,
            watch_filter=None,
            recursive=False,
            step=STEP_MS,
            rust_timeout=LOOK_S * 1000,
            yield_on_timeout=True,
        )
        try:
            async for _ in changes:
                self._look.set()
        except (OSError, RuntimeError) as error:  # the latter from its inotify, kqueue, …
            told = "the policy folder is not watched any more (%s); SIGHUP still reloads"
            _log.warning(told, error, extra={"event": "policy_unwatched"})

    async def run(self) -> None:
        """Watch, and reload one set at a time, until cancelled."""
        watching = asyncio.ensure_future(self._watch())
        await asyncio.sleep(0)  # what changes from here on is noticed
        try:
            while True:
                await self._look.wait()
                self._look.clear()
                await self._reload_if_changed()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _reload_if_changed(self) -> None:
        asked, self._asked = self._asked, False
        try:
            await self._reload(asked=asked)
        except ConfigurationError as error:
            self._refuse(error)
        except Exception as defect:  # noqa: BLE001 - it spoils one reload, not those to come
            _log.error("reload failed", exc_info=defect, extra={"event": "policy_refused"})

    async def _reload(self, *, asked: bool) -> None:
        # In threads: a slow disk or a large set would hold up streams.
        content = await asyncio.to_thread(self._read)
        if content == self._seen and not asked:
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
