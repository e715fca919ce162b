"""Whether the ranks of a group hold their model together: as the search says, or where it does not fit one device."""

import logging
import socket
from collections import Counter
from typing import Literal

import torch
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from tune_dlrml.config import TrainingConfig
from tune_dlrml.errors import InputError
from tune_dlrml.models.division import refuse_undividable
from tune_dlrml.models.loading import ModelReference, load_shapes, quantization_of
from tune_dlrml.system.memory import free_memory
from tune_dlrml.training.memory.rest import at_rest
from tune_dlrml.training.ranks import from_all, is_rank_zero, rank_and_world

ROOM = 0.6
"""Share of a device that weights, gradients and moments may take; the rest is for activations and logits."""

_log = logging.getLogger(__name__)


def choose_sharding(
    fsdp: Literal["auto"] | bool, reference: ModelReference, training: TrainingConfig, dtype: torch.dtype
) -> bool:
    """Whether the model is divided, the same on every rank.

    Args:
        fsdp: What the search says.
        reference: The model.
        training: What is trained, and by which optimizer.
        dtype: Of the weights as they are kept.

    Raises:
        InputError: It has to be divided, and cannot.
    """
    _, world = rank_and_world()
    if world == 1 or fsdp is False or (fsdp == "auto" and _quantized(reference, training)):
        return False
    model = load_shapes(reference)
    sharded = fsdp is True or _too_large(sum(at_rest(model, training, dtype).values()))
    if sharded:
        undividable = training.undividable()
        if undividable is not None:
            key, reason = undividable
            raise InputError(
                f"training.{key}: {reason}, but the model is too large for one device; change it, or set "
                "resources.fsdp: false to try all the same"
            )
        refuse_undividable(model, world, all_weights=training.lora is None)
    return sharded


def _quantized(reference: ModelReference, training: TrainingConfig) -> bool:
    return training.quantization is not None or quantization_of(reference) is not None


def _too_large(needed: int) -> bool:
    """Whether one device of any rank has too little room for what a whole model needs."""
    everyones = from_all(lambda: (socket.gethostname(), _device_bytes()))
    sharers = Counter(host for host, _ in everyones)
    on_gpu = torch.cuda.is_available()
    free = min(free / (1 if on_gpu else sharers[host]) for host, free in everyones)
    too_large = is_too_large(needed, free)
    if is_rank_zero():
        _log.info(
            "the model is %s: weights, gradients and moments take %.2f GiB, and a rank has room for %.2f GiB",
            "divided over the ranks" if too_large else "whole on every rank",
            needed / 2**30,
            ROOM * free / 2**30,
        )
    return too_large


def is_too_large(needed: int, free: float) -> bool:
    """Whether weights, gradients and moments take more than their share of the bytes that a device has free."""
    return needed > ROOM * free


def _device_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory()


def check_division(model: PreTrainedModel) -> None:
    """Look whether every weight of a loaded model is divided once, over all ranks.

    With replicas of the shards, PEFT makes adapters of the wrong shape.

    Raises:
        InputError: One is not.
    """
    for name, weight in model.named_parameters():
        if not (isinstance(weight, DTensor) and weight.device_mesh.ndim == 1 and weight.placements == (Shard(0),)):
            raise InputError(
                f"resources.fsdp: every weight must be divided over all workers, but {name} of this "
                f"{type(model).__name__} is not; set resources.fsdp: false"
            )
