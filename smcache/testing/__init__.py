"""A test kit: a Secrets Manager and databases to throw away, and a rotation of one through the other.

It needs the extra ``smcache[testing]``. Nothing heavy is imported before it is used.
"""

from smcache.testing.faults import (
    Fault,
    Hold,
    Injection,
    answer,
    deny,
    drop,
    hang,
    latency,
    malformed,
    server_error,
    tcp_reset,
    throttle,
)
from smcache.testing.mariadb_server import MariaDB, mariadb
from smcache.testing.postgresql import PostgreSQL, postgres
from smcache.testing.rotation import RotationError, rotate
from smcache.testing.server import SecretsManager, secrets_manager
from smcache.testing.valkey_server import Valkey, valkey

__all__ = [
    "Fault",
    "Hold",
    "Injection",
    "MariaDB",
    "PostgreSQL",
    "RotationError",
    "SecretsManager",
    "Valkey",
    "answer",
    "deny",
    "drop",
    "hang",
    "latency",
    "malformed",
    "mariadb",
    "postgres",
    "rotate",
    "secrets_manager",
    "server_error",
    "tcp_reset",
    "throttle",
    "valkey",
]
