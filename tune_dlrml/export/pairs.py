"""The pairs that a trial trained on, and the order in which it saw them."""

from dataclasses import dataclass
from typing import Any

from tune_dlrml.data import batch_plan, content_hash, select_pairs
from tune_dlrml.errors import InputError
from tune_dlrml.export.trained import TrainedTrial
from tune_dlrml.models.loading import load_reader


@dataclass(frozen=True)
class TrainingPairs:
    """Data of a trial.

    Attributes:
        pairs: Every training pair that was used, as text or messages.
        order: Positions in `pairs`, one for every pair of every optimizer step.
        held_out: Number of pairs that the numbers were measured on.
        hashes: Content hash by section.
    """

    pairs: list[dict[str, Any]]
    order: list[int]
    held_out: int
    hashes: dict[str, str]


def training_pairs(trial: TrainedTrial) -> TrainingPairs:
    """Read the data again and lay out the trial's order.

    Raises:
        InputError: The data is not what the search was started with.
    """
    training = trial.spec.training
    selection = select_pairs(trial.config.dataset, trial.config.training, lambda: load_reader(trial.model))
    hashes = {name: content_hash(section.pairs) for name, section in selection.sections.items()}
    changed = [name for name, known in trial.data_hash.items() if hashes.get(name, known) != known]
    if changed:
        raise InputError(
            f"dataset.{changed[0]}: an export holds the pairs that the trial saw, but the data has changed since "
            f"search {trial.search!r} was started; restore the rows of {getattr(trial.config.dataset, changed[0])}"
        )
    train, longest = selection.sections["train"], training.max_length
    lengths = [pair.length if longest is None else min(pair.length, longest) for pair in train.tokens]
    plan = batch_plan(lengths, steps=trial.steps, pairs_per_step=pairs_per_step(trial), seed=training.seed)
    return TrainingPairs(train.pairs, plan, len(selection.sections["eval"].pairs), hashes)


def pairs_per_step(trial: TrainedTrial) -> int:
    """Pairs of one optimizer step, over all micro-batches and ranks."""
    training, workers = trial.spec.training, trial.config.resources.workers
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * workers
