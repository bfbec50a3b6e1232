"""Django on PostgreSQL, MySQL and MariaDB: ``settings.py`` names a secret and nothing else.

    DATABASES = {
        "default": {
            "ENGINE": "smcache.integrations.django.postgresql",  # or ...django.mysql
            "OPTIONS": {"secret_id": "prod/db"},
        },
    }

Username and password always come from the secret; ``HOST``, ``PORT`` and ``NAME`` do where the settings leave them
out. Everything else is Django's own backend, ``CONN_MAX_AGE`` and ``OPTIONS["pool"]`` included. That for MySQL needs
mysqlclient, or PyMySQL in its place: ``pymysql.install_as_MySQLdb()`` stands at the top of ``settings.py``.

All databases share one ``SecretCache``, made when the first connects; ``use_cache`` gives them another. To retire
connections after a rotation as well, set ``CONN_MAX_AGE``: Django closes a thread's connection in that thread only.
Tests need ``TEST: {"NAME": ...}`` where the settings have no ``NAME``, since Django makes one of the other. Where they
have no ``HOST`` either, each secret counts as a server of its own: of two for the same, one alias is the other's
``TEST: {"MIRROR": ...}``. And ``dbshell``, which reads nothing but settings, does not know the secret.
"""

from __future__ import annotations

import threading

from smcache.cache import SecretCache

__all__ = ["cache", "use_cache"]

_lock = threading.Lock()
_cache: SecretCache | None = None


def cache() -> SecretCache:
    """Return the process's cache, for ``get``, ``on_rotation`` and ``metrics``; made on first use."""
    global _cache  # noqa: PLW0603 - Django makes its backends by name, and passes them nothing of ours
    with _lock:
        if _cache is None:
            _cache = SecretCache()
        return _cache


def use_cache(replacement: SecretCache) -> None:
    """Have all databases read their secrets from this cache from now on; the former one is not closed."""
    global _cache  # noqa: PLW0603 - as above
    with _lock:
        _cache = replacement
