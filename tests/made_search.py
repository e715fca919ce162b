"""Searches that were never trained: their study and event logs say what a test planted."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.config import SearchConfig, parse_config, to_yaml
from tune_dlrml.discovery.archive import PROPOSALS, Archive
from tune_dlrml.events import EventLog
from tune_dlrml.losses.lrml.config import LearnableBetaMix
from tune_dlrml.records import Report, State, TrialOutcome
from tune_dlrml.report import SearchData, read_data
from tune_dlrml.search.confirm.verdicts import Confirmed, Verdict
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.candidates import candidate_proposer
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy

FULL_STEPS, PAIRS = 40, 64
STRENGTH = {"log_uniform": [0.01, 0.5]}
LOSSES: list[dict[str, Any]] = [
    {"name": "dpo", "beta": STRENGTH},
    {"name": "discopop", "beta": STRENGTH},
    {"name": "dlrml", "beta_kl": STRENGTH, "c": {"log_uniform": [1, 9.1]}},
    {"name": "dlrml", "beta_kl": STRENGTH, "beta_mix": {"learnable": True, "c_init": 4.0}},
]
STOPPING = {"type": "stopping", "grace_period": 5, "reduction_factor": 2}


@dataclass(frozen=True)
class Fate:
    """What becomes of a trial; its numbers grow evenly from what they are at step 0."""

    accuracy: float = 0.7
    margin: float = 1.0
    kl: float = 1.0
    trap_fraction: float = 0.0
    diverges_at: int | None = None
    fails_at: int | None = None
    stops_at: int | None = None
    """The step up to which it is under way."""
    nonfinite: float = 0.0
    quantiles: tuple[float, ...] = ()
    """Of the held-out margins: 0, 5, 25, 50, 75, 95, 100 %."""
    reason: str = "planted"


class MadeSearch:
    """A search without training: one second a step, ten before the first report, ten tokens a step."""

    def __init__(self, storage: Path, config: SearchConfig, clock: Any) -> None:
        self.config, self.place = config, SearchPlace(storage)
        self.folder = self.place.folder(config.name)
        self.folder.mkdir(parents=True)
        (self.folder / "search.yaml").write_text(to_yaml(config), encoding="utf-8")
        self.archive = None if config.discovery is None else Archive(self.folder / PROPOSALS, config.discovery)
        self.study = SearchStudy(
            config,
            proposer_of(config) if self.archive is None else candidate_proposer(config, self.archive),
            self.place.study_url(config.name),
            FULL_STEPS,
            {"data_hash": {"train": "ab" * 32}},
        )
        self.log = EventLog(self.folder)
        self.clock = clock

    def run(self, fate_of: Callable[[TrialSpec], Fate], trials: int | None = None) -> "MadeSearch":
        """Take the next trials to their ends or to where they are paused, or all that are left."""
        while trials != 0 and (spec := self.study.ask()) is not None:
            self._train(spec, fate_of(spec))
            trials = None if trials is None else trials - 1
        return self

    def read(self) -> SearchData:
        return read_data(self.config.name, self.place)

    def _train(self, spec: TrialSpec, fate: Fate) -> None:
        self.log.start(spec)
        self.clock.now += 10
        reached = self.study.steps_reached(spec.number)
        untrained = {"eval_accuracy": 0.5, "eval_accuracy_se": 0.0, "eval_margin": 0.0, "eval_kl": 0.0}
        self._report(spec, 0, untrained | {"eval_pairs": float(PAIRS), "train_pairs": 256.0}, evaluated=True)
        for step in range(reached + 1, FULL_STEPS + 1):
            self.clock.now += 1
            if step == fate.fails_at:
                return self._end(spec, TrialOutcome(spec.number, State.FAILED, fate.reason, "ValueError"), step - 1)
            if step == fate.diverges_at:
                self._report(spec, step, training(spec, fate, step))
                return self._end(spec, TrialOutcome(spec.number, State.DIVERGED, fate.reason), step)
            rung = self.study.is_rung(step)
            evaluated = rung or step == FULL_STEPS
            metrics = training(spec, fate, step) | (held_out(fate, step) if evaluated else {})
            self._report(spec, step, metrics, evaluated=evaluated, rung=rung)
            verdict = self.study.judge(spec.number, step, metrics) if evaluated else "continue"
            if verdict == "pause":
                return self.log.pause(spec.number, step)
            if verdict == "prune":
                return self._end(spec, TrialOutcome(spec.number, State.PRUNED, f"halving at step {step}"), step)
            if step == fate.stops_at:
                return None
        return self._end(spec, TrialOutcome(spec.number, State.COMPLETE, "all steps done"), FULL_STEPS)

    def _report(self, spec: TrialSpec, step: int, metrics: dict[str, float], **marks: bool) -> None:
        self.log.report(Report(spec.number, step, int(self.clock.now * 1000), metrics, **marks))

    def _end(self, spec: TrialSpec, outcome: TrialOutcome, steps: int) -> None:
        self.study.finish(outcome, steps)
        self.log.end(spec.number, outcome.state, outcome.reason)


def training(spec: TrialSpec, fate: Fate, step: int) -> dict[str, float]:
    """What a trial reports of a step."""
    metrics = {
        "train_margin": fate.margin * step / FULL_STEPS,
        "tokens": 10.0 * step,
        "nonfinite_grad_fraction": fate.nonfinite,
        "nonfinite_loss_fraction": fate.nonfinite / 2,
    }
    loss: Any = spec.loss
    if loss.name == "custom":
        metrics["params.heat"] = 1.0 + 0.1 * step
    if loss.name == "discopop":
        metrics["c"] = 1 / loss.tau
    elif loss.name == "dlrml":
        learnt = isinstance(loss.beta_mix, LearnableBetaMix)
        metrics["c"] = 4.0 - 0.02 * step if learnt else loss.c or loss.beta_mix / (loss.tau * loss.beta_kl)
    if "c" in metrics:
        metrics["beta_mix"] = metrics["c"] * loss.tau * getattr(loss, "beta_kl", getattr(loss, "beta", 0.0))
    return metrics


def held_out(fate: Fate, step: int) -> dict[str, float]:
    """What an evaluation adds."""
    grown = step / FULL_STEPS
    accuracy = 0.5 + (fate.accuracy - 0.5) * grown
    names = [f"eval_margin_p{percent:02d}" for percent in (0, 5, 25, 50, 75, 95, 100)]
    return {
        "eval_accuracy": accuracy,
        "eval_accuracy_se": math.sqrt(accuracy * (1 - accuracy) / PAIRS),
        "eval_margin": fate.margin * grown,
        "eval_margin_se": 0.1,
        "eval_kl": fate.kl * grown,
        "eval_trap_fraction": fate.trap_fraction,
    } | dict(zip(names, fate.quantiles, strict=False))


def make_config(
    losses: list[dict[str, Any]], model: str = "any", discovery: dict[str, Any] | None = None, **search: Any
) -> SearchConfig:
    """A search over these losses; with `discovery`, one that begins with them."""
    settings = {"num_trials": 8, "sampler": "random", "scheduler": STOPPING} | search
    varied = {"learning_rate": {"log_uniform": [1e-7, 1e-4], "num": 3}}
    if discovery is None:
        return small_search(model=model, search=settings, space={"losses": losses, "training": varied})
    settings.pop("num_trials")
    section = {"seeds_losses": losses} | discovery
    return small_search(model=model, search=settings, space={"training": varied}, discovery=section)


def small_search(**sections: Any) -> SearchConfig:
    """A search of these sections, whose model and pairs nobody reads; of DPO and two trials where they do not say."""
    document = {
        "name": "planted",
        "model": "any",
        "dataset": {"train": "train.jsonl", "eval": "eval.jsonl"},
        "training": {"learning_rate": 1e-6, "max_steps": FULL_STEPS},
        "search": {"num_trials": 2},
        "space": {"losses": [{"name": "dpo"}]},
    }
    return parse_config(document | sections, source="test")


def discovery_search(
    search: dict[str, Any] | None = None, space: dict[str, Any] | None = None, **section: Any
) -> SearchConfig:
    """A search whose losses `openai:some` proposes, called found."""
    section = {"proposer": "openai:some"} | section
    return small_search(name="found", search=search or {}, space=space or {}, discovery=section)


def confirmed(trial: int, verdict: Verdict, difference: float, interval: tuple[float, float] | None = None, **own: Any):
    """What five new seeds say of a trial."""
    low, high = interval or (None, None)
    known = {"loss": "dlrml_c", "params": {}, "seeds": 5, "pairs": None, "diverged": 0, "p": 0.5}
    means = {"mean": None, "baseline_mean": None, "mean_difference": difference, "low": low, "high": high}
    return Confirmed(**{"trial": trial, "verdict": verdict, **known, **means, **own})
