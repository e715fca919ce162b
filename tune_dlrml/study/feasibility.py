"""Whether a trial keeps to the constraints of its search, and by how much it does not."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tune_dlrml.config.settings import ConstraintConfig

Constraints = Mapping[str, ConstraintConfig]


class Bound(NamedTuple):
    """One end of a constraint: the `sign` times what a metric lies above the `limit` must not exceed 0."""

    metric: str
    sign: float
    limit: float

    def __str__(self) -> str:
        """As `eval_kl <= 5`."""
        return f"{self.metric} {'<=' if self.sign > 0 else '>='} {self.limit:g}"


def bounds(constraints: Constraints) -> Iterator[Bound]:
    """All bounds, metric by metric, the upper before the lower."""
    for metric, ends in constraints.items():
        if ends.max is not None:
            yield Bound(metric, 1.0, ends.max)
        if ends.min is not None:
            yield Bound(metric, -1.0, ends.min)


def excesses(constraints: Constraints, values: Mapping[str, float]) -> dict[str, float]:
    """By how much each bound is exceeded, in the unit of its metric; above 0 it is broken.

    Args:
        constraints: By metric.
        values: Of each of those metrics, finite.

    Returns:
        By bound, as `eval_kl <= 5`.
    """
    return {str(bound): bound.sign * (values[bound.metric] - bound.limit) for bound in bounds(constraints)}


def broken(constraints: Constraints, values: Mapping[str, float]) -> str:
    """The bounds that are broken, each with its value, as `eval_kl <= 5 (7.21)`; empty if none is."""
    found = (bound for bound, excess in excesses(constraints, values).items() if excess > 0)
    return ", ".join(f"{bound} ({values[bound.split()[0]]:.3g})" for bound in found)
