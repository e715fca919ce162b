"""The data of a report: a search's settings, trials and curves, from its study and event logs alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from tune_dlrml.config import SearchConfig, load_config
from tune_dlrml.discovery.archive import PROPOSALS, Archive, ProposalRecord
from tune_dlrml.events import Event, EventLog, as_report, parsed
from tune_dlrml.records import Report, State
from tune_dlrml.search.result import SearchPlace, read_search
from tune_dlrml.search.usage import Usage, read_usage
from tune_dlrml.study.halving import rung_steps
from tune_dlrml.study.history import Importance, StudyHistory, TrialRow

BASELINE = "baseline"
"""Branch of trial 0, the plain DPO."""
TRAPPED = 0.5
"""Share of held-out pairs in the trap above which a trial is called trapped."""


@dataclass(frozen=True)
class Shape:
    """Where a loss lies on the stability map.

    Attributes:
        beta_kl: Strength, per nat of margin; `beta` of losses that call it so.
        c: Shape number beta_mix / (tau * beta_kl), the newest value if learnt; None without mixing.
        c_start: Its value at the start of training.
    """

    beta_kl: float
    c: float | None = None
    c_start: float | None = None


@dataclass(frozen=True)
class TrialData:
    """One trial with its curve.

    Attributes:
        row: The study's record.
        reports: In the order of their steps.
        spells: Periods of time, each with the step at which it ended and its seconds.
        judged: Results of judging its answers.
    """

    row: TrialRow
    reports: tuple[Report, ...] = ()
    spells: tuple[tuple[int, float], ...] = ()
    judged: Mapping[str, Any] | None = None

    @property
    def number(self) -> int:
        """Optuna's number."""
        return self.row.number

    @property
    def state(self) -> State:
        """Running, paused, or one of the four ends."""
        return self.row.state

    @property
    def branch(self) -> str:
        """Label of the loss; a trial that was never issued has none."""
        return "unknown" if self.row.spec is None else self.row.spec.branch

    @property
    def kind(self) -> str | None:
        """Whether its loss is pairwise or pointwise; None where that is not known."""
        return None if self.row.spec is None else self.row.spec.loss.kind

    @property
    def steps(self) -> int:
        """Optimizer steps trained, from study or log."""
        return max(self.row.steps, self.reports[-1].step if self.reports else 0)

    @cached_property
    def newest(self) -> Mapping[str, float]:
        """The newest value of every metric."""
        found: dict[str, float] = {}
        for report in self.reports:
            found |= report.metrics
        return found

    @cached_property
    def evaluations(self) -> tuple[Report, ...]:
        """Reports with held-out numbers of a policy that was trained."""
        return tuple(report for report in self.reports if report.evaluated and report.step > 0)

    @property
    def last(self) -> Mapping[str, float]:
        """Held-out metrics of the last evaluation; empty before the first."""
        return self.evaluations[-1].metrics if self.evaluations else {}

    @property
    def trapped(self) -> bool:
        """Whether more than half of the held-out pairs lay in the trap at the last evaluation."""
        return self.last.get("eval_trap_fraction", 0.0) > TRAPPED

    @property
    def learnt(self) -> tuple[str, ...]:
        """Metrics of the parameters trained beside the policy; empty where there are none."""
        return () if self.row.spec is None else self.row.spec.loss.learnt_metrics()

    @cached_property
    def shape(self) -> Shape | None:
        """Place of its loss on the map; None for a loss without a strength."""
        if self.row.spec is None:
            return None
        loss = self.row.spec.loss
        if not isinstance(loss.strength, int | float):
            return None
        start = loss.shape_number()
        return Shape(float(loss.strength), self.newest.get("c", start), start)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that distinguish the trial: the loss's values and the searched training settings."""
        return {} if self.row.spec is None else self.row.spec.shown()


@dataclass(frozen=True)
class SearchData:
    """The data of a search for a report.

    Attributes:
        branches: Labels of the losses that trials have, the baseline first, then as in the file.
        code: Versions that the newest driver ran with.
        best_infeasible: The trial that would be best without `search.constraints`; None if it is the best.
        front: The feasible complete trials that no other one beats in both objective and KL, by rising KL.
        proposals: Those of a search with `discovery`.
        importance: None where too few trials have an objective at the same step.
        read_at: When all this was read, UTC.
    """

    config: SearchConfig
    trials: tuple[TrialData, ...]
    best: int | None
    full_steps: int
    rungs: tuple[int, ...]
    usage: Usage
    best_infeasible: int | None = None
    front: tuple[int, ...] = ()
    importance: Importance | None = None
    proposals: tuple[ProposalRecord, ...] = ()
    code: Mapping[str, str] = field(default_factory=dict)
    data_hash: Mapping[str, str] = field(default_factory=dict)
    read_at: str = ""

    @property
    def metric(self) -> str:
        """Name of the objective."""
        return self.config.search.metric

    @property
    def maximize(self) -> bool:
        """Whether larger values of it are better."""
        return self.config.search.maximize

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """Labels of the losses that trials have: the baseline, those of the file, then those that were proposed."""
        known = {trial.branch for trial in self.trials}
        first = [BASELINE, *self.config.known_losses().branches()]
        order = dict.fromkeys([*first, *(trial.branch for trial in self.trials)])
        return tuple(name for name in order if name in known)

    def of(self, branch: str) -> list[TrialData]:
        """The trials of one loss."""
        return [trial for trial in self.trials if trial.branch == branch]

    def trial(self, number: int | None) -> TrialData | None:
        """One trial by its number."""
        return next((trial for trial in self.trials if trial.number == number), None)

    @property
    def tau(self) -> float:
        """The temperature for computing beta_mix from c; the published one where trials differ in it."""
        mixed = [trial.row.spec for trial in self.trials if trial.shape is not None and trial.shape.c is not None]
        taus = {getattr(spec.loss, "tau", None) for spec in mixed if spec is not None}
        known = [tau for tau in taus if isinstance(tau, float)]
        return known[0] if len(known) == 1 else 0.05


def read_data(name: str, place: SearchPlace) -> SearchData:
    """Read all data for the report of a search, which may be running in another process.

    Raises:
        InputError: There is no such search.
        StorageError: A line of an event log is broken.
    """
    result = read_search(name, place)
    folder = place.folder(name)
    located, config = place.of(load_config(folder / "search.yaml"))
    history = StudyHistory.open(located.study_url(name), name)
    try:
        full_steps, importance = history.stored_full_steps, history.importance()
        code, data_hash = history.code, history.data_hash
    finally:
        history.close()
    log = EventLog(folder)
    return SearchData(
        config=config,
        trials=tuple(_trial(row, list(_events(log, row.number)), result.judged.get(row.number)) for row in result.rows),
        best=result.best,
        best_infeasible=result.best_infeasible,
        front=result.front,
        full_steps=full_steps,
        rungs=rung_steps(config.search.scheduler, full_steps),
        usage=read_usage(result, place),
        importance=importance,
        proposals=tuple([] if config.discovery is None else Archive(folder / PROPOSALS, config.discovery).records()),
        code=code,
        data_hash=data_hash,
        read_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _trial(row: TrialRow, events: Sequence[Event], judged: Mapping[str, Any] | None) -> TrialData:
    reports = tuple(as_report(event) for event in events if event["kind"] == "report")
    return TrialData(row, reports, tuple(_spells(events)), judged)


def _events(log: EventLog, number: int) -> Iterator[Event]:
    offset = 0
    while lines := log.read(number, offset):
        yield from (event for line, _ in lines if (event := parsed(line)) is not None)
        offset = lines[-1][1]


def _spells(events: Sequence[Event]) -> Iterator[tuple[int, float]]:
    """Time between events, at the step reached; the time of a pause or before a further attempt is not counted."""
    before: int | None = None
    step = 0
    for event in events:
        if event["kind"] == "judged":
            continue
        at = event["timestamp_ms"]
        if event["kind"] == "report":
            step = event["step"]
        if before is not None and event["kind"] != "start":
            yield step, max(0, at - before) / 1000
            at = max(at, before)  # clocks of machines differ
        before = None if event["kind"] == "pause" else at


def finite(value: float | None) -> float | None:
    """The value if it is finite, else None: pages and documents have no other numbers."""
    return value if value is not None and math.isfinite(value) else None
