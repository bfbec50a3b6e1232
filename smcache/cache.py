"""SecretCache: the threads driver.

Decisions come from ``_core`` and ``_recovery``; this module performs them with threads. One lock is held around
each of their calls and never while anybody waits. A fetch runs in a thread of its own, so that every reader,
the one who caused it included, waits no longer than its deadline, whatever the server does.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from smcache import auth
from smcache._arguments import checked_config, checked_ids, checked_regions, refuse_source
from smcache._clock import default_clock, default_jitter
from smcache._core import (
    AWSCURRENT,
    Core,
    Join,
    Key,
    Lead,
    Refresh,
    Refuse,
    Serve,
    check_key,
    lanes,
)
from smcache._factory import Placement, Started, refuse_async
from smcache._lifecycle import follow_process
from smcache._listeners import Happened, Listeners, log_failed_listener, rotation_listener
from smcache._recovery import Call, GiveUp, Recovery, Try, Wait
from smcache._regions import PRIMARY, Regions
from smcache.errors import (
    CacheClosed,
    FetchTimeout,
    InvalidArgument,
    NoOtherVersion,
    SecretCacheError,
    Unavailable,
)
from smcache.events import Rotated
from smcache.metrics import Metrics
from smcache.secret import Secret
from smcache.sources import BatchSource, Source, VersionSource, refuse_answer, source_raised
from smcache.sources.boto import BotoSource, import_botocore

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from typing_extensions import Self

    from smcache._core import Flight, Step
    from smcache._factory import Decorator
    from smcache._recovery import Ask
    from smcache._recovery import Step as RecoveryStep
    from smcache.auth import Verdict
    from smcache.config import CacheConfig
    from smcache.events import Event
    from smcache.secret import SecretFields
    from smcache.sources import Answer

__all__ = ["SecretCache"]

Result = TypeVar("Result")
Value = TypeVar("Value")


class SecretCache:
    """A cache of Secrets Manager values for threads. Make one for the life of the process; share it freely.

    After a fork the child goes on with the parent's values, a lock and a client of its own (a client that was
    given is the parent's; give none where processes are forked).

    Args:
        client: A boto3 or botocore ``secretsmanager`` client. Without it, botocore is imported now (0.2 s), and a
            client made on first use from the usual settings (environment, profile, region, ``AWS_ENDPOINT_URL``).
        source: Where values come from instead of a client; see ``smcache.sources.Source``.
        regions: The region of the secrets, and then those of their replicas in the order of preference: a replica
            is asked while the region before it is unavailable, and never makes a newer version give way to an
            older one. ARNs are those of the first region.
        config: Times and sizes; see ``CacheConfig``.
        clock: Returns seconds, never going back; by default one that also goes on while the process is stopped.
        sleep: Waits for so many seconds: between the requests of a fetch, and for a rotation to finish.
        jitter: Returns a number from 0 up to 1, at random.

    Raises:
        InvalidArgument: The client has no ``get_secret_value``, the source no ``fetch``, more than one of client,
            source and regions were given, or the source cannot do what the configuration asks for.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        source: Source | None = None,
        regions: Sequence[str] = (),
        config: CacheConfig | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = default_jitter,
    ) -> None:
        self._config = config = checked_config(config)
        self._region_names = checked_regions(regions, client, source)
        self._sources = _checked_sources(client, source, self._region_names, config)
        self._clock = clock = clock or default_clock()
        self._sleep = sleep
        # Reentrant: a signal's handler or a finaliser may use the cache while its own thread is inside.
        self._lock = threading.RLock()
        self.metrics = Metrics(self._lock, clock)
        self._core: Core[threading.Event] = Core(config, self.metrics, jitter, threading.Event, Happened())
        self._recovery = Recovery(config, self.metrics, jitter, self._core)
        self._regions = Regions(len(self._sources), config.fetch_timeout, self._core.backoff)
        self._hot = self._core.hot
        self._listeners = Listeners()
        self._closed = False
        # A thread left behind on Lambda is frozen with the process when the handler returns.
        self._inline = "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        follow_process(self)

    # --- reading ------------------------------------------------------------------------------------------

    def get(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> Secret:
        """Return a secret: from the cache at once, or from AWS.

        Args:
            secret_id: Its name or ARN.
            stage: The staging label to read.
            version_id: A version to read whatever its labels; together with another stage than AWSCURRENT, AWS
                demands that they belong together.

        Raises:
            InvalidArgument: The id, stage or version is none that AWS could accept.
            Denied: AWS does not give the value, and there is none in the cache.
            Unavailable: AWS could not be asked, and there is no value in the cache, or only one too old.
            CacheClosed: The cache has been closed.
        """
        try:
            # `is`: an equal string of another identity is answered below, only more slowly.
            if stage is AWSCURRENT and version_id is None:
                entry = self._hot[secret_id]
            else:
                entry = self._hot[Key(secret_id, stage, version_id)]
        except (KeyError, TypeError):  # TypeError: an id that cannot be hashed, to be refused below
            pass
        else:
            clock = self._clock  # called by itself: Python 3.11 is slow with an attribute that is no method
            if clock() < entry.deadline:
                next(entry.counter)
                return entry.secret
        return self._read(check_key(Key(secret_id, stage, version_id)))

    def get_string(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> str:
        """Return a secret's value as text: ``get(...).string``."""
        secret = self.get(secret_id, stage, version_id)
        value = secret._value  # noqa: SLF001 - the property, without the call
        return value if value.__class__ is str else secret.string

    def get_json(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> SecretFields:
        """Return a secret's JSON object, parsed once and read-only: ``get(...).json()``."""
        secret = self.get(secret_id, stage, version_id)
        fields = secret._fields  # json(), without the call
        return secret.json() if fields is None else fields

    def get_binary(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> bytes:
        """Return a secret's value as bytes: ``get(...).binary``."""
        return self.get(secret_id, stage, version_id).binary

    def refresh(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> Secret:
        """Ask AWS now, whatever is cached, and return what it says.

        Callers at the same time share one request. If it fails, what is cached stays.

        Raises:
            SecretCacheError: As ``get``, but whatever is cached.
        """
        return self._ask(check_key(Key(secret_id, stage, version_id)), None)

    def renew(self, rejected: Secret) -> Secret:
        """Return a version other than the one a server has rejected, for those who log in by themselves.

        What is in the cache comes first, then AWSCURRENT, then an AWSPENDING of a rotation under way. Waits up to
        ``rotation_window`` if a rotation is in sight but its new version is not.

        Raises:
            NoOtherVersion: There is none; until ``auth_cooldown`` ends, AWS is not asked again.
            CacheClosed: The cache has been closed.
        """
        if not isinstance(rejected, Secret):
            raise InvalidArgument(f"renew() takes the rejected Secret, not {type(rejected).__name__}")
        with self._lock:
            self._refuse_closed()
            key = self._core.key_of(rejected)
        secret = self._next(Call(key.secret_id, rejected), key, rejected, "rejected")
        if secret is None:
            raise NoOtherVersion(f"no version but the rejected {rejected.version_id}", secret_id=rejected.name)
        return secret

    def prefetch(self, secret_ids: Iterable[str]) -> dict[str, SecretCacheError]:
        """Load the AWSCURRENT versions of many secrets, 20 a request, and return the errors by secret id.

        Secrets that are fresh in the cache cost nothing. What could not be loaded here is asked for by itself
        when it is read.

        Raises:
            InvalidArgument: An id is none that AWS could accept; nothing was asked.
            CacheClosed: The cache has been closed.
        """
        keys = checked_ids(secret_ids)
        now = self._clock()
        until = now + self._config.fetch_timeout
        with self._lock:
            self._refuse_closed()
            lead, join, errors = self._core.batch(keys, now)
        for batches in lanes(lead):
            if not self._launch(self._fly_batches, batches):
                self._fly_batches(batches)
        for flight in lead + join:
            if not flight.done.wait(max(0.0, until - self._clock())):
                errors[flight.key.secret_id] = FetchTimeout("not loaded in time", secret_id=flight.key.secret_id)
            elif (failure := flight.failure()) is not None:
                errors[flight.key.secret_id] = failure
        self._refuse_closed()
        return errors

    # --- keeping --------------------------------------------------------------------------------------------

    def invalidate(self, secret_id: str | None = None) -> None:
        """Forget one secret, whether cached under its name or its ARN, or all of them."""
        if secret_id is not None:
            check_key(Key(secret_id))
        with self._lock:
            self._core.invalidate(secret_id)

    def on_rotation(self, secret_id: str, callback: Callable[[Secret, Secret], object]) -> Callable[[], None]:
        """Have ``callback(old, new)`` called when AWSCURRENT is found on another version.

        It is called as the listeners of ``subscribe`` are; what it raises is logged and goes no further.

        Returns:
            A function that takes the callback off again.
        """
        check_key(Key(secret_id))
        return self._listeners.add(rotation_listener(secret_id, callback), Rotated)

    def subscribe(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Have ``listener(event)`` called with everything that happens; see ``smcache.events``.

        Listeners are called one event after the other, in a thread that lives while there are any, outside every
        lock: one that is slow keeps nobody waiting but the other listeners, and the end of the process. On Lambda,
        where a thread would be frozen, they are called at once, and readers wait for them. Beyond 10,000 waiting
        events the oldest are dropped. What a listener raises is logged and goes no further.

        Returns:
            A function that takes the listener off again.
        """
        return self._listeners.add(listener)

    def close(self) -> None:
        """Forget all values, wait for nothing, close the client if the cache made it. Closing twice is fine."""
        with self._lock:
            self._closed = True
            flights = self._core.leave_flights()
            self._core.invalidate()
        for flight in flights:
            flight.done.set()
        for source in self._sources:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SecretCache with {len(self._hot)} values{', closed' if self._closed else ''}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a SecretCache is not pickled: make one in each process")

    # --- connecting -----------------------------------------------------------------------------------------

    def retry_on_auth_error(
        self,
        secret_id: str,
        *,
        parameter: str = "secret",
        is_auth_error: Callable[[Exception], Verdict | bool | None] = auth.verdict,
        auth_result: Callable[[Any], bool] | None = None,
        probe: Callable[[Any], object] | None = None,
    ) -> Decorator:
        """Decorate a connection factory: it gets the secret, and the next version when a server rejects one.

        The secret goes to the parameter of that name; callers see the signature without it. A generator function
        (for ``contextlib.contextmanager``, which stands above) is tried again until its first yield.

        Args:
            secret_id: The secret's name or ARN.
            parameter: The name of the parameter that takes the secret.
            is_auth_error: Tells whether an exception means that the credential was rejected; by default
                ``smcache.is_auth_error`` for all drivers it knows. Extend it with
                ``lambda error: smcache.is_auth_error(error) or ...``.
            auth_result: Tells whether what the function *returned* means that, such as a response with status 401.
            probe: Called with what the function returned, to log in where the function itself does not (an
                engine, a lazy client); what it raises counts as raised by the function.

        Raises:
            InvalidArgument: When decorating: the function is asynchronous, or has no such parameter.

        The decorated function raises what the function raises, untouched, and what ``get`` raises.
        """
        key = check_key(Key(secret_id))

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            refuse_async(function)
            placement = Placement(function, parameter)
            if placement.is_generator:
                placement.refuse_looking_at_results(auth_result, probe)
                return placement.present(self._retrying_generator(key, placement, is_auth_error))
            return placement.present(self._retrying_function(key, placement, is_auth_error, auth_result, probe))

        return decorate

    def _retrying_function(
        self,
        key: Key,
        placement: Placement,
        judge: Callable[[Exception], Verdict | bool | None],
        auth_result: Callable[[Any], bool] | None,
        probe: Callable[[Any], object] | None,
    ) -> Callable[..., Any]:
        def connect(*args: Any, **kwargs: Any) -> Any:
            def attempt(secret: Secret) -> Any:
                result = placement.call(secret, args, kwargs)
                if probe is not None:
                    probe(result)
                return result

            return self._recover(key, attempt, judge, auth_result)

        return connect

    def _retrying_generator(
        self, key: Key, placement: Placement, judge: Callable[[Exception], Verdict | bool | None]
    ) -> Callable[..., Any]:
        def connect(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (
                yield from self._recover(key, lambda secret: Started(placement.call(secret, args, kwargs)), judge, None)
            )

        return connect

    def _recover(
        self,
        key: Key,
        attempt: Callable[[Secret], Result],
        judge: Callable[[Exception], Verdict | bool | None],
        auth_result: Callable[[Result], bool] | None,
    ) -> Result:
        """Try one version after the other, until an attempt succeeds or its failure is final."""
        failure: Exception | None = None
        refused: list[Result] = []
        call, first = self._first(key)
        secret: Secret | None = first
        try:
            while secret is not None:
                verdict: Verdict | bool | None
                try:
                    result = attempt(secret)
                except Exception as error:
                    verdict = judge(error)
                    if not verdict:
                        raise
                    failure = error
                else:
                    if auth_result is None or not auth_result(result):
                        self._accepted(call, key, secret)
                        return result
                    verdict, failure, refused = True, None, [result]
                secret = self._next(call, key, secret, "account" if verdict == "account" else "rejected")
            if failure is not None:
                raise failure
            return refused[0]
        finally:
            failure = None  # the error's traceback refers to this frame: a cycle otherwise

    def _first(self, key: Key) -> tuple[Call, Secret]:
        """Begin a call; return the version to try first."""
        current = self.get(key.secret_id)
        with self._lock:
            # What the cache holds by now: a version that is already gone would be taken for a rotation.
            call, step = self._recovery.begin(key.secret_id, self._core.peek(key) or current, self._clock())
        return call, self._reach(call, key, step) or current

    def _next(self, call: Call, key: Key, refused: Secret, verdict: Verdict) -> Secret | None:
        """Take in that the server refused a version; return the next to try, or None if its failure is final."""
        self._refused(call, refused, verdict)
        return self._reach(call, key, None)

    def _refused(self, call: Call, secret: Secret, verdict: Verdict) -> None:
        """Take in that the server refused a version."""
        with self._lock:
            self._recovery.rejected(call, secret, verdict, self._clock())
        self._tell()

    def _reach(self, call: Call, key: Key, step: RecoveryStep | None) -> Secret | None:
        """Perform what ``_recovery`` decides, until there is a version to try or none is to be had."""
        while True:
            if step is None:
                with self._lock:
                    step = self._recovery.step(call, self._core.peek(key), self._clock())
            if isinstance(step, Try):
                return step.secret
            if isinstance(step, GiveUp):
                return None
            self._find_out(call, key, step)
            step = None

    def _accepted(self, call: Call, key: Key, secret: Secret) -> None:
        """Take in that the server took a version."""
        with self._lock:
            self._recovery.accepted(call, secret, self._core.peek(key), self._clock())
        self._tell()

    def _find_out(self, call: Call, key: Key, step: Ask | Wait) -> None:
        """Learn what AWS says of a rejected version, or wait until it may say something else."""
        if isinstance(step, Wait):
            self._sleep(step.seconds)
            return
        try:
            secret = self._ask(key._replace(stage=step.stage), step.since)
        except CacheClosed:
            raise
        except SecretCacheError as error:
            with self._lock:
                self._recovery.unanswered(call, step, error, self._clock())
        else:
            with self._lock:
                self._recovery.answered(call, step, secret, self._clock(), time.time())

    # --- waiting for AWS ------------------------------------------------------------------------------------

    def _read(self, key: Key) -> Secret:
        with self._lock:
            self._refuse_closed()
            step = self._core.read(key, self._clock())
        return self._perform(step, None)

    def _ask(self, key: Key, since: int | None) -> Secret:
        """Return what AWS says after flight number ``since``; None is from now on."""
        with self._lock:
            self._refuse_closed()
            since = self._core.departed if since is None else since
            step = self._core.ask(key, self._clock(), since)
        return self._perform(step, since)

    def _perform(self, step: Step, since: int | None) -> Secret:
        """Perform what ``_core`` decides, until there is a value or an error."""
        while True:
            self._start(step)
            self._tell()
            match step:
                case Serve(secret):
                    return secret
                case Refuse(error):
                    raise error.fresh()
                case Refresh(flight, secret):
                    if not self._inline:
                        return secret
                    self._wait(flight, flight.is_slow_at)
                    return flight.secret or secret
                case Lead(flight, until) | Join(flight, until):
                    self._wait(flight, until)
            with self._lock:
                if flight.secret is None:
                    self._refuse_closed()
                step = self._core.settle(flight, self._clock(), until, since)

    def _start(self, step: Step) -> None:
        if isinstance(step, Lead):
            run = contextvars.copy_context().run
            if not self._launch(run, self._fly, step.flight):
                run(self._fly, step.flight)
        elif isinstance(step, Refresh) and not self._launch(self._fly, step.flight):
            self._gave_up([step.flight])  # this thread has a value, and does not wait for another

    def _wait(self, flight: Flight[threading.Event], until: float) -> None:
        flight.done.wait(max(0.0, min(until, flight.overdue_at) - self._clock()))

    # --- the process -----------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Finish what is being decided, and decide nothing until ``_let_go``: for ``_lifecycle``."""
        self._lock.acquire()

    def _let_go(self) -> None:
        """Go on after ``_hold``."""
        self._lock.release()

    def _start_anew_in_child(self) -> None:
        """Go on after ``_hold`` in a forked child: the threads that fetched, and the sockets, are the parent's."""
        self._core.leave_flights()
        self._core.events.clear()
        self._listeners.start_anew()
        self.metrics.start_anew_in_child()
        for source in self._sources:
            if isinstance(source, BotoSource):
                source.start_anew_in_child()
        self._lock.release()

    def _doubt_values(self) -> None:
        """Ask AWS again for whatever is read next: for ``_lifecycle``."""
        with self._lock:
            self._core.doubt(self._clock())

    def _refuse_closed(self) -> None:
        if self._closed:
            raise CacheClosed("the cache has been closed")

    # --- fetching -------------------------------------------------------------------------------------------

    def _launch(
        self, run: Callable[..., object], *args: object, name: str = "smcache-fetch", daemon: bool = True
    ) -> bool:
        """Start a thread; return whether there is one to be had. There is none while the interpreter shuts down."""
        try:
            threading.Thread(target=run, args=args, name=name, daemon=daemon).start()
        except RuntimeError:
            return False
        return True

    def _fly(self, flight: Flight[threading.Event]) -> None:
        """Fetch what the flight is for, and report how it ended."""
        try:
            secret = self._retrying(flight, lambda: self._fetch(flight))
        except SecretCacheError as error:
            self._failed(flight, error)
        except BaseException as error:  # SystemExit, say
            self._failed(flight, source_raised(error, flight.key.secret_id))
            raise
        else:
            self._landed(flight, secret)

    def _fetch(self, flight: Flight[threading.Event]) -> Secret:
        secret_id, _, version_id = flight.key
        if self._config.check_version_first and flight.known is not None:
            versions = self._request(flight, "DescribeSecret", secret_id, lambda source: source.describe(secret_id))
            confirmed = flight.confirmed(versions)
            if confirmed is not None:
                return confirmed
        stage = flight.wanted_stage()
        secret: Secret = self._request(
            flight, "GetSecretValue", secret_id, lambda source: source.fetch(secret_id, stage, version_id)
        )
        return secret

    def _fly_batches(self, batches: Sequence[Sequence[Flight[threading.Event]]]) -> None:
        """Fetch batch after batch while there is time."""
        left = list(batches)
        try:
            while left and self._clock() < left[0][0].overdue_at:
                self._fly_batch(left.pop(0))
        finally:
            for flights in left:
                self._gave_up(flights)

    def _fly_batch(self, flights: Sequence[Flight[threading.Event]]) -> None:
        """Fetch many secrets with one request; what it does not bring is left to those who read it."""
        if not isinstance(self._sources[PRIMARY], BatchSource):
            for flight in flights:
                self._fly(flight)
            return
        first, ids = flights[0], [flight.key.secret_id for flight in flights]
        try:
            found = self._retrying(
                first, lambda: self._request(first, "BatchGetSecretValue", "", lambda source: source.fetch_batch(ids))
            )
        except SecretCacheError as error:
            # Said of the batch, and not of any secret: each may still be had by itself.
            for flight in flights:
                flight.trouble = error.with_traceback(None)
            self._gave_up(flights)
            return
        except BaseException:
            self._gave_up(flights)
            raise
        for flight in flights:
            result = flight.part_of(first, found)
            if isinstance(result, Secret):
                self._landed(flight, result)
            else:
                self._failed(flight, result)

    def _retrying(self, flight: Flight[threading.Event], fetch: Callable[[], Value]) -> Value:
        """Repeat a fetch while AWS is unavailable and the deadline allows."""
        failed: list[Unavailable] = []
        try:
            return fetch()
        except Unavailable as error:
            failed.append(error)

        def attempt() -> Value:
            if failed:
                raise failed.pop()
            return fetch()

        # Takes 5 ms, which a process whose first fetch succeeds is spared.
        from smcache._retry import Retrying, retry_policy  # noqa: PLC0415

        def note(error: SecretCacheError, pause: float) -> None:
            with self._lock:
                self._core.retrying(flight, error, pause)

        return Retrying(sleep=self._sleep, **retry_policy(self._core, flight, self._clock, note))(attempt)

    def _request(
        self,
        flight: Flight[threading.Event],
        operation: str,
        secret_id: str,
        send: Callable[[Any], Answer[Value]],
    ) -> Value:
        """Send one request, and where a region is unavailable, to the next one."""
        with self._lock:
            self._refuse_closed()  # while it was pausing
            order = self._regions.order(self._clock())
        failures: dict[int, SecretCacheError] = {}
        for region in order:
            try:
                value = self._send(region, operation, secret_id, send)
            except SecretCacheError as error:
                failures[region] = error
            else:
                flight.from_replica = region != PRIMARY
                return value
            with self._lock:
                if not self._regions.ended(region, failures[region], self._clock()):
                    break
        raise failures[PRIMARY]

    def _send(self, region: int, operation: str, secret_id: str, send: Callable[[Any], Answer[Value]]) -> Value:
        """Send one request to one region and count it."""
        failure: SecretCacheError
        started = self._clock()
        with self._lock:
            self._regions.asked(region, started)
        try:
            answer = send(self._sources[region])
            refuse_answer(operation, answer, secret_id)
        except SecretCacheError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a source of the user's may raise anything
            failure = source_raised(error, secret_id)
        else:
            with self._lock:
                self._core.requested(operation, secret_id, answer.requests, self._clock() - started, None)
                self._regions.ended(region, None, started)
                self.metrics.answers_by_region.update(self._region_names[region : region + 1])
            return answer.value
        with self._lock:
            self._core.requested(operation, secret_id, failure.requests, self._clock() - started, failure)
        self._tell()
        raise failure

    def _landed(self, flight: Flight[threading.Event], secret: Secret) -> None:
        with self._lock:
            self._core.landed(flight, secret, self._clock())
        try:
            self._tell()
        finally:
            flight.done.set()

    def _failed(self, flight: Flight[threading.Event], error: SecretCacheError) -> None:
        with self._lock:
            self._core.failed(flight, error, self._clock())
        try:
            self._tell()
        finally:
            flight.done.set()

    def _gave_up(self, flights: Sequence[Flight[threading.Event]]) -> None:
        for flight in flights:
            with self._lock:
                self._core.gave_up(flight)
            flight.done.set()

    # --- telling ----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Have the listeners told what has happened, by a thread of their own, or on Lambda at once."""
        if not self._core.events or not self._listeners.take(self._core.events):
            return
        # Not a daemon: the process may end, but not before it has told what happened.
        if self._inline or not self._launch(self._deliver, name="smcache-events", daemon=False):
            self._deliver()

    def _deliver(self) -> None:
        try:
            while (upcoming := self._listeners.upcoming()) is not None:
                event, context = upcoming
                for listener in self._listeners.concerned(event):
                    try:
                        context.run(listener, event)
                    except (Exception, SystemExit) as error:  # noqa: BLE001 - a listener's own trouble
                        log_failed_listener(event, error)
        except BaseException:  # Ctrl-C, say
            self._listeners.stopped()
            raise


def _checked_sources(
    client: object, source: Source | None, regions: Sequence[str], config: CacheConfig
) -> Sequence[Source]:
    if source is not None:
        refuse_source(source, config, Source, VersionSource)
        return [source]
    if client is None:
        # Now, and not at the first read: on Lambda this is the time that has a whole CPU, and a thread of a fetch
        # takes longer for it.
        import_botocore()
    if not regions:
        return [BotoSource(client, fetch_timeout=config.fetch_timeout)]
    share = config.fetch_timeout / len(regions)
    return [BotoSource(fetch_timeout=share, region=region, primary=regions[PRIMARY]) for region in regions]
