"""A sharded model that computes in float32: what is gathered is widened once it is there, shards are left alone."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

HALF = (torch.bfloat16, torch.float16)


def widen_gathered(model: nn.Module, layers_of: Callable[[nn.Module], Iterable[nn.Module]], stack: ExitStack) -> None:
    """Let gathered weights be float32 until they are given back, or `stack` is left.

    Norm and head are one unit, of which one part is gathered by the other and the head's matrix is used without its
    forward; so all that lies outside the layers is looked at together.

    Args:
        model: Whose hooks for gathering are in place, so that those added here run behind them.
        layers_of: The modules that are widened each for itself.
        stack: Whatever is left behind is put back when it closes.
    """
    layers = {*layers_of(model)}
    inside = {module for layer in layers for module in layer.modules()}
    outside = [module for module in model.modules() if module not in inside]
    halves: dict[Parameter, Tensor] = {}
    stack.callback(_narrow, halves)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            own = [*unit.modules()] if unit in layers else outside
            stack.callback(unit.register_forward_pre_hook(partial(_widen, own, halves)).remove)
            given_back = partial(_narrow_given_back, halves)
            stack.callback(unit.register_forward_hook(given_back, always_call=True).remove)


def _widen(modules: Iterable[nn.Module], halves: dict[Parameter, Tensor], *_: Any) -> None:
    for module in modules:
        for weight in module.parameters(recurse=False):
            if weight.dtype in HALF and not isinstance(weight.data, DTensor):
                halves[weight] = weight.data
                weight.data = weight.data.float()


def _narrow_given_back(halves: dict[Parameter, Tensor], *_: Any) -> None:
    """Of a weight that is divided again, the storage is empty until it is gathered the next time."""
    _narrow(halves, [weight for weight, half in halves.items() if half.untyped_storage().nbytes() == 0])


def _narrow(halves: dict[Parameter, Tensor], weights: Iterable[Parameter] | None = None) -> None:
    for weight in [*halves] if weights is None else weights:
        weight.data = halves.pop(weight)
