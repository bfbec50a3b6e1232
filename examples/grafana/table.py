"""What Prometheus is told of a short run: the metrics behind the dashboard, as a table.

    uv run --extra prometheus --extra testing python examples/grafana/table.py

A service reads three secrets and logs in to PostgreSQL while its password rotates; then AWS throttles it, and fails.
Secrets Manager, the database and the scrape are real servers on this machine.
"""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from smcache import SecretCache
from smcache.exporters.prometheus import CacheCollector
from smcache.testing import postgres, rotate, secrets_manager, server_error, throttle

if TYPE_CHECKING:
    from smcache import Secret
    from smcache.testing import PostgreSQL, SecretsManager

THREADS = 4
READS = 25_000  # by each
ROLE = "metrics_table"
NAMES = ("prod/db", "prod/api", "prod/mail")


def serve(cache: SecretCache, aws: SecretsManager, database: PostgreSQL) -> None:
    """Do what a service does, on a day on which everything happens."""
    database.create_role(ROLE, "first")
    aws.create("prod/db", database.secret(ROLE, "first"))
    aws.create("prod/api", "key")
    aws.create("prod/mail", "password")

    @cache.retry_on_auth_error("prod/db")
    def connect(secret: Secret) -> psycopg.Connection[Any]:
        return psycopg.connect(database.dsn(secret["username"], secret["password"]))

    connect().close()

    def read(_thread: int) -> None:
        for number in range(READS):
            cache.get(NAMES[number % len(NAMES)])

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(read, range(THREADS)))
    with database.admin() as admin:
        rotate(aws.client(), "prod/db", admin, dwell=0, on_step=lambda *_: connect().close())
    cache.refresh("prod/db")  # as it comes at the end of the TTL
    with aws.inject(throttle(), times=2):
        cache.refresh("prod/api")
    with aws.inject(server_error()):
        cache.refresh("prod/mail")


def scrape(cache: SecretCache) -> str:
    """Return what a Prometheus would get from this process."""
    registry = CollectorRegistry()
    registry.register(CacheCollector({"app": cache}))
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            return str(answer.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def table(scraped: str) -> str:
    """Return the samples as lines, but for the label `cache`, which is the same in all, and the buckets."""
    lines = []
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                continue
            labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items() if name != "cache")
            series = sample.name + ("{" + labels + "}" if labels else "")
            lines.append(f"{series:<54} {_number(sample.value):>12}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.6f}".rstrip("0")


def main() -> None:
    """Run it, and print the table."""
    with (
        secrets_manager() as aws,
        postgres() as database,
        SecretCache(aws.client()) as cache,
    ):
        serve(cache, aws, database)
        print(table(scrape(cache)))


if __name__ == "__main__":
    main()
