"""A few seconds of the soak, which takes minutes by itself: ``python benchmarks/soak.py``."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from smcache.testing import PostgreSQL, SecretsManager

pytestmark = pytest.mark.servers

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the source distribution has no benchmarks")
def test_nobody_fails_whatever_happens_as_long_as_there_is_a_value_or_a_credential(
    aws: SecretsManager, pg: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)  # of the process that it spawns, too
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    trouble = importlib.import_module("soak").Trouble(aws, pg, seed=471)
    figures = trouble.run(seconds=3)
    assert not figures.failures
    assert trouble.rotations
    assert trouble.faults.total()
    users = {f"{what} by a {who}" for what in ("read", "connection") for who in ("thread", "task")}
    assert figures.operations.keys() == {*users, "life of a child"}
