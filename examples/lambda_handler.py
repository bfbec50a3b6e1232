"""A Lambda handler that connects to a database whose password rotates.

The cache is made and filled while Lambda initialises the function, and then serves all its invocations: one
request for the secret per five minutes, however many they are. Settings: SECRET_ID; Lambda sets AWS_*.
"""

import os
from typing import Any

import psycopg

from smcache import Secret, SecretCache

SECRET_ID = os.environ["SECRET_ID"]

cache = SecretCache()
cache.prefetch([SECRET_ID])  # needs BatchGetSecretValue; what it cannot load is loaded, or its error raised, on use


@cache.retry_on_auth_error(SECRET_ID)
def connect(secret: Secret) -> psycopg.Connection[Any]:
    """Open a connection with the login of the secret."""
    return psycopg.connect(
        host=secret["host"],
        port=secret["port"],
        user=secret["username"],
        password=secret["password"],
        dbname=secret["dbname"],
        connect_timeout=5,
    )


def handler(_event: object, _context: object) -> dict[str, Any]:
    """Ask the server who we are."""
    with connect() as connection:
        [(user,)] = connection.execute("select current_user").fetchall()
    return {"statusCode": 200, "body": user}
