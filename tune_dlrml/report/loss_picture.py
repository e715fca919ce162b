"""One loss as a picture: its value and its slope over the margin, with the trap, the barrier and the way of descent."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune_dlrml.errors import InputError
from tune_dlrml.losses.dpo.geometry import dpo_slope, dpo_value
from tune_dlrml.losses.profile import SHOWN_Z, Profile, curve_of
from tune_dlrml.losses.registry import AnyLoss, build_loss, is_baseline
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.report.style import WIDTH, as_image, styled
from tune_dlrml.system.palette import BLACK, COLOURS, GREY, PALE, STROKE

POINTS = 401
CLOSE = 3.0
"""Half of the close-up's width, relative to the distance of the trap or the barrier from margin 0."""
HIGHEST = 2.5
"""A curve is shown up to this many times its value at margin 0, if it goes further."""
STEEPEST = 3.0
"""A slope is shown up to this many times its size at margin 0, or DPO's."""
DPI = 150
THUMB = (3.3, 1.25)
"""Width and height in inches of a picture in a table."""
_LOSS, _OTHER, _TRAP = COLOURS[0], GREY, "#F6DDCC"


@dataclass(frozen=True)
class _Drawn:
    """A loss with a curve over the margin, at one value of each of its fields."""

    loss: AnyLoss
    beta_kl: float
    geometry: Geometry


def loss_figure(seen: Profile) -> Figure:
    """The picture; a loss with a trap has a second column with a close-up of it."""
    assert seen.geometry is not None, "a loss without a reference has no curve over the margin"
    drawn = _Drawn(seen.loss, seen.beta_kl, seen.geometry)
    halves = [SHOWN_Z / seen.beta_kl]
    marks = [point for point in (seen.geometry.trap, seen.geometry.barrier) if point is not None]
    if marks:
        halves.append(CLOSE * max(abs(point.margin(seen.beta_kl)) for point in marks))
    with styled():
        figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
        grid = figure.subplots(2, len(halves), sharex="col", squeeze=False)
        for column, half in enumerate(halves):
            _draw(grid[0][column], grid[1][column], drawn, half, close=column > 0)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(_title(seen), fontsize=12, fontweight="bold", ha="left", x=0.01)
    return figure


def loss_thumb(loss: AnyLoss) -> str:
    """Value and slope beside each other in little room, as the address of an inlined SVG.

    Args:
        loss: With a reference; every field of it is one value.

    Raises:
        InputError: Its function cannot be called.
    """
    built = build_loss(loss)
    geometry = built.geometry()
    assert geometry is not None, "a loss without a reference has no curve over the margin"
    drawn = _Drawn(loss, built.beta_kl, geometry)
    with styled():
        figure = Figure(figsize=THUMB, layout="constrained")
        value, slope = figure.subplots(1, 2)
        _draw_curves(value, slope, drawn, SHOWN_Z / drawn.beta_kl)
        for axes, title in ((value, "loss"), (slope, "slope")):
            axes.set_title(title, loc="left", fontsize=7, pad=2)
            axes.tick_params(labelsize=6, pad=1.5, length=2)
            axes.locator_params(nbins=4)
            axes.set_xlim(-SHOWN_Z / drawn.beta_kl, SHOWN_Z / drawn.beta_kl)
    return as_image(figure)


def write_picture(seen: Profile, path: Path) -> None:
    """Write the picture as a PNG, whatever the path ends with.

    Raises:
        InputError: It cannot be written there.
    """
    buffer = io.BytesIO()
    with styled():
        loss_figure(seen).savefig(buffer, format="png", dpi=DPI)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(f"{path}: the picture cannot be written ({error.strerror}); give another --out") from None


def _title(seen: Profile) -> str:
    settings = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in seen.settings.items()
        if key != "numerics"
    )
    shape = None if seen.geometry is None else seen.geometry.c
    c = "" if shape is None or "c" in seen.settings else f"   (c = {shape:.4g})"
    return f"{seen.loss.name}: {settings}{c}"


def _draw_curves(value: Axes, slope: Axes, seen: _Drawn, half: float) -> float:
    """Both curves beside DPO's, and the trap; the loss at margin 0."""
    xs = [half * (2 * at / (POINTS - 1) - 1) for at in range(POINTS)]
    values, slopes = curve_of(seen.loss, xs)
    others = [(dpo_value(seen.beta_kl * x), dpo_slope(seen.beta_kl * x)) for x in xs]
    for axes, ys, dpo in (
        (value, values, [each for each, _ in others]),
        (slope, slopes, [seen.beta_kl * each for _, each in others]),
    ):
        axes.axvline(0.0, color=PALE, linewidth=0.9, zorder=1)
        if not is_baseline(seen.loss):
            axes.plot(xs, dpo, color=_OTHER, linewidth=1.2, linestyle="--", zorder=3, label="DPO of the same strength")
        axes.plot(xs, ys, color=_LOSS, linewidth=2.2, zorder=4, label=seen.loss.name)
        _shade_trap(axes, seen, half)
    slope.axhline(0.0, color=STROKE, linewidth=0.9, zorder=2)
    zero = values[POINTS // 2]
    _limit(value, [*values, *(each for each, _ in others)], bottom=min(0.0, zero), top=HIGHEST * abs(zero))
    steep = STEEPEST * max(abs(slopes[POINTS // 2]), seen.beta_kl / 2)
    _limit(slope, [*slopes, *(seen.beta_kl * each for _, each in others)], bottom=-steep, top=steep)
    return zero


def _draw(value: Axes, slope: Axes, seen: _Drawn, half: float, *, close: bool) -> None:
    zero = _draw_curves(value, slope, seen, half)
    _mark_start(value, zero, seen, half)
    _mark_trap(value, seen, close=close)
    value.set_xlim(-half, half)
    value.set_title("close to margin 0" if close else "over the whole range", loc="left")
    slope.set_xlabel("margin of the pair, nats")
    if not close:
        value.set_ylabel("loss of a pair, nats")
        slope.set_ylabel("slope, per nat of margin")


def _limit(axes: Axes, ys: Sequence[float], *, bottom: float, top: float) -> None:
    """Show all of a curve, unless it goes far beyond its size at margin 0."""
    known = [y for y in ys if math.isfinite(y)]
    low, high = max(min(known), min(bottom, -top)), min(max(known), top)
    pad = 0.12 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)


def _shade_trap(axes: Axes, seen: _Drawn, half: float) -> None:
    barrier = seen.geometry.barrier_margin(seen.beta_kl)
    if barrier is not None:
        axes.axvspan(-half, barrier, color=_TRAP, zorder=0, linewidth=0, label="pairs here are pulled into the trap")


def _mark_trap(axes: Axes, seen: _Drawn, *, close: bool) -> None:
    """Mark trap and barrier in the close-up, where there is room for both."""
    for name, point, marker, below in (
        ("trap", seen.geometry.trap, "v", True),
        ("barrier", seen.geometry.barrier, "^", False),
    ):
        if point is None or not close:
            continue
        margin = point.margin(seen.beta_kl)
        axes.plot([margin], [point.value], marker=marker, color=COLOURS[1], markersize=8, zorder=6, linestyle="none")
        axes.annotate(
            f"{name} {margin:+.3g} nats, loss {point.value:.3f}",
            (margin, point.value),
            xytext=(0, -12 if below else 10),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=9,
            zorder=7,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "#FFFFFF", "edgecolor": "none", "alpha": 0.75},
        )


def _mark_start(axes: Axes, zero: float, seen: _Drawn, half: float) -> None:
    """Mark margin 0, where every pair starts, and the direction of descent."""
    wrong = seen.geometry.starts == "wrong"
    axes.annotate(
        "",
        (half * (-0.3 if wrong else 0.3), zero),
        xytext=(0.0, zero),
        arrowprops={"arrowstyle": "-|>", "color": COLOURS[1] if wrong else COLOURS[2], "linewidth": 2},
        zorder=6,
    )
    way = "down: wrong" if wrong else "up: right"
    axes.plot(
        [0.0], [zero], marker="o", color=BLACK, markersize=6, zorder=7, linestyle="none",
        label=f"start; training moves the margin {way}",
    )  # fmt: skip
