"""The settings and the objective: all settings at once, and the importance of each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_dlrml.metrics import METRICS
from tune_dlrml.records import State
from tune_dlrml.report.ranking import text as short
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.report.style import WIDTH, Drawing, scale_of, shade, styled
from tune_dlrml.space import TRAINING
from tune_dlrml.study.history import LEAST_FOR_IMPORTANCE
from tune_dlrml.system.palette import BLACK, BLUE, GREY, INK, STROKE, VERMILION

MOST_AXES = 11
NONE_AT = -0.12
"""Height of trials that do not have a parameter, below its axis."""


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: the values scaled to 0 to 1, and its labels."""

    name: str
    places: Mapping[int, float]
    ticks: Sequence[tuple[float, str]]
    lacking: bool


def parallel_coordinates(data: SearchData) -> Drawing:
    """Every trial as a line through its settings to its objective."""
    title = "Parallel coordinates: settings and objective"
    known = [trial for trial in data.trials if trial.row.spec is not None]
    columns = {name: _column(name, known) for name in _names(known)}
    axes_of = [_axis(name, values, [t.number for t in known]) for name, values in columns.items() if values]
    varied = [axis for axis in axes_of if len({*axis.places.values()}) > 1 or axis.lacking]
    results = {trial.number: trial.last[data.metric] for trial in known if data.metric in trial.last}
    if len(known) < 2 or not varied or not results:
        return Drawing("parallel_coordinates", title, "No two evaluated trials differ in a setting.")
    last = _axis(data.metric, results, [trial.number for trial in known])
    with styled():
        figure = Figure(figsize=(WIDTH, max(4.6, 1.5 + 0.17 * len(data.branches))), layout="constrained")
        axes = figure.subplots()
        colours = scale_of(results.values(), maximize=data.maximize)
        for trial in known:
            _draw_line(axes, trial, [*varied, last], results, colours, best=trial.number == data.best)
        _draw_axes(axes, [*varied, last])
        figure.colorbar(colours, ax=axes, pad=0.02).set_label(f"{METRICS[data.metric].words} at the last evaluation")
        handles = [Line2D([], [], color=INK, linewidth=2.8, label="best complete trial")]
        if any(trial.state in (State.DIVERGED, State.FAILED) for trial in known):
            handles.append(Line2D([], [], color=VERMILION, linestyle="--", label="diverged or failed"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    text = (
        "Each line is a trial. Scales are logarithmic where values span more than a decade; the line of a trial "
        "without a parameter passes below its axis. Dashed trials diverged or failed; without an objective they end "
        "below its axis."
    )
    return Drawing("parallel_coordinates", title, text, figure)


def _names(trials: Sequence[TrialData]) -> list[str]:
    """The loss, the strength and shape of all losses, and the searched training settings."""
    shared = dict.fromkeys(
        key.partition(".")[2] for trial in trials for key in trial.row.params if key.startswith(f"{TRAINING}.")
    )
    others = dict.fromkeys(key for trial in trials for key in _others(trial))
    return ["loss", "beta_kl", "c", *others, *shared][:MOST_AXES]


def _others(trial: TrialData) -> Iterator[str]:
    """Searched fields of a trial's loss beside strength and shape."""
    assert trial.row.spec is not None
    own = (key.partition(".")[2] for key in trial.row.params if key.startswith(f"{trial.branch}."))
    loss = trial.row.spec.loss
    yield from (key for key in own if key not in (*loss.placing, loss.strength_field))


def _column(name: str, trials: Sequence[TrialData]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for trial in trials:
        shape, spec = trial.shape, trial.row.spec
        assert spec is not None
        if name == "loss":
            value: Any = trial.branch
        elif name in ("beta_kl", "c"):
            value = None if shape is None else shape.beta_kl if name == "beta_kl" else shape.c_start
        else:
            value = spec.training.flat().get(name, trial.row.params.get(f"{trial.branch}.{name}"))
        if value is not None:
            found[trial.number] = value
    return found


def _axis(name: str, values: Mapping[int, Any], everyone: Sequence[int]) -> _Axis:
    lacking = any(number not in values for number in everyone)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        low, high = min(values.values()), max(values.values())
        log = low > 0 and high > 10 * low
        scale = math.log if log else float
        span = scale(high) - scale(low)
        ends = [low, math.sqrt(low * high) if log else (low + high) / 2, high] if span > 0 else [low]
        places = {n: (scale(v) - scale(low)) / span if span > 0 else 0.5 for n, v in values.items()}
        marks = [((scale(end) - scale(low)) / span if span > 0 else 0.5, f"{end:.3g}") for end in ends]
        return _Axis(name, places, marks, lacking)
    kinds = list(dict.fromkeys(str(value) for value in values.values()))
    at = {kind: index / max(1, len(kinds) - 1) if len(kinds) > 1 else 0.5 for index, kind in enumerate(kinds)}
    return _Axis(name, {n: at[str(v)] for n, v in values.items()}, [(y, kind) for kind, y in at.items()], lacking)


def _draw_line(
    axes: Axes,
    trial: TrialData,
    columns: Sequence[_Axis],
    results: Mapping[int, float],
    colours: ScalarMappable,
    *,
    best: bool,
) -> None:
    bad = trial.state in (State.DIVERGED, State.FAILED)
    heights = [column.places.get(trial.number, NONE_AT) for column in columns]
    value = results.get(trial.number)
    axes.plot(
        range(len(columns)),
        heights,
        color=VERMILION if bad else GREY if value is None else shade(colours, value),
        linestyle="--" if bad else "-",
        linewidth=2.8 if best else 1.1,
        alpha=1.0 if best else 0.8,
        zorder=4 if best else 3,
    )


def _draw_axes(axes: Axes, columns: Sequence[_Axis]) -> None:
    for at, column in enumerate(columns):
        axes.plot([at, at], [0, 1], color=INK, linewidth=1.1, zorder=2)
        for height, label in column.ticks:
            _mark(axes, (at, height), label)
        if column.lacking:
            _mark(axes, (at, NONE_AT), "none")
    units = {"beta_kl": "per nat"} | {name: metric.unit for name, metric in METRICS.items()}
    labels = [f"{c.name}\n{units[c.name]}" if c.name in units else c.name for c in columns]
    axes.set_xticks(range(len(columns)), labels)
    axes.set_yticks([])
    axes.set_xlim(-0.55, len(columns) - 0.9)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _mark(axes: Axes, at: tuple[float, float], label: str) -> None:
    """A value left of its axis, readable above the lines of trials."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
    place: dict[str, Any] = {"xytext": (-4, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
    axes.annotate(label, at, fontsize=8, color=STROKE, zorder=6, bbox=box, **place)


def importance(data: SearchData) -> Drawing:
    """Importance of each parameter, with the importance by chance alone."""
    title = "Parameter importance"
    found = data.importance
    if found is None:
        steps = [report.step for trial in data.trials for report in trial.evaluations]
        most = max(map(steps.count, steps), default=0)
        reason = (
            f"Too few trials: importance needs at least {LEAST_FOR_IMPORTANCE} with an objective at the same step, and "
            f"there are {most}. With fewer trials the numbers are noise, so none are drawn."
        )
        return Drawing("parameter_importance", title, reason)
    if not found.shares:
        return Drawing("parameter_importance", title, "The objectives of the trials do not differ by any parameter.")
    with styled():
        names = list(found.shares)
        figure = Figure(figsize=(WIDTH * 0.8, 1.3 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        rows = range(len(names))
        axes.barh(rows, [found.shares[name] for name in names], color=BLUE, height=0.62)
        axes.plot(
            [found.chance.get(name, 0.0) for name in names],
            rows,
            linestyle="none",
            marker="|",
            markersize=15,
            markeredgewidth=2,
            color=BLACK,
            label="exceeded by chance in 5 % of shuffles",
        )
        for row, name in zip(rows, names, strict=True):
            axes.annotate(
                f"{found.shares[name]:.2f}",
                (found.shares[name], row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )
        axes.set_yticks(rows, [name.removeprefix(f"{TRAINING}.") for name in names])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        axes.set_xlabel(f"share of importance for {METRICS[data.metric].words}, no unit")
        figure.legend(loc="outside lower center")
    above = [short(name.removeprefix(f"{TRAINING}.")) for name in names if found.shares[name] > found.chance[name]]
    text = (
        f"Importance of each parameter for being among the best tenth (PED-ANOVA, Optuna's evaluator), from the "
        f"{found.trials} trials at step {found.step}, the last step that enough trials reached. A parameter without "
        "effect stays below the tick in 95 % of shuffled objectives. "
        + (f"Beyond chance: {', '.join(above)}." if above else "No parameter is more important than by chance.")
    )
    return Drawing("parameter_importance", title, text, figure)
