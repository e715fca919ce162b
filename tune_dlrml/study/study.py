"""The one place where the decisions of a search are recorded: its trials, its verdicts, how each trial ended."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from tune_dlrml.config import SchedulerConfig, SearchConfig
from tune_dlrml.errors import InputError, NotFiniteError
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.database import one_transaction, open_storage
from tune_dlrml.study.feasibility import broken, excesses
from tune_dlrml.study.halving import Candidate, Promotions, needs_of, rung_steps, survives
from tune_dlrml.study.history import (
    CODE,
    CONSTRAINED,
    DIVERGED,
    DRIVER,
    RACE,
    SPENT,
    START,
    VERDICTS,
    StudyHistory,
    TrialRow,
    Verdict,
    paused_at,
    row_of,
)
from tune_dlrml.study.proposer import Proposer, When
from tune_dlrml.study.resumable import refuse_differences
from tune_dlrml.study.sampling import Given, record, with_running_pruned

SEARCH_ID = "search_id"
"""Name of the study's attribute that identifies its folder."""
LOSSES = "losses"
"""Name of the attribute that counts how often a trial lost its workers, its slot or its node."""


@dataclass
class _OpenTrial:
    """A running trial, with what the study holds of it: this process is the study's only writer.

    `earlier_attrs` are the names of rungs and constraints that an earlier driver left behind.
    """

    trial: optuna.Trial
    values: dict[int, float] = field(default_factory=dict)
    constrained: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    earlier_attrs: frozenset[str] = frozenset()


class SearchStudy(StudyHistory):
    """A search as an Optuna study, new or resumed.

    Every decision is in the study before it is acted on. A driver that dies leaves trials RUNNING: they are
    `interrupted` at the next start and keep their number when they are issued again. For Optuna a paused trial is
    RUNNING, too; the verdict `pause` of its last rung, which becomes `continue` when it is promoted, says so.

    Args:
        config: The search; its name is the study's.
        proposer: The source of its trials.
        url: SQLAlchemy URL of the study's storage.
        full_steps: Full budget of a trial in optimizer steps.
        hashes: Of the data's content (`data_hash`) and of its tokens (`token_hash`), by section; like the settings,
            they must be the same when the search is resumed.
        start_points: The points that it starts with, kept where some are those of an earlier search.

    Raises:
        InputError: The storage cannot be opened, or the study was started with other settings.
    """

    def __init__(
        self,
        config: SearchConfig,
        proposer: Proposer,
        url: str,
        full_steps: int,
        hashes: Mapping[str, Mapping[str, str]] | None = None,
        start_points: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.rungs = rung_steps(config.search.scheduler, full_steps)
        backend = open_storage(url)
        study = optuna.create_study(
            study_name=config.name,
            storage=backend,
            direction="maximize" if config.search.maximize else "minimize",
            sampler=Given({}),
            pruner=_pruner(config.search.scheduler, self.rungs),
            load_if_exists=True,
        )
        super().__init__(study, backend)
        self.config, self.full_steps = config, full_steps
        self._proposer = proposer
        self.metric = config.search.metric
        self._constraints = config.search.constraints or {}
        self._adopt_settings(hashes or {})
        if start_points is not None and self.start_points is None:
            self._study.set_user_attr(START, [dict(point) for point in start_points])
        rows = self.rows()
        self._total = proposer.total(rows)
        self._issued = len(rows)
        self._under_way = {row.number for row in rows if not row.state.ended}
        self._open_trials: dict[int, _OpenTrial] = {}
        self._promotions = self._restored_promotions()
        self._branches = {row.number: row.spec.branch for row in rows if row.spec is not None}
        self._complete = {row.number: row.feasible for row in rows if row.state is State.COMPLETE}

    def _restored_promotions(self) -> Promotions:
        """What earlier drivers have decided at the rungs."""
        scheduler = self.config.search.scheduler
        factor = 1 if scheduler is None else scheduler.reduction_factor
        promotions = Promotions(len(self.rungs), factor, maximize=self.maximize, baseline=self._baseline)
        for trial in self._study.get_trials(deepcopy=False):
            verdicts = trial.user_attrs.get(VERDICTS, {})
            for rung, step in enumerate(self.rungs):
                if verdicts.get(str(step), "prune") != "prune":
                    promotions.rungs[rung][trial.number] = trial.intermediate_values[step]
            at = paused_at(trial)
            if at is not None:
                promotions.paused[trial.number] = self.rungs.index(at)
        return promotions

    def _adopt_settings(self, hashes: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse settings other than those of an earlier driver, and record new ones."""
        # Without `tracking`: the address of a server may hold a password.
        new: dict[str, Any] = {
            "full_steps": self.full_steps,
            "config": self.config.model_dump(mode="json", exclude={"tracking"}),
        } | {name: dict(each) for name, each in hashes.items()}
        old = self._study.user_attrs
        refuse_differences(self.config.name, old, new)
        for key, value in new.items():
            if key not in old or old[key] != value:
                self._study.set_user_attr(key, value)

    def sign(self, host: str, pid: int, since: str, code: Mapping[str, str]) -> None:
        """Record the driver of the search, for the message to a second driver, and its code, for reports."""
        self._study.set_user_attr(DRIVER, {"host": host, "pid": pid, "since": since})
        self._study.set_user_attr(CODE, dict(code))

    def keep_time(self, spent_s: float) -> None:
        """Record for how long all drivers together have trained the search."""
        self._study.set_user_attr(SPENT, spent_s)

    def plan_race(self, seeds: int) -> None:
        """Record, before its first trial, that a confirmation is a race planned for so many seeds."""
        self._study.set_user_attr(RACE, seeds)

    def belong_to(self, folder: Path, identity: str) -> None:
        """Tie the study to the folder with the logs and checkpoints of its search, when the first driver starts.

        Raises:
            InputError: The folder belongs to another search.
        """
        known = self._study.user_attrs.get(SEARCH_ID)
        if known is None and (self.rows() or any(folder.glob("trials/*"))):
            known = "none"
        if known is None:
            self._study.set_user_attr(SEARCH_ID, identity)
        elif known != identity:
            raise InputError(
                f"the study of search {self.config.name!r} and the trials in {folder} belong to different searches; "
                "give the --storage and the --study-url that it was started with, or another --name"
            )

    @property
    def num_trials(self) -> int:
        """Total number of trials; where their source has ended early, of those that were issued."""
        return self._issued if self._when() == "never" else self._total

    def _when(self) -> When:
        return "never" if self._issued >= self._total else self._proposer.when(self, self._issued)

    def waits(self) -> bool:
        """Whether the next trial is not known yet, and will be."""
        return self._when() == "later"

    def ask(self) -> TrialSpec | None:
        """Issue the next trial, a paused one that is promoted or a new one; None where there is none, or none yet."""
        promoted = self._promotions.next(self._wanted())
        if promoted is not None:
            return self._promote(promoted)
        if self._when() != "now":
            return None
        trial = self._study.ask()
        self._issued = trial.number + 1
        self._open_trials[trial.number] = _OpenTrial(trial)
        self._under_way.add(trial.number)
        return self._record_proposal(trial)

    def _record_proposal(self, trial: optuna.Trial) -> TrialSpec:
        proposal = self._proposer.propose(self, trial.number)
        with one_transaction(self._backend):
            record(trial, proposal.spec.params, proposal.domains)
            return self._store(trial, proposal.spec)

    def _store(self, trial: optuna.Trial, spec: TrialSpec) -> TrialSpec:
        trial.set_user_attr("spec", spec.model_dump(mode="json"))
        self._branches[spec.number] = spec.branch
        return spec

    def _wanted(self, arriving: int | None = None) -> Collection[int]:
        """The trials that are promoted at any place, since the search has no other left and lacks complete ones.

        The baseline is not one that it lacks.

        Args:
            arriving: A trial that is at a rung and not paused yet.
        """
        if not self.pauses or self._when() != "never":
            return ()
        numbers = self._promotions.paused.keys() | (set() if arriving is None else {arriving})
        paused = {number: Candidate(self._loss_of(number), not self._broken(self._open(number))) for number in numbers}
        running = [self._loss_of(number) for number in self._under_way - numbers - {self._baseline}]
        complete = [
            Candidate(self._loss_of(number), feasible)
            for number, feasible in self._complete.items()
            if number != self._baseline
        ]
        return {number for needs in needs_of(self.config) for number in needs.lacking(paused, running, complete)}

    def _loss_of(self, number: int) -> str:
        return self._branches.get(number, "")

    @property
    def _baseline(self) -> int | None:
        return None if self.config.baseline_loss() is None else 0

    def _promote(self, number: int) -> TrialSpec:
        known, step = self._open(number), self.rungs[self._promotions.paused[number]]
        known.verdicts[str(step)] = "continue"
        known.trial.set_user_attr(VERDICTS, known.verdicts)
        del self._promotions.paused[number]
        return TrialSpec.from_json(known.trial.user_attrs["spec"])

    @property
    def paused(self) -> dict[int, int]:
        """The steps at which trials are paused, by their numbers."""
        return {number: self.rungs[rung] for number, rung in sorted(self._promotions.paused.items())}

    def for_samplers(self) -> optuna.Study:
        """The study; where running trials have values and may pause, a copy in which those are pruned at the last one.

        For Optuna paused trials are running, and so are those that were promoted, the best; its samplers take a running
        trial for a bad one.
        """
        if not self.pauses or not self._under_way:
            return self._study
        trials = self._study.get_trials(deepcopy=False)
        measured = {
            number: self._constraints_of(trials[number].user_attrs.get(CONSTRAINED, {}), diverged=False)
            for number in self._under_way
            if trials[number].intermediate_values
        }
        return with_running_pruned(self._study, measured) if measured else self._study

    def interrupted(self) -> list[int]:
        """Trials that an earlier driver left running, in the order of their numbers."""
        return sorted(self._under_way - self._open_trials.keys() - self._promotions.paused.keys())

    def reissue(self, number: int) -> TrialSpec:
        """Issue a running trial once more: same number and point, attempt + 1.

        A trial whose driver died before its proposal was recorded has not been issued before; it is issued now.
        """
        trial = self._open(number).trial
        stored = trial.user_attrs.get("spec")
        if stored is None:
            return self._record_proposal(trial)
        spec = TrialSpec.from_json(stored)
        return self._store(trial, spec.model_copy(update={"attempt": spec.attempt + 1}))

    def record(self, number: int, step: int, value: float) -> None:
        """Record the objective of a trial at a rung or at the full budget; the first value at a step is kept.

        Raises:
            NotFiniteError: `value` is not finite.
            ValueError: `step` is neither a rung nor the full budget.
        """
        if not math.isfinite(value):
            raise NotFiniteError(
                f"an objective must be finite, but {self.metric} of trial {number} is {value} at step {step}; "
                "a trial without a finite objective has diverged"
            )
        if not self.is_rung(step) and step != self.full_steps:
            raise ValueError(f"objectives are recorded at steps {[*self.rungs, self.full_steps]}, but got step {step}")
        known = self._open(number)
        if step not in known.values:
            known.trial.report(value, step)
            known.values[step] = value

    def judge(self, number: int, step: int, metrics: Mapping[str, float]) -> Verdict:
        """Record an objective and give the verdict on it, as `record` and `verdict` do, in one transaction."""
        with one_transaction(self._backend):
            self.record(number, step, metrics[self.metric])
            self._record_constrained(number, metrics)
            return self.verdict(number, step)

    @property
    def needed_metrics(self) -> tuple[str, ...]:
        """Metrics that an evaluation must report: the objective, and those that are bounded."""
        return (self.metric, *self._constraints)

    def _record_constrained(self, number: int, metrics: Mapping[str, float]) -> None:
        known = self._open(number)
        known.constrained = {name: metrics[name] for name in self._constraints}
        if known.constrained:
            known.trial.set_user_attr(CONSTRAINED, known.constrained)

    def steps_reached(self, number: int) -> int:
        """The last step at which a running trial has an objective; 0 before the first."""
        return max(self._open(number).values, default=0)

    def is_rung(self, step: int) -> bool:
        """Whether trials wait for a verdict at this step."""
        return step in self.rungs

    def verdict(self, number: int, step: int) -> Verdict:
        """Whether a trial continues after a rung, once its value there is recorded.

        The verdict is written before it is returned, and a second call returns the same one. A trial that reached the
        full budget is never pruned, and the baseline is never paused.
        """
        known = self._open(number)
        key = str(step)
        if not self.is_rung(step):
            return "continue"
        if key not in known.verdicts:
            known.verdicts[key] = self._decide(known, number, step)
            known.trial.set_user_attr(VERDICTS, known.verdicts)
        return known.verdicts[key]

    def _decide(self, known: _OpenTrial, number: int, step: int) -> Verdict:
        if self._broken(known, pruning=True):
            return "prune"
        if not self.pauses:
            return "continue" if self._passes(known, step) else "prune"
        goes_on = self._promotions.arrive(number, self.rungs.index(step), known.values[step], self._wanted(number))
        return "continue" if goes_on else "pause"

    @property
    def pauses(self) -> bool:
        """Whether trials are paused at rungs, instead of pruned at once."""
        scheduler = self.config.search.scheduler
        return scheduler is not None and scheduler.pauses

    def _passes(self, known: _OpenTrial, step: int) -> bool:
        judged = f"completed_rung_{self.rungs.index(step)}"
        if judged not in known.earlier_attrs:
            return not known.trial.should_prune()
        # The pruner has recorded the rung, so it would not answer again, but its driver died before the verdict.
        attrs = [trial.system_attrs for trial in self._study.get_trials(deepcopy=False)]
        recorded = [float(own[judged]) for own in attrs if judged in own]
        scheduler = self.config.search.scheduler
        assert scheduler is not None
        return survives(known.values[step], recorded, scheduler.reduction_factor, maximize=self.maximize)

    def pruned_at(self, number: int) -> int | None:
        """Step of a recorded verdict that ends the trial; None if there is none."""
        verdicts = self._open(number).verdicts
        return next((int(step) for step, verdict in verdicts.items() if verdict == "prune"), None)

    def prune_reason(self, number: int, step: int) -> str:
        """Why the verdict at a rung ends the trial."""
        broken = self._broken(self._open(number), pruning=True)
        return f"search.constraints at step {step}" if broken else f"successive halving at step {step}"

    def _broken(self, known: _OpenTrial, *, pruning: bool = False) -> str:
        """The constraints that a trial breaks at its last evaluation; with `pruning`, of those that prune alone."""
        which = {name: bounds for name, bounds in self._constraints.items() if bounds.prune or not pruning}
        return broken(which, known.constrained) if known.constrained else ""

    def set_attribute(self, number: int, key: str, value: Any) -> None:
        """Record a JSON value with a running trial; a trial that has ended accepts no more."""
        self._open(number).trial.set_user_attr(key, value)

    def count_loss(self, number: int) -> int:
        """Count that a trial lost its workers; how often it may still lose them, -1 if it has exceeded the limit.

        Only this counts against `search.max_failures`: the death of a driver does not.
        """
        known = self._open(number).trial
        losses = int(known.user_attrs.get(LOSSES, 0)) + 1
        known.set_user_attr(LOSSES, losses)
        return max(-1, self.config.search.max_failures - losses)

    def finish(self, outcome: TrialOutcome, steps: int) -> TrialRow:
        """End a trial, `steps` optimizer steps after its start.

        Diverged trials are reported to the sampler as pruned and infeasible, so that it avoids their region; from
        failed trials it would learn nothing.

        Raises:
            ValueError: The trial is to be COMPLETE, but has no value at the full budget.
        """
        known = self._open(outcome.number)
        value = known.values.get(self.full_steps)
        if outcome.state is State.COMPLETE and value is None:
            raise ValueError(
                f"a complete trial has {self.metric} at step {self.full_steps}, but trial {outcome.number} has none"
            )
        complete = outcome.state is State.COMPLETE
        with one_transaction(self._backend):
            self._describe_end(known, outcome, steps)
            ended = self._study.tell(known.trial, value if complete else None, state=_OPTUNA_STATES[outcome.state])
        del self._open_trials[outcome.number]
        self._under_way.remove(outcome.number)
        self._promotions.paused.pop(outcome.number, None)
        row = row_of(ended, self._constraints)
        if complete:
            self._complete[row.number] = row.feasible
        return row

    def _describe_end(self, known: _OpenTrial, outcome: TrialOutcome, steps: int) -> None:
        breaks = self._broken(known)
        reason = f"{outcome.reason}; infeasible: {breaks}" if breaks else outcome.reason
        attrs: dict[str, Any] = {"stop_reason": reason, "steps": steps}
        attrs |= {"seconds": dict(outcome.seconds)} if outcome.seconds else {}
        attrs |= {"exception": outcome.exception} if outcome.exception else {}
        for key, value in attrs.items():
            known.trial.set_user_attr(key, value)
        for name, excess in self._constraints_of(known.constrained, diverged=outcome.state is State.DIVERGED).items():
            if name not in known.earlier_attrs:
                known.trial.set_constraint(name, excess)

    def _constraints_of(self, constrained: Mapping[str, float], *, diverged: bool) -> dict[str, float]:
        """Of a trial with these bounded metrics, as Optuna has them: above 0 it is infeasible."""
        bounded = excesses(self._constraints, constrained) if constrained else {}
        return {DIVERGED: 1.0 if diverged else 0.0} | bounded

    def _open(self, number: int) -> _OpenTrial:
        """A running trial, fetched from the study if an earlier driver issued it."""
        if number not in self._open_trials:
            frozen = self._study.get_trials(deepcopy=False)[number]
            self._open_trials[number] = _OpenTrial(
                optuna.Trial(self._study, frozen._trial_id),  # the one way to reopen a trial
                values=dict(frozen.intermediate_values),
                constrained=dict(frozen.user_attrs.get(CONSTRAINED, {})),
                verdicts=dict(frozen.user_attrs.get(VERDICTS, {})),
                earlier_attrs=frozenset(frozen.system_attrs) | frozenset(frozen.constraints),
            )
        return self._open_trials[number]


_OPTUNA_STATES = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.DIVERGED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


def _pruner(scheduler: SchedulerConfig | None, rungs: Sequence[int]) -> optuna.pruners.BasePruner:
    if not rungs or scheduler is None or scheduler.pauses:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=scheduler.reduction_factor)
