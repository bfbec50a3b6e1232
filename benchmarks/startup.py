"""What a new process pays before it has its first secret."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import peers
from report import Case, Goal, bars, ratios
from sampling import in_turns

from smcache.testing import secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEAVY = ("aiobotocore", "asyncio", "boto3", "botocore", "cachetools", "dataclasses", "inspect", "json", "tenacity")
# Linux's and macOS's monotonic clocks are those of the machine: parent and child read the same.
CODE = "{}\nimport time\nprint(time.monotonic())"


def imports(*, quick: bool) -> Case:
    """Compare an interpreter that imports smcache with one that imports nothing."""
    case = Case("import smcache")
    with tempfile.TemporaryDirectory() as directory:
        environ = compiled_in(directory)
        measure = {
            code: starting(code, environ) for code in ("pass", "import smcache", "from smcache import SecretCache")
        }
        taken = in_turns(measure, 3 if quick else 30)
        code = f"import sys, smcache; print(*sys.modules.keys() & {HEAVY!r})"
        heavy = run(code, environ).split()
    case.add(taken)
    beyond = [with_it - bare for with_it, bare in zip(taken["import smcache"], taken["pass"], strict=True)]
    case.goals = [
        Goal("≤ 15 ms over a bare interpreter", beyond, "s", most=0.015),
        Goal(f"heavy modules imported: none of {', '.join(HEAVY)}", [len(heavy)], "", most=0),
    ]
    return case


def first_secret(*, quick: bool) -> Case:
    """Compare the time from the start of a process to its first secret, with a client made from the usual settings."""
    case = Case("process start to first secret", file="startup.svg", draw=bars)
    with secrets_manager() as aws, tempfile.TemporaryDirectory() as directory:
        aws.create("prod/db", {"username": "app", "password": "p"})
        environ = compiled_in(directory) | aws.environ
        measure = {name: starting(code, environ) for name, code in peers.FIRST_SECRET.items()}
        taken = in_turns(measure, 3 if quick else 20)
    case.add(taken)
    fastest = min(taken.keys() - {peers.SMCACHE}, key=lambda name: statistics.median(taken[name]))
    goal = Goal(f"no slower than the fastest peer ({fastest})", ratios(taken[peers.SMCACHE], taken[fastest]), most=1)
    case.goals = [goal]
    return case


def compiled_in(directory: str) -> dict[str, str]:
    """Return an environment in which modules are compiled once, as pip leaves them, whatever the caller's says."""
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": directory}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


def starting(code: str, environ: Mapping[str, str]) -> Callable[[], float]:
    """Return what measures the seconds from the start of a new interpreter to the end of the code."""
    run(CODE.format(code), environ)  # compiles

    def measure() -> float:
        start = time.monotonic()
        return float(run(CODE.format(code), environ)) - start

    return measure


def run(code: str, environ: Mapping[str, str]) -> str:
    """Return what the code prints in a new interpreter."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 - our own
