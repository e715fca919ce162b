"""Sections of a search-space file other than data, training and space: search, resources, checkpoints, tracking."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.config.numbers import Auto, Natural, NotNegative, NotNegativeInt, Positive
from tune_dlrml.domains import Frozen, Scalar, law
from tune_dlrml.metrics import HeldOut, Objective

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
CONFIRM_SUFFIX = "/confirm"
"""Suffix of the name of a search: the study and the folder of its confirmation."""
NAME_PATTERN = rf"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?(?:{CONFIRM_SUFFIX})?$"
NAME_LENGTH = 100
SearchName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]


class SchedulerConfig(Frozen):
    """Asynchronous successive halving (ASHA) over optimizer steps, up to the full budget of a trial."""

    type: Literal["promotion", "stopping"] = "promotion"
    """`promotion`: a trial is paused at every rung, with a checkpoint, and goes on while it is among the best there.
    `stopping`: it ends at a rung where it is not among the best so far, and otherwise goes on; nothing is paused."""
    grace_period: Natural | None = None
    """Optimizer steps of the first rung; no trial is pruned before it. Null is a sixteenth of the full budget."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """One trial in so many passes a rung, and the next rung has so many times the steps."""

    @property
    def pauses(self) -> bool:
        """Whether trials are paused at rungs, instead of pruned at once."""
        return self.type == "promotion"


class BaselineConfig(Frozen):
    """The plain DPO of trial 0, with which every other trial is compared."""

    beta: Positive = 0.1
    """Strength of its loss; its training settings are those of `training`."""


class ConfirmConfig(Frozen):
    """The `top` best trials and the best DPO, trained again under new seeds once the search has ended."""

    top: Natural = 3
    """Trials that are trained again, the best ones by the search's metric."""
    per_loss: Natural | None = None
    """Most of them that one entry of `space.losses` may have; with 1, no loss is confirmed at two settings. Null is no
    limit."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """New seeds for each of them. In a race, a finalist may have a fifth more, rounded up, and mostly needs fewer."""
    adaptive: bool = True
    """Whether it is a race: seeds in rounds, in which a finalist that is better or worse than DPO is settled and one
    that could hardly become either is dropped, with 5 % of error over all looks and finalists. False trains each of
    them under every seed."""


class ConstraintConfig(Frozen):
    """What a held-out number must keep to at a trial's last evaluation; a trial that does not is infeasible."""

    max: float | None = None
    """Largest value that is allowed."""
    min: float | None = None
    """Smallest value that is allowed."""
    prune: bool = False
    """Whether a trial that breaks it at a rung is pruned there; otherwise only its last evaluation counts."""

    @model_validator(mode="after")
    def _something_is_bounded(self) -> Self:
        if self.max is None and self.min is None:
            raise law("needs `max`, `min` or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise law(f"`min <= max` must hold, but got min={self.min}, max={self.max}")
        return self


class StartFromConfig(Frozen):
    """An earlier search in the same storage folder or database, whose best points this one starts with."""

    search: SearchName
    """Its name."""
    top: Natural = 5
    """Complete trials of it, the best ones by its own metric; those outside this space are named and left out."""


class SearchSettings(Frozen):
    """How the space is explored, by how many trials and for how long."""

    num_trials: Natural | None = None
    """Trials of the search, including the baseline; null uses every point of a grid."""
    metric: Objective = "eval_accuracy"
    """Held-out metric that decides, which can be compared between losses: see the guide. `eval_policy_accuracy` and
    `eval_policy_margin` are those of a search without a reference: no baseline, and only losses that take none."""
    mode: Literal["max", "min"] = "max"
    """Whether larger or smaller values of it are better."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Where the next trial comes from: Optuna's TPE, random draws, or every point of a grid (`num` in every range)."""
    n_startup_trials: NotNegativeInt = 10
    """Trials drawn near the middle of each domain before TPE uses its model."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the sampler; the same seed draws the same trials, given the same results."""
    time_budget_s: Positive | None = None
    """Wall time in seconds for training in all runs of the command together, including Ray's start and a warm-up.

    Running trials then stop, and resume if a larger budget is given.
    """
    max_failures: NotNegativeInt = 3
    """How often a trial whose worker, slot or node died resumes from its last checkpoint."""
    study_url: Text | None = None
    """Database of the study; null is SQLite in the search's folder. A password in it is used but not stored."""
    scheduler: SchedulerConfig | None = SchedulerConfig()
    """Which trials are pruned; null prunes none."""
    baseline: BaselineConfig | None = BaselineConfig()
    """Plain DPO as trial 0; null leaves it out. Where all losses take no reference, the reference is then never run."""
    constraints: Annotated[dict[HeldOut, ConstraintConfig], Field(min_length=1)] | None = None
    """Bounds of held-out numbers, by metric, as `eval_kl: {max: 5}`. An infeasible trial is never the best, is not
    confirmed, and the sampler avoids where it lies (Optuna's constraints)."""
    points: Annotated[list[dict[str, Scalar]], Field(min_length=1)] | None = None
    """Points that are trials before any is drawn, keyed as parameters are in tables: `loss: dpo`, `dpo.beta: 0.1`,
    `training.learning_rate: 1e-4`. What a point leaves out is drawn by chance."""
    start_from: StartFromConfig | None = None
    """Begins with the best points of an earlier search, behind `points`."""
    confirm: ConfirmConfig | None = None
    """Trains the best again under new seeds, beyond num_trials and time_budget_s, also after the search has ended."""

    @property
    def maximize(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.mode == "max"


class DivergenceConfig(Frozen):
    """When a trial has diverged; judged at every optimizer step over the last `window` of them."""

    nonfinite_fraction: Share = 0.05
    """More than this share of the window's steps were non-finite."""
    window: Natural = 20
    """Number of latest optimizer steps that are considered."""
    nonfinite_step: Literal["skip", "apply"] = "skip"
    """Whether a non-finite gradient is skipped on every rank or applied as TRL does."""
    loss_factor: Annotated[float, Field(gt=1)] = 20.0
    """The mean loss of the window exceeds this many times the loss at margin 0; not looked at for a loss that takes no
    reference."""
    margin_limit: Positive = 500.0
    """The mean margin of a step exceeds this on either side, in nats; not looked at in a search without a reference."""


class ResourcesConfig(Frozen):
    """Resources of one worker group, how many run at once, and how long to wait for them."""

    workers: Natural = 1
    """Processes that train one trial together (DDP or FSDP2)."""
    fsdp: Auto = "auto"
    """Divide the weights over the workers of a group; `auto` where the model is too large for the device of one."""
    cpus_per_worker: Natural = 1
    """CPUs of each, and the threads that it computes with."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of each: a share of one, or a whole number."""
    concurrent_trials: Natural = 1
    """Worker groups that train at once, a trial each."""
    wait_s: NotNegative = 60
    """Seconds to wait for missing nodes."""
    silence_s: Positive = 120
    """Seconds without a report after which a trial is reported as silent, with what its group may be waiting for."""
    trials_per_group: Natural | None = None
    """Trials after which a group is replaced by a new one; null keeps it for the whole search."""

    @model_validator(mode="after")
    def _weights_are_divided_over_several(self) -> Self:
        if self.fsdp is True and self.workers < 2:
            raise law(f"divides the weights over workers, but there is {self.workers}; raise workers", key="fsdp")
        if self.fsdp is True and self.gpus_per_worker not in (0, 1):
            raise law(f"needs one whole GPU a worker, or none, but got {self.gpus_per_worker:g}", key="gpus_per_worker")
        return self

    @model_validator(mode="after")
    def _ray_shares_one_gpu_only(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise law(f"a share of one GPU or a whole number of them is needed, but got {gpus}", key="gpus_per_worker")
        return self


class CheckpointConfig(Frozen):
    """When a trial is saved so that it can resume after a fault, and how many of its checkpoints are kept.

    A trial is saved at every rung where it pauses or that it passes, every `save_steps` optimizer steps between them,
    and at its end.
    """

    save_steps: Natural = 50
    """Optimizer steps between two checkpoints."""
    save_total_limit: Natural = 2
    """Checkpoints of a trial that are kept, the newest ones."""


class TrackingConfig(Frozen):
    """Where MLflow keeps its runs."""

    mlflow: Text | None = None
    """Tracking URI; null is <storage>/mlflow.db."""
    experiment: Text = "tune_dlrml"
    """Name of the experiment there."""
