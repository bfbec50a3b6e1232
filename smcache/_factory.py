"""The user's connection factory as the decorator sees it: where the secret goes, and what callers see."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from smcache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from types import TracebackType

    from smcache.secret import Secret

Owner = TypeVar("Owner")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Decorator(Protocol):
    """What ``retry_on_auth_error`` returns: it takes the secret out of a function's signature.

    Type checkers follow it where the secret is the first parameter, or the second (of a method, say), and before
    ``**options`` if it is positional-only (``secret: Secret, /``). They cannot take out a parameter elsewhere; a
    third overload for those would turn every result with an ``Any`` in it into ``Any``.
    """

    @overload
    def __call__(
        self, function: Callable[Concatenate[Secret, Parameters], Result], /
    ) -> Callable[Parameters, Result]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Owner, Secret, Parameters], Result], /
    ) -> Callable[Concatenate[Owner, Parameters], Result]: ...


class Placement:
    """Where a function takes the secret.

    Raises:
        InvalidArgument: It does not, or it is no plain function.
    """

    def __init__(self, function: Callable[..., Any], parameter: str) -> None:
        if isinstance(function, (classmethod, staticmethod)):
            kind = type(function).__name__
            raise InvalidArgument(
                f"@retry_on_auth_error stands above @{kind}",
                hint=f"put @{kind} above, and this decorator below it",
            )
        if not callable(function):
            raise InvalidArgument(f"@retry_on_auth_error decorates functions, not {type(function).__name__}")
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        inner = inspect.unwrap(function)
        if inner is not function and (inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)):
            raise InvalidArgument(
                f"{self.name}() connects when it is entered, not when it is called",
                hint="put @contextmanager above, and @retry_on_auth_error below it",
            )
        self.is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._function = function
        self._parameter = parameter
        whole = inspect.signature(function)
        place = whole.parameters.get(parameter)
        if place is None or place.kind in (place.VAR_POSITIONAL, place.VAR_KEYWORD):
            raise InvalidArgument(
                f"{self.name}{whole} has no parameter {parameter!r} to take the secret",
                hint='name it so, or say parameter="..."',
            )
        rest = [other for other in whole.parameters.values() if other is not place]
        self._signature = whole.replace(parameters=rest)
        self._positional_only = place.kind is place.POSITIONAL_ONLY
        self._index = None if place.kind is place.KEYWORD_ONLY else list(whole.parameters).index(parameter)

    def call(self, secret: Secret, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function with its caller's arguments, and with the secret in its place."""
        if self._parameter in kwargs:
            raise TypeError(
                f"{self.name}() got an unexpected keyword argument {self._parameter!r}: the cache passes it"
            )
        index = self._index
        if self._positional_only and index is not None and len(args) < index:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        if index is not None and (len(args) > index or self._positional_only):
            return self._function(*args[:index], secret, *args[index:], **kwargs)
        return self._function(*args, **kwargs, **{self._parameter: secret})

    def refuse_looking_at_results(self, *looks: object) -> None:
        """Refuse ``auth_result`` and ``probe``, which look at what is returned, for a generator function.

        Raises:
            InvalidArgument: One of them was given.
        """
        if any(look is not None for look in looks):
            raise InvalidArgument(
                f"{self.name}() is a generator function: auth_result= and probe= look at what is returned",
                hint="log in before the yield, and raise there",
            )

    def present(self, wrapper: Callable[..., Any]) -> Callable[..., Any]:
        """Make the wrapper look like the function, less the secret."""
        functools.update_wrapper(wrapper, self._function)
        annotations = dict(getattr(self._function, "__annotations__", {}))
        annotations.pop(self._parameter, None)
        wrapper.__annotations__ = annotations
        wrapper.__signature__ = self._signature  # type: ignore[attr-defined]
        return wrapper


class Started(Generator[Any, Any, Any]):
    """A generator that has been run up to its first yield, to be handed on with ``yield from``."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator
        self._pending = True
        self._ended: StopIteration | None = None
        self._first: Any = None
        try:
            self._first = next(generator)
        except StopIteration as end:  # it returned without a yield
            self._ended = end

    def send(self, value: Any, /) -> Any:
        """Yield the first value once more, then pass on to the generator."""
        if not self._pending:
            return self._generator.send(value)
        self._pending = False
        if self._ended is not None:
            raise self._ended
        return self._first

    def throw(self, error: Any, value: Any = None, traceback: TracebackType | None = None, /) -> Any:
        """Pass the error on to the generator."""
        del value, traceback  # `yield from` hands over an exception object
        return self._generator.throw(error)

    def close(self) -> None:
        """Close the generator."""
        self._generator.close()


class StartedAsync:
    """An async generator that has been run up to a yield: its value, until it has ended."""

    def __init__(self, generator: AsyncGenerator[Any, Any]) -> None:
        self.generator = generator
        self.value: Any = None
        self.ended = False

    @classmethod
    async def start(cls, generator: AsyncGenerator[Any, Any]) -> StartedAsync:
        """Run a generator up to its first yield."""
        started = cls(generator)
        await started.send(None)
        return started

    async def send(self, value: Any) -> None:
        """Run on to the next yield."""
        await self._run(self.generator.asend(value))

    async def throw(self, error: BaseException) -> None:
        """Raise an error at the yield, and run on to the next."""
        await self._run(self.generator.athrow(error))

    async def _run(self, step: Awaitable[Any]) -> None:
        try:
            self.value = await step
        except StopAsyncIteration:
            self.ended = True


def refuse_sync(function: Any) -> None:
    """Refuse a factory that would block the loop.

    Raises:
        InvalidArgument: The function is not asynchronous.
    """
    if callable(function) and not is_async(function) and not isinstance(function, (classmethod, staticmethod)):
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise InvalidArgument(f"{name}() is not asynchronous", hint="make it `async def`, or use SecretCache")


def refuse_async(function: Callable[..., Any]) -> None:
    """Refuse an asynchronous factory, which the cache for threads could only call and not await.

    Raises:
        InvalidArgument: The function is one.
    """
    if is_async(function):
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise InvalidArgument(f"{name}() is asynchronous, SecretCache is not", hint="decorate it with AsyncSecretCache")


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call gives a coroutine or an asynchronous generator."""
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (function, inspect.unwrap(function), type(function).__call__)
    )
