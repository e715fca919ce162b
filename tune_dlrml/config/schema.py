"""A whole search as one frozen value. Keys carry the names of the library that owns them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tune_dlrml.config.discovery import DiscoveryConfig
from tune_dlrml.config.evaluation import CompletionsConfig, EvaluationConfig
from tune_dlrml.config.lora import LoraSpace
from tune_dlrml.config.numbers import BelowOne, Natural, NotNegative, Positive
from tune_dlrml.config.rows import DatasetConfig
from tune_dlrml.config.settings import (
    CONFIRM_SUFFIX,
    NAME_LENGTH,
    CheckpointConfig,
    DivergenceConfig,
    ResourcesConfig,
    SearchName,
    SearchSettings,
    Text,
    TrackingConfig,
)
from tune_dlrml.config.training import Schedule, TrainingConfig
from tune_dlrml.domains import Choice, Domain, Frozen, Range, Searchable, law
from tune_dlrml.losses.base import searched_fields
from tune_dlrml.losses.registry import AnyLoss, baseline
from tune_dlrml.metrics import METRICS
from tune_dlrml.system.processor import multiplies_bfloat16


class TrainingSpace(Frozen):
    """Domains of the training settings that a search may vary, with the meaning that they have in `training`."""

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

    losses: Annotated[list[AnyLoss], Field(min_length=1, exclude_if=lambda losses: not losses)] = Field(
        default_factory=list
    )
    """Each with its own fields; a field takes a value or a domain. None with `discovery`, which brings its own."""
    scalars: Annotated[
        dict[str, Annotated[Domain, Searchable(float, domain_only=True)]],
        Field(exclude_if=lambda scalars: not scalars),
    ] = Field(default_factory=dict)
    """With `discovery`: domains of the scalars of proposed losses by their names, where a proposal gives none."""
    training: TrainingSpace = TrainingSpace()
    """Domains of training settings that all branches share."""

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
                raise law(f"{name!r} is reserved in tables and parameters; choose another label", key=key)
        return self


class SearchConfig(Frozen):
    """A search-space file, complete and legal."""

    name: SearchName
    """Of the search: its folder, its study and its run in MLflow; the same name resumes it."""
    model: Text
    """The model to train: a hub id `org/name[@revision]`, a folder, or `package:<python_package>/<file>.gguf`."""
    dataset: DatasetConfig
    """The preference pairs, and how they are read."""
    training: TrainingConfig
    """One trial's training, wherever `space` does not vary it."""
    search: SearchSettings = SearchSettings()
    """How the space is explored."""
    space: SpaceConfig = SpaceConfig()
    """The losses and settings to explore."""
    discovery: DiscoveryConfig | None = None
    """Explores losses that language models propose, in place of those of `space`."""
    divergence: DivergenceConfig = DivergenceConfig()
    """When a trial has diverged."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When a trial is saved."""
    resources: ResourcesConfig = ResourcesConfig()
    """Resources of the workers."""
    completions: CompletionsConfig | None = None
    """Completions of held-out prompts by every trial, their length and reward; null writes none."""
    evaluation: EvaluationConfig | None = None
    """Questions in the loop, and their judges; null switches both off."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow is."""

    @model_validator(mode="after")
    def _laws_across_sections(self) -> Self:
        self._check_losses()
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
        self._check_adapter(searched)
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
        if self.resources.fsdp is True and self.training.warm_up is not None:
            raise law(
                "is done by one worker, which has to hold the whole model, but resources.fsdp is true; fine-tune the "
                "model first and give its folder as `model`",
                key="training.warm_up",
            )
        undividable = self.training.undividable() if self.resources.fsdp is True else None
        if undividable is not None:
            key, reason = undividable
            raise law(f"{reason}, but resources.fsdp is true; change one of the two", key=f"training.{key}")
        if self.search.confirm is not None and len(self.name) + len(CONFIRM_SUFFIX) > NAME_LENGTH:
            raise law(f"with search.confirm at most {NAME_LENGTH - len(CONFIRM_SUFFIX)} characters", key="name")
        if self.evaluation is not None and self.evaluation.pairwise and self.search.baseline is None:
            raise law("compares with the DPO baseline, but search.baseline is null", key="evaluation.pairwise")
        return self

    def _check_losses(self) -> None:
        if self.discovery is None:
            if not self.space.losses:
                raise law("at least one loss is needed, but got none", key="space.losses")
            if self.space.scalars:
                raise law(
                    "are those of proposed losses, but there is no `discovery`; give domains in the loss's own fields",
                    key="space.scalars",
                )
            return
        search = self.search
        idle = {
            "space.losses": bool(self.space.losses),
            "search.num_trials": search.num_trials is not None,
            "search.points": search.points is not None,
            "search.start_from": search.start_from is not None,
        }
        given = next((key for key, is_given in idle.items() if is_given), None)
        if given is not None:
            raise law(
                "must be left out with `discovery`, which trains discovery.seeds_losses and then its candidates, "
                "each for discovery.trials_per_candidate trials",
                key=given,
            )
        if search.sampler == "grid":
            raise law("a proposed loss has no grid; take sampler tpe or random", key="search.sampler")

    def _check_adapter(self, searched: dict[str, Range | Choice]) -> None:
        lora, rank = self.training.lora, searched.get("lora.r")
        if lora is None:
            return
        odd = isinstance(rank, Range) or (rank is not None and any(int(value or 0) % 2 for value in rank.values))
        if lora.init_lora_weights == "orthogonal" and rank is not None and odd:
            raise law(
                "a choice of even numbers is needed for training.lora.init_lora_weights: orthogonal, but got "
                f"{json.dumps(rank.as_yaml())}",
                key="space.training.lora.r",
            )
        if lora.target_parameters is not None and "lora.lora_dropout" in searched:
            raise law(
                "PEFT has no such adapter for training.lora.target_parameters; leave one of the two out",
                key="space.training.lora.lora_dropout",
            )

    def _check_search(self, searched: dict[str, Range | Choice]) -> None:
        scheduler, full = self.search.scheduler, self.training.max_steps
        first = None if scheduler is None else scheduler.grace_period
        if first is not None and full is not None and first > full:
            raise law(
                f"`grace_period <= max_steps` must hold, but got grace_period={first}, max_steps={full}",
                key="search.scheduler.grace_period",
            )
        self._check_start()
        self._check_metrics()
        if self.search.sampler == "grid":
            self._check_grid(searched)
        elif self.search.num_trials is None and self.discovery is None:
            raise law(
                f"sampler {self.search.sampler} needs a number of trials, but got null; only a grid ends by itself",
                key="search.num_trials",
            )

    def _check_start(self) -> None:
        search = self.search
        key = "search.points" if search.points else "search.start_from"
        given, top = len(search.points or ()), 0 if search.start_from is None else search.start_from.top
        first = given + top
        if first and search.sampler == "grid":
            raise law("sampler grid trains every point by itself; leave this out or take another sampler", key=key)
        baseline = 0 if search.baseline is None else 1
        if search.num_trials is not None and first and baseline + first > search.num_trials:
            raise law(
                f"{given} points, {top} trials to start from and {baseline} baseline must fit search.num_trials, "
                f"but got num_trials={search.num_trials}",
                key=key,
            )

    def _check_metrics(self) -> None:
        """Refuse what compares with a reference where none is run, and what only such searches have elsewhere."""
        bounded = {f"search.constraints.{name}": name for name in self.search.constraints or ()}
        for key, name in ({"search.metric": self.search.metric} | bounded).items():
            of = METRICS[name].of_searches
            if of == "with a reference" and not self.needs_reference():
                raise law(
                    f"{name} compares with the reference, which this search does not run: its losses take none, and "
                    "search.baseline is null; take eval_policy_accuracy or eval_policy_margin, or give a baseline",
                    key=key,
                )
            if of == "without a reference" and self.needs_reference():
                raise law(
                    f"{name} is reported by a search without a reference alone; take eval_accuracy or eval_margin, or "
                    "set search.baseline to null and leave out the losses that take a reference",
                    key=key,
                )
            if of == "with completions" and self.completions is None:
                raise law(
                    f"{name} is that of completions, and the search writes none; add `completions: {{}}`", key=key
                )
            if of == "with a reward" and (self.completions is None or self.completions.reward is None):
                raise law(
                    f"{name} is that of completions, which nothing rewards; add `completions: {{reward: vader}}`, or "
                    "another reward",
                    key=key,
                )
        if self.search.confirm is not None and not self.needs_reference():
            raise law(
                "compares with DPO, which takes a reference, but this search runs none; give search.baseline, or leave "
                "it out",
                key="search.confirm",
            )

    def _check_grid(self, searched: dict[str, Range | Choice]) -> None:
        domains = {f"space.training.{key}": domain for key, domain in searched.items()}
        for index, loss in enumerate(self.space.losses):
            domains |= {f"space.losses[{index}].{key}": domain for key, domain in loss.domains().items()}
        for key, domain in domains.items():
            if isinstance(domain, Range) and domain.num is None:
                given = json.dumps(domain.as_yaml())
                raise law(f"sampler grid needs `num`, the number of points, in every range, but got {given}", key=key)

    def needs_reference(self) -> bool:
        """Whether its trials compare with a reference: any of its losses does, or its baseline."""
        losses = [*self.space.losses, *filter(None, [self.baseline_loss()])]
        return self.discovery is not None or any(loss.needs_reference for loss in losses)

    def with_precision(self) -> Self:
        """The same with the answer to `training.bf16: auto`, so that a search keeps it wherever it is resumed."""
        if self.training.bf16 != "auto":
            return self
        fast = self.resources.gpus_per_worker > 0 or self.training.quantization is not None or multiplies_bfloat16()
        return self.model_copy(update={"training": self.training.model_copy(update={"bf16": fast})})

    def known_losses(self) -> SpaceConfig:
        """The space of the losses that the file names: those of `space`, or those that a discovery begins with."""
        if self.discovery is None:
            return self.space
        return self.space.model_copy(update={"losses": self.discovery.seeds_losses})

    @property
    def losses_key(self) -> str:
        """Where the file names them."""
        return "space.losses" if self.discovery is None else "discovery.seeds_losses"

    def with_losses(self, losses: Sequence[AnyLoss]) -> Self:
        """The search with these losses in place of `known_losses`."""
        if self.discovery is None:
            return self.model_copy(update={"space": self.space.model_copy(update={"losses": list(losses)})})
        return self.model_copy(update={"discovery": self.discovery.model_copy(update={"seeds_losses": list(losses)})})

    def weighs_length(self) -> bool:
        """Whether a loss of it weighs the tokens beyond the public length of a pair."""
        return any(loss.ld_alpha is not None for loss in self.space.losses)

    def baseline_loss(self) -> AnyLoss | None:
        """The loss of trial 0, unless switched off."""
        given = self.search.baseline
        return None if given is None else baseline(beta=given.beta)


def _without_effect(training: TrainingConfig, searched: Mapping[str, Any]) -> set[str]:
    """Settings that the optimizer and the schedule do not use, so that searching them has no effect."""
    warmless = training.lr_scheduler_type == "constant" and "lr_scheduler_type" not in searched
    adam = set() if training.optim.startswith("adamw") else {"adam_beta1", "adam_beta2", "adam_epsilon"}
    return adam | ({"warmup_steps"} if warmless else set())


_BATCH_KEYS = {"per_device_train_batch_size", "gradient_accumulation_steps"}
