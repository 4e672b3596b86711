"""From samples to figures, targets, files and plots."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import pages, plots, report, run
from bench.capacity import Capacity
from bench.figures import FIGURES, SCENARIOS, Sample
from bench.interpreter import Interpreter
from bench.memory import ManyStreams, SlowReader
from bench.peers import PEERS
from bench.programs import LoadReport, Percentiles
from bench.servers import SERVERS

PYTHON = Interpreter("3.14.0", "CPython", "main", "GCC", pgo=True, distribution="Debian", path="/usr/bin/python3")


def sample(cpu_us, ttft_us=0.0):
    """A sample whose every other value does not matter."""
    times = Percentiles(ttft_us, ttft_us, ttft_us, ttft_us, ttft_us, ttft_us)
    load = LoadReport(100, 0, {}, 0, 1.0, 100.0, 100, times, times, 0, 0.0)
    return Sample(cpu_us=cpu_us, busy=0.5, upstream_connections=0, load=load)


def results(rounds):
    """Results of these rounds: server -> (CPU µs, TTFT µs), the same for each scenario but for its chunks."""
    found = report.Results(report.context_of(PYTHON, len(rounds), "2026-01-01T00:00:00+00:00"))
    for servers in rounds:
        found.rounds.append(
            {
                server: {
                    name: sample(cpu_us + scenario.answer.chunks, ttft_us)
                    for name, scenario in SCENARIOS.items()
                    if server != "direct" or scenario.direct
                }
                for server, (cpu_us, ttft_us) in servers.items()
            }
        )
    found.sum_up()
    return found


def test_figures_are_medians_over_the_rounds():
    """A figure is the median of its rounds, with the lowest and the highest."""
    found = results([{"nginx": (cpu, 0)} for cpu in (30, 10, 20)])
    spread = found.figures["cpu-json"]["nginx"]
    assert (spread.low, spread.median, spread.high) == (20, 30, 40)


def test_a_chunk_is_the_slope_between_two_lengths():
    """What all requests have in common is not in the cost of a chunk."""
    found = results([{"nginx": (1000, 0)}])
    assert found.median("cpu-chunk-8", "nginx") == found.median("cpu-chunk", "nginx") == 1


def test_added_time_is_against_the_direct_run_of_the_same_round():
    """TTFT figures are differences within a round; without a direct run there is none."""
    found = results([{"direct": (0, 5000), "nginx": (1, 5100)}, {"direct": (0, 9000), "nginx": (1, 9300)}])
    assert found.median("ttft-16-p50", "nginx") == 200
    assert "ttft-16-p50" not in results([{"nginx": (1, 5100)}]).figures


def test_every_figure_reads_scenarios_that_exist():
    """Names agree, and each scenario is needed by a figure."""
    assert {need for figure in FIGURES for need in figure.needs} == set(SCENARIOS)
    assert not set(SERVERS) & set(PEERS)


@pytest.mark.parametrize(("cpu_us", "verdict"), [(300, "missed"), (80, "bar"), (20, "stretch")])
def test_targets_say_what_is_reached(cpu_us, verdict):
    """A target's verdict follows from Relay's median against nginx's."""
    found = results([{"nginx": (10, 0), "relay": (cpu_us, 0)}])
    line = next(
        line for line in printed(report.targets_grid(found).for_terminal()) if "CPU per non-stream request" in line
    )
    assert line.rstrip(" │").endswith(verdict)


def test_nothing_is_no_multiple_of_less_than_nothing():
    """Where nginx seems to add less than nothing there is no ratio, and so no verdict."""
    found = results([{"direct": (0, 5000), "nginx": (1, 4900), "relay": (2, 5300)}])
    assert found.median("ttft-16-p50", "nginx") == -100
    assert not [line for line in printed(report.targets_grid(found).for_terminal()) if "16 paced" in line]


def test_peers_are_compared():
    """With peers in the run there is a line for each one that Relay must beat."""
    found = results([{"nginx": (10, 0), "relay": (50, 0), "litellm": (9000, 0), "vllm-router": (40, 0)}])
    lines = [line for line in printed(report.targets_grid(found).for_terminal()) if "below" in line]
    assert ["litellm" in line and "bar" in line for line in lines] == [True, False]
    assert "missed" in lines[1]


def full():
    """Results with something of everything, peers included."""
    servers = {name: (10 * number + 10, 100 * number) for number, name in enumerate([*SERVERS, "relay-single", *PEERS])}
    found = results([servers])
    found.streams["relay"] = [
        ManyStreams(n, 1024, n, 60_000_000, 60_000_000 + 20_000 * n, 1, 20_000) for n in (1000, 5000)
    ]
    found.slow_readers["relay"] = [SlowReader(83_000_000, right, 1_000_000, 2_000_000, 3.0) for right in (True, False)]
    found.capacity["relay"] = [Capacity(streams_per_s=700.0, trials=())]
    return found


def test_all_tables_can_be_printed():
    """Every part of the results has its line."""
    found = full()
    lines = "\n".join(line for grid in report.grids(found) for line in printed(grid.for_terminal()))
    for text in ("non-stream", "5,000", "700", "50%", "1.0 MB", "20.0 KB", "80.0 MB"):
        assert text in lines


def test_results_survive_their_file(tmp_path):
    """What is written is what is read, and the interpreter's place on this machine is not in it."""
    found = full()
    report.write(found, tmp_path / "results.json")
    assert report.read(tmp_path / "results.json") == found
    assert "/usr/bin" not in (tmp_path / "results.json").read_text()


def test_plots_are_pictures(tmp_path):
    """Each plot is well-formed SVG with a title, and shows Relay."""
    drawn = plots.draw(full(), tmp_path)
    assert {"cpu-json.svg", "growth-prompt.svg", "growth-stream.svg", "memory-streams.svg"} <= {
        path.name for path in drawn
    }
    for path in drawn:
        root = ET.parse(path).getroot()  # noqa: S314 - we wrote it
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "relay" in "".join(root.itertext())


def test_names_of_lines_that_end_together_are_apart(tmp_path):
    """Two servers with the same memory have names that can both be read."""
    found = full()
    found.streams["nginx"] = found.streams["relay"]
    plots.draw(found, tmp_path)
    texts = ET.parse(tmp_path / "memory-streams.svg").getroot().iter("{http://www.w3.org/2000/svg}text")  # noqa: S314 - we wrote it
    nginx, relay = sorted(float(text.attrib["y"]) for text in texts if text.text in {"nginx", "relay"})
    assert relay - nginx >= 13  # the size of the font


def test_the_headline_has_relay_with_and_without_its_full_policy():
    """Both lines stand out among the peers', which have their versions."""
    found = full()
    found.context.versions["litellm"] = "1.0"
    names = [row[0] for row in report.headline_grid(found).rows]
    assert {"**relay**", "**relay-single**", "litellm 1.0"} <= set(names)


def test_a_bar_without_a_stretch_is_a_bar():
    """What nobody promised is not said to be reached."""
    verdicts = {row[0]: row[-1] for row in report.targets_grid(full()).rows}
    assert verdicts["5,000 slow streams: complete"] == "bar"


@pytest.mark.parametrize("arguments", [["--only", "tpyo"], ["--servers", "nginx", "--peers"], ["--servers", "ngnix"]])
def test_what_the_bench_cannot_do_is_refused(arguments):
    """A name that nothing has, or options of which one would be ignored, end the run before it begins."""
    done = CliRunner().invoke(run.main, arguments)
    assert done.exit_code == 2
    assert "Error" in done.output


def test_pages_are_filled():
    """Blocks of a page are replaced by tables, those of other runs and all other text stay."""
    page = "a\n<!-- bench targets -->\nold\n<!-- /bench -->\nb\n<!-- bench peers -->\nold\n<!-- /bench -->\nc\n"
    alone = pages.fill(page, results([{"nginx": (10, 0), "relay": (20, 0)}]))
    assert "| CPU per non-stream request | 1.50 x nginx |" in alone
    assert alone.count("old") == 1
    with_peers = full()
    with_peers.context.versions["litellm"] = "1.0"
    both = pages.fill(alone, with_peers)
    assert "| litellm 1.0 |" in both
    assert "old" not in both
    assert [line for line in both.splitlines() if len(line) == 1] == ["a", "b", "c"]
    assert pages.fill(both, with_peers) == both


def printed(table):
    """The lines of a table."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()
