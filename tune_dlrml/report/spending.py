"""How a search's budget was used, by the end of the trials and by rung, and how many trials of each loss were sound."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tune_dlrml.records import State
from tune_dlrml.report.reading import SearchData, TrialData

ENDS = (State.COMPLETE, State.PRUNED, State.DIVERGED, State.FAILED, State.PAUSED, State.RUNNING)
"""The four ends of a trial, and those that have not ended."""
GRADIENT, LOSS = "nonfinite_grad_fraction", "nonfinite_loss_fraction"


@dataclass(frozen=True)
class Spent:
    """Resource usage of trials: optimizer steps, their tokens, seconds in which groups had the trials."""

    trials: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.trials + other.trials,
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Stage:
    """The steps from one rung to the next.

    Attributes:
        after: Step of the rung before, 0 for the first stage.
        until: Step of the rung at its end, or the full budget.
        ends: Usage within the stage, by the end of the trials; `trials` counts those that trained here.
        ended: Number of trials whose training ended in the stage, by their end.
    """

    after: int
    until: int
    ends: dict[str, Spent]
    ended: dict[str, int]


def by_end(data: SearchData) -> dict[str, Spent]:
    """Usage by the end of the trials; ends without a trial are left out."""
    found = {str(end): Spent() for end in ENDS}
    for trial in data.trials:
        found[str(trial.state)] += _whole(trial)
    return {end: spent for end, spent in found.items() if spent.trials}


def stages(data: SearchData) -> list[Stage]:
    """Usage between the rungs."""
    bounds = [0, *data.rungs, data.full_steps]
    found = []
    for after, until in itertools.pairwise(bounds):
        ends: dict[str, Spent] = {}
        ended: dict[str, int] = {}
        for trial in data.trials:
            part = _within(trial, after, until)
            if part.trials or part.seconds:
                ends[str(trial.state)] = ends.get(str(trial.state), Spent()) + part
            if trial.state.ended and (after < trial.steps <= until or (after == 0 == trial.steps)):
                ended[str(trial.state)] = ended.get(str(trial.state), 0) + 1
        found.append(Stage(after, until, ends, ended))
    return found


def _whole(trial: TrialData) -> Spent:
    return Spent(1, trial.steps, _tokens(trial, trial.steps), math.fsum(seconds for _, seconds in trial.spells))


def _within(trial: TrialData, after: int, until: int) -> Spent:
    """Usage of a trial after one step and up to another; the time before the first step counts with it."""
    steps = max(0, min(trial.steps, until) - after)
    spells = [seconds for step, seconds in trial.spells if after < step <= until or (after == 0 == step)]
    tokens = _tokens(trial, until) - _tokens(trial, after)
    return Spent(int(steps > 0), steps, tokens, math.fsum(spells))


def _tokens(trial: TrialData, step: int) -> int:
    """Tokens up to a step."""
    return int(max((r.metrics.get("tokens", 0.0) for r in trial.reports if r.step <= step), default=0.0))


@dataclass(frozen=True)
class Soundness:
    """How many trials of one loss were sound.

    Attributes:
        trials: All that have ended or been evaluated.
        diverged: Diverged trials.
        trapped: Trials with more than half of the held-out pairs in the trap at their last evaluation.
        below_half: Trials with a held-out accuracy below 0.5 then.
        sound: Evaluated trials that are none of these.
        nonfinite_gradient: Mean share of gradient entries that were not finite, over all reports of all trials.
        nonfinite_loss: The same of pairs without a finite loss.
        worst: The largest share of gradient entries of one trial.
        reports: With any entry that was not finite, and all.
    """

    loss: str
    trials: int
    diverged: int
    trapped: int
    below_half: int
    sound: int
    nonfinite_gradient: float | None
    nonfinite_loss: float | None
    worst: float | None
    reports: tuple[int, int]


def soundness(data: SearchData) -> list[Soundness]:
    """The losses in their order."""
    return [_soundness(branch, data.of(branch)) for branch in data.branches]


def _soundness(branch: str, trials: Sequence[TrialData]) -> Soundness:
    known = [trial for trial in trials if trial.state.ended or trial.last]
    gradients = [nonfinite(trial) for trial in trials]
    own = [share for share in gradients if share is not None]
    shares = [r.metrics["nonfinite_grad_fraction"] for t in trials for r in t.reports if GRADIENT in r.metrics]
    losses = [r.metrics[LOSS] for t in trials for r in t.reports if LOSS in r.metrics]
    below = [trial for trial in known if trial.last.get("eval_accuracy", 0.5) < 0.5]
    bad = [t for t in known if t.state in (State.DIVERGED, State.FAILED) or t.trapped or t in below]
    return Soundness(
        loss=branch,
        trials=len(known),
        diverged=sum(trial.state is State.DIVERGED for trial in known),
        trapped=sum(trial.trapped for trial in known),
        below_half=len(below),
        sound=sum(trial not in bad and bool(trial.last) for trial in known),
        nonfinite_gradient=math.fsum(shares) / len(shares) if shares else None,
        nonfinite_loss=math.fsum(losses) / len(losses) if losses else None,
        worst=max(own, default=None),
        reports=(sum(share > 0 for share in shares), len(shares)),
    )


def nonfinite(trial: TrialData) -> float | None:
    """Mean share of a trial's gradient entries that were not finite; None before its first step."""
    shares = [report.metrics[GRADIENT] for report in trial.reports if GRADIENT in report.metrics]
    return math.fsum(shares) / len(shares) if shares else None
