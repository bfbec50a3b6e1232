"""Django settings that name a secret: Django's own PostgreSQL backend, with a login that survives rotations.

Try them by `SECRET_ID=prod/db django-admin inspectdb --settings django_settings --pythonpath .`; other settings:
AWS_* as usual.
"""

import os

DATABASES = {
    "default": {
        "ENGINE": "smcache.integrations.django.postgresql",  # or smcache.integrations.django.mysql
        "OPTIONS": {"secret_id": os.environ["SECRET_ID"]},  # has host, port, database, username and password
        "CONN_MAX_AGE": 60,  # how long a connection of the old password may live on
    },
}
