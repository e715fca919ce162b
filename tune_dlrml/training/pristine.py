"""A model as it was before a trial: the tree of its modules, everything that hangs on them, and its weights."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tune_dlrml.training.sharding.shards import local_part, settle


class Pristine:
    """Remembers a model when made, and puts it back.

    TRL, PEFT, transformers and Accelerate leave marks on a model that they train: wrapped layers, patched forwards,
    hooks, frozen parameters, tags, keys of its config. Rather than undo each mark, every attribute of every module is
    put back, so that a trial leaves nothing behind, even one that failed half-way through its preparation. Of a sharded
    model every rank keeps its own part.

    Args:
        model: As every trial shall find it.
        weights: Keep a copy of the weights too, for trials that train them in place.
    """

    def __init__(self, model: PreTrainedModel, *, weights: bool) -> None:
        settle(model)
        self._model = model
        self._owners = [
            (owner, {name: (value, _contents(value)) for name, value in vars(owner).items()})
            for owner in (*model.modules(), model.config, model.generation_config)
        ]
        self._parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._weights: dict[str, Tensor] = {}
        if weights:
            self._weights = {name: _kept(tensor) for name, tensor in model.state_dict().items()}

    def restore(self) -> None:
        """Put the model back, bit for bit."""
        settle(self._model)
        for owner, attributes in self._owners:
            for name in vars(owner).keys() - attributes.keys():
                del vars(owner)[name]
            for name, (value, contents) in attributes.items():
                if contents is not None:
                    value.clear()
                    value.update(contents)
                vars(owner)[name] = value
        for parameter, requires_grad in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        with torch.no_grad():
            current = self._model.state_dict() if self._weights else {}
            for name, tensor in self._weights.items():
                local_part(current[name]).copy_(tensor)


def _kept(tensor: Tensor) -> Tensor:
    """A copy; of what lies on a GPU in pinned memory of the host, since a second model may not fit beside the first."""
    own = local_part(tensor.detach())
    return torch.empty_like(own, device="cpu", pin_memory=own.is_cuda).copy_(own)


def _contents(value: Any) -> dict[Any, Any] | None:
    """Entries of a dictionary that libraries change in place: submodules, parameters, buffers, hooks."""
    return dict(value) if isinstance(value, dict) else None
