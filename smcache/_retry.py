"""The retries of one fetch, as tenacity is told them; the same for both drivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tenacity import AsyncRetrying, Retrying

from smcache._core import FIRST_RETRY, MAX_RETRY
from smcache.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState

    from smcache._core import Core, Flight
    from smcache.errors import SecretCacheError


__all__ = ["AsyncRetrying", "Retrying", "retry_policy"]


def retry_policy(
    core: Core[Any],
    flight: Flight[Any],
    clock: Callable[[], float],
    note: Callable[[SecretCacheError, float], None],
) -> dict[str, Any]:
    """Return the arguments of ``Retrying`` or ``AsyncRetrying`` for a flight, less ``sleep``.

    A request is repeated while AWS is unavailable, somebody has no value to go on with, and the flight's deadline
    leaves room for the pause. Where all have one, the next refresh is the retry.
    ``note(error, pause)`` is called before each pause.
    """

    def is_worth_it(state: RetryCallState) -> bool:
        error = _error_of(state)
        return isinstance(error, Unavailable) and error.retryable and flight.is_needed

    def leaves_no_time(state: RetryCallState) -> bool:
        return clock() + state.upcoming_sleep >= flight.overdue_at

    def pause(state: RetryCallState) -> float:
        return core.backoff(state.attempt_number, FIRST_RETRY, MAX_RETRY)

    def before_sleep(state: RetryCallState) -> None:
        note(cast("SecretCacheError", _error_of(state)), state.upcoming_sleep)

    return {
        "retry": is_worth_it,
        "stop": leaves_no_time,
        "wait": pause,
        "before_sleep": before_sleep,
        "reraise": True,
    }


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None and state.outcome.failed else None
