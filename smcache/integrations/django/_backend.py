"""What the backends have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.creation import BaseDatabaseCreation

from smcache.integrations.django import cache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smcache.secret import Secret


class SecretLogin(BaseDatabaseWrapper):
    """The part of a ``DatabaseWrapper`` that logs in with a secret; it stands before Django's own.

    Attributes:
        secret_id: ``OPTIONS["secret_id"]``.
        options_with_name: Those of ``OPTIONS`` that may name the database in place of ``NAME``.

    Raises:
        ImproperlyConfigured: The settings name no secret.
    """

    options_with_name: frozenset[str]

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.secret_id: str = settings_dict["OPTIONS"].get("secret_id", "")
        if not self.secret_id:
            raise ImproperlyConfigured('settings.DATABASES: OPTIONS["secret_id"] must name a secret')
        self.settings_dict: dict[str, Any]
        super().__init__(settings_dict, *args, **kwargs)

    def get_connection_params(self) -> dict[str, Any]:
        """Return the settings as the driver takes them; the secret has the name of the database if they do not."""
        settings: dict[str, Any] = self.settings_dict
        try:
            if settings["NAME"] == "" and not any(map(settings["OPTIONS"].get, self.options_with_name)):
                self.settings_dict = {**settings, "NAME": cache().get(self.secret_id)["dbname"]}
            params: dict[str, Any] = super().get_connection_params()
        finally:
            self.settings_dict = settings
        del params["secret_id"]
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Log in with the secret, and with its next version when the server rejects it."""
        connect = super().get_new_connection

        @cache().retry_on_auth_error(self.secret_id)
        def log_in(secret: Secret) -> Any:
            return connect({**conn_params, **self.login(secret, conn_params)})

        return log_in()

    def login(self, secret: Secret, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to lay over the driver's parameters."""
        raise NotImplementedError


class SecretCreation(BaseDatabaseCreation):
    """The part of a ``DatabaseCreation`` that knows of the secret; it stands before Django's own."""

    def test_db_signature(self) -> tuple[str, ...]:
        """Return what tells one test database from another: the secret as well, where it says where the server is."""
        secret_id = "" if self.connection.settings_dict["HOST"] else self.connection.secret_id
        return (*super().test_db_signature(), secret_id)
