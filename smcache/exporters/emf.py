"""Metrics for CloudWatch from where nothing can be scraped, such as Lambda: one JSON line, printed, per flush.

    metrics = EmbeddedMetrics(cache)

    @metrics  # or `with metrics:`, also around `await`; or `metrics.flush()` at the end
    def handler(event, context): ...

CloudWatch Logs turns the line into metrics by the Embedded Metric Format:
docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, TypeVar

from smcache.errors import InvalidArgument
from smcache.exporters._counts import COUNTS, check_cache

if TYPE_CHECKING:
    from typing import TextIO

    from typing_extensions import Self

    from smcache.exporters._counts import Cache
    from smcache.metrics import CostModel

__all__ = ["EmbeddedMetrics"]

Handler = TypeVar("Handler", bound=Callable[..., Any])

UNITS = {"s": "Seconds", "{USD}": "None"}  # CloudWatch's, by UCUM's; all others are counts
METRICS = {
    **{count.field: UNITS.get(count.unit, "Count") for count in COUNTS},
    "api_calls": "Count",
    "api_errors": "Count",
    "latency_seconds": "Seconds",
}
PARTS = ("calls_by_operation", "errors_by_code", "answers_by_region")
MOST_DIMENSIONS = 30  # of the specification, as the lengths below
LONGEST_NAMESPACE = 1024
LONGEST_DIMENSION = 250
LONGEST_DIMENSION_VALUE = 1024


class EmbeddedMetrics(ContextDecorator):
    """Prints what a cache has counted since it was last asked, as CloudWatch reads it.

    Each flush prints one line with the counts of ``MetricsSnapshot`` in CloudWatch's spelling (``Hits``,
    ``AuthUnrecovered``, ``ApiCostUsd``): sums, to be read by the statistic Sum. Counts that did not change are left
    out, but for ``Hits``: CloudWatch bills each metric that it sees. Beside the metrics, for Logs Insights, stand
    ``CallsByOperation``, ``ErrorsByCode`` and ``AnswersByRegion``.

    Args:
        cache: The cache; each has an object of its own.
        namespace: CloudWatch's namespace of the metrics.
        dimensions: What tells these metrics from those of others, by name. By default the ``FunctionName`` on Lambda,
            and elsewhere nothing.
        stream: Where lines go; standard output by default.
        prices: What the requests are charged at; AWS's list prices by default.

    Raises:
        InvalidArgument: It is no cache, or CloudWatch would not take the namespace or the dimensions.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        namespace: str = "smcache",
        dimensions: Mapping[str, str] | None = None,
        stream: TextIO | None = None,
        prices: CostModel | None = None,
    ) -> None:
        if dimensions is None:
            function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
            dimensions = {"FunctionName": function} if function else {}
        check_cache(cache)
        _check(namespace, dimensions)
        self._metrics = cache.metrics
        self._namespace = namespace
        self._dimensions = dict(dimensions)
        self._stream = stream
        self._prices = prices
        self._flushing = threading.Lock()
        self._process = os.getpid()
        self._last = self._metrics.snapshot(prices)

    def flush(self) -> None:
        """Print one line with what has changed since the last flush, or since this object was made."""
        with self._flushing:
            snapshot = self._metrics.snapshot(self._prices)
            # A forked child counts from zero.
            change = snapshot - self._last if os.getpid() == self._process else snapshot
            counts = {field: getattr(change, field) for field in METRICS}
            units = {_spelled(field): METRICS[field] for field, count in counts.items() if count or field == "hits"}
            directive = {
                "Namespace": self._namespace,
                "Dimensions": [list(self._dimensions)],
                "Metrics": [{"Name": name, "Unit": unit} for name, unit in units.items()],
            }
            line: dict[str, Any] = {
                "_aws": {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [directive]},
                **self._dimensions,
                **{_spelled(field): count for field, count in counts.items() if _spelled(field) in units},
                **{_spelled(field): parts for field in PARTS if (parts := getattr(change, field))},
            }
            # One call, so that lines of other threads do not come in between; stdout as it is now, not at import.
            stream = self._stream or sys.stdout
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            self._process, self._last = os.getpid(), snapshot

    def __call__(self, func: Handler) -> Handler:
        """Return the function so that each call ends with a flush.

        Raises:
            InvalidArgument: It is a coroutine function: its calls end before it has run.
        """
        if inspect.iscoroutinefunction(func):
            raise InvalidArgument("a coroutine function cannot be decorated", hint="write `with metrics:` inside it")
        return super().__call__(func)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def _spelled(field: str) -> str:
    return "".join(word.capitalize() for word in field.split("_"))


def _check(namespace: object, dimensions: object) -> None:
    """Refuse what CloudWatch would drop without a word."""
    if not isinstance(namespace, str) or not 1 <= len(namespace) <= LONGEST_NAMESPACE:
        raise InvalidArgument(f"the namespace is a str of 1 to {LONGEST_NAMESPACE} characters")
    if not isinstance(dimensions, Mapping):
        raise InvalidArgument(f"dimensions are given by name, not as {type(dimensions).__name__}")
    if len(dimensions) > MOST_DIMENSIONS:
        raise InvalidArgument(f"{len(dimensions)} dimensions: CloudWatch takes {MOST_DIMENSIONS}")
    taken = {"_aws", *map(_spelled, METRICS), *map(_spelled, PARTS)}
    for name, value in dimensions.items():
        if not isinstance(name, str) or name in taken or not 1 <= len(name) <= LONGEST_DIMENSION:
            raise InvalidArgument(
                f"the dimension {name!r}: expected another name, a str of 1 to {LONGEST_DIMENSION} characters"
            )
        if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_DIMENSION_VALUE:
            raise InvalidArgument(
                f"the value of the dimension {name!r} is a str of 1 to {LONGEST_DIMENSION_VALUE} characters"
            )
