"""Weights in 4 or 8 bits through bitsandbytes: its configuration, and deterministic layers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tune_dlrml.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# It warns about an optional kernel from a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

EXTRA = "tune-dlrml[quantization]"
PACKED = ".quant_state.bitsandbytes__"
"""Part of the name, after that of a weight, of the tensor with its shape before packing."""
_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format")
"""Suffixes of the names of tensors that bitsandbytes stores beside a weight."""


def is_beside(name: str) -> bool:
    """Whether a tensor of this name describes how a weight is packed, and is not a weight itself."""
    return name.endswith(_BESIDE) or PACKED in name


def own_quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Quantization settings in a model's config.json; None if its weights are not quantised.

    Raises:
        InputError: They are, but not by bitsandbytes.
    """
    found = raw.get("quantization_config") or raw.get("compression_config")
    if not found:
        return None
    method = (found.get("quant_method") or "bitsandbytes") if isinstance(found, dict) else found
    if method != "bitsandbytes":
        raise InputError(
            f"its weights are quantised ({method}), and only weights in float32, bfloat16, float16 or in the 4 or 8 "
            "bits of bitsandbytes are trained on; give the model before quantization"
        )
    return dict(found)


def check_bitsandbytes() -> None:
    """Raise InputError, naming the extra, unless bitsandbytes is installed."""
    if find_spec("bitsandbytes") is None:
        raise InputError(f"weights in 4 or 8 bits need the package bitsandbytes; install {EXTRA}")


def check_layers(model: PreTrainedModel, given: Mapping[str, Any], saved: Sequence[str]) -> None:
    """Refuse layers in 4 or 8 bits that have to be whole.

    Args:
        model: Without storage, as it is before its layers are quantized.
        given: Arguments of transformers' BitsAndBytesConfig.
        saved: Modules that an adapter trains whole copies of.

    Raises:
        InputError: Naming the setting.
    """
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    modules = dict(model.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    skipped = given.get("llm_int8_skip_modules")
    unknown = [key for key in skipped or [] if all(should_convert_module(name, [key]) for name in layers)]
    if unknown:
        raise InputError(
            f"quantization.llm_int8_skip_modules: no linear layer's name begins or ends with {', '.join(unknown)}; "
            f"among them are {', '.join([*layers[:2], *layers[-1:]])}"
        )
    stay = get_keys_to_not_convert(model) if skipped is None else skipped
    packed = [name for name in layers if should_convert_module(name, stay)]
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and embeddings is not None and any(modules[name] is head for name in packed):
        raise InputError(
            "quantization.llm_int8_skip_modules: the head is the embeddings too (tie_word_embeddings), which are not "
            f"quantized; add {next(name for name in packed if modules[name] is head)}, or leave the key out"
        )
    for key in saved:
        within = [name for name in packed if f".{key}." in f".{name}."]
        if within:
            raise InputError(
                f"lora.modules_to_save: {key} is trained whole, but {within[0]} is kept in 4 or 8 bits; leave it out, "
                f"or add {within[0]} to quantization.llm_int8_skip_modules"
            )


def described(model: PreTrainedModel) -> str | None:
    """Quantization settings of a loaded model as JSON, and the version of bitsandbytes; None without them."""
    config = getattr(model.config, "quantization_config", None)
    return None if config is None else f"{config.to_json_string()} bitsandbytes {version('bitsandbytes')}"


def settle_layers(model: nn.Module) -> None:
    """Keep the layers from packing their weights again on the first forward in evaluation mode.

    On a CPU with bfloat16 instructions they would, with rounding, which changes the model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def layers_in_float32(model: nn.Module) -> Iterator[None]:
    """Within this block 4-bit layers compute in float32; 8-bit layers have no such option."""
    import torch

    layers = [module for module in model.modules() if hasattr(module, "quant_storage")]
    kept = [layer.compute_dtype for layer in layers]
    for layer in layers:
        layer.compute_dtype = torch.float32
    try:
        yield
    finally:
        for layer, dtype in zip(layers, kept, strict=True):
            layer.compute_dtype = dtype


@contextmanager
def flags_hidden(model: nn.Module) -> Iterator[None]:
    """Hide in this block that the model is quantised: TRL casts the adapters of a quantised one to bfloat16.

    Updates of a small learning rate vanish in bfloat16.
    """
    flags = {name: vars(model).pop(name) for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(flags)
