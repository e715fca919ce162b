"""The terminal's view of a search: its progress, its tables, its resource usage. Renders for a rich console."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tune_dlrml.evaluation.judges.jury import Grading
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.records import Report, State
from tune_dlrml.search.timings import Timing
from tune_dlrml.search.usage import Usage
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow

if TYPE_CHECKING:
    from tune_dlrml.doctor.cost import Cost, Span

STYLE = {
    State.COMPLETE: "green",
    State.PRUNED: "dim",
    State.DIVERGED: "yellow",
    State.FAILED: "red",
    State.RUNNING: "cyan",
    State.PAUSED: "cyan dim",
}
BAR = 40
"""Characters of the longest bar."""
_MEASURED = {
    name
    for name, metric in METRICS.items()
    if metric.reported == "evaluation" and metric.untrained is None and metric.of_searches == "all"
}
"""Metrics that only an evaluation reports, and step 0 does not."""


class ProgressView:
    """Shows a search while it runs: a line when a trial starts, is evaluated and ends, and a bar on a terminal.

    Args:
        console: Where the lines go.
        objective: Metric that decides the search.
    """

    def __init__(self, console: Console, objective: str) -> None:
        self._console, self._objective = console, objective
        self._num_trials = self._full_steps = self._done = self._ended = 0
        self._began, self._first_end = time.monotonic(), 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._total = self._progress.add_task("trials", total=None)
        self._tasks: dict[int, TaskID] = {}
        self._paused: dict[int, int] = {}
        self._shown: dict[int, int] = {}
        self._facts_shown = self._pauses = False

    def __enter__(self) -> "ProgressView":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_begin(self, num_trials: int, done: int, full_steps: int, paused: Mapping[int, int]) -> None:
        """A line when the search is open: its number of trials, those that ended before, the full budget in steps."""
        self._num_trials, self._done, self._full_steps = num_trials, done, full_steps
        self._ended, self._first_end = 0, 0.0
        self._paused, self._shown, self._pauses = dict(paused), dict(paused), bool(paused)
        for number in list(self._tasks):  # of trials that the end of an earlier search's time has stopped
            self._remove_task(number)
        self._progress.update(self._total, total=num_trials, completed=done)
        resumed = f", {done} of them already ended" if done else ""
        begins = "; waiting for Ray and a worker group" if done < num_trials else ""
        self._say(f"{num_trials} trials of at most {full_steps} steps{resumed}{begins}")

    def on_start(self, spec: TrialSpec) -> None:
        """A line with the trial's parameters."""
        again = f" (attempt {spec.attempt + 1})" if spec.attempt else ""
        step = self._paused.pop(spec.number, None)
        if step is None:
            self._say(f"trial {spec.number:>3} {spec.branch}{again}: {parameters(spec)}")
        else:
            self._say(f"trial {spec.number:>3} promoted: goes on after step {step}")
        self._tasks[spec.number] = self._progress.add_task(f"trial {spec.number} steps", total=self._full_steps)

    def on_report(self, spec: TrialSpec, report: Report) -> None:
        """The bar for every report, a line for an evaluated one."""
        if spec.number in self._tasks:
            self._progress.update(self._tasks[spec.number], completed=report.step)
        if report.step == 0 and not self._facts_shown:
            self._facts_shown = True
            self._say(how_computed(report.metrics))
        if report.evaluated and report.step > self._shown.get(spec.number, 0):
            self._shown[spec.number] = report.step  # a promoted trial sends the report of its rung again
            where = "rung" if report.rung else "step"
            said = (
                _filled(metric.line, metric, report.metrics)
                for metric in METRICS.values()
                if metric.line and metric.shown(self._objective) and metric.name in report.metrics
            )
            self._say(f"trial {spec.number:>3} {where} {report.step}/{self._full_steps}: {', '.join(said)}")

    def on_pause(self, spec: TrialSpec, step: int) -> None:
        """A line when a trial is paused."""
        self._remove_task(spec.number)
        self._pauses = True
        self._paused[spec.number] = step
        self._say(f"trial {spec.number:>3} [{STYLE[State.PAUSED]}]{State.PAUSED}[/] at step {step}")

    def on_notice(self, text: str) -> None:
        """A line with something that the user should know."""
        self._say(f"[yellow]{escape(text)}[/]")

    def on_loss(self, spec: TrialSpec, reason: str, left: int) -> None:
        """A line when a trial restarts, with the reason."""
        self._remove_task(spec.number)
        self.on_notice(f"trial {spec.number} lost its workers and resumes in new ones ({left} retries left): {reason}")

    def on_total(self, num_trials: int) -> None:
        """The total from which the trials that are left are counted."""
        self._num_trials = num_trials
        self._progress.update(self._total, total=num_trials)

    def on_end(self, spec: TrialSpec, row: TrialRow) -> None:
        """A line with the trial's end and the time left."""
        self._ended += 1
        self._paused.pop(spec.number, None)
        self._remove_task(spec.number)
        self._progress.update(self._total, completed=self._done + self._ended)
        end = f"[{STYLE[row.state]}]{row.state}[/]: {escape(row.stop_reason)}"
        self._say(f"trial {spec.number:>3} {end}{self._ahead()}")

    def on_judged(self, number: int, grading: Grading) -> None:
        """A line for the score of each judge."""
        for score in grading.scores:
            self._say(f"trial {number:>3} judged: {score_text(score.as_json())}")

    def _remove_task(self, number: int) -> None:
        task = self._tasks.pop(number, None)
        if task is not None:
            self._progress.remove_task(task)

    def _ahead(self) -> str:
        """The trials left; their time is estimated once two have ended, since the first also waits for the group.

        Paused trials end together at the end, however long they have trained: then no time is told.
        """
        now, left = time.monotonic(), self._num_trials - self._done - self._ended
        self._first_end = self._first_end or now
        if not left:
            return ""
        if self._ended == 1 or self._pauses:
            return f"; {left} to go"
        return f"; {left} to go, about {duration((now - self._first_end) / (self._ended - 1) * left)}"

    def _say(self, text: str) -> None:
        self._console.print(f"[dim]{duration(time.monotonic() - self._began):>6}[/] {text}", highlight=False)


def how_computed(facts: Mapping[str, float]) -> str:
    """How the first trial's group computes, as it decided or was configured; see `Resident.facts`."""
    prompts = "once for both completions" if facts.get("shared_prompt") else "with each completion"
    checkpointing = "on" if facts.get("gradient_checkpointing") else "off"
    need = f" (a batch's activations take {facts['activation_gib']:.2g} GiB)" if "activation_gib" in facts else ""
    return f"prompts are computed {prompts}, gradient checkpointing is {checkpointing}{need}"


def score_text(score: Mapping[str, Any]) -> str:
    """A judged score with its interval and, always, its judge."""
    if score["score"] is None:
        return escape(f"no score by {score['judge']}: {score['missing']}")
    low, high = score["interval"] or (score["score"], score["score"])
    unscored = f", {score['unscored']} turns unscored" if score["unscored"] else ""
    text = f"{score['score']:.2f} ({low:.2f} to {high:.2f}) of 10 on {score['questions']} questions by {score['judge']}"
    return escape(text + unscored)


def judged_table(judged: Mapping[int, Mapping[str, Any]]) -> Table:
    """The examined trials, ranked by their first judge; intervals that overlap are no ranking."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in (
        "#",
        "judge",
        "score",
        "95 % interval",
        "turn 1",
        "turn 2",
        "above the baseline",
        "won",
        "unscored",
    ):
        table.add_column(heading, overflow="fold", justify="left" if heading == "judge" else "right")
    for number, said in judged.items():
        above = {each["judge"]: each for each in said["differences"]}
        won = {each["judge"]: each["win_rate_adjusted"] for each in said["pairs"]}
        for score in said["scores"]:
            judge = score["judge"]
            turns = [_or_dash(score["turns"].get(turn)) for turn in ("1", "2")]
            table.add_row(
                str(number),
                escape(judge),
                _or_dash(score["score"]),
                _interval(score),
                *turns,
                f"{above[judge]['score']:+.2f} ({_interval(above[judge])})" if _has_score(above.get(judge)) else "-",
                f"{won[judge]:.0%}" if won.get(judge) is not None else "-",
                str(score["unscored"]),
            )
    return table


def _has_score(said: Mapping[str, Any] | None) -> bool:
    return said is not None and said["score"] is not None


def _interval(score: Mapping[str, Any]) -> str:
    return "-" if score["interval"] is None else "{:.2f} to {:.2f}".format(*score["interval"])


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds as text in hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def parameters(spec: TrialSpec) -> str:
    """The settings that distinguish a trial from the others."""
    return ", ".join(f"{key} {number(value)}" for key, value in spec.shown().items())


def number(value: object) -> str:
    """A value in at most four significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def trials_table(
    rows: Sequence[TrialRow], metrics: Mapping[int, Mapping[str, float]], objective: str, best: int | None
) -> Table:
    """All trials of a search by this objective, the best one marked."""
    table = Table(header_style="bold", row_styles=["", "on grey7"], pad_edge=False)
    for heading in ("#", "loss", "parameters", "state", "stop reason"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "#" else "left")
    shown = _columns(metrics, objective)
    for metric in shown:
        table.add_column(metric.heading, justify="right", no_wrap=True)
    for row in rows:
        own = metrics.get(row.number, {})
        evaluated = bool(_MEASURED & own.keys())
        table.add_row(
            f"{row.number}*" if row.number == best else str(row.number),
            "" if row.spec is None else row.spec.branch,
            "" if row.spec is None else parameters(row.spec),
            f"[{STYLE[row.state]}]{row.state}[/]",
            escape(row.stop_reason),
            *(_filled(m.form, m, own) if evaluated or m.reported != "evaluation" else "-" for m in shown),
            style="bold" if row.number == best else None,
        )
    return table


def _columns(metrics: Mapping[int, Mapping[str, float]], objective: str) -> list[Metric]:
    """The metrics with a column: those of such searches as the reports are of, with a reference if there are none."""
    told = {name for own in metrics.values() for name in own} & METRICS.keys()
    kinds = {METRICS[name].of_searches for name in told} - {"all"} or {"with a reference"}
    listed = [metric for metric in METRICS.values() if metric.heading and metric.of_searches in {"all", *kinds}]
    return [metric for metric in listed if metric.shown(objective)]


def _filled(form: str, metric: Metric, own: Mapping[str, float]) -> str:
    """A number of a trial, and its standard error, in a form."""
    return form.format(own[metric.name], own.get(metric.error)) if metric.name in own else "-"


def cost_table(cost: "Cost") -> Table:
    """Estimated cost of a search, item by item: the measured time of one, and the sum."""
    one = cost.measured
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("", "measured", "count", "total"):
        table.add_column(heading, justify="left" if not heading else "right")
    median, least, most = cost.step_s
    step = f"{short_time(median)} ({short_time(least)} to {short_time(most)})"
    saved = f"{short_time(one.checkpoint_s)}, {size(one.checkpoint_bytes)}"
    per_token = f"{short_time(1000 * one.reference_s_per_token)} per 1,000 tokens"
    table.add_row("loading", short_time(one.load_s), "each worker group", "")
    table.add_row("reference pass", per_token, f"{cost.reference_tokens:,} tokens", duration(cost.reference_s))
    for name, each, count, total in (
        ("optimizer steps", step, cost.optimizer_steps, cost.training_s),
        ("held-out evaluations", short_time(one.evaluation_s), cost.evaluations, cost.evaluations_s),
        ("checkpoints", saved, cost.checkpoints, cost.checkpoints_s),
    ):
        table.add_row(name, each, _count(count), duration(total.mean))
    table.add_row("other, each trial", short_time(one.trial_s), str(cost.trials), duration(cost.trials * one.trial_s))
    return table


def cost_lines(cost: "Cost") -> list[str]:
    """Estimated cost of the whole search."""
    measured, wall = cost.measured, cost.wall_s
    rungs = f"rungs at {', '.join(map(str, cost.rungs))}" if cost.rungs else "no pruning"
    time_ = f"about {duration(wall.mean)} ({duration(wall.low)} to {duration(wall.high)}"
    time_ += f"; {duration(cost.most_wall_s)} if no trial is pruned)" if cost.rungs else ")"
    rates = ", ".join(f"{rate / 1e12:.2g} TFLOP/s in {dtype}" for dtype, rate in measured.matrix_rates.items())
    hours, unit = (cost.gpu_hours, "GPU-hours") if cost.gpu_hours.mean else (cost.cpu_hours, "CPU-hours")
    memory = f"{size(cost.memory_bytes)} of memory"
    memory += f" and {size(cost.gpu_memory_bytes)} of GPU memory" if cost.gpu_memory_bytes else ""
    lines = [
        f"measured on this machine ({measured.device}, {measured.threads} threads, {rates}); {cost.trials} trials of "
        f"at most {cost.full_steps} steps, {rungs}",
        f"estimate for the search: {time_}, {number(hours.mean)} {unit} ({number(hours.low)} to {number(hours.high)}), "
        f"{_millions(cost.trained_tokens.mean)} tokens trained, {memory} at the peak, {size(cost.disk_bytes)} of "
        "checkpoints",
    ]
    if cost.confirmation is not None:
        after = cost.confirmation
        hours = after.gpu_hours if unit == "GPU-hours" else after.cpu_hours
        lines.append(
            f"estimate for search.confirm: up to {after.trials} trials of {after.full_steps} steps, about "
            f"{duration(after.wall_s.mean)}, {number(hours.mean)} {unit}"
            + (", if its race comes to its cap with all finalists" if cost.confirmation_races else "")
        )
    return lines


def usage_line(usage: Usage) -> str:
    """Resource usage of a search so far."""
    hours = f"{number(usage.gpu_hours)} GPU-hours" if usage.gpu_hours else f"{number(usage.cpu_hours)} CPU-hours"
    text = (
        f"resource usage: {duration(usage.trial_s)} of trials, {hours}, {usage.optimizer_steps:,} optimizer steps, "
        f"{_millions(usage.trained_tokens)} tokens trained"
    )
    if usage.reference_tokens is not None:
        text += f", {_millions(usage.reference_tokens)} reference tokens computed"
    if usage.reference_tokens_saved:
        text += f" and {_millions(usage.reference_tokens_saved)} read from the cache"
    shares = [f"{share:.0%} {part}" for part, share in usage.shares.items() if share >= 0.005]
    return text + (f"; {', '.join(shares)}" if shares else "")


def timings_table(parts: Sequence[Timing]) -> Table:
    """Where the time before the first optimizer step went, a bar for each part at its place."""
    total = max((part.begin_s + part.seconds for part in parts), default=0.0)
    table = Table("before the first step", "seconds", f"of {total:.1f} s", header_style="bold", box=None)
    for part in parts:
        bar = Bar(total, part.begin_s, part.begin_s + part.seconds, width=BAR, color="cyan", bgcolor="default")
        table.add_row(part.part, f"{part.seconds:.1f}", bar)
    return table


def short_time(seconds: float) -> str:
    """Seconds as text, in milliseconds where they are few."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def size(count: float) -> str:
    """Bytes as text, in GB, MB or kB."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.3g} {unit}"
    return f"{count:.0f} bytes"


def _count(span: "Span") -> str:
    return f"{span.mean:,.0f} ({span.low:,.0f} to {span.high:,.0f})" if span.low < span.high else f"{span.mean:,.0f}"


def _millions(count: float) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count:,.0f}"
