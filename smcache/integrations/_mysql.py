"""What the drivers of MySQL and MariaDB have in common: who logs in, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smcache import _url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smcache.secret import Secret

# What else says where the server is.
_PLACES = ("host", "unix_socket", "read_default_file")


def arguments(secret: Secret, given: Mapping[str, Any], dbname: str = "database") -> dict[str, Any]:
    """Return what to lay over the arguments that a driver was given; ``dbname`` is what it calls the database.

    User and password always; host, port and database where the driver was given none, and no host beside a socket.

    Raises:
        NoSuchKey: The secret has no username or no password, or nothing says where the server is; the message names
            the keys it has.
        SecretValueError: A field is of the wrong type, or the port is none.
    """
    names = {"username": "user", "password": "password", "host": "host", "port": "port"}
    if not (given.get("database") or given.get("db")):
        names["dbname"] = dbname
    if given.get("unix_socket"):
        del names["host"]  # mysqlclient would prefer it
    if not any(map(given.get, _PLACES)):
        secret["host"]  # the drivers would look for a server on this machine
    return _url.arguments(secret, names, given)
