"""The share of a search space whose loss is unsuitable: it starts uphill, has a trap, or overflows.

Each branch's box is sampled on the scales of its own domains, as the random sampler draws, but evenly (Sobol's
sequence with a fixed seed), so that a share of 4096 points is right to about half a percent and the same every time.
The loss's own formulas, or its geometry, find the unsuitable points.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_dlrml.losses.faults import Faults, Points, percent
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.space import loss_at
from tune_dlrml.space_points import sampled

EXPONENT, EXPONENT_BUILT, EXPONENT_SOUGHT = 12, 10, 6
"""Base-2 logarithms of the points: where the answer is a formula, where a loss is built, where its trap is sought."""
COUPLED_POINTS = 16
"""Points at which a user's batch-coupled function is evaluated, a third of a second each."""
MARGINS = 201
"""Margins at which a loss is tried, evenly from -limit to +limit."""


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


def loss_box_of(branch: str, loss: AnyLoss, limit: float) -> LossBox:
    """Examine one branch of a search.

    Args:
        branch: Its label.
        loss: Its loss, with domains; one with a reference.
        limit: Margin in nats up to which it should be finite.

    Raises:
        InputError: It is a custom loss whose function cannot be called.
    """
    points = sampled(loss.domains(), EXPONENT)
    faults = loss.faults(points, limit)
    if faults is not None:
        return _loss_box_by_formula(branch, faults, limit, points)
    exponent = EXPONENT_SOUGHT if loss.trap_is_sought else EXPONENT_BUILT
    return _numeric_loss_box(branch, loss, limit, sampled(loss.domains(), exponent))


def _loss_box_by_formula(branch: str, faults: Faults, limit: float, points: Points) -> LossBox:
    count = len(next(iter(points.values())))

    def share(these: NDArray[Any]) -> float:
        return float(np.broadcast_to(these, (count,)).mean())

    return LossBox(
        branch=branch,
        points=count,
        uphill=share(faults.uphill),
        trapped=share(faults.trapped),
        unbounded=share(faults.unbounded),
        overflowing=share(faults.overflowing),
        nonfinite=share(faults.nonfinite),
        limit=limit,
        advice=faults.advice,
    )


def _numeric_loss_box(branch: str, loss: AnyLoss, limit: float, points: Points) -> LossBox:
    """Box of any loss, which is built and evaluated at every point."""
    from tune_dlrml.losses.profile import overflows_within
    from tune_dlrml.losses.registry import build_loss

    found = []
    drawn = list(_rows(loss, points))
    if loss.written is not None and build_loss(loss_at(loss, drawn[0])).batch_coupled:
        drawn = drawn[:: max(1, len(drawn) // COUPLED_POINTS)]
    for values in drawn:
        built = build_loss(loss_at(loss, values))
        geometry = built.geometry()
        assert geometry is not None, "a loss without a reference has no box"
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
