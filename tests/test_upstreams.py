import msgspec
import pytest

from relay.errors import ConnectFailed, UpstreamRefused
from relay.limits.hedging import Ledger
from relay.limits.speed import SpeedSnapshot
from relay.messages import Wants
from relay.policy.compiled import Breaker, Expectation, Hedge, Price
from relay.policy.decide import Outlook
from relay.upstreams import CACHE_S, MAX_LEFT_ALONE_S, MAX_PREFIXES, Upstream, duplicate_usd

LIMITS = Breaker(failures=2, open_s=10.0)


def failed(upstream: Upstream, *, now: float, error=None, probe: bool = False) -> None:
    upstream.fail(error or ConnectFailed("refused"), now, LIMITS, probe=probe)


def refused(status: int, retry_after_s: float | None = None) -> UpstreamRefused:
    return UpstreamRefused("no", upstream_status=status, retry_after_s=retry_after_s)


def expected(upstream: Upstream, now: float = 0.0) -> Outlook:
    """What is expected of one that refuses nothing."""
    outlook = upstream.expect(1.0, now)
    assert isinstance(outlook, Outlook)
    return outlook


def test_failures_in_a_row_open_the_breaker_and_one_probe_closes_it():
    """Two failures leave it alone for ten seconds; then one request is let through and decides."""
    upstream = Upstream()
    failed(upstream, now=0)
    assert upstream.unavailable(0) is None
    failed(upstream, now=1)
    assert upstream.unavailable(1) == "breaker_open"
    assert upstream.free_in_s(4) == 7
    assert upstream.unavailable(11) is None
    assert upstream.start(11.0)
    assert upstream.unavailable(11) == "breaker_open"
    upstream.succeed(probe=True)
    assert upstream.unavailable(11) is None
    assert not upstream.start(11.0)


def test_a_probe_that_was_given_up_leaves_its_place():
    """If the probing request is dropped, the next one may probe."""
    upstream = Upstream()
    failed(upstream, now=0)
    failed(upstream, now=0)
    upstream.start(11.0)
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


def test_speed_is_learned_where_it_matters():
    """The outlook follows the speed of a watched model; of others nothing is kept."""
    watched, other = Upstream(Expectation(ttft_s=5.0, tokens_per_s=10.0), watched=True), Upstream()
    assert expected(watched).ttft_s > 5.0
    for upstream in (watched, other):
        for _ in range(20):
            upstream.begun(0.5, 1.0)
            upstream.ended(tokens=101, output_s=2.0, truncated=False, now=1.0)
    assert 0.5 < expected(watched).ttft_s < 1.0
    assert expected(watched).token_s == pytest.approx(0.02, rel=0.1)
    assert other.speed is None
    assert other.snapshot(1.0) is None


def test_whole_answers_tell_of_both_speeds():
    """An answer that was no stream took twice as long as expected: twice the TTFT, half the tokens per second."""
    upstream = Upstream(Expectation(ttft_s=1.0, tokens_per_s=100.0), watched=True)
    for now in range(30):
        upstream.whole(4.0, tokens=100, now=now)
    assert expected(upstream).token_s == pytest.approx(0.02, rel=0.05)


def test_failures_and_waits_make_the_outlook_worse():
    """An attempt that failed, an answer that broke off and streams that are overdue count before anything succeeds."""
    upstream = Upstream(watched=True)
    best = expected(upstream).ttft_s
    upstream.wasted(0.0, 3.0)
    failed = expected(upstream).ttft_s
    upstream.left(3.0, 13.0)
    left = expected(upstream).ttft_s
    upstream.ended(tokens=5, output_s=1.0, truncated=True, now=14.0)
    ended = expected(upstream).ttft_s
    for _ in range(8):
        upstream.asked(20.0)
    assert expected(upstream, 21.0).ttft_s == ended
    assert expected(upstream, 40.0).ttft_s > 20.0
    assert best < failed < left < ended


def test_a_wrong_request_says_nothing_of_a_model():
    """Streams that the upstream refused for what is in them do not count as waits."""
    upstream = Upstream(watched=True)
    before = expected(upstream)
    for _ in range(8):
        upstream.asked(1.0)
    for _ in range(8):
        upstream.refused(1.0)
    assert expected(upstream, 60.0) == before


def test_what_is_left_of_its_limits_is_counted_down():
    """What an answer said is left goes down with each request, and keeps them away until the upstream's reset."""
    upstream = Upstream()
    upstream.answered([(b"x-ratelimit-remaining-requests", b"2"), (b"x-ratelimit-reset-requests", b"30s")], 10.0)
    assert upstream.refuses(1.0, 10.0) is None
    upstream.start(10.0)
    upstream.start(10.0)
    assert upstream.refuses(1.0, 10.0) == "upstream_requests"
    assert upstream.free_in_s(10.0) == 30.0
    assert upstream.refuses(1.0, 40.0) is None


def test_requests_larger_than_the_tokens_left_stay_away():
    """Of several token limits the one that is nearest to its end counts."""
    upstream = Upstream()
    upstream.answered(
        [
            (b"anthropic-ratelimit-input-tokens-remaining", b"500"),
            (b"anthropic-ratelimit-output-tokens-remaining", b"90000"),
        ],
        10.0,
    )
    assert upstream.refuses(400.0, 10.0) is None
    assert upstream.refuses(600.0, 10.0) == "upstream_tokens"
    upstream.start(10.0, 400.0)
    assert upstream.refuses(400.0, 10.0) == "upstream_tokens"


def test_prompts_are_remembered_as_long_as_providers_do():
    """The longest known beginning counts, for five minutes; the oldest ones make room."""
    upstream = Upstream()
    upstream.remember(((b"long", 2048), (b"short", 1024)), 10.0)
    assert upstream.cached_tokens(((b"other", 4096), (b"long", 2048), (b"short", 1024)), 11.0) == 2048
    assert upstream.cached_tokens(((b"long", 2048),), 10.0 + CACHE_S) == 0
    upstream.remember(tuple((b"%d" % n, 1) for n in range(MAX_PREFIXES)), 12.0)
    assert upstream.cached_tokens(((b"short", 1024),), 12.0) == 0


def test_speed_outlives_the_process():
    """A snapshot brings a model's outlook back."""
    upstream, later = Upstream(watched=True), Upstream(watched=True)
    for now in range(20):
        upstream.begun(now - 2.0, now)
    snapshot = upstream.snapshot(20)
    assert snapshot is not None
    later.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=SpeedSnapshot))
    assert expected(later).ttft_s == pytest.approx(expected(upstream).ttft_s)


def test_what_the_policy_expects_is_not_kept():
    """A model that was never seen has no snapshot: the policy may say something else the next time."""
    assert Upstream(Expectation(ttft_s=9.0), watched=True).snapshot(1.0) is None


def test_a_speed_that_matters_to_no_route_is_kept_until_it_does():
    """A model that is not watched brings along what was known of it, for the policy that watches it again."""
    seen, later = Upstream(watched=True), Upstream()
    for now in range(20):
        seen.begun(2.0, now)
    snapshot = seen.snapshot(20)
    assert snapshot is not None
    later.restore(snapshot)
    assert later.speed is None
    assert later.snapshot(20) == snapshot
    later.watch(Expectation())
    assert expected(later).ttft_s == pytest.approx(expected(seen).ttft_s)


def test_what_being_sent_twice_may_cost():
    """A prompt at the dearer price of both, whoever is first; never where no hedge is, or the second refuses."""
    upstreams, ledger = {"dear": Upstream(), "cheap": Upstream()}, Ledger()
    prices = {"dear": Price(3.0, 3.0, 9.0), "cheap": Price(1.0, 1.0, 1.0)}
    ledger.spend(1000.0, 0.0, twice=False)

    def usd(first: str, second: str, *, hedges: bool = True) -> float | None:
        hedge, wants = Hedge(0.95, 0.05) if hedges else None, Wants(prompt_tokens=10, output_tokens=50.0)
        return duplicate_usd(hedge, ledger, upstreams, prices, first, second, wants, 0.0)

    assert usd("cheap", "dear") == usd("dear", "cheap") == 30.0
    assert usd("cheap", "dear", hedges=False) is None
    upstreams["dear"].answered([(b"x-ratelimit-remaining-tokens", b"59"), (b"x-ratelimit-reset-tokens", b"9s")], 0.0)
    assert usd("cheap", "dear") is None
    assert usd("dear", "cheap") == 30.0
