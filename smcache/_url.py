"""The fields that the secrets of databases carry, read with care: as a URL, or as the arguments of a driver.

The fields are those of
https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from smcache.errors import SecretValueError

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
    who = {"username": _text(fields, "username"), "password": _text(fields, "password")}
    found = {
        "host": _optional_text(fields, "host"),
        "port": _port(fields),
        "dbname": _optional_text(fields, "dbname"),
    }
    where = {
        field: value
        for field, value in found.items()
        if value is not None and field in names and not given.get(names[field])
    }
    return {names[field]: value for field, value in {**who, **where}.items()}


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
    # A Redis without users has a password alone; everything else logs in by name.
    username = (_optional_text(fields, "username") or "") if scheme == "redis" else _text(fields, "username")
    password = _text(fields, "password")
    host = _text(fields, "host") if host is None else host
    port = (_port(fields) or default_port) if port is None else port
    dbname = (_optional_text(fields, "dbname") or "") if dbname is None else dbname
    name = quote(dbname, safe="")
    if scheme == "oracle" and name:
        name = f"?service_name={name}"  # a bare name would be a SID; AWS's rotation connects to host:port/dbname
    return (
        f"{scheme}{f'+{driver}' if driver else ''}://{quote(username, safe='')}:{quote(password, safe='')}"
        f"@{_bracketed(host)}:{port}{f'/{name}' if name else ''}"
    )


def _scheme(secret_id: str, engine: str) -> tuple[str, int]:
    known = _ENGINES.get(engine)
    if known is None:
        raise SecretValueError(
            "no URL is known for its engine", secret_id=secret_id, hint=f"engine is one of {', '.join(_ENGINES)}"
        )
    return known


def _bracketed(host: str) -> str:
    # A % before the zone of a link-local address is %25 in a URL (RFC 6874); a socket's directory is %2Ftmp.
    return f"[{quote(host, safe=':')}]" if ":" in host else quote(host, safe="")


def _text(fields: SecretFields, key: str) -> str:
    value: Any = fields[key]
    if not isinstance(value, str):
        kind = type(value).__name__
        raise SecretValueError(f"its {key!r} is no string, but {kind}", secret_id=fields.secret_id)
    if not value:
        raise SecretValueError(f"its {key!r} is empty", secret_id=fields.secret_id)
    return value


def _optional_text(fields: SecretFields, key: str) -> str | None:
    return None if fields.get(key) in (None, "") else _text(fields, key)


def _port(fields: SecretFields) -> int | None:
    """Return the port, which some secrets have as a number and others as text."""
    value = fields.get("port")
    if value in (None, ""):
        return None
    text = str(value)
    # isdecimal: int() would take '1_000' and quote the text of what it refuses.
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _MAX_PORT):
        raise SecretValueError("its 'port' is no port number", secret_id=fields.secret_id)
    return int(text)
