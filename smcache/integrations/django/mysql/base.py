"""Django's backend for MySQL and MariaDB, logging in with a secret: see ``smcache.integrations.django``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.mysql import base, creation

from smcache.integrations import _mysql
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
    options_with_name = frozenset({"database", "db", "read_default_file"})

    def login(self, secret: Secret, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to lay over the parameters of mysqlclient or PyMySQL."""
        found = _mysql.arguments(secret, params)
        found.pop("database", None)  # settled by NAME, which Django sets to None to connect to no database
        return found
