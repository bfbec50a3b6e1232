"""How many requests each situation takes."""

from __future__ import annotations

import threading
import time

import peers
from report import Case, Goal

from smcache.testing import secrets_manager

NAME = "prod/db"
TTL = 1.0  # seconds: AWS's cache counts in whole ones
SITUATIONS = ("cold read", "one TTL later", "one rotation and one TTL later")


def per_situation(*, quick: bool) -> Case:
    """Read once in each situation, and count what arrives at the server."""
    case = Case("requests by situation", note="One read in each: cold; one TTL later; after a rotation, one TTL later.")
    with secrets_manager() as aws:
        for name, make in peers.ALL.items():
            secret_id = f"{NAME}/{name.replace(' ', '-')}"
            aws.create(secret_id, "first")
            read = make(aws.client(), TTL)
            counts = []
            for situation in SITUATIONS:
                if situation != "cold read":
                    time.sleep(1.2 * TTL)
                if "rotation" in situation:
                    aws.put(secret_id, "second")
                before = sum(aws.requests.values())
                read(secret_id)
                for thread in threading.enumerate():
                    if thread.name == "smcache-fetch":
                        thread.join()  # a refresh in the background counts too
                counts.append(float(sum(aws.requests.values()) - before))
            case.add({f"{name}, {when}": [count] for when, count in zip(SITUATIONS, counts, strict=True)}, "")
    del quick  # counts need no rounds
    ours = [figure for figure in case.figures if figure.name.startswith(f"{peers.SMCACHE},")]
    for figure in ours:
        case.goals.append(Goal(f"1 request, {figure.name.partition(', ')[2]}", figure.samples, "", 1, 1))
    return case
