"""smcache: a client-side cache for AWS Secrets Manager.

    from smcache import SecretCache

    cache = SecretCache()


    @cache.retry_on_auth_error("prod/db")
    def connect(secret, *, timeout=5):
        return psycopg.connect(host=secret["host"], password=secret["password"], connect_timeout=timeout, ...)


    connection = connect(timeout=2)

Names are loaded when they are first used; importing the package imports neither botocore nor its own drivers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smcache.aio import AsyncSecretCache
    from smcache.auth import is_auth_error
    from smcache.cache import SecretCache
    from smcache.config import CacheConfig
    from smcache.errors import (
        AccessDenied,
        CacheClosed,
        DecryptionFailed,
        Denied,
        FetchTimeout,
        InvalidArgument,
        MalformedResponse,
        MissingExtra,
        NoOtherVersion,
        NoSuchKey,
        NotConfigured,
        NotJSON,
        RequestRejected,
        SecretCacheError,
        SecretDeleted,
        SecretNotFound,
        SecretValueError,
        SourceFailed,
        Throttled,
        Unavailable,
        WrongKind,
        WrongLoop,
    )
    from smcache.metrics import CostModel, MetricsSnapshot
    from smcache.secret import Secret

__all__ = [
    "AccessDenied",
    "AsyncSecretCache",
    "CacheClosed",
    "CacheConfig",
    "CostModel",
    "DecryptionFailed",
    "Denied",
    "FetchTimeout",
    "InvalidArgument",
    "MalformedResponse",
    "MetricsSnapshot",
    "MissingExtra",
    "NoOtherVersion",
    "NoSuchKey",
    "NotConfigured",
    "NotJSON",
    "RequestRejected",
    "Secret",
    "SecretCache",
    "SecretCacheError",
    "SecretDeleted",
    "SecretNotFound",
    "SecretValueError",
    "SourceFailed",
    "Throttled",
    "Unavailable",
    "WrongKind",
    "WrongLoop",
    "is_auth_error",
]

_HOMES = {
    "AsyncSecretCache": "aio",
    "CacheConfig": "config",
    "CostModel": "metrics",
    "MetricsSnapshot": "metrics",
    "Secret": "secret",
    "SecretCache": "cache",
    "is_auth_error": "auth",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'smcache' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"smcache.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
