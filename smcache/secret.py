"""Secret: one version of a secret, whose value shows itself only when it is asked for."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn, final

from smcache import _url
from smcache.errors import InvalidArgument, NoSuchKey, NotJSON, WrongKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

__all__ = ["Secret", "SecretFields"]


@final
class Secret:
    """One immutable version of a secret.

    The cache hands out one object per version for as long as it keeps it, so ``is`` tells whether the secret
    has changed. Neither ``repr``, ``str``, ``format`` nor pickle give the value away.

    Attributes:
        name: The friendly name, such as ``prod/db``.
        arn: The full ARN.
        version_id: The id of this version (32 to 64 characters).
        stages: The staging labels it had when it was fetched, such as ``("AWSCURRENT",)``.
        created_at: When the version was made, with time zone; None if the source does not say.
    """

    __slots__ = ("_fields", "_value", "arn", "created_at", "name", "stages", "version_id")

    name: str
    arn: str
    version_id: str
    stages: tuple[str, ...]
    created_at: datetime | None
    _value: str | bytes
    _fields: SecretFields | None

    def __init__(
        self,
        value: str | bytes,
        *,
        name: str,
        version_id: str,
        arn: str = "",
        stages: Iterable[str] = (),
        created_at: datetime | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "arn", arn)
        put(self, "version_id", version_id)
        put(self, "stages", tuple(stages))
        put(self, "created_at", created_at)
        put(self, "_fields", None)
        put(self, "_value", value if _is_value(value) else "")
        if not _is_value(value):
            kind = type(value).__name__
            del value  # a traceback shows its frames' locals
            raise InvalidArgument(f"a secret's value is str or bytes, not {kind}", secret_id=name)

    @property
    def string(self) -> str:
        """The value as text.

        Raises:
            WrongKind: The secret is binary.
        """
        if isinstance(self._value, str):
            return self._value
        raise WrongKind("the secret is binary, not a string", secret_id=self.name, hint="read .binary")

    @property
    def binary(self) -> bytes:
        """The value as bytes.

        Raises:
            WrongKind: The secret is a string.
        """
        if isinstance(self._value, bytes):
            return self._value
        raise WrongKind("the secret is a string, not binary", secret_id=self.name, hint="read .string")

    def json(self) -> SecretFields:
        """Return the value's JSON object, parsed once and read-only.

        Raises:
            NotJSON: The value is not JSON, or JSON but no object.
            WrongKind: The secret is binary.
        """
        if self._fields is not None:
            return self._fields
        fields = _parse_object(self.string)
        # Raised here, outside any except clause: JSONDecodeError carries the whole text with it.
        if isinstance(fields, str):
            raise NotJSON(fields, secret_id=self.name)
        fields.secret_id = self.name
        object.__setattr__(self, "_fields", fields)
        return fields

    def url(
        self,
        *,
        driver: str | None = None,
        engine: str | None = None,
        host: str | None = None,
        port: int | None = None,
        dbname: str | None = None,
    ) -> str:
        """Return a database URL made of the fields ``engine host port username password dbname``, percent-encoded.

        The URL holds the password: keep it out of logs. It is that of this version, so a pool that is given one
        stops connecting at the next rotation; ``smcache.integrations`` are for pools.

        Args:
            driver: What follows the scheme: ``"psycopg"`` gives ``postgresql+psycopg://``, as SQLAlchemy reads it.
            engine: Instead of the secret's own, for secrets that RDS manages: they have ``username`` and
                ``password`` only.
            host: Instead of the secret's own, such as that of a proxy or a read replica.
            port: Instead of the secret's own; the engine's usual port where neither says.
            dbname: Instead of the secret's own; left out where neither says.

        Raises:
            NoSuchKey: A field is missing; the message names those the secret has.
            SecretValueError: A field is of the wrong type, the engine is not known, or the host comes with a port.
            InvalidArgument: The ``port`` given is no port number, or the ``host`` given comes with a port.
            NotJSON: The value is no JSON object.
            WrongKind: The secret is binary.
        """
        return _url.url(self, driver=driver, engine=engine, host=host, port=port, dbname=dbname)

    def __getitem__(self, key: str) -> Any:
        """Return one field of the JSON object: ``secret["password"]``.

        Raises:
            NoSuchKey: The object lacks the key; the message names those it has.
            NotJSON: The value is no JSON object.
            WrongKind: The secret is binary.
        """
        return self.json()[key]

    def __iter__(self) -> NoReturn:
        # Without this, Python would iterate by __getitem__(0), (1), ... and report a missing key.
        raise TypeError("a Secret is not iterable; iterate over .json()")

    def __repr__(self) -> str:
        kind = "string" if isinstance(self._value, str) else "binary"
        stages = "".join(f" {stage}" for stage in self.stages)
        return f"<Secret {self.name!r} version {self.version_id!r}{stages} {kind} [redacted]>"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Secret is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Secret is immutable: cannot delete {name!r}")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret is not pickled, so that its value stays in this process; pass its name")


@final
class SecretFields(dict[str, Any]):
    """The JSON object of a secret: a read-only dict whose repr names its keys and never a value."""

    __slots__ = ("secret_id",)

    secret_id: str

    def __missing__(self, key: object) -> NoReturn:
        has = ", ".join(sorted(map(repr, self))) or "none"
        raise NoSuchKey(f"no key {key!r}; the secret has {has}", secret_id=self.secret_id)

    def __repr__(self) -> str:
        return f"<fields {sorted(self)} [redacted]>"

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a secret's fields are read-only; copy them with dict(...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> SecretFields:
        return self

    def __deepcopy__(self, memo: object) -> SecretFields:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret's fields are not pickled, so that they stay in this process")


def _is_value(value: object) -> bool:
    return isinstance(value, (str, bytes))


def _parse_object(text: str) -> SecretFields | str:
    """Return the JSON object in text, or what is wrong with it."""
    try:
        parsed = _read_only(json.loads(text))
    except (ValueError, RecursionError):
        return "the value is not JSON"
    if not isinstance(parsed, SecretFields):
        return "the value is JSON, but not an object"
    return parsed


def _read_only(value: Any) -> Any:
    if isinstance(value, dict):
        # Interned, as the names in programs are: found by identity, and shared by all secrets.
        fields = SecretFields((sys.intern(key), _read_only(item)) for key, item in value.items())
        fields.secret_id = ""
        return fields
    if isinstance(value, list):
        return tuple(map(_read_only, value))
    return value
