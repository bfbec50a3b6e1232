"""The command `smcache`: reads its arguments and hands over to a subcommand, which is imported only then."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from smcache.config import CacheConfig
from smcache.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

MAX_WORKERS = 200  # the test kit's PostgreSQL takes 220 connections


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments, without the program's name; by default those of this process.

    Returns:
        The exit code of the subcommand: 0 when all is well, 1 when something does not work, 130 after Ctrl-C. 2
        when the arguments are wrong or an extra is not installed.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (InvalidArgument, MissingExtra) as error:
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
    demo.add_argument(
        "--workers", type=_whole(1, MAX_WORKERS), default=8, metavar="N", help="how many connect (default: 8)"
    )
    demo.add_argument(
        "--async", dest="as_async", action="store_true", help="connect from tasks of one event loop, not from threads"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    demo.set_defaults(run=_demo)

    cost = commands.add_parser(
        "cost",
        help="what a workload costs a month, without a cache and with one",
        description="Says what a workload costs in a month of 30 days by the list prices of AWS (US dollars), without "
        "a cache and with one, and how near it comes to the quotas of Secrets Manager. With a cache it gives an "
        "estimate and an upper bound, for the default settings and the TTL given. Asks AWS nothing.",
    )
    cost.add_argument("--secrets", type=_whole(1), required=True, metavar="N", help="how many secrets there are")
    cost.add_argument(
        "--calls-per-day",
        type=_whole(0),
        required=True,
        metavar="N",
        help="how often they are read a day, all secrets and processes together",
    )
    cost.add_argument(
        "--processes", type=_whole(1), default=1, metavar="N", help="how many processes read them (default: 1)"
    )
    ttl = CacheConfig().ttl
    cost.add_argument(
        "--ttl", type=_seconds, default=ttl, metavar="SECONDS", help=f"the TTL of the caches (default: {ttl:g})"
    )
    cost.add_argument(
        "--kms-keys",
        type=_whole(0),
        default=0,
        metavar="N",
        help="how many customer-managed KMS keys encrypt them; each costs, and so does each request with it "
        "(default: 0, the AWS-managed key)",
    )
    cost.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    cost.set_defaults(run=_cost)

    doctor = commands.add_parser(
        "doctor",
        help="what works and what does not between this machine and a secret",
        description="Checks in order what reading a secret and surviving its rotation need: credentials, region and "
        "endpoint, the secret, permission to read it, KMS, versions, rotation, the clock, and the fields of the "
        "value, of which it prints names only. Each failure comes with its fix.",
        epilog="Exit codes: 0 nothing is wrong; 1 something does not work; 2 the arguments are wrong.",
    )
    doctor.add_argument("secret_id", metavar="SECRET_ID", help="the name or the ARN of the secret")
    doctor.add_argument("--region", help="the AWS Region (default: as boto3 finds it)")
    doctor.add_argument("--profile", help="the profile of the AWS configuration (default: as boto3 finds it)")
    doctor.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="where Secrets Manager, and it alone, is asked (default: as boto3 finds it)",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    doctor.set_defaults(run=_doctor)
    return parser


def _whole(least: int, most: int = 10**12) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would take '1_000', and refuses thousands of digits in a way of its own.
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return seconds


def _demo(arguments: argparse.Namespace) -> int:
    from smcache import demo  # noqa: PLC0415 - other subcommands need none of it

    return demo.run(workers=arguments.workers, as_async=arguments.as_async, as_json=arguments.json)


def _cost(arguments: argparse.Namespace) -> int:
    from smcache import cost  # noqa: PLC0415 - as above

    workload = cost.Workload(
        secrets=arguments.secrets,
        calls_per_day=arguments.calls_per_day,
        processes=arguments.processes,
        kms_keys=arguments.kms_keys,
        config=CacheConfig(ttl=arguments.ttl),
    )
    return cost.run(workload, as_json=arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from smcache import doctor  # noqa: PLC0415 - as above

    return doctor.run(
        arguments.secret_id,
        region=arguments.region,
        profile=arguments.profile,
        endpoint_url=arguments.endpoint_url,
        as_json=arguments.json,
    )
