"""Attention of packed rows in four ways, against padded rows and against a dense product in float32."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from gpu.made import Figures, Lengths, Pair, Shape, random_pairs
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tune_dlrml.training.pairs import packed
from tune_dlrml.training.pairs.packed import Layout, PackedCollator, Shared

REPEATS = 10


def rows_of(pairs: list[Pair]) -> list[dict[str, list[int]]]:
    return [{"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in pairs]


def layout_of(pairs: list[Pair]) -> Layout:
    layout: Layout = PackedCollator(None, "keep_start")(rows_of(pairs))["layout"]
    return layout


def length_of(shared: Shared) -> int:
    return shared.prefix + sum(shared.branches)


def who_sees_whom(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each token its pair and its branch; -1 for the branch is a prefix, which all of its pair see."""
    pairs, branches = [], []
    for index, shared in enumerate(layout):
        pairs += [index] * length_of(shared)
        branches += [-1] * shared.prefix
        for branch, length in enumerate(shared.branches):
            branches += [branch] * length
    return torch.tensor(pairs, device=device), torch.tensor(branches, device=device)


def visible(pair_N: Tensor, branch_N: Tensor) -> Callable[..., Tensor]:
    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (branch_N[key] == -1) | (branch_N[key] == branch_N[query])
        return (pair_N[query] == pair_N[key]) & own & (query >= key)

    return mask


def dense(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """By the definition, in float32."""
    places = torch.arange(query.size(2), device=query.device)
    mask = visible(*who_sees_whom(layout, query.device))(None, None, places[:, None], places[None, :])
    query, key, value = query.float(), key.float(), value.float()
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def one_by_one(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    groups = query.size(1) // key.size(1)
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    return packed._attend_one_by_one(query, key, value, layout, 0.0, None)


def at_once(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    return packed._attend_at_once(query, key, value, layout.spans(query.device), None)


def flex(layout: Layout, device: torch.device, *, compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = sum(map(length_of, layout))
    mask = create_block_mask(visible(*who_sees_whom(layout, device)), None, None, tokens, tokens, device=device.type)
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def call(query: Tensor, key: Tensor, value: Tensor, _layout: Layout) -> Tensor:
        attended: Tensor = attend(query, key, value, block_mask=mask, enable_gqa=True)
        return attended.transpose(1, 2)

    return call


def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def heads(shape: Shape, batch: int, tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as a layer's projections give them."""
    width = shape.hidden // shape.heads
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(batch, tokens, count, width, device=device, dtype=dtype, generator=generator)
        .transpose(1, 2)
        .requires_grad_()
        for count in (shape.heads, shape.kv_heads, shape.kv_heads)
    ]


def timed(device: torch.device, call: Callable[[], Tensor], inputs: list[Tensor]) -> dict[str, float]:
    """Milliseconds of a forward and of a forward with its backward, medians."""

    def both() -> None:
        call().sum().backward()

    def forward() -> None:
        with torch.no_grad():
            call()

    found = {}
    for name, run in (("forward_ms", forward), ("both_ms", both)):
        seconds = []
        for _ in range(REPEATS + 2):
            for each in inputs:
                each.grad = None
            synchronized(device)
            began = time.perf_counter()
            run()
            synchronized(device)
            seconds.append(time.perf_counter() - began)
        found[name] = round(1000 * statistics.median(seconds[2:]), 3)
    return found


def synchronized(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(call: Callable[[], Tensor], inputs: list[Tensor], expected: Callable[[], Tensor]) -> float:
    """Largest relative difference of output and gradients from what is expected."""
    torch.manual_seed(0)
    found, gradients = [], []
    for each in (call, expected):
        for tensor in inputs:
            tensor.grad = None
        output = each().float()
        weight = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape)
        (output * weight).sum().backward()
        found.append(output.detach())
        gradients.append([tensor.grad.float().clone() for tensor in inputs])  # type: ignore[union-attr]
    apart = [(found[0] - found[1]).norm() / found[1].norm()]
    apart += [(ours - theirs).norm() / theirs.norm() for ours, theirs in zip(*gradients, strict=True)]
    return float(max(apart))


def compare(shape: Shape, device: torch.device, count: int, lengths: Lengths, *, with_flex: bool) -> Figures:
    """One layer's attention over a row of `count` pairs, each way."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pairs = random_pairs(shape, count, lengths)
    layout = layout_of(pairs)
    inputs = heads(shape, 1, sum(map(length_of, layout)), device, dtype)
    few = layout_of(pairs[:2])
    small = heads(shape, 1, sum(map(length_of, few)), device, dtype)
    ways: dict[str, Callable[..., Tensor]] = {"one_by_one": one_by_one}
    if device.type == "cuda":
        ways["at_once"] = at_once
    found: Figures = {"pairs": count, "tokens": inputs[0].size(2)}
    for name, way in ways.items():
        apart = difference(partial(way, *small, few), small, partial(dense, *small, few))
        found[name] = timed(device, partial(way, *inputs, layout), inputs) | {"apart": f"{apart:.2g}"}
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    rows = heads(shape, 2 * count, longest, device, dtype)
    found["padded"] = timed(device, partial(padded, *rows), rows)
    if with_flex:
        began = time.perf_counter()
        way = flex(layout, device, compiled=device.type == "cuda")
        if device.type == "cpu":  # where it has no backward
            plain = [each.detach() for each in inputs]
            apart = float((way(*plain, layout) - dense(*plain, layout)).abs().max())
            found["flex"] = {"apart": f"{apart:.2g}"}
        else:
            way(*inputs, layout).sum().backward()
            synchronized(device)
            compiled_s = round(time.perf_counter() - began, 1)
            found["flex"] = timed(device, partial(way, *inputs, layout), inputs) | {"compiled_s": compiled_s}
    return found
