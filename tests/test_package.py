"""What `import smcache` gives, and what it does not bring along."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import smcache
from smcache import errors


def modules_after(code: str) -> set[str]:
    """Return the modules loaded in a fresh interpreter after some code."""
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own code
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import smcache",
        "from smcache import SecretCache, CacheConfig, Secret, is_auth_error",
        "import smcache.testing, smcache.cli",
    ],
)
def test_importing_loads_no_heavy_module(code: str) -> None:
    heavy = {"boto3", "botocore", "tenacity", "rich", "cachetools", "moto", "psycopg", "asyncio", "flask"}
    assert not modules_after(code) & heavy


def test_a_cache_with_a_source_of_its_own_never_loads_botocore() -> None:
    code = """
from smcache import Secret, SecretCache
from smcache.sources import Answer
class Mine:
    def fetch(self, secret_id, stage, version_id):
        return Answer(Secret("v", name=secret_id, version_id="1"))
    def close(self): ...
with SecretCache(source=Mine()) as cache:
    cache.get("x")
"""
    assert not modules_after(code) & {"boto3", "botocore"}


def test_all_public_names_are_there_sorted_and_nothing_else_is() -> None:
    assert list(smcache.__all__) == sorted(smcache.__all__)
    assert set(errors.__all__) <= set(smcache.__all__)
    for name in smcache.__all__:
        assert getattr(smcache, name) is not None
    assert set(smcache.__all__) < set(dir(smcache))
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        smcache.Missing  # noqa: B018


def test_everything_public_has_a_docstring() -> None:
    for name in smcache.__all__:
        thing = getattr(smcache, name)
        assert inspect.getdoc(thing), name
        if inspect.isclass(thing) and thing.__module__.startswith("smcache"):
            for attribute, value in vars(thing).items():
                if not attribute.startswith("_") and callable(value):
                    assert inspect.getdoc(value), f"{name}.{attribute}"
