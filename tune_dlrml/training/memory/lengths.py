"""The micro-batch that a search's rows make: the largest one, which its memory is for, and the mean one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.memory.simulated import MicroBatch
from tune_dlrml.training.pairs.form import why_padded
from tune_dlrml.training.pairs.packed import sequences


class MicroBatches(NamedTuple):
    """Pairs of the greatest length, and pairs of mean length."""

    largest: MicroBatch
    mean: MicroBatch


def micro_batches(model: PreTrainedModel, training: TrainingConfig, rows: Sequence[Mapping[str, Any]]) -> MicroBatches:
    """Those of training rows, in the form that a group would choose for them.

    Args:
        model: With or without storage.
        training: Truncation, pairs at once and `shared_prompt`.
        rows: Token ids of the training pairs.
    """
    lengths = [_lengths(row, training) for row in rows]
    longest = max(lengths, key=lambda each: each[0] + max(each[1:]))
    prompt, chosen, rejected = (max(1, round(sum(part) / len(rows))) for part in zip(*lengths, strict=True))
    packed = why_padded(model, training, rows) is None
    pairs = training.per_device_train_batch_size
    return MicroBatches(MicroBatch(pairs, *longest, packed), MicroBatch(pairs, prompt, chosen, rejected, packed))


def assumed_micro_batch(training: TrainingConfig, longest: int) -> MicroBatch:
    """The largest that settings allow where no rows are known: both sequences full, half of each an answer."""
    answer = longest // 2
    packed = training.shared_prompt is True
    return MicroBatch(training.per_device_train_batch_size, longest - answer, answer, answer, packed)


def _lengths(row: Mapping[str, Any], training: TrainingConfig) -> tuple[int, int, int]:
    """Tokens of prompt, chosen and rejected completion after truncation."""
    (chosen, begin), (rejected, also) = sequences(row, training.max_length, training.truncation_mode)
    return max(begin, also), max(1, len(chosen) - begin), max(1, len(rejected) - also)
