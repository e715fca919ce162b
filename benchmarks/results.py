"""What benchmarks leave behind: rows of both sides against a goal, every raw repeat, a table and a plot.

A bench measures its sides in turn (`interleaved`), sums each up (`Spread`), and hands rows and raw repeats to `record`.
That writes `results/<bench>.json`, puts the rows into `results/latest.json`, and draws `results/latest.png` anew.
"""

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tune_dlrml.system.files import replace_file

Measured = TypeVar("Measured")
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "peft", "ray", "optuna")
EDGE = 10.0
"""How many times better or worse than its goal a figure may be and still have its place in the plot."""
# Two of Okabe and Ito's colours (https://jfly.uni-koeln.de/color/); the markers differ, too, for print without colour.
_MET, _MISSED = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Row:
    """One figure: what this project takes, what the other side takes, and their ratio against its goal.

    Attributes:
        name: The figure's, unique over all benches.
        ours: This project's number, in `unit`.
        other: The other side's number, in `unit`.
        ratio: The number that the goal is about.
        goal: What the ratio must reach.
        better: Whether a higher or a lower ratio is better.
        met: Whether the ratio reaches the goal.
        unit: Of `ours` and `other`.
    """

    name: str
    ours: float
    other: float
    ratio: float
    goal: float
    better: Literal["higher", "lower"]
    met: bool
    unit: str

    @classmethod
    def judged(
        cls,
        name: str,
        *,
        ours: float,
        other: float,
        goal: float,
        unit: str,
        ratio: float | None = None,
        better: Literal["higher", "lower"] = "higher",
    ) -> Self:
        """A row; its ratio, unless given, is other by ours where a higher one is better, and ours by other if not.

        Raises:
            ValueError: A number is not finite.
        """
        if ratio is None:
            over, under = (other, ours) if better == "higher" else (ours, other)
            ratio = over / under if under else math.inf
        for key, value in {"ours": ours, "other": other, "ratio": ratio, "goal": goal}.items():
            if not math.isfinite(value):
                raise ValueError(f"the numbers of a row must be finite, but {key} of {name} is {value}")
        met = ratio >= goal if better == "higher" else ratio <= goal
        return cls(name, float(ours), float(other), float(ratio), float(goal), better, bool(met), unit)

    @property
    def times_goal(self) -> float:
        """How many times better than its goal the ratio is; below 1 it misses the goal."""
        good, bad = (self.ratio, self.goal) if self.better == "higher" else (self.goal, self.ratio)
        return good / bad if bad else math.inf


@dataclass(frozen=True)
class Spread:
    """The middle of repeated measurements and how far they lie apart."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Median, and the quartiles around it; the extremes where there are fewer than four values."""
        ordered = sorted(values)
        if not ordered:
            raise ValueError("at least one measurement is needed, but got none")
        if len(ordered) < 4:
            low, high = ordered[0], ordered[-1]
        else:
            low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(statistics.median(ordered), low, high, len(ordered))

    def __str__(self) -> str:
        if self.repeats == 1:
            return f"{self.median:.4g} (one measurement)"
        kind = "extremes" if self.repeats < 4 else "quartiles"
        return f"{self.median:.4g} ({kind} {self.low:.4g} to {self.high:.4g} of {self.repeats})"


def interleaved(sides: Mapping[str, Callable[[int], Measured]], repeats: int) -> dict[str, list[Measured]]:
    """What each side gives in each repeat, all sides measured in every repeat.

    The order turns round from one repeat to the next, so that a machine that gets slower favours no side.

    Args:
        sides: By name, what measures a side once, given the number of the repeat.
        repeats: How often.
    """
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):
            found[name].append(sides[name](repeat))
    return found


def header(*, dtype: str, threads: int | None = None) -> dict[str, Any]:
    """What numbers rest on beside the code: versions, threads, precision, machine, its load by others, date.

    Args:
        dtype: Precision in which the models compute.
        threads: That one training process has; all CPUs of this process if None.
    """
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "dtype": dtype,
        "threads": threads or cpus(),
        "cpu": cpu_name(),
        "cpus": cpus(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """The processor's, as Linux calls it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(
    bench: str, rows: Sequence[Row], raw: Any, *, measured_on: Mapping[str, Any], folder: Path = RESULTS
) -> None:
    """Keep what a bench found, and show it.

    Args:
        bench: The bench's name, and that of its file.
        rows: Its figures; they replace rows of the same names, and no others.
        raw: Every repeat of every side, as JSON can hold it.
        measured_on: From `header`, made before the measurements.
        folder: Where results are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {"bench": bench, "header": dict(measured_on), "rows": [asdict(row) for row in rows], "raw": raw}
    replace_file(folder / f"{bench}.json", json.dumps(document, indent=2))
    merged = merge(latest(folder), rows)
    replace_file(folder / "latest.json", json.dumps([asdict(row) for row in merged], indent=2))
    plot(merged).savefig(folder / "latest.png", dpi=150)
    show(rows, measured_on)


def latest(folder: Path = RESULTS) -> list[Row]:
    """The newest row of every figure; none before the first bench."""
    path = folder / "latest.json"
    return [Row(**document) for document in json.loads(path.read_text())] if path.exists() else []


def merge(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows with those of the same name replaced in their places, and the other new ones behind them."""
    fresh = {row.name: row for row in new}
    kept = [fresh.pop(row.name, row) for row in old]
    return [*kept, *fresh.values()]


def show(rows: Sequence[Row], measured_on: Mapping[str, Any] | None = None) -> None:
    """Print rows as a table, below what they were measured on."""
    console = Console(width=None if os.isatty(1) else 120)
    if measured_on is not None:
        console.print(in_words(measured_on), highlight=False, soft_wrap=True)
    table = Table()
    for column in ("figure", "unit"):
        table.add_column(column)
    for column in ("ours", "other", "ratio", "goal"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for row in rows:
        numbers = (f"{value:.4g}" for value in (row.ours, row.other, row.ratio))
        table.add_row(row.name, row.unit, *numbers, goal_in_words(row), "yes" if row.met else "[bold]NO[/bold]")
    console.print(table)


def in_words(measured_on: Mapping[str, Any]) -> str:
    """A header on one line."""
    versions = ", ".join(f"{name} {version}" for name, version in measured_on["versions"].items())
    return (
        f"{versions}, Python {measured_on['python']}; {measured_on['dtype']}, {measured_on['threads']} threads; "
        f"{measured_on['cpu']}, {measured_on['cpus']} CPUs, load {measured_on['load']} before; {measured_on['date']}"
    )


def goal_in_words(row: Row) -> str:
    """What the ratio must be."""
    return f"{'>=' if row.better == 'higher' else '<='} {row.goal:.4g}"


def plot(rows: Sequence[Row]) -> Figure:
    """Each figure's distance from its goal on a logarithmic axis, better to the right; an arrow where it leaves it."""
    figure = Figure(figsize=(8, 1.6 + 0.34 * max(len(rows), 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="0.2", linewidth=1.2)
    for place, row in enumerate(rows):
        times = min(max(row.times_goal, 1 / EDGE), EDGE)
        beyond = {EDGE: ">", 1 / EDGE: "<"}.get(times)
        colour = _MET if row.met else _MISSED
        axes.plot([1, times], [place, place], color=colour, linewidth=1.6, linestyle="-" if row.met else "--")
        axes.plot(
            times,
            place,
            marker=beyond or ("o" if row.met else "s"),
            color=colour,
            markerfacecolor=colour if row.met else "white",
            markersize=7,
            markeredgewidth=1.6,
            clip_on=False,
        )
    axes.set_xscale("log")
    axes.set_xlim(1 / EDGE, EDGE)
    ticks = [1 / EDGE, 0.2, 0.5, 1, 2, 5, EDGE]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times better than the goal (filled: met; hollow and dashed: missed; arrow: beyond the axis)")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.grid(axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    beside = axes.secondary_yaxis("right")
    labels = [f"{row.ratio:.3g}  (goal {goal_in_words(row)})" for row in rows]
    beside.set_yticks(range(len(rows)), labels, parse_math=False)
    beside.tick_params(length=0, pad=10)
    beside.spines["right"].set_visible(False)
    return figure
