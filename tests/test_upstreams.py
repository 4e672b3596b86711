import pytest

from relay.errors import ConnectFailed, UpstreamRefused
from relay.policy.compiled import Breaker
from relay.upstreams import MAX_LEFT_ALONE_S, Upstream

LIMITS = Breaker(failures=2, open_s=10.0)


def failed(upstream: Upstream, *, now: float, error=None, probe: bool = False) -> None:
    upstream.fail(error or ConnectFailed("refused"), now, LIMITS, probe=probe)


def refused(status: int, retry_after_s: float | None = None) -> UpstreamRefused:
    return UpstreamRefused("no", upstream_status=status, retry_after_s=retry_after_s)


def test_failures_in_a_row_open_the_breaker_and_one_probe_closes_it():
    """Two failures leave it alone for ten seconds; then one request is let through and decides."""
    upstream = Upstream()
    failed(upstream, now=0)
    assert upstream.unavailable(0) is None
    failed(upstream, now=1)
    assert upstream.unavailable(1) == "breaker_open"
    assert upstream.free_in_s(4) == 7
    assert upstream.unavailable(11) is None
    assert upstream.start()
    assert upstream.unavailable(11) == "breaker_open"
    upstream.succeed(probe=True)
    assert upstream.unavailable(11) is None
    assert not upstream.start()


def test_a_probe_that_was_given_up_leaves_its_place():
    """If the probing request is dropped, the next one may probe."""
    upstream = Upstream()
    failed(upstream, now=0)
    failed(upstream, now=0)
    upstream.start()
    upstream.give_up(probe=True)
    assert upstream.unavailable(11) is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_the_clients_fault_shows_that_the_upstream_is_well(status):
    """A bad request does not count against the upstream, and ends a row of failures."""
    upstream = Upstream()
    failed(upstream, now=0)
    failed(upstream, now=0, error=refused(status))
    failed(upstream, now=0)
    assert upstream.unavailable(0) is None


def test_too_many_requests_is_no_outage():
    """A 429 never opens the breaker; its Retry-After keeps requests away for that long, up to a minute."""
    upstream = Upstream()
    for _ in range(5):
        failed(upstream, now=0, error=refused(429))
    assert upstream.unavailable(0) is None
    failed(upstream, now=0, error=refused(429, retry_after_s=7))
    assert upstream.unavailable(6.9) == "retry_after"
    assert upstream.unavailable(7) is None
    failed(upstream, now=10, error=refused(429, retry_after_s=9999))
    assert upstream.free_in_s(10) == MAX_LEFT_ALONE_S


def test_speed_is_learned():
    """TTFT and tokens per second behind the first token can be asked for as quantiles."""
    upstream = Upstream()
    for _ in range(10):
        upstream.observe(ttft_s=0.5, tokens=101, output_s=2.0, now=1.0)
    assert upstream.ttft_s.quantile(0.5) == pytest.approx(0.5, rel=0.02)
    assert upstream.tokens_per_s.quantile(0.5) == pytest.approx(50, rel=0.02)
    upstream.observe(ttft_s=0.5, tokens=0, output_s=0.0, now=1.0)
    assert upstream.tokens_per_s.quantile(0.5) == pytest.approx(50, rel=0.02)
