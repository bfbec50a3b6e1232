"""``Secret.url``: what drivers read back is what the secret holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import make_url

from smcache import InvalidArgument, NoSuchKey, NotJSON, Secret, SecretCacheError
from smcache.errors import SecretValueError

if TYPE_CHECKING:
    from smcache.testing import PostgreSQL

FIELDS = {"engine": "postgres", "host": "db.internal", "port": 5433, "username": "app", "password": "pw", "dbname": "d"}


def secret_of(value: Any) -> Secret:
    return Secret(value if isinstance(value, str) else json.dumps(value), name="prod/db", version_id="v" * 32)


def without(*keys: str) -> Secret:
    return secret_of({key: value for key, value in FIELDS.items() if key not in keys})


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(username=text, password=text, dbname=text)
def test_what_is_in_the_secret_is_read_back_whatever_its_characters(username: str, password: str, dbname: str) -> None:
    secret = secret_of({**FIELDS, "username": username, "password": password, "dbname": dbname})
    read = make_url(secret.url())
    assert (read.username, read.password, read.host, read.port) == (username, password, "db.internal", 5433)
    split = urlsplit(secret.url())
    assert split.password is not None
    assert (unquote(split.password), unquote(split.path[1:])) == (password, dbname)


def test_libpq_logs_in_with_it(pg: PostgreSQL) -> None:
    password = "p@ss/w:rd %41+ #?&=é"
    pg.create_role("url user@x", password)
    with psycopg.connect(secret_of(pg.secret("url user@x", password)).url()) as connection:
        assert connection.execute("select current_user").fetchone() == ("url user@x",)


@pytest.mark.parametrize(
    ("engine", "start", "end"),
    [
        ("postgres", "postgresql://", ":5432/d"),
        ("postgresql", "postgresql://", ":5432/d"),
        ("aurora-postgresql", "postgresql://", ":5432/d"),
        ("mysql", "mysql://", ":3306/d"),
        ("aurora-mysql", "mysql://", ":3306/d"),
        ("mariadb", "mariadb://", ":3306/d"),
        ("redshift", "redshift://", ":5439/d"),
        ("oracle", "oracle://", ":1521/?service_name=d"),
        ("sqlserver", "mssql://", ":1433/d"),
        ("mongo", "mongodb://", ":27017/d"),
        ("docdb", "mongodb://", ":27017/d"),
        ("redis", "redis://", ":6379/d"),
    ],
)
def test_the_engine_says_the_scheme_and_the_usual_port(engine: str, start: str, end: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != "port"}
    url = secret_of({**fields, "engine": engine}).url()
    assert url == f"{start}app:pw@db.internal{end}"


def test_a_driver_follows_the_scheme() -> None:
    assert secret_of(FIELDS).url(driver="psycopg") == "postgresql+psycopg://app:pw@db.internal:5433/d"


def test_a_port_may_be_text_and_a_dbname_may_be_missing() -> None:
    assert secret_of({**FIELDS, "port": "5434"}).url() == "postgresql://app:pw@db.internal:5434/d"
    assert without("dbname").url() == "postgresql://app:pw@db.internal:5433"


def test_keywords_go_before_what_the_secret_says() -> None:
    url = secret_of(FIELDS).url(host="replica", port=6000, dbname="other")
    assert url == "postgresql://app:pw@replica:6000/other"


def test_a_secret_that_rds_manages_has_the_rest_from_keywords() -> None:
    secret = secret_of({"username": "app", "password": "pw"})
    assert secret.url(engine="mysql", host="h", dbname="d") == "mysql://app:pw@h:3306/d"


@pytest.mark.parametrize(
    ("host", "written"),
    [
        ("::1", "[::1]"),
        ("fe80::1%eth0", "[fe80::1%25eth0]"),
        ("2001:db8::192.0.2.1", "[2001:db8::192.0.2.1]"),
        ("10.0.0.1", "10.0.0.1"),
        ("/run/pg", "%2Frun%2Fpg"),
        ("/run/a:b", "%2Frun%2Fa%3Ab"),
    ],
)
def test_ipv6_stands_in_brackets_and_a_sockets_directory_is_encoded(host: str, written: str) -> None:
    assert secret_of({**FIELDS, "host": host}).url() == f"postgresql://app:pw@{written}:5433/d"
    assert secret_of(FIELDS).url(host=host) == f"postgresql://app:pw@{written}:5433/d"


def test_a_redis_without_users_has_a_password_alone() -> None:
    secret = secret_of({"engine": "redis", "host": "h", "password": "pw"})
    assert secret.url(dbname="0") == "redis://:pw@h:6379/0"


@pytest.mark.parametrize("key", ["engine", "host", "username", "password"])
def test_a_missing_field_is_named_with_those_that_are_there(key: str) -> None:
    with pytest.raises(NoSuchKey, match=rf"'prod/db': no key '{key}'; the secret has .*'port'"):
        without(key).url()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("engine", "canary-engine", "no URL is known for its engine.*one of postgres, .*redis"),
        ("password", 12345678, "'password' is no string, but int"),
        ("password", "", "'password' is empty"),
        ("password", "canary\ud800", "'password' holds half a character"),
        ("host", ["canary-host"], "'host' is no string, but tuple"),
        ("port", "canary-port", "'port' is no port number"),
        ("port", 65536, "'port' is no port number"),
        ("port", 0, "'port' is no port number"),
        ("port", -1, "'port' is no port number"),
        ("port", 5432.5, "'port' is no port number"),
        ("port", True, "'port' is no port number"),
    ],
)
def test_a_field_of_no_use_is_named_and_its_value_is_not(field: str, value: Any, said: str) -> None:
    with pytest.raises(SecretValueError, match=said) as caught:
        secret_of({**FIELDS, field: value}).url()
    assert "canary" not in str(caught.value)
    assert "12345678" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("host", ["h:5432", "10.0.0.1:5432", "[::1]", "[::1]:5432", "h1:5432,h2:5432", "::1::"])
def test_a_host_with_a_port_and_one_that_is_in_brackets_already_are_refused(host: str) -> None:
    with pytest.raises(SecretValueError, match=r"'host' is neither a name nor an address.*'port'") as caught:
        secret_of({**FIELDS, "host": host}).url()
    assert caught.value.__context__ is None
    with pytest.raises(InvalidArgument, match="'host' is neither a name nor an address"):
        secret_of(FIELDS).url(host=host)


@pytest.mark.parametrize("port", ["abc", "", 0, -1, 65536, True, 5432.0, "5432/d"])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(InvalidArgument, match="'prod/db': 'port' is no port number"):
        secret_of(FIELDS).url(port=port)


def test_a_secret_that_is_no_json_says_so() -> None:
    with pytest.raises(NotJSON):
        secret_of("just a password").url()
    with pytest.raises(SecretCacheError):
        Secret(b"\x00", name="prod/db", version_id="v" * 32).url()
