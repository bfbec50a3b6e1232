"""Metrics for structured logs: ``log_metrics(cache.metrics.snapshot(), logging.getLogger("app"))``."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING

from smcache.metrics import LATENCY_BOUNDS

if TYPE_CHECKING:
    from smcache.metrics import MetricsSnapshot

__all__ = ["log_metrics"]


def log_metrics(snapshot: MetricsSnapshot, logger: logging.Logger, *, level: int = logging.INFO) -> None:
    """Log the counts of a snapshot, or of the difference of two, as one record.

    The record has each of them as an attribute, ``smcache_hits`` and so on, as ``extra=`` gives them: a formatter for
    JSON shows them as fields. ``smcache_latency_buckets`` counts requests by the upper bound of their seconds.

    Args:
        snapshot: What to log: ``cache.metrics.snapshot()``, or ``after - before``.
        logger: Where to.
        level: The level of the record.
    """
    counts = {field.name: getattr(snapshot, field.name) for field in fields(snapshot)}
    bounds = [*map(str, LATENCY_BOUNDS), "inf"]
    counts["latency_buckets"] = dict(zip(bounds, snapshot.latency_buckets, strict=True))
    logger.log(
        level,
        "secrets: %d hits, %d misses, %d requests to AWS, %d failed",
        snapshot.hits,
        snapshot.misses,
        snapshot.api_calls,
        snapshot.api_errors,
        # A plain dict, for formatters that look at the type.
        extra={f"smcache_{name}": dict(c) if isinstance(c, dict) else c for name, c in counts.items()},
    )
