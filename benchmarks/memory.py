"""What one cached secret takes, beside its value.

    python benchmarks/memory.py CONTENDER COUNT

prints it for one contender, in bytes; `run.py` starts one process for each.
"""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import tracemalloc
from typing import Any

import botocore.session
import peers
from botocore.awsrequest import AWSResponse
from report import Case, Goal

ACCOUNT = "arn:aws:secretsmanager:eu-central-1:123456789012:secret"
VERSION = "01234567-89ab-4cde-8f01-{:012d}"


def per_secret(*, quick: bool) -> Case:
    """Compare what 10,000 secrets take in a cache of each contender."""
    count = 1_000 if quick else 10_000
    case = Case(
        f"memory per cached secret, at {count:,}",
        note="Allocated bytes (tracemalloc) that stay, less the values. Counts, hence without spread.",
    )
    for name in (peers.SMCACHE, peers.AWS, peers.POWERTOOLS, peers.CACHETOOLS):
        command = [sys.executable, __file__, name, str(count)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own
        case.add({name: [float(told)]}, "B")
    case.goals = [Goal("≤ 1,000 bytes beside the value", case.figures[0].samples, "B", most=1_000)]
    return case


def measure(name: str, count: int) -> float:
    """Return the bytes per secret that stay allocated, less those of its value."""
    secret_ids = [f"prod/service-{number:06}" for number in range(count)]
    values = {secret_id: value_of(secret_id) for secret_id in secret_ids}
    read = peers.ALL[name](client(values), peers.TTL)
    values["warm-up"] = value_of("warm-up")
    read("warm-up")
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for secret_id in secret_ids:
        read(secret_id)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return (after - before) / count - sum(sys.getsizeof(values[each]) for each in secret_ids) / count


def value_of(secret_id: str) -> str:
    """Return what a secret of RDS holds."""
    login = {"engine": "postgres", "host": "db.example.com", "port": 5432, "username": "app", "password": "p" * 32}
    return json.dumps({**login, "dbname": secret_id})


def client(values: dict[str, str]) -> Any:
    """Return a real client whose requests are answered before they are sent: 10,000 of them take minutes otherwise."""
    session = botocore.session.get_session()
    session.set_credentials("testing", "testing")
    made: Any = session.create_client("secretsmanager", region_name="eu-central-1")

    def answer(request: Any, **_: Any) -> AWSResponse:
        secret_id = json.loads(request.body)["SecretId"]
        version_id = VERSION.format(len(secret_id) * 1_000_000 + hash(secret_id) % 1_000_000)
        body = {
            "ARN": f"{ACCOUNT}:{secret_id}-AbCdEf",
            "CreatedDate": 1.7e9,
            "Name": secret_id,
            "SecretString": values[secret_id],
            "VersionId": version_id,
            "VersionStages": ["AWSCURRENT"],
            "VersionIdsToStages": {version_id: ["AWSCURRENT"]},
        }
        headers: Any = {"x-amzn-RequestId": version_id, "Content-Type": "application/x-amz-json-1.1"}
        return AWSResponse(request.url, 200, headers, Body(json.dumps(body).encode()))

    made.meta.events.register("before-send.secretsmanager", answer)
    return made


class Body(io.BytesIO):
    """The part of urllib3's response that botocore reads."""

    def stream(self) -> Any:
        yield self.read()


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2])))
