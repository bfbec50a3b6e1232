"""AsyncSecretCache: the asyncio driver.

Decisions come from ``_core`` and ``_recovery``; this module performs them in one event loop. It has no lock, and no
``await`` between calls of the core that belong together. A fetch is a task of its own, so that cancelling a reader
cancels nothing but that reader.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import sys
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
from smcache._factory import Placement, StartedAsync, refuse_sync
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
    WrongLoop,
)
from smcache.events import Rotated
from smcache.metrics import Metrics
from smcache.secret import Secret
from smcache.sources import AsyncBatchSource, AsyncSource, AsyncVersionSource, refuse_answer, source_raised
from smcache.sources.aioboto import ThreadedBotoSource, async_source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence

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

__all__ = ["AsyncSecretCache"]

Done = asyncio.Future[None]
Result = TypeVar("Result")
Value = TypeVar("Value")


class AsyncSecretCache:
    """``SecretCache`` for asyncio: the same names, as coroutines. Make one for the life of the process.

    It may be made before a loop runs. It belongs to the loop that first asks it for something AWS must be asked for;
    when that loop has ended, the next one takes over the values and makes a new client, and so does the loop of a
    forked child. ``on_rotation``, ``subscribe`` and ``retry_on_auth_error`` do not wait for anything and are plain
    methods.

    Args:
        client: An aiobotocore ``secretsmanager`` client, or boto3's, which is then called in threads. Without it, one
            is made on first use from the usual settings, by aiobotocore if ``smcache[aio]`` is installed.
        source: Where values come from instead of a client; see ``smcache.sources.AsyncSource``.
        regions: The region of the secrets, and then those of their replicas; see ``SecretCache``.
        config: Times and sizes; see ``CacheConfig``.
        clock: Returns seconds, never going back; see ``SecretCache``.
        sleep: A coroutine function that waits for so many seconds.
        jitter: Returns a number from 0 up to 1, at random.

    Raises:
        InvalidArgument: The client has no ``get_secret_value``, the source no coroutine ``fetch``, more than one of
            client, source and regions were given, or the source cannot do what the configuration asks for.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        source: AsyncSource | None = None,
        regions: Sequence[str] = (),
        config: CacheConfig | None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = default_jitter,
    ) -> None:
        self._config = config = checked_config(config)
        self._region_names = checked_regions(regions, client, source)
        self._sources = _checked_sources(client, source, self._region_names, config)
        self._clock = clock = clock or default_clock()
        self._sleep = sleep
        self._snapshot_lock = threading.RLock()  # reentrant: see SecretCache
        self.metrics = Metrics(self._snapshot_lock, clock)
        self._core: Core[Done] = Core(
            config, self.metrics, jitter, lambda: asyncio.get_running_loop().create_future(), Happened()
        )
        self._recovery = Recovery(config, self.metrics, jitter, self._core)
        self._regions = Regions(len(self._sources), config.fetch_timeout, self._core.backoff)
        self._hot = self._core.hot
        self._listeners = Listeners()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fetching: set[asyncio.Future[Any]] = set()
        self._telling: set[asyncio.Future[Any]] = set()
        self._closed = False
        # A task left behind on Lambda is frozen with the process when the handler returns.
        self._inline = "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        follow_process(self)

    # --- reading ------------------------------------------------------------------------------------------

    async def get(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> Secret:
        """Return a secret: from the cache at once and without yielding to the loop, or from AWS.

        Arguments and errors are those of ``SecretCache.get``, and ``WrongLoop`` where AWS must be asked.
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
        return await self._read(check_key(Key(secret_id, stage, version_id)))

    async def get_string(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> str:
        """Return a secret's value as text: ``(await get(...)).string``."""
        secret = await self.get(secret_id, stage, version_id)
        value = secret._value  # noqa: SLF001 - the property, without the call
        return value if value.__class__ is str else secret.string

    async def get_json(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> SecretFields:
        """Return a secret's JSON object, parsed once and read-only: ``(await get(...)).json()``."""
        secret = await self.get(secret_id, stage, version_id)
        fields = secret._fields  # json(), without the call
        return secret.json() if fields is None else fields

    async def get_binary(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> bytes:
        """Return a secret's value as bytes: ``(await get(...)).binary``."""
        return (await self.get(secret_id, stage, version_id)).binary

    async def refresh(self, secret_id: str, stage: str = AWSCURRENT, version_id: str | None = None) -> Secret:
        """Ask AWS now, whatever is cached, and return what it says; see ``SecretCache.refresh``."""
        return await self._ask(check_key(Key(secret_id, stage, version_id)), None)

    async def renew(self, rejected: Secret) -> Secret:
        """Return a version other than the one a server has rejected; see ``SecretCache.renew``."""
        if not isinstance(rejected, Secret):
            raise InvalidArgument(f"renew() takes the rejected Secret, not {type(rejected).__name__}")
        self._enter()
        key = self._core.key_of(rejected)
        secret = await self._next(Call(key.secret_id, rejected), key, rejected, "rejected")
        if secret is None:
            raise NoOtherVersion(f"no version but the rejected {rejected.version_id}", secret_id=rejected.name)
        return secret

    async def prefetch(self, secret_ids: Iterable[str]) -> dict[str, SecretCacheError]:
        """Load the AWSCURRENT versions of many secrets, 20 a request; see ``SecretCache.prefetch``."""
        keys = checked_ids(secret_ids)
        now = self._clock()
        until = now + self._config.fetch_timeout
        self._enter()
        lead, join, errors = self._core.batch(keys, now)
        for batches in lanes(lead):
            self._launch(self._fly_batches(batches))
        for flight in lead + join:
            await self._wait(flight, until)
            if not flight.done.done():
                errors[flight.key.secret_id] = FetchTimeout("not loaded in time", secret_id=flight.key.secret_id)
            elif (failure := flight.failure()) is not None:
                errors[flight.key.secret_id] = failure
        self._refuse_closed()
        return errors

    # --- keeping --------------------------------------------------------------------------------------------

    async def invalidate(self, secret_id: str | None = None) -> None:
        """Forget one secret, whether cached under its name or its ARN, or all of them."""
        if secret_id is not None:
            check_key(Key(secret_id))
        self._core.invalidate(secret_id)

    def on_rotation(
        self, secret_id: str, callback: Callable[[Secret, Secret], object | Awaitable[object]]
    ) -> Callable[[], None]:
        """Have ``callback(old, new)`` called, and awaited if it is a coroutine function; see ``SecretCache``."""
        check_key(Key(secret_id))
        return self._listeners.add(rotation_listener(secret_id, callback), Rotated)

    def subscribe(self, listener: Callable[[Event], object | Awaitable[object]]) -> Callable[[], None]:
        """Have ``listener(event)`` called with everything that happens, and awaited if it is a coroutine function.

        Listeners are called one event after the other, in a task; see ``SecretCache.subscribe``. One that is no
        coroutine function should return at once, as anything in an event loop.
        """
        return self._listeners.add(listener)

    async def close(self) -> None:
        """Forget all values, end what is under way, close the client if the cache made it. Closing twice is fine.

        Listeners are told what has happened before; it waits for them up to ``fetch_timeout``.
        """
        self._closed = True
        flights = self._core.leave_flights()
        if self._loop is asyncio.get_running_loop():  # futures of another loop are not ours to set
            self._gave_up(flights)
        self._core.invalidate()
        loop = asyncio.get_running_loop()
        fetching = {task for task in self._fetching if task.get_loop() is loop}
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)
        for source in self._sources:
            await source.close()
        telling = {task for task in self._telling if task.get_loop() is loop}
        if telling and asyncio.current_task() not in telling:  # a listener may close the cache
            _, late = await asyncio.wait(telling, timeout=self._config.fetch_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __enter__(self) -> NoReturn:
        raise InvalidArgument("an AsyncSecretCache is entered by `async with`", hint="SecretCache is for `with`")

    def __exit__(self, *_: object) -> None: ...

    def __repr__(self) -> str:
        return f"<AsyncSecretCache with {len(self._hot)} values{', closed' if self._closed else ''}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an AsyncSecretCache is not pickled: make one in each process")

    # --- connecting -----------------------------------------------------------------------------------------

    def retry_on_auth_error(
        self,
        secret_id: str,
        *,
        parameter: str = "secret",
        is_auth_error: Callable[[Exception], Verdict | bool | None] = auth.verdict,
        auth_result: Callable[[Any], bool] | None = None,
        probe: Callable[[Any], Awaitable[object]] | None = None,
    ) -> Decorator:
        """Decorate a coroutine function that connects; see ``SecretCache.retry_on_auth_error``.

        An async generator function (for ``contextlib.asynccontextmanager``) is tried again until its first yield.
        ``probe`` is a coroutine function.

        Raises:
            InvalidArgument: When decorating: the function is not asynchronous, or has no such parameter.
        """
        key = check_key(Key(secret_id))

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            refuse_sync(function)
            placement = Placement(function, parameter)
            if placement.is_generator:
                placement.refuse_looking_at_results(auth_result, probe)
                return placement.present(self._retrying_generator(key, placement, is_auth_error))
            return placement.present(self._retrying_coroutine(key, placement, is_auth_error, auth_result, probe))

        return decorate

    def _retrying_coroutine(
        self,
        key: Key,
        placement: Placement,
        judge: Callable[[Exception], Verdict | bool | None],
        auth_result: Callable[[Any], bool] | None,
        probe: Callable[[Any], Awaitable[object]] | None,
    ) -> Callable[..., Any]:
        async def connect(*args: Any, **kwargs: Any) -> Any:
            async def attempt(secret: Secret) -> Any:
                result = await placement.call(secret, args, kwargs)
                if probe is not None:
                    await probe(result)
                return result

            return await self._recover(key, attempt, judge, auth_result)

        return connect

    def _retrying_generator(
        self, key: Key, placement: Placement, judge: Callable[[Exception], Verdict | bool | None]
    ) -> Callable[..., Any]:
        async def connect(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            started = await self._recover(
                key, lambda secret: StartedAsync.start(placement.call(secret, args, kwargs)), judge, None
            )
            while not started.ended:
                try:
                    sent = yield started.value
                except GeneratorExit:
                    await started.generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - it belongs to the user's generator
                    await started.throw(error)
                else:
                    await started.send(sent)

        return connect

    async def _recover(
        self,
        key: Key,
        attempt: Callable[[Secret], Awaitable[Result]],
        judge: Callable[[Exception], Verdict | bool | None],
        auth_result: Callable[[Result], bool] | None,
    ) -> Result:
        """Try one version after the other, until an attempt succeeds or its failure is final."""
        failure: Exception | None = None
        refused: list[Result] = []
        call, first = await self._first(key)
        secret: Secret | None = first
        try:
            while secret is not None:
                verdict: Verdict | bool | None
                try:
                    result = await attempt(secret)
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
                secret = await self._next(call, key, secret, "account" if verdict == "account" else "rejected")
            if failure is not None:
                raise failure
            return refused[0]
        finally:
            failure = None  # the error's traceback refers to this frame: a cycle otherwise

    async def _first(self, key: Key) -> tuple[Call, Secret]:
        """Begin a call; return the version to try first."""
        current = await self.get(key.secret_id)
        # What the cache holds by now: a version that is already gone would be taken for a rotation.
        call, step = self._recovery.begin(key.secret_id, self._core.peek(key) or current, self._clock())
        return call, await self._reach(call, key, step) or current

    async def _next(self, call: Call, key: Key, refused: Secret, verdict: Verdict) -> Secret | None:
        """Take in that the server refused a version; return the next to try, or None if its failure is final."""
        self._refused(call, refused, verdict)
        return await self._reach(call, key, None)

    def _refused(self, call: Call, secret: Secret, verdict: Verdict) -> None:
        """Take in that the server refused a version."""
        self._recovery.rejected(call, secret, verdict, self._clock())
        self._tell()

    async def _reach(self, call: Call, key: Key, step: RecoveryStep | None) -> Secret | None:
        """Perform what ``_recovery`` decides, until there is a version to try or none is to be had."""
        while True:
            if step is None:
                step = self._recovery.step(call, self._core.peek(key), self._clock())
            if isinstance(step, Try):
                return step.secret
            if isinstance(step, GiveUp):
                return None
            await self._find_out(call, key, step)
            step = None

    def _accepted(self, call: Call, key: Key, secret: Secret) -> None:
        """Take in that the server took a version."""
        self._recovery.accepted(call, secret, self._core.peek(key), self._clock())
        self._tell()

    async def _find_out(self, call: Call, key: Key, step: Ask | Wait) -> None:
        """Learn what AWS says of a rejected version, or wait until it may say something else."""
        if isinstance(step, Wait):
            await self._sleep(step.seconds)
            return
        try:
            secret = await self._ask(key._replace(stage=step.stage), step.since)
        except (CacheClosed, WrongLoop):
            raise
        except SecretCacheError as error:
            self._recovery.unanswered(call, step, error, self._clock())
        else:
            self._recovery.answered(call, step, secret, self._clock(), time.time())

    # --- waiting for AWS ------------------------------------------------------------------------------------

    async def _read(self, key: Key) -> Secret:
        self._enter()
        return await self._perform(self._core.read(key, self._clock()), None)

    async def _ask(self, key: Key, since: int | None) -> Secret:
        """Return what AWS says after flight number ``since``; None is from now on."""
        self._enter()
        since = self._core.departed if since is None else since
        return await self._perform(self._core.ask(key, self._clock(), since), since)

    async def _perform(self, step: Step, since: int | None) -> Secret:
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
                    await self._wait(flight, flight.is_slow_at)
                    return flight.secret or secret
                case Lead(flight, until) | Join(flight, until):
                    await self._wait(flight, until)
            if flight.secret is None:
                self._refuse_closed()
            step = self._core.settle(flight, self._clock(), until, since)

    def _start(self, step: Step) -> None:
        if isinstance(step, Lead):
            self._launch(self._fly(step.flight))
        elif isinstance(step, Refresh):
            # An empty context: whoever comes first is not whom the refresh is for.
            contextvars.Context().run(self._launch, self._fly(step.flight))

    async def _wait(self, flight: Flight[Done], until: float) -> None:
        # Unlike wait_for, it neither cancels what it waits for nor swallows a cancellation.
        await asyncio.wait([flight.done], timeout=max(0.0, min(until, flight.overdue_at) - self._clock()))

    def _refuse_closed(self) -> None:
        if self._closed:
            raise CacheClosed("the cache has been closed")

    def _enter(self) -> None:
        """Make sure that the cache is open, and that the running loop is the one it belongs to."""
        self._refuse_closed()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None:
            raise WrongLoop(
                "AsyncSecretCache needs a running asyncio loop", hint="in sync code, or under trio, use SecretCache"
            )
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise WrongLoop(
                "this AsyncSecretCache is in use in another event loop that is still running",
                hint="make one for each loop, or one SecretCache for all threads",
            )
        self._leave_loop()
        self._loop = loop

    def _leave_loop(self) -> None:
        self._loop = None
        self._fetching.clear()
        self._telling.clear()
        self._core.leave_flights()
        self._listeners.stopped()  # the task that delivered, if any, has ended with its loop
        for source in self._sources:
            source.leave_loop()

    # --- the process -----------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Let no snapshot be in the making while the process forks: for ``_lifecycle``."""
        self._snapshot_lock.acquire()

    def _let_go(self) -> None:
        """Go on after ``_hold``."""
        self._snapshot_lock.release()

    def _start_anew_in_child(self) -> None:
        """Go on after ``_hold`` in a forked child, in which the parent's loop does not run."""
        self._leave_loop()
        self._core.events.clear()
        self._listeners.start_anew()
        for source in self._sources:
            if isinstance(source, ThreadedBotoSource):
                source.start_anew_in_child()
        self.metrics.start_anew_in_child()
        self._snapshot_lock.release()

    def _doubt_values(self) -> None:
        """Ask AWS again for whatever is read next: for ``_lifecycle``."""
        self._core.doubt(self._clock())

    # --- fetching -------------------------------------------------------------------------------------------

    def _launch(self, flying: Coroutine[Any, Any, None]) -> None:
        self._keep(asyncio.get_running_loop().create_task(flying), self._fetching)

    def _keep(self, task: asyncio.Future[Any], tasks: set[asyncio.Future[Any]]) -> None:
        tasks.add(task)  # the loop itself keeps no strong reference
        task.add_done_callback(tasks.discard)

    async def _fly(self, flight: Flight[Done]) -> None:
        """Fetch what the flight is for, and report how it ended."""
        try:
            secret = await self._retrying(flight, lambda: self._fetch(flight))
        except SecretCacheError as error:
            self._failed(flight, error)
        except BaseException as error:
            if _is_cancelled():  # by closing, or with its loop
                self._gave_up([flight])
            else:  # SystemExit, say, or a cancellation of the source's own
                self._failed(flight, source_raised(error, flight.key.secret_id))
            raise
        else:
            self._landed(flight, secret)

    async def _fetch(self, flight: Flight[Done]) -> Secret:
        secret_id, _, version_id = flight.key
        if self._config.check_version_first and flight.known is not None:
            versions = await self._request(
                flight, "DescribeSecret", secret_id, lambda source: source.describe(secret_id)
            )
            confirmed = flight.confirmed(versions)
            if confirmed is not None:
                return confirmed
        stage = flight.wanted_stage()
        secret: Secret = await self._request(
            flight, "GetSecretValue", secret_id, lambda source: source.fetch(secret_id, stage, version_id)
        )
        return secret

    async def _fly_batches(self, batches: Sequence[Sequence[Flight[Done]]]) -> None:
        """Fetch batch after batch while there is time."""
        left = list(batches)
        try:
            while left and self._clock() < left[0][0].overdue_at:
                await self._fly_batch(left.pop(0))
        finally:
            for flights in left:
                self._gave_up(flights)

    async def _fly_batch(self, flights: Sequence[Flight[Done]]) -> None:
        """Fetch many secrets with one request; what it does not bring is left to those who read it."""
        if not isinstance(self._sources[PRIMARY], AsyncBatchSource):
            for flight in flights:
                await self._fly(flight)
            return
        first, ids = flights[0], [flight.key.secret_id for flight in flights]
        try:
            found = await self._retrying(
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

    async def _retrying(self, flight: Flight[Done], fetch: Callable[[], Awaitable[Value]]) -> Value:
        """Repeat a fetch while AWS is unavailable and the deadline allows, and end it there."""
        try:
            left = max(0.0, flight.overdue_at - self._clock())
            return await asyncio.wait_for(self._attempts(flight, fetch), left)
        except asyncio.TimeoutError:
            failure = self._core.timeout(flight)
        raise failure

    async def _attempts(self, flight: Flight[Done], fetch: Callable[[], Awaitable[Value]]) -> Value:
        failed: list[Unavailable] = []
        try:
            return await fetch()
        except Unavailable as error:
            failed.append(error)

        async def attempt() -> Value:
            if failed:
                raise failed.pop()
            return await fetch()

        from smcache._retry import AsyncRetrying, retry_policy  # noqa: PLC0415 - takes 5 ms; see SecretCache

        def note(error: SecretCacheError, pause: float) -> None:
            self._core.retrying(flight, error, pause)

        return await AsyncRetrying(sleep=self._sleep, **retry_policy(self._core, flight, self._clock, note))(attempt)

    async def _request(
        self,
        flight: Flight[Done],
        operation: str,
        secret_id: str,
        send: Callable[[Any], Awaitable[Answer[Value]]],
    ) -> Value:
        """Send one request, and where a region is unavailable, to the next one."""
        failures: dict[int, SecretCacheError] = {}
        for region in self._regions.order(self._clock()):
            try:
                value = await self._send(region, operation, secret_id, send)
            except SecretCacheError as error:
                failures[region] = error
            else:
                flight.from_replica = region != PRIMARY
                return value
            if not self._regions.ended(region, failures[region], self._clock()):
                break
        raise failures[PRIMARY]

    async def _send(
        self, region: int, operation: str, secret_id: str, send: Callable[[Any], Awaitable[Answer[Value]]]
    ) -> Value:
        """Send one request to one region and count it."""
        failure: SecretCacheError
        started = self._clock()
        self._regions.asked(region, started)
        try:
            answer = await send(self._sources[region])
            refuse_answer(operation, answer, secret_id)
        except SecretCacheError as error:
            failure = error
        except asyncio.CancelledError:  # at the deadline, say: it was sent all the same
            failure = FetchTimeout("the request was cut short", secret_id=secret_id)
            self._core.requested(operation, secret_id, 1, self._clock() - started, failure)
            self._regions.ended(region, failure, self._clock())
            raise
        except Exception as error:  # noqa: BLE001 - a source of the user's may raise anything
            failure = source_raised(error, secret_id)
        else:
            self._core.requested(operation, secret_id, answer.requests, self._clock() - started, None)
            self._regions.ended(region, None, started)
            self.metrics.answers_by_region.update(self._region_names[region : region + 1])
            return answer.value
        self._core.requested(operation, secret_id, failure.requests, self._clock() - started, failure)
        self._tell()
        raise failure

    def _landed(self, flight: Flight[Done], secret: Secret) -> None:
        self._core.landed(flight, secret, self._clock())
        _wake(flight)
        self._tell()

    def _failed(self, flight: Flight[Done], error: SecretCacheError) -> None:
        self._core.failed(flight, error, self._clock())
        _wake(flight)
        self._tell()

    def _gave_up(self, flights: Sequence[Flight[Done]]) -> None:
        for flight in flights:
            self._core.gave_up(flight)
            _wake(flight)

    # --- telling ----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Have the listeners told what has happened, by a task of their own."""
        if self._core.events and self._listeners.take(self._core.events):
            task = contextvars.Context().run(asyncio.get_running_loop().create_task, self._deliver())
            self._keep(task, self._telling)

    async def _deliver(self) -> None:
        try:
            while (upcoming := self._listeners.upcoming()) is not None:
                event, context = upcoming
                for listener in self._listeners.concerned(event):
                    try:
                        result = context.run(listener, event)
                    except Exception as error:  # noqa: BLE001 - a listener's own trouble
                        log_failed_listener(event, error)
                        continue
                    if inspect.isawaitable(result):
                        # A task has the context too; one that is cancelled cancels nothing but itself.
                        task = context.run(asyncio.ensure_future, result)
                        self._keep(task, self._telling)
                        await asyncio.wait([task])
                        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
                        if failure is not None:
                            log_failed_listener(event, failure)
        except BaseException:  # the task was cancelled, say
            self._listeners.stopped()
            raise


def _is_cancelled() -> bool:
    """Tell whether somebody has cancelled the current task; before Python 3.11 none says so, and any may have been."""
    task = asyncio.current_task()
    return sys.version_info < (3, 11) or (task is not None and task.cancelling() > 0)


def _wake(flight: Flight[Done]) -> None:
    if not flight.done.done():
        flight.done.set_result(None)


def _checked_sources(
    client: object, source: AsyncSource | None, regions: Sequence[str], config: CacheConfig
) -> Sequence[AsyncSource]:
    if source is not None:
        refuse_source(source, config, AsyncSource, AsyncVersionSource)
        if not inspect.iscoroutinefunction(source.fetch):
            raise InvalidArgument(
                f"source= has no coroutine fetch(): {type(source).__name__}", hint="write `async def fetch`"
            )
        return [source]
    if not regions:
        return [async_source(client, fetch_timeout=config.fetch_timeout)]
    share = config.fetch_timeout / len(regions)
    return [async_source(fetch_timeout=share, region=region, primary=regions[PRIMARY]) for region in regions]
