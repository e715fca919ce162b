"""A trained policy on its base model, from the checkpoint that its trial ended with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model as load_weights

from tune_dlrml.config import TrainingConfig
from tune_dlrml.models.adapters import load_adapter
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_policy(
    model: str, checkpoint: Path | None, training: TrainingConfig | None, *, threads: int | None = None
) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """A model and its tokenizer, on the GPU where there is one, in evaluation mode.

    Args:
        model: Reference of the base model.
        checkpoint: Folder of the adapter, or of all weights, that were trained on it; None is the base model itself.
        training: Settings of the trial, for the precision that it was trained in; None is float32.
        threads: CPU threads of this process; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    reference = parse_model_reference(model)
    half = training is not None and training.in_bfloat16 and training.lora is not None
    attention = None if training is None else training.attn_implementation
    policy = load_model(
        reference,
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation=attention,
        quantization=None if training is None else training.bitsandbytes(),
        device=own_device(),
    )
    if checkpoint is not None and (checkpoint / "adapter_config.json").exists():
        policy = load_adapter(policy, checkpoint)
    elif checkpoint is not None:
        load_weights(policy, checkpoint / "model.safetensors")
    return policy.eval(), load_tokenizer(reference)


def own_device() -> str:
    """Where a model is loaded by a command that has the machine for itself."""
    return "cuda" if torch.cuda.is_available() else "cpu"
