"""A whole search as one frozen value. Keys carry the names of the library that owns them."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.config.domains import Choice, Domain, Frozen, Range, Searchable, law
from tune_dlrml.config.evaluation import EvaluationConfig
from tune_dlrml.config.losses import AnyLoss, DpoLoss, searched_fields
from tune_dlrml.config.rows import RowsConfig
from tune_dlrml.config.training import (
    BelowOne,
    Natural,
    NotNegative,
    NotNegativeInt,
    Positive,
    Schedule,
    TrainingConfig,
)
from tune_dlrml.metrics import Objective

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class DatasetConfig(RowsConfig):
    """References to preference pairs: files, folders or globs of them, a hub id or `builtin:`, each with `#split[a:b]`.

    `test` is touched by the final verdict only. What is done about pairs that cannot be used as they are:

    - `shared_prompts`, held-out rows whose prompt is trained on: dropped, refused or kept.
    - `long_pairs`, of more than training.max_length tokens: truncated as training.truncation_mode says, dropped or
      refused. A pair whose prompt alone fills max_length is left out also where they are truncated, as in TRL, and so
      is one whose completions are then the same.

    Whatever is dropped or truncated is counted and told before a search starts.
    """

    train: Text
    eval: Text
    test: Text | None = None
    shared_prompts: Literal["drop", "refuse", "keep"] = "drop"
    long_pairs: Literal["truncate", "drop", "refuse"] = "truncate"

    def references(self) -> dict[str, str]:
        """The references that are given, by their key."""
        given = {"train": self.train, "eval": self.eval, "test": self.test}
        return {key: reference for key, reference in given.items() if reference is not None}


class SchedulerConfig(Frozen):
    """Asynchronous successive halving over optimizer steps, up to the full budget of a trial."""

    grace_period: Natural = 25
    reduction_factor: Annotated[int, Field(ge=2)] = 4


class BaselineConfig(Frozen):
    """The plain DPO of trial 0, against which every other trial is read."""

    beta: Positive = 0.1


class ConfirmConfig(Frozen):
    """The `top` best trials and the best DPO, each trained again under `seeds` new seeds once the search has ended."""

    top: Natural = 3
    seeds: Annotated[int, Field(ge=2)] = 5


class SearchSettings(Frozen):
    """How the space is explored. `num_trials` counts the baseline; null takes every point of a grid.

    A trial whose worker, slot or node dies goes on from its last checkpoint, up to `max_failures` times. `study_url` is
    the database of the study (null is SQLite in the search's folder); a password in it is used and not written down.
    `time_budget_s` is the wall time that all drivers of the search together may take for its training, with Ray's start
    and a warm-up; trials that are then under way stop, and go on where a larger budget is given. `confirm` trains
    beyond `num_trials` and `time_budget_s`; it may be given to a search that has ended.
    """

    num_trials: Natural | None = None
    metric: Objective = "eval_accuracy"
    mode: Literal["max", "min"] = "max"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    n_startup_trials: NotNegativeInt = 10
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    time_budget_s: Positive | None = None
    max_failures: NotNegativeInt = 3
    study_url: Text | None = None
    scheduler: SchedulerConfig | None = SchedulerConfig()
    baseline: BaselineConfig | None = BaselineConfig()
    confirm: ConfirmConfig | None = None

    @property
    def maximize(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.mode == "max"


class LoraSpace(Frozen):
    """Domains of the adapter settings that a search may vary."""

    r: Annotated[Domain, Searchable(Natural, domain_only=True)] | None = None
    lora_alpha: Annotated[Domain, Searchable(Positive, domain_only=True)] | None = None
    lora_dropout: Annotated[Domain, Searchable(BelowOne, domain_only=True)] | None = None


class TrainingSpace(Frozen):
    """Domains of the training settings that a search may vary, shared by all branches."""

    learning_rate: Annotated[Domain, Searchable(Positive, domain_only=True)] | None = None
    lr_scheduler_type: Annotated[Domain, Searchable(Schedule, domain_only=True)] | None = None
    warmup_steps: Annotated[Domain, Searchable(NotNegative, domain_only=True)] | None = None
    weight_decay: Annotated[Domain, Searchable(NotNegative, domain_only=True)] | None = None
    adam_beta1: Annotated[Domain, Searchable(BelowOne, domain_only=True)] | None = None
    adam_beta2: Annotated[Domain, Searchable(BelowOne, domain_only=True)] | None = None
    adam_epsilon: Annotated[Domain, Searchable(Positive, domain_only=True)] | None = None
    max_grad_norm: Annotated[Domain, Searchable(NotNegative, domain_only=True)] | None = None
    per_device_train_batch_size: Annotated[Domain, Searchable(Natural, domain_only=True)] | None = None
    gradient_accumulation_steps: Annotated[Domain, Searchable(Natural, domain_only=True)] | None = None
    lora: LoraSpace | None = None


RESERVED_LABELS = ("baseline", "training")
"""Branch of trial 0, and prefix of the parameters that all branches share."""


class SpaceConfig(Frozen):
    """The losses, one branch each, and the training settings that every branch shares."""

    losses: Annotated[list[AnyLoss], Field(min_length=1)]
    training: TrainingSpace = TrainingSpace()

    def branches(self) -> dict[str, AnyLoss]:
        """The losses by the name of their branch."""
        return dict(zip(self._names(), self.losses, strict=True))

    def _names(self) -> list[str]:
        seen: Counter[str] = Counter()
        names: list[str] = []
        for loss in self.losses:
            name = loss.label or loss.default_label()
            seen[name] += 1
            names.append(name if loss.label or seen[name] == 1 else f"{name}_{seen[name]}")
        return names

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        names = self._names()
        for index, name in enumerate(names):
            key = f"losses[{index}].label"
            if name in names[:index]:
                raise law(f"every loss needs its own label, but {name!r} is used twice", key=key)
            if name in RESERVED_LABELS:
                raise law(f"{name!r} names something else in tables and parameters; take another label", key=key)
        return self


class DivergenceConfig(Frozen):
    """When a trial has diverged; judged at every optimizer step over the last `window` of them.

    It has when more than nonfinite_fraction x window steps were non-finite, when the mean loss exceeds loss_factor
    times the loss at margin 0, or when the mean margin of a step exceeds margin_limit (nats) on either side.
    `nonfinite_step` says whether a non-finite gradient is skipped on every rank or applied as TRL does.
    """

    nonfinite_fraction: Share = 0.05
    window: Natural = 20
    nonfinite_step: Literal["skip", "apply"] = "skip"
    loss_factor: Annotated[float, Field(gt=1)] = 20.0
    margin_limit: Positive = 500.0


class ResourcesConfig(Frozen):
    """What one worker group takes, how many run at once, and how long to wait for it (seconds).

    A group is started anew after `trials_per_group` trials; null keeps it for the whole search. A trial from which
    nothing is heard for `silence_s` seconds is told of, with what its group may be waiting for.
    """

    workers: Natural = 1
    cpus_per_worker: Natural = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    concurrent_trials: Natural = 1
    wait_s: NotNegative = 60
    silence_s: Positive = 120
    trials_per_group: Natural | None = None

    @model_validator(mode="after")
    def _ray_shares_one_gpu_only(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            raise law(f"a share of one GPU or a whole number of them is needed, but got {gpus}", key="gpus_per_worker")
        return self


class CheckpointConfig(Frozen):
    """When a trial is saved so that it can go on after a fault, and how many of its checkpoints are kept.

    A trial is saved behind every rung that it passes, every `save_steps` optimizer steps between them, and at its end.
    """

    save_steps: Natural = 50
    save_total_limit: Natural = 2


class TrackingConfig(Frozen):
    """Where MLflow keeps its runs; null is <storage>/mlflow.db."""

    mlflow: Text | None = None
    experiment: Text = "tune_dlrml"


CONFIRM_SUFFIX = "/confirm"
"""Behind the name of a search: the study and the folder of its confirmation."""
NAME_PATTERN = rf"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?(?:{CONFIRM_SUFFIX})?$"
NAME_LENGTH = 100


class SearchConfig(Frozen):
    """A search-space file, complete and legal. Without `evaluation` nobody is asked and nobody judges."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
    model: Text
    dataset: DatasetConfig
    training: TrainingConfig
    search: SearchSettings = SearchSettings()
    space: SpaceConfig
    divergence: DivergenceConfig = DivergenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resources: ResourcesConfig = ResourcesConfig()
    evaluation: EvaluationConfig | None = None
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _laws_across_sections(self) -> Self:
        searched = searched_fields(self.space.training)
        if self.space.training.lora is not None and self.training.lora is None:
            raise law(
                "needs a `lora` section in training; without it all weights are trained", key="space.training.lora"
            )
        if "lora.lora_dropout" in searched and self.training.disable_dropout:
            raise law(
                "needs training.disable_dropout: false to have an effect, but it is true",
                key="space.training.lora.lora_dropout",
            )
        idle = sorted(set(searched) & _without_effect(self.training, searched))
        if idle:
            raise law(
                f"changes nothing under training.optim: {self.training.optim} and "
                f"training.lr_scheduler_type: {self.training.lr_scheduler_type}; leave it out or change those",
                key=f"space.training.{idle[0]}",
            )
        batch = sorted(set(searched) & _BATCH_KEYS)
        if batch and self.training.num_train_epochs is not None:
            raise law(
                "a searched batch size needs `training.max_steps`, since epochs would give each trial other rungs, "
                f"but got num_train_epochs={self.training.num_train_epochs}",
                key=f"space.training.{batch[0]}",
            )
        self._check_search(searched)
        if self.search.confirm is not None and len(self.name) + len(CONFIRM_SUFFIX) > NAME_LENGTH:
            raise law(f"with search.confirm at most {NAME_LENGTH - len(CONFIRM_SUFFIX)} characters", key="name")
        if self.evaluation is not None and self.evaluation.pairwise and self.search.baseline is None:
            raise law("compares with the DPO baseline, but search.baseline is null", key="evaluation.pairwise")
        return self

    def _check_search(self, searched: dict[str, Range | Choice]) -> None:
        scheduler, full = self.search.scheduler, self.training.max_steps
        if scheduler is not None and full is not None and scheduler.grace_period > full:
            raise law(
                f"`grace_period <= max_steps` must hold, but got grace_period={scheduler.grace_period}, "
                f"max_steps={full}",
                key="search.scheduler.grace_period",
            )
        if self.search.sampler == "grid":
            self._check_grid(searched)
        elif self.search.num_trials is None:
            raise law(
                f"sampler {self.search.sampler} needs a number of trials, but got null; only a grid ends by itself",
                key="search.num_trials",
            )

    def _check_grid(self, searched: dict[str, Range | Choice]) -> None:
        domains = {f"space.training.{key}": domain for key, domain in searched.items()}
        for index, loss in enumerate(self.space.losses):
            domains |= {f"space.losses[{index}].{key}": domain for key, domain in loss.domains().items()}
        for key, domain in domains.items():
            if isinstance(domain, Range) and domain.num is None:
                given = json.dumps(domain.as_yaml())
                raise law(f"sampler grid needs `num`, the number of points, in every range, but got {given}", key=key)

    def baseline_loss(self) -> DpoLoss | None:
        """The loss of trial 0, unless switched off."""
        baseline = self.search.baseline
        return None if baseline is None else DpoLoss(beta=baseline.beta)


def _without_effect(training: TrainingConfig, searched: Mapping[str, Any]) -> set[str]:
    """Settings that the optimizer and the schedule do not look at, and so would be a dead dimension."""
    warmless = training.lr_scheduler_type == "constant" and "lr_scheduler_type" not in searched
    adam = set() if training.optim.startswith("adamw") else {"adam_beta1", "adam_beta2", "adam_epsilon"}
    return adam | ({"warmup_steps"} if warmless else set())


_BATCH_KEYS = {"per_device_train_batch_size", "gradient_accumulation_steps"}
