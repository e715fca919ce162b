"""Whether a loss is another one under a new name: its slopes against those of all others, over their parameters."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from tune_dlrml.discovery.signature import LENGTH, Signature, signature
from tune_dlrml.domains import Domain, Range, middle_of
from tune_dlrml.losses.custom.config import WrittenLoss
from tune_dlrml.losses.registry import LOSSES, AnyLoss, build_loss
from tune_dlrml.space import loss_at
from tune_dlrml.space_points import sampled

SAME = 1e-3
"""Largest difference of two slopes of the same function, where both start with 1/2, relative to the larger above it."""
COMPARED = 0.5
"""Share of the slopes that must be finite in both."""
EXPONENT = 4
"""Base-2 logarithm of the points at which a function with shape parameters is looked at before one is fitted."""
SHOWN = 2
"""Names by which a double is called where several do."""
FITTED, NEAR = 3, 0.3
"""Functions that are fitted to a loss: those that lie nearest to it at such a point, and no further away than this."""
STEPS = 40
"""Evaluations of a fit for each parameter."""
HOPING, HOPE = 12, 0.03
"""A fit ends after so many evaluations for each parameter if it is still this far away."""
_SHARE, _NOISE = {"uniform": [0.0, 1.0]}, {"uniform": [0.0, 0.49]}

SHAPES: dict[str, dict[str, Any]] = {
    "discopop": {"tau": {"log_uniform": [0.01, 2.0]}},
    "dlrml": {"c": {"log_uniform": [0.2, 100.0]}},
    "padll": {"mismatch_penalty": _SHARE},
    "cell": {"alpha": _SHARE},
    "pfl": {"focus_scale": {"log_uniform": [0.2, 10.0]}},
    "cdpo": {"label_smoothing": _NOISE},
    "robust": {"label_smoothing": _NOISE},
    "exo_pair": {"label_smoothing": {"log_uniform": [1e-6, 0.49]}},
    "ipo": {"length_normalized": {"choice": [False, True]}},
    "r_dpo": {"alpha": {"log_uniform": [1e-3, 1.0]}},
    "dpop": {"penalty": {"log_uniform": [0.01, 100.0]}},
    "kto": {"undesirable_weight": {"log_uniform": [0.1, 10.0]}},
    "dbaql": {"tau": {"log_uniform": [0.01, 2.0]}, "temperature": {"uniform": [0.5, 2.0]}},
    "aql": {"tau": {"log_uniform": [0.01, 2.0]}, "quantile": _SHARE},
    "aqfl": {"tau": {"log_uniform": [0.01, 2.0]}, "distance_scale": {"log_uniform": [0.01, 10.0]}},
    "beta_dpo": {"alpha": {"log_uniform": [0.01, 10.0]}},
    "aot": {"label_smoothing": _NOISE},
    "aot_unpaired": {"label_smoothing": _NOISE},
}
"""What sets the shape of a loss beside its strength; losses without an entry are looked at as they are by default."""


remembered: dict[str, list[Signature]] = {}
"""Signatures of known losses at the points of their domains, by the loss."""


class Double(NamedTuple):
    """A known loss that does the same.

    Attributes:
        name: With its shape parameters, such as discopop(tau=0.07).
        off: Largest difference of the slopes.
    """

    name: str
    off: float


@dataclass(frozen=True)
class Family:
    """A known loss, and its signatures at points of its domains, the first of which is as it is known."""

    name: str
    loss: AnyLoss
    points: tuple[dict[str, Any], ...]
    signatures: NDArray[Any]

    def at(self, values: Mapping[str, Any]) -> Signature:
        """Its signature at one point."""
        return signature(build_loss(loss_at(self.loss, values)))

    def called(self, values: Mapping[str, Any]) -> str:
        """Its name with the parameters of one point."""
        return _called(self.name, values)


def difference(one: Signature | NDArray[Any], others: Signature | NDArray[Any]) -> NDArray[Any]:
    """Largest difference of the slopes of one loss from each of others, shape (losses,), in the unit where it is less.

    Infinite where few slopes compare.
    """
    left, right = np.array(one, dtype=float), np.atleast_2d(np.array(others, dtype=float))
    off = np.abs(left - right) / np.maximum(0.5, np.maximum(np.abs(left), np.abs(right)))
    off = off.reshape(len(right), -1, LENGTH)
    finite = np.isfinite(off)
    largest = np.where(finite, off, 0.0).max(axis=2)
    found: NDArray[Any] = np.where(finite.mean(axis=2) >= COMPARED, largest, np.inf).min(axis=1)
    return found


def double(loss: AnyLoss, known: Mapping[str, AnyLoss]) -> Double | None:
    """The known or built-in loss whose slopes those of `loss` are, at every point of its domains; None if none is.

    Args:
        loss: Its strength and its other parameters may hold domains.
        known: Other losses by the names that they are to be called by; their domains are their parameters.
    """
    first, *others = [signature(build_loss(loss_at(loss, point))) for point in points_of(loss)]
    others = [each for each in others if difference(first, each)[0] > SAME / 10]
    families = [*(family_of(name, other) for name, other in known.items()), *built_in()]
    for group in (_fixed(families), _nearest(families, first)):
        found = [(family, match) for family in group if (match := _match(family, first))]
        found = [(family, match) for family, match in found if all(_match(family, each) for each in others)]
        if found:
            fewest = min(len(family.loss.domains()) for family, _ in found)
            best = [match for family, match in found if len(family.loss.domains()) == fewest]
            names = list(dict.fromkeys(match.name for match in best))
            return Double(" = ".join(names[:SHOWN]), max(match.off for match in best))
    return None


def points_of(loss: AnyLoss) -> list[dict[str, Any]]:
    """The middle of the domains, and both ends of all of them at once."""
    domains = loss.domains()
    ends = [{key: domain.extremes()[at] for key, domain in domains.items()} for at in (0, -1)]
    return [middle(domains), *(ends if domains else [])]


def middle(domains: Mapping[str, Domain]) -> dict[str, Any]:
    """The middle of every domain on its own scale; of a choice the first."""
    return {key: middle_of(domain) for key, domain in domains.items()}


@cache
def built_in() -> list[Family]:
    """Every loss of this project that is a function of a pair, as it is by default and over its shape parameters."""
    families = []
    for name, (config, _) in LOSSES.items():
        if not issubclass(config, WrittenLoss) and name != "mix":
            default = {"c": 1.0} if name == "dlrml" else {}
            loss = config.model_validate(default)
            shape = {key: getattr(loss, key) for key in SHAPES.get(name, {})}
            families.append(family_of(_called(name, shape), loss))
            if name in SHAPES:
                families.append(family_of(name, config.model_validate(SHAPES[name])))
    return families


def family_of(name: str, loss: AnyLoss) -> Family:
    """A loss at its one strength, and over its other domains."""
    searched = {key: domain for key, domain in loss.domains().items() if key == loss.strength_field}
    loss = loss_at(loss, middle(searched))
    domains = loss.domains()
    points = [middle(domains), *_drawn(domains)] if domains else [{}]
    key = loss.model_dump_json()
    if key not in remembered:
        remembered[key] = [signature(build_loss(loss_at(loss, point))) for point in points]
    return Family(name, loss, tuple(points), np.array(remembered[key], dtype=float))


def _drawn(domains: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    columns = sampled(domains, EXPONENT)
    for row in zip(*(columns[key].tolist() for key in domains), strict=True):
        yield dict(zip(domains, row, strict=True))


def _fixed(families: Sequence[Family]) -> list[Family]:
    return [family for family in families if not family.loss.domains()]


def _nearest(families: Sequence[Family], own: Signature) -> list[Family]:
    """Those with parameters that come nearest at a point that is known."""
    searched = [family for family in families if family.loss.domains()]
    return sorted(searched, key=lambda family: _off(family, own))[:FITTED]


def _off(family: Family, own: Signature) -> float:
    return float(difference(own, family.signatures).min())


def _match(family: Family, own: Signature) -> Double | None:
    """Where a family has this signature: at a point that is known, or at one that is fitted."""
    off = difference(own, family.signatures)
    best = int(off.argmin())
    values, found = family.points[best], float(off[best])
    if SAME < found < NEAR:
        values, found = _fitted(family, own, values)
    return Double(family.called(values), found) if found <= SAME else None


def _fitted(family: Family, own: Signature, start: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The point of a family's ranges that comes nearest, from a start."""
    ranges = {key: domain for key, domain in family.loss.domains().items() if isinstance(domain, Range)}
    if not ranges:
        return dict(start), math.inf

    def values(at: NDArray[Any]) -> dict[str, Any]:
        return dict(start) | {key: _value(domain, x) for (key, domain), x in zip(ranges.items(), at, strict=True)}

    tried: list[tuple[float, dict[str, Any]]] = []

    def off(at: NDArray[Any]) -> float:
        tried.append((float(difference(own, family.at(values(at)))[0]), values(at)))
        best = min(each[0] for each in tried)
        if best < SAME / 4 or (len(tried) > HOPING * len(ranges) and best > HOPE):
            raise StopIteration
        return min(tried[-1][0], 1e9)

    first = np.array([_place(domain, start[key]) for key, domain in ranges.items()])
    simplex = np.vstack([first, *(first + step for step in np.eye(len(first)) / 30)])
    options = {"maxfev": STEPS * len(first), "xatol": 1e-7, "fatol": SAME / 10, "initial_simplex": simplex}
    with suppress(StopIteration):
        minimize(off, first, method="Nelder-Mead", options=options)
    nearest, at = min(tried, key=lambda each: each[0])
    return at, nearest


def _value(domain: Range, place: float) -> Any:
    """A value of a range at a place between 0 and 1 on its own scale."""
    place = min(max(place, 0.0), 1.0)
    low, high = float(domain.low), float(domain.high)
    found = low * (high / low) ** place if domain.log else low + place * (high - low)
    return round(found) if domain.integer else found


def _place(domain: Range, value: float) -> float:
    low, high = float(domain.low), float(domain.high)
    return math.log(value / low) / math.log(high / low) if domain.log else (value - low) / (high - low)


def _called(name: str, values: Mapping[str, Any]) -> str:
    shown = [
        f"{key.removeprefix('params.')}={value:.3g}" for key, value in values.items() if not isinstance(value, bool)
    ]
    return f"{name}({', '.join(shown)})" if shown else name
