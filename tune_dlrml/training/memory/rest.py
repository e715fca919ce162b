"""What lies in a rank's memory between two steps: weights, gradients and the optimizer's moments."""

from collections.abc import Mapping

import torch
from torch import nn

from tune_dlrml.config import TrainingConfig

MOMENTS = {"sgd": 0, "adafactor": 0}
"""Numbers that an optimizer keeps for each weight; two unless said here."""
FLOAT = 4
"""Bytes of a float32, in which everything is that is trained."""

Pieces = Mapping[str, int]
"""Bytes by what they are."""


def kept_dtype(training: TrainingConfig) -> torch.dtype:
    """Of a model's weights: a frozen base is kept in bfloat16 where it computes in it; what is trained, in float32."""
    return torch.bfloat16 if training.in_bfloat16 and training.lora else torch.float32


def at_rest(
    model: nn.Module, training: TrainingConfig, dtype: torch.dtype, *, adapter: int = 0, shards: int = 1
) -> dict[str, int]:
    """Bytes of the weights and of the gradients and moments of what is trained; activations come on top.

    Args:
        model: Without an adapter, with or without storage.
        training: What is trained, and by which optimizer.
        dtype: Of the model's weights as they are kept.
        adapter: Weights of the adapter, of which every rank has all.
        shards: Ranks that hold the model's weights together.
    """
    weights = -(-sum(weight.numel() for weight in model.parameters()) // shards)
    trained = weights if training.lora is None else adapter
    return {
        "weights": weights * dtype.itemsize,
        **({} if training.lora is None else {"adapter": adapter * FLOAT}),
        "gradients": trained * FLOAT,
        "optimizer": trained * FLOAT * MOMENTS.get(training.optim, 2),
    }
