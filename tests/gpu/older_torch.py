"""A GPU machine without a network has the torch that it has: what 2.11 lacks of the pinned version's attention."""

import inspect
from typing import Any

from torch import Tensor

from tune_dlrml.training.pairs import packed


def adapt() -> None:
    """Let packed rows call `varlen_attn` by the pinned version's signature."""
    newest = packed.varlen_attn
    known = inspect.signature(newest).parameters
    lacking = {"scale", "window_size", "enable_gqa"} - set(known)
    if not lacking:
        return

    def varlen_attn(query: Tensor, key: Tensor, value: Tensor, *places: Any, **options: Any) -> Tensor:
        if options.pop("enable_gqa") and "enable_gqa" in lacking:
            groups = query.size(1) // key.size(1)
            key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
        elif "enable_gqa" not in lacking:
            options["enable_gqa"] = query.size(1) != key.size(1)
        if "scale" in lacking and (scale := options.pop("scale")) is not None:
            query = query * (scale * query.size(-1) ** 0.5)
        if "window_size" in lacking:
            assert options.pop("window_size") == (-1, 0)
            options["is_causal"] = True
        attended: Tensor = newest(query, key, value, *places, **options)
        return attended

    packed.varlen_attn = varlen_attn
