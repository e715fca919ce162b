"""Bars over many trials: how the budget was used, and how often gradients were not finite."""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune_dlrml.report.reading import SearchData
from tune_dlrml.report.spending import ENDS, Spent, Stage, nonfinite, soundness, stages
from tune_dlrml.report.style import END_COLOURS, END_HATCHES, WIDTH, Drawing, looks, styled


def budget(data: SearchData) -> Drawing:
    """Steps and hours between the rungs, by the end of the trials that used them."""
    title = "Budget by rung and by the end of the trials"
    parts = stages(data)
    if not any(spent.steps for stage in parts for spent in stage.ends.values()):
        return Drawing("budget", title, "No trial has trained a step yet.")
    seconds = sum(spent.seconds for stage in parts for spent in stage.ends.values())
    unit, size = ("hours", 3600.0) if seconds > 7200 else ("minutes", 60.0) if seconds > 120 else ("seconds", 1.0)
    with styled():
        figure = Figure(figsize=(WIDTH, 1.7 + 0.5 * len(parts)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _stack(left, parts, lambda spent: float(spent.steps))
        _stack(right, parts, lambda spent: spent.seconds / size)
        left.set_xlabel("optimizer steps, all trials")
        right.set_xlabel(f"time of worker groups, {unit}")
        left.set_yticks(range(len(parts)), [f"steps {part.after}–{part.until}" for part in parts])
        left.invert_yaxis()
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    text = (
        "Each bar is the training between two rungs, split by the end of the trials that trained there. Time runs from "
        "the issue of a trial to its end and includes the start of its worker group, evaluations and checkpoints."
    )
    return Drawing("budget", title, text, figure)


def _stack(axes: Axes, parts: list[Stage], size: Callable[[Spent], float]) -> None:
    begins = [0.0] * len(parts)
    for end in ENDS:
        widths = [size(part.ends.get(str(end), Spent())) for part in parts]
        if any(widths):
            axes.barh(
                range(len(parts)),
                widths,
                left=begins,
                height=0.62,
                color=END_COLOURS[end],
                hatch=END_HATCHES.get(end),
                edgecolor="white",
                linewidth=0.8,
                label=str(end),
            )
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.grid(axis="y", visible=False)


def nonfinite_fractions(data: SearchData) -> Drawing:
    """Share of gradient entries that were not finite, one mark per trial, by loss."""
    title = "Non-finite gradients by loss"
    known: Mapping[str, list[float]] = {
        branch: [share for trial in data.of(branch) if (share := nonfinite(trial)) is not None]
        for branch in data.branches
    }
    reports = sum(loss.reports[1] for loss in soundness(data))
    if not any(known.values()):
        return Drawing("nonfinite", title, "No trial has reported a training step yet.")
    if not any(share > 0 for shares in known.values() for share in shares):
        reason = f"Every gradient and every loss was finite, in all {reports} reports of all trials."
        return Drawing("nonfinite", title, reason)
    with styled():
        figure = Figure(figsize=(WIDTH * 0.8, 1.3 + 0.5 * len(known)), layout="constrained")
        axes = figure.subplots()
        style = looks(data)
        for row, (branch, shares) in enumerate(known.items()):
            spread = [row + 0.5 * ((at + 0.5) / len(shares) - 0.5) for at in range(len(shares))]
            look = style[branch]
            axes.plot(shares, spread, linestyle="none", marker=look.marker, color=look.colour, alpha=0.8, markersize=7)
        axes.set_yticks(range(len(known)), list(known))
        axes.set_xlim(-0.02, 1.02)
        axes.invert_yaxis()
        axes.set_xlabel("share of gradient entries that were not finite, mean over a trial's reports")
    text = "One mark per trial. The search's file decides whether a step with a non-finite gradient is skipped."
    return Drawing("nonfinite", title, text, figure)
