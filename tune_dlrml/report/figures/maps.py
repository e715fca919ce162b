"""Trials as points: over strength and mixing, and between objective and divergence."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_dlrml.losses.lrml.geometry import MONOTONE_C
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.pareto import pareto_front
from tune_dlrml.records import State
from tune_dlrml.report.figures.curves import C_LINES
from tune_dlrml.report.ranking import Z
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.report.style import WIDTH, Drawing, log_scale, looks, scale_of, shade, styled
from tune_dlrml.system.palette import BLACK, GREY, PALE, STROKE, VERMILION

MOST_NUMBERED = 25
"""Number of trials up to which all marks show their number; beyond it only complete trials do, or only the best."""
_PALE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
_FATES = {"sound": "o", "trapped": "v", "diverged": "X", "failed": "P"}


def stability_map(data: SearchData) -> Drawing:
    """beta_kl against beta_mix, with the end of each trial and its accuracy."""
    title = "Stability map: beta_kl against beta_mix"
    mixed = [trial for trial in data.trials if trial.shape is not None and (trial.shape.c or 0) > 0]
    lost = sum(trial.shape is not None and trial.shape.c is not None and trial.shape.c <= 0 for trial in data.trials)
    plain = [trial for trial in data.trials if trial.shape is not None and trial.shape.c is None]
    if not mixed:
        return Drawing("stability_map", title, "No trial of this search has a loss with mixing, so there is no map.")
    with styled():
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
        branches = [branch for branch in data.branches if any(trial.branch == branch for trial in plain)]
        widths = [0.16 + 0.07 * len(branches), 1] if branches else [0.001, 1]
        strip, axes = figure.subplots(1, 2, sharey=True, width_ratios=widths)
        values = [trial.last[data.metric] for trial in data.trials if data.metric in trial.last]
        colours = scale_of(values, maximize=data.maximize)
        log_scale(axes, "y", [trial.shape.beta_kl for trial in [*mixed, *plain] if trial.shape is not None])
        _draw_map(axes, data, mixed, colours)
        _draw_strip(strip, branches, plain, data, colours)
        strip.set_ylabel("beta_kl (beta of losses without mixing), per nat")
        if not branches:
            strip.remove()
            axes.set_ylabel("beta_kl, per nat")
            axes.tick_params(labelleft=True)  # a shared axis is labelled on the outermost picture alone
        bar = figure.colorbar(colours, ax=axes, pad=0.02)
        bar.set_label(f"{METRICS[data.metric].words} at the last evaluation")
        figure.legend(handles=_fates(data.trials), loc="outside lower center", ncols=6)
    text = (
        f"beta_mix is c · tau · beta_kl with tau = {data.tau:g}, which also places losses given by c and learnt ones "
        "(at their last c; a thin line leads back to their start). DiscoPOP has beta_mix = beta. Right of the line "
        "c = 9.11 the loss has a trap, right of c = 9.78 training starts uphill, left of c = 1 the slope is not "
        "bounded. Trapped: more than half of the held-out pairs below the barrier at the last evaluation. Small marks "
        "were pruned; white ones have no value. Where there are many trials, only the complete ones or the best show "
        "their numbers."
    )
    text += f" {lost} trials whose learnt c ended at 0 or below are not on the map." if lost else ""
    return Drawing("stability_map", title, text, figure)


def _fate(trial: TrialData) -> str:
    if trial.state in (State.DIVERGED, State.FAILED):
        return str(trial.state)
    return "trapped" if trial.trapped else "sound"


def _draw_map(axes: Axes, data: SearchData, trials: Sequence[TrialData], colours: ScalarMappable) -> None:
    places = [_place(trial, data.tau) for trial in trials]
    log_scale(axes, "x", [x for x, _ in places])
    for trial, (x, y) in zip(trials, places, strict=True):
        shape = trial.shape
        assert shape is not None
        if shape.c_start is not None and shape.c != shape.c_start:
            axes.plot([shape.c_start * data.tau * y, x], [y, y], color=STROKE, linewidth=0.9, zorder=2)
        _mark(axes, x, y, trial, data, colours)
    for c, name in C_LINES:
        _draw_c_line(axes, c, name, data.tau, above=c != MONOTONE_C)
    for c in _c_of_one_beta(trials):
        _draw_c_line(axes, c, "", data.tau, dashes=(1, 2))
    axes.set_xlabel(f"beta_mix = c · tau · beta_kl\n(tau {data.tau:g}), per nat")


def _c_of_one_beta(trials: Sequence[TrialData]) -> list[float]:
    """The c that all trials with beta_mix = beta share; empty where they do not share one."""
    shapes = [t.shape for t in trials if t.row.spec is not None and t.row.spec.loss.one_beta]
    found = {shape.c for shape in shapes if shape is not None and shape.c is not None}
    return [*found] if len(found) == 1 else []


def _draw_c_line(
    axes: Axes, c: float, name: str, tau: float, *, above: bool = True, dashes: tuple[int, int] = (4, 3)
) -> None:
    """The line of one c, labelled where it leaves the map at the top or on the right."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.plot([left, right], [left / (c * tau), right / (c * tau)], color=STROKE, linewidth=0.9, dashes=dashes)
    at_top = c * tau * top
    if left < at_top <= right:
        _write(
            axes, name, (at_top, 1), ("data", "axes fraction"), (2 if above else -2, 3), "left" if above else "right"
        )
    elif bottom < (at_right := right / (c * tau)) < top:
        _write(axes, name, (1, at_right), ("axes fraction", "data"), (-3, -24 if above else 3), "right")


def _write(
    axes: Axes, text: str, at: tuple[float, float], system: tuple[str, str], shift: tuple[int, int], side: str
) -> None:
    axes.annotate(text, at, xycoords=system, xytext=shift, textcoords="offset points", ha=side, fontsize=8, bbox=_PALE)


def _place(trial: TrialData, tau: float) -> tuple[float, float]:
    shape = trial.shape
    assert shape is not None and shape.c is not None
    return shape.c * tau * shape.beta_kl, shape.beta_kl


def _mark(axes: Axes, x: float, y: float, trial: TrialData, data: SearchData, colours: ScalarMappable) -> None:
    value = trial.last.get(data.metric)
    fate = _fate(trial)
    axes.plot(
        x,
        y,
        marker=_FATES[fate],
        linestyle="none",
        markersize=6.5 if trial.state in (State.PRUNED, State.PAUSED) else 10,
        markerfacecolor="white" if value is None else shade(colours, value),
        markeredgecolor=VERMILION if fate == "diverged" else BLACK,
        markeredgewidth=1.4 if fate == "diverged" else 0.8,
        zorder=4,
    )
    if trial.number in _numbered(data.trials, data.best):
        axes.annotate(f"{trial.number}", (x, y), xytext=(7, 3), textcoords="offset points", fontsize=8)


def _numbered(trials: Sequence[TrialData], *chosen: int | None) -> set[int | None]:
    """Trials whose marks show their number, few enough not to hide each other."""
    complete = [trial for trial in trials if trial.state is State.COMPLETE]
    for some in (trials, complete):
        if len(some) <= MOST_NUMBERED:
            return {trial.number for trial in some} | {*chosen}
    return {*chosen}


def _draw_strip(
    axes: Axes, branches: Sequence[str], trials: Sequence[TrialData], data: SearchData, colours: ScalarMappable
) -> None:
    """Losses without mixing by their strength, each in a column."""
    for trial in trials:
        _mark(axes, branches.index(trial.branch), trial.shape.beta_kl if trial.shape else 1.0, trial, data, colours)
    axes.set_xticks(range(len(branches)), branches, rotation=90 if len(branches) > 1 else 0)
    axes.set_xlim(-0.7, max(len(branches), 1) - 0.3)
    axes.grid(axis="x", visible=False)
    axes.set_title("no mixing", loc="left", fontsize=9, fontweight="normal")


def _fates(trials: Sequence[TrialData]) -> list[Line2D]:
    shown = {_fate(trial) for trial in trials}
    handles = [
        Line2D([], [], linestyle="none", marker=marker, markersize=9, markerfacecolor=PALE, label=fate,
               markeredgecolor=VERMILION if fate == "diverged" else BLACK)
        for fate, marker in _FATES.items() if fate in shown
    ]  # fmt: skip
    handles.append(Line2D([], [], color=STROKE, dashes=(4, 3), linewidth=0.9, label="c = 1, 9.11, 9.78"))
    for c in _c_of_one_beta(trials):
        handles.append(Line2D([], [], color=STROKE, dashes=(1, 2), linewidth=0.9, label=f"DiscoPOP (c = {c:g})"))
    return handles


def frontier(data: SearchData) -> Drawing:
    """Objective, and judged score where there is one, against KL."""
    judges = list(dict.fromkeys(score["judge"] for t in data.trials if t.judged for score in t.judged["scores"]))
    metric = METRICS[data.metric]
    name = metric.words + (" and judged score" if judges else "")
    title = f"{name[0].upper()}{name[1:]} against KL"
    there = [trial for trial in data.trials if "eval_kl" in trial.last and data.metric in trial.last]
    if not there:
        return Drawing("kl_frontier", title, "No trial has been evaluated after its start yet.")
    heights: list[tuple[str, Callable[[TrialData], tuple[float, float, float] | None], bool]] = [
        (f"{metric.words}, {metric.unit}", lambda trial: _objective(trial, metric), data.maximize)
    ]
    heights += [(f"mean rating of 10\n{judge}", _rating(judge), True) for judge in judges[:1]]
    with styled():
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        for axes, (label, height, maximize) in zip(
            figure.subplots(1, len(heights), squeeze=False).flat, heights, strict=True
        ):
            _draw_frontier(axes, data, there, height, maximize)
            axes.set_ylabel(label)
        named = {branch: look for branch, look in looks(data).items() if any(t.branch == branch for t in there)}
        handles = [
            Line2D([], [], linestyle="none", marker=look.marker, color=look.colour, markersize=8, label=branch)
            for branch, look in named.items()
        ]
        handles.append(Line2D([], [], color=GREY, dashes=(4, 3), label="Pareto front"))
        figure.legend(handles=handles, loc="outside lower center", ncols=6)
    text = (
        "Each mark is a trial at its last evaluation, filled where it is complete and breaks no constraint. Bars are "
        "95 % intervals over the held-out pairs, prompts or questions; where there are many trials, only the complete "
        "ones, or those of the front, have them and a number. KL(policy || reference) is exact over the vocabulary, on "
        "the chosen completions of the first held-out pairs, summed over a completion. The dashed line is the Pareto "
        "front of the feasible complete trials: the best value at each KL or less. Like every maximum of noisy values "
        "it is biased upwards."
    )
    return Drawing("kl_frontier", title, text, figure)


def _draw_frontier(
    axes: Axes,
    data: SearchData,
    trials: Sequence[TrialData],
    height: Callable[[TrialData], tuple[float, float, float] | None],
    maximize: bool,
) -> None:
    places = {trial.number: (trial.last["eval_kl"], found) for trial in trials if (found := height(trial)) is not None}
    done = {trial.number for trial in trials if trial.state is State.COMPLETE and trial.row.feasible}
    ended = [number for number in places if number in done]
    on_front = pareto_front([(places[number][0], places[number][1][0]) for number in ended], maximize=maximize)
    front = [ended[index] for index in on_front]
    style, numbered = looks(data), _numbered(trials, *front)
    for trial in trials:
        if trial.number not in places:
            continue
        kl, (value, low, high) = places[trial.number]
        look = style[trial.branch]
        counts = trial.number in done
        axes.errorbar(
            kl,
            value,
            yerr=[[value - low], [high - value]] if trial.number in numbered else None,
            color=look.colour,
            marker=look.marker,
            markersize=8 if counts else 6,
            markerfacecolor=look.colour if counts else "white",
            elinewidth=0.9,
            alpha=1.0 if counts else 0.75,
            linestyle="none",
            zorder=4 if counts else 3,
        )
        if trial.number in numbered:
            axes.annotate(f"{trial.number}", (kl, value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    if front:
        ends = [places[number][0] for number in front] + [max(kl for kl, _ in places.values())]
        levels = [places[number][1][0] for number in front]
        axes.plot(ends, [*levels, levels[-1]], color=GREY, dashes=(4, 3), drawstyle="steps-post")
    axes.set_xlabel("KL(policy || reference) of a completion, nats\n(square-root scale)")
    _scale_kl(axes, max((kl for kl, _ in places.values()), default=1.0))


def _objective(trial: TrialData, metric: Metric) -> tuple[float, float, float] | None:
    value, half = trial.last.get(metric.name), Z * trial.last.get(metric.error, 0.0)
    return None if value is None else (value, *metric.within(value - half, value + half))


def _rating(judge: str) -> Callable[[TrialData], tuple[float, float, float] | None]:
    def of(trial: TrialData) -> tuple[float, float, float] | None:
        for score in (trial.judged or {"scores": []})["scores"]:
            if score["judge"] == judge and score["score"] is not None:
                low, high = score["interval"] or (score["score"], score["score"])
                return score["score"], min(low, score["score"]), max(high, score["score"])
        return None

    return of


def _scale_kl(axes: Axes, largest: float) -> None:
    """KL on a square-root scale, which spreads nearly untrained and distant trials evenly."""
    largest = largest if largest > 0 else 1.0

    def root(kl: Any) -> Any:
        return np.sign(kl) * np.sqrt(np.abs(kl))

    axes.set_xscale("function", functions=(root, lambda value: np.sign(value) * value**2))
    axes.set_xlim(-largest / 40**2, largest * 1.1)
    decade = math.floor(math.log10(largest))
    ticks = [step * 10.0**power for power in range(decade - 1, decade + 1) for step in (1, 2, 5)]
    axes.set_xticks([0, *(tick for tick in ticks if largest / 40 < tick <= largest * 1.05)])
    axes.xaxis.set_major_formatter("{x:g}")
