"""Style of the report's pictures: losses differ in colour, marker and dash, also in grey and for the colour-blind.

Figures are matplotlib's own objects, without a display and without its global state.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from tune_dlrml.records import State
from tune_dlrml.report.reading import BASELINE, SearchData
from tune_dlrml.system.palette import BLACK, COLOURS, DASHES, GREEN, GRID, MARKERS, PALE, SKY, VERMILION

END_COLOURS = {
    State.COMPLETE: GREEN,
    State.PRUNED: SKY,
    State.DIVERGED: VERMILION,
    State.FAILED: BLACK,
    State.RUNNING: PALE,
    State.PAUSED: PALE,
}
END_HATCHES = {State.PRUNED: "///", State.DIVERGED: "xxx", State.FAILED: "...", State.RUNNING: "||", State.PAUSED: "--"}
WIDTH = 9.6
"""Width in inches of a picture across the page."""
LEAST_SPAN = 2.2
"""Factor from the middle of a logarithmic axis to its ends, at least."""
POINTS = 240
"""Points of a curve that a picture can show."""
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # names from files are no formulas
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "tune_dlrml",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Look:
    """Look of one loss in all pictures."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Drawing:
    """A picture with its caption, or the reason why there is none.

    Attributes:
        name: Of its file, without suffix.
        text: Caption; where there is no figure, why.
    """

    name: str
    title: str
    text: str
    figure: Figure | None = None


def looks(data: SearchData) -> dict[str, Look]:
    """How each loss looks; the baseline is black."""
    found = {BASELINE: Look(BLACK, "*", "-")} if BASELINE in data.branches else {}
    others = [branch for branch in data.branches if branch != BASELINE]
    repeats = math.lcm(len(COLOURS), len(MARKERS))
    for at, branch in enumerate(others):
        marker = MARKERS[(at + at // repeats) % len(MARKERS)]
        found[branch] = Look(COLOURS[at % len(COLOURS)], marker, DASHES[at // len(COLOURS) % len(DASHES)])
    return found


def scale_of(values: Iterable[float], *, maximize: bool) -> ScalarMappable:
    """Colours of an objective, darker for better values; the lightest is still visible on white."""
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=1.0)
    shades = [colormaps["cividis"](0.9 * at / 255) for at in range(256)]
    shades = shades[::-1] if maximize else shades
    return ScalarMappable(Normalize(low, high if high > low else low + 1e-9), ListedColormap(shades))


def shade(colours: ScalarMappable, value: float) -> str:
    """The colour of one value."""
    return to_hex(colours.to_rgba(np.asarray(value)))


def styled() -> Any:
    """The context in which pictures are drawn and saved."""
    return rc_context(_STYLE)


def panels(count: int, *, columns: int, height: float = 2.9, share_x: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of as many panels with common scales."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width = WIDTH if columns > 1 else 0.7 * WIDTH
    figure = Figure(figsize=(width, height * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False)
    flat = list(grid.flat)
    for axes in flat[count:]:
        axes.remove()
    for axes in flat[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, flat[:count]


def log_scale(axes: Axes, which: str, values: Iterable[float]) -> None:
    """A logarithmic axis with plain numbers, ticked at 1, 2 and 5 where it spans few decades."""
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)
    middle = math.sqrt(low * high)
    low, high = min(low, middle / LEAST_SPAN), max(high, middle * LEAST_SPAN)
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    pad = max((high / low) ** 0.06, 1.15)
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / pad, high * pad)
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axis.set_minor_locator(NullLocator() if decades < 2.5 else LogLocator(subs="auto"))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_steps(axes: Axes) -> None:
    """Optimizer steps along the x axis."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """About POINTS points of a curve, including its ends."""
    stride = max(1, math.ceil(len(points) / POINTS))
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def as_image(figure: Figure) -> str:
    """A figure as the address of an inlined SVG, the same for the same data."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
