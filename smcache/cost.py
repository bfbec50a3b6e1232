"""`smcache cost`: what a workload costs a month, without a cache and with one, and how near it comes to the quotas.

A cache asks for a secret when the value is read past its refresh point: ``ttl`` less jitter, times ``refresh_after``.
So one process asks for one secret at most once per shortest refresh point, and never more often than it reads it.
That is the upper bound, which reads at even distances can reach. Reads at random moments let it wait on average
for one more read after the mean refresh point: that is the estimate. Reads that come in bursts need fewer requests.
Both leave out what failures, rotations and restarts add.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from smcache._core import BATCH_SIZE
from smcache.config import CacheConfig
from smcache.errors import InvalidArgument
from smcache.metrics import CostModel

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Estimate", "Month", "Peak", "Quotas", "Workload", "estimate", "run"]

DAYS_PER_MONTH = 30
SECONDS_PER_DAY = 86_400
LARGEST = 10**12  # of every number of a workload: beyond, it is a slip of the finger


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is read, and by how many.

    Attributes:
        secrets: How many secrets there are; every process reads all of them equally often.
        calls_per_day: How often they are read, all secrets and all processes together.
        processes: How many processes read them, each with a cache of its own.
        kms_keys: How many customer-managed keys encrypt them; 0 for the AWS-managed key, which is free.
        config: The settings of the caches.

    Raises:
        InvalidArgument: A number is out of its range, or the TTL is infinite.
    """

    secrets: int
    calls_per_day: int
    processes: int = 1
    kms_keys: int = 0
    config: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("secrets", self.secrets, 1, LARGEST),
            ("calls per day", self.calls_per_day, 0, LARGEST),
            ("processes", self.processes, 1, LARGEST),
            ("KMS keys", self.kms_keys, 0, self.secrets),
        ):
            if not least <= value <= most:
                raise InvalidArgument(f"{value} {name}: expected {least} to {most}")
        if not math.isfinite(self.config.ttl):
            raise InvalidArgument(f"a TTL of {self.config.ttl} seconds: expected a finite one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quotas:
    """Requests a second that AWS takes per account and Region.

    Raises:
        InvalidArgument: One is less than 1.

    Source: docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html, and the increase of 2025-03-04
    (aws.amazon.com/about-aws/whats-new/2025/03).
    """

    get_secret_value: int = 10_000
    describe_secret: int = 40_000
    batch_get_secret_value: int = 100

    def __post_init__(self) -> None:
        if not min(self.get_secret_value, self.describe_secret, self.batch_get_secret_value) >= 1:
            raise InvalidArgument(f"{self!r}: quotas are 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Month:
    """What a month of 30 days costs, in US dollars.

    Attributes:
        requests: Requests sent to Secrets Manager.
        secrets_usd: The price of having the secrets.
        requests_usd: The price of the requests.
        kms_usd: The price of customer-managed keys and of a Decrypt for each value that is fetched.
        total_usd: All of it.
    """

    requests: int
    secrets_usd: float
    requests_usd: float
    kms_usd: float
    total_usd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The most requests within one second: when all processes start, or all their values expire, at once.

    Attributes:
        operation: What is asked.
        occasion: When it comes to that.
        per_second: Requests within that second.
        quota: How many AWS takes; more are throttled.
    """

    operation: str
    occasion: str
    per_second: int
    quota: int

    @property
    def seconds_needed(self) -> int:
        """Over how many seconds they must be spread to stay within the quota."""
        return max(1, math.ceil(self.per_second / self.quota))


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The answer; see the module for what bound and estimate mean.

    Attributes:
        workload: The question.
        without_cache: Every read is a request.
        with_cache: An estimate, for reads at random moments.
        with_cache_at_most: The upper bound, whenever the reads come.
        read_interval: Seconds between two reads of one secret by one process, on average; None without reads.
        refresh_interval: The shortest time, in seconds, between two requests of one process for one secret.
        peaks: The most requests within one second, by operation.
    """

    workload: Workload
    without_cache: Month
    with_cache: Month
    with_cache_at_most: Month
    read_interval: float | None
    refresh_interval: float
    peaks: tuple[Peak, ...]


def estimate(workload: Workload, prices: CostModel | None = None, quotas: Quotas | None = None) -> Estimate:
    """Return what a workload costs, by AWS's list prices and quotas unless others are given."""
    prices, quotas, config = prices or CostModel(), quotas or Quotas(), workload.config
    seconds = DAYS_PER_MONTH * SECONDS_PER_DAY
    reads = DAYS_PER_MONTH * workload.calls_per_day
    pairs = workload.secrets * workload.processes
    read_interval = seconds * pairs / reads if reads else None
    soonest = config.ttl * (1 - config.jitter) * config.refresh_after
    usual = config.ttl * (1 - config.jitter / 2) * config.refresh_after
    if read_interval is None or workload.secrets > config.max_size or not soonest:
        bound = guess = float(reads)  # a table too small may lack every value that is asked for
    else:
        # Each process needs a first request for each secret it reads.
        bound = min(reads, pairs * max(1.0, seconds / soonest))
        guess = min(bound, pairs * max(1.0, seconds / (usual + read_interval)))
    # Once a process has a value, DescribeSecret confirms it, which decrypts nothing.
    confirms = config.check_version_first and workload.secrets <= config.max_size
    fetches = pairs if confirms else reads
    return Estimate(
        workload=workload,
        without_cache=_month(workload, reads, reads, prices),
        with_cache=_month(workload, round(guess), fetches, prices),
        with_cache_at_most=_month(workload, round(bound), fetches, prices),
        read_interval=read_interval,
        refresh_interval=soonest,
        peaks=(
            Peak(
                operation="GetSecretValue",
                occasion="every process reads every secret",
                per_second=pairs,
                quota=quotas.get_secret_value,
            ),
            Peak(
                operation="BatchGetSecretValue",
                occasion="the same with prefetch()",
                per_second=workload.processes * math.ceil(workload.secrets / BATCH_SIZE),
                quota=quotas.batch_get_secret_value,
            ),
            Peak(
                operation="DescribeSecret",
                occasion="every value has expired, with check_version_first",
                per_second=pairs,
                quota=quotas.describe_secret,
            ),
        ),
    )


def _month(workload: Workload, requests: int, fetches: int, prices: CostModel) -> Month:
    # Secrets Manager decrypts the data key of each value it gives out. Source:
    # docs.aws.amazon.com/secretsmanager/latest/userguide/security-encryption.html
    kms_calls = min(requests, fetches) if workload.kms_keys else 0
    return Month(
        requests=requests,
        secrets_usd=workload.secrets * prices.per_secret_month,
        requests_usd=prices.calls(requests),
        kms_usd=prices.kms(keys=workload.kms_keys, calls=kms_calls),
        total_usd=prices.month(
            secrets=workload.secrets, calls=requests, kms_keys=workload.kms_keys, kms_calls=kms_calls
        ),
    )


def run(workload: Workload, *, as_json: bool) -> int:
    """Print the estimate as a table or as one JSON object; return 0."""
    answer = estimate(workload)
    if as_json:
        peaks = [{**asdict(peak), "seconds_needed": peak.seconds_needed} for peak in answer.peaks]
        sys.stdout.write(json.dumps({**asdict(answer), "peaks": peaks}, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(answer)) + "\n")
    return 0


def _lines(answer: Estimate) -> Iterable[str]:
    workload, config = answer.workload, answer.workload.config
    months = (answer.without_cache, answer.with_cache, answer.with_cache_at_most)
    yield (
        f"{_count(workload.secrets, 'secret')}, read {workload.calls_per_day:,} times a day by "
        f"{_count(workload.processes, 'process', 'processes')}; TTL {config.ttl:g} s; a month of {DAYS_PER_MONTH} days"
    )
    yield ""
    yield _row("", "no cache", "smcache, about", "smcache, at most")
    yield _row("requests", *(f"{month.requests:,}" for month in months))
    yield _row("secrets", *(_dollars(month.secrets_usd) for month in months))
    yield _row("API", *(_dollars(month.requests_usd) for month in months))
    if workload.kms_keys:
        yield _row("KMS", *(_dollars(month.kms_usd) for month in months))
    yield _row("total", *(_dollars(month.total_usd) for month in months))
    yield ""
    yield "about: reads at random moments. At most: whenever they come, while AWS answers every request."
    yield from _advice(answer)
    yield ""
    yield "The most requests at once, should all processes start, or their values expire, in the same second:"
    for peak in answer.peaks:
        share = 100 * peak.per_second / peak.quota
        yield (
            f"  {peak.operation:<19} {peak.per_second:>9,} of {peak.quota:,}/s ({share:.1f} %): {peak.occasion}"
            + (f"; spread over {peak.seconds_needed:,} s or more" if peak.per_second > peak.quota else "")
        )


def _advice(answer: Estimate) -> Iterable[str]:
    workload, config = answer.workload, answer.workload.config
    if workload.secrets > config.max_size:
        yield f"A cache keeps max_size={config.max_size} values, so every read may be a request: raise max_size."
    elif answer.read_interval is not None and answer.read_interval > answer.refresh_interval:
        yield (
            f"A process reads a secret every {answer.read_interval:,.0f} s and asks again after "
            f"{answer.refresh_interval:,.0f} s at the soonest: a longer TTL saves more."
        )


def _row(name: str, *cells: str) -> str:
    return f"  {name:<10}" + "".join(f"{cell:>18}" for cell in cells)


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}"
