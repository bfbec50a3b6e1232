"""A test kit: a Secrets Manager and a PostgreSQL to throw away, and a rotation of one through the other.

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
from smcache.testing.postgresql import PostgreSQL, postgres
from smcache.testing.rotation import RotationError, rotate
from smcache.testing.server import SecretsManager, secrets_manager

__all__ = [
    "Fault",
    "Hold",
    "Injection",
    "PostgreSQL",
    "RotationError",
    "SecretsManager",
    "answer",
    "deny",
    "drop",
    "hang",
    "latency",
    "malformed",
    "postgres",
    "rotate",
    "secrets_manager",
    "server_error",
    "tcp_reset",
    "throttle",
]
