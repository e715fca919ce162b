"""A sharded model and its optimizer in the files of a checkpoint: one file of whole weights, one of moments a rank."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tune_dlrml.errors import InputError
from tune_dlrml.training.sharding.shards import local_part


def gathered_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All weights and buffers of a model, whole and on the host; a collective of all ranks.

    Tied weights are in it once, by the first of their names in alphabetical order, as in safetensors' `save_model`.

    Args:
        model: Settled.
        keep: Whether this rank is to have them; the others only give theirs.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            whole = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
            if keep:
                found[name] = whole.cpu().contiguous()
    return found


def read_weights(model: nn.Module, file: Path) -> None:
    """Put this rank's part of the weights of a file into a settled model; tied weights are in it once.

    Raises:
        OSError: The file cannot be read.
    """
    with safe_open(file, framework="pt") as weights, torch.no_grad():
        stored = {*weights.keys()}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in stored:
                _put(weights.get_slice(name), tensor)


def _put(stored: Any, tensor: Tensor) -> None:
    own = local_part(tensor.detach())
    if not isinstance(tensor, DTensor):
        own.copy_(stored[...])
    elif own.numel():
        begin = _first_row(tensor)
        own.copy_(stored[begin : begin + own.shape[0]])


def _first_row(tensor: DTensor) -> int:
    """Where this rank's rows begin: each rank but the last ones has as many as the first, as `torch.chunk` deals."""
    mesh = tensor.device_mesh
    return int(mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size()))


def optimizer_file(rank: int, world: int) -> str:
    """Name of the file with the moments of a rank's shards."""
    return f"optimizer-rank-{rank}-of-{world}.pt"


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimizer over shards, this rank's part of it as plain tensors."""
    state: dict[str, Any] = optimizer.state_dict()
    own = {index: {key: _local(value) for key, value in each.items()} for index, each in state["state"].items()}
    return state | {"state": own}


def _local(value: Any) -> Any:
    return local_part(value) if isinstance(value, Tensor) else value


def put_moments(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Restore an optimizer over shards from the result of `moments`."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        index: {key: _as_shard(value, weights[index]) for key, value in each.items()}
        for index, each in stored["state"].items()
    }
    optimizer.load_state_dict({**stored, "state": state})


def _as_shard(value: Any, weight: Tensor) -> Any:
    """A moment divided as its weight is; a number of steps stays as it is."""
    if not isinstance(value, Tensor) or not isinstance(weight, DTensor) or value.shape != local_part(weight).shape:
        return value
    own = value.to(weight.device)
    return DTensor.from_local(
        own, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def refuse_other_division(folder: Path, wanted: str) -> None:
    """Refuse to resume from a checkpoint whose moments are sharded differently.

    Raises:
        InputError: Naming the file that is missing.
    """
    found = sorted(path.name for path in folder.glob("optimizer*.pt"))
    if wanted not in found:
        raise InputError(
            f"a trial that trains all weights goes on in a group that divides them as the one before it did, but its "
            f"checkpoint {folder} has {', '.join(found) or 'no optimizer'} and not {wanted}: give resources.fsdp and "
            "resources.workers as they were"
        )
