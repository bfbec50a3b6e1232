"""What exporters add to a hit: nothing, since they read the counts when they are asked to, and hear of no hit."""

from __future__ import annotations

import io
import logging
import time
from typing import TYPE_CHECKING

from hits import Source, warm
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from report import Case, Goal, ratios
from sampling import in_turns

from smcache import SecretCache
from smcache.exporters.emf import EmbeddedMetrics
from smcache.exporters.log import log_metrics
from smcache.exporters.opentelemetry import instrument
from smcache.exporters.prometheus import CacheCollector

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = "smcache get"
EXPORTED = "smcache get, with all exporters"


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


def attached(*, quick: bool) -> Case:
    """Compare a hit in a cache that has all exporters, which export once a turn, with one in a cache that has none."""
    case = Case("hit, with exporters", note="Prometheus, OpenTelemetry, EMF and logs at once.")
    with SecretCache(source=Source()) as plain, SecretCache(source=Source()) as exported:
        export = export_all(exported)
        taken = in_turns(
            {PLAIN: warm(plain.get), EXPORTED: warm(exported.get), "one export by all of them": export},
            5 if quick else 100,
        )
    case.add(taken)
    # 5 % are the noise between two caches of the same kind.
    case.goals = [Goal("as fast as without (within 5 %)", ratios(taken[EXPORTED], taken[PLAIN]), most=1.05)]
    return case
