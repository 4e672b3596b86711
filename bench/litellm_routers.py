"""LiteLLM's Router, its own code from PyPI, sent through the simulated world on a virtual clock.

Runs in an environment of its own, as `python -m bench.litellm_routers WORLD.json STRATEGY SEED`, and prints the
results as MessagePack. Nothing is called over a network: its router chooses a deployment, the world says what comes of
it, and that is reported to the router's own callbacks as its `acompletion` would. What it does with a failure is its
own too: deployments cool down, and a retry chooses anew.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import sys
from typing import TYPE_CHECKING, Any

import litellm
import msgspec
import time_machine
from litellm import Router

from relay.simulate import Arrival, Silent, Upstreams, World, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)
GROUP = "auto"


class LiteLLM(Silent):
    """One strategy."""

    def __init__(self, upstreams: Upstreams, strategy: str, traveller: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._upstreams = upstreams
        self._strategy = strategy
        self._traveller = traveller
        self._loop = loop
        self._known: list[str] = []
        self._router = Router(model_list=[], routing_strategy=strategy, num_retries=0, set_verbose=False)

    def _deployment(self, name: str) -> dict[str, Any]:
        price = self._upstreams.prices[name]
        return {
            "model_name": GROUP,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_key": "none",
                "api_base": f"http://{name}.invalid",
                "input_cost_per_token": price.input,
                "output_cost_per_token": price.output,
            },
            "model_info": {"id": name},
        }

    def _at(self, now: float) -> dt.datetime:
        moment = EPOCH + dt.timedelta(seconds=now)
        self._traveller.move_to(moment)
        return moment

    def plan(self, arrival: Arrival, now: float) -> Sequence[str]:
        """Whom to ask."""
        self._at(now)
        present = self._upstreams.present(now)
        if present != self._known:
            self._known = present
            self._router.set_model_list([self._deployment(name) for name in present])
        messages = [{"role": "user", "content": "x" * (4 * arrival.prompt_tokens)}]
        try:
            chosen = self._loop.run_until_complete(
                self._router.async_get_available_deployment(GROUP, self._request(""), messages=messages)
            )
        except Exception as error:  # noqa: BLE001 - it has a dozen ways to say that everyone cools down
            logging.getLogger(__name__).debug("nobody: %r", error)
            return []
        return [chosen["model_info"]["id"]]

    def _request(self, name: str) -> dict[str, Any]:
        """What its callbacks are told of a call."""
        return {
            "stream": True,
            "call_type": "acompletion",
            "metadata": {"model_group": GROUP, "deployment": f"openai/{name}"},
            "litellm_params": {
                "metadata": {"model_group": GROUP, "deployment": f"openai/{name}"},
                "model_info": {"id": name},
            },
            "standard_logging_object": {
                "model_group": GROUP,
                "model_id": name,
                "total_tokens": 0,
                "hidden_params": {"litellm_model_name": f"openai/{name}"},
            },
        }

    def _loggers(self) -> list[Any]:
        return [
            logger
            for logger in (
                getattr(self._router, name, None)
                for name in ("lowestlatency_logger", "lowestcost_logger", "lowesttpm_logger_v2", "leastbusy_logger")
            )
            if logger is not None
        ]

    def started(self, name: str, now: float) -> None:
        """An attempt begins."""
        self._at(now)
        for logger in self._loggers():
            if hasattr(logger, "async_pre_call_check"):
                deployment = next(d for d in self._router.model_list if d["model_info"]["id"] == name)
                self._loop.run_until_complete(logger.async_pre_call_check(deployment, None))
            logger.log_pre_api_call(f"openai/{name}", [], self._request(name))

    def ended(self, name: str, arrival: Arrival, started: float, begun: float, now: float) -> None:
        """An answer is complete."""
        ends = self._at(now)
        request = self._request(name)
        request["completion_start_time"] = EPOCH + dt.timedelta(seconds=begun)
        request["standard_logging_object"]["total_tokens"] = arrival.prompt_tokens + arrival.output_tokens
        usage = litellm.Usage(
            prompt_tokens=arrival.prompt_tokens,
            completion_tokens=arrival.output_tokens,
            total_tokens=arrival.prompt_tokens + arrival.output_tokens,
        )
        answer = litellm.ModelResponse(usage=usage)
        starts = EPOCH + dt.timedelta(seconds=started)
        for logger in self._loggers():
            self._loop.run_until_complete(logger.async_log_success_event(request, answer, starts, ends))
        self._loop.run_until_complete(self._router.deployment_callback_on_success(request, answer, starts, ends))

    def failed(self, name: str, status: int, started: float, now: float) -> None:
        """An attempt failed."""
        ends = self._at(now)
        kind = litellm.RateLimitError if status == 429 else litellm.ServiceUnavailableError  # noqa: PLR2004
        request = self._request(name)
        request["exception"] = kind(message="out", llm_provider="openai", model=name)
        starts = EPOCH + dt.timedelta(seconds=started)

        async def tell() -> None:
            for logger in self._loggers():
                await logger.async_log_failure_event(request, None, starts, ends)
            self._router.deployment_callback_on_failure(request, None, starts, ends)  # cools the deployment down
            await self._router.async_deployment_callback_on_failure(request, None, starts, ends)

        self._loop.run_until_complete(tell())


def main() -> None:
    """One run."""
    with open(sys.argv[1], "rb") as file:  # noqa: PTH123
        world = msgspec.json.decode(file.read(), type=World)
    logging.disable(logging.CRITICAL)
    litellm.suppress_debug_info = True
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with time_machine.travel(EPOCH, tick=False) as traveller:
        results = simulate(world, int(sys.argv[3]), lambda upstreams: LiteLLM(upstreams, sys.argv[2], traveller, loop))
    sys.stdout.buffer.write(msgspec.msgpack.encode(results))


if __name__ == "__main__":
    main()
