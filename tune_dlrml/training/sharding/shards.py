"""What a sharded model is, and what its owner has to do that one of a whole model has not.

transformers loads the shards: every rank reads its own slices, and a layer is gathered while it computes. An adapter
that is put in afterwards lies beside them, plain tensors that every rank has, so that a trial re-shards nothing. Every
forward is a collective of all ranks.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

T = TypeVar("T")
R = TypeVar("R")


def is_sharded(model: nn.Module) -> bool:
    """Whether the ranks hold this model, or the base of this adapter, together."""
    return sharded_root(model) is not None


def sharded_root(model: nn.Module) -> FSDPModule | None:
    """The outermost module whose weights are divided; None without one."""
    return next((module for module in model.modules() if isinstance(module, FSDPModule)), None)


def settle(model: nn.Module) -> None:
    """Leave no layer gathered and no reduction under way.

    After a forward without a backward, norm and head still are. An adapter put in then would freeze these copies; the
    shards would come back with gradients that count in the norm.
    """
    root = sharded_root(model)
    if root is not None:
        root.reset_iter_state()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; all of it unless it is divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def bytes_here(model: nn.Module) -> int:
    """Bytes of the weights that this rank holds."""
    return sum(local_part(parameter.detach()).nbytes for parameter in model.parameters())


def shallow_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model that shares every weight and module with this one."""
    if not is_sharded(model):
        return copy.copy(model)
    from torch.distributed.fsdp._fully_shard._fully_shard import disable_fsdp_module_new_init

    with disable_fsdp_module_new_init():  # a sharded class calls the constructor of its original class
        return copy.copy(model)


def in_step(model: nn.Module, forward: Callable[[T], R], mine: Sequence[T], *, spare: Callable[[], object]) -> list[R]:
    """What `forward` gives for each of this rank's items; every rank goes through the model equally often.

    Args:
        model: What the items go through; where it is not sharded, no rank waits for another.
        forward: One forward. It raises for no reason that other ranks do not see: they would wait for ever.
        mine: The items of this rank.
        spare: A forward for while another rank has items left; what comes of it is thrown away.
    """
    rounds = _most(len(mine)) if is_sharded(model) else len(mine)
    results = [forward(item) for item in mine]
    for _ in range(rounds - len(mine)):
        spare()
    return results


def dealt_out(model: nn.Module, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """What `call`, which puts an item through a sharded model, gives for each; every rank takes some and has all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = in_step(model, call, items[rank::world], spare=lambda: call(items[0]))
    parts: list[list[R]] = [mine] * world
    dist.all_gather_object(parts, mine)
    return [parts[index % world][index // world] for index in range(len(items))]


def _most(count: int) -> int:
    counts = [count] * dist.get_world_size()
    dist.all_gather_object(counts, count)
    return max(counts)


class Replicated(nn.Module):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """Weights that every rank has beside the shards; wrapped by DDP, they start alike and their gradients are averaged.

    DDP looks at weights and not at what computes with them: its forward, called before the model's, is enough.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self) -> None:
        """Nothing; what computes is the model."""
