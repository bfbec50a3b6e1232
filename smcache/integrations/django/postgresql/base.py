"""Django's PostgreSQL backend, logging in with a secret: see ``smcache.integrations.django``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql import base, creation

from smcache import _url
from smcache.integrations.django import cache
from smcache.integrations.django._backend import SecretCreation, SecretLogin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smcache.secret import Secret

__all__ = ["DatabaseWrapper"]


class DatabaseCreation(SecretCreation, creation.DatabaseCreation):
    """What makes the databases of tests."""


class DatabaseWrapper(SecretLogin, base.DatabaseWrapper):
    """A database of ``settings.DATABASES`` whose ``OPTIONS["secret_id"]`` names a secret.

    Raises:
        ImproperlyConfigured: It names none.
    """

    creation_class = DatabaseCreation
    options_with_name = frozenset({"service"})

    @property
    def pool(self) -> Any:
        """The psycopg_pool that ``OPTIONS["pool"]`` asks for, whose connections log in with the secret."""
        options = self.settings_dict["OPTIONS"]
        wanted = options.get("pool")
        if wanted and (wanted is True or "connection_class" not in wanted):
            from smcache.integrations.psycopg_pool import connection_class  # noqa: PLC0415 - for psycopg 3 only

            wanted = {} if wanted is True else wanted
            options["pool"] = {**wanted, "connection_class": connection_class(cache(), self.secret_id)}
        return super().pool

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Log in with the secret; a pool does so by itself."""
        if self.pool:
            return base.DatabaseWrapper.get_new_connection(self, conn_params)
        return super().get_new_connection(conn_params)

    def login(self, secret: Secret, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to lay over the parameters of psycopg."""
        return _url.arguments(secret, _url.LIBPQ, params)
