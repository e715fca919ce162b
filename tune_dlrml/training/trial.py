"""One trial on a resident model, from its hand-over to its end. Knows nothing of Ray: reports go through a channel."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset

from tune_dlrml.errors import NotFiniteError, TuneDlrmlError
from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.preference import PreferenceLoss
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.records import MARGINS, Answer, Report, State, TrialOutcome
from tune_dlrml.space import TrialSpec
from tune_dlrml.system.files import replace_file
from tune_dlrml.training.arguments import trl_config
from tune_dlrml.training.checkpoint import Attempt, Checkpoint, storing
from tune_dlrml.training.divergence import DivergenceRule, StepStats
from tune_dlrml.training.group_spec import TrialPlan
from tune_dlrml.training.ranks import from_all, is_rank_zero, on_rank_zero, rank_and_world, together
from tune_dlrml.training.reference.logps import computing
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.sft import ChosenAnswers
from tune_dlrml.training.sharding.shards import dealt_out, is_sharded
from tune_dlrml.training.trainer import PreferenceTrainer, release_trainer

_log = logging.getLogger(__name__)

TRAIN_MARGINS = "train_accuracy", "train_margin"
TRAIN_POLICY_MARGINS = "train_policy_accuracy", "train_policy_margin"
"""The same of the policy alone, in a search without a reference."""
PROGRESS = "progress.json"
"""File of a checkpoint with what a trial knows beside the state of its trainer."""


class Channel(Protocol):
    """The way from a trial to those who decide about it; called on every rank with the same report."""

    def send(self, report: Report) -> Answer:
        """Deliver a report, wait for the verdict if it is at a rung, and return whether to continue.

        A report may come again after its trial was killed; the same answer is due then, and nothing else.
        """


def train_trial(
    resident: Resident,
    spec: TrialSpec,
    plan: TrialPlan,
    channel: Channel,
    *,
    folder: Path,
    handed_over_s: float | None = None,
    clock: Callable[[], float] = time.time,
    after_step: Callable[[], None] = lambda: None,
) -> TrialOutcome | None:
    """Train one trial, from its newest complete checkpoint if it has one, and leave the resident model as it was.

    A trial that was killed and resumed ends with the same weights, bit for bit, as one that was not (float32, one
    worker, CPU), and its reports differ in their times only.

    Args:
        resident: Model and data.
        spec: The trial.
        plan: Budget and rules of the search.
        channel: Where reports go.
        folder: The trial's, for its checkpoints; every rank sees it.
        handed_over_s: When the group got the trial, in seconds of `clock`; now if None.
        clock: Wall clock.
        after_step: Called after every optimizer step, before its evaluation.

    Returns:
        COMPLETE or DIVERGED with its reason; None if the channel said to stop.

    Raises:
        StorageError: The folder is full, read-only or broken; the checkpoints made before stay usable.
    """
    began = clock() if handed_over_s is None else handed_over_s
    attempt = on_rank_zero(lambda: Attempt.begin(folder, keep=plan.checkpoint.save_total_limit))
    run = _Run(resident, spec, plan, channel, build_loss(spec.loss), attempt, clock, began, after_step)
    if attempt.resumed is not None and attempt.resumed.step == plan.steps:
        if run.resume(attempt.resumed):
            run.complete()
        return run.outcome
    rows = resident.rows(spec.training, steps=plan.steps, workers=plan.workers)
    run.facts = resident.facts(spec.training, steps=plan.steps, workers=plan.workers)
    try:
        _train(run, rows)
    finally:
        run.policy = run.write_state = None
        resident.restore()
        release_trainer()
    return run.outcome


def _train(run: "_Run", rows: Dataset) -> None:
    training, model, resumed = run.spec.training, run.resident.model, run.attempt.resumed
    on_cpu = next(model.parameters()).device.type == "cpu"
    trainer = PreferenceTrainer(
        model,
        trl_config(
            training,
            steps=run.plan.steps,
            output_dir=str(run.attempt.path),
            on_cpu=on_cpu,
            gradient_checkpointing=run.facts["gradient_checkpointing"] == 1,
        ),
        rows,
        run.resident.form.collate,
        run.resident.tokenizer,
        run.loss,
        mix_learning_rate=run.spec.loss.learnt_rate(),
        skip_nonfinite=run.plan.divergence.nonfinite_step == "skip",
        on_step=run.on_step,
        sft=None if run.spec.loss.sft is None else ChosenAnswers(model, run.spec.loss.sft),
        weighted=run.spec.loss.weighting is not None,
        ld_alpha=None if run.spec.loss.ld_alpha is None else drawn(run.spec.loss.ld_alpha),
        lora=training.lora,
    )
    run.policy, run.write_state = trainer.model, trainer.write_state
    if resumed is None:
        if run.start():
            trainer.train()
    elif run.resume(resumed):
        # Onto the base model, whose reference came with the rows: a policy loaded as the model would become its own.
        trainer.train(resume_from_checkpoint=str(resumed.path))


@dataclass
class _Run:
    """The books of one trial: what since the last report, whether diverged, when to evaluate."""

    resident: Resident
    spec: TrialSpec
    plan: TrialPlan
    channel: Channel
    loss: PreferenceLoss
    attempt: Attempt
    clock: Callable[[], float]
    handed_over_s: float
    after_step: Callable[[], None]
    policy: Any = None
    write_state: Callable[[Path], None] | None = None
    facts: dict[str, float] = field(default_factory=dict)
    ended: tuple[State, str] | None = None
    since_report: list[StepStats] = field(default_factory=list)
    unacknowledged: list[Report] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"evaluation": 0.0, "waiting": 0.0, "saving": 0.0})
    tokens: int = 0
    reported_s: float = 0.0

    def __post_init__(self) -> None:
        shape, compared = self.loss.geometry(), self.resident.with_reference
        at_zero = 0.0 if shape is None else shape.value_at_zero
        self._rule = DivergenceRule(self.plan.divergence, loss_at_zero=at_zero, judges_margin=compared)

    def start(self) -> bool:
        """Report the state at step 0, as far as it needs no forward pass; every trial shares it."""
        untrained = self.resident.untrained()
        return self._deliver(self._report(0, untrained | self.facts | self.loss.reported(), evaluated=bool(untrained)))

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Restore the trial's records from a checkpoint, and resend the reports that were not acknowledged then."""
        with storing(checkpoint.path):
            progress = json.loads((checkpoint.path / PROGRESS).read_bytes())
        self._rule.restore(progress["divergence"])
        self.since_report = [StepStats(**stats) for stats in progress["since_report"]]
        self.seconds, self.tokens = progress["seconds"], progress["tokens"]
        go_on = all(self._deliver(Report.from_json(report)) for report in progress["unacknowledged"])
        self.reported_s = self.clock() - progress["since_report_s"]
        return go_on

    @property
    def outcome(self) -> TrialOutcome | None:
        """How the trial ended, if it did by itself."""
        return None if self.ended is None else TrialOutcome(self.spec.number, *self.ended, seconds=dict(self.seconds))

    def on_step(self, stats: StepStats) -> bool:
        """Judge, evaluate, report and save as the step demands; whether to go on."""
        if "to_first_step" not in self.seconds:
            self.seconds["to_first_step"] = self.clock() - self.handed_over_s
        self.after_step()
        self.since_report.append(stats)
        self.tokens += stats.tokens
        last, rung = stats.step == self.plan.steps, stats.step in self.plan.rungs
        reason = self._rule.judge(stats)
        metrics: dict[str, float] = {}
        if reason is None and (rung or last):
            try:
                metrics = self._evaluate()
            except NotFiniteError as error:
                reason = f"step {stats.step}: {error}"
        if reason is not None:
            self._deliver(self._report(stats.step, self._training_metrics()))
            self.ended = State.DIVERGED, reason
            return False
        saves = rung or last or stats.step % self.plan.checkpoint.save_steps == 0
        before_verdict = rung and self.plan.pauses
        if rung or last or stats.step % self.spec.training.logging_steps == 0:
            report = self._report(stats.step, self._training_metrics() | metrics, evaluated=bool(metrics), rung=rung)
            if before_verdict:
                self.unacknowledged.append(report)
                self._save(stats.step)
            if not self._deliver(report):
                return False
        if last:
            self._keep_margins()
            self._examine()
            self.complete()
        if saves and not before_verdict:
            self._save(stats.step)
        return not last

    def complete(self) -> None:
        """The trial has used up its budget."""
        self.ended = State.COMPLETE, f"all {self.plan.steps} steps done"

    def _save(self, step: int) -> None:
        """Make the checkpoint of a step: every rank writes its part, rank 0 says when it is complete."""
        began = self.clock()
        partial = on_rank_zero(lambda: self.attempt.partial(step))
        try:
            together(lambda: self._write(partial))
            on_rank_zero(lambda: self.attempt.seal(partial))
        except Exception:
            on_rank_zero(lambda: self.attempt.abandon(partial))
            raise
        took = self.clock() - began
        self.seconds["saving"] += took
        self.reported_s += took

    def _write(self, partial: Path) -> None:
        assert self.write_state is not None
        with storing(partial):
            self.write_state(partial)
            if is_rank_zero():
                (partial / PROGRESS).write_text(json.dumps(self._progress()), encoding="utf-8")

    def _progress(self) -> dict[str, Any]:
        """What `resume` needs, as JSON; floats come back bit for bit."""
        return {
            "divergence": self._rule.state(),
            "since_report": [asdict(stats) for stats in self.since_report],
            "since_report_s": self.clock() - self.reported_s,
            "unacknowledged": [report.as_json() for report in self.unacknowledged],
            "seconds": self.seconds,
            "tokens": self.tokens,
        }

    def _keep_margins(self) -> None:
        """Leave the margin of every held-out pair, in an order that all trials share, for paired comparisons."""
        path = self.attempt.path.parent / MARGINS
        with storing(path):
            on_rank_zero(lambda: replace_file(path, json.dumps(self.resident.held_out.margins)))

    def _examine(self) -> None:
        questionnaire = self.plan.questionnaire
        if questionnaire is None:
            return
        began, folder = self.clock(), self.attempt.path.parent
        rank, world = rank_and_world()
        deal = partial(dealt_out, self.policy) if is_sharded(self.policy) else None
        try:
            with computing(self.policy, self.resident.training):
                shares = from_all(
                    lambda: questionnaire.answer(
                        self.policy, self.resident.tokenizer, rank=rank, world=world, deal=deal
                    )
                )
        except Exception as error:
            if deal is not None and not isinstance(error, TuneDlrmlError):
                raise  # the other ranks wait within a forward
            # The trial is complete by its metric all the same; its driver asks it again, from its checkpoint.
            _log.exception("trial %d has no answers", self.spec.number)
            return
        with storing(folder):
            on_rank_zero(lambda: questionnaire.keep(folder, shares))
        self.seconds["answering"] = self.clock() - began

    def _evaluate(self) -> dict[str, float]:
        if self.loss.mix is not None and not self.loss.reported():
            raise NotFiniteError("what the loss learns is not finite")
        began = self.clock()
        metrics = self.resident.evaluate(self.policy, beta_kl=self.loss.beta_kl, geometry=self.loss.geometry())
        took = self.clock() - began
        self.seconds["evaluation"] += took
        self.reported_s += took
        return metrics

    def _training_metrics(self) -> dict[str, float]:
        """Means over the steps since the last report; what no step has finite is left out."""
        steps, now = self.since_report, self.clock()
        accuracy, margin = TRAIN_MARGINS if self.resident.with_reference else TRAIN_POLICY_MARGINS
        means: dict[str, list[float | None]] = {
            "train_loss": [s.loss for s in steps],
            accuracy: [s.accuracy for s in steps],
            margin: [s.margin for s in steps],
            "train_chosen_logps": [s.chosen_logps for s in steps],
            "train_rejected_logps": [s.rejected_logps for s in steps],
            "grad_norm": [s.grad_norm for s in steps],
            "nonfinite_loss_fraction": [*(s.nonfinite_loss for s in steps)],
            "nonfinite_grad_fraction": [*(s.nonfinite_grad for s in steps)],
        }
        if self.spec.loss.sft is not None:
            means["train_sft_loss"] = [s.sft_loss for s in steps]
        metrics = {name: mean for name, values in means.items() if (mean := _mean(values)) is not None}
        metrics |= {
            "learning_rate": steps[-1].learning_rate,
            "tokens": float(self.tokens),
            "steps_per_second": len(steps) / max(now - self.reported_s, 1e-9),
        }
        self.since_report = []
        return metrics | self.loss.reported()

    def _report(self, step: int, metrics: dict[str, float], *, evaluated: bool = False, rung: bool = False) -> Report:
        return Report(
            number=self.spec.number,
            step=step,
            timestamp_ms=int(self.clock() * 1000),
            metrics=metrics,
            evaluated=evaluated,
            rung=rung,
        )

    def _deliver(self, report: Report) -> bool:
        began = self.clock()
        answer = self.channel.send(report)
        self.reported_s = self.clock()
        self.seconds["waiting"] += self.reported_s - began
        known = {each.step: each for each in (*self.unacknowledged, report)}
        self.unacknowledged = [each for step, each in known.items() if step > answer.acknowledged]
        return answer.go_on


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
