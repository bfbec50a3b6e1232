"""Django's PostgreSQL backend, logging in with a secret: see ``smcache.integrations.django``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base

from smcache import _url
from smcache.integrations.django import cache

if TYPE_CHECKING:
    from smcache.secret import Secret

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper):
    """A database of ``settings.DATABASES`` whose ``OPTIONS["secret_id"]`` names a secret.

    Raises:
        ImproperlyConfigured: It names none.
    """

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.secret_id: str = settings_dict["OPTIONS"].get("secret_id", "")
        if not self.secret_id:
            raise ImproperlyConfigured('settings.DATABASES: OPTIONS["secret_id"] must name a secret')
        self.settings_dict: dict[str, Any]
        super().__init__(settings_dict, *args, **kwargs)

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

    def get_connection_params(self) -> dict[str, Any]:
        """Return the settings as the driver takes them; the secret has the name of the database if they do not."""
        settings: dict[str, Any] = self.settings_dict
        try:
            if settings["NAME"] == "" and not settings["OPTIONS"].get("service"):
                self.settings_dict = {**settings, "NAME": cache().get(self.secret_id)["dbname"]}
            params: dict[str, Any] = super().get_connection_params()
        finally:
            self.settings_dict = settings
        del params["secret_id"]
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Log in with the secret, and with its next version when the server rejects it."""
        connect = super().get_new_connection
        if self.pool:
            return connect(conn_params)

        @cache().retry_on_auth_error(self.secret_id)
        def log_in(secret: Secret) -> Any:
            return connect({**conn_params, **_url.arguments(secret, _url.LIBPQ, conn_params)})

        return log_in()
