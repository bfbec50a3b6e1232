"""The command `smcache`: reads its arguments and hands over to a subcommand, which is imported only then."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from smcache.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

MAX_WORKERS = 200  # the test kit's PostgreSQL takes 220 connections


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments, without the program's name; by default those of this process.

    Returns:
        The exit code of the subcommand: 0 when all is well, 1 when it is not, 130 after Ctrl-C. 2 when the
        arguments are wrong or an extra is not installed.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except MissingExtra as error:
        sys.stderr.write(f"smcache: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("smcache: interrupted\n")
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="smcache", description="A client-side cache for AWS Secrets Manager.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="watch connections survive password rotations, in half a minute",
        description="Rotates the password of a real PostgreSQL role while threads or tasks open new connections, first "
        "through smcache and then through a plain TTL cache. Exits 0 only if smcache failed no connection. "
        "Needs no AWS account: both servers run on this machine and are gone afterwards.",
    )
    demo.add_argument("--workers", type=_workers, default=8, metavar="N", help="how many connect (default: 8)")
    demo.add_argument(
        "--async", dest="as_async", action="store_true", help="connect from tasks of one event loop, not from threads"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    demo.set_defaults(run=_demo)
    return parser


def _workers(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_WORKERS}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    from smcache import demo  # noqa: PLC0415 - other subcommands need none of it

    return demo.run(workers=arguments.workers, as_async=arguments.as_async, as_json=arguments.json)
