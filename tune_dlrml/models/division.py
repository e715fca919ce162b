"""Checks whether the weights of a model can be sharded over the ranks of a group, without its weights.

transformers gathers the final norm and the head together and keeps them until the backward pass. The fused head uses
the matrix of the head without the head's forward: in a unit of its own the loss would be right, but its gradient wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_dlrml.errors import InputError
from tune_dlrml.models.strict_loading import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def refuse_undividable(model: PreTrainedModel, ranks: int, *, all_weights: bool) -> None:
    """Refuse a model that FSDP2 would train differently from the whole model.

    Args:
        model: With or without storage.
        ranks: Number of ranks that hold it together.
        all_weights: Whether all weights are trained, and no adapter.

    Raises:
        InputError: Naming the class and the reason.
    """
    reason = _reason(model, ranks, all_weights=all_weights)
    if reason is not None:
        raise InputError(f"resources.fsdp: a {type(model).__name__} cannot be divided over {ranks} workers: {reason}")


def _reason(model: PreTrainedModel, ranks: int, *, all_weights: bool) -> str | None:
    from transformers.distributed import DistributedConfig
    from transformers.distributed.fsdp import is_norm_and_head_pair
    from transformers.modeling_layers import GradientCheckpointingLayer

    with quietly():  # a rule for a module that this class does not have is only left out
        units = model._resolve_parallel_plans(DistributedConfig(fsdp_size=ranks))[2]
    modules = {name: model.get_submodule(name) for name in units}
    kept = [(name, module) for name, module in modules.items() if units[name] == "keep_full_weight"]
    if not any(isinstance(module, GradientCheckpointingLayer) for module in modules.values()):
        return "transformers does not know its layers; set resources.fsdp: false"
    if not is_norm_and_head_pair(kept, model):
        return (
            "its head is gathered apart from its final norm, and would get a wrong gradient; set resources.fsdp: false"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if all_weights and model.all_tied_weights_keys and vocabulary % ranks:
        return (
            f"its embeddings are its head's weights too, and of {vocabulary} rows {ranks} workers cannot have equally "
            "many, so that one of the two would go stale in training; give a number of workers that divides them, or "
            "train an adapter (training.lora)"
        )
    return None
