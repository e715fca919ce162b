"""The pairs that a trial trained on, and the order in which it saw them."""

from dataclasses import dataclass
from typing import Any

from tune_dlrml.data import content_hash, select_pairs, training_order
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
    train = selection.sections["train"]
    lengths = [pair.length for pair in train.tokens]
    plan = training_order(lengths, training, steps=trial.steps, workers=trial.config.resources.workers)
    return TrainingPairs(train.pairs, plan, len(selection.sections["eval"].pairs), hashes)


def pairs_per_step(trial: TrainedTrial) -> int:
    """Pairs of one optimizer step, over all micro-batches and ranks."""
    return trial.spec.training.pairs_per_step(trial.config.resources.workers)
