"""BotoSource: the client it makes, the clients it takes, and what it makes of their errors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import boto3
import botocore.exceptions as aws_errors
import pytest
from botocore.exceptions import DataNotFoundError
from botocore.parsers import ResponseParserError
from botocore.session import get_session
from botocore.stub import Stubber

import smcache
from smcache import (
    AccessDenied,
    CacheConfig,
    InvalidArgument,
    MalformedResponse,
    NotConfigured,
    RequestRejected,
    SecretCache,
    SecretDeleted,
    SecretNotFound,
    SourceFailed,
    Throttled,
    Unavailable,
)
from smcache.sources import BatchSource, Source, VersionSource
from smcache.sources.boto import (
    ERRORS_BY_CODE,
    BotoSource,
    batch_from,
    secret_from,
    translate,
    versions_from,
    without_listing_services,
)

if TYPE_CHECKING:
    from smcache import (
        SecretCacheError,
    )
    from smcache.testing import SecretsManager

VERSION = "v" * 32


@pytest.fixture
def usual_settings(aws: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> SecretsManager:
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    return aws


def test_it_is_a_source_that_tells_versions_and_fetches_batches() -> None:
    source = BotoSource()
    assert isinstance(source, Source)
    assert isinstance(source, VersionSource)
    assert isinstance(source, BatchSource)


class TestOurClient:
    def test_it_takes_the_usual_settings_and_says_who_it_is(self, usual_settings: SecretsManager) -> None:
        usual_settings.create("prod/db", "v")
        with SecretCache() as cache:
            assert cache.get("prod/db").string == "v"
            assert f"smcache/{smcache.__version__}" in usual_settings.user_agents[0]

    def test_its_own_retries_are_off_and_its_timeouts_leave_room_for_a_second_try(
        self, usual_settings: SecretsManager
    ) -> None:
        source = BotoSource(fetch_timeout=8)
        with pytest.raises(SecretNotFound):
            source.fetch("missing", "AWSCURRENT", None)
        config = source._client.meta.config
        assert config.retries["total_max_attempts"] == 1
        assert (config.connect_timeout, config.read_timeout) == (2, 4)
        source.close()
        source.close()

    def test_without_a_region_or_credentials_it_says_so_at_once_and_counts_no_request(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with SecretCache() as cache:
            with pytest.raises(NotConfigured, match="region"):
                cache.get("prod/db")
            monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
            with pytest.raises(NotConfigured, match="credentials"):
                cache.refresh("prod/db")
            assert cache.metrics.snapshot().api_calls == 0


class TestClientsOfTheUser:
    def test_a_stubbed_client_is_a_client(self) -> None:
        client = boto3.client(
            "secretsmanager", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        answer = {"Name": "prod/db", "VersionId": VERSION, "SecretString": "v"}
        with Stubber(client) as stub, SecretCache(client) as cache:
            stub.add_response("get_secret_value", answer, {"SecretId": "prod/db", "VersionStage": "AWSCURRENT"})
            secret = cache.get("prod/db")
        assert (secret.string, secret.arn, secret.created_at) == ("v", "", None)

    def test_closing_the_cache_leaves_it_open(self, aws: SecretsManager) -> None:
        aws.create("prod/db", "v")
        client = aws.client()
        SecretCache(client).close()
        assert client.get_secret_value(SecretId="prod/db", VersionStage="AWSCURRENT")["SecretString"] == "v"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"client": object()}, "no get_secret_value: object"),
            ({"client": "secretsmanager"}, "no get_secret_value: str"),
            ({"source": object()}, "is no Source: object"),
            ({"client": boto3, "source": BotoSource()}, "client= and source= were given together"),
            ({"config": {"ttl": 5}}, "takes a CacheConfig, not dict"),
        ],
    )
    def test_what_cannot_serve_is_refused_when_the_cache_is_made(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            SecretCache(**arguments)

    def test_check_version_first_is_refused_with_a_source_that_cannot(self) -> None:
        class Plain:
            def fetch(self, *_: Any) -> Any: ...
            def close(self) -> None: ...

        with pytest.raises(InvalidArgument, match="check_version_first needs a source with describe"):
            SecretCache(source=Plain(), config=CacheConfig(check_version_first=True))


class TestLogs:
    def test_botocores_debug_log_shows_no_value(self, aws: SecretsManager, caplog: pytest.LogCaptureFixture) -> None:
        aws.create("prod/db", "canary-in-a-body")
        with caplog.at_level(logging.DEBUG), SecretCache(aws.client()) as cache:
            cache.get("prod/db")
        assert "Response body" in caplog.text
        assert "canary-in-a-body" not in caplog.text


def client_error(
    code: str, message: str = "no", status: int = 400, operation: str = "GetSecretValue", **more: Any
) -> aws_errors.ClientError:
    told: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, **more},
    }
    return aws_errors.ClientError(told, operation)


class TestErrors:
    @pytest.mark.parametrize(("code", "kind"), ERRORS_BY_CODE.items())
    def test_each_known_code_has_its_error(self, code: str, kind: type[SecretCacheError]) -> None:
        original = client_error(code)
        error = translate(original, "prod/db")
        assert type(error) is kind
        assert (error.code, error.secret_id, error.__cause__) == (code, "prod/db", original)

    @pytest.mark.parametrize(
        ("original", "kind", "requests"),
        [
            (client_error("Whatever", status=400), RequestRejected, 1),
            (client_error("Whatever", status=429), Throttled, 1),
            (client_error("Whatever", status=502), Unavailable, 1),
            # Of a proxy or a gateway: botocore puts the status where there is no code of AWS.
            *((client_error(str(status), status=status), MalformedResponse, 1) for status in (302, 400, 403, 404, 407)),
            (client_error("429", status=429), Throttled, 1),
            (client_error("503", status=503), Unavailable, 1),
            (client_error("AccessDenied", operation="AssumeRole"), NotConfigured, 0),
            (client_error("IDPCommunicationError", operation="AssumeRoleWithWebIdentity"), NotConfigured, 0),
            (client_error("ThrottlingException", RetryAttempts=4), Throttled, 5),
            (client_error("InvalidRequestException", "... it was marked for deletion."), SecretDeleted, 1),
            (client_error("InvalidRequestException", "... something else"), RequestRejected, 1),
            (aws_errors.EndpointConnectionError(endpoint_url="http://x"), Unavailable, 1),
            (aws_errors.ReadTimeoutError(endpoint_url="http://x"), Unavailable, 1),
            (aws_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unavailable, 1),
            (ConnectionResetError(), Unavailable, 1),
            (aws_errors.NoCredentialsError(), NotConfigured, 0),
            (aws_errors.NoRegionError(), NotConfigured, 0),
            (aws_errors.MetadataRetrievalError(error_msg="no role"), NotConfigured, 0),
            (aws_errors.InvalidRegionError(region_name="-"), NotConfigured, 0),
            (aws_errors.ParamValidationError(report="bad"), RequestRejected, 0),
            (ZeroDivisionError(), SourceFailed, 1),
        ],
        ids=repr,
    )
    def test_every_other_error_has_one_too(
        self, original: Exception, kind: type[SecretCacheError], requests: int
    ) -> None:
        error = translate(original, "prod/db")
        assert type(error) is kind
        assert error.requests == requests
        assert error.__cause__ is original

    @pytest.mark.parametrize(
        "original", [ResponseParserError("canary"), UnicodeDecodeError("utf-8", b"canary", 0, 1, "canary")]
    )
    def test_what_could_not_be_parsed_is_not_kept(self, original: Exception) -> None:
        error = translate(original, "prod/db")
        assert type(error) is MalformedResponse
        assert (error.__cause__, error.__context__) == (None, None)
        assert "canary" not in str(error)

    def test_a_proxys_error_page_is_cut_short(self) -> None:
        assert len(translate(client_error("502", "<html>" * 1000, status=502), "prod/db").message) <= 300


class TestAnswers:
    def test_a_binary_value_is_bytes(self) -> None:
        assert secret_from({"VersionId": VERSION, "SecretBinary": b"\x00"}, "x").binary == b"\x00"

    def test_an_empty_string_is_a_value(self) -> None:
        assert secret_from({"VersionId": VERSION, "SecretString": ""}, "x").string == ""

    def test_a_batch_is_told_apart_by_name_arn_and_partial_arn(self) -> None:
        arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf"
        value = {"ARN": arn, "Name": "prod/db", "VersionId": VERSION, "SecretString": "v"}
        response = {
            "SecretValues": [value, {"Name": "broken"}],
            "Errors": [{"SecretId": "no", "ErrorCode": "AccessDeniedException", "Message": "denied"}],
        }
        ids = ["prod/db", arn, arn[:-7], "prod", "no"]
        found = batch_from(response, ids)
        assert found.keys() == {*ids[:3], "no"}
        assert found["prod/db"] is found[arn] is found[arn[:-7]]
        assert isinstance(found[arn], smcache.Secret)
        assert isinstance(found["no"], AccessDenied)

    def test_a_partial_arn_is_not_the_beginning_of_another_secrets_arn(self) -> None:
        partial = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod"
        response = {
            "SecretValues": [
                {"ARN": f"{partial}-AbCdEf", "Name": "prod", "VersionId": VERSION, "SecretString": "v"},
                {"ARN": f"{partial}-db-XyZabc", "Name": "prod-db", "VersionId": VERSION, "SecretString": "v"},
            ]
        }
        ids = [partial, f"{partial}-db-XyZabc", f"{partial}-db"]
        found = batch_from(response, ids)
        assert [getattr(found[each], "name", None) for each in ids] == ["prod", "prod-db", "prod-db"]

    def test_versions_are_found_by_label_and_a_deleted_secret_has_none(self) -> None:
        told = {"VersionIdsToStages": {"a": ["AWSCURRENT", "blue"], "b": ["AWSPREVIOUS"], "c": []}}
        assert versions_from(told, "x") == {"AWSCURRENT": "a", "blue": "a", "AWSPREVIOUS": "b"}
        with pytest.raises(SecretDeleted):
            versions_from({**told, "DeletedDate": "2026-01-01"}, "x")


def test_a_client_made_here_finds_its_model_without_a_list_of_all_services() -> None:
    session = without_listing_services(get_session())
    client = session.create_client("sts", region_name="eu-west-1")  # as credentials of a role need it
    assert "GetCallerIdentity" in client.meta.service_model.operation_names
    with pytest.raises(DataNotFoundError):
        session.create_client("no-such-service", region_name="eu-west-1")
