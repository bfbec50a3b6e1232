"""Costs are those of AWS's price list, and what a cache saves is what the cache really does."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from smcache import CacheConfig, CostModel, InvalidArgument, Secret, SecretCache
from smcache.cli import main
from smcache.cost import Quotas, Workload, estimate
from smcache.sources import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Clock

DAY = 86_400

# From the price list: secrets, requests of 30 days, US dollars.
WORKED_EXAMPLES = [(50, 1_000_000, 25.00), (2, 30 * 1_000, 0.95), (20, 30 * 50_000, 15.50), (100, 30 * 500_000, 115.00)]


@pytest.mark.parametrize(("secrets", "calls", "dollars"), WORKED_EXAMPLES)
def test_a_month_costs_what_the_price_list_says(secrets: int, calls: int, dollars: float) -> None:
    assert CostModel().month(secrets=secrets, calls=calls) == pytest.approx(dollars)


@pytest.mark.parametrize(("secrets", "calls", "dollars"), WORKED_EXAMPLES[1:])
def test_without_a_cache_every_read_of_the_month_is_billed(secrets: int, calls: int, dollars: float) -> None:
    answer = estimate(Workload(secrets=secrets, calls_per_day=calls // 30))
    assert answer.without_cache.requests == calls
    assert answer.without_cache.total_usd == pytest.approx(dollars)


def test_customer_managed_keys_cost_by_the_month_and_by_the_request() -> None:
    prices = CostModel()
    assert prices.kms(keys=1, calls=0) == pytest.approx(1.00)
    assert prices.kms(keys=0, calls=10_000) == pytest.approx(0.03)
    assert prices.month(secrets=50, calls=1_000_000, kms_keys=2, kms_calls=1_000_000) == pytest.approx(25 + 2 + 3)


def test_confirming_a_version_decrypts_nothing() -> None:
    config = CacheConfig(check_version_first=True)
    answer = estimate(Workload(secrets=2, calls_per_day=10**6, processes=3, kms_keys=1, config=config))
    assert answer.with_cache.requests > 6
    assert answer.with_cache.kms_usd == answer.with_cache_at_most.kms_usd == CostModel().kms(keys=1, calls=2 * 3)
    assert answer.without_cache.kms_usd == CostModel().kms(keys=1, calls=30 * 10**6)


def test_a_cache_that_is_too_small_confirms_nothing() -> None:
    config = CacheConfig(check_version_first=True, max_size=1)
    answer = estimate(Workload(secrets=2, calls_per_day=10**6, kms_keys=1, config=config))
    assert answer.with_cache == answer.without_cache


@pytest.mark.parametrize("quota", ["get_secret_value", "describe_secret", "batch_get_secret_value"])
def test_a_quota_is_1_or_more(quota: str) -> None:
    with pytest.raises(InvalidArgument, match="1 or more"):
        Quotas(**{quota: 0})


@pytest.mark.parametrize("price", [-0.01, math.nan, math.inf, "1", None])
@pytest.mark.parametrize("name", ["per_10k_kms_calls", "per_kms_key_month"])
def test_a_price_of_kms_is_a_number_from_0(name: str, price: object) -> None:
    prices: dict[str, Any] = {name: price}
    with pytest.raises(InvalidArgument, match="0 or more"):
        CostModel(**prices)


def test_prices_and_quotas_are_parameters() -> None:
    prices = CostModel(per_10k_calls=1, per_secret_month=2, per_10k_kms_calls=3, per_kms_key_month=4)
    quotas = Quotas(get_secret_value=7, describe_secret=8, batch_get_secret_value=9)
    answer = estimate(Workload(secrets=10, calls_per_day=1_000, kms_keys=5), prices, quotas)
    month = answer.without_cache
    assert (month.secrets_usd, month.requests_usd, month.kms_usd) == pytest.approx((20, 3, 9 + 20))
    assert month.total_usd == pytest.approx(52)
    assert {peak.operation: peak.quota for peak in answer.peaks} == {
        "GetSecretValue": 7,
        "DescribeSecret": 8,
        "BatchGetSecretValue": 9,
    }


def test_keys_cost_nothing_unless_they_are_the_customers() -> None:
    assert estimate(Workload(secrets=1, calls_per_day=10**6)).without_cache.kms_usd == 0


class CountingSource:
    """Answers at once: only how often it is asked counts here."""

    def __init__(self) -> None:
        self.requests = 0

    def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        self.requests += 1
        return Answer(Secret("value", name=secret_id, version_id="v1"))

    def close(self) -> None: ...


def requests_of_a_cache(monkeypatch: pytest.MonkeyPatch, clock: Clock, gaps: Iterator[float], days: int) -> int:
    """Return how many requests a cache sends for one secret that is read after each of the gaps."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "refreshes are inline, so that none is under way at the next read")
    source, end = CountingSource(), clock.now + days * DAY
    with SecretCache(source=source, clock=clock, jitter=random.Random(1).random) as cache:  # noqa: S311 - no secret
        while clock.now < end:
            cache.get("prod/db")
            clock.advance(next(gaps))
    return source.requests


def test_a_cache_that_is_read_all_the_time_stays_below_the_bound_and_comes_near_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    sent = requests_of_a_cache(monkeypatch, clock, iter(lambda: 5.0, None), days=3)
    answer = estimate(Workload(secrets=1, calls_per_day=DAY // 5))
    assert 0.9 * answer.with_cache_at_most.requests / 10 < sent <= answer.with_cache_at_most.requests / 10 + 1
    assert sent == pytest.approx(answer.with_cache.requests / 10, rel=0.03)


@pytest.mark.parametrize(("mean_gap", "days"), [(60, 3), (345.6, 10), (3_600, 90)])
def test_a_cache_that_is_read_at_random_moments_needs_what_the_estimate_says(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, mean_gap: float, days: int
) -> None:
    generator = random.Random(7)  # noqa: S311 - no secret
    gaps = iter(lambda: generator.expovariate(1 / mean_gap), None)
    sent = requests_of_a_cache(monkeypatch, clock, gaps, days)
    answer = estimate(Workload(secrets=1, calls_per_day=round(DAY / mean_gap)))
    assert sent == pytest.approx(answer.with_cache.requests * days / 30, rel=0.05)


def test_a_cache_is_billed_at_most_once_per_process_secret_and_shortest_refresh() -> None:
    answer = estimate(Workload(secrets=20, calls_per_day=50_000_000, processes=10))
    assert answer.refresh_interval == pytest.approx(300 * 0.9 * 0.8)
    assert answer.with_cache_at_most.requests == 20 * 10 * 30 * DAY / 216
    assert answer.with_cache.requests < answer.with_cache_at_most.requests < answer.without_cache.requests


def test_the_settings_of_the_cache_count() -> None:
    config = CacheConfig(ttl=600, jitter=0, refresh_after=1)
    answer = estimate(Workload(secrets=1, calls_per_day=10**9, config=config))
    assert answer.with_cache_at_most.requests == 30 * DAY / 600


@pytest.mark.parametrize(
    "workload",
    [
        Workload(secrets=20, calls_per_day=50_000, processes=10),  # every 346 s: a read may find nothing fresh
        Workload(secrets=1000, calls_per_day=1, processes=1000),
        Workload(secrets=1, calls_per_day=10**6, config=CacheConfig(ttl=0)),
        Workload(secrets=1025, calls_per_day=10**9),  # more than a cache keeps
        Workload(secrets=1, calls_per_day=0),
    ],
)
def test_a_cache_is_never_billed_more_often_than_it_is_read(workload: Workload) -> None:
    answer = estimate(workload)
    assert answer.with_cache_at_most == answer.without_cache
    assert answer.with_cache.requests <= answer.without_cache.requests


def test_a_long_ttl_still_needs_a_first_request() -> None:
    answer = estimate(Workload(secrets=3, calls_per_day=10**6, processes=2, config=CacheConfig(ttl=10**9)))
    assert answer.with_cache.requests == answer.with_cache_at_most.requests == 6


def test_the_peak_is_all_processes_at_once_and_prefetch_divides_it_by_20() -> None:
    peaks = {peak.operation: peak for peak in estimate(Workload(secrets=41, calls_per_day=1, processes=500)).peaks}
    get, describe, batch = (peaks[name] for name in ("GetSecretValue", "DescribeSecret", "BatchGetSecretValue"))
    assert (get.per_second, get.quota, get.seconds_needed) == (20_500, 10_000, 3)
    assert (describe.per_second, describe.quota, describe.seconds_needed) == (20_500, 40_000, 1)
    assert (batch.per_second, batch.quota, batch.seconds_needed) == (1_500, 100, 15)


# --- the command ----------------------------------------------------------------------------------------------

EXAMPLE = ["cost", "--secrets", "20", "--calls-per-day", "50000", "--processes", "10", "--ttl", "300"]


def test_it_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(EXAMPLE) == 0
    printed = capsys.readouterr().out
    assert "20 secrets, read 50,000 times a day by 10 processes; TTL 300 s" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.startswith("  ")}
    assert rows["total"] == ["$15.50", "$12.52", "$15.50"]
    assert rows["GetSecretValue"][:3] == ["200", "of", "10,000/s"]
    assert rows["BatchGetSecretValue"][:3] == ["10", "of", "100/s"]
    assert "a longer TTL saves more" in printed
    assert "KMS" not in printed


def test_keys_of_the_customers_get_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXAMPLE, "--kms-keys", "1"]) == 0
    assert "KMS                    $5.50             $3.71             $5.50" in capsys.readouterr().out


def test_it_says_when_the_quota_does_not_suffice_and_when_a_cache_is_too_small(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["cost", "--secrets", "2000", "--calls-per-day", "9", "--processes", "11"]) == 0
    printed = capsys.readouterr().out
    assert "22,000 of 10,000/s (220.0 %): every process reads every secret; spread over 3 s or more" in printed
    assert "raise max_size" in printed


def test_json_has_the_whole_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*EXAMPLE, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["without_cache"]["total_usd"] == pytest.approx(15.50)
    assert printed["with_cache_at_most"]["requests"] == 1_500_000
    assert printed["with_cache"]["total_usd"] == pytest.approx(12.52, abs=0.01)
    assert printed["peaks"][0]["per_second"] == 200
    assert printed["peaks"][0]["seconds_needed"] == 1
    assert printed["workload"]["config"]["ttl"] == 300


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--secrets", "0"], "'0' is no number from 1 to"),
        (["--secrets", "many"], "'many' is no number"),
        (["--secrets", "1_0"], "'1_0' is no number"),
        (["--secrets", "9" * 5_000], "is no number"),
        (["--calls-per-day", "-1"], "'-1' is no number"),
        (["--processes", "1.5"], "'1.5' is no number"),
        (["--ttl", "-1"], "'-1' is no number of seconds"),
        (["--ttl", "nan"], "'nan' is no number of seconds"),
        (["--ttl", "inf"], "'inf' is no number of seconds"),
        (["--ttl", "soon"], "'soon' is no number of seconds"),
    ],
)
def test_wrong_arguments_are_refused(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*EXAMPLE, *wrong])
    assert said in capsys.readouterr().err


def test_more_keys_than_secrets_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--secrets", "1", "--calls-per-day", "1", "--kms-keys", "2"]) == 2
    assert capsys.readouterr().err == "smcache: 2 KMS keys: expected 0 to 1\n"


def test_a_ttl_without_end_has_no_monthly_cost() -> None:
    with pytest.raises(InvalidArgument, match="finite"):
        Workload(secrets=1, calls_per_day=1, config=CacheConfig(ttl=math.inf))
