# ruff: noqa: RUF001 - PostgreSQL speaks 15 languages, and some of their letters look like Latin ones
"""What is a rejected credential, and what only looks like one."""

import ast
import asyncio
import builtins
import gc
import json
import re
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import mysql.connector
import psycopg
import psycopg2
import psycopg2.errors
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smcache import auth
from smcache.auth import is_auth_error, register_rule, unregister_rule, verdict

RECORDS = [
    json.loads(line) for line in (Path(__file__).parent / "data/auth_errors.jsonl").read_text("utf-8").splitlines()
]
PG = 'connection to server at "127.0.0.1", port 5432 failed: FATAL:  '
REFUSED = 'password authentication failed for user "app"'


def make(kind: str, *args: object, bases: tuple[str, ...] = (), text: str | None = None, **attrs: object) -> Any:
    """Make an exception of a class that is not installed, `kind` being its full name."""
    base: Any = Exception
    for full in reversed((kind, *bases)):
        module, _, name = full.rpartition(".")
        if full == "asyncio.exceptions.CancelledError":
            base = asyncio.CancelledError
        elif module == "builtins":
            base = getattr(builtins, name)
        elif module != "abc":
            base = type(name, (base,), {"__module__": module})
    if attrs or text is not None:
        shown = {} if text is None else {"__str__": lambda self: text}
        base = type(base.__name__, (base,), {"__module__": base.__module__, **shown, **attrs})
    error = base.__new__(base, *args)
    error.args = args
    return error


def chained(error: Any, *, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    error.__context__ = context
    if cause is not None:
        error.__cause__ = cause
    return error


def from_record(record: Mapping[str, Any]) -> BaseException:
    """Rebuild a recorded failure: its classes, arguments, attributes and chain."""
    links: dict[str, Any] = {}
    for link in record["chain"]:
        text = link.get("str")
        attrs = {name: attribute(name, value) for name, value in link["attrs"].items()}
        args = literal(link["args"])
        if "oracledb.errors._Error" in link["args"]:  # the record does not show what is in it
            code = re.search(r"ORA-(\d+)", text)
            args = (SimpleNamespace(code=int(code[1]) if code else 0, full_code=text.partition(":")[0]),)
        if link["class"].startswith("grpc"):
            status = SimpleNamespace(name=re.search(r"StatusCode\.(\w+)", text)[1])  # type: ignore[index] # it is there
            attrs["code"] = lambda self, status=status: status
        if link["class"].startswith("aiohttp"):
            attrs["code"] = property(lambda self: warnings.warn("code is deprecated", DeprecationWarning, stacklevel=2))
        if not isinstance(args, tuple):  # the repr of something else
            args = (text,)
        error = make(link["class"], *args, bases=tuple(link["mro"]), text=text, **attrs)
        parent, _, way = link["via"].removesuffix("(suppressed)").rpartition(".")
        if way:
            setattr(links[parent], way, error)
            links[parent].__suppress_context__ = way == "__cause__" or "(suppressed)" in link["via"]
            if way == "__cause__" and hasattr(links[parent], "orig"):
                links[parent].orig = error
        links[link["via"].removesuffix("(suppressed)")] = error
    root: BaseException = links[""]
    return root


def attribute(name: str, recorded: str) -> object:
    value = literal(recorded)
    if name == "diag" and isinstance(value, dict):
        return SimpleNamespace(**value)
    if name == "response" and isinstance(value, str):
        return SimpleNamespace(status_code=int(re.findall(r"\d{3}", value)[0]))
    return None if name == "orig" else value


def literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def test_there_are_records_of_every_verdict() -> None:
    assert len(RECORDS) == 718
    assert {record["expected"] for record in RECORDS} == {"rejected", "account", None}


@pytest.mark.parametrize(
    "record", RECORDS, ids=[f"{number}-{record['driver']}-{record['case']}" for number, record in enumerate(RECORDS)]
)
def test_a_recorded_failure_is_judged_as_recorded(record: Mapping[str, Any]) -> None:
    error = from_record(record)
    assert verdict(error) == record["expected"]
    assert is_auth_error(error) is (record["expected"] is not None)


# ------------------------------------------------------------------------- the installed drivers' own classes


def postgres_error(sqlstate: str, severity: str, message: str) -> BaseException:
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": message}
    error: BaseException = asyncpg.exceptions.PostgresError.new(fields)
    return error


REAL = [
    (psycopg.OperationalError("connection failed: " + PG + REFUSED), "rejected"),
    (psycopg.OperationalError("connection failed: FATAL:  " + REFUSED), "rejected"),  # 3.1
    (psycopg.OperationalError("connection failed: " + PG + 'role "app" is not permitted to log in'), "account"),
    (psycopg.OperationalError("connection failed: " + PG + 'database "x" does not exist'), None),
    (psycopg.OperationalError("connection failed: " + PG + "SASL authentication failed"), "rejected"),
    (psycopg.OperationalError("connection failed: " + PG + "no such user: app"), "rejected"),
    (psycopg.OperationalError("connection failed: " + PG + "auth failed"), "rejected"),
    (psycopg.OperationalError("connection failed: " + PG + "no such database: app"), None),
    (psycopg.OperationalError("connection failed: fe_sendauth: no password supplied"), "rejected"),
    (psycopg.errors.InvalidPassword("raised in a function"), "rejected"),  # severity unknown: unpickled
    (psycopg.errors.SqlclientUnableToEstablishSqlconnection("DETAIL:  " + PG + REFUSED), None),
    (psycopg.ProgrammingError('missing "=" after "FATAL:  ' + REFUSED + '"'), None),
    (psycopg2.OperationalError(PG + REFUSED + "\n"), "rejected"),
    (psycopg2.OperationalError("connection to a failed: Connection refused\n" + PG + REFUSED + "\n"), "rejected"),
    (psycopg2.OperationalError(PG + 'too many connections for role "app"\n'), None),
    (postgres_error("28P01", "FATAL", REFUSED), "rejected"),
    (postgres_error("28P01", "FATAL", "Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen"), "rejected"),
    (postgres_error("28P01", "ERROR", "raised in a function"), None),
    (postgres_error("28000", "FATAL", 'PAM authentication failed for user "app"'), "rejected"),
    (postgres_error("28000", "FATAL", 'role "app" is not permitted to log in'), "account"),
    (postgres_error("28000", "FATAL", "Rolle »app« hat keine Berechtigung zum Einloggen"), "account"),
    (postgres_error("28000", "FATAL", 'no pg_hba.conf entry for host "::1", user "app", database "x"'), None),
    (postgres_error("08P01", "FATAL", "SASL authentication failed"), "rejected"),
    (postgres_error("08P01", "FATAL", "no such database: x"), None),
    (postgres_error("53300", "FATAL", "sorry, too many clients already"), None),
    (pymysql.err.OperationalError(1045, "Access denied for user 'app'@'h' (using password: YES)"), "rejected"),
    (pymysql.err.OperationalError(1045, "Plugin caching_sha2_password could not be loaded: no such file"), None),
    (pymysql.err.OperationalError(1044, "Access denied for user 'app'@'h' to database 'x'"), None),
    (
        pymysql.err.OperationalError(3955, "Access denied for user 'app'@'h'. Account is blocked for 1 day(s)"),
        "account",
    ),
    (pymysql.err.OperationalError(1820, "You must reset your password using ALTER USER statement"), "account"),
    (pymysql.err.InterfaceError(0, ""), None),
    (mysql.connector.errors.ProgrammingError("Access denied", errno=1045, sqlstate="28000"), "rejected"),
    (mysql.connector.errors.DatabaseError("Your password has expired", errno=1862, sqlstate="HY000"), "account"),
    (mysql.connector.errors.ProgrammingError("Access denied to database", errno=1044, sqlstate="42000"), None),
    (mysql.connector.errors.ProgrammingError("x", errno=1644, sqlstate="28000"), None),
    (mysql.connector.errors.InterfaceError("2003: Can't connect", errno=2003), None),
]


@pytest.mark.parametrize(("error", "expected"), REAL, ids=lambda value: repr(value)[:90])
def test_the_installed_drivers_classes(error: BaseException, expected: str | None) -> None:
    assert verdict(error) == expected


class MyError(pymysql.err.OperationalError):
    pass


def test_a_users_subclass_of_a_drivers_class_is_that_drivers() -> None:
    assert verdict(MyError(1045, "x")) == "rejected"


# ------------------------------------------------------------------------------------ PostgreSQL's languages

MESSAGES: dict[str, list[tuple[str, str | None]]] = {
    "FATAL": [
        ("Passwort-Authentifizierung für Benutzer »app« fehlgeschlagen", "rejected"),
        ("LDAP-Authentifizierung für Benutzer »app« fehlgeschlagen", "rejected"),
        ("Rolle »app« hat keine Berechtigung zum Einloggen", "account"),
        ("GSSAPI-Authentifizierung für Benutzer »app« fehlgeschlagen", None),
        ("kein pg_hba.conf-Eintrag für Host »h«, Benutzer »app«, Datenbank »x«, SSL aus", None),
        ("la autentificación password falló para el usuario «app»", "rejected"),
        ("la autentificación PAM falló para el usuario «app»", "rejected"),
        ("al rol «app» no se le permite conectarse", "account"),
        ("no existe la base de datos «x»", None),
        ("authentification par mot de passe échouée pour l'utilisateur  « app »", "rejected"),
        ("authentification RADIUS échouée pour l'utilisateur « app »", "rejected"),
        ("le rôle « app » n'est pas autorisé à se connecter", "account"),
        ("password gagal diotentikasi untuk pengguna  « app »", "rejected"),
        ("PAM gagal di otentikasi untuk pengguna « app »", "rejected"),
        ("role « app » tidak diperbolehkan untuk log in", "account"),
        ('ユーザー"app"のパスワード認証に失敗しました', "rejected"),
        ('ユーザー"app"の RADIUS 認証に失敗しました', "rejected"),
        ('ロール"app"はログインが許可されません', "account"),
        ('データベース"x"は存在しません', None),
        ('autenticação do tipo senha falhou para o usuário "app"', "rejected"),
        ('role "app" não tem permissão para entrar', "account"),
    ],
    "FATALE": [
        ('autenticazione con password fallita per l\'utente "app"', "rejected"),
        ('Autenticazione LDAP fallita per l\'utente "app"', "rejected"),
        ('al ruolo "app" non è consentito effettuare il login', "account"),
    ],
    "ფატალური": [
        ('პაროლით ავთენტიფიკაცია მომხმარებლისთვის "app" ვერ მოხერხდა', "rejected"),
        ('რადიუსით ავთენტიფიკაცია მომხმარებლისთვის "app" ვერ მოხერხდა', "rejected"),
        ("როლს შესვლის უფლება არ აქვს: app", "account"),
        ('მონაცემთა ბაზა "x" არ არსებობს', None),
    ],
    "치명적오류": [
        ('사용자 "app"의 password 인증을 실패했습니다', "rejected"),
        ('"app" 사용자의 LDAP 인증을 실패했습니다.', "rejected"),
        ('"app" 롤은 접속을 허용하지 않음', "account"),
    ],
    "KATASTROFALNY": [
        ('autoryzacja hasłem nie powiodła się dla użytkownika "app"', "rejected"),
        ('Autoryzacja LDAP nie powiodła się dla użytkownika "app"', "rejected"),
        ('rola "app" nie zezwala na logowanie', "account"),
    ],
    "ВАЖНО": [
        ('пользователь "app" не прошёл проверку подлинности (по паролю)', "rejected"),
        ('пользователь "app" не прошёл проверку подлинности (LDAP)', "rejected"),
        ('пользователь "app" не прошёл проверку подлинности (GSSAPI)', None),
        ('для роли "app" вход запрещён', "account"),
    ],
    "FATALT": [
        ('Lösenordsautentisering misslyckades för användare "app"', "rejected"),
        ('RADOUS-autentisering misslyckades för användare "app"', "rejected"),
        ('roll "app" tillåts inte logga in', "account"),
    ],
    "ÖLÜMCÜL (FATAL)": [
        ('"app" kullanıcısı için şifre doğrulaması başarısız oldu', "rejected"),
        ('"app" kullanıcısı için LDAP kimlik doğrulaması başarısız', "rejected"),
        (' "app" rolünun sisteme giriş hakkı yoktur', "account"),
    ],
    "ФАТАЛЬНО": [
        ('користувач "app" не пройшов автентифікацію за допомогою пароля', "rejected"),
        ('Користувач "app" не пройшов автентифікацію LDAP', "rejected"),
        ('для ролі "app" вхід не дозволений', "account"),
    ],
    "致命错误": [
        ('用户 "app" Password 认证失败', "rejected"),
        ('对于用户 "app"的LDAP认证失败', "rejected"),
        ('用户 "app" 认证 PAM 失败', "rejected"),
        ('用户 "app" 的RADIUS认证失败', "rejected"),
        ('不允许角色"app" 进行登录', "account"),
        ('数据库 "x" 不存在', None),
    ],
}


@pytest.mark.parametrize(
    ("severity", "message", "expected"), [(fatal, *case) for fatal, cases in MESSAGES.items() for case in cases]
)
def test_postgresql_in_its_languages(severity: str, message: str, expected: str | None) -> None:
    text = f'connection to server at "db", port 5432 failed: {severity}:  {message}'
    assert verdict(psycopg2.OperationalError(text + "\n")) == expected
    assert verdict(psycopg.OperationalError("Verbindung fehlgeschlagen: " + text)) == expected
    # The same message with a SQLSTATE, and with severities in the same language.
    assert verdict(make("asyncpg.exceptions.X", message, sqlstate="28000", severity=severity)) == expected


# --------------------------------------------------------------------- what the page says and no record shows

NO = "Access denied for user 'app'@'h' (using password: YES)"
BLOCKED = "User is blocked because of too many credential errors; unblock with 'ALTER USER / FLUSH PRIVILEGES'"
LOGIN = "Login failed for user 'app'."

CASES: list[tuple[str, BaseException, str | None]] = [
    # Redshift answers 28000 where PostgreSQL answers 28P01.
    (
        "redshift",
        make("redshift_connector.error.InterfaceError", {"S": "FATAL", "C": "28000", "M": REFUSED}),
        "rejected",
    ),
    ("redshift hba", make("redshift_connector.error.X", {"S": "FATAL", "C": "28000", "M": "no pg_hba.conf"}), None),
    ("redshift query", make("redshift_connector.error.X", {"V": "ERROR", "C": "28P01", "M": REFUSED}), None),
    (
        "pg8000",
        make("pg8000.exceptions.DatabaseError", {"S": "FATAL", "V": "FATAL", "C": "28P01", "M": "x"}),
        "rejected",
    ),
    ("pg8000 German", make("pg8000.x.E", {"S": "FEHLER", "C": "28P01", "M": "x"}), None),
    # RDS Proxy.
    ("proxy", psycopg.OperationalError(PG + "The password that was provided for the role app is wrong."), "rejected"),
    ("proxy bare", psycopg.OperationalError("The password that was provided for the role app is wrong."), "rejected"),
    ("proxy IAM", psycopg.OperationalError(PG + "The IAM authentication failed for the role app. Check"), "rejected"),
    ("proxy busy", psycopg.OperationalError(PG + "The IAM authentication failed because of too many competing"), None),
    ("proxy TLS", psycopg.OperationalError(PG + "This RDS Proxy requires TLS connections."), None),
    ("proxy secret", psycopg.OperationalError(PG + "This RDS proxy has no credentials for the role app."), None),
    (
        "proxy state",
        postgres_error("28000", "FATAL", "The password that was provided for the role app is wrong."),
        "rejected",
    ),
    ("state, psycopg2", make("psycopg2.OperationalError", "FATAL:  " + REFUSED, pgcode="08001"), None),
    # psycopg: a SQLSTATE that it has no class for is in diag only, and forbids the text.
    (
        "diag",
        make("psycopg.OperationalError", "FATAL:  " + REFUSED, sqlstate=None, diag=SimpleNamespace(sqlstate="ZZ001")),
        None,
    ),
    ("pool", make("psycopg_pool.PoolTimeout", "couldn't get a connection", bases=("psycopg.OperationalError",)), None),
    # MySQL.
    ("errno first", make("mariadb.OperationalError", "text", errno=1045), "rejected"),
    ("locked", make("mariadb.OperationalError", "text", errno=4151), "account"),
    ("bool is no number", make("pymysql.err.E", True), None),  # noqa: FBT003 - the point of the case
    # Oracle: 28000 is a number here, and another meaning than SQLSTATE's.
    ("oracle", make("cx_Oracle.DatabaseError", SimpleNamespace(code=1017), text="ORA-01017: x"), "rejected"),
    ("oracle locked", make("cx_Oracle.DatabaseError", SimpleNamespace(code=28000), text="ORA-28000: x"), "account"),
    ("oracle 401", make("oracledb.exceptions.DatabaseError", SimpleNamespace(code=401), text="x"), None),
    (
        "oracle link",
        make("oracledb.E", SimpleNamespace(code=1017), text="ORA-01017: x\nORA-02063: preceding line"),
        None,
    ),
    # SQL Server.
    ("mssql", make("pymssql.E", (18456, LOGIN.encode())), "rejected"),
    ("mssql flat", make("pymssql.E", 18456, LOGIN.encode()), "rejected"),
    ("mssql disabled", make("pymssql.E", (18470, b"Login failed")), "account"),
    ("mssql stale", make("pymssql.E", (18456, b"DB-Lib error message 20009")), None),
    ("pytds", make("pytds.tds_base.LoginError", LOGIN, None, number=18456), "rejected"),
    (
        "ms odbc",
        make("pyodbc.InterfaceError", "28000", f"[28000] [Microsoft][SQL Server]{LOGIN} (18456) (SQLDriverConnect)"),
        "rejected",
    ),
    (
        "ms odbc no db",
        make("pyodbc.E", "28000", f"[28000] {LOGIN} (18456) (SQLDriverConnect); [28000] Cannot open (4060)"),
        None,
    ),
    ("ms odbc query", make("pyodbc.E", "42000", "[42000] linked server: Login failed (18456) (SQLExecDirectW)"), None),
    (
        "psqlodbc query",
        make("pyodbc.E", "08001", f"[08001] ERROR: x;\nDETAIL:  {PG}{REFUSED} (1) (SQLExecDirectW)"),
        None,
    ),
    ("maria odbc", make("pyodbc.E", "28000", f"[28000] [ma]{NO} (1045) (SQLDriverConnect)"), "rejected"),
    (
        "oracle odbc",
        make("pyodbc.E", "28000", "[28000] [Oracle][ODBC][Ora]ORA-01017: logon denied (1017) (SQLDriverConnect)"),
        "rejected",
    ),
    (
        "oracle odbc locked",
        make("pyodbc.E", "HY000", "[HY000] [Oracle][ODBC][Ora]ORA-28000: locked (28000) (SQLDriverConnect)"),
        "account",
    ),
    ("oracle odbc query", make("pyodbc.E", "28000", "[28000] ORA-01017: x (1017) (SQLExecDirectW)"), None),
    # MongoDB, ClickHouse, Redis, Cassandra.
    ("atlas", make("pymongo.errors.OperationFailure", "bad auth : x", code=8000), "rejected"),
    ("atlas other", make("pymongo.errors.OperationFailure", "user is over quota", code=8000), None),
    ("mongo 13", make("pymongo.errors.OperationFailure", "not authorized", code=13), None),
    ("clickhouse", make("clickhouse_driver.errors.ServerException", "x", code=516), "rejected"),
    ("clickhouse 497", make("clickhouse_connect.E", "Code: 497 ... Code: 193", code=497), None),
    (
        "clickhouse text",
        make("clickhouse_connect.driver.exceptions.DatabaseError", "x\n Code: 193. DB::Exception"),
        "rejected",
    ),
    ("redis 3", make("redis.exceptions.ResponseError", "WRONGPASS invalid username-password pair"), "rejected"),
    ("valkey", make("valkey.exceptions.AuthenticationError", "x"), "rejected"),
    (
        "redis noperm",
        chained(
            make("redis.exceptions.NoPermissionError", "x", bases=("redis.exceptions.ResponseError",)),
            context=make("redis.exceptions.AuthenticationError", "x"),
        ),
        None,
    ),
    (
        "cassandra",
        make("cassandra.cluster.NoHostAvailable", "x", errors={"h": make("cassandra.AuthenticationFailed", "x")}),
        "rejected",
    ),
    # AMQP, SMTP, IMAP, LDAP, SSH, gRPC.
    (
        "pika new",
        make("pika.exceptions.ConnectionClosedByBroker", 403, "ACCESS_REFUSED - Login was refused"),
        "rejected",
    ),
    (
        "amqp queue",
        make("amqp.exceptions.AccessRefused", 403, "ACCESS_REFUSED - access to queue", reply_code=403),
        None,
    ),
    ("smtp 534", make("smtplib.SMTPAuthenticationError", 534, b"app password", smtp_code=534), "rejected"),
    ("smtp 454", make("smtplib.SMTPAuthenticationError", 454, b"temporary", smtp_code=454), None),
    ("imap", make("imaplib.error", b"[AUTHENTICATIONFAILED] Invalid credentials (Failure)"), "rejected"),
    ("imap expired", make("imaplib.error", b"[EXPIRED] change it"), "account"),
    ("imap other", make("imaplib.error", b"[UNAVAILABLE] later"), None),
    ("ldap", make("ldap.INVALID_CREDENTIALS", {"result": 49, "desc": "Invalid credentials"}), "rejected"),
    ("ldap down", make("ldap.SERVER_DOWN", {"result": -1, "desc": "Can't contact LDAP server"}), None),
    ("ssh type", make("paramiko.BadAuthenticationType", "x", bases=("paramiko.AuthenticationException",)), None),
    ("ssh partial", make("paramiko.PartialAuthentication", "x", bases=("paramiko.AuthenticationException",)), None),
    (
        "ssh key file",
        make("paramiko.PasswordRequiredException", "x", bases=("paramiko.AuthenticationException",)),
        None,
    ),
    (
        "grpc.aio",
        make("grpc.aio._call.AioRpcError", code=lambda self: SimpleNamespace(name="UNAUTHENTICATED")),
        "rejected",
    ),
    ("grpclib", make("grpclib.exceptions.GRPCError", "x", status=SimpleNamespace(name="UNAUTHENTICATED")), "rejected"),
    # HTTP. A requests.Response is false for 401.
    (
        "requests",
        make(
            "requests.exceptions.HTTPError",
            "x",
            response=type("R", (), {"status_code": 401, "__bool__": lambda self: False})(),
        ),
        "rejected",
    ),
    ("google", make("google.api_core.exceptions.Unauthenticated", "x", code=401), "rejected"),
    ("google 403", make("google.api_core.exceptions.Forbidden", "x", code=403), None),
    ("azure", make("azure.core.exceptions.ClientAuthenticationError", "x", status_code=401), "rejected"),
    ("azure no answer", make("azure.core.exceptions.ServiceRequestError", "x", status_code=None), None),
    ("our own answer", make("fastapi.exceptions.HTTPException", "x", status_code=401), None),
    ("aiohttp's own answer", make("aiohttp.web_exceptions.HTTPUnauthorized", "x", status=401), None),
    ("SystemExit", SystemExit(401), None),
    ("CancelledError", asyncio.CancelledError(make("redis.exceptions.AuthenticationError", "x")), None),
    # Builtins and the standard library speak to no server.
    ("KeyError", KeyError(1045), None),
    ("OSError", OSError(1045, NO), None),
    ("PermissionError", PermissionError(13, "Permission denied"), None),
    ("ValueError", ValueError(REFUSED), None),
    ("RuntimeError", RuntimeError("FATAL:  " + REFUSED), None),
    ("sqlite", make("sqlite3.OperationalError", "FATAL:  " + REFUSED), None),
    # Drivers that no row names, by SQLSTATE...
    ("28P01", make("newpg.Error", "x", sqlstate="28P01"), "rejected"),
    ("28P01 pgcode", make("newpg.Error", "x", pgcode="28P01"), "rejected"),
    ("28P01 dict", make("newpg.Error", {"C": "28P01", "M": "x", "S": "FATAL"}), "rejected"),
    ("28P01 query", make("newpg.Error", "x", sqlstate="28P01", severity="ERROR"), None),
    ("28P01 V", make("newpg.E", "x", sqlstate="28P01", severity="???", severity_en="FATAL"), "rejected"),
    (
        "28P01 diag",
        make("newpg.E", sqlstate="28P01", diag=SimpleNamespace(severity="???", severity_nonlocalized="FATAL")),
        "rejected",
    ),
    ("28P01 query V", make("newpg.Error", "x", sqlstate="28P01", severity="FEHLER"), None),
    ("28000", make("newpg.Error", REFUSED, sqlstate="28000"), "rejected"),
    ("28000 hba", make("newpg.Error", "no pg_hba.conf entry for host", sqlstate="28000"), None),
    ("28000 login", make("newpg.Error", 'role "app" is not permitted to log in', sqlstate="28000"), "account"),
    ("28000 mysql", make("newmy.Error", NO, sqlstate="28000"), "rejected"),
    ("28000 signalled", make("newmy.Error", "x", sqlstate="28000"), None),
    ("42501", make("newpg.Error", "FATAL:  " + REFUSED, sqlstate="42501"), None),
    ("no state", make("newpg.Error", "FATAL:  " + REFUSED, sqlstate=""), "rejected"),
    ("int state", make("newpg.Error", "x", sqlstate=28000), None),
    # ...by a number and words that go with it...
    ("1045", make("newmy.err.OperationalError", 1045, NO), "rejected"),
    (
        "1045 errno",
        make("newmy.Error", "Benutzer hat keine Zugriffsberechtigung", errno=1045, sqlstate="28000"),
        "rejected",
    ),
    ("1045 alone", make("shop.OrderNotFound", 1045), None),
    ("1045 words", make("shop.OrderNotFound", 1045, "order 1045 is unknown"), None),
    ("1044", make("newmy.Error", 1044, "Access denied for user 'app'@'h' to database 'x'"), None),
    ("1862", make("newmy.Error", 1862, "Your password has expired."), "account"),
    ("4150", make("newmy.Error", 4150, BLOCKED), "account"),
    ("4150 HY000", make("newmy.Error", BLOCKED, errno=4150, sqlstate="HY000"), "account"),
    ("4150 words", make("newmy.Error", 4150, "order 4150 is unknown"), None),
    ("18456", make("newms.Error", (18456, LOGIN.encode())), "rejected"),
    ("18487", make("newms.Error", LOGIN, number=18487), "account"),
    ("18456 bytes", make("newms.Error", (18456, b"Login failed.")), "rejected"),
    ("1017", make("newora.Error", SimpleNamespace(code=1017), text="ORA-01017: invalid credential"), "rejected"),
    ("28001", make("newora.Error", SimpleNamespace(code=28001), text="ORA-28001: The account has expired."), "account"),
    ("28000 int", make("shop.Error", "x", code=28000), None),
    ("18", make("newmongo.Error", "Authentication failed.", code=18), "rejected"),
    ("18 alone", make("shop.Error", "under age", code=18), None),
    ("193", make("newch.Error", "Code: 193. DB::Exception: Wrong password", code=193), "rejected"),
    ("193 alone", make("shop.Error", "wrong password", code=193), None),
    ("401 code", make("newhttp.Error", "HTTP 401: Unauthorized", code=401), "rejected"),
    ("401 code alone", make("shop.Error", "x", code=401), None),
    ("401", make("sdk.APIStatusError", "x", status_code=401), "rejected"),
    ("401 response", make("sdk.Error", "x", response=SimpleNamespace(status_code=401)), "rejected"),
    ("401 urllib3", make("sdk.Error", "x", response=SimpleNamespace(status=401)), "rejected"),
    ("401 status", make("kubernetes.client.ApiException", "x", status=401), "rejected"),
    ("403", make("sdk.Error", "x", status_code=403, code=401), None),
    # ...or by the server's own words.
    ("words", make("duckdb.IOException", "IO Error: Unable to connect: " + PG + REFUSED), "rejected"),
    ("words alone", make("psqlpy.Error", "FATAL: " + REFUSED), "rejected"),
    ("words no db", make("psqlpy.Error", 'FATAL: database "FATAL:  ' + REFUSED + '" does not exist'), None),
    ("words query", make("psqlpy.Error", "ERROR:  x\nDETAIL:  FATAL:  " + REFUSED), None),
    ("words detail", make("psqlpy.Error", "could not connect\nDETAIL:  " + PG + REFUSED), None),
    ("words quoted", make("psqlpy.Error", REFUSED), None),
    ("words mysql", make("odd.Error", "ERROR 1045 (28000): " + NO), "rejected"),
    ("words mariadb", make("odd.Error", "ERROR 4150 (HY000): " + BLOCKED), "account"),
    ("words mysql db", make("odd.Error", "Access denied for user 'app'@'h' to database 'x'"), None),
    ("words redis", make("glide.RequestError", "WRONGPASS invalid username-password pair"), "rejected"),
    ("words redis perm", make("glide.RequestError", "NOPERM this user has no permissions"), None),
    (
        "words oracle",
        make("jaydebeapi.DatabaseError", "java.sql.SQLException: ORA-01017: invalid username"),
        "rejected",
    ),
    ("words oracle empty", make("jaydebeapi.DatabaseError", "ORA-01005: null password given"), "rejected"),
    ("words oracle link", make("jaydebeapi.DatabaseError", "ORA-01017: invalid\nORA-02063: preceding"), None),
    ("words oracle locked", make("jaydebeapi.DatabaseError", "ORA-28000: The account is locked."), "account"),
    ("words mssql", make("mssql_python.exceptions.Error", LOGIN), "rejected"),
    ("words mssql no db", make("mssql_python.Error", 'Cannot open database "x". ' + LOGIN), None),
    ("words mssql disabled", make("mssql_python.Error", LOGIN + " Reason: The account is disabled."), "account"),
    (
        "words mssql locked",
        make("mssql_python.Error", LOGIN[:-1] + " because the account is currently locked out"),
        "account",
    ),
]


@pytest.mark.parametrize(("error", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_beyond_the_records(error: BaseException, expected: str | None) -> None:
    assert verdict(error) == expected


# The packages of each row, with a failure that only this row can judge: elsewhere these are told by more than that.
ROWS: list[tuple[str, Callable[[str], BaseException], str | None]] = [
    ("psycopg psycopg2", lambda package: make(f"{package}.ProgrammingError", "FATAL:  " + REFUSED), None),
    ("asyncpg pg8000 redshift_connector", lambda package: make(f"{package}.Error", "FATAL:  " + REFUSED), None),
    (
        "pymysql MySQLdb mysql mysqlx _mysql_connector mariadb aiomysql asyncmy",
        lambda package: make(f"{package}.Error", 1045, "x"),
        "rejected",
    ),
    ("oracledb cx_Oracle", lambda package: make(f"{package}.Error", SimpleNamespace(code=1017)), "rejected"),
    ("pymssql _mssql", lambda package: make(f"{package}.Error", (18456, b"x")), "rejected"),
    ("pymssql _mssql pytds", lambda package: make(f"{package}.Error", "x", number=18456), "rejected"),
    ("pyodbc aioodbc", lambda package: make(f"{package}.Error", "28000", "[28000] x (18456)"), "rejected"),
    ("pymongo", lambda package: make(f"{package}.Error", "x", code=391), "rejected"),
    (
        "redis valkey aioredis coredis",
        lambda package: make(f"{package}.exceptions.AuthenticationError", "x"),
        "rejected",
    ),
    ("redis valkey aioredis coredis", lambda package: make(f"{package}.ResponseError", "WRONGPASS x"), "rejected"),
    ("clickhouse_driver clickhouse_connect asynch", lambda package: make(f"{package}.E", "x", code=193), "rejected"),
    ("pika aiormq", lambda package: make(f"{package}.exceptions.ProbableAuthenticationError", "x"), "rejected"),
    ("pika aiormq amqp", lambda package: make(f"{package}.E", "Login was refused", reply_code=403), "rejected"),
    ("pika aiormq amqp", lambda package: make(f"{package}.E", "Login was refused", code=403), "rejected"),
    ("smtplib aiosmtplib", lambda package: make(f"{package}.E", "x", smtp_code=535), "rejected"),
    ("smtplib aiosmtplib", lambda package: make(f"{package}.E", "x", code=535), "rejected"),
    ("smtplib aiosmtplib", lambda package: make(f"{package}.E", 535, "x"), "rejected"),
    ("imaplib imapclient", lambda package: make(f"{package}.E", "[AUTHENTICATIONFAILED] x"), "rejected"),
    ("ldap3 ldap", lambda package: make(f"{package}.E", "x", result=49), "rejected"),
    ("urllib google tornado", lambda package: make(f"{package}.E", "x", code=401), "rejected"),
    (
        "requests httpx urllib3 elasticsearch elastic_transport opensearchpy azure",
        lambda package: make(f"{package}.Error", "a body that says FATAL:  " + REFUSED),
        None,
    ),
    (
        "starlette fastapi werkzeug rest_framework sanic litestar falcon connexion ninja bottle pyramid blacksheep",
        lambda package: make(f"{package}.Error", "x", status_code=401),
        None,
    ),
    (
        "botocore smcache",
        lambda package: make(f"{package}.Error", "x", status_code=401),
        None,
    ),
]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(error(package), expected, id=f"{package}-{number}")
        for number, (packages, error, expected) in enumerate(ROWS)
        for package in packages.split()
    ],
)
def test_each_package_of_each_row(error: BaseException, expected: str | None) -> None:
    assert verdict(error) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1045, "rejected"), *dict.fromkeys((1698, 1820, 1862, 3118, 3955, 4151), "account").items()]
    + [(number, None) for number in (1040, 1044, 1049, 1129, 1130, 1142, 1226, 1227, 2003)],
)
def test_mysqls_numbers(number: int, expected: str | None) -> None:
    assert verdict(pymysql.err.OperationalError(number, "x")) == expected


@pytest.mark.parametrize("number", [18470, 18486, 18487, 18488])
def test_sql_servers_locked_accounts(number: int) -> None:
    assert verdict(make("pymssql.Error", (number, b"x"))) == "account"


# ---------------------------------------------------------------------------------------------------- the walk


def bad() -> Exception:
    return pymysql.err.OperationalError(1045, NO)


def syntax() -> Exception:
    return pymysql.err.ProgrammingError(1064, "You have an error in your SQL syntax")


WALKS: list[tuple[str, BaseException, str | None]] = [
    ("orig", make("sqlalchemy.exc.OperationalError", "x", orig=bad()), "rejected"),
    (
        "orig, kept sqlstate",
        make("sqlalchemy.E", "x", orig=make("sqlalchemy.Adapted", "x", sqlstate="28P01")),
        "rejected",
    ),
    (
        "orig before sqlstate",
        make("sqlalchemy.E", "x", sqlstate="28P01", orig=postgres_error("28P01", "ERROR", "x")),
        None,
    ),
    ("sqlalchemy's code and text", make("sqlalchemy.exc.OperationalError", "FATAL:  " + REFUSED, code="e3q8"), None),
    ("driver_error", make("aws_advanced_python_wrapper.errors.AwsWrapperError", "x", driver_error=bad()), "rejected"),
    ("cause", chained(RuntimeError("x"), cause=bad()), "rejected"),
    ("cause of cause", chained(RuntimeError("x"), cause=chained(ValueError("y"), cause=bad())), "rejected"),
    ("mysql pool", chained(mysql.connector.errors.InterfaceError("x", errno=-1), cause=bad()), "rejected"),
    ("group", make("exceptiongroup.ExceptionGroup", "x", exceptions=(KeyError("x"), bad())), "rejected"),
    ("group, one refuted", make("exceptiongroup.ExceptionGroup", "x", exceptions=(syntax(), bad())), "rejected"),
    ("group in group", make("g.Group", "x", exceptions=[make("g.Group", "x", exceptions=(bad(),))]), "rejected"),
    ("errors by node", make("cluster.NoHost", "x", errors={"a": OSError(111, "x"), "b": bad()}), "rejected"),
    ("errors of older attempts", make("cluster.NoHost", "x", errors=(bad(),)), None),
    ("argument", make("wrapper.Error", "x", bad()), "rejected"),
    ("argument of a builtin", RuntimeError("x", bad()), "rejected"),
    ("context", chained(RuntimeError("x"), context=bad()), "rejected"),
    (
        "context of a driver's network error",
        chained(psycopg.OperationalError("connection failed: no route"), context=bad()),
        None,
    ),
    (
        "context of a server's other refusal",
        chained(psycopg.OperationalError(PG + 'database "x" does not exist'), context=bad()),
        None,
    ),
    (
        "context of a pool",
        chained(make("psycopg_pool.PoolTimeout", "x", bases=("psycopg.OperationalError",)), context=bad()),
        "rejected",
    ),
    ("context of OSError", chained(ConnectionRefusedError(111, "x"), context=bad()), None),
    ("context of TimeoutError", chained(TimeoutError("x"), context=bad()), None),
    (
        "context of gaierror",
        chained(make("socket.gaierror", -2, "x", bases=("builtins.OSError",)), context=bad()),
        None,
    ),
    ("cause of OSError", chained(ConnectionRefusedError(111, "x"), cause=bad()), "rejected"),
    ("cause, not context", chained(RuntimeError("x"), cause=ValueError("y"), context=bad()), None),
    ("no beats what it handled", chained(syntax(), context=bad()), None),
    ("no beats its cause", chained(syntax(), cause=bad()), None),
    ("no in a wrapper beats its context", chained(make("w.Error", syntax()), context=bad()), None),
    ("yes beats what it handled", chained(bad(), context=syntax()), "rejected"),
    ("outermost verdict", chained(make("mariadb.Error", "x", errno=4151), cause=bad()), "account"),
    (
        "403 beats the 401 before it",
        chained(make("sdk.Error", "x", status_code=403), context=make("sdk.Error", "x", status_code=401)),
        None,
    ),
    ("a cancelled cause", chained(RuntimeError("x"), cause=asyncio.CancelledError(bad())), None),
]


@pytest.mark.parametrize(("error", "expected"), [case[1:] for case in WALKS], ids=[case[0] for case in WALKS])
def test_what_an_exception_wraps(error: BaseException, expected: str | None) -> None:
    assert verdict(error) == expected


def test_a_suppressed_context_is_no_reason() -> None:
    error = chained(RuntimeError("x"), context=bad())
    error.__suppress_context__ = True
    assert verdict(error) is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup is new in Python 3.11")
def test_the_real_exception_group() -> None:
    group: type[Any] = vars(builtins)["ExceptionGroup"]
    everything: type[Any] = vars(builtins)["BaseExceptionGroup"]
    assert verdict(group("x", [KeyError("x"), group("y", [bad()])])) == "rejected"
    assert verdict(group("x", [KeyError("x"), syntax()])) is None
    assert verdict(everything("x", [KeyboardInterrupt(), bad()])) is None


# -------------------------------------------------------------------------------------------- odd exceptions


class AnswersToAnyName(Exception):
    def __getattr__(self, name: str) -> Any:
        return 401 if name in {"status_code", "status", "code"} else self


class RaisesFromEverything(Exception):
    @property
    def orig(self) -> Exception:
        raise self

    status_code = sqlstate = errno = errors = exceptions = diag = response = driver_error = orig

    def __str__(self) -> str:
        raise self

    __repr__ = __str__


class RaisesFromAttributeAccess(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class NeverEnds(Exception):
    @property
    def orig(self) -> Exception:
        return NeverEnds()

    driver_error = orig


class LiesAboutItsClass:
    @property  # type: ignore[misc] # a lie is the point
    def __class__(self) -> Any:
        raise RuntimeError("x")


class NotUnicode(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("x")

    __hash__ = None  # type: ignore[assignment] # unhashable is the point


def cycle() -> BaseException:
    first, second = RuntimeError("x"), ValueError("y")
    first.__cause__, second.__cause__ = second, first
    return first


def deep(length: int, bottom: BaseException) -> BaseException:
    for _ in range(length):
        bottom = chained(RuntimeError("x"), cause=bottom)
    return bottom


ODD: list[tuple[BaseException, str | None]] = [
    (AnswersToAnyName(), None),
    (chained(AnswersToAnyName(), cause=bad()), "rejected"),
    (RaisesFromEverything(), None),
    (chained(RaisesFromEverything(), cause=bad()), "rejected"),
    (RaisesFromAttributeAccess("x"), None),
    (chained(RuntimeError("x", LiesAboutItsClass()), cause=bad()), "rejected"),
    (make("x.E", LiesAboutItsClass(), orig=LiesAboutItsClass(), sqlstate=NotUnicode("28P01")), None),
    (NeverEnds(), None),
    (cycle(), None),
    (make("x.E", exceptions=7, errors=7, orig=7, driver_error="x", response=7, diag=7, status_code="401"), None),
    (make("x.E", 10**5000, errno=10**5000, code=-1), None),
    (make("x.E", b"\xff\xfe", {"C": 28000}, {}), None),
    (make("x.E", {"C": "28P01"}), "rejected"),
    (make("x.E", ()), None),
    (make("grpc.RpcError", code=lambda self: 1 // 0), None),
    (deep(100, bad()), "rejected"),
    (deep(100_000, bad()), None),
    (RuntimeError(*[ValueError("x") for _ in range(100_000)], bad()), None),
    (psycopg.OperationalError("FATAL:  " * 100_000), None),
    (psycopg.OperationalError(("x" * 10_000 + "\n") * 10), None),
    (psycopg.OperationalError('FATAL:  "' * 1250), None),
    (make("x.E", "Access denied for user '" * 400), None),
    (make("x.E", "Login failed for user 'x'. Reason" * 300 + "Cannot open database"), None),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_an_odd_exception_is_judged_in_silence_and_soon(number: int) -> None:
    error, expected = ODD[number]
    started = time.perf_counter()
    assert verdict(error) == expected
    assert time.perf_counter() - started < 1.0, "a hundred times what it takes"


def test_no_deprecated_attribute_is_read() -> None:
    def deprecated(self: object) -> int:
        raise AssertionError("read")

    error = make(
        "aiohttp.ClientResponseError", "x", bases=("aiohttp.ClientError",), status=401, code=property(deprecated)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert verdict(error) == "rejected"
    assert not caught


def exceptions() -> st.SearchStrategy[BaseException]:
    anything = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=40),
        st.binary(max_size=9),
        st.floats(),
        st.sampled_from(
            [1045, 401, 18456, 28000, "28P01", "28000", NO, "FATAL:  " + REFUSED, b"x", (1045,), {"C": "28P01"}]
        ),
    )
    kinds = st.sampled_from(
        ["pymysql.err.E", "psycopg.OperationalError", "x.Error", "redis.exceptions.AuthenticationError", "pyodbc.E"]
    ) | st.sampled_from(
        ["requests.E", "grpc.E", "sqlalchemy.E", "pymssql.E", "oracledb.E", "imaplib.error", "builtins.KeyError"]
    )
    names = st.sampled_from(
        ["orig", "errno", "code", "sqlstate", "status_code", "errors", "exceptions", "diag", "response", "result"]
    )

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        value = anything | inner | st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        return st.builds(
            lambda kind, args, attrs, cause, context: chained(
                make(kind, *args, **({} if kind.startswith("builtins") else attrs)), cause=cause, context=context
            ),
            kinds,
            st.lists(value, max_size=3),
            st.dictionaries(names, value, max_size=3),
            st.none() | inner,
            st.none() | inner,
        )

    return st.recursive(st.builds(make, kinds, anything), grow, max_leaves=12)


@given(exceptions())
def test_any_chain_is_judged_without_raising_and_alike_each_time(error: BaseException) -> None:
    found = verdict(error)
    assert found in {"rejected", "account", None}
    assert verdict(error) == found


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert verdict(psycopg.OperationalError(text)) in {"rejected", "account", None}
    assert verdict(make("x.E", text)) in {"rejected", "account", None}


# ------------------------------------------------------------------------------------------------- users' rules


@pytest.fixture
def no_rules() -> Iterator[None]:
    yield
    for rule in auth._user_rules:
        unregister_rule(rule)
    assert auth._user_rules == ()


@pytest.mark.usefixtures("no_rules")
@pytest.mark.parametrize(
    ("answer", "expected"), [("rejected", "rejected"), (True, "rejected"), ("account", "account"), (None, None)]
)
def test_a_users_rule_is_asked_about_each_link(answer: Any, expected: str | None) -> None:
    @register_rule
    def rule(error: BaseException) -> Any:
        return answer if isinstance(error, KeyError) else None

    assert verdict(KeyError("x")) == expected
    assert verdict(chained(RuntimeError("x"), cause=KeyError("x"))) == expected
    unregister_rule(rule)
    unregister_rule(rule)
    assert verdict(KeyError("x")) is None


@pytest.mark.usefixtures("no_rules")
def test_a_users_no_comes_before_the_built_in_rules() -> None:
    assert is_auth_error(bad())
    register_rule(lambda error: False if "using password" in str(error) else None)
    assert not is_auth_error(bad())
    assert not is_auth_error(chained(RuntimeError("x"), cause=bad()))


@pytest.mark.usefixtures("no_rules")
def test_a_users_rule_that_raises_has_no_opinion() -> None:
    register_rule(lambda error: 1 // 0 == 0)
    assert verdict(bad()) == "rejected"


@pytest.mark.usefixtures("no_rules")
def test_rules_registered_by_many_threads_are_all_there() -> None:
    rules: list[Callable[[BaseException], bool]] = [lambda error, number=number: number < 0 for number in range(400)]  # type: ignore[misc] # mypy sees the default as a parameter
    gate = threading.Barrier(8)

    def add(some: list[Callable[[BaseException], bool]]) -> None:
        gate.wait()
        for rule in some:
            register_rule(rule)

    threads = [threading.Thread(target=add, args=(rules[first::8],)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(auth._user_rules) == set(rules)


# ------------------------------------------------------------------------------------------------------- cost


def test_importing_imports_no_driver_and_compiles_no_pattern() -> None:
    code = """
import sys, re, smcache
import functools, threading, typing, itertools, collections.abc
before, compiled = set(sys.modules), []
re.compile = lambda *args: compiled.append(args)
import smcache.auth
print(sorted(set(sys.modules) - before), compiled)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603 - ours
    assert done.stdout.strip() in {"['smcache.auth'] []", "[] []"}


def test_nothing_is_kept() -> None:
    error: BaseException | None = bad()
    gone = weakref.ref(error) if error else None
    assert verdict(chained(RuntimeError("x"), cause=error)) == "rejected"
    error = None
    gc.collect()
    assert gone is not None
    assert gone() is None


def test_it_is_fast_enough_for_every_failed_connect() -> None:
    error = psycopg.OperationalError("connection failed: " + PG + REFUSED)
    verdict(error)
    best = min(timed(error) for _ in range(200))
    assert best < 200e-6, "ten times what it takes"


def timed(error: BaseException) -> float:
    started = time.perf_counter()
    verdict(error)
    return time.perf_counter() - started
