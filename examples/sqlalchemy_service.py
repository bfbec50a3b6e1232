"""A Flask service whose SQLAlchemy engine survives rotations: `use_secret`, and nothing else changes.

Start it by `SECRET_ID=prod/db gunicorn --threads 10 sqlalchemy_service:app`; other settings: AWS_* as usual.
"""

import os

import sqlalchemy
from flask import Flask

from smcache import SecretCache
from smcache.integrations.sqlalchemy import use_secret

SECRET_ID = os.environ["SECRET_ID"]

cache = SecretCache()
engine = sqlalchemy.create_engine("postgresql+psycopg://", pool_recycle=600)  # seconds an old login may live on
use_secret(engine, cache, SECRET_ID)  # host, port, database and login come from the secret

app = Flask(__name__)


@app.get("/whoami")
def whoami() -> dict[str, str]:
    """Ask the server who we are."""
    with engine.connect() as connection:
        return {"user": connection.execute(sqlalchemy.text("select current_user")).scalar_one()}
