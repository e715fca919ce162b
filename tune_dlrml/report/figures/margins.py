"""Where the held-out pairs lie on the loss: their margins over its curve, for the best and the worst trial."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune_dlrml.errors import InputError
from tune_dlrml.losses.base import ClosedForm
from tune_dlrml.losses.drawn import drawn_form
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.metrics import MARGIN_QUANTILES, METRICS
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.report.style import WIDTH, Drawing, looks, styled
from tune_dlrml.system.palette import BLACK, GREY, GRID, INK, PALE, STROKE

LOWEST, *WITHIN, HIGHEST = MARGIN_QUANTILES
"""The least and the largest held-out margin, which widen the picture where a report has them, and the quantiles."""


def margins_over_loss(data: SearchData) -> Drawing:
    """The margins of the best and the worst trial over the curves of their losses."""
    title = "Held-out margins over the loss: best and worst trial"
    chosen = _best_and_worst(data)
    if not chosen:
        known = any(trial.last for trial in data.trials)
        reason = (
            "The reports of this search do not have the distribution of the held-out margins, so there is none to draw."
            if known
            else "No trial has been evaluated after its start yet."
        )
        return Drawing("margins", title, reason)
    with styled():
        figure = Figure(figsize=(WIDTH, 4.3), layout="constrained")
        grid = figure.subplots(1, len(chosen), squeeze=False).flat
        for axes, (role, trial) in zip(grid, chosen.items(), strict=True):
            _draw(axes, role, trial, data)
    text = (
        "Curve: the loss of a pair over its margin. Below it the held-out pairs at the last evaluation: the box holds "
        "the middle half, the bar 90 %, the thin line all of them, the notch is the median. Pairs left of the barrier "
        "are pulled into the trap, those right of it away from it. The heights of different losses are not comparable."
    )
    bare = dict.fromkeys(trial.branch for trial in chosen.values() if loss_curve(trial) is None)
    if bare:
        text += f" The report cannot draw the curve of {', '.join(bare)}, so only the margins are drawn."
    if len(chosen) == 1:
        text += " Only one trial has such a distribution."
    return Drawing("margins", title, text, figure)


def _best_and_worst(data: SearchData) -> dict[str, TrialData]:
    """Trials by their objective at the last evaluation; the search's own best where it has the margins."""
    known = [t for t in data.trials if all(name in t.last for name in WITHIN) and data.metric in t.last]
    if not known:
        return {}
    sign = 1.0 if data.maximize else -1.0
    ordered = sorted(known, key=lambda trial: (sign * trial.last[data.metric], trial.number))
    best = next((trial for trial in known if trial.number == data.best), ordered[-1])
    worst = next(trial for trial in ordered if trial is not best or len(known) == 1)
    return {"best": best} if worst is best else {"best": best, "worst": worst}


def _draw(axes: Axes, role: str, trial: TrialData, data: SearchData) -> None:
    shape, colour = trial.shape, looks(data)[trial.branch].colour
    last = trial.last
    low, high = last.get(LOWEST, last[WITHIN[0]]), last.get(HIGHEST, last[WITHIN[-1]])
    curve, geometry = loss_curve(trial), geometry_of(trial)
    strength = 1.0 if shape is None else shape.beta_kl
    marks = {} if geometry is None else _marks(geometry, strength)
    left, right = min(low, 0.0, *marks.values()), max(high, 0.0, *marks.values())
    pad = 0.12 * (right - left) or 1.0
    left, right = left - pad, right + pad
    if curve is not None:
        xs = [left + (right - left) * i / 400 for i in range(401)]
        axes.plot(xs, [curve(x) for x in xs], color=colour, linewidth=2, zorder=3)
        axes.set_ylabel("loss of a pair, nats")
        bottom, top = axes.get_ylim()
        span = top - bottom
    else:
        bottom, span = 0.0, 1.0
        axes.set_yticks([])
        axes.set_ylim(-0.3, 1)
    _box(axes, last, low, high, bottom - 0.12 * span, 0.07 * span)
    for at, (name, margin) in enumerate(marks.items()):
        axes.axvline(margin, color=STROKE, linewidth=0.9, linestyle=(":", "--")[at % 2], zorder=2)
        axes.annotate(
            f"{name} {margin:+.2f}", (margin, 0.99), xycoords=("data", "axes fraction"), rotation=90, va="top",
            ha="right" if at == 0 else "left", fontsize=8,
        )  # fmt: skip
    axes.axvline(0.0, color=PALE, linewidth=0.9, zorder=1)
    axes.set_xlim(left, right)
    axes.set_xlabel("margin of a held-out pair, nats")
    trapped = last.get("eval_trap_fraction", 0.0)
    trap = f"\n{trapped:.0%} of pairs below the barrier" if marks else "\nno trap" if curve is not None else ""
    value = f"{METRICS[data.metric].words} {last[data.metric]:.3f}"
    axes.set_title(f"{role}: trial {trial.number}, {trial.branch}\n{value}{trap}", loc="left")


def _box(axes: Axes, last: Mapping[str, float], low: float, high: float, at: float, height: float) -> None:
    p05, p25, p50, p75, p95 = (last[name] for name in WITHIN)
    axes.plot([low, high], [at, at], color=INK, linewidth=0.9, zorder=3)
    axes.barh(at, p95 - p05, left=p05, height=0.35 * height, color=GREY, zorder=3)
    axes.barh(at, p75 - p25, left=p25, height=height, color=GRID, edgecolor=INK, linewidth=0.9, zorder=4)
    axes.plot([p50, p50], [at - height / 2, at + height / 2], color=BLACK, linewidth=2, zorder=5)


def loss_curve(trial: TrialData) -> Callable[[float], float] | None:
    """Loss of a pair in nats over its margin; None for a loss whose curve is not known here."""
    form = _form(trial)
    return None if form is None else form.value


def geometry_of(trial: TrialData) -> Geometry | None:
    """Geometry of a trial's loss; None where it is unknown."""
    form = _form(trial)
    return None if form is None else form.geometry


def _form(trial: TrialData) -> ClosedForm | None:
    if trial.shape is None or trial.row.spec is None:
        return None
    try:
        return drawn_form(trial.row.spec.loss, trial.shape.c)
    except InputError:  # a custom loss may be elsewhere by now
        return None


def _marks(geometry: Geometry, strength: float) -> dict[str, float]:
    trap, barrier = geometry.trap_margin(strength), geometry.barrier_margin(strength)
    return {} if trap is None or barrier is None else {"trap": trap, "barrier": barrier}
