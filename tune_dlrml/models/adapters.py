"""A PEFT adapter on its base, with every part of it in float32, whatever the base is kept in.

PEFT widens the matrices of an adapter by itself, but not the copies of `modules_to_save`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with the adapter of a folder, bit by bit as it was written."""
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    policy = PeftModel.from_pretrained(base, folder)
    if widen_copies(policy):
        set_peft_model_state_dict(policy, load_peft_weights(str(folder), device="cpu"))
    return policy


def widen_copies(policy: PeftModel) -> bool:
    """Keep copies of whole modules in float32; whether there are any."""
    from peft.utils import ModulesToSaveWrapper

    copies = [module.modules_to_save for module in policy.modules() if isinstance(module, ModulesToSaveWrapper)]
    for copy in copies:
        copy.float()
    return bool(copies)
