"""By what the layers of a model mix tokens, read from its config and its classes, without a forward.

Whoever decides which tokens see which by the attention function alone must know that nothing else mixes them, and that
no mask says more than `causal`: neither a recurrence, a convolution nor a bias made of positions follows a layout.
Any other module is treated as mixing tokens in another way.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

CAUSAL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers whose mask is the causal one, or that one within a window."""

MASK = "attention_mask"
_REMEMBERS = frozenset(
    {
        MASK,
        "cache_params",
        "layer_past",
        "past_key_value",
        "past_key_values",
        "seq_idx",
        "state",
        "use_cache",
    }
)
"""Parameters of a forward that looks at other tokens: without one of them it could not generate token by token."""
_PLAIN = frozenset({"dropout", "is_causal", "output_attentions", "position_ids", "scaling", "sliding_window"})
"""What may be said to an attention function without changing which tokens see which, or by how much."""


def other_mixer(model: PreTrainedModel) -> str | None:
    """What mixes tokens beside causal attention through transformers' AttentionInterface; None where nothing does."""
    decoder = model.get_decoder()
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not let its attention be replaced"
    if "position_ids" not in inspect.signature(type(decoder).forward).parameters:
        return f"{type(decoder).__name__} takes no positions"
    kinds = _layer_kinds(model) - {CAUSAL, SLIDING}
    if kinds:
        return f"{type(model).__name__} has layers of {', '.join(sorted(kinds))}"
    for module in decoder.modules():
        if isinstance(module, _ConvNd):
            return f"{type(decoder).__name__} has a convolution ({type(module).__name__})"
    mixers = {(type(mixer), bool(getattr(mixer, "is_causal", True))) for mixer in _mixers(decoder)}
    if not mixers:
        return f"{type(decoder).__name__} has no attention"
    for kind, causal in mixers:
        if not (causal and _is_plain_attention(kind)):
            return f"{kind.__name__} is not plain causal attention"
    return None


def window(model: PreTrainedModel) -> int | None:
    """Tokens that the narrowest layer attends to; None where all attend to every earlier one."""
    kinds = _layer_kinds(model)
    if kinds and SLIDING not in kinds:
        return None
    width = getattr(model.config.get_text_config(), "sliding_window", None)
    return None if width is None else int(width)


def _layer_kinds(model: PreTrainedModel) -> set[str]:
    config = model.config.get_text_config()
    return {str(kind) for name in ("layer_types", "layers_block_type") for kind in getattr(config, name, None) or ()}


def _mixers(decoder: nn.Module) -> Iterator[nn.Module]:
    """The innermost modules that look at other tokens."""
    looking = {
        module
        for module in decoder.modules()
        if _looks_at_others(type(module)) and not isinstance(module, nn.Embedding)  # a table may count its positions
    }
    for module in looking:
        if looking.isdisjoint(inner for inner in module.modules() if inner is not module):
            yield module


def _looks_at_others(kind: type[nn.Module]) -> bool:
    return not _REMEMBERS.isdisjoint(inspect.signature(kind.forward).parameters)


def _is_plain_attention(kind: type[nn.Module]) -> bool:
    """Whether a forward hands queries, keys, values and the mask, untouched, to the attention function.

    A cap on the scores, sinks, a bias or a choice of keys would be an argument more, which sdpa does not look at.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func) == "attention_interface"
    ]
    masks = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign) and MASK in _targets(node)]
    return bool(calls) and all(map(_is_plain_call, calls)) and all(_name(mask).endswith(MASK) for mask in masks)


def _is_plain_call(call: ast.Call) -> bool:
    named = {keyword.arg: keyword.value for keyword in call.keywords}  # None stands for **kwargs, which carry a layout
    mask = call.args[4] if len(call.args) == 5 else named.pop(MASK, call)
    return _name(mask) == MASK and None in named and named.keys() - {None} <= _PLAIN


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _targets(node: ast.Assign) -> set[str]:
    return {_name(target) for target in node.targets}
