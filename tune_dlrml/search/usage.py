"""The resources that a search has used so far, from its study and event logs alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tune_dlrml.config import ResourcesConfig, load_config
from tune_dlrml.events import Event, EventLog, parsed
from tune_dlrml.search.result import SearchPlace, SearchResult
from tune_dlrml.study.history import TrialRow

PARTS = ("training", "evaluation", "saving", "waiting", "answering", "starting", "other")
"""Parts of a trial's time. `starting`: from its issue to the first report, which for a group's first trial includes
start, load and reference pass; `waiting`: for the answers to reports."""
BOOKS = ("evaluation", "saving", "waiting", "answering")
"""Parts that a trial that ended by itself has recorded; training is in its reports."""


@dataclass(frozen=True)
class Usage:
    """Resource usage of all trials together, running ones up to their last report.

    Attributes:
        trial_s: Time in which a worker group had a trial, summed over the trials and their attempts.
        optimizer_steps: Steps, those that an attempt trained again not counted twice.
        trained_tokens: Tokens of those steps.
        cpu_hours: CPUs of the groups' workers times `trial_s`.
        gpu_hours: GPUs of the groups' workers times `trial_s`.
        shares: Of `trial_s`, by part; empty before the first report.
        reference_tokens: Tokens computed by the reference; None where no report has them.
        reference_tokens_saved: Tokens whose log-probs came from the cache instead; None likewise.
    """

    trial_s: float
    optimizer_steps: int
    trained_tokens: int
    cpu_hours: float
    gpu_hours: float
    shares: Mapping[str, float]
    reference_tokens: int | None = None
    reference_tokens_saved: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


def read_usage(result: SearchResult, place: SearchPlace) -> Usage:
    """The resource usage of a search whose study was read."""
    folder = place.folder(result.name)
    events = EventLog(folder)
    resources = load_config(folder / "search.yaml").resources
    return sum_up(result.rows, lambda number: list(events_of(events, number)), resources)


def sum_up(rows: Sequence[TrialRow], log_of: Callable[[int], Sequence[Event]], resources: ResourcesConfig) -> Usage:
    """The sums over all trials.

    Args:
        rows: The trials.
        log_of: Events of a trial, in their order; those of one trial at a time are kept in memory.
        resources: Resources of a worker group.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    steps = tokens = 0
    reference: dict[str, int] = {}
    for row in rows:
        log = log_of(row.number)
        for part, seconds in _spent(row, log).items():
            spent[part] += seconds
        newest = _newest(log)
        steps += max(row.steps, int(newest.get("step", 0)))
        tokens += int(newest.get("tokens", 0))
        for name in ("reference_tokens", "reference_tokens_saved"):
            if name in newest:
                reference[name] = reference.get(name, 0) + int(newest[name])
    total = sum(spent.values())
    worker_hours = resources.workers * total / 3600
    return Usage(
        trial_s=total,
        optimizer_steps=steps,
        trained_tokens=tokens,
        cpu_hours=resources.cpus_per_worker * worker_hours,
        gpu_hours=resources.gpus_per_worker * worker_hours,
        shares={part: seconds / total for part, seconds in spent.items()} if total else {},
        reference_tokens=reference.get("reference_tokens"),
        reference_tokens_saved=reference.get("reference_tokens_saved"),
    )


@dataclass
class _Clock:
    """Walks through a log and attributes the time between two events to a part."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    at_ms: int | None = None
    step: int = 0
    started: bool = False
    saves: bool = False
    before_pauses_s: float = 0.0

    def start(self, event: Event) -> None:
        """The time between an attempt's last report and the next attempt is not counted."""
        self.at_ms, self.started, self.saves = event["timestamp_ms"], False, False

    def report(self, event: Event) -> None:
        gap, metrics = self._until(event), event["metrics"]
        trained = max(0, event["step"] - self.step) / metrics.get("steps_per_second", float("inf"))
        training = min(gap, trained)
        self.spent["training"] += training
        evaluated = bool(event.get("evaluated")) and event["step"] > 0
        rest = "evaluation" if evaluated else "saving" if self.saves else "waiting"
        self.spent[rest if self.started else "starting"] += gap - training
        self.step, self.started, self.saves = event["step"], True, evaluated

    def pause(self, event: Event) -> None:
        """The checkpoint comes after the rung's report; no time is counted until the trial starts again or ends."""
        saving = self._until(event)
        self.spent["saving"] += saving
        self.before_pauses_s += saving
        self.at_ms = None

    def end(self, event: Event) -> None:
        self.spent["waiting" if self.started else "starting"] += self._until(event)
        self.at_ms = None

    def _until(self, event: Event) -> float:
        """Seconds since the last event; never negative, though other machines' clocks differ."""
        before = event["timestamp_ms"] if self.at_ms is None else self.at_ms
        self.at_ms = max(before, event["timestamp_ms"])
        return (self.at_ms - before) / 1000


def _spent(row: TrialRow, log: Sequence[Event]) -> dict[str, float]:
    """Seconds of a trial by part.

    A trial that ended by itself has recorded its parts. For one that was stopped or is running they come from the times
    of its reports: apart from training, the time before an evaluated report is the evaluation, the time after it the
    checkpoint.
    """
    clock = _Clock()
    for event in log:
        if event["kind"] in ("start", "report", "pause", "end"):
            getattr(clock, event["kind"])(event)
    spent, books = clock.spent, row.attrs.get("seconds")
    if not books:
        return spent
    known = {part: float(books.get(part, 0.0)) for part in BOOKS}
    known["saving"] += clock.before_pauses_s  # what a trial has recorded was in the checkpoint already
    rest = sum(spent.values()) - spent["training"] - spent["starting"] - sum(known.values())
    # An evaluation in the first report of a promoted trial is in what it has recorded, and here in its start.
    starting = max(0.0, spent["starting"] + min(0.0, rest))
    return spent | known | {"starting": starting, "other": max(0.0, rest)}


def _newest(log: Sequence[Event]) -> dict[str, float]:
    """The newest value of every metric, and the step of the newest report."""
    newest: dict[str, float] = {}
    for event in log:
        if event["kind"] == "report":
            newest |= {**event["metrics"], "step": event["step"]}
    return newest


def events_of(events: EventLog, number: int) -> Iterator[Event]:
    """The events of a trial, one after another."""
    offset = 0
    while lines := events.read(number, offset):
        yield from (event for line, _ in lines if (event := parsed(line)) is not None)
        offset = lines[-1][1]
