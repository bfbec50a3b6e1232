"""Where values come from: what a cache asks of its source.

``SecretCache(client=...)`` makes a ``BotoSource``; ``SecretCache(source=...)`` takes anything with the methods of
``Source``. A source may also have ``describe`` and ``fetch_batch``, as ``BotoSource`` has; without them
``check_version_first`` is refused, and ``prefetch`` fetches one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

from smcache.errors import SourceFailed
from smcache.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smcache.errors import SecretCacheError

__all__ = ["Answer", "AsyncBatchSource", "AsyncSource", "AsyncVersionSource", "BatchSource", "Source", "VersionSource"]

Value_co = TypeVar("Value_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value_co]):
    """What a source brought, and how many requests that took (hidden retries of a client included)."""

    value: Value_co
    requests: int = 1


@runtime_checkable
class Source(Protocol):
    """Where a cache gets its values. Called from several threads at once."""

    def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        """Return one version of a secret: the one under the label, the one with the id, or both at once.

        Raises:
            Denied: There is an answer, and it is no.
            Unavailable: There is no answer; ``retryable`` ones are asked again within the deadline.
        """
        ...

    def close(self) -> None:
        """Let go of connections the source has made."""
        ...


@runtime_checkable
class VersionSource(Source, Protocol):
    """A source that can tell versions without fetching a value."""

    def describe(self, secret_id: str) -> Answer[Mapping[str, str]]:
        """Return the version id under each staging label.

        Raises:
            Denied: There is an answer, and it is no; a secret marked for deletion included.
            Unavailable: There is no answer.
        """
        ...


@runtime_checkable
class BatchSource(Source, Protocol):
    """A source that can fetch several secrets with one request."""

    def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[Mapping[str, Secret | SecretCacheError]]:
        """Return AWSCURRENT of up to 20 secrets, by the ids as given; what there is no answer for is left out.

        Raises:
            SecretCacheError: The request failed as a whole.
        """
        ...


@runtime_checkable
class AsyncSource(Protocol):
    """``Source`` as coroutines. Called from one event loop; when another takes over, ``leave_loop`` comes first."""

    async def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        """Return one version of a secret; see ``Source.fetch``."""
        ...

    def leave_loop(self) -> None:
        """Let go of what belongs to an event loop that has ended."""
        ...

    async def close(self) -> None:
        """Let go of connections the source has made."""
        ...


@runtime_checkable
class AsyncVersionSource(AsyncSource, Protocol):
    """``VersionSource`` as coroutines."""

    async def describe(self, secret_id: str) -> Answer[Mapping[str, str]]:
        """Return the version id under each staging label; see ``VersionSource.describe``."""
        ...


@runtime_checkable
class AsyncBatchSource(AsyncSource, Protocol):
    """``BatchSource`` as coroutines."""

    async def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[Mapping[str, Secret | SecretCacheError]]:
        """Return AWSCURRENT of up to 20 secrets; see ``BatchSource.fetch_batch``."""
        ...


def source_raised(error: BaseException, secret_id: str) -> SourceFailed:
    """Return, as our error, what a source of the user's raised that is none."""
    failure = SourceFailed(f"the source raised {type(error).__name__}", secret_id=secret_id)
    failure.__cause__ = error
    return failure


_VALUES = {"GetSecretValue": Secret, "DescribeSecret": Mapping, "BatchGetSecretValue": Mapping}


def refuse_answer(operation: str, answer: object, secret_id: str) -> None:
    """Refuse what is no answer to an operation.

    Raises:
        SourceFailed: What the source returned instead.
    """
    value = answer.value if isinstance(answer, Answer) else answer
    wanted = _VALUES[operation]
    if value is answer or not isinstance(value, wanted):
        raise SourceFailed(
            f"the source returned no Answer but {type(answer).__name__}"
            if value is answer
            else f"the source's Answer holds {type(value).__name__}",
            secret_id=secret_id,
            hint=f"return Answer(value) with a {wanted.__name__}: see smcache.sources",
        )
