"""What a cache has counted reaches each monitoring system in the form it expects, and no value does.

Each is read as its users read it: Prometheus by HTTP, OpenTelemetry by its SDK, EMF by the published format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from smcache import AccessDenied, CostModel, InvalidArgument, SecretCache
from smcache.exporters._counts import COUNTS
from smcache.exporters.emf import EmbeddedMetrics
from smcache.exporters.log import log_metrics
from smcache.exporters.opentelemetry import instrument
from smcache.exporters.prometheus import CacheCollector
from smcache.testing import deny, server_error, throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Clock, MakeCache, WaitUntilIdle

    from smcache import MetricsSnapshot
    from smcache.testing import SecretsManager

NAME = "prod/db"
HITS = "smcache_secret_hits_total"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SCHEMA = json.loads((Path(__file__).parent / "data" / "emf.schema.json").read_text(encoding="utf-8"))
OK, UNAUTHORIZED = 200, 401
FORKS = """
import os
from smcache import Secret, SecretCache
from smcache.exporters.emf import EmbeddedMetrics
from smcache.sources import Answer

class Source:
    def fetch(self, secret_id, stage, version_id):
        return Answer(Secret("value", name=secret_id, version_id="v1"))

    def close(self): ...

cache = SecretCache(source=Source())
metrics = EmbeddedMetrics(cache)
for _ in range(3):
    cache.get("prod/db")
if os.fork() == 0:
    cache.get("prod/db")
    metrics.flush()
    os._exit(0)
os.wait()
metrics.flush()
"""


@pytest.fixture(params=["threads", "aiobotocore"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def live(
    aws: SecretsManager, clock: Clock, canary: str, wait_until_idle: WaitUntilIdle
) -> Callable[[SecretCache], MetricsSnapshot]:
    """Let everything happen to a cache that is counted; return its counts."""

    def live(cache: SecretCache) -> MetricsSnapshot:
        aws.create(NAME, {"password": "1", "token": canary})
        cache.get(NAME)
        cache.get(NAME)
        with aws.inject(throttle()):
            cache.refresh(NAME)
        aws.put(NAME, {"password": "2", "token": canary})

        @cache.retry_on_auth_error(NAME, auth_result=lambda status: bool(status == UNAUTHORIZED))
        def log_in(secret: Any, password: str) -> int:
            return OK if secret["password"] == password else UNAUTHORIZED

        assert log_in(password="2") == OK
        assert log_in(password="wrong") == UNAUTHORIZED
        clock.advance(301)
        with aws.inject(server_error(), times=None):
            cache.get(NAME)
        wait_until_idle(cache)
        snapshot = cache.metrics.snapshot()
        idle = [count.field for count in COUNTS if not getattr(snapshot, count.field)]
        assert idle == ["coalesced"]  # it takes two readers; exported like the others
        return snapshot

    return live


@pytest.fixture
def shows_no_value(canary: str, capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """A list of what was exported; at the end of the test no value is in it, nor in what was printed."""
    exported: list[str] = []
    yield exported
    printed = capfd.readouterr()
    assert exported
    assert canary not in "\n".join([*exported, printed.out, printed.err])


class Endpoint:
    """A registry behind the HTTP server that users of prometheus_client start."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)  # as the global one
        self._server, self._thread = start_http_server(0, addr="127.0.0.1", registry=self._registry)

    def export(self, caches: dict[str, SecretCache], **options: Any) -> None:
        self._collector = CacheCollector(caches, **options)
        self._registry.register(self._collector)

    def forget(self) -> None:
        self._registry.unregister(self._collector)

    def read(self, accept: str = "text/plain") -> str:
        url = f"http://127.0.0.1:{self._server.server_port}/metrics"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=30) as answer:
            return str(answer.read().decode())

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse_text(self.read())
            for sample in family.samples
        }

    def value(self, metric: str, **labels: str) -> float:
        return self.samples()[metric, frozenset({"cache": "app", **labels}.items())]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with contextlib.closing(Endpoint()) as each:
        yield each


@pytest.fixture
def endpoint(server: Endpoint) -> Iterator[Endpoint]:
    yield server
    server.forget()


class TestPrometheus:
    def test_a_scrape_has_all_counts(
        self, make_cache: MakeCache, live: Callable[..., MetricsSnapshot], endpoint: Endpoint, shows_no_value: list[str]
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache})
        counts = live(cache)
        for count in COUNTS:
            value = endpoint.value(f"smcache_{count.field}_total")
            assert value == pytest.approx(getattr(counts, count.field)), count.field
        for operation, calls in counts.calls_by_operation.items():
            assert endpoint.value("smcache_api_calls_total", operation=operation) == calls
        assert endpoint.value("smcache_api_errors_total", code="ThrottlingException") == counts.throttles == 1
        assert endpoint.value("smcache_api_call_duration_seconds_count") == sum(counts.latency_buckets)
        assert endpoint.value("smcache_api_call_duration_seconds_sum") == pytest.approx(counts.latency_seconds)
        assert endpoint.value("smcache_api_call_duration_seconds_bucket", le="10.0") == sum(counts.latency_buckets[:-1])
        assert endpoint.value("smcache_cached_values") == endpoint.value("smcache_stale_values") == 1
        shows_no_value += [endpoint.read(), endpoint.read(OPENMETRICS)]
        assert NAME not in "\n".join(shows_no_value)

    def test_names_and_types_are_those_of_openmetrics(
        self, make_cache: MakeCache, live: Callable[..., MetricsSnapshot], endpoint: Endpoint
    ) -> None:
        """Its parser is strict: counters end in _total, buckets accumulate, no series comes twice."""
        cache = make_cache()
        endpoint.export({"app": cache}, secret_names=True)
        live(cache)
        families = list(parse_openmetrics(endpoint.read(OPENMETRICS)))  # type: ignore[no-untyped-call]
        assert {family.name.partition("_")[0] for family in families} == {"smcache"}
        types = {family.name: family.type for family in families}
        assert types["smcache_hits"] == types["smcache_backoff_seconds"] == "counter"
        assert types["smcache_api_call_duration_seconds"] == "histogram"
        assert types["smcache_stale_values"] == types["smcache_secret_stale"] == "gauge"
        assert all(family.documentation.endswith(".") for family in families)

    def test_a_stale_value_that_nobody_reads_is_none_for_ever(
        self, make_cache: MakeCache, live: Callable[..., MetricsSnapshot], endpoint: Endpoint, clock: Clock
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache})
        live(cache)
        assert endpoint.value("smcache_stale_values") == 1
        clock.advance(3_600)
        assert endpoint.value("smcache_stale_values") == 0

    def test_several_caches_are_told_apart_and_may_come_later(
        self, aws: SecretsManager, make_cache: MakeCache, endpoint: Endpoint
    ) -> None:
        caches = {"app": make_cache()}
        endpoint.export(caches)
        aws.create(NAME, "x")
        caches["reports"] = make_cache()
        caches["reports"].get(NAME)
        assert endpoint.value("smcache_misses_total") == 0
        assert endpoint.value("smcache_misses_total", cache="reports") == 1

    def test_a_secret_is_named_only_when_that_is_asked_for(
        self, aws: SecretsManager, make_cache: MakeCache, endpoint: Endpoint, clock: Clock
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache}, secret_names=True)
        aws.create(NAME, "first")
        cache.get(NAME)
        aws.put(NAME, "second")
        version = cache.refresh(NAME).version_id
        clock.advance(10)
        labels = {"secret_id": NAME, "stage": "AWSCURRENT", "version_id": version}
        assert endpoint.value("smcache_secret_stale", **labels) == 0
        now = time.time()
        assert endpoint.value("smcache_secret_confirmed_timestamp_seconds", **labels) == pytest.approx(now - 10, abs=5)
        assert endpoint.value("smcache_secret_rotated_timestamp_seconds", **labels) == pytest.approx(now - 10, abs=5)

    def test_hits_of_a_secret_are_one_series_through_its_rotations(
        self, aws: SecretsManager, make_cache: MakeCache, endpoint: Endpoint
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache}, secret_names=True)
        aws.create(NAME, "first")
        for value in ("second", "third"):
            cache.get(NAME)
            cache.get(NAME)
            aws.put(NAME, value)
            cache.refresh(NAME)
        hits = {labels: value for (name, labels), value in endpoint.samples().items() if name == HITS}
        labels = {"cache": "app", "secret_id": NAME, "stage": "AWSCURRENT", "version_id": ""}
        assert hits == {frozenset(labels.items()): 3}

    def test_a_pinned_version_is_told_from_the_current_one(
        self, aws: SecretsManager, make_cache: MakeCache, endpoint: Endpoint
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache}, secret_names=True)
        aws.create(NAME, "first")
        version = cache.get(NAME).version_id
        aws.put(NAME, "second")
        cache.refresh(NAME)
        for stage in ("AWSCURRENT", "AWSPREVIOUS"):  # cached twice, exported once
            for _ in range(2):
                cache.get(NAME, stage=stage, version_id=version)
        labels = {"secret_id": NAME, "stage": "", "version_id": version}
        assert endpoint.value(HITS, **labels) == 2
        assert endpoint.value("smcache_secret_stale", **labels) == 0
        assert {figures.stage for figures in cache.metrics.secrets()} == {"AWSCURRENT", ""}

    def test_the_cost_is_by_the_prices_given(
        self, aws: SecretsManager, make_cache: MakeCache, endpoint: Endpoint
    ) -> None:
        cache = make_cache()
        endpoint.export({"app": cache}, prices=CostModel(per_10k_calls=10_000))
        aws.create(NAME, "x")
        cache.get(NAME)
        assert endpoint.value("smcache_api_cost_usd_total") == 1


class Telemetry:
    """The SDK of OpenTelemetry, which keeps what it is given."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        self.meter_provider = MeterProvider([self._reader])
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def providers(self) -> dict[str, Any]:
        return {"meter_provider": self.meter_provider, "tracer_provider": self.tracer_provider}

    def metrics(self) -> dict[str, Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        assert {scope.scope.name for scope in scopes} == {"smcache"}
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of a metric by those of its attributes."""
        points = self.metrics()[name].data.data_points
        return {tuple(sorted(map(str, point.attributes.values()))): point.value for point in points}

    def spans(self) -> list[Any]:
        return [span for span in self._spans.get_finished_spans() if span.name == "smcache.fetch"]

    def close(self) -> None:
        self.meter_provider.shutdown()
        self.tracer_provider.shutdown()


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with contextlib.closing(Telemetry()) as each:
        yield each


class TestOpenTelemetry:
    def test_all_counts_are_observed_with_their_units(
        self,
        make_cache: MakeCache,
        live: Callable[..., MetricsSnapshot],
        telemetry: Telemetry,
        shows_no_value: list[str],
    ) -> None:
        cache = make_cache()
        instrument({"app": cache}, **telemetry.providers)
        counts = live(cache)
        metrics = telemetry.metrics()
        for count in COUNTS:
            metric = metrics["smcache." + count.field.removesuffix("_seconds").removesuffix("_usd")]
            [point] = metric.data.data_points
            assert point.value == pytest.approx(getattr(counts, count.field)), count.field
            assert dict(point.attributes) == {"smcache.cache": "app"}
            assert metric.data.is_monotonic
            assert metric.unit == count.unit
        assert metrics["smcache.backoff"].unit == "s"
        [requests] = metrics["smcache.api_calls"].data.data_points
        assert requests.attributes == {"smcache.cache": "app", "rpc.method": "GetSecretValue"}
        assert telemetry.values("smcache.api_errors")["ThrottlingException", "app"] == 1
        assert telemetry.values("smcache.cached_values") == telemetry.values("smcache.stale_values") == {("app",): 1}
        fetches = metrics["smcache.fetch.duration"].data.data_points
        assert sum(point.count for point in fetches) == len(telemetry.spans())
        assert fetches[0].explicit_bounds[0] < 0.1  # of seconds, not of milliseconds
        shows_no_value += [metric.to_json() for metric in metrics.values()]
        shows_no_value += [span.to_json() for span in telemetry.spans()]
        assert NAME not in "\n".join(shows_no_value)

    def test_a_fetch_is_a_span_below_that_of_its_caller(
        self,
        aws: SecretsManager,
        make_cache: MakeCache,
        telemetry: Telemetry,
        clock: Clock,
        wait_until_idle: WaitUntilIdle,
    ) -> None:
        aws.create(NAME, "x")
        cache = make_cache()
        instrument({"app": cache}, secret_names=True, **telemetry.providers)
        with telemetry.tracer.start_as_current_span("request") as request, aws.inject(throttle()):
            version = cache.get(NAME).version_id
            cache.get(NAME)
        wait_until_idle(cache)
        [span] = telemetry.spans()
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert dict(span.attributes) == {
            "rpc.system": "aws-api",
            "rpc.service": "Secrets Manager",
            "smcache.cache": "app",
            "smcache.secret.name": NAME,
            "smcache.secret.stage": "AWSCURRENT",
            "smcache.secret.version_id": version,
        }
        assert (span.end_time - span.start_time) / 1e9 == pytest.approx(sum(clock.slept), abs=1e-6)

    def test_a_span_ends_with_its_fetch_however_late_it_is_told(
        self, aws: SecretsManager, telemetry: Telemetry, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create(NAME, "x")
        told = threading.Event()
        with SecretCache(aws.client()) as cache:
            cache.subscribe(lambda _: told.wait(30))  # a listener that is slow
            instrument({"app": cache}, **telemetry.providers)
            start = time.time_ns()
            cache.get(NAME)
            end = time.time_ns()
            told.set()
            wait_until_idle(cache)
        [span] = telemetry.spans()
        assert start <= span.end_time <= end

    def test_a_refresh_in_the_background_belongs_to_nobody(
        self,
        aws: SecretsManager,
        make_cache: MakeCache,
        telemetry: Telemetry,
        clock: Clock,
        wait_until_idle: WaitUntilIdle,
    ) -> None:
        aws.create(NAME, "x")
        cache = make_cache()
        cache.get(NAME)
        wait_until_idle(cache)
        instrument({"app": cache}, **telemetry.providers)
        clock.advance(250)
        with telemetry.tracer.start_as_current_span("request"):
            cache.get(NAME)
            wait_until_idle(cache)
        [span] = telemetry.spans()
        assert span.parent is None

    def test_a_failed_fetch_is_an_error(
        self, aws: SecretsManager, make_cache: MakeCache, telemetry: Telemetry, wait_until_idle: WaitUntilIdle
    ) -> None:
        arn = aws.create(NAME, "x")
        cache = make_cache()
        instrument({"app": cache}, secret_names=True, **telemetry.providers)
        with aws.inject(deny()), pytest.raises(AccessDenied):
            cache.get(arn)
        wait_until_idle(cache)
        [span] = telemetry.spans()
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "AccessDeniedException"
        assert span.attributes["aws.secretsmanager.secret.arn"] == arn

    def test_figures_of_each_secret_are_there_when_asked_for(
        self, aws: SecretsManager, make_cache: MakeCache, telemetry: Telemetry, clock: Clock
    ) -> None:
        aws.create(NAME, "first")
        cache = make_cache()
        instrument({"app": cache}, secret_names=True, **telemetry.providers)
        cache.get(NAME)
        aws.put(NAME, "second")
        version = cache.refresh(NAME).version_id
        cache.get(NAME)
        clock.advance(10)
        attributes = tuple(sorted(("app", NAME, "AWSCURRENT", version)))
        assert telemetry.values("smcache.secret.age") == {attributes: 10}
        assert telemetry.values("smcache.secret.rotation_age") == {attributes: 10}

    def test_several_caches_are_told_apart(
        self, aws: SecretsManager, make_cache: MakeCache, telemetry: Telemetry
    ) -> None:
        aws.create(NAME, "x")
        caches = {"app": make_cache(), "reports": make_cache()}
        instrument(caches, **telemetry.providers)
        caches["reports"].get(NAME)
        assert telemetry.values("smcache.misses") == {("app",): 0, ("reports",): 1}

    def test_a_cache_that_comes_later_and_one_that_comes_again_are_observed(
        self, aws: SecretsManager, make_cache: MakeCache, telemetry: Telemetry
    ) -> None:
        aws.create(NAME, "x")
        app, reports = make_cache(), make_cache()
        stop = instrument({"app": app}, **telemetry.providers)
        instrument({"reports": reports}, secret_names=True, **telemetry.providers)
        reports.get(NAME)
        assert telemetry.values("smcache.misses") == {("app",): 0, ("reports",): 1}
        stop()
        assert telemetry.values("smcache.misses") == {("reports",): 1}
        app.get(NAME)
        instrument({"app": app}, **telemetry.providers)
        stop()  # that one has ended; it ends no other
        assert telemetry.values("smcache.misses") == {("app",): 1, ("reports",): 1}
        [age] = telemetry.metrics()["smcache.secret.age"].data.data_points
        assert age.attributes["smcache.cache"] == "reports"

    def test_a_name_tells_one_cache(self, make_cache: MakeCache, telemetry: Telemetry) -> None:
        instrument({"app": make_cache()}, **telemetry.providers)
        with pytest.raises(InvalidArgument, match="'app' already"):
            instrument({"app": make_cache(), "reports": make_cache()}, **telemetry.providers)
        assert telemetry.values("smcache.hits") == {("app",): 0}

    def test_it_can_be_ended(
        self, aws: SecretsManager, make_cache: MakeCache, telemetry: Telemetry, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create(NAME, "x")
        cache = make_cache()
        stop = instrument({"app": cache}, secret_names=True, **telemetry.providers)
        stop()
        cache.get(NAME)
        wait_until_idle(cache)
        assert telemetry.metrics() == {}
        assert telemetry.spans() == []


def checked(line: str) -> dict[str, Any]:
    """Return a line of EMF, which is all that the specification demands."""
    assert line.endswith("\n")
    assert line.count("\n") == 1
    document: dict[str, Any] = json.loads(line)
    jsonschema.validate(document, SCHEMA)
    for directive in document["_aws"]["CloudWatchMetrics"]:
        assert all(isinstance(document[name], str) for names in directive["Dimensions"] for name in names)
        assert all(isinstance(document[metric["Name"]], int | float) for metric in directive["Metrics"])
    return document


class TestEmbeddedMetricFormat:
    def test_a_flush_prints_one_line_of_what_has_changed(
        self,
        make_cache: MakeCache,
        live: Callable[..., MetricsSnapshot],
        capsys: pytest.CaptureFixture[str],
        canary: str,
    ) -> None:
        cache = make_cache()
        metrics = EmbeddedMetrics(cache, dimensions={"Service": "app"})
        counts = live(cache)
        before = time.time() * 1000
        metrics.flush()
        line = capsys.readouterr().out
        document = checked(line)
        assert before - 1 <= document["_aws"]["Timestamp"] <= time.time() * 1000
        [directive] = document["_aws"]["CloudWatchMetrics"]
        assert (directive["Namespace"], directive["Dimensions"]) == ("smcache", [["Service"]])
        units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
        assert "Coalesced" not in units  # CloudWatch bills what it sees, zeros included
        assert (units["Hits"], units["BackoffSeconds"], units["ApiCostUsd"]) == ("Count", "Seconds", "None")
        assert document["Service"] == "app"
        assert document["AuthRecoveries"] == counts.auth_recoveries == 1
        assert document["ApiCostUsd"] == pytest.approx(counts.api_cost_usd)
        assert document["CallsByOperation"] == counts.calls_by_operation
        assert canary not in line
        assert NAME not in line

        cache.get(NAME)
        metrics.flush()
        document = checked(capsys.readouterr().out)
        assert (document["StaleServed"], document["Hits"]) == (1, 0)
        assert "AuthRecoveries" not in document

    def test_at_the_end_of_a_handler_even_if_it_fails(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create(NAME, "x")
        cache, stream = make_cache(), io.StringIO()
        metrics = EmbeddedMetrics(cache, stream=stream)

        @metrics
        def handler(event: object, context: object) -> None:
            cache.get(NAME)
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                handler({}, None)
        with metrics:
            cache.get(NAME)
        lines = [checked(line) for line in stream.getvalue().splitlines(keepends=True)]
        assert [(line.get("Misses"), line["Hits"]) for line in lines] == [(1, 0), (None, 1), (None, 1)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
    def test_a_forked_child_prints_what_it_has_counted_itself(self) -> None:
        done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own code
        lines = [checked(line) for line in done.stdout.splitlines(keepends=True)]
        assert [(line.get("Misses"), line["Hits"]) for line in lines] == [(None, 1), (1, 2)]

    def test_a_coroutine_function_would_be_flushed_before_it_runs(self) -> None:
        async def handler(event: object, context: object) -> None: ...

        with pytest.raises(InvalidArgument, match="with metrics:"):
            EmbeddedMetrics(SecretCache())(handler)

    def test_it_takes_one_cache(self) -> None:
        caches: Any = {"app": SecretCache()}
        with pytest.raises(InvalidArgument, match="expected a cache, not dict"):
            EmbeddedMetrics(caches)

    def test_on_lambda_the_function_is_the_dimension(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cache = SecretCache()
        EmbeddedMetrics(cache).flush()
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")
        EmbeddedMetrics(cache).flush()
        EmbeddedMetrics(cache, dimensions={}).flush()
        lines = [checked(line) for line in capsys.readouterr().out.splitlines(keepends=True)]
        dimensions = [line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] for line in lines]
        assert dimensions == [[[]], [["FunctionName"]], [[]]]
        assert lines[1]["FunctionName"] == "orders"

    @pytest.mark.parametrize(
        "options",
        [
            {"namespace": ""},
            {"namespace": "x" * 1025},
            {"namespace": 5},
            {"dimensions": ["Service"]},
            {"dimensions": {5: "x"}},
            {"dimensions": {"Service": 5}},
            {"dimensions": {str(number): "x" for number in range(31)}},
            {"dimensions": {"": "x"}},
            {"dimensions": {"x" * 251: "x"}},
            {"dimensions": {"Hits": "x"}},
            {"dimensions": {"_aws": "x"}},
            {"dimensions": {"Service": ""}},
            {"dimensions": {"Service": "x" * 1025}},
        ],
    )
    def test_what_cloudwatch_would_drop_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgument):
            EmbeddedMetrics(SecretCache(), **options)


class TestLog:
    def test_a_record_has_all_counts_as_fields(
        self,
        make_cache: MakeCache,
        live: Callable[..., MetricsSnapshot],
        caplog: pytest.LogCaptureFixture,
        shows_no_value: list[str],
    ) -> None:
        cache = make_cache()
        counts = live(cache)
        caplog.clear()
        log_metrics(counts, logging.getLogger("app"), level=logging.WARNING)
        [record] = caplog.records
        assert (record.name, record.levelname) == ("app", "WARNING")
        sent = f"{counts.api_calls} requests to AWS, {counts.api_errors} failed"
        assert record.getMessage() == f"secrets: {counts.hits} hits, {counts.misses} misses, {sent}"
        extra = {name: value for name, value in vars(record).items() if name.startswith("smcache_")}
        for field in dataclasses.fields(counts):
            value = extra.pop(f"smcache_{field.name}")
            if field.name == "latency_buckets":
                assert tuple(value.values()) == counts.latency_buckets
                assert list(value)[0::11] == ["0.005", "inf"]
            else:
                assert value == getattr(counts, field.name)
        assert extra == {}
        shows_no_value.append(json.dumps(vars(record), default=str))

    def test_a_difference_is_logged_alike(
        self, aws: SecretsManager, make_cache: MakeCache, caplog: pytest.LogCaptureFixture
    ) -> None:
        aws.create(NAME, "x")
        cache = make_cache()
        cache.get(NAME)
        before = cache.metrics.snapshot()
        cache.get(NAME)
        with caplog.at_level(logging.INFO):
            log_metrics(cache.metrics.snapshot() - before, logging.getLogger("app"))
        assert caplog.records[-1].getMessage() == "secrets: 1 hits, 0 misses, 0 requests to AWS, 0 failed"


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry.metrics", "opentelemetry"),
    ],
)
def test_without_a_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, extra: str
) -> None:
    from smcache.errors import MissingExtra  # noqa: PLC0415

    monkeypatch.delitem(sys.modules, f"smcache.exporters.{module}")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"smcache\[{extra}\]"):
        __import__(f"smcache.exporters.{module}")


def test_what_needs_no_package_loads_none() -> None:
    code = "import sys, smcache.exporters.emf, smcache.exporters.log; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own code
    assert not set(done.stdout.split()) & {"boto3", "botocore", "opentelemetry", "prometheus_client", "asyncio"}


@pytest.mark.parametrize("export", [CacheCollector, instrument])
def test_what_are_no_caches_by_name_is_refused_at_once(export: Any) -> None:
    with SecretCache() as cache:
        for caches in (cache, {1: cache}, {"app": None}):
            with pytest.raises(InvalidArgument, match="not"):
                export(caches)
