"""`python -m smcache` is the command `smcache`."""

import sys

from smcache.cli import main

if __name__ == "__main__":
    sys.exit(main())
