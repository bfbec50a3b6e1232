"""A fleet of 10,000 processes with 20 secrets each, simulated: the real core, a clock moved by hand, no threads.

Every process reads its secrets all the time, so something happens only when a deadline passes: a value is due, an
answer arrives, a throttled request is repeated. A heap holds these events by time. AWS takes `LATENCY` to answer and
throttles what exceeds its quota within one second; requests are repeated as the drivers do.

Two kinds of rotation: the secrets are rotated one after the other, which is seen when their values are due; and at
last the first secret's password is rejected, which each process sees when it opens its next connection. It then asks
for AWSCURRENT and for AWSPENDING, as `_recovery.py` does.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from matplotlib.figure import Figure as Drawing
from report import Case, Goal

from smcache import CacheConfig, Secret
from smcache._core import AWSPENDING, FIRST_RETRY, MAX_RETRY, Core, Join, Key, Lead, Refresh, Refuse
from smcache.errors import Throttled
from smcache.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache._core import Flight

Then: TypeAlias = "Callable[[float, Process, Key], None]"  # what follows an answer

PROCESSES = 10_000
SECRETS = 20
QUOTA = 10_000  # GetSecretValue a second, per Region and account; source: "Secrets Manager quotas", 2025-03
LATENCY = 0.02  # seconds
DEPLOY = 10.0  # seconds in which all processes start
FIRST_ROTATION = 330.0  # seconds after the deploy began; the next secret's follows
BETWEEN_ROTATIONS = 15.0  # all within one TTL: each process is met at any age of its values
REJECTED = 950.0  # when the server begins to refuse the first secret's password
CONNECT_EVERY = 30.0  # seconds between the connections of one process
END = 1_100.0
SEED = 7
TTL = 300.0

DEFAULTS = "jitter and refresh ahead (smcache's defaults)"
POLICIES = {
    "TTL only": CacheConfig(ttl=TTL, jitter=0, refresh_after=1),
    "jitter": CacheConfig(ttl=TTL, refresh_after=1),
    "refresh ahead": CacheConfig(ttl=TTL, jitter=0),
    DEFAULTS: CacheConfig(ttl=TTL),
    "three times that jitter, and refresh ahead": CacheConfig(ttl=TTL, jitter=0.3),
}


@dataclass
class Fleet:
    """What happened to a fleet under one policy. Counts are of all processes."""

    requests: Counter[int] = field(default_factory=Counter)  # by second
    throttled: int = 0
    waited: int = 0  # reads that waited for AWS, once the process had all its secrets
    slowest_start: float = 0.0  # seconds until a process had them
    seen_after: dict[Key, float] = field(default_factory=dict)  # seconds until all processes had the new version

    def peak(self, start: float, end: float) -> float:
        """Return the most requests in one second of a time."""
        return float(max(self.requests[second] for second in range(int(start), int(end))))


@dataclass(slots=True)
class Process:
    """One process."""

    core: Core[None]
    started: float
    missing: list[Key]  # what it has not loaded yet


class Simulation:
    """A fleet under one policy, event by event."""

    def __init__(self, config: CacheConfig, processes: int) -> None:
        self.config = config
        self.fleet = Fleet()
        self.scale = PROCESSES // processes
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.keys = [Key(f"prod/service-{number}") for number in range(SECRETS)]
        self.rotated_at = {key: FIRST_ROTATION + BETWEEN_ROTATIONS * n for n, key in enumerate(self.keys)}
        self.versions = {
            (key.secret_id, version_id): Secret("v", name=key.secret_id, arn=key.secret_id, version_id=version_id)
            for key in self.keys
            for version_id in ("old", "new", "newest")
        }
        chance = random.Random(SEED)  # noqa: S311 - a simulation
        metrics = Metrics(threading.Lock())
        for _ in range(processes):
            core: Core[None] = Core(config, metrics, chance.random, lambda: None, deque())
            process = Process(core, chance.uniform(0, DEPLOY), list(self.keys))
            self.at(process.started, self.start, process)
            self.at(REJECTED + chance.uniform(0, CONNECT_EVERY), self.rejected, process)

    def run(self) -> Fleet:
        """Let everything happen up to the end."""
        while self.events and self.events[0][0] < END:
            now, _, event, arguments = heapq.heappop(self.events)
            event(now, *arguments)
        return self.fleet

    def at(self, time: float, event: Callable[..., None], *arguments: Any) -> None:
        """Have an event happen."""
        heapq.heappush(self.events, (time, next(self.order), event, arguments))

    def start(self, now: float, process: Process) -> None:
        """Load the secrets one after the other, as a starting process does."""
        if process.missing:
            self.read(now, process, process.missing[-1])
        else:
            self.fleet.slowest_start = max(self.fleet.slowest_start, now - process.started)

    def read(self, now: float, process: Process, key: Key) -> None:
        """Read when a value is due; reads in between need no decision."""
        match process.core.read(key, now):
            case Lead(flight):
                self.fleet.waited += 0 if process.missing else self.scale
                self.send(now, process, flight, self.next_read)
            case Refresh(flight, _):
                self.send(now, process, flight, self.next_read)
            case Join():  # a rejected password's question is under way
                self.at(now + LATENCY, self.read, process, key)
            case Refuse():
                self.at(now + self.config.negative_ttl, self.read, process, key)
            case _:
                self.next_read(now, process, key)

    def next_read(self, now: float, process: Process, key: Key) -> None:
        """Read again at the deadline."""
        if process.core.peek(key) is None:
            self.read(now, process, key)
            return
        self.at(process.core.hot[key.secret_id].deadline, self.read, process, key)
        if key in process.missing:
            process.missing.remove(key)
            self.start(now, process)

    def rejected(self, now: float, process: Process) -> None:
        """Ask AWS about a rejected password: for AWSCURRENT, which has not moved yet, and then for AWSPENDING."""
        self.ask(now, process, self.keys[0])

    def ask(self, now: float, process: Process, key: Key) -> None:
        """Ask for one label."""
        step = process.core.ask(key, now, process.core.departed)
        if isinstance(step, Lead):
            self.send(now, process, step.flight, self.asked)

    def asked(self, now: float, process: Process, key: Key) -> None:
        """Go on after the answer for one label."""
        if key.stage != AWSPENDING:
            self.ask(now, process, key._replace(stage=AWSPENDING))

    def send(self, now: float, process: Process, flight: Flight[None], then: Then, tries: int = 1) -> None:
        """Send one request, which is throttled when the second's quota is used up."""
        self.fleet.requests[int(now)] += self.scale
        throttled = self.fleet.requests[int(now)] > QUOTA
        answer = self.throttled if throttled else self.land
        self.at(now + LATENCY, answer, process, flight, then, tries)

    def throttled(self, now: float, process: Process, flight: Flight[None], then: Then, tries: int) -> None:
        """Repeat the request after a pause, if the flight's deadline leaves room for it."""
        self.fleet.throttled += self.scale
        error = Throttled("Rate exceeded")
        pause = process.core.backoff(tries, FIRST_RETRY, MAX_RETRY)
        if now + pause < flight.overdue_at:
            process.core.retrying(flight, error, pause)
            self.at(now + pause, self.send, process, flight, then, tries + 1)
        else:
            process.core.failed(flight, error, now)
            then(now, process, flight.key)

    def land(self, now: float, process: Process, flight: Flight[None], then: Then, _tries: int) -> None:
        """Take in an answer."""
        key = flight.key
        version_id = "newest" if key.stage == AWSPENDING else "new" if now >= self.rotated_at[key] else "old"
        before = process.core.peek(key)
        process.core.landed(flight, self.versions[key.secret_id, version_id], now)
        process.core.events.clear()  # nobody listens
        if before is not None and process.core.peek(key) is not before:
            self.fleet.seen_after[key] = now - self.rotated_at[key]
        then(now, process, key)


def policies(*, quick: bool) -> Case:
    """Compare policies, and draw the requests per second of each."""
    processes = 200 if quick else 2_000
    fleets = {name: Simulation(config, processes).run() for name, config in POLICIES.items()}
    case = Case(
        f"a fleet: {PROCESSES:,} processes x {SECRETS} secrets",
        note=f"Simulated with the real core: {processes:,} processes, each standing for {PROCESSES // processes}; all "
        f"start within {DEPLOY:.0f} s, and load their secrets one after the other. TTL {TTL:.0f} s; secrets are "
        f"rotated one by one, and one password is rejected at {REJECTED:.0f} s. AWS throttles beyond "
        f"{QUOTA:,} requests a second.",
        file="fleet.svg",
        draw=lambda _: draw(fleets),
    )
    for name, fleet in fleets.items():
        peaks = {
            f"{name}: peak requests per second at deploy": fleet.peak(0, 60),
            f"{name}: peak at the first TTL": fleet.peak(60, 1.2 * TTL),
            f"{name}: peak while secrets are rotated": fleet.peak(1.2 * TTL, REJECTED),
            f"{name}: peak while a password is rejected": fleet.peak(REJECTED, END),
            f"{name}: requests throttled": float(fleet.throttled),
            f"{name}: requests per second on average": sum(fleet.requests.values()) / END,
            f"{name}: reads that waited for AWS after the start": float(fleet.waited),
        }
        case.add({title: [figure] for title, figure in peaks.items()}, "")
        case.add({f"{name}: slowest start of a process": [fleet.slowest_start]})
        case.add({f"{name}: from a rotation until all have the new version": [*fleet.seen_after.values()]})
    ours = fleets[DEFAULTS]
    case.goals = [
        Goal("peak at a TTL and at a rotation under the quota of 10,000/s", [ours.peak(60, END)], "", most=QUOTA),
        Goal("no read waits for AWS after the start", [float(ours.waited)], "", most=0),
        Goal("all have the new version within one TTL", [max(ours.seen_after.values())], "s", most=TTL),
    ]
    return case


def draw(fleets: dict[str, Fleet]) -> Drawing:
    """Draw requests per second, one panel for each policy."""
    drawing = Drawing(figsize=(8, 1.5 * len(fleets)), layout="constrained")
    panels = drawing.subplots(len(fleets), sharex=True, sharey=True)
    for axes, (name, fleet) in zip(panels, fleets.items(), strict=True):
        seconds = range(int(END))
        axes.fill_between(
            seconds, [fleet.requests[second] for second in seconds], step="post", color="#c8553d", rasterized=True
        )
        axes.axhline(QUOTA, color="#555555", linewidth=0.8, linestyle="--")
        axes.axvline(REJECTED, color="#8fa8bf", linewidth=0.8)
        axes.set_title(name, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds since the deploy; vertical line: a password is rejected; dashed: quota")
    panels[len(fleets) // 2].set_ylabel("requests per second")
    return drawing
