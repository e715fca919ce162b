"""Verdicts on the best trials from new seeds: better than DPO, worse, or undecided.

A verdict comes from differences under the same seed and, where trials have stored the margin of every pair in
`MARGINS`, on the same pair; see `paired`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig, load_config
from tune_dlrml.errors import InputError
from tune_dlrml.metrics import METRICS, Metric
from tune_dlrml.records import State
from tune_dlrml.search.confirm.begun import as_begun
from tune_dlrml.search.confirm.finalists import DEFAULT_DPO, Finalist, finalists, seeds_of
from tune_dlrml.search.confirm.outcomes import Outcome, Pair, Run, compared_before, difference_of, outcomes, pairs_of
from tune_dlrml.search.confirm.paired import LEVEL, Difference, Verdict, holm, verdict
from tune_dlrml.search.confirm.race import End, race
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.study.history import StudyHistory, TrialRow


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
        infeasible: How many of its complete trainings break a constraint of the search.
        end: Why it got no more seeds in a race: it was `settled` or `dropped`, or the race came to its `cap`; `open`
            before that. None without a race.
        rounds: Seeds, a round each, after which that was so; None without a race.
        mean: Its mean over those seeds.
        baseline_mean: The baseline's mean over those seeds.
        mean_difference: From the baseline, in units of the search's metric.
        low: Lower end of the difference's own 95 % interval; None where it has none. In a race it is a repeated
            confidence interval, which holds at every look, and a finalist has none before the third seed, nor where it
            would be as wide as the range of the metric.
        high: Upper end.
        reached: True difference that would have been told with a power of 80 %, at Holm's first step; None without an
            interval.
        p: Of a two-sided test of that difference, in a race of all looks together, raised by Holm's method for the
            number of finalists, those of before included that the confirmation has trained.
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
    end: End | None = None
    rounds: int | None = None
    reached: float | None = None
    infeasible: int = 0

    def ended(self) -> str:
        """When a race was over for it, and why; empty without a race."""
        if self.end is None:
            return ""
        seeds = f"{self.rounds} seed{'' if self.rounds == 1 else 's'}"
        return {
            "cap": f"undecided after all {seeds}",
            "settled": f"settled after {seeds}",
            "dropped": f"dropped after {seeds}, as more could hardly settle it",
            "open": f"open after {seeds}",
        }[self.end]

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
        seeds: Most seeds that a finalist can have; without a race each has so many.
        finalists: The best of the search first.
        runs: Trainings of a race that have ended; None without a race.
        most_runs: How many there can be; None without a race.
        infeasible: How many of the baseline's complete trainings break a constraint of the search.
    """

    baseline: int
    metric: str
    data: str
    seeds: int
    finalists: tuple[Confirmed, ...]
    runs: int | None = None
    most_runs: int | None = None
    infeasible: int = 0

    @property
    def is_race(self) -> bool:
        """Whether it is a race."""
        return self.runs is not None

    def runs_as_json(self) -> dict[str, int | None]:
        """How many runs a race took, and how many there can be."""
        return {"runs": self.runs, "most_runs": self.most_runs}

    def runs_in_words(self) -> str:
        """The same, and what its numbers hold for; empty without a race."""
        if not self.is_race:
            return ""
        return (
            f"runs of the race: {self.runs} of at most {self.most_runs}; intervals and p-values hold for all looks "
            "together (repeated confidence intervals)"
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"finalists": [each.as_json() for each in self.finalists]}

    def sentences(self) -> Iterator[str]:
        """The results as text, a line for each finalist."""
        dpo = "default DPO" if self.baseline == DEFAULT_DPO else f"DPO (trial {self.baseline})"
        for each in self.finalists:
            if not each.seeds:
                why = f", {each.ended()}" if each.end is not None else ""
                yield f"trial {each.trial} ({each.loss}) against {dpo} with new seeds: no result{why}"
                continue
            interval = "" if each.low is None else f" [{each.low:+.4f}, {each.high:+.4f}]"
            diverged = f", {each.diverged} diverged" if each.diverged else ""
            diverged += f", {each.infeasible} infeasible" if each.infeasible else ""
            ended = f", {each.ended()}" if each.end is not None else ""
            reached = ""
            if each.reached is not None and each.verdict == "cannot tell":
                reached = f" (at 80 % power a difference of {each.reached:.2g})"
            of = f"{each.seeds} of {'at most ' if self.is_race else ''}{self.seeds} seeds"
            yield (
                f"trial {each.trial} ({each.loss}) against {dpo} with new seeds: {each.verdict}{reached}, "
                f"{self.metric} {each.mean_difference:+.4f}{interval}, p = {each.p:.2g} "
                f"({'race, ' if self.is_race else ''}Holm), {of}{ended}{diverged}, {self.data}"
            )
        if self.finalists and self.is_race:
            yield self.runs_in_words()
        if self.finalists and self.data != "dataset.test":
            yield "the same pairs selected the finalists, which biases the result in their favour: give dataset.test"
        yield from self.caveats()

    def caveats(self) -> Iterator[str]:
        """What its numbers do not say of themselves."""
        if any(each.pairs is None and each.low is not None for each in self.finalists):
            yield (
                f"intervals and p-values are over seeds alone, without {self.metric} of every single pair: on other "
                "held-out pairs or prompts the differences may be others"
            )
        if self.infeasible:
            yield f"the baseline breaks search.constraints under {self.infeasible} of the new seeds"


@dataclass(frozen=True)
class _Told:
    """What is said about one finalist, from the trainings that count.

    `reach` is half of the interval of Holm's first step, in which zero must not lie for a verdict.
    """

    pairs: Sequence[Pair]
    difference: Difference
    interval: tuple[float | None, float | None]
    reach: float
    p: float
    sign: float
    end: End | None = None
    rounds: int | None = None


def compare(
    config: SearchConfig, rows: Sequence[TrialRow], confirming: Sequence[TrialRow], folder: Path | None = None
) -> Confirmation | None:
    """Compare each finalist with the baseline, from the confirming trials.

    Args:
        config: The search, as its confirmation has begun.
        rows: Its trials.
        confirming: Trials of its confirmation, which may be running.
        folder: Of the confirmation, where trials may have stored the margins of their pairs.

    Returns:
        None where nothing is to be confirmed.
    """
    chosen, confirm = finalists(config, rows), config.search.confirm
    if chosen is None or confirm is None:
        return None
    candidates, baseline = chosen
    metric, seeds = config.search.metric, seeds_of(config)
    ended = outcomes(confirming, metric, folder, config.search.constraints)
    trials = [each.trial for each in candidates]
    told, runs = (_raced if confirm.adaptive else _all_seeds)(ended, trials, baseline.trial, seeds, metric)
    return Confirmation(
        baseline=baseline.trial,
        metric=metric,
        data="dataset.eval" if config.dataset.test is None else "dataset.test",
        seeds=len(seeds),
        runs=runs,
        most_runs=None if runs is None else (len(candidates) + 1) * len(seeds),
        infeasible=_infeasible(ended, baseline.trial),
        finalists=tuple(
            replace(_confirmed(each, own, maximize=config.search.maximize), infeasible=_infeasible(ended, each.trial))
            for each, own in zip(candidates, told, strict=True)
        ),
    )


def _infeasible(ended: Mapping[Run, Outcome], trial: int) -> int:
    return sum(own.infeasible for (each, _), own in ended.items() if each == trial)


def _confirmed(finalist: Finalist, own: _Told, *, maximize: bool) -> Confirmed:
    low, high = own.interval
    return Confirmed(
        trial=finalist.trial,
        loss=finalist.spec.branch,
        params=finalist.spec.settings(),
        seeds=own.difference.count,
        pairs=own.difference.items,
        diverged=sum(ours.state is State.DIVERGED for ours, _ in own.pairs),
        mean=fmean(ours.number for ours, _ in own.pairs) if own.pairs else None,
        baseline_mean=fmean(theirs.number for _, theirs in own.pairs) if own.pairs else None,
        mean_difference=own.difference.mean,
        low=low,
        high=high,
        p=own.p,
        verdict=verdict(own.sign, own.p, maximize=maximize),
        end=own.end,
        rounds=own.rounds,
        reached=None if low is None or high is None else own.difference.shown_beyond(own.reach),
    )


def _all_seeds(
    ended: Mapping[Run, Outcome], trials: Sequence[int], baseline: int, seeds: Sequence[int], metric: str
) -> tuple[list[_Told], None]:
    pairs = [pairs_of(ended, trial, baseline, seeds) for trial in trials]
    found = [difference_of(each) for each in pairs]
    others = compared_before(ended, trials, baseline)
    raised = holm([each.p for each in found] + [1.0] * others)
    hardest = LEVEL / max(1, len(raised))
    return [
        _Told(own, each, (each.low, each.high), _half(*each.interval(hardest)), p, each.mean)
        for own, each, p in zip(pairs, found, raised, strict=False)
    ], None


def _raced(
    ended: Mapping[Run, Outcome], trials: Sequence[int], baseline: int, seeds: Sequence[int], metric: str
) -> tuple[list[_Told], int]:
    progress = race(ended, trials, baseline, seeds)
    hardest = LEVEL / max(1, len(trials) + compared_before(ended, trials, baseline))
    return [
        _Told(
            pairs=pairs_of(ended, trial, baseline, seeds[: own.rounds]),
            difference=own.difference,
            interval=_within(own.interval(len(seeds)), METRICS[metric]),
            reach=_half(*own.interval(len(seeds), hardest)),
            p=own.p,
            sign=own.sign,
            end=own.end,
            rounds=own.rounds,
        )
        for trial, own in zip(trials, progress.standings, strict=True)
    ], sum(run in ended for run in progress.runs)


def _half(low: float | None, high: float | None) -> float:
    """Half width of an interval; 0 without one."""
    return 0.0 if low is None or high is None else (high - low) / 2


def _within(interval: tuple[float | None, float | None], metric: Metric) -> tuple[float | None, float | None]:
    """An interval of a difference cut to its range; none where it would be the whole range."""
    low, high = interval
    most = metric.most - metric.least
    if low is None or high is None or (low <= -most and high >= most):
        return None, None
    return max(low, -most), min(high, most)


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
    config = as_begun(config, place)
    return compare(config, _rows(name, place), _rows(again, place), place.folder(again))


def _rows(name: str, place: SearchPlace) -> list[TrialRow]:
    history = StudyHistory.open(place.study_url(name), name)
    try:
        return history.rows()
    finally:
        history.close()
