"""The adapter of a trial: put into the base, and looked at before any trial begins."""

import re
import warnings

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, set_seed

from tune_dlrml.config import LoraSettings
from tune_dlrml.errors import InputError
from tune_dlrml.models.adapters import widen_copies
from tune_dlrml.training.arguments import lora_config


def adapted(model: PreTrainedModel, lora: LoraSettings, *, seed: int) -> PeftModel:
    """The model with a fresh adapter, the same for the same seed; every part of it is trained in float32."""
    set_seed(seed)
    policy = get_peft_model(model, lora_config(lora))
    widen_copies(policy)
    return policy


def leave_casting_to_autocast(model: nn.Module) -> None:
    """Give adapters their inputs as they are.

    PEFT casts every input of a layer to the adapter's float32, and autocast casts it back to bfloat16: the same number
    after two passes over the activations, seven times a layer.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def check_adapter(model: PreTrainedModel, lora: LoraSettings) -> None:
    """Refuse an adapter that finds no place in a model, or not every place that it names.

    Args:
        model: Without storage; the adapter stays in it.
        lora: The adapter.

    Raises:
        InputError: Naming the setting and what the model has.
    """
    layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 0))
    beyond = [layer for layer in lora.layers_to_transform or [] if layer >= layers > 0]
    if beyond:
        raise InputError(f"lora.layers_to_transform: the model has layers 0 to {layers - 1}, but got {beyond}")
    names = [name for name, _ in model.named_modules()]
    _refuse_unknown("modules_to_save", lora.modules_to_save, names)
    _refuse_unknown("target_parameters", lora.target_parameters, [name for name, _ in model.named_parameters()])
    _refuse_one_of_two_names(model, lora.modules_to_save or [])
    if isinstance(lora.target_modules, list):
        _refuse_unknown("target_modules", lora.target_modules, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(model, lora_config(lora), low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"lora: PEFT cannot put this adapter into the model: {error}") from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise InputError(
            "lora.target_modules: log-probs are computed of the head's own matrix, and an adapter on it would not be "
            "trained; leave the head out, or train a copy of it (lora.modules_to_save)"
        )


def _refuse_one_of_two_names(model: PreTrainedModel, saved: list[str]) -> None:
    """A head that is the embeddings too is one matrix in a model's files, so that a merged model would lose a copy."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    both = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    tied = [name for name in saved if any(end.endswith(name) for end in both)]
    if tied and getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        raise InputError(
            f"lora.modules_to_save: {' and '.join(both)} are one matrix in this model (tie_word_embeddings), and a "
            f"copy of {', '.join(tied)} would make it two; leave it out"
        )


def _refuse_unknown(setting: str, asked: list[str] | None, known: list[str]) -> None:
    lacking = [name for name in asked or [] if not any(has == name or has.endswith(f".{name}") for has in known)]
    if lacking:
        last = sorted({re.sub(r".*\.", "", name) for name in known if name and not name.rpartition(".")[2].isdigit()})
        raise InputError(f"lora.{setting}: the model has no {', '.join(lacking)}; its names end in {', '.join(last)}")
