"""A rotation of a password, of a database or of Redis, step by step, as AWS's rotation functions do it."""

from __future__ import annotations

import contextlib
import json
import secrets
import string
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_secretsmanager import SecretsManagerClient

__all__ = ["RotationError", "rotate"]

_PASSWORD_LENGTH = 32
_CLONE = "_clone"  # AWS's functions name the second user so
_POSTGRES = frozenset({"postgres", "postgresql", "aurora-postgresql"})
_MYSQL = frozenset({"mysql", "mariadb", "aurora-mysql"})
_REDIS = frozenset({"redis", "valkey"})
_ENGINES = _POSTGRES | _MYSQL | _REDIS
_POSTGRES_NAME_BYTES = 63  # of a longer name PostgreSQL silently drops the rest


class Connection(Protocol):
    """What `rotate` uses of a DB-API connection (PEP 249)."""

    def cursor(self) -> Any:
        """A cursor."""

    def commit(self) -> Any:
        """Commit."""

    def rollback(self) -> Any:
        """Roll back."""


class RedisClient(Protocol):
    """What `rotate` uses of a `redis.Redis`."""

    def execute_command(self, *args: Any) -> Any:
        """Send a command and return what the server answers."""


LONGEST_RETURN = 0.2  # seconds between the end of finishSecret and the end of AWSPENDING


class RotationError(RuntimeError):
    """A rotation could not go on. Its text, cause and context hold no password."""


def rotate(
    client: SecretsManagerClient,
    secret_id: str,
    connection: Connection | RedisClient,
    *,
    strategy: Literal["single-user", "alternating-users"] = "single-user",
    dwell: float = 0.5,
    sleep: Callable[[float], object] = time.sleep,
    on_step: Callable[[str, str], object] | None = None,
    login: Callable[[Mapping[str, Any]], Any] | None = None,
) -> str:
    """Rotate the password in a secret and at its server: PostgreSQL, MySQL, MariaDB, Redis or Valkey.

    The steps are those of AWS (https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html):

    1. createSecret stores a new password as a version labelled AWSPENDING;
    2. setSecret gives it to the server, which from now on accepts no other from that user;
    3. testSecret logs in with it;
    4. finishSecret moves AWSCURRENT to it, and a moment later AWS takes AWSPENDING off.

    An AWSPENDING version other than AWSCURRENT is a rotation that did not finish: it is finished now and
    gets no new password, as AWS's functions do. (AWS's RotateSecret refuses to start a second one.)
    What fails, `on_step` included, leaves everything as it is at that moment.

    Args:
        client: a boto3 Secrets Manager client. A rotation makes five requests: DescribeSecret,
            GetSecretValue, PutSecretValue and twice UpdateSecretVersionStage.
        secret_id: name or ARN. The secret is a JSON object with engine (postgres, mysql, mariadb, redis or
            valkey), username and password, as RDS secrets are.
        connection: what a user who may alter the role is logged in with: a DB-API connection, which is committed,
            or a `redis.Redis`.
        strategy: "single-user" changes the user's password. "alternating-users" gives a new one to the
            *other* user and names it in the secret: `app` and `app_clone` take turns, so that what is in
            use stays valid for one more rotation. The clone is made when it is missing: on PostgreSQL as
            a member of the role, on MySQL and MariaDB with a copy of its grants, on Redis with one of its rules.
        dwell: seconds between the steps; up to 0.2 of them before AWSPENDING is taken off.
        sleep: waits that long.
        on_step: called after each step with its name and the id of the new version.
        login: for testSecret, which does nothing without it: called with the new secret, it returns a
            connection, which is closed.

    Returns:
        The id of the version that is now AWSCURRENT.

    Raises:
        ValueError: an unknown strategy, or a dwell that is negative or not a number.
        RotationError: the secret is not one of a known server, or the server refused.
        botocore.exceptions.ClientError: Secrets Manager refused.
    """
    if strategy not in ("single-user", "alternating-users"):
        raise ValueError(f"strategy is 'single-user' or 'alternating-users', not {strategy!r}")
    if not dwell >= 0:
        raise ValueError(f"dwell is zero seconds or more, not {dwell}")

    current_id, current, version_id, pending = _create(client, secret_id, strategy)

    def done(step: str) -> None:
        if on_step is not None:
            on_step(step, version_id)
        if step != "finishSecret":
            sleep(dwell)

    done("createSecret")

    _set_password(connection, current, pending)
    done("setSecret")

    if login is not None:
        login(pending).close()
    done("testSecret")

    client.update_secret_version_stage(
        SecretId=secret_id,
        VersionStage="AWSCURRENT",
        MoveToVersionId=version_id,
        RemoveFromVersionId=current_id,
    )
    # AWS's backend does this when the function has returned (aws-secrets-manager-rotation-lambdas#145).
    sleep(min(dwell, LONGEST_RETURN))
    client.update_secret_version_stage(SecretId=secret_id, VersionStage="AWSPENDING", RemoveFromVersionId=version_id)
    done("finishSecret")
    return version_id


def _create(
    client: SecretsManagerClient, secret_id: str, strategy: str
) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    """Make the AWSPENDING version, or find it; return id and value of AWSCURRENT and of AWSPENDING."""
    stages = client.describe_secret(SecretId=secret_id).get("VersionIdsToStages", {})
    current_id = next((version for version, labels in stages.items() if "AWSCURRENT" in labels), None)
    current = _read(client, secret_id, "AWSCURRENT", current_id) if current_id else None
    if current_id is None or current is None:
        raise RotationError(f"{secret_id!r} has no value to begin with")
    unfinished = (v for v, labels in stages.items() if "AWSPENDING" in labels and v != current_id)
    version_id = next(unfinished, None) or str(uuid.uuid4())
    pending = _read(client, secret_id, "AWSPENDING", version_id) if version_id in stages else None
    if pending is None:
        user = current["username"] if strategy == "single-user" else _other_user(current)
        pending = {**current, "username": user, "password": _new_password()}
        client.put_secret_value(
            SecretId=secret_id,
            ClientRequestToken=version_id,
            SecretString=json.dumps(pending),
            VersionStages=["AWSPENDING"],
        )
    return current_id, current, version_id, pending


def _read(client: SecretsManagerClient, secret_id: str, stage: str, version_id: str) -> dict[str, Any] | None:
    """The secret as a mapping; None for a version without a value, which AWS's RotateSecret leaves."""
    try:
        answer = client.get_secret_value(SecretId=secret_id, VersionId=version_id, VersionStage=stage)
    except client.exceptions.ResourceNotFoundException:
        return None
    try:
        secret = json.loads(answer.get("SecretString", ""))
    except ValueError:
        secret = None  # its error would quote the text
    if not isinstance(secret, dict):
        raise RotationError(f"the {stage} version of {secret_id!r} is not a JSON object")
    for key in ("engine", "username", "password"):
        if not isinstance(secret.get(key), str):
            raise RotationError(f"the {stage} version of {secret_id!r} has no {key!r}; it has {sorted(secret)}")
    if secret["engine"] not in _ENGINES:
        known = ", ".join(sorted(_ENGINES))
        raise RotationError(f"no rotation is known for engine {secret['engine']!r}, but for {known}")
    return secret


def _new_password() -> str:
    # Letters and digits need no quoting, whatever a driver or a URL does with it.
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_PASSWORD_LENGTH))


def _other_user(secret: Mapping[str, Any]) -> str:
    name: str = secret["username"]
    if name.endswith(_CLONE):
        return name.removesuffix(_CLONE)
    if secret["engine"] in _POSTGRES and len((name + _CLONE).encode()) > _POSTGRES_NAME_BYTES:
        raise RotationError(f"{name + _CLONE!r} is too long a name for PostgreSQL")
    return name + _CLONE


def _set_password(connection: Connection | RedisClient, current: Mapping[str, Any], pending: Mapping[str, Any]) -> None:
    server: Any = connection
    model, user, password = current["username"], pending["username"], pending["password"]
    try:
        if pending["engine"] in _REDIS:
            _set_on_redis(server, model, user, password)
        else:
            change = _set_on_postgres if pending["engine"] in _POSTGRES else _set_on_mysql
            change(server.cursor(), model, user, password)
            server.commit()
    except RotationError:
        raise
    except Exception as error:  # noqa: BLE001 - of any driver
        refusal = _without_statement(error)
    else:
        return
    with contextlib.suppress(Exception):  # Redis has nothing to roll back
        server.rollback()
    # Raised out here, so that the driver's error, which may quote the statement, is not its context.
    raise RotationError(f"the server did not change the password of {user!r}: {refusal}")


def _without_statement(error: Exception) -> str:
    """What a driver's error is called, and its code: its text may hold the password."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    number = next((arg for arg in error.args[:1] if isinstance(arg, int)), None)  # as MySQL's drivers have it
    code = number or getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return kind if code is None else f"{kind} ({code})"


def _set_on_postgres(cursor: Any, model: str, user: str, password: str) -> None:
    cursor.execute(f"SELECT 1 FROM pg_roles WHERE rolname = E{_quoted(user)}")  # noqa: S608 - quoted
    if user == model or cursor.fetchone():
        cursor.execute(f"ALTER ROLE {_postgres_name(user)} PASSWORD E{_quoted(password)}")
    else:
        member = f"LOGIN IN ROLE {_postgres_name(model)}"
        cursor.execute(f"CREATE ROLE {_postgres_name(user)} {member} PASSWORD E{_quoted(password)}")


def _set_on_mysql(cursor: Any, model: str, user: str, password: str) -> None:
    hosts = _mysql_hosts(cursor, user)
    if user == model or hosts:
        for host in hosts or ["%"]:
            cursor.execute(f"ALTER USER {_mysql_name(user, host)} IDENTIFIED BY {_quoted(password)}")
        return
    for host in _mysql_hosts(cursor, model) or ["%"]:
        cursor.execute(f"SHOW GRANTS FOR {_mysql_name(model, host)}")
        grants = cursor.fetchall()
        cursor.execute(f"CREATE USER {_mysql_name(user, host)} IDENTIFIED BY {_quoted(password)}")
        for (grant,) in grants:
            cursor.execute(f"{grant.partition(' TO ')[0]} TO {_mysql_name(user, host)}")


def _set_on_redis(client: Any, model: str, user: str, password: str) -> None:
    rules = _redis_rules(client)
    if model not in rules:  # a database refuses by itself; Redis would make the user
        raise RotationError(f"there is no user {model!r}")
    like_model = [] if user in rules else ["on", *rules[model]]
    client.execute_command("ACL", "SETUSER", user, *like_model, "resetpass", f">{password}")


def _redis_rules(client: Any) -> dict[str, list[str]]:
    """What each user may do, without passwords (#) and whether the user is on or off."""
    lines = [line.decode() if isinstance(line, bytes) else line for line in client.execute_command("ACL", "LIST")]
    users = [line.split()[1:] for line in lines]  # the server joins a selector's parts again
    return {
        name: [rule for rule in rules if not rule.startswith("#") and rule not in ("on", "off", "nopass")]
        for name, *rules in users
    }


def _mysql_hosts(cursor: Any, user: str) -> list[str]:
    cursor.execute(f"SELECT host FROM mysql.user WHERE user = {_quoted(user)}")  # noqa: S608 - quoted
    return [host for (host,) in cursor.fetchall()]


def _postgres_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _mysql_name(user: str, host: str) -> str:
    return f"{_quoted(user)}@{_quoted(host)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
