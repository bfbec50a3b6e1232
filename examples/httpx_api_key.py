"""An API key for httpx that survives rotations: the 401 that a rotated key gets brings the new one.

The secret is a JSON object with the field `key`. Run it by `SECRET_ID=prod/api API_URL=https://... python
httpx_api_key.py`; other settings: AWS_* as usual.
"""

import os

import httpx

from smcache import SecretCache
from smcache.integrations.httpx import SecretAuth

cache = SecretCache()
client = httpx.Client(
    base_url=os.environ["API_URL"],
    auth=SecretAuth(cache, os.environ["SECRET_ID"], "key"),  # Authorization: Bearer <key>
)


def main() -> None:
    """Send a request, as any other with this client."""
    with cache, client:
        print(client.get("/").raise_for_status().text)


if __name__ == "__main__":
    main()
