"""The ranking of the trials with their intervals, and the conclusion that it allows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from tune_dlrml.losses.registry import is_baseline
from tune_dlrml.metrics import METRICS
from tune_dlrml.records import State
from tune_dlrml.report.reading import BASELINE, SearchData, TrialData, finite
from tune_dlrml.search.confirm.finalists import finalists
from tune_dlrml.search.confirm.verdicts import Confirmed

Z = 1.96
"""Standard errors on either side of a value in its 95 % interval."""
_ORDER = (State.COMPLETE, State.RUNNING, State.PAUSED, State.PRUNED, State.DIVERGED, State.FAILED)


@dataclass(frozen=True)
class Ranked:
    """A line of the ranking.

    Attributes:
        place: Among the complete trials that break no constraint, from 1; None for the others.
        kind: `pairwise` or `pointwise`; None of a loss that may be either.
        value: The objective where it was last measured.
        error: Its standard error over the held-out pairs.
        low: Lower end of the 95 % interval.
        high: Upper end.
        apart: Whether it differs significantly from the best; None where that is unknown.
        judged: The results of each judge.
    """

    place: int | None
    trial: int
    loss: str
    kind: str | None
    state: str
    parameters: dict[str, Any]
    value: float | None
    error: float | None
    low: float | None
    high: float | None
    apart: bool | None
    margin: float | None
    kl: float | None
    c: float | None
    trap_fraction: float | None
    steps: int
    stop_reason: str
    judged: list[dict[str, Any]]


def ranking(data: SearchData) -> list[Ranked]:
    """All trials: the complete ones by their objective, the infeasible last, then the others by how far they came."""
    sign = -1.0 if data.maximize else 1.0

    def place(trial: TrialData) -> tuple[float, ...]:
        value = trial.row.value
        own = (math.inf if value is None else sign * value, trial.number)
        if trial.state is State.COMPLETE:
            return (0.0, 0.0 if trial.row.feasible else 1.0, *own)
        return (float(_ORDER.index(trial.state)), -float(trial.steps), *own)

    ordered = sorted(data.trials, key=place)
    best = next((trial for trial in ordered if _is_placed(trial)), None)
    return [_ranked(data, trial, at, best) for at, trial in enumerate(ordered, start=1)]


def _ranked(data: SearchData, trial: TrialData, at: int, best: TrialData | None) -> Ranked:
    complete = _is_placed(trial)
    value, error = trial.row.value, standard_error(data, trial)
    low, high = interval(data, value, error)
    last, shape = trial.last, trial.shape
    return Ranked(
        place=at if complete else None,
        trial=trial.number,
        loss=trial.branch,
        kind=trial.kind,
        state=str(trial.state),
        parameters=trial.settings,
        value=finite(value),
        error=error,
        low=low,
        high=high,
        apart=None if best is None or not complete or trial is best else differs(data, best, trial),
        margin=last.get("eval_margin"),
        kl=last.get("eval_kl"),
        c=None if shape is None else shape.c,
        trap_fraction=last.get("eval_trap_fraction"),
        steps=trial.steps,
        stop_reason=trial.row.stop_reason,
        judged=_judged(trial),
    )


def _is_placed(trial: TrialData) -> bool:
    return trial.state is State.COMPLETE and trial.row.feasible


def _judged(trial: TrialData) -> list[dict[str, Any]]:
    """For each judge the score, and its difference from the baseline's."""
    said = trial.judged or {"scores": [], "differences": [], "pairs": []}
    above = {each["judge"]: each for each in said["differences"]}
    won = {each["judge"]: each["win_rate_adjusted"] for each in said["pairs"]}
    return [
        {
            "judge": score["judge"],
            "score": score["score"],
            "interval": score["interval"],
            "above_baseline": above.get(score["judge"], {}).get("score"),
            "above_baseline_interval": above.get(score["judge"], {}).get("interval"),
            "won": won.get(score["judge"]),
        }
        for score in said["scores"]
    ]


def standard_error(data: SearchData, trial: TrialData) -> float | None:
    """Standard error of a trial's objective over the held-out pairs; None before its first evaluation.

    Where all pairs have the same outcome the sample has no spread: then it follows from the 95 % bound of the rule of
    three, 3 / pairs.
    """
    error = trial.last.get(METRICS[data.metric].error)
    pairs = trial.newest.get("eval_pairs", 0)
    if error == 0 and pairs and METRICS[data.metric].counts_pairs:
        return 3 / pairs / Z
    return finite(error)


def interval(data: SearchData, value: float | None, error: float | None) -> tuple[float | None, float | None]:
    """The 95 % interval of an objective, within its range."""
    if value is None or error is None:
        return None, None
    return METRICS[data.metric].within(value - Z * error, value + Z * error)


def difference(data: SearchData, one: TrialData, other: TrialData) -> tuple[float, float] | None:
    """How much better one trial's objective is than another's, and the half width of the 95 % interval.

    The errors are added as those of independent samples. All trials see the same held-out pairs, so the true error is
    mostly smaller: a difference beyond the interval is significant, a smaller one may still be real.
    """
    errors = standard_error(data, one), standard_error(data, other)
    if one.row.value is None or other.row.value is None or errors[0] is None or errors[1] is None:
        return None
    sign = 1.0 if data.maximize else -1.0
    return sign * (one.row.value - other.row.value), Z * math.hypot(errors[0], errors[1])


def differs(data: SearchData, one: TrialData, other: TrialData) -> bool | None:
    """Whether the objectives of two trials differ significantly; None where their errors are unknown."""
    found = difference(data, one, other)
    return None if found is None else abs(found[0]) > found[1]


def luck_of_the_best(errors: Sequence[float]) -> float:
    """Expected excess of the best of equally good trials over their common value, in the metric's units.

    The expected maximum of independent normal values (Blom's approximation) with the median of the standard errors.
    """
    count = len(errors)
    if count < 2:
        return 0.0
    return sorted(errors)[count // 2] * NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


@dataclass(frozen=True)
class Verdict:
    """The conclusion of the search in sentences, with a warning about its bias."""

    answer: str
    warning: str
    best: int | None
    bias: float | None


def verdict(data: SearchData, ranked: Sequence[Ranked], confirmed: Sequence[Confirmed]) -> Verdict:
    """The answer of a search with its warning."""
    complete = [line for line in ranked if line.place is not None]
    if not complete:
        if data.best_infeasible is not None:
            return Verdict(f"No complete trial is feasible.{_without(data)}", "", None, None)
        return Verdict("No trial is complete yet, so there is no best trial.", "", None, None)
    best = complete[0]
    errors = [line.error for line in complete if line.error is not None]
    bias = luck_of_the_best(errors) if len(errors) > 1 else None
    measured = [each for each in confirmed if each.seeds]
    confirmations = [each for each in measured if each.trial == best.trial]
    answer = (
        f"{_name(best)} has the best {METRICS[data.metric].words} of {_trials(data, len(complete))}: {_value(best)}."
    )
    answer += _without(data)
    of_baseline = bool(measured) and _baseline_of_confirmation(data) == best.trial
    if confirmations:
        answer += f" {_confirmed(data, confirmations[0])}"
    elif of_baseline:
        answer += f" {_against_finalists(measured)}{_equals(complete)}"
    else:
        answer += f" {_against_baseline(data, best)}{_equals(complete)}"
    warning = ""
    if bias is not None:
        warning = (
            f"The best of {len(complete)} noisy values is biased: if all these trials were equally good, the best of "
            f"them would still look up to about {bias:.3f} better, by chance alone."
        )
        if not confirmations and not of_baseline:
            warning += (
                f" Only new runs with new seeds can confirm it; this search has none{' yet' if confirmed else ''}."
            )
    return Verdict(answer, warning, best.trial, bias)


def _without(data: SearchData) -> str:
    """Who would be the best without the search's constraints."""
    infeasible = data.trial(data.best_infeasible)
    if infeasible is None:
        return ""
    return (
        f" Without search.constraints it would be trial {infeasible.number} ({infeasible.branch}) with "
        f"{text(infeasible.row.value)}, which is infeasible: {infeasible.row.stop_reason.partition('infeasible: ')[2]}."
    )


def _baseline_of_confirmation(data: SearchData) -> int | None:
    chosen = finalists(data.config, [trial.row for trial in data.trials])
    return None if chosen is None else chosen[1].trial


def _against_finalists(confirmed: Sequence[Confirmed]) -> str:
    better = sum(one.verdict == "better" for one in confirmed)
    compared = "the other finalist was" if len(confirmed) == 1 else f"the {len(confirmed)} other finalists were"
    return (
        f"It is the DPO that {compared} compared with under new seeds{_so_far(confirmed)}: {better or 'none'} of them "
        f"{'are' if better > 1 else 'is'} better."
    )


def _so_far(confirmed: Iterable[Confirmed]) -> str:
    return " so far" if any(one.end == "open" for one in confirmed) else ""


def _name(line: Ranked) -> str:
    settings = ", ".join(f"{key} {text(value)}" for key, value in line.parameters.items())
    return f"Trial {line.trial} ({line.loss}{': ' if settings else ''}{settings})"


def _trials(data: SearchData, count: int) -> str:
    kind = "complete" if data.config.search.constraints is None else "feasible complete"
    return f"the only {kind} trial" if count == 1 else f"{count} {kind} trials"


def _value(line: Ranked) -> str:
    if line.low is None or line.high is None:
        return text(line.value)
    return f"{line.value:.3f} (95 % interval {line.low:.3f} to {line.high:.3f})"


def _against_baseline(data: SearchData, best: Ranked) -> str:
    baseline = baseline_of(data)
    if baseline is None:
        return "There is no complete baseline to compare it with."
    if baseline.number == best.trial:
        return "It is the DPO baseline itself: no trial is better."
    one = data.trial(best.trial)
    assert one is not None
    found = difference(data, one, baseline)
    if found is None:
        return "Its difference from the baseline has no interval."
    gain, half = found
    compared = "the DPO baseline" if baseline.row.feasible else "the infeasible DPO baseline"
    size = f"{gain:+.3f} (95 % interval {gain - half:+.3f} to {gain + half:+.3f})"
    if gain > half:
        return f"That is {size} from {compared}, significant for one comparison, but it was selected as the best."
    return f"Its difference from {compared} is {size}, which is not significant."


def baseline_of(data: SearchData) -> TrialData | None:
    """Trial 0 if it is the plain DPO of the file, complete; also where the space holds that point."""
    first, settings = data.trial(0), data.config.baseline_loss()
    if first is None or first.state is not State.COMPLETE or settings is None or first.row.spec is None:
        return None
    same = is_baseline(first.row.spec.loss) and first.row.spec.loss.strength == settings.strength
    return first if same or first.branch == BASELINE else None


def _equals(complete: Sequence[Ranked]) -> str:
    near = sum(line.apart is False for line in complete)
    if near and near == len(complete) - 1:
        return " No other complete trial differs from it significantly."
    if near:
        return f" {near} of the {len(complete) - 1} other complete trials do not differ from it significantly."
    return ""


def _confirmed(data: SearchData, one: Confirmed) -> str:
    between = "" if one.low is None or one.high is None else f" (95 % interval {one.low:+.3f} to {one.high:+.3f})"
    words = {
        "better": "it is better than",
        "worse": "it is worse than",
        "cannot tell": "it does not differ significantly from",
    }
    return (
        f"Trained again with {one.seeds} new seed{'' if one.seeds == 1 else 's'}{_so_far([one])} {words[one.verdict]} "
        f"the baseline: mean difference {one.mean_difference:+.3f}{between} in {METRICS[data.metric].words}"
        f"{f', {one.ended()}' if one.end else ''}."
    )


def text(value: object) -> str:
    """A value in at most three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value)
