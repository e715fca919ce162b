"""The part of a search that a worker group needs; apart from the training, since a driver and a slot need no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tune_dlrml.config import CheckpointConfig, DivergenceConfig, ResourcesConfig, TrainingConfig
from tune_dlrml.data import Pairs
from tune_dlrml.records import Completed

OF_A_TRIAL = {
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "logging_steps"),
    *("seed", "data_seed", "train_sampling_strategy", "warm_up"),
}
"""Settings of `training` that only a trial's own training reads: nothing that workers load depends on them."""


class Questionnaire(Protocol):
    """What a trial is asked once it has used up its budget."""

    def answer(
        self, policy: Any, tokenizer: Any, *, rank: int, world: int, deal: Callable[..., list[Any]] | None = None
    ) -> Any:
        """This rank's share of the answers, from the policy as it stands; it and the random state stay as they are.

        Where the ranks hold the policy together, `deal(call, items)` gives what `call` gives for each item, every rank
        taking some, and each has all of the answers.
        """

    def keep(self, folder: Path, shares: Sequence[Any]) -> None:
        """Write the answers of all ranks into the trial's folder, in place of those of an earlier attempt."""


class Completer(Protocol):
    """Held-out prompts that a model completes as it stands; it and the random state stay as they are."""

    def complete(
        self, policy: Any, tokenizer: Any, *, rank: int, world: int, deal: Callable[..., list[Any]] | None = None
    ) -> list[Completed]:
        """This rank's share of the completions, or all of them; see `Questionnaire.answer`.

        Raises:
            NotFiniteError: The model's logits are not finite.
        """


@dataclass(frozen=True)
class TrialPlan:
    """What a group needs to know of its search to train any trial of it.

    Attributes:
        steps: Full budget in optimizer steps.
        rungs: Steps before the last at which a trial is evaluated and waits for a verdict.
        workers: Ranks of the group.
        divergence: When a trial has diverged.
        checkpoint: When a trial is saved, and how many of its checkpoints are kept.
        questionnaire: What a trial is asked at its full budget; its answers are there before its last checkpoint is.
        pauses: Whether a verdict may pause a trial, so that its checkpoint has to be there before the verdict.
    """

    steps: int
    rungs: frozenset[int]
    workers: int
    divergence: DivergenceConfig
    checkpoint: CheckpointConfig
    questionnaire: Questionnaire | None = None
    pauses: bool = False


class GroupShape(NamedTuple):
    """What the processes of a worker group depend on, whatever they train.

    Attributes:
        name: Of the search that starts them, in the names of Ray's runs.
        resources: Workers and what each takes.
        storage: Folder that every node sees, for the files that Ray Train insists on.
    """

    name: str
    resources: ResourcesConfig
    storage: str

    def serves(self, other: "GroupShape") -> bool:
        """Whether its processes can train for a search that asks for another shape."""
        mine, its = self.resources, other.resources
        return (mine.workers, mine.cpus_per_worker, mine.gpus_per_worker) == (
            its.workers,
            its.cpus_per_worker,
            its.gpus_per_worker,
        )


@dataclass(frozen=True)
class GroupSpec:
    """All that a worker group needs to train any trial of its search.

    Attributes:
        name: The search's, in the names of Ray's runs.
        model: Model reference.
        files: Name, bytes and time of change in nanoseconds of the model's files; empty for one of a hub.
        pairs: Preference pairs as token ids, the same for every group and resume.
        training: The settings that all trials share; a trial's own override them.
        plan: Budget and rules of the search.
        resources: Workers and what each takes.
        storage: Folder that every node sees, for the files that Ray Train insists on.
        trials: Folder that every node sees, with a folder for each trial's checkpoints.
        reference: Folder that every node sees, with the reference log-probs of all searches; None where no trial looks
            at a reference, so that none is run.
        completer: Held-out prompts that trials complete; None where there are none.
        beyond: Whether a trial weighs the tokens beyond the public length of a pair.
    """

    name: str
    model: str
    pairs: Pairs
    training: TrainingConfig
    plan: TrialPlan
    resources: ResourcesConfig
    storage: str
    trials: str
    reference: str | None
    completer: Completer | None = None
    beyond: bool = False
    files: tuple[tuple[str, int, int], ...] = ()

    @property
    def shape(self) -> GroupShape:
        """What its processes depend on."""
        return GroupShape(self.name, self.resources, self.storage)

    def loads_as(self, other: "GroupSpec") -> bool:
        """Whether what its workers have loaded is what they would load for the other."""
        return self._loaded == other._loaded

    @property
    def _loaded(self) -> tuple[Any, ...]:
        pairs = self.pairs.train.sha256(), self.pairs.eval.sha256()
        training = self.training.model_dump(exclude=OF_A_TRIAL)
        model = self.model, self.files
        return model, training, self.resources.fsdp, self.reference, self.completer, self.beyond, pairs


class Lease(NamedTuple):
    """Trials of one search that a worker group trains, until its mailbox says that there are no more.

    Attributes:
        mailbox: Handle of the mailbox with the trials; it ends with the slot that owns it.
        group: Reference of the search's GroupSpec in Ray's object store.
    """

    mailbox: Any
    group: Any
