"""A discovery over its proposals: the best loss so far, and which losses were shown when which was written."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tune_dlrml.metrics import METRICS
from tune_dlrml.report.discovered import Story, story
from tune_dlrml.report.reading import BASELINE, SearchData
from tune_dlrml.report.style import WIDTH, Drawing, looks, styled
from tune_dlrml.system.palette import BLUE, PALE, VERMILION

ROW = 0.23
"""Height in inches of a loss in the genealogy."""


def best_so_far(data: SearchData) -> Drawing:
    """The objective of each accepted proposal at its own best setting, with its interval, and the best up to there."""
    name, title = "best_so_far", "Best so far over the proposals"
    told = story(data, ())
    lines = [] if told is None else [line for line in told.proposals if line.value is not None]
    if told is None or not lines:
        return Drawing(name, title, "No proposal has a complete trial yet.")
    better = max if data.maximize else min
    known = looks(data)
    metric = METRICS[data.metric]
    with styled():
        figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        best: list[float] = []
        for line in lines:
            assert line.value is not None
            best.append(better([*best[-1:], line.value]))
            half = (
                None if line.low is None or line.high is None else [[line.value - line.low], [line.high - line.value]]
            )
            look = known[line.loss]
            axes.errorbar(line.number, line.value, yerr=half, fmt=look.marker, color=look.colour, capsize=2, zorder=3)
            axes.annotate(line.loss, (line.number, line.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
        ends = [*(line.number for line in lines), told.proposals[-1].number]
        axes.step(ends, [*best, best[-1]], where="post", color="0.3", label="best proposal so far")
        axes.set_xlim(-0.6, ends[-1] + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        baseline = [trial.row.value for trial in data.of(BASELINE) if trial.row.value is not None]
        if baseline:
            axes.axhline(baseline[0], color="0.3", linestyle="--", linewidth=1, label="DPO, trial 0")
        axes.set_xlabel("proposal")
        axes.set_ylabel(metric.words if metric.counts_pairs else f"{metric.words}, {metric.unit}")
        figure.legend(loc="outside lower center", ncols=2)
    text = (
        "Each accepted proposal at its own best setting, with its 95 % interval over the held-out pairs. The best of "
        "many is in part luck: `search.confirm` trains it again."
    )
    return Drawing(name, title, text, figure)


def genealogy(data: SearchData) -> Drawing:
    """For each proposal which losses its proposer was shown, and what became of it."""
    name, title = "genealogy", "Which losses were shown when a proposal was written"
    told = story(data, ())
    if told is None or not told.proposals:
        return Drawing(name, title, "There is no proposal yet.")
    shown = dict.fromkeys(parent for line in told.proposals for parent in line.parents)
    written = [line.loss for line in told.proposals if line.loss]
    rows = [*(label for label in shown if label not in written), *written]
    with styled():
        figure = Figure(figsize=(WIDTH, ROW * (len(rows) + 1) + 1.1), layout="constrained")
        axes = figure.subplots()
        _draw_shown(axes, told, {label: at for at, label in enumerate(rows)}, refused=len(rows))
        axes.set_yticks(range(len(rows) + 1), [*rows, "refused"], fontsize=8)
        axes.set_ylim(len(rows) + 0.6, -0.6)
        axes.set_xlim(-0.6, len(told.proposals) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axes.set_xlabel("proposal")
        figure.legend(loc="outside lower center", ncols=4)
    text = (
        "A column is a proposal, a row a loss: squares where the proposer of the column saw the code and the scores of "
        "the row, a dot where the loss of the row was written. In the last row a cross is a proposal that was refused, "
        "and a square one whose proposer saw refused ones with the reasons."
    )
    return Drawing(name, title, text, figure)


def _draw_shown(axes: Axes, told: Story, rows: dict[str, int], *, refused: int) -> None:
    seen = [(line.number, rows[parent]) for line in told.proposals for parent in line.parents]
    seen += [(line.number, refused) for line in told.proposals if line.refusals]
    born = [(line.number, rows[line.loss]) for line in told.proposals if line.loss]
    crossed = [(line.number, refused) for line in told.refused]
    for points, marker, colour, size, label in (
        (seen, "s", PALE, 22, "was shown"),
        (born, "o", BLUE, 34, "was written"),
        (crossed, "x", VERMILION, 26, "was refused"),
    ):
        if points:
            xs, ys = zip(*points, strict=True)
            axes.scatter(xs, ys, marker=marker, color=colour, s=size, label=label, zorder=3)
