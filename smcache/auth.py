# ruff: noqa: RUF001 - PostgreSQL speaks 15 languages, and some of their letters look like Latin ones
"""What a rejected credential looks like, driver by driver, without importing a driver.

An exception is judged together with what it wraps, outermost first. Drivers are told apart by the packages
that the classes of their exceptions come from. One that the table does not name is judged by its SQLSTATE,
its HTTP status, a server's number that comes with words of that server, or the server's own words alone.

Sources of numbers and words: PostgreSQL, appendix A "Error Codes" and src/backend/po; PgBouncer, client.c;
Amazon RDS Proxy, "Troubleshooting"; MySQL, "Server Error Message Reference"; MariaDB, "Error Codes";
SQL Server, "Database Engine events and errors"; Oracle, docs.oracle.com/error-help/db; MongoDB,
error_codes.yml; ClickHouse, ErrorCodes.cpp; Redis, acl.c; RabbitMQ, "Access Control"; gRPC, "Status codes";
RFC 4511 (LDAP), 4954 (SMTP), 5530 (IMAP), 9110 (HTTP). Measured: reference/auth_errors.md.

A limit: pymssql keeps the worst error of the process, so after a rejected login each failure of a connection bears its
number, with the text "DB-Lib error message 20018, severity 14" for a login and others for the network. Such text is
not judged here; where connections fail for no other reason, a rule can: see ``register_rule``.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Judgement", "Rule", "Verdict", "is_auth_error", "register_rule", "unregister_rule", "verdict"]

T = TypeVar("T")
Verdict: TypeAlias = Literal["rejected", "account"]
Judgement: TypeAlias = Verdict | bool | None  # False: no, and nothing deeper matters; None: no opinion, look deeper
Rule: TypeAlias = Callable[[BaseException], Judgement]

_MAX_LINKS: Final = 200  # exceptions looked at in one call; real chains have fewer than ten
_MAX_DEPTH: Final = 120
_MAX_WIDTH: Final = 100  # members of one group, values of one dict, arguments of one exception
_MAX_TEXT: Final = 10_000  # characters; libpq repeats its reason for every host it tried

_user_rules: tuple[Rule, ...] = ()  # replaced, never changed: readers need no lock
_registering: Final = threading.Lock()


def is_auth_error(error: BaseException) -> bool:
    """Say whether a failure is about the credential or its account, and not about anything else.

    Args:
        error: What the driver, pool or client raised. Nothing of it is kept or logged.

    Returns:
        True for a rejected credential and for an account that is locked, expired, disabled or may not log in.
    """
    return verdict(error) is not None


def verdict(error: BaseException) -> Verdict | None:
    """Say what a failure means for the credential it was made with.

    Args:
        error: What the driver, pool or client raised. Nothing of it is kept or logged.

    Returns:
        "rejected" if the server refused the credential; "account" if the login exists but is locked, expired,
        disabled or may not log in; None if the failure is about something else or does not tell.
    """
    try:
        return _judge(error, set(), 0) or None
    except Exception:  # noqa: BLE001 - the caller is handling a failure, and a second one would hide it
        return None


def register_rule(rule: Rule) -> Rule:
    """Add a rule, asked before the built-in ones about every exception of a chain; usable as a decorator.

    Args:
        rule: Returns "rejected" (or True), "account", False ("no, and nothing deeper matters") or None ("no
            opinion"). One that raises has no opinion.

    Returns:
        The rule itself.
    """
    global _user_rules  # noqa: PLW0603 - one tuple, swapped under the lock
    with _registering:
        _user_rules = (*_user_rules, rule)
    return rule


def unregister_rule(rule: Rule) -> None:
    """Take back what `register_rule` added; a rule that is not there is no error."""
    global _user_rules  # noqa: PLW0603 - one tuple, swapped under the lock
    with _registering:
        _user_rules = tuple(known for known in _user_rules if known is not rule)


def _judge(error: object, seen: set[int], depth: int) -> Verdict | Literal[False] | None:
    """Ask the rules about one exception and, where they have no opinion, about what it wraps."""
    # Only Exceptions: SystemExit(401).code is 401, and a cancelled login was not refused.
    if not issubclass(type(error), Exception) or id(error) in seen:
        return None
    if depth > _MAX_DEPTH or len(seen) >= _MAX_LINKS:
        return None
    seen.add(id(error))
    failure = cast("Exception", error)
    before, after = _rules_for(type(failure))
    if (found := _ask((*_user_rules, *before), failure)) is not None:
        return found
    refuted = False
    for link in _wrapped(failure):
        if found := _judge(link, seen, depth + 1):
            return found
        refuted = refuted or found is False
    if refuted:
        return False
    if (found := _ask(after, failure)) is not None:
        return found
    return _judge(_context(failure), seen, depth + 1)


def _ask(rules: tuple[Rule, ...], error: BaseException) -> Verdict | Literal[False] | None:
    for rule in rules:
        try:
            found = rule(error)
        except Exception:  # noqa: BLE001, S112 - strangers' properties and __str__ run in here: no opinion
            continue
        if found is not None:
            return "account" if found == "account" else "rejected" if found else False
    return None


def _wrapped(error: BaseException) -> Iterator[object]:
    """Yield what an exception says it wraps: SQLAlchemy, AWS wrapper, `from`, groups, arguments, clusters."""
    yield from (_get(error, "orig"), _get(error, "driver_error"), _get(error, "__cause__"))
    for many in (_get(error, "exceptions"), _get(error, "args")):
        yield from many[:_MAX_WIDTH] if isinstance(many, (tuple, list)) else ()
    by_node = _get(error, "errors")
    yield from islice(by_node.values(), _MAX_WIDTH) if isinstance(by_node, dict) else ()


def _context(error: BaseException) -> object:
    """Give what was being handled when the exception was raised, if that can be its reason."""
    if _get(error, "__suppress_context__") is not False or _get(error, "__cause__") is not None:
        return None
    if isinstance(error, OSError) and type(error).__module__ in {"builtins", "socket", "ssl"}:
        return None  # the fallback host, tried after a rejection, is down
    return _get(error, "__context__")


def _get(value: object, name: str) -> object:
    if isinstance(value, tuple):
        return value[int(name)] if name.isdigit() and int(name) < len(value) else None
    if isinstance(value, dict):
        return value.get(name)
    try:
        return object.__getattribute__(value, name)  # not getattr(): a __getattr__ may answer to any name
    except Exception:  # noqa: BLE001 - nor is a property to be trusted
        return None


def _first(error: BaseException, where: str, kind: type[T]) -> T | None:
    """Give the first value of a kind at some dotted paths, such as "errno args.0"."""
    for path in where.split():
        value: object = error
        for name in path.split("."):
            value = _get(value, name)
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
    return None


def _text(error: BaseException) -> str:
    """Give the message: the strings among the arguments, or str() where there are none."""
    parts = error.args[:_MAX_WIDTH]
    if parts and isinstance(parts[0], tuple):  # pymssql: ((18456, b"Login failed ..."),)
        parts = parts[0][:_MAX_WIDTH]
    elif parts and isinstance(parts[0], dict):  # redshift_connector, pg8000: ({"C": "28P01", "M": "password ..."},)
        parts = (parts[0].get("M"),)
    said = [str(part, errors="replace") if isinstance(part, bytes) else part for part in parts]
    return ("\n".join(part for part in said if isinstance(part, str)) or str(error))[:_MAX_TEXT]


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    """Compile at first use: the translations take milliseconds."""
    return re.compile(pattern, re.MULTILINE)


def _said(pattern: str, error: BaseException) -> bool:
    return _regex(pattern).search(_text(error)) is not None


def _number(
    where: str, codes: Mapping[int, Verdict], *, words: str = "", unless: str = "(?!)", others: Judgement = False
) -> Rule:
    """Make a rule of the first integer at some paths; `others` judges numbers, and words, that do not count."""

    def rule(error: BaseException) -> Judgement:
        number = _first(error, where, int) or 0
        if number <= 0:  # a pool's -1, or none at all
            return None
        counts = number in codes and _said(words, error) and not _said(unless, error)
        return codes[number] if counts else others

    return rule


def _number_and_words(error: BaseException) -> Judgement:
    """Judge a driver that no row names by a number that comes with words, or a SQLSTATE, that go with it."""
    number = _first(error, "errno number args.0 args.0.0 code", int) or 0
    for codes, words in _UNKNOWN_NUMBERS:
        if number in codes and (_said(words, error) or _first(error, "sqlstate", str) == "28000"):
            return codes[number]
    return None


def _http(where: str) -> Rule:
    """Make a rule of the HTTP status: 401 asks for another credential, 403 does not."""

    def rule(error: BaseException) -> Judgement:
        status = _first(error, where, int) or 0
        return status == 401 if 400 <= status <= 599 else None  # noqa: PLR2004 - HTTP's own numbers

    return rule


def _grpc(error: BaseException) -> Judgement:
    code = _get(error, "code")
    name = _get(code() if callable(code) else _get(error, "status"), "name")
    return name == "UNAUTHENTICATED" if isinstance(name, str) else None


def _words(*patterns: tuple[str, Verdict]) -> Rule:
    """Make a rule of the server's own words."""
    return lambda error: next((found for pattern, found in patterns if _said(pattern, error)), None)


def _named(names: Mapping[str, Verdict | Literal[False]]) -> Rule:
    """Make a rule of class names, the most derived first."""
    return lambda error: next((names[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in names), None)


def _only(name: str, rule: Rule) -> Rule:
    """Restrict a rule to a class, by its name, and its subclasses."""
    return lambda error: rule(error) if any(cls.__name__ == name for cls in type(error).__mro__) else None


def _sqlstate(error: BaseException) -> Judgement:
    """Judge the SQLSTATE, wherever a driver puts it; none is there when a login fails through libpq."""
    state = _first(error, "sqlstate pgcode diag.sqlstate args.0.C", str) or ""
    if len(state) != 5:  # noqa: PLR2004 - the length that SQL gives it
        return None
    severity = _first(error, "diag.severity_nonlocalized severity_en args.0.V diag.severity severity args.0.S", str)
    if severity and not _regex(_FATAL).search(severity):
        return False  # ERROR, in whatever language: a statement failed, not the login
    if state == "28P01":
        return "rejected"
    # 28000 is also "no pg_hba.conf entry", and 08P01 is PgBouncer's for everything: the words decide.
    return (_phrase(_text(error)) or _vendor_words(error) or False) if state in {"28000", "08P01"} else False


def _libpq(error: BaseException) -> Judgement:
    """Judge libpq's text, all that it gives for a failed login: `... failed: FATAL:  reason` for each host."""
    text = _text(error)
    refused = None if _regex(r"\Aconnection (?:failed|to server)").match(text) is None else False
    for line in _regex(rf"^.*?(?:(ERROR|DETAIL|HINT|CONTEXT)|{_FATAL}\)?): +(.*)").finditer(text):
        if line[1] == "ERROR":  # a statement failed, and the rest may quote it
            return None
        if not line[1]:
            if found := _phrase(line[2]):
                return found
            refused = False
    return "rejected" if _said(rf"fe_sendauth: no password supplied|(?:^|: +)(?:{_RDS_PROXY})", error) else refused


def _phrase(message: str) -> Verdict | None:
    """Say what PostgreSQL, PgBouncer or RDS Proxy means by a message, in any of PostgreSQL's languages."""
    if message.startswith("password authentication failed"):  # nearly always, and nothing to compile
        return "rejected"
    pattern = f"(?i:({'|'.join(_REJECTED)})|{'|'.join(_NO_LOGIN)})"
    found = _regex(pattern.replace("%", ".{1,130}?")).match(message)
    return found and ("rejected" if found[1] else "account")


def _odbc(error: BaseException) -> Judgement:
    """Judge pyodbc: the SQLSTATE in its arguments proves nothing, the server's number is in parentheses."""
    text = _text(error)
    if _regex(r"\(SQL(?:Exec|Prepare)").search(text):  # not SQLDriverConnect
        return False
    if found := _libpq(error):
        return found
    numbers = {int(digits) for digits in _regex(r"\((\d{4,5})\)").findall(text)}
    if 4060 in numbers:  # noqa: PLR2004 - SQL Server: no such database, whatever it says next
        return False
    known = (found for number, found in (_MYSQL | _SQL_SERVER).items() if number in numbers)
    return next(known, None) or _vendor_words(error)


_RDS_PROXY: Final = "The (?:password that was provided|IAM authentication failed) for the role "
# The user's name stands at %.
_REJECTED: Final = (
    r"(?:password|PAM|LDAP|RADIUS|SASL) authentication failed",
    r"auth failed|no such user",  # PgBouncer
    _RDS_PROXY,
    r"(?:Passwort|PAM|LDAP|RADIUS)-Authentifizierung für Benutzer »%« fehlgeschlagen",
    r"la autentificación (?:password|PAM|LDAP|RADIUS) falló para el usuario «%»",
    r"authentification (?:par mot de passe|PAM|LDAP|RADIUS) échouée pour l'utilisateur +« % »",
    r"(?:password|PAM|LDAP|RADIUS) gagal di ?otentikasi untuk pengguna +« % »",
    r'autenticazione (?:con password|PAM|LDAP|RADIUS) fallita per l\'utente "%"',
    r'ユーザー"%"の ?(?:パスワード|PAM|LDAP|RADIUS) ?認証に失敗しました',
    r'(?:პაროლით|PAM|LDAP|რადიუსით) ავთენტიფიკაცია მომხმარებლისთვის "%" ვერ მოხერხდა',
    r'(?:사용자 "%"의|"%" 사용자의) (?:password|PAM|LDAP|RADIUS) 인증을 실패했습니다',
    r'autoryzacja (?:hasłem|PAM|LDAP|RADIUS) nie powiodła się dla użytkownika "%"',
    r'autenticação do tipo (?:senha|PAM|LDAP|RADIUS) falhou para o usuário "%"',
    r'пользователь "%" не прошёл проверку подлинности \((?:по паролю|PAM|LDAP|RADIUS)\)',
    r'(?:Lösenords|PAM-|LDAP-|RAD[IO]US-)autentisering misslyckades för användare "%"',
    r'"%" kullanıcısı için (?:şifre|PAM kimlik|LDAP kimlik|RADIUS kimlik) doğrulaması başarısız',
    r'користувач "%" не пройшов автентифікацію (?:за допомогою пароля|PAM|LDAP|RADIUS)',
    r'(?:对于)?用户 "%" ?(?:Password 认证|的LDAP认证|认证 PAM |的RADIUS认证)失败',
)
_NO_LOGIN: Final = (
    r'role "%" is not permitted to log in',
    r"Rolle »%« hat keine Berechtigung zum Einloggen",
    r"al rol «%» no se le permite conectarse",
    r"le rôle « % » n'est pas autorisé à se connecter",
    r"role « % » tidak diperbolehkan untuk log in",
    r'al ruolo "%" non è consentito effettuare il login',
    r'ロール"%"はログインが許可されません',
    r"როლს შესვლის უფლება არ აქვს: ",
    r'"%" 롤은 접속을 허용하지 않음',
    r'rola "%" nie zezwala na logowanie',
    r'role "%" não tem permissão para entrar',
    r'для роли "%" вход запрещён',
    r'roll "%" tillåts inte logga in',
    r' ?"%" rolünun sisteme giriş hakkı yoktur',
    r'для ролі "%" вхід не дозволений',
    r'不允许角色"%" 进行登录',
)
_FATAL: Final = r"(?:FATAL[ET]?|ფატალური|치명적오류|KATASTROFALNY|ВАЖНО|ФАТАЛЬНО|致命错误)"  # German to Chinese


def _codes(rejected: str, account: str = "") -> dict[int, Verdict]:
    codes: dict[int, Verdict] = {int(code): "rejected" for code in rejected.split()}
    return codes | {int(code): "account" for code in account.split()}


_MYSQL: Final = _codes("1045", "1698 1820 1862 3118 3955 4150 4151")  # no password, expired, locked; not 1044
_SQL_SERVER: Final = _codes("18456", "18470 18486 18487 18488")  # disabled, locked out, expired, to be changed
_ORACLE: Final = _codes("1017 1005", "28000 28001")  # locked, expired
_CLICKHOUSE: Final = _codes("516 192 193 194")  # the last three until 2020: no such user, wrong, none given
_MYSQL_RULE: Final = _number("errno args.0", _MYSQL, unless="could not be loaded")  # 1045 for a missing plugin
_SSH: Final = ("BadAuthenticationType", "PartialAuthentication", "PasswordRequiredException")  # nothing refused
_STATUS: Final = "status_code response.status_code response.status status"

# The packages of the exception's classes, and a rule; of a package's several, the first with an opinion decides.
# Elsewhere than in its packages a number may be anything: 18, 193, 401, 1017, 28000 (Oracle: locked).
_TABLE: Final[tuple[tuple[str, Rule], ...]] = (
    ("psycopg psycopg2 asyncpg pg8000 redshift_connector", _sqlstate),
    ("psycopg psycopg2", _only("OperationalError", _libpq)),
    ("pymysql MySQLdb mysql mysqlx _mysql_connector mariadb aiomysql asyncmy", _MYSQL_RULE),
    ("oracledb cx_Oracle", _number("args.0.code", _ORACLE, unless="^ORA-02063")),  # refused to a database link
    ("pymssql _mssql pytds", _number("args.0.0 args.0 number", _SQL_SERVER, unless=r"\ADB-Lib error")),  # stale number
    ("pyodbc aioodbc", _odbc),
    ("pymongo", _number("code", _codes("18 391"), others=None)),
    ("pymongo", _number("code", _codes("8000"), words="(?i)auth")),  # Atlas, for anything
    ("redis valkey aioredis coredis", _words((r"\A(?:WRONGPASS|NOAUTH)\b", "rejected"))),
    ("redis valkey aioredis coredis", _named({"AuthenticationError": "rejected", "ResponseError": False})),
    ("clickhouse_driver clickhouse_connect asynch", _number("code", _CLICKHOUSE)),
    ("clickhouse_connect", _words((r"\bCode: (?:516|19[234])\b", "rejected"))),
    ("cassandra", _named({"AuthenticationFailed": "rejected"})),
    ("pika aiormq", _named({"ProbableAuthenticationError": "rejected"})),
    ("pika aiormq amqp", _number("reply_code code args.0", _codes("403"), words="Login was refused")),  # or a queue's
    ("smtplib aiosmtplib", _number("smtp_code code args.0", _codes("534 535"))),
    ("imaplib imapclient", _words((r"\[AUTHENTICATIONFAILED\]", "rejected"), (r"\[EXPIRED\]", "account"))),
    ("ldap3 ldap", _number("result args.0.result", _codes("49"))),
    ("ldap3", _words(("invalidCredentials", "rejected"))),
    ("paramiko", _named({**dict.fromkeys(_SSH, False), "AuthenticationException": "rejected"})),
    ("grpc grpclib", _grpc),
    ("requests httpx urllib3 elasticsearch elastic_transport opensearchpy azure", _http(_STATUS)),
    ("urllib google tornado", _http("code")),
    ("aiohttp", _only("ClientResponseError", _http("status"))),  # reading its .code warns
)
_BY_PACKAGE: Final = {
    package: tuple(rule for packages, rule in _TABLE if package in packages.split())
    for packages, _ in _TABLE
    for package in packages.split()
}
_WEB_SERVERS: Final = (
    "starlette fastapi werkzeug rest_framework sanic litestar falcon connexion ninja bottle pyramid blacksheep"
)
# Believed only after what they wrap: they keep the SQLSTATE and drop the severity.
_WRAPPERS: Final[Mapping[str, tuple[Rule, ...]]] = {
    "sqlalchemy": (_sqlstate,),
    # Nor is a 401 of these about the secret: what servers tell their clients, and AWS us.
    **dict.fromkeys((*_WEB_SERVERS.split(), "botocore", "smcache"), ()),
}

# Packages that nothing above names: numbers need words that go with them, words alone must be the server's.
_UNKNOWN_NUMBERS: Final = (
    (_MYSQL, "(?i)access denied|(?:account|user) is (?:locked|blocked)|password has expired|must reset your password"),
    (_SQL_SERVER, "(?i)login failed"),
    (_CLICKHOUSE, "DB::Exception"),
    (_codes("18"), "(?i)authentication ?failed"),
    (_codes("401"), "(?i)unauthori[sz]ed|unauthenticated"),
)
_vendor_words: Final = _words(
    (r"Access denied for user '.*' \(using password: (?:YES|NO)\)", "rejected"),
    ("User is blocked because of too many credential errors", "account"),  # MariaDB
    (r"\A(?:WRONGPASS|NOAUTH) ", "rejected"),
    (r"\A(?![\s\S]*ORA-02063)[\s\S]*\bORA-010(?:17|05): ", "rejected"),
    (r"\bORA-2800[01]: ", "account"),
    (r"Login failed for user '.*'(?:\. Reason: The (?:account|password)| because the account)", "account"),
    (r"\A(?![\s\S]*Cannot open database)[\s\S]*Login failed for user '", "rejected"),
)
_UNKNOWN: Final[tuple[Rule, ...]] = (_http(_STATUS), _number_and_words, _sqlstate)
_UNKNOWN_WORDS: Final[tuple[Rule, ...]] = (_libpq, _vendor_words)


def _rules_for(kind: type[BaseException]) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Choose the rules to ask before, and those to ask after what an exception wraps."""
    packages = dict.fromkeys(str(cls.__module__).partition(".")[0] for cls in kind.__mro__)
    known: tuple[Rule, ...] = ()
    for package in packages:
        known += _BY_PACKAGE.get(package, ())
    if known:
        return known, ()
    for package in packages:
        if package in _WRAPPERS:
            return (), _WRAPPERS[package]
    # KeyError(1045), OSError(1045), ValueError("password authentication failed"): no server raises a builtin.
    if packages.keys() <= sys.stdlib_module_names:
        return (), ()
    return _UNKNOWN, _UNKNOWN_WORDS
