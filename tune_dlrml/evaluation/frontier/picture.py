"""The reward-KL frontier as a picture that reads well in print, in grey and without red-green vision."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from tune_dlrml.evaluation.frontier.points import FrontierPoint, Position
from tune_dlrml.pareto import pareto_front
from tune_dlrml.system.palette import BLACK, COLOURS, GREY, GRID, MARKERS


@dataclass(frozen=True)
class Setting:
    """What the policies of one mark in the picture were trained with.

    Attributes:
        label: Such as the loss; decides colour and marker.
        note: Distinguishes it from others of its label, such as `β 0.1`; written beside it.
    """

    label: str
    note: str = ""


class _Style(NamedTuple):
    """Of one label; `note_at` is the place of a note beside its mark, in points."""

    colour: str
    marker: str
    note_at: tuple[float, float]


def frontier(points: Mapping[Setting, Sequence[FrontierPoint]], *, reward: str) -> Figure:
    """Reward against KL, one mark a setting, with the Pareto front of the marks.

    A setting's mark lies at the mean of its policies, which differ in their seed. Every policy has its own 95 %
    intervals over prompts as bars; where a setting has several, each is a small point of its own. The front is a
    staircase: the reward that is to be had at no more than a KL.

    Args:
        points: Policies of each setting, at least one.
        reward: What the reward is, with its unit or range.
    """
    figure = Figure(figsize=(7.2, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    means = {setting: mean_position(policies) for setting, policies in points.items()}
    labels = list(dict.fromkeys(setting.label for setting in points))
    _draw_front(axes, list(means.values()))
    for label, style in zip(labels, _styles(), strict=False):
        settings = [setting for setting in points if setting.label == label]
        _draw_marks(axes, [means[setting] for setting in settings], label, style)
        for setting in settings:
            _draw_policies(axes, points[setting], style)
            _write_note(axes, setting.note, means[setting], style)
    _scale_kl(axes, max(policy.kl.interval[1] for policies in points.values() for policy in policies))
    _finish(axes, reward, several=any(len(policies) > 1 for policies in points.values()))
    return figure


def mean_position(policies: Sequence[FrontierPoint]) -> Position:
    """Where the policies of a setting lie on average."""
    rewards, kls = zip(*(policy.position for policy in policies), strict=True)
    return Position(math.fsum(rewards) / len(rewards), math.fsum(kls) / len(kls))


def _styles() -> Iterator[_Style]:
    """Colour, marker and place of the notes by label; colours, markers and places repeat after 7, 9 and 4."""
    places = ((6, 5), (6, -13), (-6, 5), (-6, -13))
    return (_Style(*style) for style in zip(cycle((*COLOURS, BLACK)), cycle(MARKERS), cycle(places), strict=False))


def _draw_front(axes: Axes, means: Sequence[Position]) -> None:
    front = [means[index] for index in pareto_front([(mean.kl, mean.reward) for mean in means])]
    axes.plot(
        [place.kl for place in front],
        [place.reward for place in front],
        color=GREY,
        linestyle="--",
        linewidth=1.2,
        drawstyle="steps-post",
        label="Pareto front",
        zorder=2,
    )


def _draw_marks(axes: Axes, places: Sequence[Position], label: str, style: _Style) -> None:
    axes.plot(
        [place.kl for place in places],
        [place.reward for place in places],
        color=style.colour,
        marker=style.marker,
        linestyle="none",
        markersize=8,
        markeredgecolor="white",
        label=label,
        zorder=4,
    )


def _draw_policies(axes: Axes, policies: Sequence[FrontierPoint], style: _Style) -> None:
    alone = len(policies) == 1
    for policy in policies:
        reward, kl = policy.reward, policy.kl
        axes.errorbar(
            kl.mean,
            reward.mean,
            xerr=[[kl.mean - kl.interval[0]], [kl.interval[1] - kl.mean]],
            yerr=[[reward.mean - reward.interval[0]], [reward.interval[1] - reward.mean]],
            color=style.colour,
            marker=style.marker,
            markersize=0 if alone else 3.5,
            elinewidth=1.2 if alone else 0.8,
            alpha=0.9 if alone else 0.4,
            zorder=3,
        )


def _write_note(axes: Axes, note: str, place: Position, style: _Style) -> None:
    axes.annotate(
        note,
        (place.kl, place.reward),
        xytext=style.note_at,
        textcoords="offset points",
        horizontalalignment="left" if style.note_at[0] > 0 else "right",
        fontsize=8,
        color=style.colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=3.5,  # its white border hides no mark
    )


def _scale_kl(axes: Axes, largest: float) -> None:
    """KL on a square-root scale, which spreads nearly untrained and distant policies evenly."""
    largest = largest or 1.0
    axes.set_xscale(
        "function", functions=(lambda kl: np.sign(kl) * np.sqrt(np.abs(kl)), lambda root: np.sign(root) * root**2)
    )
    # A mark at 0 is as wide as a 40th of the axis.
    axes.set_xlim(-largest / 40**2, largest * 1.08)
    decade = math.floor(math.log10(largest))
    ticks = [step * 10.0**power for power in range(decade - 1, decade + 1) for step in (1, 2, 5)]
    axes.set_xticks([0, *(tick for tick in ticks if largest / 60 < tick <= largest)])
    axes.xaxis.set_major_formatter("{x:g}")


def _finish(axes: Axes, reward: str, *, several: bool) -> None:
    """Names of the axes, legend and what the bars are."""
    axes.set_xlabel("KL(policy || reference) of a completion, nats (square-root scale)")
    axes.set_ylabel(f"reward of a completion\n{reward}")
    seeds = "small: one seed; large: mean over seeds; " if several else ""
    axes.set_title(f"Reward against divergence\n{seeds}bars: 95 % over prompts", fontsize=10)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="best")
