"""The share of a search space whose loss is unsuitable: it starts uphill, has a trap, or overflows.

Each branch's box is sampled on the scales of its own domains, as the random sampler draws, but evenly (Sobol's
sequence with a fixed seed), so that a share of 4096 points is right to about half a percent and the same every time.
`losses/lrml/geometry.py` explains these properties.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_dlrml.losses.custom.config import CustomLoss
from tune_dlrml.losses.discovered.config import AqflLoss, AqlLoss
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.lrml.geometry import MONOTONE_C, SAFE_BAND, WRONG_START_C
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.space import loss_at
from tune_dlrml.space_points import Points, sampled

EXPONENT, EXPONENT_BUILT, EXPONENT_SOUGHT = 12, 10, 6
"""Base-2 logarithms of the points: where the answer is a formula, where a loss is built, where its trap is sought."""
COUPLED_POINTS = 16
"""Points at which a user's batch-coupled function is evaluated, a third of a second each."""
MARGINS = 201
"""Margins at which a loss is tried, evenly from -limit to +limit."""
LARGEST_EXPONENT = math.log(float(np.finfo(np.float32).max))
"""exp(-z) is infinite below minus this (88.72), in float32 and in bfloat16."""


@dataclass(frozen=True)
class LossBox:
    """Shares of one branch's box, each within [0, 1].

    Attributes:
        branch: Label of the loss.
        points: How many were evaluated.
        uphill: Starts with a slope that lowers the margin.
        trapped: Has a trap; of a loss that learns, at its start.
        unbounded: Has a slope without a bound.
        overflowing: Is not finite in float32 within `limit` nats if computed as published; with one form, as it is.
        nonfinite: Is not finite there as the search computes it.
        limit: Margin in nats, that of the divergence rule.
        advice: What to change, a sentence each.
    """

    branch: str
    points: int
    uphill: float
    trapped: float
    unbounded: float
    overflowing: float
    nonfinite: float
    limit: float
    advice: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self) | {"advice": list(self.advice)}

    @property
    def sound(self) -> bool:
        """Whether nothing needs to be changed; many losses have an unbounded slope, which is no fault by itself."""
        return self.uphill == self.trapped == self.nonfinite == 0 and not self.advice

    def sentence(self) -> str:
        """What was found, and what to change."""
        faults = [
            (share, what)
            for share, what in (
                (self.uphill, "starts uphill"),
                (self.trapped, "has a trap"),
                (self.unbounded, "has an unbounded slope"),
                (self.nonfinite, f"is not finite within +-{self.limit:g} nats"),
            )
            if share > 0
        ]
        if self.points == 1:
            found = ", ".join(what for _, what in faults) or "starts downhill, with a bounded slope and no trap"
        elif faults:
            (first, what), *rest = faults
            found = f"{percent(first)} of its box {what}" + "".join(
                f", {percent(share)} {what}" for share, what in rest
            )
        else:
            found = "all of its box starts downhill, with a bounded slope and no trap"
        return found + "".join(f"; {each}" for each in self.advice)


def percent(share: float) -> str:
    """A share in whole percent that is 0 % and 100 % only where it is."""
    if 0 < share < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else f"{share:.0%}".replace("%", " %")


def loss_box_of(branch: str, loss: AnyLoss, limit: float) -> LossBox:
    """Examine one branch of a search.

    Args:
        branch: Its label.
        loss: Its loss, with domains.
        limit: Margin in nats up to which it should be finite.

    Raises:
        InputError: It is a custom loss whose function cannot be called.
    """
    if isinstance(loss, (DiscopopLoss, DlrmlLoss)):
        return _mixing_loss_box(branch, loss, limit, sampled(loss.domains(), EXPONENT))
    sought = isinstance(loss, (AqlLoss, AqflLoss, CustomLoss))
    return _numeric_loss_box(
        branch, loss, limit, sampled(loss.domains(), EXPONENT_SOUGHT if sought else EXPONENT_BUILT)
    )


def _mixing_loss_box(branch: str, loss: DiscopopLoss | DlrmlLoss, limit: float, points: Points) -> LossBox:
    """Box of DiscoPOP or dLRML, from c and from where exp(-z) overflows."""
    count = len(next(iter(points.values())))
    c, beta_kl = shape_numbers(loss, points)
    published = np.asarray(beta_kl * limit > LARGEST_EXPONENT)
    numerics = _values(loss, points, "numerics")
    # The stable form is finite wherever its true value is: for c < 1 that grows like exp((1 - c) * |z|).
    stable = (1 - c) * beta_kl * limit > LARGEST_EXPONENT
    nonfinite = np.where(numerics == "published", published, stable)

    def share(these: NDArray[Any]) -> float:
        return float(np.broadcast_to(these, (count,)).mean())

    advice = tuple(_mixing_advice(loss, c, beta_kl, limit, share(nonfinite & (numerics == "published")) > 0))
    return LossBox(
        branch=branch,
        points=count,
        uphill=share(c > WRONG_START_C),
        trapped=share(c > MONOTONE_C),
        unbounded=share(c < SAFE_BAND[0]),
        overflowing=share(published | stable),
        nonfinite=share(nonfinite),
        limit=limit,
        advice=advice,
    )


def shape_numbers(loss: DiscopopLoss | DlrmlLoss, points: Points) -> tuple[NDArray[Any], NDArray[Any]]:
    """The shape number c at every point, at the start where it is learnt, and beta_kl per nat."""
    tau = _values(loss, points, "tau").astype(float)
    if isinstance(loss, DiscopopLoss):
        return 1 / tau, _values(loss, points, "beta").astype(float)
    beta_kl = _values(loss, points, "beta_kl").astype(float)
    own, key = (loss.beta_mix, "beta_mix.") if isinstance(loss.beta_mix, LearnableBetaMix) else (loss, "")
    c_key, mix_key = (f"{key}c_init", f"{key}init") if key else ("c", "beta_mix")
    if getattr(own, c_key.rpartition(".")[2]) is not None:
        return _values(loss, points, c_key).astype(float), beta_kl
    return _values(loss, points, mix_key).astype(float) / (tau * beta_kl), beta_kl


def _values(loss: AnyLoss, points: Points, key: str) -> NDArray[Any]:
    """A field at every point: as it was drawn, or the one value that it has."""
    if key in points:
        return points[key]
    value: Any = loss
    for part in key.split("."):
        value = getattr(value, part)
    return np.array([value], dtype=object)


def _mixing_advice(
    loss: DiscopopLoss | DlrmlLoss, c: NDArray[Any], beta_kl: NDArray[Any], limit: float, published: bool
) -> Iterator[str]:
    low, high = SAFE_BAND
    if bool(((c > high) | (c < low)).any()):
        inside = float(((c >= low) & (c <= high)).mean())
        share = f"{percent(inside)} of it is in the safe band: " if c.size > 1 else ""
        yield f"{share}keep {_safe_range(loss)}"
    if published:
        yield (
            f"as published it overflows for beta_kl over {LARGEST_EXPONENT / limit:.3g}; `numerics: stable` has the "
            "same values and does not overflow"
        )


def _safe_range(loss: DiscopopLoss | DlrmlLoss) -> str:
    """The safe band in the parameters that the file gives."""
    low, high = SAFE_BAND
    if isinstance(loss, DiscopopLoss):
        return f"tau within {1 / high:.3g}..{1 / low:g}, since c = 1 / tau"
    if isinstance(loss.beta_mix, LearnableBetaMix):
        if loss.beta_mix.c_init is not None:
            return f"c_init within {low:g}..{high:.4g}"
        mix = "init"
    elif loss.c is not None:
        return f"c within {low:g}..{high:.4g}"
    else:
        mix = "beta_mix"
    if isinstance(loss.tau, (int, float)):
        return f"{mix}/beta_kl within {low * loss.tau:.3g}..{high * loss.tau:.3g} at tau {loss.tau:g}, or search c"
    return f"{mix}/(tau * beta_kl) within {low:g}..{high:.4g}, or search c"


def _numeric_loss_box(branch: str, loss: AnyLoss, limit: float, points: Points) -> LossBox:
    """Box of any loss, which is built and evaluated at every point."""
    from tune_dlrml.losses.profile import overflows_within
    from tune_dlrml.losses.registry import build_loss

    found = []
    drawn = list(_rows(loss, points))
    if isinstance(loss, CustomLoss) and build_loss(loss_at(loss, drawn[0])).batch_coupled:
        drawn = drawn[:: max(1, len(drawn) // COUPLED_POINTS)]
    for values in drawn:
        built = build_loss(loss_at(loss, values))
        geometry = built.geometry()
        found.append(
            (
                geometry.starts == "wrong",
                geometry.trap is not None,
                not geometry.bounded,
                overflows_within(built, limit, MARGINS),
            )
        )
    uphill, trapped, unbounded, nonfinite = (float(column.mean()) for column in np.array(found, dtype=float).T)
    faults = [[row[0] or row[1] for row in found], [row[3] for row in found]]
    return LossBox(
        branch=branch,
        points=len(drawn),
        uphill=uphill,
        trapped=trapped,
        unbounded=unbounded,
        overflowing=nonfinite,
        nonfinite=nonfinite,
        limit=limit,
        advice=tuple(dict.fromkeys(each for bad in faults for each in _numeric_advice(drawn, bad))),
    )


def _rows(loss: AnyLoss, points: Points) -> Iterator[dict[str, Any]]:
    """The points one by one."""
    keys = list(loss.domains())
    if not keys:
        yield {}
        return
    for row in zip(*(points[key].tolist() for key in keys), strict=True):
        yield dict(zip(keys, row, strict=True))


def _numeric_advice(drawn: Sequence[Mapping[str, Any]], bad: Sequence[bool]) -> Iterator[str]:
    """The one parameter whose range can be cut to exclude the bad points, where there is one."""
    if not any(bad) or all(bad):
        return
    for key in drawn[0]:
        sound = sorted(row[key] for row, is_bad in zip(drawn, bad, strict=True) if not is_bad and _is_number(row[key]))
        faulty = sorted(row[key] for row, is_bad in zip(drawn, bad, strict=True) if is_bad and _is_number(row[key]))
        if not sound or not faulty:
            continue
        if faulty[0] > sound[-1]:
            yield f"keep {key} up to {sound[-1]:.3g}"
            return
        if faulty[-1] < sound[0]:
            yield f"keep {key} from {sound[0]:.3g} up"
            return


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
