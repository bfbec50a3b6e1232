"""What every cache promises, whatever drives it: over HTTP, against the moto server, by an injected clock."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config

from smcache import (
    AccessDenied,
    CacheClosed,
    DecryptionFailed,
    InvalidArgument,
    MalformedResponse,
    NoOtherVersion,
    NoSuchKey,
    NotJSON,
    RequestRejected,
    Secret,
    SecretDeleted,
    SecretNotFound,
    SourceFailed,
    Unavailable,
    WrongKind,
)
from smcache import (
    Throttled as ThrottledError,
)
from smcache.events import (
    AuthFailed,
    AuthRecovered,
    Denied,
    Fetched,
    Recovered,
    Rotated,
    ServedStale,
    Throttled,
)
from smcache.sources import Answer
from smcache.testing import answer, deny, drop, malformed, server_error, tcp_reset, throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Clock, MakeCache, MakeClient, Together, WaitUntilIdle

    from smcache.events import Event
    from smcache.testing import Fault, Hold, SecretsManager

GET = "GetSecretValue"
REQUEST = contextvars.ContextVar("REQUEST", default="none")
UNKNOWN_VERSION = "00000000-0000-0000-0000-000000000000"


def sent(client: Any) -> list[dict[str, Any]]:
    """Return a list that fills with the parameters of each request the client sends."""
    requests: list[dict[str, Any]] = []
    client.meta.events.register(
        "before-parameter-build.secrets-manager", lambda params, **_: requests.append(dict(params))
    )
    return requests


def hold_until_first(hold: Hold) -> None:
    hold.wait_for(1)
    hold.release()


@pytest.fixture(params=["threads", "aiobotocore", "botocore in threads"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestReading:
    def test_a_second_read_costs_no_request_and_returns_the_same_object(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("prod/db", {"password": "p1"})
        cache = make_cache()
        first = cache.get("prod/db")
        assert cache.get("prod/db") is first
        assert first["password"] == "p1"
        assert first.stages == ("AWSCURRENT",)
        assert first.created_at is not None
        assert first.created_at.tzinfo is not None
        assert aws.requests == {GET: 1}
        snapshot = cache.metrics.snapshot()
        assert (snapshot.hits, snapshot.misses, snapshot.api_calls) == (1, 1, 1)

    def test_each_kind_of_value_has_its_reader(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("text", "plain")
        aws.create("fields", {"user": "u", "nested": {"list": [1, 2]}})
        aws.create("bytes", b"\x00\x01")
        cache = make_cache()
        assert cache.get_string("text") == "plain"
        assert cache.get_json("fields")["nested"]["list"] == (1, 2)
        assert cache.get_json("fields") is cache.get_json("fields")
        assert cache.get_binary("bytes") == b"\x00\x01"

    def test_the_wrong_kind_of_value_is_a_clear_error_each_time(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("text", "plain")
        aws.create("list", "[1]")
        aws.create("fields", {"user": "u", "port": 5432})
        aws.create("bytes", b"\x00")
        cache = make_cache()
        with pytest.raises(WrongKind, match=r"read \.binary"):
            cache.get_string("bytes")
        with pytest.raises(WrongKind, match=r"read \.string"):
            cache.get_binary("text")
        with pytest.raises(NotJSON, match="not JSON"):
            cache.get_json("text")
        with pytest.raises(NotJSON, match="not an object"):
            cache.get_json("list")
        with pytest.raises(NoSuchKey, match="'port', 'user'"):
            cache.get_json("fields")["password"]
        assert cache.get("fields")["user"] == "u"

    def test_the_stage_is_always_said_and_stages_are_kept_apart(
        self, aws: SecretsManager, make_cache: MakeCache, make_client: MakeClient
    ) -> None:
        aws.create("prod/db", "v1")
        aws.put("prod/db", "v2")
        client = make_client()
        requests = sent(client)
        cache = make_cache(client=client)
        assert cache.get("prod/db").string == "v2"
        assert cache.get("prod/db", stage="AWSPREVIOUS").string == "v1"
        assert cache.get("prod/db").string == "v2"
        assert [request["VersionStage"] for request in requests] == ["AWSCURRENT", "AWSPREVIOUS"]

    def test_a_pinned_version_is_fetched_once_for_ever(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        version = cache.get("prod/db").version_id
        aws.put("prod/db", "v2")
        pinned = cache.get("prod/db", version_id=version)
        clock.advance(1e9)
        assert cache.get("prod/db", version_id=version) is pinned
        assert pinned.string == "v1"
        assert aws.requests == {GET: 2}

    def test_name_and_arn_are_two_keys_of_one_secret(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        arn = aws.create("prod/db", "v1")
        cache = make_cache()
        assert cache.get(arn) is cache.get("prod/db")
        for name in ("prod/db", arn):
            cache.invalidate(name)
            cache.get("prod/db")
            cache.get(arn)
        assert aws.requests == {GET: 6}

    def test_invalidate_without_a_name_forgets_everything(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        cache = make_cache()
        for name in ("a", "b"):
            aws.create(name, "v")
            cache.get(name)
        cache.invalidate()
        cache.get("a")
        cache.get("b")
        assert aws.requests == {GET: 4}

    def test_at_most_max_size_values_are_kept(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        cache = make_cache(max_size=2)
        for name in ("a", "b", "c"):
            aws.create(name, "v")
            cache.get(name)
        cache.get("b")
        cache.get("c")
        assert aws.requests == {GET: 3}
        cache.get("a")
        assert aws.requests == {GET: 4}


class TestRefreshing:
    def test_past_the_ttl_aws_is_asked_again_and_the_same_version_stays_the_same_object(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100)
        first = cache.get("prod/db")
        clock.advance(100)
        assert cache.get("prod/db") is first
        assert aws.requests == {GET: 2}

    def test_a_read_past_the_ttl_gets_the_new_version(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100)
        cache.get("prod/db")
        aws.put("prod/db", "v2")
        clock.advance(99)  # a refresh starts, and nobody waits for it
        assert cache.get("prod/db").string == "v1"
        wait_until_idle(cache)
        assert cache.get("prod/db").string == "v2"
        assert cache.metrics.snapshot().rotations_seen == 1

    def test_nobody_waits_for_a_refresh_ahead(
        self,
        aws: SecretsManager,
        make_cache: MakeCache,
        clock: Clock,
        together: Together,
        wait_until_idle: WaitUntilIdle,
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100, refresh_after=0.5)
        old = cache.get("prod/db")
        clock.advance(50)
        with aws.hold() as hold:
            assert together(16, lambda: cache.get("prod/db")) == [old] * 16
            hold.wait_for(1)
            assert aws.requests == {GET: 2}
        wait_until_idle(cache)
        assert cache.get("prod/db") is old
        assert aws.requests == {GET: 2}

    def test_refresh_asks_now_and_its_failure_loses_nothing(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        old = cache.get("prod/db")
        assert cache.refresh("prod/db") is old
        aws.inject(deny())
        with pytest.raises(AccessDenied):
            cache.refresh("prod/db")
        assert cache.get("prod/db") is old
        aws.put("prod/db", "v2")
        assert cache.refresh("prod/db").string == "v2"
        assert cache.get("prod/db").string == "v2"

    def test_refreshes_at_the_same_moment_share_requests_that_left_after_they_were_called(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock
    ) -> None:
        """One that was already under way does not count: it may bring what was true before."""
        aws.create("prod/db", "v1")
        cache = make_cache()
        with ThreadPoolExecutor(9) as pool:
            with aws.hold() as hold:
                early = pool.submit(cache.get, "prod/db")
                hold.wait_for(1)
                clock.advance(1)
                late = [pool.submit(cache.refresh, "prod/db") for _ in range(8)]
            assert early.result(30).string == "v1"
            assert {one.result(30) for one in late} == {early.result()}
        assert aws.requests == {GET: 2}

    def test_listeners_hear_of_a_rotation_once_by_any_name_and_until_they_are_taken_off(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle
    ) -> None:
        arn = aws.create("prod/db", "v1")
        cache = make_cache()
        heard: list[tuple[str, str, str]] = []

        def listen(by: str) -> Callable[[], None]:
            return cache.on_rotation(by, lambda old, new: heard.append((by, old.string, new.string)))

        def complain(old: Secret, new: Secret) -> None:
            raise RuntimeError("a listener's own trouble")

        cache.on_rotation("prod/db", complain)
        listen("prod/db")
        cancel = listen(arn)
        listen("another")
        cache.get("prod/db")
        cache.get(arn)
        aws.put("prod/db", "v2")
        cache.refresh("prod/db")
        assert cache.get(arn).string == "v2"
        cache.refresh(arn)
        wait_until_idle(cache)
        assert sorted(heard) == sorted([("prod/db", "v1", "v2"), (arn, "v1", "v2")])
        cancel()
        aws.put("prod/db", "v3")
        cache.refresh(arn)
        wait_until_idle(cache)
        assert sorted(heard[2:]) == [("prod/db", "v2", "v3")]
        assert cache.metrics.snapshot().rotations_seen == 2

    def test_a_listener_by_a_partial_arn_hears_of_a_rotation_found_under_the_name(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle
    ) -> None:
        """AWS takes an ARN without its last seven characters, too."""
        arn = aws.create("prod/db", "v1")
        cache = make_cache()
        heard: list[str] = []
        cache.on_rotation(arn[:-7], lambda old, new: heard.append(new.string))
        cache.get("prod/db")
        aws.put("prod/db", "v2")
        cache.refresh("prod/db")
        wait_until_idle(cache)
        assert heard == ["v2"]

    def test_check_version_first_fetches_the_value_only_when_it_has_changed(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(check_version_first=True)
        first = cache.get("prod/db")
        assert cache.refresh("prod/db") is first
        assert aws.requests == {GET: 1, "DescribeSecret": 1}
        aws.put("prod/db", "v2")
        assert cache.refresh("prod/db").string == "v2"
        assert aws.requests == {GET: 2, "DescribeSecret": 2}
        aws.client().delete_secret(SecretId="prod/db")
        with pytest.raises(SecretDeleted):
            cache.refresh("prod/db")

    @pytest.mark.parametrize("fault", [deny("DecryptionFailure"), deny("ResourceNotFoundException")])
    def test_a_new_version_that_cannot_be_read_leaves_the_old_one_in_service(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, fault: Fault
    ) -> None:
        """Where DescribeSecret has shown that AWSCURRENT has moved; a denial of the same version ends it."""
        aws.create("prod/db", "v1")
        cache = make_cache(check_version_first=True, ttl=100, refresh_after=1)
        old = cache.get("prod/db")
        aws.put("prod/db", "v2")
        with aws.inject(fault, times=None):
            clock.advance(100)
            assert cache.get("prod/db") is old
            clock.advance(1000)
            assert cache.get("prod/db") is old
        clock.advance(1000)
        assert cache.get("prod/db").string in ("v1", "v2")  # the refresh has begun
        aws.inject(deny(), times=None, operation="DescribeSecret")
        cache.refresh("prod/db", version_id=cache.get("prod/db").version_id)
        clock.advance(100)
        with pytest.raises(AccessDenied):
            cache.get("prod/db")


class TestTelling:
    """What listeners hear and what the log says: once per change, after the fact, and in nobody's way."""

    def test_a_life_of_a_secret(
        self,
        aws: SecretsManager,
        make_cache: MakeCache,
        clock: Clock,
        wait_until_idle: WaitUntilIdle,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level("INFO", "smcache")
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100, refresh_after=1, negative_ttl=0)
        heard: list[Event] = []
        cancel = cache.subscribe(heard.append)

        def happened() -> list[Event]:
            wait_until_idle(cache)
            told = heard[:]
            heard.clear()
            return told

        old = cache.get("prod/db")
        assert happened() == [Fetched("prod/db", "AWSCURRENT", old.version_id, 0, "")]
        clock.advance(100)
        with aws.inject(throttle(), times=None):
            for _ in range(5):
                assert cache.get("prod/db") is old
            told = happened()
        assert {type(event) for event in told} == {Throttled, Fetched, ServedStale}
        assert [event for event in told if isinstance(event, ServedStale)] == [
            ServedStale("prod/db", "AWSCURRENT", old.version_id)
        ]
        new_version = aws.put("prod/db", "v2")
        new = cache.refresh("prod/db")
        assert happened() == [
            Fetched("prod/db", "AWSCURRENT", new_version, 0, ""),
            Recovered("prod/db", "AWSCURRENT", new_version),
            Rotated("prod/db", old, new),
        ]
        with aws.inject(deny(), times=None):
            for _ in range(2):
                clock.advance(100)
                for _ in range(2):
                    with pytest.raises(AccessDenied):
                        cache.get("prod/db")
        denied = [event for event in happened() if not isinstance(event, Fetched)]
        assert denied == [Denied("prod/db", "AWSCURRENT", "AccessDeniedException")]
        cache.get("prod/db")
        assert Recovered("prod/db", "AWSCURRENT", new_version) in happened()
        cancel()
        cache.refresh("prod/db")
        assert happened() == []
        assert [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records] == [
            ("WARNING", "prod/db is stale"),
            ("INFO", "prod/db has recovered"),
            ("INFO", f"prod/db rotated from version {old.version_id} to {new_version}"),
            ("ERROR", "prod/db was denied by AWS (AWSCURRENT)"),
            ("INFO", "prod/db has recovered"),
        ]

    def test_rejected_logins_are_told_with_their_versions(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        heard: list[Event] = []

        @cache.retry_on_auth_error("prod/db", is_auth_error=lambda error: isinstance(error, PermissionError))
        def connect(secret: Secret) -> str:
            if secret.string == "v1":
                raise PermissionError
            return secret.version_id

        old = cache.get("prod/db")
        aws.put("prod/db", "v2")
        wait_until_idle(cache)
        cache.subscribe(heard.append)
        new_version = connect()
        wait_until_idle(cache)
        logins = [event for event in heard if isinstance(event, (AuthFailed, AuthRecovered))]
        assert logins == [AuthFailed("prod/db", old.version_id), AuthRecovered("prod/db", new_version)]

    def test_a_listener_that_hangs_or_raises_keeps_neither_readers_nor_fetches_waiting(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle, kind: str
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        goes_on = threading.Event()
        heard: list[Event] = []

        def hang(event: Event) -> None:
            goes_on.wait(30)

        async def hang_in_loop(event: Event) -> None:
            await asyncio.to_thread(hang, event)

        def fail(event: Event) -> None:
            raise RuntimeError("a listener's own trouble")

        cache.subscribe(hang if kind == "threads" else hang_in_loop)
        cache.subscribe(fail)
        cache.subscribe(heard.append)
        for number in range(2, 5):
            aws.put("prod/db", f"v{number}")
            assert cache.refresh("prod/db").string == f"v{number}"
        assert heard == []
        goes_on.set()
        wait_until_idle(cache)
        assert len([event for event in heard if isinstance(event, Rotated)]) == 2

    def test_listeners_run_in_the_context_of_whoever_caused_the_event(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        seen: list[str] = []
        cache.subscribe(lambda event: seen.append(REQUEST.get()))
        token = REQUEST.set("request 7")
        cache.get("prod/db")
        REQUEST.reset(token)
        wait_until_idle(cache)
        assert seen == ["request 7"]


class TestReplicas:
    """One moto server answers for all regions; which one was asked shows in the signature."""

    REGIONS = ("us-east-1", "eu-west-1")

    @pytest.fixture
    def arn(self, aws: SecretsManager) -> str:
        """A secret with version 1 in both regions, as replication leaves it."""
        version_1 = "1" * 32
        made = aws.client().create_secret(Name="prod/db", SecretString="v1", ClientRequestToken=version_1)
        self.replica(aws).create_secret(Name="prod/db", SecretString="v1", ClientRequestToken=version_1)
        return str(made["ARN"])

    def replica(self, aws: SecretsManager) -> Any:
        return aws.client(region_name="eu-west-1")

    def test_a_replica_answers_while_the_primary_is_unavailable_and_no_longer(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, arn: str
    ) -> None:
        cache = make_cache(regions=self.REGIONS, ttl=100, refresh_after=1)
        with aws.inject(server_error(503), times=None, region="us-east-1"):
            first = cache.get("prod/db")
            assert first.string == "v1"
            assert first.arn.startswith("arn:aws:secretsmanager:us-east-1:")
            assert cache.refresh("prod/db") is first
        snapshot = cache.metrics.snapshot()
        assert snapshot.answers_by_region == {"eu-west-1": 2}
        assert snapshot.errors_by_code == {"ServiceUnavailable": 1}  # the second time it was left alone
        clock.advance(100)
        assert cache.get("prod/db") is first
        assert cache.metrics.snapshot().answers_by_region == {"eu-west-1": 2, "us-east-1": 1}

    def test_only_the_primary_may_say_no(self, aws: SecretsManager, make_cache: MakeCache, arn: str) -> None:
        cache = make_cache(regions=self.REGIONS)
        with aws.inject(deny(), times=None, region="us-east-1"), pytest.raises(AccessDenied):
            cache.get("prod/db")
        assert aws.requests[GET] == 1
        aws.create("primary/only", "x")
        with (
            aws.inject(server_error(503), times=None, region="us-east-1"),
            pytest.raises(Unavailable) as caught,
        ):
            cache.get("primary/only")
        assert caught.value.code == "ServiceUnavailable"

    def test_a_replica_that_lags_behind_never_replaces_a_newer_version(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, arn: str
    ) -> None:
        cache = make_cache(regions=self.REGIONS, ttl=100, refresh_after=1)
        aws.client().put_secret_value(SecretId="prod/db", SecretString="v2", ClientRequestToken="2" * 32)
        new = cache.get("prod/db")
        with aws.inject(server_error(503), times=None, region="us-east-1"):
            clock.advance(100)
            assert cache.get("prod/db") is new
            assert cache.metrics.snapshot().stale_served == 1
            with pytest.raises(Unavailable, match="older version"):
                cache.refresh("prod/db")
            self.replica(aws).put_secret_value(SecretId="prod/db", SecretString="v2", ClientRequestToken="2" * 32)
            assert cache.refresh("prod/db") is new

    def test_a_newer_version_may_come_from_a_replica(
        self, aws: SecretsManager, make_cache: MakeCache, arn: str
    ) -> None:
        cache = make_cache(regions=self.REGIONS)
        cache.get("prod/db")
        newer = {"Name": "prod/db", "ARN": arn, "VersionId": "2" * 32, "SecretString": "v2", "CreatedDate": 4e9}
        with (
            aws.inject(server_error(503), times=None, region="us-east-1"),
            aws.inject(answer(newer), times=None, region="eu-west-1"),
        ):
            assert cache.refresh("prod/db").string == "v2"
        assert cache.metrics.snapshot().rotations_seen == 1

    def test_a_batch_may_come_from_a_replica(self, aws: SecretsManager, make_cache: MakeCache, arn: str) -> None:
        cache = make_cache(regions=self.REGIONS)
        with aws.inject(server_error(503), times=None, operation=None, region="us-east-1"):
            assert cache.prefetch(["prod/db"]) == {}
            assert cache.get("prod/db").string == "v1"
        assert cache.metrics.snapshot().answers_by_region == {"eu-west-1": 1}

    def test_a_replicas_no_in_a_batch_takes_no_value_away(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock
    ) -> None:
        aws.create("primary/only", "x")
        cache = make_cache(regions=self.REGIONS, ttl=100, refresh_after=1)
        old = cache.get("primary/only")
        clock.advance(100)
        with aws.inject(server_error(503), times=None, operation=None, region="us-east-1"):
            errors = cache.prefetch(["primary/only"])
            assert {name: type(error) for name, error in errors.items()} == {"primary/only": Unavailable}
            assert cache.get("primary/only") is old

    @pytest.mark.parametrize("regions", ["us-east-1", ("a", "a"), ("us-east-1", ""), (" eu-west-1",), (1,), 5, {"a"}])
    def test_regions_are_distinct_names(self, make_cache: MakeCache, regions: Any) -> None:
        with pytest.raises(InvalidArgument, match="regions="):
            make_cache(regions=regions)


class TestSingleFlight:
    def test_200_readers_of_a_cold_secret_make_one_request_and_all_return(
        self, aws: SecretsManager, make_cache: MakeCache, together: Together
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        results = together(200, lambda: cache.get("prod/db"))
        assert len(set(results)) == 1
        assert results[0].string == "v1"
        assert aws.requests == {GET: 1}
        snapshot = cache.metrics.snapshot()
        assert snapshot.misses == 1
        assert snapshot.coalesced + snapshot.hits == 199

    def test_a_failed_first_load_is_one_request_and_everybody_gets_an_error_of_their_own(
        self, aws: SecretsManager, make_cache: MakeCache, together: Together
    ) -> None:
        cache = make_cache()
        with aws.hold() as hold:
            results = together(20, lambda: cache.get("missing"), meanwhile=lambda: hold_until_first(hold))
        assert {type(error) for error in results} == {SecretNotFound}
        assert len({id(error) for error in results}) == 20
        assert len({id(error.__cause__) for error in results}) == 1
        assert aws.requests == {GET: 1}

    def test_what_was_invalidated_while_under_way_reaches_its_readers_and_not_the_cache(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        arn = aws.create("prod/db", "v1")
        cache = make_cache()
        with ThreadPoolExecutor(1) as pool, aws.hold() as hold:
            early = pool.submit(cache.get, arn)
            hold.wait_for(1)
            cache.invalidate("prod/db")
            hold.release()
            assert early.result(30).string == "v1"
        assert cache.get(arn).string == "v1"
        assert aws.requests == {GET: 2}


class TestErrors:
    @pytest.mark.parametrize(
        ("fault", "expected", "code"),
        [
            (deny(), AccessDenied, "AccessDeniedException"),
            (deny("ResourceNotFoundException"), SecretNotFound, "ResourceNotFoundException"),
            (deny("DecryptionFailure"), DecryptionFailed, "DecryptionFailure"),
            (deny("InvalidParameterException"), RequestRejected, "InvalidParameterException"),
            (deny("InvalidRequestException"), RequestRejected, "InvalidRequestException"),
            (
                deny("InvalidRequestException", "You can't do this because it was marked for deletion."),
                SecretDeleted,
                "InvalidRequestException",
            ),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_a_denial_is_final_says_who_must_act_and_is_asked_for_once(
        self,
        aws: SecretsManager,
        make_cache: MakeCache,
        fault: Fault,
        expected: type[Exception],
        code: str,
    ) -> None:
        aws.create("prod/db", "v1")
        aws.inject(fault, times=None)
        cache = make_cache()
        with pytest.raises(expected) as caught:
            cache.get("prod/db")
        assert type(caught.value) is expected
        assert getattr(caught.value, "code", None) == code
        assert getattr(caught.value, "hint", None)
        assert "prod/db" in str(caught.value)
        assert caught.value.__cause__ is not None
        with pytest.raises(expected):
            cache.get("prod/db")
        assert aws.requests == {GET: 1}

    @pytest.mark.parametrize(
        ("fault", "expected"),
        [
            (throttle(), ThrottledError),
            (server_error(), Unavailable),
            (server_error(503), Unavailable),
            (drop(), Unavailable),
            (malformed(), MalformedResponse),
            (malformed(status=403), MalformedResponse),
            (answer({"ARN": "a", "Name": "prod/db", "VersionId": UNKNOWN_VERSION}), MalformedResponse),
            (answer({"ARN": "a", "Name": "prod/db", "SecretString": "x"}), MalformedResponse),
        ],
        ids=["throttle", "500", "503", "drop", "garbage", "403 of a proxy", "no value", "no version"],
    )
    def test_trouble_is_tried_again_and_passes_unnoticed(
        self, aws: SecretsManager, make_cache: MakeCache, fault: Fault, expected: type[Unavailable]
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        aws.inject(fault, times=2)
        assert cache.get("prod/db").string == "v1"
        snapshot = cache.metrics.snapshot()
        assert (snapshot.api_calls, snapshot.retries, snapshot.api_errors) == (3, 2, 2)
        assert snapshot.throttles == (2 if expected is ThrottledError else 0)
        assert snapshot.backoff_seconds > 0

    @pytest.mark.parametrize("fault", [throttle(), server_error(), drop(), malformed()])
    def test_lasting_trouble_ends_at_the_deadline_with_an_error_that_is_remembered_briefly(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, fault: Fault
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(fetch_timeout=10, negative_ttl=5)
        start = clock.now
        with aws.inject(fault, times=None):
            with pytest.raises(Unavailable):
                cache.get("prod/db")
            assert clock.now - start <= 10
            requests = aws.requests[GET]
            with pytest.raises(Unavailable):
                cache.get("prod/db")
            assert aws.requests == {GET: requests}
        clock.advance(5)
        assert cache.get("prod/db").string == "v1"

    def test_while_aws_is_unavailable_the_old_value_is_served_up_to_max_stale_and_counted(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100, max_stale=1000, negative_ttl=0)
        old = cache.get("prod/db")
        with aws.inject(server_error(), times=None):
            for _ in range(10):
                clock.advance(100)
                assert cache.get("prod/db") is old
                wait_until_idle(cache)
            assert cache.metrics.snapshot().stale_served == 10
            clock.now = 1_000.0 + 100 + 1000 + 50
            with pytest.raises(Unavailable):
                cache.get("prod/db")
        assert cache.get("prod/db").string == "v1"

    @pytest.mark.parametrize(
        "fault", [throttle(), server_error(), drop(), tcp_reset(), malformed(), malformed(status=404)]
    )
    def test_whatever_the_trouble_readers_of_an_old_value_go_on_at_hit_speed(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, fault: Fault, wait_until_idle: WaitUntilIdle
    ) -> None:
        """All reads but the one that finds out are served without a request, up to the next backoff step."""
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100)
        old = cache.get("prod/db")
        clock.advance(100)
        with aws.inject(fault, times=None):
            assert cache.get("prod/db") is old
            wait_until_idle(cache)
            sent = aws.requests[GET]
            for _ in range(100):
                assert cache.get("prod/db") is old
        wait_until_idle(cache)
        assert aws.requests[GET] == sent
        assert cache.metrics.snapshot().stale_served == 101

    def test_a_steady_throttle_gets_one_request_per_secret_and_backoff_step(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100)
        cache.get("prod/db")
        clock.advance(100)
        with aws.inject(throttle(), times=None) as throttling:
            for step in range(1, 6):
                for _ in range(20):
                    cache.get("prod/db")
                    wait_until_idle(cache)
                assert throttling.used == step
                clock.advance(60)
        assert clock.slept == []  # where there is a value, the next refresh is the retry
        snapshot = cache.metrics.snapshot()
        assert (snapshot.throttles, snapshot.retries) == (5, 0)

    def test_where_there_is_no_value_a_throttled_request_is_repeated_with_pauses_and_both_are_counted(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        with aws.inject(throttle(), times=None) as throttling, pytest.raises(ThrottledError):
            cache.get("prod/db")
        snapshot = cache.metrics.snapshot()
        assert throttling.used == snapshot.throttles == len(clock.slept) + 1
        assert snapshot.retries == len(clock.slept) > 0
        assert snapshot.backoff_seconds == pytest.approx(sum(clock.slept))

    @pytest.mark.parametrize("returned", [None, Secret("value", name="prod/db", version_id="v"), Answer(None)])
    def test_a_source_that_returns_no_answer_is_told_what_to_return_after_one_call(
        self, make_cache: MakeCache, kind: str, returned: object
    ) -> None:
        source = (Returning if kind == "threads" else AsyncReturning)(returned)
        cache = make_cache(source=source)
        with pytest.raises(SourceFailed, match=r"return Answer\(value\) with a Secret"):
            cache.get("prod/db")
        assert source.calls == 1

    def test_when_aws_is_back_one_backoff_later_the_new_value_is_there(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100)
        cache.get("prod/db")
        clock.advance(100)
        with aws.inject(throttle(), times=None):
            assert cache.get("prod/db").string == "v1"
        aws.put("prod/db", "v2")
        clock.advance(60)
        assert cache.get("prod/db").string == "v1"
        wait_until_idle(cache)
        assert cache.get("prod/db").string == "v2"

    @pytest.mark.parametrize("fault", [deny(), deny("ResourceNotFoundException"), deny("DecryptionFailure")])
    def test_a_denied_value_lives_out_its_ttl_and_is_gone(
        self, aws: SecretsManager, make_cache: MakeCache, clock: Clock, fault: Fault, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache(ttl=100, refresh_after=0.5)
        old = cache.get("prod/db")
        aws.inject(fault, times=None)
        clock.advance(50)
        assert cache.get("prod/db") is old
        wait_until_idle(cache)
        clock.advance(49)
        assert cache.get("prod/db") is old
        clock.advance(1)
        with pytest.raises((AccessDenied, SecretNotFound, DecryptionFailed)):
            cache.get("prod/db")

    def test_hidden_retries_of_a_client_of_the_user_are_counted(
        self, aws: SecretsManager, make_cache: MakeCache, make_client: MakeClient
    ) -> None:
        aws.create("prod/db", "v1")
        client = make_client(config=Config(retries={"mode": "standard", "total_max_attempts": 3}))
        cache = make_cache(client=client)
        aws.inject(throttle(), times=1)
        assert cache.get("prod/db").string == "v1"
        assert aws.requests == {GET: 2}
        assert cache.metrics.snapshot().api_calls == 2
        assert cache.metrics.snapshot().retries == 1


class Returning:
    """A source that is not what it should be."""

    def __init__(self, returned: object) -> None:
        self.returned: Any = returned
        self.calls = 0

    def fetch(self, *_: object) -> Any:
        self.calls += 1
        return self.returned

    def close(self) -> Any: ...


class AsyncReturning(Returning):
    """The same for asyncio."""

    async def fetch(self, *_: object) -> Any:
        return super().fetch()

    def leave_loop(self) -> None: ...

    async def close(self) -> None: ...


class TestPrefetch:
    def test_an_error_that_is_remembered_costs_no_request(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        cache = make_cache()
        for _ in range(20):
            errors = cache.prefetch(["missing"])
            assert type(errors["missing"]) is SecretNotFound
        assert aws.requests == {"BatchGetSecretValue": 1}

    def test_45_secrets_take_three_requests_and_are_then_in_the_cache(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        names = [f"s{n}" for n in range(45)]
        for name in names:
            aws.create(name, name.upper())
        cache = make_cache()
        assert cache.prefetch(names) == {}
        assert aws.requests == {"BatchGetSecretValue": 3}
        assert [cache.get(name).string for name in names] == [name.upper() for name in names]
        assert cache.prefetch(names) == {}
        assert aws.requests == {"BatchGetSecretValue": 3}

    def test_errors_are_reported_by_secret_and_the_others_are_loaded(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        arn = aws.create("a", "va")
        cache = make_cache()
        errors = cache.prefetch([arn, "missing"])
        assert {name: type(error) for name, error in errors.items()} == {"missing": SecretNotFound}
        assert cache.get(arn).string == "va"
        assert aws.requests == {"BatchGetSecretValue": 1}

    def test_a_refused_batch_says_nothing_of_the_secrets(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("a", "va")
        cache = make_cache()
        aws.inject(deny(), operation="BatchGetSecretValue")
        assert {name: type(error) for name, error in cache.prefetch(["a"]).items()} == {"a": AccessDenied}
        assert cache.get("a").string == "va"

    def test_all_who_prefetch_the_same_hear_that_their_batch_was_refused(
        self, aws: SecretsManager, make_cache: MakeCache, together: Together
    ) -> None:
        aws.create("a", "va")
        cache = make_cache()
        aws.inject(deny(), operation="BatchGetSecretValue", times=None)
        with aws.hold("BatchGetSecretValue") as hold:

            def release_when_both_wait() -> None:
                hold.wait_for(1)
                while cache.metrics.snapshot().coalesced + aws.requests["BatchGetSecretValue"] < 2:
                    time.sleep(0.001)
                hold.release()

            errors = together(2, lambda: cache.prefetch(["a"]), meanwhile=release_when_both_wait)
        assert [{name: type(error) for name, error in each.items()} for each in errors] == [{"a": AccessDenied}] * 2

    def test_closed_meanwhile_it_says_so(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("a", "va")
        cache = make_cache()
        with ThreadPoolExecutor(1) as pool, aws.hold("BatchGetSecretValue") as hold:
            loading = pool.submit(cache.prefetch, ["a"])
            hold.wait_for(1)
            cache.close()
            hold.release()
            with pytest.raises(CacheClosed):
                loading.result(30)

    def test_readers_and_a_prefetch_share_one_request(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("a", "va")
        cache = make_cache()
        with ThreadPoolExecutor(2) as pool:
            with aws.hold("BatchGetSecretValue") as hold:
                loading = pool.submit(cache.prefetch, ["a"])
                hold.wait_for(1)
                reading = pool.submit(cache.get, "a")
            assert reading.result(30).string == "va"
            assert loading.result(30) == {}
        assert aws.requests == {"BatchGetSecretValue": 1}


class TestRenew:
    def test_what_the_cache_already_knows_is_returned_without_a_request(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        old = cache.get("prod/db")
        aws.put("prod/db", "v2")
        new = cache.refresh("prod/db")
        assert cache.renew(old) is new
        assert aws.requests == {GET: 2}

    def test_a_moved_awscurrent_costs_one_request(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        arn = aws.create("prod/db", "v1")
        cache = make_cache()
        for name in ("prod/db", arn):
            old = cache.get(name)
            aws.put("prod/db", name)
            before = aws.requests[GET]
            assert cache.renew(old).string == name
            assert aws.requests[GET] == before + 1

    def test_a_rotation_under_way_gives_its_pending_version(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        old = cache.get("prod/db")
        aws.client().put_secret_value(SecretId="prod/db", SecretString="v2", VersionStages=["AWSPENDING"])
        assert cache.renew(old).string == "v2"
        assert cache.get("prod/db") is old, "get goes on saying what AWS labels"

    def test_without_another_version_it_says_so_and_asks_no_more(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        old = cache.get("prod/db")
        for _ in range(3):
            with pytest.raises(NoOtherVersion, match=old.version_id):
                cache.renew(old)
        assert aws.requests == {GET: 3}  # the first read, AWSCURRENT and AWSPENDING


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"secret_id": ""}, "0 characters"),
            ({"secret_id": "x" * 2049}, "2049 characters"),
            ({"secret_id": " prod/db"}, "white space"),
            ({"secret_id": "prod/db\n"}, "white space"),
            ({"secret_id": None}, "not NoneType"),
            ({"secret_id": b"prod/db"}, "not bytes"),
            ({"secret_id": ["prod/db"]}, "not list"),
            ({"secret_id": "prod/db", "stage": ""}, "the stage has 0"),
            ({"secret_id": "prod/db", "stage": None}, "the stage is a str"),
            ({"secret_id": "prod/db", "version_id": "short"}, "the version id has 5"),
            ({"secret_id": "prod/db", "version_id": 7}, "the version id is a str"),
        ],
    )
    def test_what_aws_could_not_accept_is_refused_before_anything_is_sent(
        self, aws: SecretsManager, make_cache: MakeCache, arguments: dict[str, Any], message: str
    ) -> None:
        cache = make_cache()
        for read in (cache.get, cache.refresh, cache.get_json):
            with pytest.raises(InvalidArgument, match=message):
                read(**arguments)
        assert aws.requests == {}

    def test_a_version_and_a_stage_that_disagree_are_refused(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create("prod/db", "v1")
        aws.put("prod/db", "v2")
        cache = make_cache()
        version = cache.get("prod/db").version_id
        with pytest.raises((RequestRejected, SecretNotFound)):
            cache.get("prod/db", stage="AWSPREVIOUS", version_id=version)
        assert cache.get("prod/db").string == "v2"

    def test_other_calls_refuse_what_they_cannot_use(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        cache = make_cache()
        with pytest.raises(InvalidArgument, match="list of ids"):
            cache.prefetch("prod/db")
        with pytest.raises(InvalidArgument, match="0 characters"):
            cache.prefetch(["prod/db", ""])
        with pytest.raises(InvalidArgument, match="takes a function"):
            cache.on_rotation("prod/db", "print")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="rejected Secret"):
            cache.renew("prod/db")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="white space"):
            cache.invalidate("prod/db ")
        assert aws.requests == {}


class TestClosing:
    def test_closing_twice_is_fine_and_use_after_it_is_a_clear_error(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        with cache:
            secret = cache.get("prod/db")
        cache.close()
        for use in (
            lambda: cache.get("prod/db"),
            lambda: cache.refresh("prod/db"),
            lambda: cache.renew(secret),
            lambda: cache.prefetch(["prod/db"]),
        ):
            with pytest.raises(CacheClosed):
                use()
        assert cache.metrics.snapshot().api_calls == 1

    def test_what_lands_after_closing_is_not_kept(
        self, aws: SecretsManager, make_cache: MakeCache, wait_until_idle: WaitUntilIdle
    ) -> None:
        aws.create("prod/db", "v1")
        cache = make_cache()
        with ThreadPoolExecutor(1) as pool, aws.hold() as hold:
            early = pool.submit(cache.get, "prod/db")
            hold.wait_for(1)
            cache.close()
            with pytest.raises(CacheClosed):
                early.result(30)
            hold.release()
        wait_until_idle(cache)
        assert "0 values, closed" in repr(cache)
