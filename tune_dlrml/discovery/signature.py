"""What a loss does to a pair, as a list of numbers that two ways to write it share.

Descent sees slopes alone, so two losses whose slopes agree train alike. Two more things change nothing that a search
does not set anyway: a factor on the loss (Adam divides by it), and one on every log-ratio (that is beta). So slopes are
taken in two units of margin: once where the loss's own slope has changed by a fifth of what it is at the start, scaled
to -1/2 there; and once in 1 / beta, scaled by their mean square, for losses that start flat or are coupled.

Shape legend: B = pairs at which the slopes are taken, N = margins.
"""

import math

import torch
from torch import Tensor

from tune_dlrml.losses.preference import PairBatch, PreferenceLoss

CHANGE = 0.2
"""Share of the slope at the start by which it has changed one unit away."""
SMALLEST, LARGEST, RATIO = 1e-7, 1e6, 1.2
"""Margins in nats between which the unit is sought, and the ratio of neighbours."""
ROUNDS, POINTS = 3, 500
"""How often a unit is narrowed down, and to what share."""
START = 0.5
"""What the slope at the start is scaled to."""
NEAR = 3.0
"""Units within which the mean square of the slopes is taken."""
TOGETHER = 32
"""Pairs in a batch of a coupled loss."""
_SIZES = [0.13 * 1.35**step for step in range(35)]
_FEW = _SIZES[::4]

Signature = tuple[float | None, ...]
"""In both units, slopes with respect to the chosen and to the rejected log-ratio of every pair; None if not finite."""


def _signed(sizes: list[float]) -> list[float]:
    return [sign * size for size in sizes for sign in (-1, 1)]


_CENTRAL = [0.0, *_signed(_SIZES)]
_LOGRATIOS = [
    *((u / 2, -u / 2) for u in _CENTRAL),
    *(pair for u in _signed(_FEW) for pair in ((u, 0.0), (0.0, u), (u / 2, u / 2))),
    *((u / 2, -u / 2) for u in _signed(_FEW)),
    *((u / 2, -u / 2) for u in _signed(_FEW)),
]
"""Units: split evenly, one side alone and both alike, then other lengths, then a reference that prefers one side."""
LENGTH = 2 * len(_LOGRATIOS)
"""Numbers in one unit."""


def signature(loss: PreferenceLoss) -> Signature:
    """The slopes of a loss over the pairs of `_LOGRATIOS`, in its own unit and scale, and in those of its strength."""
    own = unit(loss)
    in_own = [math.nan] * LENGTH if own is None else _scaled(loss, own, at_start=True)
    slopes = [*in_own, *_scaled(loss, 1 / loss.beta_kl, at_start=False)]
    return tuple(slope if math.isfinite(slope) else None for slope in slopes)


def _scaled(loss: PreferenceLoss, nats: float, *, at_start: bool) -> list[float]:
    chosen_B, rejected_B = _slopes(loss, _pairs(nats))
    central_B = (chosen_B - rejected_B)[: len(_CENTRAL)] / 2
    near_B = central_B[torch.tensor(_CENTRAL).abs() <= NEAR]
    size = central_B[0].abs() if at_start else near_B[near_B.isfinite()].square().mean().sqrt()
    scale = START / float(size) if 0 < float(size) < math.inf else 1.0
    return list((torch.stack([chosen_B, rejected_B]).flatten() * scale).tolist())


def unit(loss: PreferenceLoss) -> float | None:
    """Nats of margin after which the slope has first changed by `CHANGE`, on the side where that is nearer.

    A side on which it jumps at once does not count. None where neither counts, and for a coupled loss.
    """
    if loss.batch_coupled:
        return None
    sizes_N = SMALLEST * RATIO ** torch.arange(math.ceil(math.log(LARGEST / SMALLEST, RATIO)), dtype=torch.float64)
    slope_N = _central(loss, torch.cat([torch.zeros(1), -sizes_N, sizes_N]))
    start, sides = float(slope_N[0]), slope_N[1:].chunk(2)
    brackets = [_first_change(sizes_N, each_N, start) for each_N in sides]
    for _ in range(ROUNDS):
        finer = [None if each is None else _between(*each) for each in brackets]
        sought = [sign * each_N for sign, each_N in zip((-1, 1), finer, strict=True) if each_N is not None]
        if not sought:
            return None
        slopes = iter(_central(loss, torch.cat(sought)).split(POINTS + 1))
        brackets = [None if each_N is None else _first_change(each_N, next(slopes), start) for each_N in finer]
    return min((each[1] for each in brackets if each is not None), default=None)


def _first_change(sizes_N: Tensor, slope_N: Tensor, start: float) -> tuple[float, float] | None:
    """The last margin before the slope has changed, and the first after; None where it never has, or at once."""
    changed_N = (slope_N - start).abs() >= CHANGE * abs(start)
    first = int(changed_N.int().argmax())
    return None if first == 0 else (float(sizes_N[first - 1]), float(sizes_N[first]))


def _between(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, POINTS + 1, dtype=torch.float64)


def _central(loss: PreferenceLoss, margin_N: Tensor) -> Tensor:
    """Slope over the margin at margins that are split evenly, of shape (N,)."""
    one_N = torch.ones_like(margin_N).long()
    chosen_N, rejected_N = _slopes(loss, PairBatch(margin_N / 2, -margin_N / 2, one_N, one_N))
    return (chosen_N - rejected_N) / 2


def _pairs(nats: float) -> PairBatch:
    """The pairs, where one unit has that many nats."""
    chosen_B, rejected_B = nats * torch.tensor(_LOGRATIOS, dtype=torch.float64).T
    lengths = torch.ones(2, len(_LOGRATIOS), dtype=torch.long)
    reference = torch.zeros(2, len(_LOGRATIOS), dtype=torch.float64)
    few = 2 * len(_FEW)
    lengths[0, -2 * few : -few], lengths[1, -2 * few : -few] = 3, 7
    reference[0, -few:], reference[1, -few:] = -4 * nats, -6.5 * nats
    return PairBatch(
        chosen_B, rejected_B, lengths[0], lengths[1], reference[0] - reference[1], reference[0], reference[1]
    )


def _slopes(loss: PreferenceLoss, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """Slopes of the sum over a batch with respect to both log-ratios, of shape (B,) each."""
    count = pairs.chosen_logratio_B.shape[0]
    size = TOGETHER if loss.batch_coupled else count
    found = []
    for first in range(0, count, size):
        own = PairBatch(*(None if field is None else field[first : first + size] for field in pairs))  # type: ignore[arg-type]
        ratios = [field.clone().requires_grad_() for field in own[:2]]
        values_B = loss(own._replace(chosen_logratio_B=ratios[0], rejected_logratio_B=ratios[1]))
        slopes = torch.autograd.grad(values_B.sum(), ratios, allow_unused=True)
        found.append([torch.zeros_like(ratios[0]) if slope is None else slope for slope in slopes])
    chosen, rejected = zip(*found, strict=True)
    return torch.cat(chosen), torch.cat(rejected)
