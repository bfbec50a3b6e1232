"""The fields that the secrets of databases carry, read with care: as a URL, or as the arguments of a driver.

Tracebacks may show the locals of the frames they pass: username and password are read last, and never into one.

The fields are those of
https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from smcache.errors import InvalidArgument, SecretValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smcache.secret import Secret, SecretFields

#: By ``engine``: the URL's scheme, and the port where the secret has none.
_ENGINES: Mapping[str, tuple[str, int]] = {
    "postgres": ("postgresql", 5432),
    "postgresql": ("postgresql", 5432),
    "aurora-postgresql": ("postgresql", 5432),
    "mysql": ("mysql", 3306),
    "aurora-mysql": ("mysql", 3306),
    "mariadb": ("mariadb", 3306),
    "redshift": ("redshift", 5439),
    "oracle": ("oracle", 1521),
    "sqlserver": ("mssql", 1433),
    "mongo": ("mongodb", 27017),
    "docdb": ("mongodb", 27017),
    "redis": ("redis", 6379),
}
_MAX_PORT = 65535

#: What libpq, and all that is built on it, calls the fields.
LIBPQ = {"username": "user", "password": "password", "host": "host", "port": "port", "dbname": "dbname"}


def arguments(secret: Secret, names: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to lay over the arguments that a driver was given, by the driver's own names.

    Username and password always; host, port and dbname where the secret has them and the driver was given none.

    Raises:
        NoSuchKey: It has no username or no password; the message names the keys it has.
        SecretValueError: A field is of the wrong type, or the port is none.
    """
    fields = secret.json()
    where = {"host": _optional_text(fields, "host"), "port": _port(fields), "dbname": _optional_text(fields, "dbname")}
    return {
        **{
            names[field]: value
            for field, value in where.items()
            if value is not None and field in names and not given.get(names[field])
        },
        names["username"]: _text(fields, "username"),
        names["password"]: _text(fields, "password"),
    }


def url(
    secret: Secret,
    *,
    driver: str | None,
    engine: str | None,
    host: str | None,
    port: int | None,
    dbname: str | None,
) -> str:
    """Build the URL; see ``Secret.url``."""
    fields = secret.json()
    scheme, default_port = _scheme(secret.name, _text(fields, "engine") if engine is None else engine)
    place = _written(_text(fields, "host") if host is None else host)
    if place is None:
        wrong = SecretValueError if host is None else InvalidArgument
        raise wrong("'host' is neither a name nor an address", secret_id=secret.name, hint="a port goes into 'port'")
    number = (_port(fields) or default_port) if port is None else _port_number(port)
    if number is None:
        raise InvalidArgument("'port' is no port number", secret_id=secret.name)
    dbname = (_optional_text(fields, "dbname") or "") if dbname is None else dbname
    name = quote(dbname, safe="")
    if scheme == "oracle" and name:
        name = f"?service_name={name}"  # a bare name would be a SID; AWS's rotation connects to host:port/dbname
    return (
        f"{scheme}{f'+{driver}' if driver else ''}://{_login(fields, scheme)}"
        f"@{place}:{number}{f'/{name}' if name else ''}"
    )


def _login(fields: SecretFields, scheme: str) -> str:
    # A Redis without users has a password alone; everything else logs in by name.
    read_username = _optional_text if scheme == "redis" else _text
    return f"{quote(read_username(fields, 'username') or '', safe='')}:{quote(_text(fields, 'password'), safe='')}"


def _scheme(secret_id: str, engine: str) -> tuple[str, int]:
    known = _ENGINES.get(engine)
    if known is None:
        raise SecretValueError(
            "no URL is known for its engine", secret_id=secret_id, hint=f"engine is one of {', '.join(_ENGINES)}"
        )
    return known


def _written(host: str) -> str | None:
    """Return how a URL has the host, or None if it is none."""
    if ":" not in host or host.startswith("/"):
        return quote(host, safe="")  # a socket's directory is %2Ftmp
    try:
        IPv6Address(host)
    except ValueError:
        return None
    return f"[{quote(host, safe=':')}]"  # a % before the zone of a link-local address is %25 (RFC 6874)


def _text(fields: SecretFields, key: str) -> str:
    if not isinstance(fields[key], str):
        raise SecretValueError(
            f"its {key!r} is no string, but {type(fields[key]).__name__}", secret_id=fields.secret_id
        )
    if not fields[key]:
        raise SecretValueError(f"its {key!r} is empty", secret_id=fields.secret_id)
    if re.search("[\ud800-\udfff]", fields[key]):  # JSON allows it; the error of encoding it would show the value
        raise SecretValueError(f"its {key!r} holds half a character (a lone surrogate)", secret_id=fields.secret_id)
    return str(fields[key])


def _optional_text(fields: SecretFields, key: str) -> str | None:
    return None if fields.get(key) in (None, "") else _text(fields, key)


def _port(fields: SecretFields) -> int | None:
    """Return the port, which some secrets have as a number and others as text."""
    if fields.get("port") in (None, ""):
        return None
    port = _port_number(fields["port"])
    if port is None:
        raise SecretValueError("its 'port' is no port number", secret_id=fields.secret_id)
    return port


def _port_number(value: object) -> int | None:
    # int() would take '1_000', and raises for thousands of digits.
    number = int(str(value)) if re.fullmatch("[0-9]{1,5}", str(value)) else 0
    return number if 0 < number <= _MAX_PORT else None
