"""Policy files -> the compiled Policy, or every reason why not. Pure: the files' text and the environment come in.

Each table is checked on its own (`schema.py`), and what is left of one with errors is still checked further, so that
one run finds what is wrong everywhere. Only then come references, secrets and what concerns several tables.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from relay.errors import ConfigurationError, Finding
from relay.messages import INTENTS, BudgetRules, Headroom, KeyLimits
from relay.policy import compiled, schema
from relay.policy.compiled import Policy, Secret
from relay.policy.sources import read
from relay.policy.tables import Tables
from relay.policy.wording import listed, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from relay.policy.toml_lines import Path

DEFAULT_ATTEMPTS = 2
"""Tries of a route with a single candidate: one failure in passing should not reach the client."""

_TIMEOUTS_IN_ORDER = (
    ("first_token_s", "total_s"),
    ("answer_s", "total_s"),
    ("silence_s", "total_s"),
    ("connect_s", "first_token_s"),
)
_RETRIES_IN_ORDER = (("base_s", "max_s"),)
_BUDGETS_IN_ORDER = (("floor", "ceiling"),)
_HEADROOM_IN_ORDER = (("medium", "high"), ("low", "medium"))


PriceOf: TypeAlias = "Callable[[str, str], compiled.Price | None]"
"""Looks a price up: of the model that the provider at a base URL calls by a name."""


def unknown_price(base_url: str, upstream: str) -> compiled.Price | None:  # noqa: ARG001 - the shape of a PriceOf
    """Where no list of prices is at hand: None."""
    return None


def load(files: Mapping[str, str], environ: Mapping[str, str], *, price_of: PriceOf = unknown_price) -> Policy:
    """Compile a policy set.

    Args:
        files: path -> text of each file.
        environ: environment variables that references name.
        price_of: finds the prices that models of objective routes do not say themselves.

    Raises:
        ConfigurationError: with all findings, warnings included, if one of them is an error.
    """
    policy, findings = check(files, environ, price_of=price_of)
    if policy is None:
        errors = [finding for finding in findings if finding.severity == "error"]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigurationError(f"The policy set does not hold. {errors[0]}{more}", findings)
    return policy


def check(
    files: Mapping[str, str], environ: Mapping[str, str], *, price_of: PriceOf = unknown_price
) -> tuple[Policy | None, tuple[Finding, ...]]:
    """Compile a policy set and say everything that is wrong with it.

    Args:
        files: path -> text of each file; merged in the order of the paths.
        environ: environment variables that references name. Their values never get into a finding.
        price_of: finds the prices that models do not say themselves; asked only if a route weighs the cost.

    Returns:
        The policy, None if a finding is an error; and the findings in the order of file and line.
    """
    if not files:
        return None, (Finding("", 0, "", "the set has no files"),)
    tables = Tables(read(files))
    policy = _Compiler(tables, environ, price_of).policy(_version(files))
    findings = tuple(sorted(tables.findings, key=lambda finding: (finding.file, finding.line)))
    return (None if tables.broken else policy), findings


def _version(files: Mapping[str, str]) -> str:
    """The folder does not count: the same files are the same version wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted(files):
        for part in (re.split(r"[/\\]", path)[-1], files[path]):
            data = part.encode()
            digest.update(b"%d:%b" % (len(data), data))
    return digest.hexdigest()[:12]


class _LeftOutError(Exception):
    """An optional secret is not set; the message is its environment variable's name."""


class _Compiler:
    """One run over one set. What has errors is passed over; `findings` says so."""

    def __init__(self, tables: Tables, environ: Mapping[str, str], price_of: PriceOf) -> None:
        self._tables = tables
        self._environ = environ
        self._price_of = price_of
        self._unset: dict[str, str] = {}
        """Providers left out -> the environment variable that is missing."""
        self._left_out: set[str] = set()
        """Their models."""

    def policy(self, version: str) -> Policy:
        """Compile everything. Worth something only if no error was noted."""
        self._tables.check_sections()
        access = self._tables.single("access", schema.Access)
        provider_tables = dict(self._tables.named("providers", schema.Provider))
        providers = self._providers(provider_tables)
        route_tables = list(self._tables.routes())
        priced = {name for _, table in route_tables if _counts_money(table) for name in table.candidates}
        model_tables = dict(self._tables.named("models", schema.Model))
        models = self._models(provider_tables, providers, model_tables, priced)
        routes = self._routes(route_tables, models)
        keys = self._keys()
        if not access.open and not self._tables.names("keys") and self._tables.complete:
            self._tables.error(
                ("access",),
                "no keys, and not open: nobody could call. `relay keys new` makes a key and prints what to put under "
                "[keys.NAME]; [access] with open = true serves requests without one",
            )
        policy = Policy(
            version=version,
            open=access.open,
            providers=providers,
            models=models,
            routes=tuple(route for _, route in routes),
            by_model=self._by_model(routes),
            keys=keys,
            requests=compiled.RequestLimits(**self._tables.single("requests", schema.Requests).model_dump()),
            streams=self._streams(),
            retries=self._retries(),
            skipped=tuple((name, f"{variable} is not set") for name, variable in self._unset.items()),
            intents=self._intents(),
        )
        if policy.intents is not None and not self._tables.broken:
            self._check_heeded(policy.intents, [table for _, table in route_tables], model_tables)
        return policy

    # --- providers -------------------------------------------------------------------------------------------

    def _providers(self, tables: Mapping[str, schema.Provider]) -> dict[str, compiled.Provider]:
        providers = {}
        for name, table in tables.items():
            try:
                providers[name] = self._provider(name, table)
            except _LeftOutError as missing:
                self._unset[name] = str(missing)
        return providers

    def _provider(self, name: str, table: schema.Provider) -> compiled.Provider:
        path: Path = ("providers", name)
        api_key = self._secret((*path, "api_key"), table.api_key)
        if table.base_url.startswith("http:"):
            if table.http2:
                self._tables.error((*path, "http2"), "found true, but HTTP/2 needs an https base_url")
            if api_key is not None and not _is_loopback(table.base_url):
                self._tables.warning((*path, "base_url"), "the API key and all prompts travel unencrypted over http")
        return compiled.Provider(
            name=name,
            dialect=table.dialect,
            base_url=table.base_url,
            api_key=api_key,
            headers=self._headers((*path, "headers"), table.headers),
            forward_headers=self._forward_headers(path, table),
            timeouts=compiled.Timeouts(
                **self._in_order(_TIMEOUTS_IN_ORDER, ((*path, "timeouts"), table.timeouts)),
            ),
            breaker=compiled.Breaker(**table.breaker.model_dump()),
            max_connections=table.max_connections,
            proxy=self._proxy((*path, "proxy"), table.proxy),
            http2=table.http2,
            ask_usage=table.ask_usage,
            probe=None if table.probe is None else compiled.Probe(**table.probe.model_dump()),
        )

    def _headers(self, path: Path, given: Mapping[str, str | schema.Reference]) -> tuple[tuple[str, str], ...]:
        headers: dict[str, str] = {}
        for name, value in given.items():
            at = (*path, name)
            if name.lower() in headers:
                self._tables.error(at, "stands there twice; case makes no difference in header names")
            if isinstance(value, str):
                if schema.holds_credentials(name):
                    self._tables.error(
                        at, 'this header holds a secret; allowed is a reference such as { env = "NAME" }'
                    )
                headers[name.lower()] = value
            else:
                headers[name.lower()] = self._secret(at, value) or ""
        return tuple(headers.items())

    def _forward_headers(self, path: Path, table: schema.Provider) -> frozenset[str]:
        fixed = {name.lower() for name in table.headers}
        for position, name in enumerate(table.forward_headers):
            if name.lower() in fixed:
                self._tables.error((*path, "forward_headers", position), f"{name} has a fixed value in headers")
        return frozenset(name.lower() for name in table.forward_headers)

    def _proxy(self, path: Path, given: str | schema.Reference | None) -> str | None:
        if not isinstance(given, schema.Reference):
            return given
        url = self._secret(path, given)
        if url is not None:
            try:
                schema.http_url(url, userinfo=True)
            except ValueError as error:
                self._tables.error((*path, "env"), f"the value of {given.env} is no proxy URL; {error}")
        return url

    def _secret(self, path: Path, reference: schema.Reference | None) -> Secret | None:
        """The value behind a reference. None if there is none, also where that was noted as an error.

        Raises:
            _LeftOutError: it is optional and not set.
        """
        if reference is None:
            return None
        name, value = reference.env, self._environ.get(reference.env, "")
        if value and re.fullmatch(schema.HEADER_VALUE, value):
            return Secret(value)
        if value:
            self._tables.error(
                (*path, "env"), f"the value of {name} has spaces, line breaks or non-ASCII around or in it"
            )
        elif reference.optional:
            raise _LeftOutError(name)
        else:
            self._tables.error(
                (*path, "env"),
                f"environment variable {name} is not set; set it, or say optional = true to leave the provider out "
                "without it",
            )
        return None

    # --- models and routes -----------------------------------------------------------------------------------

    def _models(
        self,
        provider_tables: Mapping[str, schema.Provider],
        providers: Mapping[str, compiled.Provider],
        tables: Mapping[str, schema.Model],
        priced: Collection[str],
    ) -> dict[str, compiled.Model]:
        """All that can be used.

        Args:
            provider_tables: of all providers.
            providers: those that can be used.
            tables: of all models.
            priced: names of models whose price matters to a route.
        """
        models = {}
        for name, table in tables.items():
            path: Path = ("models", name)
            self._tables.refer((*path, "provider"), table.provider, "providers")
            layers: list[tuple[Path, schema.Table]] = [((*path, "timeouts"), table.timeouts)]
            if table.provider in provider_tables:
                layers.insert(0, (("providers", table.provider, "timeouts"), provider_tables[table.provider].timeouts))
            timeouts = compiled.Timeouts(**self._in_order(_TIMEOUTS_IN_ORDER, *layers))
            if table.provider in self._unset:
                self._left_out.add(name)
            if table.provider in providers:
                models[name] = compiled.Model(
                    name=name,
                    provider=providers[table.provider],
                    upstream=table.upstream or name,
                    max_tokens_field=table.max_tokens_field,
                    timeouts=timeouts,
                    price=self._price(name, table, providers[table.provider].base_url if name in priced else None),
                    context=table.context,
                    max_output=table.max_output,
                    features=None if table.features is None else frozenset(table.features),
                    tier=table.tier,
                    regions=frozenset(table.regions),
                    expected=compiled.Expectation(table.expected.ttft_ms / 1000, table.expected.tokens_per_s),
                    effort=table.effort,
                    verbosity=table.verbosity,
                    continuation=table.continuation,
                )
        names = self._tables.names("models")
        if not names and self._tables.complete:
            self._tables.error(("models",), "no models: a set needs at least one [models.NAME]")
        elif names and self._left_out.issuperset(names):
            variables = listed(sorted(set(self._unset.values())))
            self._tables.error(("models",), f"no model can be used; set at least one of {variables}")
        return models

    def _price(self, name: str, table: schema.Model, base_url: str | None) -> compiled.Price | None:
        """As written; looked up only where it matters, which is where a base URL is given."""
        if table.price is not None:
            cached = table.price.input if table.price.cached_input is None else table.price.cached_input
            return compiled.Price(*(usd / 1e6 for usd in (table.price.input, cached, table.price.output)))
        price = None if base_url is None else self._price_of(base_url, table.upstream or name)
        if base_url is not None and price is None:
            self._tables.warning(
                ("models", name, "price"), "not known, though a route weighs it; counted as that route's dearest"
            )
        return price

    def _routes(
        self, tables: Sequence[tuple[Path, schema.Route]], models: Mapping[str, compiled.Model]
    ) -> list[tuple[str, compiled.Route]]:
        """Each route with the glob that it has for the model's name."""
        routes: list[tuple[str, compiled.Route]] = []
        for path, table in tables:
            glob = table.match.model or table.name
            self._check_reachable(path, glob, routes)
            match = self._match(path, glob, table.match)
            candidates = self._candidates(path, table, models)
            if candidates:
                routes.append((glob, self._route(path, table, match, candidates)))
        taken = self._tables.names("routes")
        own = [model for name, model in models.items() if name not in taken]
        return routes + [
            (model.name, compiled.Route(model.name, compiled.Match(_pattern(model.name)), (model,), DEFAULT_ATTEMPTS))
            for model in own
        ]

    def _route(
        self, path: Path, table: schema.Route, match: compiled.Match, candidates: tuple[compiled.Model, ...]
    ) -> compiled.Route:
        names = [model.name for model in candidates]
        for name in table.weights:
            if name not in table.candidates:
                self._tables.error(
                    (*path, "weights", name),
                    f"is no candidate of this route{nearest(name, table.candidates)}; allowed are "
                    f"{listed(table.candidates)}",
                )
        if table.hedge is not None and len(table.candidates) == 1:
            self._tables.warning((*path, "hedge"), "has no effect: there is one candidate")
        barred = {model.name: "region" for model in candidates if not _may_serve(model, frozenset(table.regions))}
        if len(barred) == len(candidates):
            self._tables.error(
                (*path, "regions"),
                f"none of the candidates is served in {listed(table.regions)} alone; the models' own regions say where",
            )
        return compiled.Route(
            name=table.name,
            match=match,
            candidates=candidates,
            attempts=table.attempts or min(max(len(candidates), DEFAULT_ATTEMPTS), schema.MAX_ATTEMPTS),
            objective=_objective(table.objective),
            ttft_ceiling_s=None if table.slo.ttft_p95_ms is None else table.slo.ttft_p95_ms / 1000,
            shares=tuple((name, share) for name, share in table.weights.items() if name in names),
            barred=barred,
            hedge=_hedge(table.hedge),
        )

    def _candidates(
        self, path: Path, table: schema.Route, models: Mapping[str, compiled.Model]
    ) -> tuple[compiled.Model, ...]:
        for position, name in enumerate(table.candidates):
            self._tables.refer((*path, "candidates", position), name, "models")
        usable = tuple(models[name] for name in table.candidates if name in models)
        if models and self._left_out.issuperset(table.candidates):
            self._tables.warning(path, "left out: none of its candidates can be used")
        return usable

    def _match(self, path: Path, glob: str, table: schema.Match) -> compiled.Match:
        if table.key is not None and not _has_wildcards(table.key):
            self._tables.refer((*path, "match", "key"), table.key, "keys")
        return compiled.Match(
            model=_pattern(glob),
            key=None if table.key is None else _pattern(table.key),
            path=None if table.path is None else _pattern(table.path),
            headers=tuple((name.lower().encode(), _pattern(value)) for name, value in table.headers.items()),
        )

    def _check_reachable(self, path: Path, glob: str, earlier: Sequence[tuple[str, compiled.Route]]) -> None:
        for other, route in earlier:
            same = other in ("*", glob) if _has_wildcards(glob) else route.match.model.match(glob)
            if same and route.match.only_model:
                self._tables.warning(path, f"never taken: {route.name}, which stands before it, takes all its requests")
                return

    @staticmethod
    def _by_model(routes: Sequence[tuple[str, compiled.Route]]) -> dict[str, tuple[compiled.Route, ...]]:
        """For each name spelled out: all that match it, up to the first one that asks for nothing else."""
        by_model = {}
        for name in (glob for glob, _ in routes if not _has_wildcards(glob)):
            matching = [route for _, route in routes if route.match.model.match(name)]
            certain = next((n for n, route in enumerate(matching, 1) if route.match.only_model), len(matching))
            by_model[name] = tuple(matching[:certain])
        return by_model

    # --- keys and single tables ------------------------------------------------------------------------------

    def _keys(self) -> dict[bytes, tuple[compiled.Key, ...]]:
        keys: dict[bytes, compiled.Key] = {}
        by_prefix: dict[bytes, tuple[compiled.Key, ...]] = {}
        for name, table in self._tables.named("keys", schema.Key):
            path: Path = ("keys", name)
            for position, route in enumerate(table.routes or ()):
                self._tables.refer((*path, "routes", position), route, "routes", "models")
            digest = bytes.fromhex(table.sha256)
            if digest in keys:
                other = self._tables.place(("keys", keys[digest].name, "sha256"))
                self._tables.error((*path, "sha256"), f"the same key as {keys[digest].name} at {other}")
            routes = None if table.routes is None else frozenset(table.routes)
            keys[digest] = compiled.Key(
                name, digest, routes, KeyLimits(**table.limits.model_dump()), prefer=table.prefer
            )
            prefix = digest[: compiled.KEY_PREFIX]
            by_prefix[prefix] = (*by_prefix.get(prefix, ()), keys[digest])
        return by_prefix

    def _streams(self) -> compiled.Streams:
        table = self._tables.single("streams", schema.Streams)
        if table.on_disconnect != "drain":
            for key in sorted(table.model_fields_set & {"drain_max_bytes", "drain_max_s"}):
                self._tables.warning(("streams", key), 'has no effect: on_disconnect is not "drain"')
        return compiled.Streams(**table.model_dump())

    def _retries(self) -> compiled.Retries:
        table = self._tables.single("retries", schema.Retries)
        return compiled.Retries(**self._in_order(_RETRIES_IN_ORDER, (("retries",), table)))

    def _intents(self) -> compiled.Intents | None:
        """Rules of every label, those of [budgets] under each one's own; None if they would change nothing."""
        for label in self._tables.names("intents"):
            if label not in INTENTS:
                self._tables.error(
                    ("intents", label), f"unknown intent{nearest(label, INTENTS)}; allowed are {listed(INTENTS)}"
                )
        tables = dict(self._tables.named("intents", schema.IntentTable))
        shared: list[tuple[Path, schema.Budgets]] = [(("budgets",), self._tables.single("budgets", schema.Budgets))]
        usual = compiled.IntentRules(self._budget_rules(*shared))
        rules = dict.fromkeys(INTENTS, usual)
        for label, table in tables.items():
            path: Path = ("intents", label, "budget")
            budget = self._budget_rules(*shared, (path, table.budget))
            if budget.mode == "off" and table.budget.model_fields_set - {"mode"}:
                self._tables.warning(path, 'has no effect: there is no [budgets], or its mode is "off"')
            rules[label] = compiled.IntentRules(budget, **table.model_dump(exclude={"budget"}))
        classifier = self._tables.single("classifier", schema.Classifier)
        if all(rule.idle for rule in rules.values()):
            return None
        return compiled.Intents(rules, classifier.default, classifier.min_confidence)

    def _check_heeded(
        self, intents: compiled.Intents, routes: Sequence[schema.Route], models: Mapping[str, schema.Model]
    ) -> None:
        """Warn of what intents ask for that no model has, those included that are left out in this environment."""
        tiers = {route.name: {models[name].tier for name in route.candidates} for route in routes}
        ranked = {route: max(found) for route, found in tiers.items() if len(found) > 1}
        takes_effort = any(model.effort != "off" and "reasoning" in (model.features or ()) for model in models.values())
        takes_verbosity = any(model.verbosity for model in models.values())
        for label in self._tables.names("intents"):
            rules, path = intents.rules[label], ("intents", label)
            too_low = [route for route, best in ranked.items() if best < rules.min_tier]
            if rules.min_tier and not ranked:
                self._tables.warning((*path, "min_tier"), "has no effect: no route has candidates of different tiers")
            elif too_low:
                self._tables.warning(
                    (*path, "min_tier"),
                    f"found {rules.min_tier}, but no candidate of {listed(too_low)} has that tier or a higher one; the "
                    "best there are serve instead",
                )
            if rules.effort and not takes_effort:
                self._tables.warning(
                    (*path, "effort"),
                    'has no effect: no model takes one; features = ["reasoning"] says that a model does, unless its '
                    'effort is "off"',
                )
            if rules.verbosity and not takes_verbosity:
                self._tables.warning(
                    (*path, "verbosity"), "has no effect: no model takes it; verbosity = true says that one does"
                )

    def _budget_rules(self, *layers: tuple[Path, schema.Budgets]) -> BudgetRules:
        """Budgets are off in a set that does not speak of them."""
        headrooms = [((*path, "headroom"), table.headroom) for path, table in layers]
        said = self._in_order(_BUDGETS_IN_ORDER, *layers)
        said["headroom"] = Headroom(**self._in_order(_HEADROOM_IN_ORDER, *headrooms))
        if not self._tables.has("budgets") and "mode" not in layers[-1][1].model_fields_set:
            said["mode"] = "off"
        return BudgetRules(**said)

    def _in_order(self, in_order: Sequence[tuple[str, str]], *layers: tuple[Path, schema.Table]) -> dict[str, Any]:
        """Numbers of which some must not be larger than others.

        A default gives way to a smaller number that was written; two numbers that were written have to agree.

        Args:
            in_order: (smaller, larger) keys.
            layers: path and table; a key written in a later one overrides. Only what involves a key of the last one is
                noted: the others were looked at before.
        """
        values = layers[0][1].model_dump()
        written: dict[str, Path] = {}
        for path, table in layers:
            for key in table.model_fields_set:
                values[key] = getattr(table, key)
                written[key] = (*path, key)
        last = layers[-1][1].model_fields_set
        for smaller, larger in in_order:
            if values[smaller] <= values[larger]:
                continue
            if smaller not in written:
                values[smaller] = values[larger]
            elif last & {smaller, larger}:
                at = smaller if smaller in last else larger
                self._tables.error(
                    written[at],
                    f"{smaller} is {values[smaller]:g}, but {larger} is {values[larger]:g}"
                    f"{f' ({self._tables.place(written[larger])})' if larger in written else ', its default'}; "
                    f"allowed is {smaller} up to {larger}",
                )
        return values


def _objective(table: schema.Objective | None) -> compiled.Objective | None:
    if table is None:
        return None
    total = table.ttft + table.latency + table.cost
    return compiled.Objective(table.ttft / total, table.latency / total, table.cost / total, table.explore)


def _hedge(table: schema.Hedge | None) -> compiled.Hedge | None:
    return None if table is None else compiled.Hedge(int(table.after[1:]) / 100, table.max_extra_cost)


def _counts_money(table: schema.Route) -> bool:
    return table.hedge is not None or (table.objective is not None and table.objective.cost > 0)


def _may_serve(model: compiled.Model, regions: frozenset[str]) -> bool:
    """Whether a model is sure to process requests in these regions alone; with none given, it may be anywhere."""
    return not regions or (bool(model.regions) and model.regions <= regions)


def _has_wildcards(glob: str) -> bool:
    return any(mark in glob for mark in "*?[")


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
