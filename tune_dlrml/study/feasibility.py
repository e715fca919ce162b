"""Whether a trial keeps to the constraints of its search, and by how much it does not."""

from collections.abc import Mapping

from tune_dlrml.config.settings import ConstraintConfig

Constraints = Mapping[str, ConstraintConfig]


def excesses(constraints: Constraints, values: Mapping[str, float]) -> dict[str, float]:
    """By how much each bound is exceeded, in the unit of its metric; above 0 it is broken.

    Args:
        constraints: By metric.
        values: Of each of those metrics, finite.

    Returns:
        By bound, as `eval_kl <= 5`.
    """
    found: dict[str, float] = {}
    for metric, bounds in constraints.items():
        if bounds.max is not None:
            found[f"{metric} <= {bounds.max:g}"] = values[metric] - bounds.max
        if bounds.min is not None:
            found[f"{metric} >= {bounds.min:g}"] = bounds.min - values[metric]
    return found


def broken(constraints: Constraints, values: Mapping[str, float]) -> str:
    """The bounds that are broken, each with its value, as `eval_kl <= 5 (7.21)`; empty if none is."""
    found = (bound for bound, excess in excesses(constraints, values).items() if excess > 0)
    return ", ".join(f"{bound} ({values[bound.split()[0]]:.3g})" for bound in found)
