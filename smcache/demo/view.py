"""What the demo looks like: a live table on a terminal, plain lines elsewhere, or one JSON object."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from smcache.demo import load
from smcache.demo.contenders import PLAIN_TTL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from typing_extensions import Self

__all__ = ["Display", "Lines", "LiveTable", "choose", "time_line"]

BUCKET = 0.25  # seconds that a character of the time line stands for
REDRAW = 0.2  # seconds between two pictures of the live table
PLAIN_WIDTH = 100  # columns, where nobody tells


def choose(workers: int, kind: load.Kind, *, as_json: bool) -> Display:
    """Return the display for where standard output goes."""
    if as_json:
        return Display()
    as_it_is: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # [..] of an error is no markup
    if sys.stdout.isatty() and not Console().is_dumb_terminal:
        return LiveTable(Console(**as_it_is), workers, kind)
    # FORCE_COLOR is for tools that would have printed the same without colour.
    plain = Console(force_terminal=False, color_system=None, width=PLAIN_WIDTH, **as_it_is)
    return Lines(plain, workers, kind)


class Display:
    """Shows nothing but, at the end, JSON. The other displays show more."""

    def begin(self, run: load.Run) -> None:
        """A contender begins."""

    def tick(self, run: load.Run) -> None:
        """A little time has passed."""

    def rotated(self, run: load.Run) -> None:
        """A rotation has ended."""

    def end(self, report: load.Report) -> None:
        """All is done."""
        answer = {"ok": report.ok, "plain_ttl_seconds": PLAIN_TTL, "dwell_seconds": load.DWELL, **asdict(report)}
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Display):
    """One line for each rotation, and both contenders side by side at the end."""

    def __init__(self, console: Console, workers: int, kind: load.Kind) -> None:
        self._console = console
        self._workers = workers
        self._kind: load.Kind = kind
        self._runs: list[load.Run] = []

    def begin(self, run: load.Run) -> None:
        """Keep the run: its time line is shown at the end."""
        self._runs.append(run)

    def rotated(self, run: load.Run) -> None:
        """Print how things stand."""
        figures, rotation = load.measure(run), run.rotations[-1]
        self._say(
            f"{figures.name:<9}  rotation {figures.rotations} of {len(load.PLAN)}, {rotation.strategy}:"
            f" made {figures.connections_made}, failed {figures.connections_failed},"
            f" median {_milliseconds(figures.median_connect_seconds)},"
            f" worst {_milliseconds(figures.worst_connect_seconds)},"
            f" API calls {figures.api_calls}, cost {_dollars(figures.cost_usd)}"
        )

    def end(self, report: load.Report) -> None:
        """Print both contenders side by side, and what it means."""
        self._draw(_comparison([report.smcache, report.ttl_cache]))
        self._draw(_time_lines(self._runs))
        self._say(_verdict(report))

    def _draw(self, table: Table) -> None:
        if self._console.is_terminal:
            self._console.print(table)
            return
        with self._console.capture() as captured:
            self._console.print(table)
        for line in captured.get().splitlines():  # rich fills each line up with blanks
            self._say(line.rstrip())

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def __enter__(self) -> Self:
        self._say(_introduction(self._workers, self._kind))
        return self


class LiveTable(Lines):
    """The same table, filling up while one looks at it."""

    def __init__(self, console: Console, workers: int, kind: load.Kind) -> None:
        super().__init__(console, workers, kind)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = 0.0
        self._drawn_step = ""

    def tick(self, run: load.Run) -> None:
        """Draw the table again, if the last picture is old enough or shows another step."""
        now, step = time.perf_counter(), run.rotations[-1].step if run.rotations else ""
        if now - self._drawn_at >= REDRAW or step != self._drawn_step:
            self._drawn_at, self._drawn_step = now, step
            figures = [load.measure(each) for each in self._runs]
            picture = Group(_comparison(figures, run), _time_lines(self._runs))
            self._live.update(picture, refresh=True)

    def rotated(self, run: load.Run) -> None:
        """Nothing more: the table shows it."""

    def end(self, report: load.Report) -> None:
        """Put the final table in the place of the live one."""
        self._live.stop()
        super().end(report)

    def __enter__(self) -> Self:
        super().__enter__()
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _introduction(workers: int, kind: load.Kind) -> str:
    who = f"{workers} {kind}" + (" in one event loop" if kind == "tasks" else "")
    single, alternating = load.PLAN.count("single-user"), load.PLAN.count("alternating-users")
    return (
        f"{who} open connections to PostgreSQL, first through smcache, then through a plain TTL cache.\n"
        f"Meanwhile the password is rotated, in steps {load.DWELL:g} s apart: {single} times that of a single user,"
        f" {alternating} times with alternating users.\n"
    )


def _comparison(figures: Sequence[load.Figures], under_way: load.Run | None = None) -> Table:
    """Return the contenders side by side; the last one may still be under way."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    columns = []
    for each in figures:
        table.add_column(each.name, justify="right", min_width=26)
        columns.append(_rows(each))
    if under_way is not None:
        for label, text in _now(under_way).items():
            table.add_row(label, *[""] * (len(figures) - 1), text)
        table.add_section()
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    return table


def _now(run: load.Run) -> dict[str, str]:
    rotation = run.rotations[-1] if run.rotations else None
    return {
        "rotation": f"{rotation.strategy}, {len(run.rotations)} of {len(load.PLAN)}" if rotation else "soon",
        "last step": rotation.step if rotation else "",
        "its version": rotation.version_id[:8] if rotation else "",
        "version in use": run.contender.logins.version_id[:8],
    }


def _rows(figures: load.Figures) -> dict[str, RenderableType]:
    failed = f"{figures.connections_failed} ({figures.failed_percent:.1f} %)"
    return {
        "rotations done": str(figures.rotations),
        "connections made": str(figures.connections_made),
        "connections failed": Text(failed, "bold red" if figures.connections_failed else "bold green"),
        "  single-user rotations": str(figures.failed_single_user),
        "  alternating users": str(figures.failed_alternating_users),
        "longest outage": f"{figures.longest_outage_seconds:.1f} s" if figures.connections_failed else "none",
        "logins rejected": str(figures.logins_rejected),
        "median time to connect": _milliseconds(figures.median_connect_seconds),
        "worst time to connect": _milliseconds(figures.worst_connect_seconds),
        "  during a rotation": _milliseconds(figures.worst_connect_in_rotation_seconds),
        "API calls": str(figures.api_calls),
        "  per rotation": " ".join(map(str, figures.api_calls_by_rotation)),
        "cost": _dollars(figures.cost_usd),
    }


def _time_lines(runs: Sequence[load.Run]) -> Table:
    """Return a line for each contender: when connections were made, and when they failed."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("rotation", _rotation_marks(runs[0]))
    for run in runs:
        table.add_row(run.contender.name, time_line(run))
    return table


def _rotation_marks(run: load.Run) -> Text:
    marks: list[str] = []
    for number, rotation in enumerate(list(run.rotations), 1):
        first = int((rotation.started - run.started) / BUCKET)
        last = int(((rotation.ended or time.perf_counter()) - run.started) / BUCKET)
        marks += " " * (first - len(marks)) + str(number) + "-" * (last - first)
    return Text("".join(marks), "dim")


def time_line(run: load.Run) -> Text:
    """Return when a contender's connections were made, and when any failed, one character per BUCKET."""
    buckets: dict[int, bool] = {}
    for attempt in list(run.attempts):
        bucket = int((attempt.ended - run.started) / BUCKET)
        buckets[bucket] = buckets.get(bucket, True) and not attempt.failure
    line = Text()
    for bucket in range(max(buckets, default=-1) + 1):
        if bucket not in buckets:
            line.append(" ")
        elif buckets[bucket]:
            line.append("=", "green")
        else:
            line.append("x", "bold red")
    return line


def _verdict(report: load.Report) -> str:
    ours = report.smcache
    text = (
        f"\nsmcache: the database rejected {ours.logins_rejected} logins, and callers saw"
        f" {ours.connections_failed} connections fail.\n"
    )
    if ours.first_failure:
        text += f"The first failed of {ours.first_failure}\n"
    if ours.promised_connect_seconds is not None:
        worst, promised = ours.worst_connect_in_rotation_seconds, ours.promised_connect_seconds
        text += (
            f"Connecting during a rotation took {_milliseconds(worst)} at worst; promised is less than"
            f" {_milliseconds(promised)}: {load.WAIT_PROMISED:g} s plus one failed and one good login.\n"
        )
    return text + (
        f"The plain cache has a TTL of {PLAIN_TTL:g} s, to be kind to it: shorter than the time between rotations, as"
        " in real life.\nWith the usual 300 s, each of its outages would last up to five minutes.\n"
        f"{report.seconds:.0f} s in all."
    )


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.0f} ms"


def _dollars(amount: float) -> str:
    return f"${amount:.6f}"
