"""Checks of a user's loss before a search starts.

The loss runs as the trainer runs it, on pairs like those of a search and on more extreme ones. A property that would
end every trial is an error; one that the user should know before the search is a finding.

Shape legend: B = preference pairs in the batch.
"""

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tune_dlrml.errors import InputError
from tune_dlrml.losses.custom.build import (
    CoupledCustom,
    Custom,
    bare,
    is_coupled,
    raising_input_errors,
)
from tune_dlrml.losses.custom.config import WrittenLoss
from tune_dlrml.losses.numeric import unbounded_sides
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.system.own_code import Function

MAGNITUDES = [10 ** (step / 4) for step in range(-12, 17)]
"""Sizes of the margins (nats) at which a loss is tried, 0.001 to 10,000, four a decade."""
MARGINS = [*(-size for size in reversed(MAGNITUDES)), -0.0, 0.0, *MAGNITUDES]
NEAR = 1.0
"""Nats within which every trial begins; a loss must be finite there."""
SIZES = (1, 2, 7)
"""Pairs of the batches that a loss must take; the last of a data set may be a single one."""
STEP = 1e-5
"""Half of the difference over which a slope is measured, relative to the margin or to 1 nat."""
AGREEMENT = 1e-4
"""Relative difference below which two slopes agree."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Observation:
    """A property of a user's loss.

    Attributes:
        check: What was checked, in a word or two.
        level: `warning` for a property that the user should know, else `ok`.
    """

    check: str
    level: Literal["ok", "warning"]
    text: str


def validate_written(config: WrittenLoss) -> list[Observation]:
    """Look at a user's or a proposed loss at one point of its space.

    Raises:
        InputError: It cannot be trained with. The message has the requirement, the finding and the line.
    """
    return observed(trainable(config))


def observed(loss: Custom, *, seek_trap: bool = True) -> list[Observation]:
    """What is so about a loss that can be trained with.

    Args:
        loss: At one value of each parameter.
        seek_trap: Whether a trap is sought between `MARGINS`, too, which takes two seconds of a coupled loss.

    Raises:
        InputError: It is not finite where every trial begins.
    """
    with raising_input_errors(loss.function):
        return [
            *(*_finiteness(loss), *_repeatability(loss), _differences(loss), *_coupling(loss)),
            *(_start(loss), _trap(loss) if seek_trap else _monotone(loss), *_boundedness(loss)),
        ]


def trainable(config: WrittenLoss) -> Custom:
    """The loss, if it takes what it is given and returns losses with a gradient.

    Raises:
        InputError: It does not.
    """
    loss = bare(config)
    check_signature(loss)
    with raising_input_errors(loss.function):
        _check_inputs_kept(loss)
        _check_result(loss)
        coupled = is_coupled(loss)
        loss = bare(config, CoupledCustom) if coupled else loss
        _check_gradient(loss)
    return loss


def check_signature(loss: Custom) -> None:
    """Refuse a function that cannot be called with the pairs and its parameters by name.

    Raises:
        InputError: Naming what the function takes and what it would be given.
    """
    given = [*loss.numbers] + ([] if loss.learnt is None else [loss.learnt.keyword])
    try:
        signature = inspect.signature(loss.function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, **dict.fromkeys(given))
    except TypeError as error:
        params = f"params {', '.join(given)}" if given else "no params"
        raise InputError(
            "the function must take the pairs and every one of `params` by its name: "
            f"{_name(loss.function)}{signature} does not go with {params} ({error})"
        ) from None


def _name(function: Function) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def pairs_of(margins: list[float], dtype: torch.dtype, *, gradient: bool = False) -> PairBatch:
    """Pairs of these margins, split unevenly, with lengths and a reference whose own margins are not 0."""
    margin_B = torch.tensor(margins, dtype=dtype)
    chosen_B, rejected_B = 0.5 * margin_B, -0.5 * margin_B
    length_B = torch.arange(5, 5 + len(margins)) % 40 + 2
    reference_B = 0.25 * torch.arange(len(margins), dtype=dtype) % 3 - 1
    likely_B = -3.0 * length_B.to(dtype)
    pairs = PairBatch(chosen_B, rejected_B, length_B, length_B.flip(0), reference_B, likely_B, likely_B - reference_B)
    if gradient:
        chosen_B.requires_grad_()
        rejected_B.requires_grad_()
    return pairs


def _check_result(loss: Custom) -> None:
    """One loss per pair, with a gradient, and also where none is recorded, as in evaluation."""
    for count in SIZES:
        values = loss(pairs_of([0.0] * count, torch.float32, gradient=True))
        if not isinstance(values, Tensor):
            raise InputError(f"the function must return a tensor of shape (B,), but returned {_shown(values)}")
        if values.shape != (count,):
            hint = "; leave the mean over the batch to the trainer" if values.ndim == 0 else ""
            raise InputError(
                f"the function must return one loss per pair, shape ({count},) for {count} pairs, but returned "
                f"shape {tuple(values.shape)}{hint}"
            )
        if not values.is_floating_point():
            raise InputError(f"the function must return floating-point losses, but returned {values.dtype}")
    if not values.requires_grad:
        raise InputError(
            "the losses must depend on the pairs' log-ratios by a gradient, but have none: `.item()`, `.detach()`, "
            "`float(...)` or `torch.tensor(...)` cuts it off"
        )
    with torch.no_grad():
        loss(pairs_of([0.0, 1.0], torch.float32))


def _shown(value: Any) -> str:
    return "nothing (is there a return?)" if value is None else f"a {type(value).__name__}"


def _check_inputs_kept(loss: Custom) -> None:
    pairs = pairs_of([-2.0, 0.5, 3.0], torch.float32)
    before = [None if field is None else field.clone() for field in pairs]
    with torch.no_grad():
        loss(pairs)
    changed = [
        name
        for name, old, new in zip(pairs._fields, before, pairs, strict=True)
        if old is not None and new is not None and not torch.equal(old, new)
    ]
    if changed:
        raise InputError(f"the function must leave the pairs as they are, but changes {', '.join(changed)} in place")


def _check_gradient(loss: Custom) -> None:
    """The gradient exists, is not zero everywhere, and reaches the learnt parameter."""
    pairs = pairs_of(MARGINS, torch.float64, gradient=True)
    chosen_B, rejected_B = _gradients(loss(pairs), pairs)
    if not bool(torch.cat([chosen_B, rejected_B]).nan_to_num(1.0).any()):
        raise InputError("the losses must change with the log-ratios, but their gradient is 0 at every margin")
    if loss.learnt is not None:
        near = [margin for margin in MARGINS if NEAR / 100 <= abs(margin) <= 10 * NEAR]
        (slope,) = torch.autograd.grad(
            loss(pairs_of(near, torch.float64, gradient=True)).sum(), loss.learnt.theta, allow_unused=True
        )
        if slope is None or not math.isfinite(slope.item()):
            raise InputError(
                f"the learnable parameter {loss.learnt.keyword} must have a finite gradient, but has "
                f"{'none' if slope is None else slope.item()}"
            )


def _gradients(values: Tensor, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    chosen_B, rejected_B = torch.autograd.grad(values.sum(), pairs[:2], allow_unused=True)
    zero_B = torch.zeros_like(pairs.chosen_logratio_B)
    return zero_B if chosen_B is None else chosen_B, zero_B if rejected_B is None else rejected_B


def nonfinite_margins(loss: Custom, dtype: torch.dtype) -> list[float]:
    """Those of `MARGINS` at which a loss or its gradient is not finite; coupled pairs each in a batch of its own."""
    bad = []
    for margins in [[margin] for margin in MARGINS] if loss.batch_coupled else [MARGINS]:
        pairs = pairs_of(margins, dtype, gradient=True)
        values_B = loss(pairs)
        finite_B = torch.stack([values_B, *_gradients(values_B, pairs)]).isfinite().all(dim=0)
        bad += [margin for margin, finite in zip(margins, finite_B.tolist(), strict=True) if not finite]
    return bad


def _finiteness(loss: Custom) -> Iterator[Observation]:
    for name, dtype in PRECISIONS.items():
        bad = nonfinite_margins(loss, dtype)
        near = [margin for margin in bad if abs(margin) <= NEAR]
        if near:
            worst = min(near, key=abs)
            raise InputError(
                f"value and gradient must be finite within {NEAR:g} nat of margin 0, where every trial begins, but in "
                f"{name} they are not at margin {worst:g}"
            )
        if not bad:
            yield Observation("finite", "ok", f"finite in {name} for margins of up to {MAGNITUDES[-1]:g} nats")
            continue
        below, above = [m for m in bad if m < 0], [m for m in bad if m > 0]
        sides = ([f"from {max(below):.5g} nats down"] if below else []) + (
            [f"from {min(above):.5g} nats up"] if above else []
        )
        yield Observation("finite", "warning", f"in {name} value or gradient is not finite {' and '.join(sides)}")


@torch.no_grad()  # type: ignore[untyped-decorator]
def _repeatability(loss: Custom) -> Iterator[Observation]:
    first, second = (loss(pairs_of(MARGINS, torch.float32)) for _ in range(2))
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        yield Observation("repeatable", "warning", "two calls on the same pairs differ, so no trial can be repeated")
    if first.dtype != torch.float32:
        yield Observation("precision", "warning", f"losses of float32 pairs come back in {first.dtype}")


def _differences(loss: Custom) -> Observation:
    """The gradient of the batch's sum against finite differences, in float64; coupled pairs each among two others."""
    worst, where = 0.0, 0.0
    for margins in [[margin] for margin in MARGINS] if loss.batch_coupled else [MARGINS]:
        for margin, off in zip(margins, _off_differences(loss, margins), strict=True):
            worst, where = max((worst, where), (off, margin))
    if worst <= AGREEMENT:
        return Observation("gradient", "ok", "the gradient agrees with finite differences")
    return Observation(
        "gradient",
        "warning",
        f"the gradient differs from finite differences, most at margin {where:.3g} (by {worst:.1%}): the loss jumps or "
        "has a kink there, or part of it is detached",
    )


def _off_differences(loss: Custom, margins: list[float]) -> list[float]:
    """By how much the gradient differs at these margins, relative to the larger slope; 0 where it is not finite.

    Pairs of different margins are moved together, which is right where none depends on another.
    """
    count = len(margins)
    pairs = pairs_of([*margins, 0.3, -1.1], torch.float64, gradient=True)
    slope_B = _gradients(loss(pairs), pairs)[0][:count]
    step_B = STEP * torch.tensor([max(1.0, abs(margin)) for margin in margins], dtype=torch.float64)
    start_B = pairs.chosen_logratio_B.detach()
    ends = [torch.cat([start_B[:count] + sign * step_B, start_B[count:]]) for sign in (1, -1)]
    with torch.no_grad():
        high_B, low_B = (loss(pairs._replace(chosen_logratio_B=end_B)) for end_B in ends)
    rise_B = (high_B - low_B).sum() if loss.batch_coupled else (high_B - low_B)[:count]
    difference_B = rise_B / (2 * step_B)
    scale_B = torch.maximum(slope_B.abs(), difference_B.abs()).clamp(min=AGREEMENT)
    return list(((slope_B - difference_B).abs() / scale_B).nan_to_num(0.0, 0.0, 0.0).tolist())


def _coupling(loss: Custom) -> Iterator[Observation]:
    if loss.batch_coupled:
        yield Observation(
            "pairs",
            "warning",
            "the loss of a pair depends on the other pairs of its micro-batch, so that the batch size changes it",
        )
    else:
        yield Observation("pairs", "ok", "every pair is scored by itself")
    if loss.batch_coupled and _depends_on_order(loss):
        yield Observation("pairs", "warning", "the loss of a pair depends on the order of the pairs in its micro-batch")


@torch.no_grad()  # type: ignore[untyped-decorator]
def _depends_on_order(loss: Custom) -> bool:
    pairs = pairs_of([-3.0, -0.5, 0.2, 1.0, 4.0], torch.float64)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = PairBatch(*(None if field is None else field[order] for field in pairs))  # type: ignore[arg-type]
    return not torch.allclose(loss(pairs)[order], loss(turned), rtol=1e-9, atol=1e-12, equal_nan=True)


def _start(loss: Custom) -> Observation:
    slope = float(loss.curve(torch.zeros(1, dtype=torch.float64))[1][0])
    if slope > 0:
        text = f"starts uphill (slope {slope:+.3g} at 0): the first steps of training lower the margin"
        return Observation("start", "warning", text)
    if slope == 0:
        return Observation("start", "warning", "starts flat (slope 0 at 0): the first steps of training do nothing")
    return Observation("start", "ok", "starts downhill: the first steps of training raise the margin")


def _trap(loss: Custom) -> Observation:
    geometry, beta_kl = loss.geometry(), loss.beta_kl
    trap, barrier = geometry.trap_margin(beta_kl), geometry.barrier_margin(beta_kl)
    if trap is None or barrier is None:
        return _monotone(loss)
    text = (
        f"has a trap at margin {trap:+.3g} nats (z = {beta_kl * trap:+.3g}) below a barrier at {barrier:+.3g}: "
        "pairs left of it stay there"
    )
    return Observation("monotone", "warning", text)


def _boundedness(loss: Custom) -> Iterator[Observation]:
    sides = unbounded_sides(lambda z: float(loss.curve(torch.tensor([z], dtype=torch.float64))[1][0]))
    for which, unbounded in zip(("falls", "rises"), sides, strict=True):
        if unbounded:
            yield Observation("bounded", "warning", f"the slope grows without bound as the margin {which}")
    if not any(sides):
        yield Observation("bounded", "ok", "the slope is bounded")


def _monotone(loss: Custom) -> Observation:
    margins = torch.tensor(MARGINS, dtype=torch.float64)
    slope_N = loss.curve(margins * loss.beta_kl)[1]
    rising = [margin for margin, slope in zip(MARGINS, slope_N.tolist(), strict=True) if slope > 0]
    if not rising:
        return Observation("monotone", "ok", "falls with the margin everywhere: no trap")
    if max(rising) == MARGINS[-1] and min(rising) > 0:
        text = f"rises again above a margin of about {min(rising):.3g} nats, which pairs are drawn to from both sides"
    elif min(rising) == MARGINS[0]:
        text = f"rises for margins up to {max(rising):.3g} nats, where pairs are pushed further down without end"
    else:
        text = f"rises somewhere between {min(rising):.3g} and {max(rising):.3g} nats"
    return Observation("monotone", "warning", text)
