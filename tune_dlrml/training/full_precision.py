"""A model that computes in float32, whatever it is kept in, for numbers that bfloat16's rounding would drown.

Two forwards of one model in bfloat16 that differ in a kernel or a batch differ by hundredths of a nat a token, which is
more than a small leak between two sequences, and as much as the KL of a policy that has barely moved.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from transformers.modeling_layers import GradientCheckpointingLayer

from tune_dlrml.models.quantization import layers_in_float32
from tune_dlrml.training.sharding.shards import is_sharded
from tune_dlrml.training.sharding.widening import HALF, widen_gathered


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Within this block a forward computes in float32, without autocast; afterwards the model is as before, bit by bit.

    Layers are widened one at a time, while they compute: a model needs the memory of one layer, and of what lies
    outside its layers, more. bfloat16 and float16 come back from float32 as they were.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        stack.enter_context(_own_forward(model))
        stack.enter_context(layers_in_float32(model))
        if is_sharded(model):
            widen_gathered(model, _outermost_layers, stack)
        else:
            _widen_whole(model, stack)
        yield


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Take away the forward that Accelerate puts around a policy's, in an autocast of its own."""
    around, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if own is not None:
        model.forward = own
    try:
        yield
    finally:
        if own is not None:
            model.forward = around


def _widen_whole(model: nn.Module, stack: ExitStack) -> None:
    kept = {weight: weight.dtype for weight in model.parameters() if weight.dtype in HALF}
    stack.callback(_narrow, kept, kept)
    inside: set[Parameter] = set()
    for layer in _outermost_layers(model):
        own = [weight for weight in layer.parameters() if weight in kept]
        inside.update(own)
        stack.callback(layer.register_forward_pre_hook(partial(_widen_for, own)).remove)
        stack.callback(layer.register_forward_hook(partial(_narrow_after, own, kept), always_call=True).remove)
    _widen(weight for weight in kept if weight not in inside)


def _outermost_layers(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, GradientCheckpointingLayer):
        yield module
    else:
        for child in module.children():
            yield from _outermost_layers(child)


def _widen(weights: Iterable[Parameter]) -> None:
    for weight in weights:
        weight.data = weight.data.float()


def _narrow(weights: Iterable[Parameter], kept: Mapping[Parameter, torch.dtype]) -> None:
    for weight in weights:
        weight.data = weight.data.to(kept[weight])


def _widen_for(own: Iterable[Parameter], *_: Any) -> None:
    _widen(own)


def _narrow_after(own: Iterable[Parameter], kept: Mapping[Parameter, torch.dtype], *_: Any) -> None:
    _narrow(own, kept)
