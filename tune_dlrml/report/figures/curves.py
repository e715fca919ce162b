"""Curves over the optimizer steps: held-out objective, margin of the training pairs, learnt parameters."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_dlrml.losses.lrml.geometry import MONOTONE_C, WRONG_START_C
from tune_dlrml.metrics import METRICS, find_metric
from tune_dlrml.records import State
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.report.style import WIDTH, Drawing, log_scale, looks, panels, styled, thinned, whole_steps
from tune_dlrml.system.palette import BLACK, DASHES, GREY, GRID, STROKE, VERMILION

C_LINES = ((1.0, "c = 1"), (MONOTONE_C, "c = 9.11"), (WRONG_START_C, "c = 9.78"))
"""Where the slope gets bounded, the trap appears, and the start turns uphill."""
_ENDS = {
    State.DIVERGED: ("X", VERMILION, "diverged"),
    State.PRUNED: ("o", "white", "pruned"),
    State.FAILED: ("P", BLACK, "failed"),
    State.COMPLETE: ("o", BLACK, "complete"),
}
_SIZES = {"o": 5.5, "X": 9, "P": 8.5}
LINEAR_TO = 5.0
"""Nats of margin up to which its axis is linear; beyond it is logarithmic on both sides of ±1."""
MOST_NUMBERED = 8
"""Number of trials with a learnt parameter up to which all show their number."""
LEAST_SMOOTHED = 10
"""Least number of reports in the average at each point of a training curve: a single batch is too noisy."""


_Curves = dict[int, list[tuple[float, float]]]
"""Values over the steps of each trial."""
MANY = 12
"""Losses above which their panels are half as wide, so that a picture still fits a screen."""


def columns(count: int) -> int:
    """Panels in a row."""
    return 2 if count in (2, 4) else 3 if count <= MANY else 6


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    return panels(count, columns=columns(count), height=2.9 if count <= MANY else 1.9)


def held_out_curves(data: SearchData) -> Drawing:
    """The objective where it was measured, one panel per loss."""
    metric = METRICS[data.metric]
    title = f"Learning curves: {metric.words} by loss"
    curves = {trial.number: _evaluated(trial, data.metric) for trial in data.trials}
    if not any(len(points) > 1 for points in curves.values()):
        return Drawing("learning_curves", title, "No trial has been evaluated after its start yet.")
    with styled():
        figure, _ = _by_loss(data, curves, metric.untrained, f"{metric.words},\n{metric.unit}")
    text = (
        "Each line is a trial, measured at every rung and at the full budget; the best complete one is drawn bold, and "
        "the grey lines are the trials of the other losses. The mark at its end shows how the trial ended; a diverged "
        "trial has no held-out value at its last step, so its mark is at the last measurement."
    )
    return Drawing("learning_curves", title, text, figure)


def training_curves(data: SearchData) -> Drawing:
    """The mean margin of the training pairs, one panel per loss."""
    title = "Learning curves: margin of the training pairs by loss"
    curves = {trial.number: _smooth(_series(trial, "train_margin")) for trial in data.trials}
    if not any(curves.values()):
        return Drawing("training_margin", title, "No trial has reported a training step yet.")
    far = max(abs(margin) for points in curves.values() for _, margin in points) > LINEAR_TO
    with styled():
        figure, grid = _by_loss(data, curves, 0.0, "mean margin, nats" + ("\n(linear to ±1)" if far else ""))
        for axes in grid if far else ():
            axes.set_yscale("symlog", linthresh=1.0)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    text = (
        "Margin (policy against reference, chosen minus rejected), averaged over the last ten reports, or a "
        "twentieth of them if that is more. A curve that settles a little below 0 is in the trap of its loss; one that "
        "falls goes the wrong way. The values of different losses are not comparable, so they are not shown."
    )
    return Drawing("training_margin", title, text, figure)


def learnt_parameters(data: SearchData) -> Drawing:
    """Parameters learnt beside the policy over the steps: c and beta_mix, or a parameter of a user's own loss."""
    title = "Parameters learnt beside the policy"
    curves: dict[str, list[TrialData]] = {}
    for trial in data.trials:
        for metric in trial.learnt:
            if len(_series(trial, metric)) > 1:
                curves.setdefault(metric, []).append(trial)
    if not curves:
        reason = (
            "No trial of this search learns a parameter of its loss beside the policy, or none has reported it yet."
        )
        return Drawing("learned_parameters", title, reason)
    with styled():
        figure = Figure(figsize=(WIDTH, 3.8 * math.ceil(len(curves) / 2)), layout="constrained")
        grid = figure.subplots(math.ceil(len(curves) / 2), 2, squeeze=False)
        for axes, (metric, trials) in zip(grid.flat, curves.items(), strict=False):
            _draw_learnt(axes, trials, metric, data)
        for axes in grid.flat[len(curves) :]:
            axes.remove()
    text = (
        "Numbers are those of the trials, or of the complete ones if there are many; the best trial of the search is "
        "drawn bold."
    )
    if "c" in curves:
        text = (
            "Descent lowers beta_mix on pairs ranked right and raises it on pairs ranked wrong. Between c = 1 and "
            "c = 9.11 the loss is monotone with a bounded slope; above 9.78 training starts uphill. "
        ) + text
    return Drawing("learned_parameters", title, text, figure)


def _draw_learnt(axes: Axes, trials: Sequence[TrialData], metric: str, data: SearchData) -> None:
    style, best = looks(data), data.best
    few = len(trials) <= MOST_NUMBERED
    for at, trial in enumerate(trials):
        points = thinned(_series(trial, metric))
        look = style[trial.branch]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=look.colour,
            linestyle=DASHES[at % len(DASHES)],
            linewidth=2.4 if trial.number == best else 1.2,
        )
        if few or trial.state is State.COMPLETE:
            axes.annotate(
                f"{trial.number}", points[-1], xytext=(3, 0), textcoords="offset points", fontsize=8, va="center"
            )
    values = [value for trial in trials for _, value in _series(trial, metric)]
    if metric == "c":
        _draw_c_lines(axes)
    elif min(values) > 0 and max(values) > 5 * min(values):
        log_scale(axes, "y", values)
    axes.set_xlabel("optimizer step")
    known = find_metric(metric)
    axes.set_ylabel(metric if known is None else f"{known.words}, {known.unit}")
    whole_steps(axes)


def _draw_c_lines(axes: Axes) -> None:
    for c, name in C_LINES:
        axes.axhline(c, color=STROKE, linewidth=0.9, linestyle="--")
        axes.annotate(
            name,
            (1, c),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom" if c != MONOTONE_C else "top",
            fontsize=8,
        )


def _by_loss(data: SearchData, curves: _Curves, level: float | None, label: str) -> tuple[Figure, list[Axes]]:
    """A panel per loss, with the level that a trial begins at where there is one."""
    figure, grid = _panels(len(data.branches))
    for axes, branch in zip(grid, data.branches, strict=True):
        _draw_panel(axes, data, branch, curves)
        if level is not None:
            axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    _label(grid, label)
    figure.legend(handles=_end_handles(data.trials), loc="outside lower center", ncols=5)
    return figure, grid


def _draw_panel(axes: Axes, data: SearchData, branch: str, curves: _Curves) -> None:
    """The trials of one loss over those of the others."""
    own = data.of(branch)
    look = looks(data)[branch]
    for trial in data.trials:
        if trial.branch != branch:
            axes.plot(*_columns(curves[trial.number]), color=GRID, linewidth=0.7, zorder=1)
    for trial in own:
        points = thinned(curves[trial.number])
        best = trial.number == data.best
        axes.plot(*_columns(points), color=look.colour, linewidth=2.6 if best else 1.1, alpha=0.95, zorder=3)
        if points and trial.state in _ENDS:
            marker, colour, _ = _ENDS[trial.state]
            edge, size = _edge(colour), _SIZES[marker]
            axes.plot(*points[-1], marker=marker, color=colour, markersize=size, markeredgecolor=edge, zorder=4)
    axes.set_title(_title(data, branch, own), loc="left")
    whole_steps(axes)


def _title(data: SearchData, branch: str, own: Sequence[TrialData]) -> str:
    """The loss with its number of trials, and which is drawn bold where the panel is wide enough."""
    if len(data.branches) > MANY:
        return f"{branch} ({len(own)})"
    bold = f", bold: trial {data.best}" if any(trial.number == data.best for trial in own) else ""
    return f"{branch} ({len(own)} {'trial' if len(own) == 1 else 'trials'}{bold})"


def _edge(colour: str) -> str:
    return BLACK if colour == "white" else "white"


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _label(grid: Sequence[Axes], y_label: str) -> None:
    for at, axes in enumerate(grid):
        if at % columns(len(grid)) == 0:
            axes.set_ylabel(y_label)
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("optimizer step")


def _end_handles(trials: Sequence[TrialData]) -> list[Line2D]:
    """Legend of the marks at the ends of the lines."""
    return [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markeredgecolor=_edge(colour),
               markersize=_SIZES[marker], label=name)
        for state, (marker, colour, name) in _ENDS.items()
        if any(trial.state is state for trial in trials)
    ]  # fmt: skip


def _evaluated(trial: TrialData, metric: str) -> list[tuple[float, float]]:
    return [(r.step, r.metrics[metric]) for r in trial.reports if r.evaluated and metric in r.metrics]


def _series(trial: TrialData, metric: str) -> list[tuple[float, float]]:
    return [(report.step, report.metrics[metric]) for report in trial.reports if metric in report.metrics]


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over the last part of the curve at each point."""
    width = max(LEAST_SMOOTHED, len(points) // 20)
    sums, total = [], 0.0
    for at, (step, value) in enumerate(points):
        total += value - (points[at - width][1] if at >= width else 0.0)
        sums.append((step, total / min(at + 1, width)))
    return sums
