"""What a case found: figures, goals, and how they are written down."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import pyperf
from matplotlib.figure import Figure as Drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

RESULTS = Path(__file__).parent / "results"
Unit: TypeAlias = Literal["s", "B", "x", ""]
BAR = "#8fa8bf"
OURS = "#c8553d"


@dataclass(frozen=True)
class Figure:
    """One thing measured several times; its median and its spread (median absolute deviation) are what counts."""

    name: str
    samples: Sequence[float]
    unit: Unit = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        return statistics.median(abs(sample - self.median) for sample in self.samples)

    def __str__(self) -> str:
        spread = f" ± {pretty(self.spread, self.unit)}" if self.spread else ""
        return pretty(self.median, self.unit) + spread


@dataclass(frozen=True)
class Goal:
    """A promise, and the samples that keep it or do not."""

    text: str
    samples: Sequence[float]
    unit: Unit = "x"
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def figure(self) -> Figure:
        return Figure(self.text, self.samples, self.unit)

    @property
    def met(self) -> bool:
        return self.least <= self.figure.median <= self.most


@dataclass
class Case:
    """All about one case."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""
    file: str = ""  # of its plot
    draw: Callable[[Case], Drawing] | None = None

    def add(self, samples: dict[str, list[float]], unit: Unit = "s") -> None:
        """Add the figures of several contenders, measured in turns."""
        self.figures += [Figure(name, values, unit) for name, values in samples.items()]


def ratios(these: Iterable[float], those: Iterable[float]) -> list[float]:
    """Return these divided by those, round by round: what slows a machine down for a while is in both."""
    return [this / that for this, that in zip(these, those, strict=True)]


def pretty(value: float, unit: Unit) -> str:
    """Return a figure with three digits and a unit of a handy size."""
    if unit == "s":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value * 1e9:.3g} ns"
    if unit == "x":
        return f"{value:.0f} x" if value >= 100 else f"{value:.3g} x"  # noqa: PLR2004 - three digits
    return f"{value:,.0f}{' bytes' if unit == 'B' else ''}"


def markdown(cases: Sequence[Case]) -> str:
    """Return the table of goals, and below it everything that was measured."""
    machine = (
        f"CPython {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    )
    lines = [
        "# Benchmarks",
        "",
        f"{machine}. Medians ± median absolute deviation. Contenders took turns in the same run, and ratios are of the",
        "same turn. `benchmarks/run.py` makes this file.",
        "",
        "| case | goal | figure | met |",
        "|---|---|---|---|",
    ]
    lines += [f"| {c.title} | {g.text} | {g.figure} | {'yes' if g.met else '**no**'} |" for c in cases for g in c.goals]
    for case in cases:
        lines += ["", f"## {case.title}", "", *([case.note, ""] if case.note else []), "| | |", "|---|---|"]
        lines += [f"| {figure.name} | {figure} |" for figure in case.figures]
    return "\n".join(lines) + "\n"


def write(cases: Sequence[Case]) -> None:
    """Write the table, a plot per case, and all samples in the format of pyperf, for `pyperf stats` and others."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.md").write_text(markdown(cases))
    units: dict[Unit, str] = {"s": "second", "B": "byte"}
    # Of pyperf: the format and its tools. Its runner takes one benchmark to its end before the next.
    suite = [
        pyperf.Benchmark(
            [
                pyperf.Run(
                    figure.samples,
                    metadata={"name": f"{case.title}: {figure.name}", "unit": units[figure.unit]},
                    collect_metadata=False,
                )
            ]
        )
        for case in cases
        for figure in case.figures
        if figure.unit in units and min(figure.samples) > 0
    ]
    pyperf.BenchmarkSuite(suite).dump(str(RESULTS / "results.json"), replace=True)
    for case in cases:
        if case.draw is not None:
            case.draw(case).savefig(RESULTS / case.file, metadata={"Date": None})


def bars(case: Case) -> Drawing:
    """Draw the figures of a case beside each other, on a logarithmic scale."""
    figures = [figure for figure in case.figures if figure.median > 0][::-1]
    drawing = Drawing(figsize=(8, 0.6 + 0.35 * len(figures)), layout="constrained")
    axes = drawing.subplots()
    drawn = axes.barh(
        [figure.name for figure in figures],
        [figure.median for figure in figures],
        xerr=[figure.spread for figure in figures],
        color=[OURS if figure.name.startswith("smcache") else BAR for figure in figures],
    )
    axes.bar_label(drawn, [f" {pretty(figure.median, figure.unit)}" for figure in figures])
    axes.set_xscale("log")
    axes.margins(x=0.3)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(case.title, loc="left")
    return drawing
