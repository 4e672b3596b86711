"""The same policies over real sockets and in the simulation: does what is simulated come true?

    python -m bench.routing_sockets --output bench/results/routing_sockets.json --plot docs/img/routing-sockets.svg

Some minutes of a seeded world in real time, nothing compressed, so that every half-life, breaker and pause of Relay is
as in service. For each policy one `relay serve` process; in this process the paced upstreams, whose fate for each
request is the simulation's own (`Upstreams.ask`), and the clients, who send the simulation's arrivals at their times.
So both sides meet the same requests, and differ by what only sockets have: the relay's work, the kernel, timers, and
the draws of each relay's own chance. The simulation is therefore run with several seeds of that chance.

An answer comes as few events, because only the times of its first output and of its end are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import ExitStack, suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from bench.processes import ProcessTree
from bench.programs import CACHE
from bench.servers import REPOSITORY, free_port
from bench.wire import read_request
from relay.policy.load import load
from relay.simulate import Arrival, Place, Relay, Result, Upstreams, Weather, World, arrivals, figures, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

WORLD = World(
    seconds=200.0,
    per_s=10.0,
    places=(
        Place("mini", (536, 844, 4461), 80, (0.15, 0.60)),
        Place("mini-eu", (520, 900, 3000), 75, (0.165, 0.66), errors=0.01),
        Place("haiku", (541, 1591, 4117), 110, (1.0, 5.0)),
        Place("quick", (280, 600, 1500), 180, (1.5, 7.5)),
        Place("slow", (900, 2500, 5000), 40, (0.12, 0.48)),
    ),
    weather=(
        Weather("mini", "slow", 60.0, 110.0, 6.0),
        Weather("mini-eu", "outage", 130.0, 155.0, 0.1),
    ),
)
"""Three minutes and a bit: a minute as usual, one of two equals degraded, the other one out, and fair weather again."""

ROUTES = {
    "as written": 'candidates = ["haiku", "mini", "mini-eu", "quick", "slow"]',
    "by latency": "objective = { latency = 1 }",
    "by cost": "objective = { cost = 1 }",
    "balanced": "objective = { latency = 0.6, cost = 0.4 }",
    "balanced, hedged": 'objective = { latency = 0.6, cost = 0.4 }\nhedge = { after = "p90", max_extra_cost = 0.10 }',
}
"""By name of the policy: what its one route says, all places being its candidates."""

SEEDS = 20
"""Simulations of each policy: what is left to chance differs, the requests do not."""

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_LIFE_S = 5.0
"""An answer says something at least this often, or Relay would take it for stalled."""

_PATIENCE_S = 300.0
"""Of a client; the longest answer of the slowest place takes two minutes."""


def policy(name: str, port: int) -> str:
    """The policy of that name, as a file, with its upstreams at that port."""
    lines = ["version = 1", "access = { open = true }"]
    for place in WORLD.places:
        usd_in, usd_out = place.price
        lines += [
            f'[providers.{place.name}]\ndialect = "openai"',
            f'base_url = "http://127.0.0.1:{port}/{_folder(name)}/{place.name}"',
            f'[models.{place.name}]\nprovider = "{place.name}"',
            f"price = {{ input = {usd_in}, output = {usd_out} }}",
            f"expected = {{ ttft_ms = {place.ttft_ms[0]}, tokens_per_s = {place.tokens_per_s} }}",
        ]
    said = ROUTES[name]
    if "candidates" not in said:
        said += f"\ncandidates = {json.dumps([place.name for place in WORLD.places])}"
    return "\n".join([*lines, '[[routes]]\nname = "auto"\nattempts = 3', said, ""])


def _folder(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


# --- the simulation ---


def simulated(name: str, seed: int) -> list[list[Result]]:
    """One run for each seed of chance, all of the same requests."""
    route = next(route for route in load({"policy.toml": policy(name, 1)}, {}).routes if route.name == "auto")
    return [simulate(WORLD, seed, partial(Relay, route, seed=chance)) for chance in range(SEEDS)]


# --- real sockets ---


class PacedUpstreams:
    """All places of all policies behind one port: `/POLICY/PLACE/chat/completions`.

    Args:
        seed: of the requests, which name their number as their `user`.

    Attributes:
        places: what comes of an attempt.
        asked: by policy and request, the places that would have answered it.
    """

    def __init__(self, seed: int) -> None:
        self.places = Upstreams(WORLD)
        self.asked: dict[tuple[str, int], list[str]] = {}
        self._arrivals = list(arrivals(WORLD, seed))
        self._epoch = 0.0

    def begin(self) -> None:
        """The world's time begins now."""
        self._epoch = asyncio.get_running_loop().time()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its other end closes it or the run is over."""
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                target, request = await read_request(reader)
                _, name, place, *_ = target.split("/")
                await self._answer(writer, name, place, self._arrivals[int(request["user"])])
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, name: str, place: str, arrival: Arrival) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        fate = self.places.ask(place, arrival, now - self._epoch)
        if fate.status:
            await asyncio.sleep(fate.after_s)
            body = b'{"error": {"message": "out", "type": "server_error", "code": null}}'
            writer.write(
                b"HTTP/1.1 %d Out\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (fate.status, len(body), body)
            )
            return
        self.asked.setdefault((name, arrival.number), []).append(place)
        await asyncio.sleep(fate.after_s)
        if writer.is_closing():
            return  # another one was faster
        over_at = now + fate.after_s + arrival.output_tokens * fate.token_s
        _send(writer, _HEAD, {"delta": {"role": "assistant", "content": "a"}, "finish_reason": None})
        while (left_s := over_at - loop.time()) > 0.0:
            await asyncio.sleep(min(left_s, _LIFE_S))
            _send(writer, b"", {"delta": {"content": "a"}, "finish_reason": None})
        tokens = {"prompt_tokens": arrival.prompt_tokens, "completion_tokens": arrival.output_tokens}
        _send(
            writer, b"", {"delta": {}, "finish_reason": "stop"}, usage={**tokens, "total_tokens": sum(tokens.values())}
        )
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
        await writer.drain()


def _send(writer: asyncio.StreamWriter, head: bytes, choice: dict[str, object], **more: object) -> None:
    shown = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    event = b"data: " + json.dumps({**shown, "choices": [{"index": 0, **choice}], **more}).encode() + b"\n\n"
    writer.write(b"%b%x\r\n%b\r\n" % (head, len(event), event))


async def asked(port: int, arrival: Arrival, due_at: float) -> Result:
    """One client: a request at its time, and how it went."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(due_at - loop.time())
    text = f"{arrival.number} " + "word " * (4 * arrival.prompt_tokens // 5)
    body = json.dumps(
        {
            "model": "auto",
            "stream": True,
            "user": str(arrival.number),
            "messages": [{"role": "user", "content": text}],
        }
    ).encode()
    result = Result(arrival.at)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        async with asyncio.timeout(_PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            result.attempts = int(fields.get(b"x-relay-attempts", b"0"))
            if head.startswith(b"HTTP/1.1 200"):
                await reader.readuntil(b"\n\n")
                result.ttft_s = loop.time() - due_at
                rest = await reader.read()
                result.latency_s = loop.time() - due_at
                result.place = fields[b"x-relay-model"].decode() if b"[DONE]" in rest else ""
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        result.place = ""
    finally:
        writer.close()
    return result


async def over_sockets(seed: int) -> dict[str, list[Result]]:
    """All policies at the same time, each through a Relay of its own."""
    upstreams = PacedUpstreams(seed)
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(upstreams.serve, "127.0.0.1", 0)
    upstream_port = server.sockets[0].getsockname()[1]
    ports = {}
    with ExitStack() as stack:
        for name in ROUTES:
            ports[name] = await asyncio.to_thread(_start, stack, name, upstream_port)
        upstreams.begin()
        begins = loop.time()
        told = {
            name: asyncio.gather(*(asked(port, arrival, begins + arrival.at) for arrival in arrivals(WORLD, seed)))
            for name, port in ports.items()
        }
        results = {name: list(await clients) for name, clients in told.items()}
    server.close()
    prices = upstreams.places.prices
    for name, of_name in results.items():
        for arrival, result in zip(arrivals(WORLD, seed), of_name, strict=True):
            places = upstreams.asked.get((_folder(name), arrival.number), [])
            if result.place:
                result.usd = prices[result.place].of(arrival.prompt_tokens, arrival.output_tokens)
            losers = [place for place in places if place != result.place]
            result.twice_usd = sum(prices[place].of(arrival.prompt_tokens, 0) for place in losers)
    return results


def _start(stack: ExitStack, name: str, upstream_port: int) -> int:
    """A Relay with that policy, until the stack is left. Returns its port."""
    folder = CACHE / "run" / "routing" / _folder(name)
    (folder / "policy").mkdir(parents=True, exist_ok=True)
    (folder / "policy" / "policy.toml").write_text(policy(name, upstream_port))
    port = free_port()
    command = [sys.executable, "-m", "relay", "serve", "--policy", str(folder / "policy"), "--port", str(port)]
    process = ProcessTree(
        [*command, "--log-level", "warning"],
        cpu=len(ROUTES) % 2,
        log=folder / "output.log",
        env={"PYTHONPATH": str(REPOSITORY)},
    )
    stack.callback(process.stop)
    process.wait_until_ready(f"http://127.0.0.1:{port}/readyz")
    return port


# --- beside each other ---


class Compared(msgspec.Struct):
    """One policy on both sides.

    Attributes:
        policy: its name.
        sockets: figures over sockets.
        simulation: the median of each figure over the simulation's seeds.
        low: the least.
        high: the largest.
    """

    policy: str
    sockets: dict[str, float]
    simulation: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def compare(name: str, real: Sequence[Result], runs: Sequence[Sequence[Result]]) -> Compared:
    """Put the two beside each other."""
    told = [figures(run) for run in runs]
    low, middle, high = ({key: pick(run[key] for run in told) for key in told[0]} for pick in (min, median, max))
    return Compared(name, figures(real), middle, low, high)


_SHOWN = ("ttft_p50_ms", "ttft_p95_ms", "ttft_p99_ms", "usd_per_1000")


def table(compared: Sequence[Compared]) -> str:
    """Markdown: sockets, and in brackets what the simulation said."""
    lines = [
        "| policy | TTFT p50 ms | p95 | p99 | USD per 1,000 | failed | duplicate spend |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in compared:
        cells = [
            f"{row.sockets[key]:{shape}} ({row.simulation[key]:{shape}})"
            for key, shape in zip(
                (*_SHOWN, "failures", "duplicate_spend"), (*[".0f"] * 3, ".3f", ".0f", ".1%"), strict=True
            )
        ]
        lines.append(f"| {row.policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(compared: Sequence[Compared]) -> dict[str, str]:
    """Whether the simulation came true: how far it was off at most, and whether the policies stand in the same order.

    Two policies whose simulations overlap, over the seeds of chance, have no order.
    """
    found = {}
    for key in _SHOWN:
        off = max(abs(row.sockets[key] / row.simulation[key] - 1.0) for row in compared)
        apart = [(a, b) for a, b in permutations(compared, 2) if a.high[key] < b.low[key]]
        same = sum(a.sockets[key] < b.sockets[key] for a, b in apart)
        found[key] = f"{off:.1%} off at most; {same} of {len(apart)} pairs that differ are in the same order"
    return found


def picture(compared: Sequence[Compared]) -> str:
    """SVG: for each policy p50, p95 and p99 as simulated (range over seeds) and over sockets (dot)."""
    width, row, left, top = 760, 58, 150, 34
    height = top + row * len(compared) + 34
    worst = max(max(r.high["ttft_p99_ms"], r.sockets["ttft_p99_ms"]) for r in compared) * 1.05

    def x(ms: float) -> float:
        return left + (width - left - 30) * ms / worst

    parts = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-size='12' "
            "font-family='system-ui, sans-serif' fill='#7d8590'>"
        ),
        f"<text x='{left}' y='18'>TTFT p50, p95, p99: bars as simulated, {SEEDS} seeds; dots over real sockets</text>",
    ]
    for n, found in enumerate(compared):
        y = top + n * row
        parts.append(f"<text x='{left - 12}' y='{y + 28}' text-anchor='end'>{found.policy}</text>")
        for place, key in enumerate(_SHOWN[:3]):
            at = y + 12 + 12 * place
            low, high = x(found.low[key]), x(found.high[key])
            parts += [
                f"<rect x='{low:.1f}' y='{at - 3}' width='{max(high - low, 2):.1f}' height='6' fill='#8fa3bf'/>",
                f"<circle cx='{x(found.sockets[key]):.1f}' cy='{at}' r='4' fill='#e0672d'/>",
            ]
    step = 1000 if worst > 2500 else 500  # noqa: PLR2004
    for ms in range(0, int(worst), step):
        parts.append(f"<text x='{x(ms):.0f}' y='{height - 10}' text-anchor='middle'>{ms} ms</text>")
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Run both sides, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--plot", type=Path, help="where the picture goes, as SVG")
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    arguments = parser.parse_args()
    real = asyncio.run(over_sockets(arguments.seed))
    compared = [compare(name, real[name], simulated(name, arguments.seed)) for name in ROUTES]
    found = verdicts(compared)
    print(table(compared), "\n")
    for key, words in found.items():
        print(f"{key}: {words}")
    for path, text in (
        (arguments.plot, picture(compared)),
        (
            arguments.output,
            json.dumps(
                {
                    "world": msgspec.to_builtins(WORLD),
                    "seed": arguments.seed,
                    "policies": msgspec.to_builtins(compared),
                    "verdicts": found,
                },
                indent=2,
            )
            + "\n",
        ),
    ):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
