"""Where trials diverged: the parameters that separate diverged trials from the others."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tune_dlrml.records import State
from tune_dlrml.report.reading import SearchData, TrialData
from tune_dlrml.space import TRAINING

LEVEL = 0.05
"""P-value, corrected for all splits that were tried, below which a parameter separates diverged trials."""


@dataclass(frozen=True)
class Split:
    """The best split of trials by one parameter into a side where they diverge and another.

    Attributes:
        parameter: Its name, `loss` for the branch.
        condition: What holds on the diverging side, such as `learning_rate > 0.0012`.
        threshold: Between two values of the parameter; None for a parameter without order.
        diverged_inside: Diverged trials on the diverging side.
        inside: Trials there.
        diverged_outside: Diverged trials on the other side.
        outside: Trials there.
        diverged_range: Least and largest value of a diverged trial; None for a parameter without order.
        sound_range: The same of the others.
        p_value: Upper bound of the probability that some split separates as well if no parameter matters (Fisher's
            exact test, times the number of splits tried).
        tells_apart: Whether that is below LEVEL.
    """

    parameter: str
    condition: str
    threshold: float | None
    diverged_inside: int
    inside: int
    diverged_outside: int
    outside: int
    diverged_range: tuple[float, float] | None
    sound_range: tuple[float, float] | None
    p_value: float
    tells_apart: bool = False

    @property
    def sentence(self) -> str:
        """The split with its counts."""
        other = "otherwise" if self.threshold is None else "below" if " > " in self.condition else "above"
        return (
            f"{self.condition}: {self.diverged_inside} of {self.inside} diverged; "
            f"{other}: {self.diverged_outside} of {self.outside}"
        )


def splits(data: SearchData) -> list[Split]:
    """The best split by each parameter, those that separate best first; none where no trial or every trial diverged.

    Trials that failed or are running count on neither side, since their end is unknown. A pruned or paused
    trial counts as one that did not diverge.
    """
    ended = [trial for trial in data.trials if trial.state not in (State.FAILED, State.RUNNING)]
    bad = {trial.number for trial in ended if trial.state is State.DIVERGED}
    if not bad or len(bad) == len(ended):
        return []
    found: list[Split] = []
    tried = 0
    for name, values in _parameters(ended).items():
        candidates = list(_candidates(name, values, bad))
        tried += len(candidates)
        if candidates:
            found.append(min(candidates, key=lambda split: (split.p_value, split.condition)))
    corrected = [replace(split, p_value=min(1.0, split.p_value * tried)) for split in found]
    marked = [replace(split, tells_apart=split.p_value < LEVEL) for split in corrected]
    return sorted(marked, key=lambda split: (split.p_value, split.parameter))


def _parameters(trials: Sequence[TrialData]) -> dict[str, dict[int, Any]]:
    """Values by parameter and trial: the branch, parameters of each branch, strength and c of all, shared ones."""
    found: dict[str, dict[int, Any]] = {}
    shared = dict.fromkeys(key for trial in trials for key in trial.row.params if key.startswith(f"{TRAINING}."))
    several = len({trial.branch for trial in trials}) > 1
    for trial in trials:
        spec, shape = trial.row.spec, trial.shape
        if spec is None:
            continue
        training = spec.training.flat()
        values = {key.partition(".")[2]: training.get(key.partition(".")[2]) for key in shared}
        values |= {key: value for key, value in trial.row.params.items() if key not in shared and "." in key}
        if several:
            values["loss"] = trial.branch
            if shape is not None:
                values |= {"beta_kl (any loss)": shape.beta_kl, "c (any loss)": shape.c_start}
        for name, value in values.items():
            if value is not None:
                found.setdefault(name, {})[trial.number] = value
    return found


def _candidates(name: str, values: Mapping[int, Any], bad: set[int]) -> list[Split]:
    """Every split by a parameter with diverged trials on one side and at least one trial on the other."""
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    if numeric:
        sides = _thresholds(name, values)
    else:
        sides = [
            (f"{name} is {kind}", None, {number for number, own in values.items() if str(own) == kind})
            for kind in sorted({str(own) for own in values.values()})
        ]
    diverged = [values[number] for number in values if number in bad]
    sound = [values[number] for number in values if number not in bad]
    if not diverged or not sound:
        return []
    ranges = ((min(diverged), max(diverged)), (min(sound), max(sound))) if numeric else (None, None)
    everyone, all_bad = set(values), bad & set(values)
    found = []
    for condition, threshold, side in sides:
        rest = everyone - side
        inside, outside = len(side & bad), len(rest & bad)
        if side and rest and inside * len(rest) > outside * len(side):
            chance = _fisher(inside, len(side), len(all_bad), len(everyone))
            found.append(
                Split(condition=condition, parameter=name, threshold=threshold, diverged_inside=inside,
                      inside=len(side), diverged_outside=outside, outside=len(rest), diverged_range=ranges[0],
                      sound_range=ranges[1], p_value=chance)
            )  # fmt: skip
    return found


def _thresholds(name: str, values: Mapping[int, float]) -> list[tuple[str, float | None, set[int]]]:
    """Both sides of a threshold between each two neighbouring values."""
    levels = sorted({float(value) for value in values.values()})
    sides: list[tuple[str, float | None, set[int]]] = []
    for low, high in itertools.pairwise(levels):
        between = math.sqrt(low * high) if low > 0 and high > 2 * low else (low + high) / 2
        above = {number for number, value in values.items() if value > between}
        sides += [
            (f"{name} > {between:.3g}", between, above),
            (f"{name} < {between:.3g}", between, set(values) - above),
        ]
    return sides


def _fisher(inside: int, size: int, bad: int, total: int) -> float:
    """Probability of at least `inside` of `bad` diverged trials among `size` of `total`, if they are random.

    Fisher's exact test, in whole numbers: equal splits have equal probabilities to the last bit, so the first of them
    is reported. scipy.stats.fisher_exact differs in that bit, and is 70 times slower for each of a thousand splits.
    """
    ways = sum(math.comb(bad, k) * math.comb(total - bad, size - k) for k in range(inside, min(bad, size) + 1))
    return ways / math.comb(total, size)
