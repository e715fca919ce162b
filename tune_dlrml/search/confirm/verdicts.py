"""Verdicts on the best trials from new seeds: better than DPO, worse, or undecided.

A verdict comes from differences under the same seed and, where trials have stored the margin of every pair in
`MARGINS`, on the same pair; see `paired`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig, load_config
from tune_dlrml.errors import InputError
from tune_dlrml.events import EventLog
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.records import MARGINS, State
from tune_dlrml.search.confirm.finalists import DEFAULT_DPO, finalists, identity, seeds_of
from tune_dlrml.search.confirm.paired import Difference, Verdict, crossed_difference, holm, paired_difference, verdict
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.study.history import StudyHistory, TrialRow


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


@dataclass(frozen=True)
class Confirmed:
    """The result of one finalist under new seeds.

    Attributes:
        trial: Its number in the search.
        loss: Its branch of the search.
        params: Its settings, as in tables.
        seeds: Seeds under which both it and the baseline have a number.
        pairs: Held-out pairs whose sampling is in interval and p; None where they hold for these pairs alone.
        diverged: How many of its trainings diverged; each counts as the untrained reference.
        mean: Its mean over those seeds.
        baseline_mean: The baseline's mean over those seeds.
        mean_difference: From the baseline, in units of the search's metric.
        low: Lower end of the difference's own 95 % interval; None where it has none.
        high: Upper end.
        p: Of a two-sided test of that difference, raised by Holm's method for the number of finalists.
        verdict: `better` or `worse` than the baseline, or `cannot tell`.
    """

    trial: int
    loss: str
    params: Mapping[str, Any]
    seeds: int
    pairs: int | None
    diverged: int
    mean: float | None
    baseline_mean: float | None
    mean_difference: float
    low: float | None
    high: float | None
    p: float
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"params": dict(self.params)}


@dataclass(frozen=True)
class Confirmation:
    """The results of all finalists under new seeds.

    Attributes:
        baseline: Number of the DPO trial that they are compared with; `DEFAULT_DPO` if the search had none.
        metric: What is compared.
        data: `dataset.test`, or `dataset.eval` where there is no test set.
        seeds: The configured number of seeds.
        finalists: The best of the search first.
    """

    baseline: int
    metric: str
    data: str
    seeds: int
    finalists: tuple[Confirmed, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        own = {"baseline": self.baseline, "metric": self.metric, "data": self.data, "seeds": self.seeds}
        return own | {"finalists": [each.as_json() for each in self.finalists]}

    def sentences(self) -> Iterator[str]:
        """The results as text, a line for each finalist."""
        dpo = "default DPO" if self.baseline == DEFAULT_DPO else f"DPO (trial {self.baseline})"
        for each in self.finalists:
            interval = "" if each.low is None else f" [{each.low:+.4f}, {each.high:+.4f}]"
            diverged = f", {each.diverged} diverged" if each.diverged else ""
            yield (
                f"trial {each.trial} ({each.loss}) against {dpo} with new seeds: {each.verdict}, {self.metric} "
                f"{each.mean_difference:+.4f}{interval}, p = {each.p:.2g} (Holm), "
                f"{each.seeds} of {self.seeds} seeds{diverged}, {self.data}"
            )
        if self.finalists and self.data != "dataset.test":
            yield "the same pairs selected the finalists, which biases the result in their favour: give dataset.test"


@dataclass(frozen=True)
class _Outcome:
    """Outcome of one training: the search's metric, and that of every held-out pair where it is known."""

    state: State
    value: float | None
    of_pairs: tuple[float, ...] | None


def compare(
    config: SearchConfig, rows: Sequence[TrialRow], confirming: Sequence[TrialRow], folder: Path | None = None
) -> Confirmation | None:
    """Compare each finalist with the baseline, from the confirming trials.

    Args:
        config: The search.
        rows: Its trials.
        confirming: Trials of its confirmation, which may be running.
        folder: Of the confirmation, where trials may have stored the margins of their pairs.

    Returns:
        None where nothing is to be confirmed.
    """
    chosen = finalists(config, rows)
    if chosen is None:
        return None
    candidates, baseline = chosen
    metric, seeds = config.search.metric, seeds_of(config)
    ended = {identity(row.spec): _outcome(row, METRICS[metric], folder) for row in confirming if row.spec is not None}
    both = [[_both(ended, each.trial, baseline.trial, seed) for seed in seeds] for each in candidates]
    judged = [[pair for pair in per_seed if pair is not None] for per_seed in both]
    differences = [_difference(pairs) for pairs in judged]
    raised = holm([difference.p for difference in differences])
    confirmed = tuple(
        Confirmed(
            trial=each.trial,
            loss=each.spec.branch,
            params=each.spec.settings(),
            seeds=difference.count,
            pairs=difference.items,
            diverged=sum(ours.state is State.DIVERGED for ours, _ in pairs),
            mean=fmean(_number(ours) for ours, _ in pairs) if pairs else None,
            baseline_mean=fmean(_number(theirs) for _, theirs in pairs) if pairs else None,
            mean_difference=difference.mean,
            low=difference.low,
            high=difference.high,
            p=p,
            verdict=verdict(difference.mean, p, maximize=config.search.maximize),
        )
        for each, pairs, difference, p in zip(candidates, judged, differences, raised, strict=True)
    )
    data = "dataset.eval" if config.dataset.test is None else "dataset.test"
    return Confirmation(baseline.trial, metric, data, len(seeds), confirmed)


def _outcome(row: TrialRow, metric: Metric, folder: Path | None) -> _Outcome:
    value = in_means(row.state, row.value, _untrained(row, metric, folder))
    path = None if folder is None else folder / "trials" / str(row.number) / MARGINS
    if row.state is not State.COMPLETE or metric.of_pair is None or path is None or not path.exists():
        return _Outcome(row.state, value, None)
    return _Outcome(row.state, value, tuple(metric.of_pair(margin) for margin in json.loads(path.read_bytes())))


def _untrained(row: TrialRow, metric: Metric, folder: Path | None) -> float | None:
    """The value of the reference: that of every training, or the one that this training began with."""
    if metric.untrained is not None or folder is None or row.state is not State.DIVERGED:
        return metric.untrained
    return next((report.metrics.get(metric.name) for report in EventLog(folder).reports(row.number)), None)


def _both(ended: Mapping[Any, _Outcome], ours: int, theirs: int, seed: int) -> tuple[_Outcome, _Outcome] | None:
    """Two trainings of one seed; None unless both have a value: one that failed or is still running has none."""
    one, other = ended.get((ours, seed)), ended.get((theirs, seed))
    return None if one is None or other is None or None in (one.value, other.value) else (one, other)


def _number(outcome: _Outcome) -> float:
    assert outcome.value is not None
    return outcome.value


def _difference(pairs: Sequence[tuple[_Outcome, _Outcome]]) -> Difference:
    """By seed and pair where every complete training has stored its margins, else by seed."""
    known = {len(outcome.of_pairs) for pair in pairs for outcome in pair if outcome.of_pairs is not None}
    stored = all(outcome.of_pairs or outcome.state is State.DIVERGED for pair in pairs for outcome in pair)
    if not stored or len(known) != 1:
        return paired_difference([_number(ours) for ours, _ in pairs], [_number(theirs) for _, theirs in pairs])
    (count,) = known

    def of(outcome: _Outcome) -> Sequence[float]:
        return outcome.of_pairs or [_number(outcome)] * count

    return crossed_difference([[a - b for a, b in zip(of(ours), of(theirs), strict=True)] for ours, theirs in pairs])


def read_confirmation(name: str, place: SearchPlace) -> Confirmation | None:
    """The confirmation of a search, from its studies alone; None where none is configured or none has started.

    Raises:
        InputError: There is no such search.
    """
    resolved = place.folder(name) / "search.yaml"
    if not resolved.exists():
        raise InputError(f"there is no search {name!r} in {place.storage.resolve()}; `search` starts one")
    config = load_config(resolved)
    again = name + CONFIRM_SUFFIX
    if config.search.confirm is None or not (place.folder(again) / "search.yaml").exists():
        return None
    place, config = place.of(config)
    return compare(config, _rows(name, place), _rows(again, place), place.folder(again))


def _rows(name: str, place: SearchPlace) -> list[TrialRow]:
    history = StudyHistory.open(place.study_url(name), name)
    try:
        return history.rows()
    finally:
        history.close()
