"""What people use today, each behind the same interface: a function that takes a secret's name and returns its value.

All are made from the same arguments: a boto3 client and a TTL in seconds. Where a library hides its settings, the
function sets what makes it comparable, and nothing else.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from aws_lambda_powertools.utilities.parameters import SecretsProvider
from aws_secretsmanager_caching import SecretCache as AWSSecretCache
from aws_secretsmanager_caching import SecretCacheConfig as AWSConfig
from cachetools import TTLCache

from smcache import CacheConfig, SecretCache

if TYPE_CHECKING:
    from collections.abc import Callable

Read: TypeAlias = "Callable[[str], Any]"
TTL = 300.0
MAX_SIZE = 10_000

SMCACHE = "smcache"
AWS = "aws-secretsmanager-caching"
POWERTOOLS = "aws-lambda-powertools"
CACHETOOLS = "cachetools.TTLCache and a lock"
LRU = "functools.lru_cache"
BOTO3 = "boto3, no cache"


def smcache(client: Any, ttl: float) -> Read:
    """Return smcache's ``get``."""
    return SecretCache(client, config=CacheConfig(ttl=ttl, max_size=MAX_SIZE)).get


def aws(client: Any, ttl: float) -> Read:
    """Return AWS's own cache. Its TTL is in whole seconds; it takes a random one from half of that up."""
    config = AWSConfig(secret_refresh_interval=max(1, round(ttl)), max_cache_size=MAX_SIZE)
    read: Read = AWSSecretCache(config, client).get_secret_string
    return read


def powertools(client: Any, ttl: float) -> Read:
    """Return the parameters utility of Powertools for AWS Lambda. Its TTL is in whole seconds; 5 by default."""
    return functools.partial(SecretsProvider(boto3_client=client).get, max_age=max(1, round(ttl)))


def cachetools(client: Any, ttl: float) -> Read:
    """Return what most services write for themselves."""
    cache: TTLCache[str, str] = TTLCache(MAX_SIZE, ttl)
    lock = threading.Lock()

    def read(secret_id: str) -> str:
        with lock:
            value = cache.get(secret_id)
            if value is None:
                value = cache[secret_id] = client.get_secret_value(SecretId=secret_id)["SecretString"]
            return value

    return read


def lru(client: Any, ttl: float) -> Read:
    """Return the classic mistake: a cache that never hears of a rotation."""
    del ttl  # it has none
    return functools.lru_cache(MAX_SIZE)(lambda secret_id: client.get_secret_value(SecretId=secret_id)["SecretString"])


def boto3(client: Any, ttl: float) -> Read:
    """Return a request for every read."""
    del ttl
    return lambda secret_id: client.get_secret_value(SecretId=secret_id)["SecretString"]


#: smcache and everything it is compared with.
ALL: dict[str, Callable[[Any, float], Read]] = {
    SMCACHE: smcache,
    AWS: aws,
    POWERTOOLS: powertools,
    CACHETOOLS: cachetools,
    LRU: lru,
    BOTO3: boto3,
}

#: A first secret in a new process, as each one's documentation writes it.
FIRST_SECRET: dict[str, str] = {
    SMCACHE: 'from smcache import SecretCache; SecretCache().get("prod/db")',
    AWS: 'from aws_secretsmanager_caching import SecretCache; SecretCache().get_secret_string("prod/db")',
    POWERTOOLS: 'from aws_lambda_powertools.utilities import parameters; parameters.get_secret("prod/db")',
    BOTO3: 'import boto3; boto3.client("secretsmanager").get_secret_value(SecretId="prod/db")',
}


@dataclass
class Entry:
    """What the floor looks up."""

    value: str
    deadline: float


def floor(names: list[str]) -> Read:
    """Return the least that a cache with a TTL can do: one look-up in a dictionary, one comparison with the clock."""
    clock = time.monotonic
    # As in any cache, each has a value and a deadline of its own.
    table = {name: Entry(f"value of {name}", clock() + TTL * 1000) for name in names}

    def read(name: str) -> str:
        entry = table[name]
        if clock() < entry.deadline:
            return entry.value
        raise AssertionError

    return read
