"""The best loss so far over the proposals of a discovery."""

from matplotlib.figure import Figure

from tune_dlrml.metrics import METRICS
from tune_dlrml.report.discovered import story
from tune_dlrml.report.reading import BASELINE, SearchData
from tune_dlrml.report.style import WIDTH, Drawing, looks, styled


def best_so_far(data: SearchData) -> Drawing:
    """The objective of each accepted proposal at its own best setting, with its interval, and the best up to there."""
    name, title = "best_so_far", "Best so far over the proposals"
    told = story(data, ())
    lines = [] if told is None else [line for line in told.proposals if line.value is not None]
    if not lines:
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
            ends = (
                None if line.low is None or line.high is None else [[line.value - line.low], [line.high - line.value]]
            )
            look = known[line.loss]
            axes.errorbar(line.number, line.value, yerr=ends, fmt=look.marker, color=look.colour, capsize=2, zorder=3)
            axes.annotate(line.loss, (line.number, line.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axes.step([line.number for line in lines], best, where="post", color="0.3", label="best proposal so far")
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
