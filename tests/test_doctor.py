"""The doctor finds what is wrong between a machine and a secret, says how to put it right, and shows no value."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from smcache import Secret
from smcache.cli import main
from smcache.doctor import (
    CHECKS,
    Case,
    check_clock,
    check_endpoint,
    check_kms,
    check_rotation,
    check_secret,
    check_value,
    examine,
)
from smcache.testing import answer, deny, drop, malformed, server_error, throttle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from smcache.testing import Fault, SecretsManager

NAME = "prod/db"
LOGIN = {"engine": "postgres", "host": "h", "port": 5432, "dbname": "d", "username": "u", "password": "p"}
NAMES = [check.name for check in CHECKS]


@pytest.fixture(autouse=True)
def environment(aws: SecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Lead boto3 to the server and away from this machine's own settings; return where its configuration goes."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, setting in aws.environ.items():
        monkeypatch.setenv(name, setting)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path / "config"


class Doctor:
    """Runs the command and reads its JSON."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.code = -1

    def __call__(self, *arguments: str) -> dict[str, Any]:
        self.code = main(["doctor", "--json", *arguments])
        printed = json.loads(self._capsys.readouterr().out)
        checks = {check["name"]: check for check in printed["checks"]}
        assert list(checks) == NAMES
        failed = [name for name in NAMES if checks[name]["status"] == "failed"]
        assert all(checks[name]["fix"] for name in failed), "each failure comes with its fix"
        assert printed["ok"] is not bool(failed)
        assert self.code == (1 if failed else 0)
        return checks


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


def failed(checks: dict[str, Any]) -> list[str]:
    return [name for name, check in checks.items() if check["status"] == "failed"]


def skipped(checks: dict[str, Any]) -> list[str]:
    return [name for name, check in checks.items() if check["status"] == "skipped"]


# --- the whole ------------------------------------------------------------------------------------------------


def test_all_is_well(aws: SecretsManager, doctor: Doctor) -> None:
    arn = aws.create(NAME, LOGIN)
    checks = doctor(NAME)
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert "env" in checks["credentials"]["detail"]
    assert "arn:aws:sts::" in checks["identity"]["detail"]
    assert checks["region"]["detail"] == "us-east-1"
    assert aws.endpoint_url in checks["endpoint"]["detail"]
    assert checks["secret"]["detail"] == arn
    assert "aws/secretsmanager" in checks["kms"]["detail"]
    assert checks["versions"]["detail"].startswith("AWSCURRENT ")
    assert checks["rotation"]["detail"] == "off"
    assert "'password', 'port', 'username'" in checks["value"]["detail"]


def test_it_takes_an_arn(aws: SecretsManager, doctor: Doctor) -> None:
    assert failed(doctor(aws.create(NAME, LOGIN))) == []


def test_each_question_to_aws_is_asked_once(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    doctor(NAME)
    assert {name: aws.requests[name] for name in ("DescribeSecret", "GetSecretValue")} == {
        "DescribeSecret": 1,
        "GetSecretValue": 1,
    }


def test_it_prints_a_line_for_each_check_and_what_to_do(
    aws: SecretsManager, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(deny())
    assert main(["doctor", NAME]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")][:-1] == NAMES
    marks = {line.split()[1]: line.split()[0] for line in lines if not line.startswith(" ")}
    assert (marks["secret"], marks["read"], marks["kms"]) == ("ok", "FAIL", "skip")
    fix = lines[lines.index(next(line for line in lines if line.startswith("FAIL"))) + 1]
    assert "fix: three policies must agree" in fix
    assert lines[-1] == "Does not work: read"


def test_it_says_so_when_nothing_is_wrong(aws: SecretsManager, capsys: pytest.CaptureFixture[str]) -> None:
    aws.create(NAME, LOGIN)
    assert main(["doctor", NAME]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing is wrong."


def test_what_a_secret_says_breaks_neither_a_line_nor_an_old_terminal(aws: SecretsManager, tmp_path: Path) -> None:
    aws.create(NAME, {"user\nname\x1b[31mé😀": "x"})
    aws.inject(deny(message="no\nway\x1b[31m é😀"), operation="DescribeSecret")
    command = [sys.executable, "-m", "smcache", "doctor", NAME]
    settings = {**aws.environ, "PYTHONIOENCODING": "ascii", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    done = subprocess.run(command, capture_output=True, env=settings, check=False, timeout=60)  # noqa: S603 - our own
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    assert rb"no way [31m \xe9\U0001f600" in done.stdout
    assert len([line for line in done.stdout.splitlines() if not line.startswith(b" ")]) == len(CHECKS) + 1


@pytest.mark.parametrize("secret_id", [" prod/db", "prod/db\n", "", "x" * 2049])
def test_an_id_that_cannot_be_is_a_wrong_argument(
    aws: SecretsManager, secret_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", secret_id]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("smcache: ")
    assert not aws.requests


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["doctor"], ["doctor", NAME, "--regoin", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
    assert "--regoin" in capsys.readouterr().err


# --- credentials, region, endpoint ------------------------------------------------------------------------------


def test_without_credentials_nothing_is_asked(
    aws: SecretsManager, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    checks = doctor(NAME)
    assert failed(checks) == ["credentials"]
    assert checks["region"]["status"] == "ok"
    assert checks["value"]["detail"] == "needs credentials"
    assert not aws.requests


def test_half_of_the_credentials_are_none(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    checks = doctor(NAME)
    assert failed(checks) == ["credentials"]
    assert "AWS_SECRET_ACCESS_KEY" in checks["credentials"]["detail"]


def test_a_missing_region_is_found_besides_missing_credentials(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert failed(doctor(NAME)) == ["credentials", "region"]


def test_a_missing_region_is_no_failure_of_the_identity(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    checks = doctor(NAME)
    assert failed(checks) == ["region"]
    assert checks["identity"]["status"] == "note"


@pytest.mark.parametrize(
    ("secret_id", "region"),
    [(NAME, "REGION"), ("arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-abcdef", "eu-west-1")],
)
def test_how_to_give_a_region_is_told_with_the_variable_that_boto3_reads(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, secret_id: str, region: str
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # AWS_REGION is still there
    checks = doctor(secret_id)
    assert failed(checks) == ["region"]
    assert f"--region {region}, or set AWS_DEFAULT_REGION" in checks["region"]["fix"]


def test_the_region_can_be_given(aws: SecretsManager, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    aws.create(NAME, LOGIN)
    assert failed(doctor(NAME, "--region", aws.region)) == []


def test_a_profile_that_does_not_exist_is_where_it_ends(doctor: Doctor) -> None:
    checks = doctor(NAME, "--profile", "nowhere")
    assert failed(checks) == ["profile"]
    assert skipped(checks) == NAMES[1:]
    assert "nowhere" in checks["profile"]["detail"]


def test_a_profile_brings_its_credentials_and_its_region(
    aws: SecretsManager, doctor: Doctor, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    environment.write_text(
        f"[profile team]\nregion = {aws.region}\naws_access_key_id = a\naws_secret_access_key = b\n", encoding="utf-8"
    )
    aws.create(NAME, LOGIN)
    checks = doctor(NAME, "--profile", "team")
    assert failed(checks) == []
    assert checks["profile"]["detail"] == "team"
    assert "config-file" in checks["credentials"]["detail"]


def test_a_program_that_should_bring_credentials_and_does_not_is_named(
    doctor: Doctor, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.write_text("[profile team]\ncredential_process = /nowhere/helper\n", encoding="utf-8")
    checks = doctor(NAME, "--profile", "team")
    assert failed(checks) == ["credentials"]
    assert "/nowhere/helper" in checks["credentials"]["detail"]


def test_a_configuration_that_cannot_be_read_is_a_line(doctor: Doctor, environment: Path) -> None:
    environment.write_text("no section", encoding="utf-8")
    assert failed(doctor(NAME)) == ["profile"]


@pytest.mark.parametrize("fault", [deny(), drop(), server_error(503)])
def test_an_identity_that_sts_does_not_tell_is_no_failure(aws: SecretsManager, doctor: Doctor, fault: Fault) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(fault, operation="")  # the server finds no operation of Secrets Manager in a request for STS
    checks = doctor(NAME)
    assert failed(checks) == []
    assert checks["identity"]["status"] == "note"


def test_an_sts_out_of_reach_is_no_failure(
    aws: SecretsManager, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.create(NAME, LOGIN)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refusing_url())
    checks = doctor(NAME)
    assert failed(checks) == []
    assert checks["identity"]["status"] == "note"


def refusing_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_an_endpoint_that_refuses_connections(doctor: Doctor) -> None:
    url = refusing_url()
    checks = doctor(NAME, "--endpoint-url", url)
    assert failed(checks) == ["endpoint"]
    assert url in checks["endpoint"]["detail"]
    assert "endpoint URL, DNS, proxy" in checks["endpoint"]["fix"]
    assert skipped(checks) == NAMES[NAMES.index("endpoint") + 1 :]


def test_an_endpoint_that_speaks_no_tls_or_is_not_there(aws: SecretsManager, doctor: Doctor) -> None:
    for url in (aws.endpoint_url.replace("http:", "https:"), "https://secretsmanager.us-east-99.invalid"):
        checks = doctor(NAME, "--endpoint-url", url)
        assert failed(checks) == ["endpoint"]
        assert "Region's spelling, the endpoint URL" in checks["endpoint"]["fix"]


@pytest.mark.parametrize("fault", [malformed(), malformed(b"{}"), malformed(status=403), malformed(status=404)])
def test_an_endpoint_that_is_none_of_aws(aws: SecretsManager, doctor: Doctor, fault: Fault) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(fault, operation="DescribeSecret")
    checks = doctor(NAME)
    assert failed(checks) == ["endpoint"]
    assert f"{aws.endpoint_url} gives no answer of Secrets Manager" in checks["endpoint"]["detail"]
    assert "proxy" in checks["endpoint"]["fix"]


def test_an_endpoint_that_closes_connections(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(drop(), operation="DescribeSecret")
    assert failed(doctor(NAME)) == ["endpoint"]


@pytest.mark.parametrize("arguments", [["--endpoint-url", "nowhere"], ["--region", "no region"]])
def test_an_endpoint_or_region_that_cannot_be(doctor: Doctor, arguments: list[str]) -> None:
    assert failed(doctor(NAME, *arguments)) == ["endpoint"]


def test_an_arn_of_another_region_is_told_before_anything_is_asked(aws: SecretsManager, doctor: Doctor) -> None:
    checks = doctor("arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-abcdef")
    assert failed(checks) == ["region"]
    assert "--region eu-west-1" in checks["region"]["fix"]
    assert not aws.requests["DescribeSecret"]


# --- the secret ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "region"), [("prod/bd", "us-east-1"), (NAME, "eu-west-1")])
def test_a_typo_and_a_wrong_region_are_not_found(aws: SecretsManager, doctor: Doctor, name: str, region: str) -> None:
    aws.create(NAME, LOGIN)
    checks = doctor(name, "--region", region)
    assert failed(checks) == ["secret"]
    assert region in checks["secret"]["detail"]
    assert "spelling" in checks["secret"]["fix"]
    assert skipped(checks) == ["read", "kms", "versions", "rotation", "value"]


def test_a_deleted_secret_is_told_with_the_date(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.client().delete_secret(SecretId=NAME, RecoveryWindowInDays=7)
    checks = doctor(NAME)
    assert failed(checks) == ["secret"]
    assert f"{datetime.now(timezone.utc) + timedelta(days=7):%Y-%m-}" in checks["secret"]["detail"]
    assert "RestoreSecret" in checks["secret"]["fix"]


def test_a_replica_is_told(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.client().replicate_secret_to_regions(SecretId=NAME, AddReplicaRegions=[{"Region": "eu-west-1"}])
    assert "replica in eu-west-1: InSync" in doctor(NAME)["secret"]["detail"]
    checks = doctor(NAME, "--region", "eu-west-1")
    assert failed(checks) == []
    assert "a replica of the one in us-east-1" in checks["secret"]["detail"]


def described(aws: SecretsManager, **told: Any) -> Case:
    """Return a case for which AWS has described the secret so."""
    case = Case(secret_id=NAME, client=aws.client())
    case.description = {"ARN": "arn:aws:secretsmanager:us-east-1:1:secret:prod/db-abcdef", **told}
    return case


def test_a_replica_that_failed_and_an_owner_are_told(aws: SecretsManager) -> None:
    failing = {"Region": "eu-west-1", "Status": "Failed", "StatusMessage": "a secret of this name is there"}
    result = check_secret(described(aws, ReplicationStatus=[failing], OwningService="rds"))
    assert result.status == "note"
    assert "managed by rds, replica in eu-west-1: Failed" in result.detail


def test_a_secret_that_may_not_be_described_may_be_read_all_the_same(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(deny(), operation="DescribeSecret")
    checks = doctor(NAME)
    assert failed(checks) == []
    assert checks["secret"]["status"] == "note"
    assert skipped(checks) == ["versions", "rotation"]
    assert checks["value"]["status"] == "ok"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (throttle(), "ThrottlingException"),
        (server_error(), "InternalServiceError"),
        (deny("ExpiredTokenException"), "ExpiredTokenException"),
        (deny("NeverSeenBefore"), "NeverSeenBefore"),
    ],
)
def test_an_error_of_aws_is_a_line_with_its_code(aws: SecretsManager, doctor: Doctor, fault: Fault, code: str) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(fault, operation="DescribeSecret")
    checks = doctor(NAME)
    assert failed(checks) == ["secret"]
    assert f"[{code}]" in checks["secret"]["detail"]
    assert checks["clock"]["status"] == "ok"


def test_an_error_when_the_value_is_read_is_one_too(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(throttle())
    checks = doctor(NAME)
    assert failed(checks) == ["read"]
    assert "[ThrottlingException]" in checks["read"]["detail"]


@pytest.mark.parametrize(("operation", "check"), [("DescribeSecret", "endpoint"), ("GetSecretValue", "read")])
def test_an_answer_that_says_nothing_is_a_line(aws: SecretsManager, doctor: Doctor, operation: str, check: str) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(malformed(), operation=operation)
    checks = doctor(NAME)
    assert failed(checks) == [check]
    assert "proxy" in checks[check]["fix"]


def test_what_nobody_expected_is_a_line(aws: SecretsManager, monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    """A fake: a failure of our own cannot be had on order."""

    def break_down(_: object) -> None:
        raise KeyError("the unexpected")

    aws.create(NAME, LOGIN)
    monkeypatch.setattr("smcache.doctor._labels", break_down)
    checks = doctor(NAME)
    assert failed(checks) == ["versions"]
    assert "KeyError" in checks["versions"]["detail"]


def test_reading_may_be_denied(aws: SecretsManager, doctor: Doctor) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(deny())
    checks = doctor(NAME)
    assert failed(checks) == ["read"]
    assert "resource policy" in checks["read"]["fix"]
    assert skipped(checks) == ["kms", "value"]


@pytest.mark.parametrize("fault", [deny(message="Access to KMS is not allowed"), deny("DecryptionFailure")])
def test_a_key_that_refuses_is_told_from_a_secret_that_may_not_be_read(
    aws: SecretsManager, doctor: Doctor, fault: Fault
) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(fault)
    checks = doctor(NAME)
    assert failed(checks) == ["kms"]
    assert checks["read"]["status"] == "ok"
    assert "kms:Decrypt" in checks["kms"]["fix"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("arn:aws:kms:us-east-1:1:key/1234", "with the key arn:aws:kms:us-east-1:1:key/1234"),
        (None, "with the key aws/secretsmanager, which AWS manages"),
    ],
)
def test_the_key_is_named(aws: SecretsManager, key: str | None, said: str) -> None:
    assert said in check_kms(described(aws, KmsKeyId=key)).detail


def test_a_secret_without_a_value_is_no_secret_yet(aws: SecretsManager, doctor: Doctor) -> None:
    aws.client().create_secret(Name=NAME)
    checks = doctor(NAME)
    assert failed(checks) == ["read", "versions"]
    assert "PutSecretValue" in checks["versions"]["fix"]


# --- rotation -------------------------------------------------------------------------------------------------------

PENDING_ID = "0" * 32


def put_pending(aws: SecretsManager) -> None:
    aws.create(NAME, LOGIN)
    aws.client().put_secret_value(
        SecretId=NAME, SecretString="{}", ClientRequestToken=PENDING_ID, VersionStages=["AWSPENDING"]
    )


def test_a_rotation_under_way_is_no_failure(aws: SecretsManager, doctor: Doctor) -> None:
    put_pending(aws)
    checks = doctor(NAME)
    assert failed(checks) == []
    assert checks["rotation"]["detail"].startswith("under way for")
    assert PENDING_ID in checks["rotation"]["detail"]


def test_a_pending_version_that_may_not_be_read_is_worth_a_note(aws: SecretsManager) -> None:
    put_pending(aws)
    case = described_by_aws(aws)
    aws.inject(deny())
    result = check_rotation(case)
    assert result.status == "note"
    assert "may not be read" in result.detail


def described_by_aws(aws: SecretsManager) -> Case:
    case = Case(secret_id=NAME, client=aws.client())
    case.description = dict(aws.client().describe_secret(SecretId=NAME))
    return case


@pytest.mark.parametrize("fault", [None, deny(), deny("ResourceNotFoundException")])
def test_a_pending_version_that_stays_is_a_rotation_stuck(aws: SecretsManager, fault: Fault | None) -> None:
    """Where it may not be read, or has no value, the last change of the secret tells how old it is at least."""
    put_pending(aws)
    case = described_by_aws(aws)
    case.aws_time = datetime.now(timezone.utc) + timedelta(hours=3)
    if fault is not None:
        aws.inject(fault)
    result = check_rotation(case)
    assert result.status == "failed"
    assert result.detail.startswith(f"stuck: AWSPENDING has been on version {PENDING_ID} for 3 h")
    assert "RotateSecret" in result.fix


def test_a_pending_version_of_unknown_age_is_taken_for_a_rotation(aws: SecretsManager) -> None:
    case = described(aws, VersionIdsToStages={PENDING_ID: ["AWSPENDING"], "1" * 32: ["AWSCURRENT"]})
    result = check_rotation(case)
    assert result.status == "note"
    assert result.detail.startswith("under way: AWSPENDING is on version")


def test_a_label_left_on_the_promoted_version_is_no_rotation(aws: SecretsManager) -> None:
    case = described(aws, VersionIdsToStages={"1" * 32: ["AWSCURRENT", "AWSPENDING"]})
    assert (check_rotation(case).status, check_rotation(case).detail) == ("ok", "off")


@pytest.mark.parametrize(
    ("enabled", "due_in_hours", "status"), [(True, 24, "ok"), (True, -24, "failed"), (False, -24, "ok")]
)
def test_a_rotation_overdue_is_a_failure(aws: SecretsManager, enabled: bool, due_in_hours: int, status: str) -> None:  # noqa: FBT001 - a case
    now = datetime.now(timezone.utc)
    case = described(
        aws,
        VersionIdsToStages={"1" * 32: ["AWSCURRENT"]},
        RotationEnabled=enabled,
        LastRotatedDate=now - timedelta(days=30),
        NextRotationDate=now + timedelta(hours=due_in_hours),
    )
    result = check_rotation(case)
    assert result.status == status
    assert "last 20" in result.detail
    assert "next by 20" in result.detail


# --- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_is_compared_with_that_of_aws(aws: SecretsManager) -> None:
    aws.create(NAME, LOGIN)
    results = {result.name: result for result in examine(Case(secret_id=NAME, clock=lambda: time.time() + 7200))}
    assert results["clock"].status == "failed"
    assert "2 h ahead of AWS's" in results["clock"].detail
    assert results["rotation"].status == "ok"


@pytest.mark.parametrize("said", ["Signature expired: 20260101T000000Z is", "Signature not yet current: 20260101"])
def test_what_is_signed_at_the_wrong_time_is_for_the_clock_to_mend(
    aws: SecretsManager, doctor: Doctor, said: str
) -> None:
    aws.create(NAME, LOGIN)
    aws.inject(deny("InvalidSignatureException", said), times=None)
    checks = doctor(NAME)
    assert failed(checks) == ["read"]
    assert "clock" in checks["read"]["fix"]
    aws.inject(deny("InvalidSignatureException", said), operation="DescribeSecret", times=None)
    checks = doctor(NAME)
    assert failed(checks) == ["secret"]
    assert "clock" in checks["secret"]["fix"]


@pytest.mark.parametrize(
    ("seconds", "status", "said"),
    [
        (0, "ok", "within 1 s"),
        (300, "ok", "within 300 s"),
        (-300, "ok", "within 300 s"),
        (301, "failed", "5 min ahead of AWS's"),
        (-86_400 * 3, "failed", "3 days behind AWS's"),
    ],
)
def test_five_minutes_are_what_aws_bears(seconds: int, status: str, said: str) -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    result = check_clock(Case(secret_id=NAME, aws_time=noon, answered_at=noon.timestamp() + seconds))
    assert result.status == status
    assert said in result.detail


@pytest.mark.parametrize("date", ["", "nonsense", "Thu, 01 Jan 2026 12:00:00 -0000"])
def test_an_answer_without_a_date_tells_nothing_of_the_clock(aws: SecretsManager, date: str) -> None:
    """A fake answer: the server dates all of its own."""
    case = Case(secret_id=NAME, session=boto3.Session()._session, region=aws.region)

    def redate(http_response: Any, parsed: dict[str, Any], **_: object) -> None:
        parsed["ResponseMetadata"]["HTTPHeaders"]["date"] = date

    case.session.register("after-call.secrets-manager.DescribeSecret", redate)
    assert check_endpoint(case).status == "ok"
    case.client.close()
    assert check_clock(case).status == "note"


# --- the value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        ({"username": "u", "password": "p"}, "ok", "who connects must know engine, host, port, dbname"),
        ({"engine": "redis", "host": "h", "password": "p"}, "ok", "'engine', 'host', 'password'"),
        ({"engine": "redis", "host": "h"}, "failed", "'password'"),
        ({"username": "u", "passwd": "p"}, "failed", "no key 'password'; the secret has 'passwd', 'username'"),
        ({"username": "u", "password": 5}, "failed", "'password' is no string"),
        ({"username": "", "password": "p"}, "failed", "'username' is empty"),
        ({**LOGIN, "port": "http"}, "failed", "'port' is no port number"),
        ({"api_key": "k"}, "note", "a JSON object with 'api_key'"),
        ({}, "note", "no field"),
        ('{"username": "u", "password": "p",}', "failed", "not JSON"),
        ("an API key", "note", "not JSON"),
        ('["a list"]', "note", "not an object"),
        (b"\x00\xff", "note", "binary"),
        (b'{"username": "u", "password": "p"}', "note", "binary"),
    ],
)
def test_the_fields_of_a_database_are_looked_for(value: Any, status: str, said: str) -> None:
    stored = value if isinstance(value, (str, bytes)) else json.dumps(value)
    result = check_value(Case(secret_id=NAME, secret=Secret(stored, name=NAME, version_id="0" * 32)))
    assert result.status == status
    assert said in result.detail
    assert bool(result.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("value", "failures"), [(b"\x00", []), ("an API key", []), ('{"username": "u"}', ["value"]), ("{,}", ["value"])]
)
def test_what_is_no_secret_of_a_database_is_no_failure_what_is_half_of_one_is(
    aws: SecretsManager, doctor: Doctor, value: Any, failures: list[str]
) -> None:
    aws.create(NAME, value)
    assert failed(doctor(NAME)) == failures


@pytest.fixture
def nothing_shown(canary: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    printed = capfd.readouterr()
    assert printed.out
    assert canary not in printed.out + printed.err
    logged = [caplog.handler.format(record) for record in caplog.get_records("call")]
    assert logged, "at this level botocore logs something"
    assert canary not in "\n".join(logged)


@pytest.mark.usefixtures("nothing_shown")
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        *((kind, "none") for kind in ("text", "fields", "wrong fields", "almost JSON", "JSON text", "bytes")),
        *(("fields", fault) for fault in ("deny", "cut", "not utf-8", "no version")),
    ],
)
def test_no_value_is_printed_or_logged(aws: SecretsManager, canary: str, kind: str, fault: str) -> None:
    values: dict[str, Any] = {
        "text": canary,
        "fields": {"username": canary, "password": canary, "port": canary},
        "wrong fields": {"username": {"name": canary}, "password": [canary]},
        "almost JSON": f'{{"username": "{canary}",}}',
        "JSON text": json.dumps(canary),
        "bytes": canary.encode(),
    }
    faults = {
        "deny": deny(),
        "cut": malformed(f'{{"SecretString": "{canary}'.encode()),
        "not utf-8": malformed(b'{"SecretString": "' + canary.encode() + b'\xff"}'),
        "no version": answer({"SecretString": canary}),
    }
    aws.create(NAME, values[kind])
    pending = {"SecretId": NAME, "ClientRequestToken": PENDING_ID, "VersionStages": ["AWSPENDING"]}
    aws._ask("PutSecretValue", {**pending, "SecretString": canary})  # a client would log what it sends
    if fault in faults:
        aws.inject(faults[fault], times=None)
    main(["doctor", NAME])
    main(["doctor", NAME, "--json"])
