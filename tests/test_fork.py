"""Forked children: real processes, forked while threads hold locks and requests are under way."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from smcache import SecretCache

if TYPE_CHECKING:
    from smcache.testing import SecretsManager

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")


def run_python(code: str, aws: SecretsManager) -> str:
    """Run a program of its own, since a fork of the test process would take pytest along."""
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, **aws.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_starts_with_the_parents_values_and_a_client_of_its_own(aws: SecretsManager) -> None:
    aws.create("prod/db", "v1")
    printed = run_python(
        """
        import os
        from smcache import SecretCache
        cache = SecretCache()
        mine = cache.get("prod/db")
        client = cache._sources[0]._client
        if os.fork() == 0:
            assert cache.get("prod/db") is mine
            assert cache.refresh("prod/db") is mine
            assert cache._sources[0]._client is not client
            print("child", flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
        assert cache.refresh("prod/db") is mine
        assert cache._sources[0]._client is client
        print("parent")
        """,
        aws,
    )
    assert printed.split() == ["child", "parent"]
    assert aws.requests == {"GetSecretValue": 3}


def test_a_child_keeps_a_client_or_source_that_was_given(aws: SecretsManager) -> None:
    """The cache cannot make another: it is for the user to give none where processes are forked."""
    aws.create("prod/db", "v1")
    printed = run_python(
        """
        import os, boto3
        from smcache import Secret, SecretCache
        from smcache.sources import Answer
        class Mine:
            def fetch(self, *_): return Answer(Secret("mine", name="prod/db", version_id="1"))
            def close(self): ...
        client = boto3.client("secretsmanager")
        caches = SecretCache(client), SecretCache(source=Mine())
        if os.fork() == 0:
            same = caches[0]._sources[0]._client is client
            print([cache.get("prod/db").string for cache in caches], same, flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
        """,
        aws,
    )
    assert printed.strip() == "['v1', 'mine'] True"


def test_children_forked_in_the_middle_of_reads_and_requests_do_not_hang(aws: SecretsManager) -> None:
    for n in range(8):
        aws.create(f"s{n}", "v")
    printed = run_python(
        """
        import os, threading
        from smcache import SecretCache
        cache = SecretCache()
        cache.get("s0")  # no process forks well in the middle of an import, and the first read imports botocore
        going = True
        def read(n):
            while going:
                cache.invalidate(f"s{n}")
                assert cache.get(f"s{n}").string == "v"
        threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        children = []
        for n in range(20):
            child = os.fork()
            if child == 0:
                # Half of them ask for what a thread of the parent is asking for at this moment.
                for name in {f"s{n % 8}", "s0"}:
                    assert cache.get(name).string == "v"
                os._exit(0)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        going = False
        for thread in threads: thread.join()
        print(codes)
        """,
        aws,
    )
    assert printed.strip() == str([0] * 20)


def test_a_process_that_is_spawned_is_told_to_make_a_cache_of_its_own() -> None:
    with SecretCache() as cache, pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(cache)
