"""Secrets Manager for asyncio: through aiobotocore where it is installed, otherwise through botocore in threads."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from smcache.errors import SecretCacheError
from smcache.sources import Answer
from smcache.sources.boto import (
    BotoSource,
    batch_from,
    check_client,
    client_settings,
    hidden_retries,
    in_region,
    keep_out_of_logs,
    secret_from,
    translate,
    versions_from,
    wanted,
    without_listing_services,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from smcache.secret import Secret

__all__ = ["AioBotoSource", "ThreadedBotoSource", "async_source"]

Value = TypeVar("Value")


def async_source(
    client: Any = None, *, fetch_timeout: float, region: str | None = None, primary: str | None = None
) -> AioBotoSource | ThreadedBotoSource:
    """Return the source for a client of the user, or without one, for what is installed.

    Raises:
        InvalidArgument: The client has no ``get_secret_value``.
    """
    if client is None:
        is_aio = find_spec("aiobotocore") is not None
    else:
        check_client(client)
        is_aio = any(kind.__module__.startswith("aiobotocore") for kind in type(client).__mro__)
    if is_aio:
        return AioBotoSource(client, fetch_timeout=fetch_timeout, region=region, primary=primary)
    return ThreadedBotoSource(BotoSource(client, fetch_timeout=fetch_timeout, region=region, primary=primary))


class AioBotoSource:
    """Secrets Manager through an aiobotocore client: the one given, or one made on first use in the running loop.

    Its settings are those of ``BotoSource``'s.

    Args:
        client: An aiobotocore client of the loop the cache is used in; its own retries are respected and counted.
        fetch_timeout: How long a fetch may take in all, in seconds.
        region: Of the client made here; by default as botocore finds it.
        primary: The region of the ARNs that come in and go out, where this one has replicas.
    """

    def __init__(
        self, client: Any = None, *, fetch_timeout: float = 10.0, region: str | None = None, primary: str | None = None
    ) -> None:
        keep_out_of_logs()
        self._client = client
        self._is_ours = client is None
        self._fetch_timeout = fetch_timeout
        self._region = region
        self._primary = primary
        self._making: asyncio.Lock | None = None
        self._life: AsyncGenerator[Any, None] | None = None

    async def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        """Return one version by GetSecretValue; see ``Source.fetch``."""
        return await self._call("get_secret_value", secret_id, wanted(secret_id, stage, version_id), secret_from)

    async def describe(self, secret_id: str) -> Answer[Mapping[str, str]]:
        """Return the version id under each staging label, by DescribeSecret; see ``VersionSource.describe``."""
        return await self._call("describe_secret", secret_id, {"SecretId": secret_id}, versions_from)

    async def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[Mapping[str, Secret | SecretCacheError]]:
        """Return up to 20 secrets by BatchGetSecretValue; see ``BatchSource.fetch_batch``."""
        ids = list(secret_ids)
        return await self._call(
            "batch_get_secret_value", "", {"SecretIdList": ids}, lambda told, _: batch_from(told, ids)
        )

    def leave_loop(self) -> None:
        """Forget the client made in a loop that has ended, which has closed it."""
        if self._is_ours:
            self._client = self._making = self._life = None

    async def close(self) -> None:
        """Close the client, if it was made here."""
        life, self._life = self._life, None
        if life is not None:
            self._client = None
            await life.aclose()

    async def _call(
        self,
        method: str,
        secret_id: str,
        parameters: Mapping[str, Any],
        parse: Callable[[Mapping[str, Any], str], Any],
    ) -> Answer[Any]:
        response: Any = None
        try:
            response = await getattr(await self._ready_client(), method)(**in_region(parameters, self._region))
            return Answer(parse(in_region(response, self._primary), secret_id), 1 + hidden_retries(response))
        except SecretCacheError as error:
            failure = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is translated and kept as the cause
            failure = translate(error, secret_id)
        response = None  # a traceback shows its frames' locals
        raise failure

    async def _ready_client(self) -> Any:
        if self._making is None:
            self._making = asyncio.Lock()
        async with self._making:
            if self._client is None:
                self._life = self._live()
                self._client = await anext(self._life)
            return self._client

    async def _live(self) -> AsyncGenerator[Any, None]:
        """Make a client, and close it when its time is over: at ``close``, or when ``asyncio.run`` ends its loop.

        It is a generator because a loop that ends closes those that are open, and nothing else.
        """
        make_config, get_session = await in_thread(_import_aiobotocore)  # half a second, not the loop's
        config = make_config(**client_settings(self._fetch_timeout))
        session = without_listing_services(get_session())
        async with session.create_client("secretsmanager", region_name=self._region, config=config) as client:
            yield client


def _import_aiobotocore() -> tuple[Callable[..., Any], Callable[[], Any]]:
    from aiobotocore.config import AioConfig  # noqa: PLC0415 - heavy, and in an extra
    from aiobotocore.session import get_session  # noqa: PLC0415

    return AioConfig, get_session


class ThreadedBotoSource:
    """Secrets Manager through ``BotoSource``, each call in a thread of its own; one under way cannot be cut short."""

    def __init__(self, source: BotoSource) -> None:
        self._source = source

    async def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        """Return one version by GetSecretValue; see ``Source.fetch``."""
        return await in_thread(lambda: self._source.fetch(secret_id, stage, version_id))

    async def describe(self, secret_id: str) -> Answer[Mapping[str, str]]:
        """Return the version id under each staging label, by DescribeSecret; see ``VersionSource.describe``."""
        return await in_thread(lambda: self._source.describe(secret_id))

    async def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[Mapping[str, Secret | SecretCacheError]]:
        """Return up to 20 secrets by BatchGetSecretValue; see ``BatchSource.fetch_batch``."""
        return await in_thread(lambda: self._source.fetch_batch(secret_ids))

    def leave_loop(self) -> None:
        """Do nothing: no client of threads belongs to a loop."""

    def start_anew_in_child(self) -> None:
        """Make another client after a fork; see ``BotoSource``."""
        self._source.start_anew_in_child()

    async def close(self) -> None:
        """Close the client's connections, if the client was made here."""
        self._source.close()


async def in_thread(call: Callable[[], Value]) -> Value:
    """Return what a call returns in a thread of its own.

    The loop's own executor has few threads, which calls that hang would hold, and ``asyncio.run`` waits for them.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Value] = loop.create_future()

    def finish(settle: Callable[[Any], None], outcome: object) -> None:
        if not done.done():
            settle(outcome)

    def run() -> None:
        settle: Callable[[Any], None]
        outcome: object
        try:
            settle, outcome = done.set_result, call()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits
            settle, outcome = done.set_exception, error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, settle, outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="smcache-fetch", daemon=True).start()
    return await done
