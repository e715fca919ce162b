"""How the confirming trials of a search ended, and the differences between two settings under the same seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tune_dlrml.events import EventLog
from tune_dlrml.losses.registry import is_baseline
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.records import MARGINS, State
from tune_dlrml.search.confirm.finalists import identity
from tune_dlrml.search.confirm.paired import Difference, crossed_difference, paired_difference
from tune_dlrml.study.feasibility import Constraints, broken
from tune_dlrml.study.history import TrialRow

Run = tuple[int, int]
"""A confirming trial: the trial of the search that it repeats, and its seed."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one training: the search's metric, and that of every held-out pair where it is known.

    `infeasible` says that it breaks a constraint of the search, as far as its metrics are known, and `is_dpo` that its
    setting is plain DPO, which finalists may be compared with.
    """

    state: State
    value: float | None
    of_pairs: tuple[float, ...] | None = None
    infeasible: bool = False
    is_dpo: bool = False

    @property
    def number(self) -> float:
        """The value of one that has one."""
        assert self.value is not None
        return self.value


Pair = tuple[Outcome, Outcome]
"""Two trainings of one seed that both have a value."""


def in_means(state: State, measured: float | None, untrained: float | None) -> float | None:
    """The value of one training in a mean over seeds; None where it is left out.

    A diverged training counts as the untrained reference: leaving it out would make a setting that diverges under every
    other seed look like its better half. One that failed or is still running says nothing about its setting.

    Args:
        state: How it ended.
        measured: Its own value.
        untrained: The value of the reference.
    """
    if state is State.DIVERGED:
        return untrained
    return measured if state is State.COMPLETE else None


def outcomes(
    rows: Sequence[TrialRow], metric: str, folder: Path | None = None, constraints: Constraints | None = None
) -> dict[Run, Outcome]:
    """The confirming trials that have ended.

    Args:
        rows: All confirming trials.
        metric: What is compared.
        folder: Of the confirmation, where trials may have stored the margins of their pairs.
        constraints: Those of the search.
    """
    ended = [row for row in rows if row.spec is not None and row.state.ended]
    return {
        identity(row.spec): replace(
            _outcome(row, METRICS[metric], folder, constraints or {}), is_dpo=is_baseline(row.spec.loss)
        )
        for row in ended
        if row.spec is not None
    }


def _outcome(row: TrialRow, metric: Metric, folder: Path | None, constraints: Constraints) -> Outcome:
    value = in_means(row.state, row.value, _untrained(row, metric, folder))
    if row.state is not State.COMPLETE or folder is None:
        return Outcome(row.state, value)
    path, of_pairs = folder / "trials" / str(row.number) / MARGINS, None
    if metric.of_pair is not None and path.exists():
        of_pairs = tuple(metric.of_pair(margin) for margin in json.loads(path.read_bytes()))
    infeasible = bool(constraints) and _breaks(EventLog(folder).last_metrics(row.number), constraints)
    return Outcome(row.state, value, of_pairs, infeasible)


def _breaks(metrics: Mapping[str, float], constraints: Constraints) -> bool:
    known = {name: ends for name, ends in constraints.items() if name in metrics}
    return bool(broken(known, metrics))


def _untrained(row: TrialRow, metric: Metric, folder: Path | None) -> float | None:
    """The value of the reference: that of every training, or the one that this training began with."""
    if metric.untrained is not None or folder is None or row.state is not State.DIVERGED:
        return metric.untrained
    return next((report.metrics.get(metric.name) for report in EventLog(folder).reports(row.number)), None)


def pairs_of(ended: Mapping[Run, Outcome], ours: int, theirs: int, seeds: Sequence[int]) -> list[Pair]:
    """The trainings of two settings under those seeds under which both have a value."""
    both = [(ended.get((ours, seed)), ended.get((theirs, seed))) for seed in seeds]
    return [
        (one, other)
        for one, other in both
        if one is not None and other is not None and one.value is not None and other.value is not None
    ]


def compared_before(ended: Mapping[Run, Outcome], finalists: Sequence[int], baseline: int) -> int:
    """Number of other trials that the confirmation has trained, as finalists of before: they were comparisons, too.

    Without them a search could be left fewer finalists once their results are known, and its p-values would be raised
    for those alone. Plain DPO is left out, since it may have been the baseline of before.
    """
    return len({trial for (trial, _), own in ended.items() if not own.is_dpo} - {*finalists, baseline})


def difference_of(pairs: Sequence[Pair]) -> Difference:
    """By seed and held-out pair where every complete training has stored its margins, else by seed."""
    known = {len(outcome.of_pairs) for pair in pairs for outcome in pair if outcome.of_pairs is not None}
    stored = all(outcome.of_pairs or outcome.state is State.DIVERGED for pair in pairs for outcome in pair)
    if not stored or len(known) != 1:
        return paired_difference([ours.number for ours, _ in pairs], [theirs.number for _, theirs in pairs])
    (count,) = known

    def of(outcome: Outcome) -> Sequence[float]:
        return outcome.of_pairs or [outcome.number] * count

    return crossed_difference([[a - b for a, b in zip(of(ours), of(theirs), strict=True)] for ours, theirs in pairs])
