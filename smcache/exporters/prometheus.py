"""Metrics for Prometheus: ``REGISTRY.register(CacheCollector({"app": cache}))``.

Names, units and types follow prometheus.io/docs/practices/naming and /docs/instrumenting/writing_exporters. All counts
of ``MetricsSnapshot`` are there as ``smcache_..._total``, with the label ``cache``; ``smcache_api_calls_total`` by
``operation``, ``smcache_api_errors_total`` by ``code``, ``smcache_answers_total`` by ``region``; besides them the
histogram ``smcache_api_call_duration_seconds`` and the gauges ``smcache_cached_values`` and ``smcache_stale_values``.

In the multiprocess mode of prometheus_client custom collectors are left out: there each process needs an endpoint of
its own.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING

from smcache.errors import MissingExtra
from smcache.exporters._counts import COUNTS, by_version, check_caches
from smcache.metrics import LATENCY_BOUNDS

try:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra("smcache.exporters.prometheus", "prometheus") from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client.metrics_core import Metric

    from smcache.exporters._counts import Cache
    from smcache.metrics import CostModel

__all__ = ["CacheCollector"]

BY_PART = (
    ("calls_by_operation", "smcache_api_calls", "operation", "Requests sent to Secrets Manager, retries included."),
    ("errors_by_code", "smcache_api_errors", "code", "Requests that failed, throttled ones included."),
    ("answers_by_region", "smcache_answers", "region", "Answers by region, if the cache was given regions."),
)
SECRET = ["cache", "secret_id", "stage", "version_id"]


class CacheCollector(Collector):
    """A collector of everything that some caches count; each scrape reads their counts, and nothing else does.

    Args:
        caches: The caches by the name that tells them apart: the label ``cache``. It is read at each scrape, so
            caches may be added to it later. One registry takes one collector.
        secret_names: Whether to export figures of each secret too, with its id, stage and version as labels:
            ``smcache_secret_hits_total`` (a version is named only where it was pinned, which leaves the stage empty:
            hits go on through rotations), ``smcache_secret_stale``, ``smcache_secret_confirmed_timestamp_seconds``
            (when AWS last gave or confirmed it) and ``smcache_secret_rotated_timestamp_seconds`` (when this cache saw
            it rotate).
        prices: What the requests are charged at; AWS's list prices by default.

    Raises:
        InvalidArgument: They are no mapping of names to caches.
    """

    def __init__(
        self, caches: Mapping[str, Cache], *, secret_names: bool = False, prices: CostModel | None = None
    ) -> None:
        check_caches(caches)
        self._caches = caches
        self._secret_names = secret_names
        self._prices = prices

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now."""
        caches = list(self._caches.items())
        yield from self._counts(caches)
        yield from self._values(caches)
        if self._secret_names:
            yield from self._secrets(caches)

    def _counts(self, caches: list[tuple[str, Cache]]) -> Iterable[Metric]:
        snapshots = [(name, cache.metrics.snapshot(self._prices)) for name, cache in caches]
        for count in COUNTS:
            total = CounterMetricFamily(f"smcache_{count.field}", count.meaning, labels=["cache"])
            for name, snapshot in snapshots:
                total.add_metric([name], getattr(snapshot, count.field))
            yield total
        for field, metric, label, meaning in BY_PART:
            total = CounterMetricFamily(metric, meaning, labels=["cache", label])
            for name, snapshot in snapshots:
                for part, value in getattr(snapshot, field).items():
                    total.add_metric([name, part], value)
            yield total
        duration = HistogramMetricFamily(
            "smcache_api_call_duration_seconds",
            "How long calls of Secrets Manager took, hidden retries of the client included.",
            labels=["cache"],
        )
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        for name, snapshot in snapshots:
            buckets = list(zip(bounds, accumulate(snapshot.latency_buckets), strict=True))
            duration.add_metric([name], buckets, snapshot.latency_seconds)
        yield duration

    def _values(self, caches: list[tuple[str, Cache]]) -> Iterable[Metric]:
        cached = GaugeMetricFamily("smcache_cached_values", "Values in the cache.", labels=["cache"])
        stale = GaugeMetricFamily(
            "smcache_stale_values", "Values past their TTL, served because AWS is unavailable.", labels=["cache"]
        )
        for name, cache in caches:
            values = cache.metrics.secrets()
            cached.add_metric([name], len(values))
            stale.add_metric([name], sum(value.is_stale for value in values))
        yield from (cached, stale)

    def _secrets(self, caches: list[tuple[str, Cache]]) -> Iterable[Metric]:
        hits = CounterMetricFamily("smcache_secret_hits", "Reads answered by a fresh value.", labels=SECRET)
        stale = GaugeMetricFamily(
            "smcache_secret_stale", "1 if the value is past its TTL, served because AWS is unavailable.", labels=SECRET
        )
        confirmed = GaugeMetricFamily(
            "smcache_secret_confirmed_timestamp_seconds", "When AWS last gave or confirmed the value.", labels=SECRET
        )
        rotated = GaugeMetricFamily(
            "smcache_secret_rotated_timestamp_seconds", "When this cache saw the secret rotate.", labels=SECRET
        )
        now = time.time()  # Prometheus wants the moment, not the time since
        for name, cache in caches:
            for key, figures in by_version(cache).items():
                secret_id, stage, version_id = key
                hits.add_metric([name, secret_id, stage, "" if stage else version_id], figures.hits)
                labels = [name, *key]
                stale.add_metric(labels, figures.is_stale)
                confirmed.add_metric(labels, now - figures.age_seconds)
                if figures.rotated_seconds_ago is not None:
                    rotated.add_metric(labels, now - figures.rotated_seconds_ago)
        yield from (hits, stale, confirmed, rotated)
