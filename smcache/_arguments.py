"""What callers may pass, where both drivers take the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smcache._core import Key, check_key
from smcache.config import CacheConfig
from smcache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def checked_config(config: CacheConfig | None) -> CacheConfig:
    """Return the configuration, or the default one.

    Raises:
        InvalidArgument: It is something else.
    """
    if config is None:
        return CacheConfig()
    if not isinstance(config, CacheConfig):
        raise InvalidArgument(f"config= takes a CacheConfig, not {type(config).__name__}")
    return config


def checked_ids(secret_ids: Iterable[str]) -> list[Key]:
    """Return the keys for a list of ids, each once.

    Raises:
        InvalidArgument: It is a string, or an id is none that AWS could accept.
    """
    if isinstance(secret_ids, str):
        raise InvalidArgument("prefetch() takes a list of ids, not one", hint=f"prefetch([{secret_ids!r}])")
    return [check_key(Key(secret_id)) for secret_id in dict.fromkeys(secret_ids)]


def checked_regions(regions: Sequence[str], client: object, source: object) -> tuple[str, ...]:
    """Return the regions to ask, if any are given.

    Raises:
        InvalidArgument: They are no list of distinct names, or stand beside another place to get values from.
    """
    places = {"client=": client is not None, "source=": source is not None, "regions=": bool(regions)}
    if sum(places.values()) > 1:
        together = " and ".join(place for place, is_given in places.items() if is_given)
        raise InvalidArgument(f"{together} were given together", hint="values come from one of them")
    if isinstance(regions, str):
        raise InvalidArgument("regions= takes a list of names, not one", hint=f"regions=[{regions!r}]")
    unchecked: object = regions
    if not isinstance(unchecked, (list, tuple)):
        raise InvalidArgument(f"regions= takes a list of names, not {type(unchecked).__name__}")
    given: tuple[object, ...] = tuple(regions)
    names = {name for name in given if isinstance(name, str) and name and name == name.strip()}
    if len(names) < len(given):
        raise InvalidArgument(f"regions={regions!r}: expected distinct names", hint='("eu-west-1", "us-east-1")')
    return tuple(regions)


def refuse_source(source: object, config: CacheConfig, kind: type, version_kind: type) -> None:
    """Refuse a source that is none, or that cannot do what is configured.

    Raises:
        InvalidArgument: Which of these.
    """
    if not isinstance(source, kind):
        raise InvalidArgument(
            f"source= is no {kind.__name__}: {type(source).__name__}", hint=f"see smcache.sources.{kind.__name__}"
        )
    if config.check_version_first and not isinstance(source, version_kind):
        raise InvalidArgument(f"check_version_first needs a source with describe(): {type(source).__name__}")
