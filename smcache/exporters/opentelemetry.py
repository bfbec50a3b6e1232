"""Metrics and spans for OpenTelemetry: ``instrument({"app": cache})``.

All counts of ``MetricsSnapshot`` are observable counters named ``smcache.…``, with the attribute ``smcache.cache``;
``smcache.api_calls`` by ``rpc.method``, ``smcache.api_errors`` by ``error.type``, ``smcache.answers`` by
``cloud.region``. ``smcache.cached_values`` and ``smcache.stale_values`` are up-down counters. The histogram
``smcache.fetch.duration`` has the fetches, each of them also a span. Units are UCUM's, other attributes those of
opentelemetry.io/docs/specs/semconv: general/metrics, general/recording-errors and cloud-providers/aws-sdk.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from smcache import __version__
from smcache._listeners import happened_at
from smcache.errors import InvalidArgument, MissingExtra
from smcache.events import Fetched
from smcache.exporters._counts import COUNTS, by_version, check_caches
from smcache.metrics import LATENCY_BOUNDS

try:
    from opentelemetry.metrics import Observation, get_meter, get_meter_provider
    from opentelemetry.trace import SpanKind, StatusCode, get_tracer
except ImportError as error:
    raise MissingExtra("smcache.exporters.opentelemetry", "opentelemetry") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import Histogram, Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from smcache.events import Event
    from smcache.exporters._counts import Cache
    from smcache.metrics import CostModel

__all__ = ["instrument"]

NANOSECONDS = 1_000_000_000
BY_PART = (
    ("calls_by_operation", "smcache.api_calls", "rpc.method", "{request}", "Requests sent, retries included."),
    (
        "errors_by_code",
        "smcache.api_errors",
        "error.type",
        "{request}",
        "Requests that failed, throttled ones included.",
    ),
    ("answers_by_region", "smcache.answers", "cloud.region", "{answer}", "Answers, if the cache was given regions."),
)


class Observed(NamedTuple):
    """A cache, and how it is observed."""

    cache: Cache
    prices: CostModel | None
    secret_names: bool


#: The caches by name, for each meter provider. It reads only the first of instruments of the same name, and its API has
#: no way to take one back: so they are made once, and caches come and go.
_observed: WeakKeyDictionary[MeterProvider, dict[str, Observed]] = WeakKeyDictionary()
_observed_lock = threading.Lock()


def instrument(
    caches: Mapping[str, Cache],
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    secret_names: bool = False,
    prices: CostModel | None = None,
) -> Callable[[], None]:
    """Have all that some caches count observed, and each of their fetches recorded as a span.

    A span is of kind CLIENT, lasts as long as the fetch with its retries, and is a child of the span in which the read
    was made that caused it. A refresh in the background has no parent.

    Args:
        caches: The caches by the name that tells them apart: the attribute ``smcache.cache``. Others may be
            instrumented later.
        meter_provider: Where the instruments are made; the global one by default.
        tracer_provider: Where the spans are made; the global one by default.
        secret_names: Whether spans say which secret and version was fetched, and whether to observe, of each secret,
            ``smcache.secret.age`` (the time since AWS last confirmed its value) and ``smcache.secret.rotation_age``
            (the time since this cache saw it rotate).
        prices: What the requests are charged at; AWS's list prices by default.

    Returns:
        A function that ends it.

    Raises:
        InvalidArgument: They are no mapping of names to caches, or one of that name is observed already.
    """
    check_caches(caches)
    meter_provider = meter_provider or get_meter_provider()
    meter = get_meter("smcache", __version__, meter_provider=meter_provider)
    tracer = get_tracer("smcache", __version__, tracer_provider)
    ours = {name: Observed(cache, prices, secret_names) for name, cache in caches.items()}
    with _observed_lock:
        if (observed := _observed.get(meter_provider)) is None:
            observed = _observed[meter_provider] = {}
            _observe_counts(meter, observed)
            _observe_values(meter, observed)
            _observe_secrets(meter, observed)
        if taken := observed.keys() & ours.keys():
            raise InvalidArgument(f"there is a cache {min(taken)!r} already", hint="stop that first, or name this anew")
        observed.update(ours)
    duration = meter.create_histogram(
        "smcache.fetch.duration",
        "s",
        "How long fetches took, retries included.",
        explicit_bucket_boundaries_advisory=LATENCY_BOUNDS,
    )
    cancels = [
        each.cache.subscribe(_recorder(tracer, duration, name, secret_names=secret_names))
        for name, each in ours.items()
    ]

    def stop() -> None:
        for cancel in cancels:
            cancel()
        while ours:  # once: another cache may have the name by then
            del observed[ours.popitem()[0]]

    return stop


def _observe_counts(meter: Meter, observed: Mapping[str, Observed]) -> None:
    def total(field: str) -> Callable[[object], Iterable[Observation]]:
        return lambda _: [Observation(count, {"smcache.cache": name}) for name, count in counts(field)]

    def parts(field: str, attribute: str) -> Callable[[object], Iterable[Observation]]:
        return lambda _: [
            Observation(count, {"smcache.cache": name, attribute: part})
            for name, by_part in counts(field)
            for part, count in by_part.items()
        ]

    def counts(field: str) -> list[tuple[str, Any]]:
        return [
            (name, getattr(each.cache.metrics.snapshot(each.prices), field)) for name, each in list(observed.items())
        ]

    for count in COUNTS:
        # The unit is not part of the name, by the conventions.
        name = "smcache." + count.field.removesuffix("_seconds").removesuffix("_usd")
        meter.create_observable_counter(name, [total(count.field)], count.unit, count.meaning)
    for field, name, attribute, unit, meaning in BY_PART:
        meter.create_observable_counter(name, [parts(field, attribute)], unit, meaning)


def _observe_values(meter: Meter, observed: Mapping[str, Observed]) -> None:
    def cached(_: object) -> Iterable[Observation]:
        for name, each in list(observed.items()):
            yield Observation(len(each.cache.metrics.secrets()), {"smcache.cache": name})

    def stale(_: object) -> Iterable[Observation]:
        for name, each in list(observed.items()):
            yield Observation(sum(value.is_stale for value in each.cache.metrics.secrets()), {"smcache.cache": name})

    meter.create_observable_up_down_counter("smcache.cached_values", [cached], "{value}", "Values in the cache.")
    meter.create_observable_up_down_counter(
        "smcache.stale_values", [stale], "{value}", "Values past their TTL, served because AWS is unavailable."
    )


def _observe_secrets(meter: Meter, observed: Mapping[str, Observed]) -> None:
    def of_each(field: str) -> Callable[[object], Iterable[Observation]]:
        return lambda _: [
            Observation(value, {"smcache.cache": name, **_secret_attributes(*key)})
            for name, each in list(observed.items())
            if each.secret_names
            for key, figures in by_version(each.cache).items()
            if (value := getattr(figures, field)) is not None
        ]

    for name, field, meaning in (
        ("age", "age_seconds", "Time since AWS last gave or confirmed the value."),
        ("rotation_age", "rotated_seconds_ago", "Time since this cache saw the secret rotate."),
    ):
        meter.create_observable_gauge(f"smcache.secret.{name}", [of_each(field)], "s", meaning)


def _secret_attributes(secret_id: str, stage: str, version_id: str) -> dict[str, str]:
    named = "aws.secretsmanager.secret.arn" if secret_id.startswith("arn:") else "smcache.secret.name"
    attributes = {named: secret_id, "smcache.secret.stage": stage, "smcache.secret.version_id": version_id}
    return {key: value for key, value in attributes.items() if value}


def _recorder(tracer: Tracer, duration: Histogram, name: str, *, secret_names: bool) -> Callable[[Event], None]:
    """Return a listener that records each fetch; it runs in the context of the read that caused the fetch."""

    def record(event: Event) -> None:
        if not isinstance(event, Fetched):
            return
        end = happened_at.get()
        outcome = {"smcache.cache": name, **({"error.type": event.code} if event.code else {})}
        duration.record(event.seconds, outcome)
        # Without rpc.method: a fetch may take more than one operation, and a batch brings many secrets.
        attributes = {"rpc.system": "aws-api", "rpc.service": "Secrets Manager", **outcome}
        if secret_names:
            attributes |= _secret_attributes(event.secret_id, event.stage, event.version_id)
        span = tracer.start_span(
            "smcache.fetch",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=end - round(event.seconds * NANOSECONDS),
        )
        if event.code:
            span.set_status(StatusCode.ERROR)
        span.end(end)

    return record
