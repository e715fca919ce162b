"""Pictures of scores, drawn on matplotlib figures of their own, so that no display and no global state is involved."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_dlrml.system.palette import BLACK, COLOURS, DASHES, MARKERS

_COLOURS = (*COLOURS, BLACK)
_WIDTH = 80  # characters that fit the figure
LOWEST, HIGHEST = 1, 10


def radar(scores: Mapping[str, Mapping[str, float | None]], *, judge: str) -> Figure:
    """Mean ratings by category, one closed line per model and one axis per category from 1 to 10.

    Lines differ in colour, dash and marker, so they are distinguishable in grey as well. A missing score breaks the
    line.

    Args:
        scores: By model, as it is called in the legend, and category; axes have the order in which categories appear.
        judge: Whose ratings they are; it stands in the title.
    """
    categories = list(dict.fromkeys(name for means in scores.values() for name in means))
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.add_subplot(projection="polar", theta_offset=math.pi / 2, theta_direction=-1)
    angles = [2 * math.pi * at / max(len(categories), 1) for at in range(len(categories))]
    lines = []
    for number, means in enumerate(scores.values()):
        radii = [math.nan if (mean := means.get(name)) is None else mean for name in categories]
        lines += axes.plot(
            [*angles, *angles[:1]],
            [*radii, *radii[:1]],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
            linewidth=1.8,
            markersize=5,
            clip_on=False,
        )
    _mark_axes(axes, categories, angles)
    scale = f"from {LOWEST} in the centre to {HIGHEST} on the rim"
    axes.set_title(
        f"Mean rating by category, {scale}\n{textwrap.fill(f'Judge: {judge}', _WIDTH)}",
        parse_math=False,
        pad=24,
        fontsize=11,
    )
    _name_lines(figure, lines, list(scores))
    return figure


def _mark_axes(axes: Any, categories: Sequence[str], angles: Sequence[float]) -> None:
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_yticks(range(LOWEST + 1, HIGHEST + 1))  # there is no room for a number in the centre; the title has it
    # Half-way between the first two axes, the numbers cross no line of the grid.
    axes.set_rlabel_position(math.degrees(angles[1]) / 2 if len(angles) > 1 else 90)
    axes.tick_params(axis="y", labelsize=8, labelcolor="0.3")
    for label in axes.get_yticklabels():
        label.set(zorder=3, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8})
    axes.grid(color="0.85", linewidth=0.8)
    axes.spines["polar"].set_color("0.6")
    axes.set_xticks(angles, categories, parse_math=False)
    axes.tick_params(axis="x", pad=8)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        # The text grows outwards: to the right on the right half of the circle, to the left on the left half.
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 1e-6 else "left" if side > 0 else "right")


def _name_lines(figure: Figure, lines: Sequence[Line2D], labels: Sequence[str]) -> None:
    if not lines:
        return
    columns = max(1, min(3, _WIDTH // (max(map(len, labels)) + 8)))
    legend = figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
