"""What all exporters have in common: the counts and their meaning, and figures by secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from smcache.errors import InvalidArgument
from smcache.metrics import Metrics

if TYPE_CHECKING:
    from smcache.aio import AsyncSecretCache
    from smcache.cache import SecretCache
    from smcache.metrics import SecretFigures

    Cache: TypeAlias = SecretCache | AsyncSecretCache


class Count(NamedTuple):
    """A count of ``MetricsSnapshot`` that has no parts: its name there, its unit by UCUM, its meaning."""

    field: str
    unit: str
    meaning: str


def check_caches(caches: object) -> None:
    """Refuse what is no mapping of names to caches.

    Raises:
        InvalidArgument: What it is instead.
    """
    if not isinstance(caches, Mapping):
        raise InvalidArgument(f"caches are given by name, not as {type(caches).__name__}", hint='{"app": cache}')
    for name, cache in caches.items():
        if not isinstance(name, str):
            raise InvalidArgument(f"the name of a cache is a str, not {type(name).__name__}")
        check_cache(cache)


def check_cache(cache: object) -> None:
    """Refuse what is no cache.

    Raises:
        InvalidArgument: What it is instead.
    """
    if not isinstance(getattr(cache, "metrics", None), Metrics):
        raise InvalidArgument(f"expected a cache, not {type(cache).__name__}")


COUNTS = (
    Count("hits", "{read}", "Reads answered from the cache by a fresh value."),
    Count("misses", "{read}", "Reads that waited for a request of their own."),
    Count("coalesced", "{read}", "Reads that waited for a request another read had sent."),
    Count("stale_served", "{read}", "Reads answered by a value past its TTL, because AWS was unavailable."),
    Count("throttles", "{request}", "Requests that AWS throttled."),
    Count("retries", "{request}", "Requests that repeated a failed one."),
    Count("backoff_seconds", "s", "Time spent waiting before retries."),
    Count("rotations_seen", "{rotation}", "How often AWSCURRENT was found on another version than before."),
    Count("auth_failures", "{attempt}", "Attempts to log in with a credential that was rejected."),
    Count("auth_recoveries", "{call}", "Calls that succeeded after a rejected credential."),
    Count("auth_unrecovered", "{call}", "Calls that ended in a rejected credential."),
    Count("api_cost_usd", "{USD}", "What the requests to Secrets Manager cost, in US dollars."),
    Count("api_cost_avoided_usd", "{USD}", "What the reads that sent no request would have cost, in US dollars."),
)


def by_version(cache: Cache) -> dict[tuple[str, str, str], SecretFigures]:
    """Return what is known of each cached value by secret id, stage and version.

    A version that was pinned with different labels is cached under each; its figures become one.
    """
    merged: dict[tuple[str, str, str], SecretFigures] = {}
    for figures in cache.metrics.secrets(names=True):
        key = (figures.secret_id or "", figures.stage, figures.version_id)
        other = merged.get(key, replace(figures, hits=0))
        age = min(figures.age_seconds, other.age_seconds)
        merged[key] = replace(figures, hits=figures.hits + other.hits, age_seconds=age)
    return merged
