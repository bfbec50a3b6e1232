"""What exporters add to a hit: nothing, since they read the counts when they are asked to, and hear of no hit.

    uv run --group test --group bench python benchmarks/exporters.py

The same read is timed in turn in two caches, one of which has all exporters, which export once a round. The figures
are the fastest of the rounds: whatever else the machine does only adds to them.
"""

from __future__ import annotations

import io
import logging
import time
from typing import TYPE_CHECKING

from hits import NAME, Source
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from sampling import in_turns, statement

from smcache import SecretCache
from smcache.exporters.emf import EmbeddedMetrics
from smcache.exporters.log import log_metrics
from smcache.exporters.opentelemetry import instrument
from smcache.exporters.prometheus import CacheCollector

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 200


def export_all(cache: SecretCache) -> Callable[[], float]:
    """Give a cache all exporters; return what has them export, and takes the seconds of that."""
    registry, reader, emf = CollectorRegistry(), InMemoryMetricReader(), EmbeddedMetrics(cache, stream=io.StringIO())
    registry.register(CacheCollector({"app": cache}, secret_names=True))
    providers = MeterProvider([reader]), TracerProvider()
    instrument({"app": cache}, meter_provider=providers[0], tracer_provider=providers[1], secret_names=True)
    logger = logging.getLogger("app")

    def export() -> float:
        start = time.perf_counter()
        generate_latest(registry)
        reader.get_metrics_data()
        emf.flush()
        log_metrics(cache.metrics.snapshot(), logger)
        return time.perf_counter() - start

    return export


def main() -> None:
    """Time a hit in both caches, and print the times beside each other."""
    with SecretCache(source=Source()) as plain, SecretCache(source=Source()) as exported:
        export = export_all(exported)
        for cache in (plain, exported):
            cache.get(NAME)
        times = in_turns(
            {
                "without exporters": statement("read(name)", read=plain.get, name=NAME),
                "with all of them": statement("read(name)", read=exported.get, name=NAME),
                "they export": export,
            },
            ROUNDS,
        )
    fastest = {name: min(taken) for name, taken in times.items()}
    for name in ("without exporters", "with all of them"):
        print(f"hit, {name:20} {fastest[name] * 1e9:6.1f} ns")
    print(f"ratio {fastest['with all of them'] / fastest['without exporters']:.3f}")
    print(f"one export by all of them takes {fastest['they export'] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
