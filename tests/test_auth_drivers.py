"""Failures of the drivers that have no server here, made by the installed drivers' own code and classes.

Those with a server (PostgreSQL, MySQL, Redis) are in `test_auth.py` and in the tests of their integrations. The
texts are the servers' own: Oracle's error help, SQL Server's sys.messages, MongoDB's and Redshift's answers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import oracledb
import pymongo.errors
import pymssql
import pytest
from oracledb import errors as oracle_errors
from pymongo.helpers_shared import _check_command_response
from redshift_connector import error as redshift_error
from redshift_connector.core import Connection

from smcache import is_auth_error
from smcache.auth import verdict

REFUSED = ConnectionRefusedError(111, "Connection refused")


def oracle(code: int, text: str) -> BaseException:
    """Make what the thin driver raises of an error that the server sends."""
    error = oracle_errors._Error(f"ORA-{code:05}: {text}", code=code)
    failure: BaseException = error.exc_type(error)
    return failure


def oracle_driver(number: int, **details: Any) -> BaseException:
    """Make what the driver raises of an error of its own."""
    failure: BaseException = oracle_errors._create_exception(number, **details)
    return failure


def redshift(sqlstate: str, message: str, severity: str = "FATAL") -> BaseException:
    """Have the driver read an ErrorResponse off the wire."""
    fields = {"S": severity, "C": sqlstate, "M": message, "F": "/home/ec2-user/src/auth.c", "R": "auth_failed"}
    connection: Any = SimpleNamespace(error=None)
    wire = b"".join(f"{name}{value}".encode() + b"\0" for name, value in fields.items()) + b"\0"
    Connection.handle_ERROR_RESPONSE(connection, wire, None)
    failure: BaseException = connection.error
    return failure


def mongo(code: int, name: str, message: str) -> BaseException:
    """Have the driver read a command's answer."""
    with pytest.raises(pymongo.errors.PyMongoError) as caught:
        _check_command_response({"ok": 0, "code": code, "codeName": name, "errmsg": message}, None)
    return caught.value


def mssql(number: int, text: str) -> BaseException:
    """Make what `pymssql.connect` raises: of two classes, one raised while the other was handled."""
    failure: BaseException = pymssql.OperationalError((number, text.encode()))
    failure.__context__ = pymssql._mssql.MSSQLDatabaseException((number, text.encode()))
    return failure


def dblib(severity: int) -> str:
    """Return what DB-Lib adds to a server's message, and gives in its place after another failure of the process."""
    return (
        f"DB-Lib error message 20018, severity {severity}:\n"
        "General SQL Server error: Check messages from the SQL Server\n"
        "DB-Lib error message 20002, severity 9:\nTDS server connection failed (db)\n"
    )


DOWN = (
    "DB-Lib error message 20009, severity 9:\nUnable to connect: TDS server is unavailable or does not exist (db)\n"
    "Net-Lib error during Connection refused (111)\n"
)

FAILURES: dict[str, tuple[BaseException, str | None]] = {
    "oracle: wrong password": (oracle(1017, "invalid username/password; logon denied"), "rejected"),
    "oracle: wrong password, 23ai": (oracle(1017, "invalid credential or not authorized; logon denied"), "rejected"),
    "oracle: no password": (oracle(1005, "null password given; logon denied"), "rejected"),
    "oracle: account locked": (oracle(28000, "The account is locked."), "account"),
    "oracle: password expired": (oracle(28001, "The password has expired."), "account"),
    "oracle: password will expire": (oracle(28002, "The password will expire within 7 days."), None),
    "oracle: no CREATE SESSION": (oracle(1045, "user APP lacks CREATE SESSION privilege; logon denied"), None),
    "oracle: no privilege": (oracle(1031, "insufficient privileges"), None),
    "oracle: no table": (oracle(942, "table or view does not exist"), None),
    "oracle: starting up": (oracle(1033, "ORACLE initialization or shutdown in progress"), None),
    "oracle: restricted": (oracle(1035, "ORACLE only available to users with RESTRICTED SESSION privilege"), None),
    "oracle: too many sessions": (oracle(18, "maximum number of sessions exceeded"), None),
    "oracle: too many of a user": (oracle(2391, "exceeded simultaneous SESSIONS_PER_USER limit"), None),
    "oracle: killed": (oracle(28, "your session has been killed"), None),
    "oracle: refused to a link": (
        oracle(1017, "invalid username/password; logon denied\nORA-02063: preceding line from LINK"),
        None,
    ),
    "oracle: no such service": (
        oracle_driver(oracle_errors.ERR_INVALID_SERVICE_NAME, service_name="x", host="db", port=1521),
        None,
    ),
    "oracle: down": (
        oracle_driver(oracle_errors.ERR_CONNECTION_FAILED, cause=REFUSED, connection_id="1017"),
        None,
    ),
    "oracle: no password in the client": (oracle_driver(oracle_errors.ERR_NO_CREDENTIALS), None),
    "redshift: wrong password": (redshift("28000", 'password authentication failed for user "app"'), "rejected"),
    "redshift: as PostgreSQL": (redshift("28P01", 'password authentication failed for user "app"'), "rejected"),
    "redshift: no pg_hba entry": (redshift("28000", 'no pg_hba.conf entry for host "::1", user "app"'), None),
    "redshift: no such database": (redshift("3D000", 'database "x" does not exist'), None),
    "redshift: no permission": (redshift("42501", "permission denied for relation t", "ERROR"), None),
    "redshift: in a statement": (redshift("28000", "password authentication failed for user", "ERROR"), None),
    "redshift: too many": (redshift("53300", "too many connections for user (limit 500)"), None),
    "redshift: starting up": (redshift("57P03", "the database system is starting up"), None),
    "redshift: down": (redshift_error.InterfaceError("communication error", REFUSED), None),
    "mongo: wrong password": (mongo(18, "AuthenticationFailed", "Authentication failed."), "rejected"),
    "mongo: Atlas": (mongo(8000, "AtlasError", "bad auth : authentication failed"), "rejected"),
    "mongo: expired": (mongo(391, "ReauthenticationRequired", "Reauthentication required"), "rejected"),
    "mongo: Atlas, quota": (mongo(8000, "AtlasError", "you are over your space quota"), None),
    "mongo: no permission": (mongo(13, "Unauthorized", "not authorized on shop to execute command"), None),
    "mongo: no login": (mongo(13, "Unauthorized", "Command find requires authentication"), None),
    "mongo: no such user": (mongo(11, "UserNotFound", "Could not find user app@admin"), None),
    "mongo: no such mechanism": (mongo(334, "MechanismUnavailable", "SCRAM-SHA-256 is disabled"), None),
    "mongo: no such database": (mongo(26, "NamespaceNotFound", "Database x doesn't exist"), None),
    "mongo: shutting down": (mongo(11600, "InterruptedAtShutdown", "interrupted at shutdown"), None),
    "mongo: time limit": (mongo(50, "MaxTimeMSExpired", "operation exceeded time limit"), None),
    "mongo: down": (pymongo.errors.ServerSelectionTimeoutError("db:27017: [Errno 111] Connection refused"), None),
    "mongo: too many": (pymongo.errors.AutoReconnect("db:27017: connection closed"), None),
    "mongo: pool is full": (pymongo.errors.WaitQueueTimeoutError("Timed out while checking out a connection"), None),
    "mssql: wrong password": (mssql(18456, "Login failed for user 'app'." + dblib(14)), "rejected"),
    "mssql: no such database": (
        mssql(4060, 'Cannot open database "x" requested by the login. The login failed.' + dblib(11)),
        None,
    ),
    "mssql: no such database, later": (mssql(18456, dblib(11) + dblib(14)), None),
    "mssql: too many": (
        mssql(17809, "Could not connect because the maximum number of '1' user connections has been reached."),
        None,
    ),
    "mssql: locked": (mssql(18486, "Login failed for user 'app' because the account is locked out."), "account"),
    "mssql: disabled": (mssql(18470, "Login failed for user 'app'. Reason: The account is disabled."), "account"),
    "mssql: expired": (mssql(18487, "Login failed for user 'app'.  Reason: The password has expired."), "account"),
    "mssql: upgrading": (mssql(18401, "Login failed for user 'app'. Reason: Server is in script upgrade mode."), None),
    "mssql: domain": (mssql(18452, "Login failed. The login is from an untrusted domain"), None),
    "mssql: no permission": (mssql(229, "The SELECT permission was denied on the object 't'"), None),
    "mssql: down, after a rejection": (mssql(18456, DOWN), None),
    # pymssql keeps the worst message of the process: of all rejections but the first, nothing else is left.
    "mssql: the second in a process": (mssql(18456, dblib(14)), None),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_drivers_own_exceptions_are_judged_by_what_the_server_meant(case: str) -> None:
    error, expected = FAILURES[case]
    assert verdict(error) == expected
    assert is_auth_error(error) is (expected is not None)


def test_the_drivers_choose_the_classes() -> None:
    """That they are not always the same is why classes decide nothing."""
    kinds = {case: type(error) for case, (error, _) in FAILURES.items()}
    assert kinds["oracle: wrong password"] is kinds["oracle: no privilege"] is oracledb.DatabaseError
    assert kinds["redshift: wrong password"] is kinds["redshift: down"] is redshift_error.InterfaceError
    assert kinds["redshift: as PostgreSQL"] is kinds["redshift: too many"] is redshift_error.ProgrammingError
    assert kinds["mongo: wrong password"] is kinds["mongo: no permission"] is pymongo.errors.OperationFailure
    assert kinds["mssql: wrong password"] is kinds["mssql: too many"] is pymssql.OperationalError
