"""What the trials of a loss measured, in numbers and in a sentence that goes back to proposers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from tune_dlrml.metrics import METRICS
from tune_dlrml.records import State
from tune_dlrml.study.history import TrialRow, ranked

CONTEXT = ("eval_kl", "eval_trap_fraction")
"""Metrics that say what the objective cost."""
EARLY = (State.RUNNING, State.PAUSED, State.PRUNED)
"""How trials are that have measured the objective before their full budget, and may have had a good one."""
NOT_JUDGED: Mapping[int, Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True)
class Score:
    """The trials of one loss so far.

    Attributes:
        trial: Its best complete trial that breaks no constraint; None without one.
        value: Its objective there; without one, the best of its running, paused and pruned trials that got furthest.
        error: Standard error of the value over the held-out pairs; None where it was not reported.
        settings: The values that its trials vary, there.
        context: Other metrics there, see `CONTEXT`.
        states: How many of its trials ended how.
        judged: Mean rating of its answers there, of 1 to 10, by judge; empty while they are not judged.
        steps: Optimizer steps after which the value was measured, without a complete trial; else None.
    """

    trial: int | None
    value: float | None
    error: float | None
    settings: Mapping[str, Any]
    context: Mapping[str, float]
    states: Mapping[str, int]
    judged: Mapping[str, float]
    steps: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For a proposal's file."""
        return asdict(self)

    def sentence(self, metric: str) -> str:
        """What was measured, such as `accuracy 0.583 +- 0.02 at beta 0.1; KL 3.1 nats; 2 complete, 1 pruned`.

        Without a complete trial it says so: `accuracy 0.54 at beta 0.1 after 10 steps, none complete; 2 paused`.
        """
        ends = ", ".join(f"{count} {state}" for state, count in self.states.items())
        if self.value is None:
            return f"no value ({ends})"
        error = "" if self.error is None else f" +- {self.error:.2g}"
        at = ", ".join(f"{key} {value:.3g}" for key, value in self.settings.items() if isinstance(value, float | int))
        none = "none complete within the constraints" if str(State.COMPLETE) in self.states else "none complete"
        early = "" if self.steps is None else f" after {self.steps} steps, {none}"
        said = [f"{METRICS[metric].words} {self.value:.3f}{error}{f' at {at}' if at else ''}{early}"]
        said += [f"{METRICS[name].words} {value:.3g}" for name, value in self.context.items()]
        said += [f"answers rated {rating:.2f} of 10 by {judge}" for judge, rating in self.judged.items()]
        return "; ".join([*said, ends])


def scores_of(
    rows: Sequence[TrialRow],
    metrics: Mapping[int, Mapping[str, float]],
    metric: str,
    *,
    maximize: bool,
    judged: Mapping[int, Mapping[str, Any]] = NOT_JUDGED,
) -> dict[str, Score]:
    """The score of every loss that has a trial which has ended or was measured, by branch, the best first.

    Trials that break a constraint do not count. A loss with a complete one is before one without, and one whose trials
    got further before one whose did not: what was measured at different steps is not compared.

    Args:
        rows: The trials.
        metrics: Their newest metrics, by number.
        metric: The objective.
        maximize: Whether larger values of it are better.
        judged: Results of judging by number, see `SearchResult.judged`.
    """
    sign = -1.0 if maximize else 1.0
    early = [row for row in rows if row.state in EARLY and row.feasible and row.value is not None]
    early.sort(key=lambda row: (-row.steps, sign * float(row.value or 0.0), row.number))
    order = [row.number for row in (*ranked(rows, maximize=maximize), *early)]
    by_branch: dict[str, list[TrialRow]] = {}
    for row in rows:
        if row.spec is not None and (row.state is not State.RUNNING or row.value is not None):
            by_branch.setdefault(row.spec.branch, []).append(row)
    found = {branch: _score(own, order, metrics, metric, judged) for branch, own in by_branch.items()}
    return dict(sorted(found.items(), key=lambda each: _place(by_branch[each[0]], order)))


def _score(
    rows: Sequence[TrialRow],
    order: Sequence[int],
    metrics: Mapping[int, Mapping[str, float]],
    metric: str,
    judged: Mapping[int, Mapping[str, Any]],
) -> Score:
    states, place = dict(Counter(str(row.state) for row in rows)), _place(rows, order)
    best = next((row for row in rows if [row.number] == order[place : place + 1]), None)
    if best is None or best.spec is None:
        return Score(None, None, None, {}, {}, states, {})
    own = metrics.get(best.number, {})
    varied = {key.partition(".")[2]: value for key, value in best.params.items()} or {
        key: value for key, value in best.spec.loss.flat().items() if isinstance(value, float)
    }
    settings = {key.removeprefix("params."): value for key, value in varied.items()}
    context = {name: own[name] for name in CONTEXT if name in own}
    said = judged.get(best.number, {}).get("scores", ())
    ratings = {each["judge"]: each["score"] for each in said if each["score"] is not None}
    trial, steps = (best.number, None) if best.state is State.COMPLETE else (None, best.steps)
    return Score(trial, best.value, own.get(METRICS[metric].error), settings, context, states, ratings, steps)


def _place(rows: Sequence[TrialRow], order: Sequence[int]) -> int:
    """The first place that one of these trials has in an order; behind it where none has."""
    return min((order.index(row.number) for row in rows if row.number in order), default=len(order))
