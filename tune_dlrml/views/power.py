"""What a search can tell apart, as text."""

from collections.abc import Iterator

from tune_dlrml.doctor.cost import Cost
from tune_dlrml.search.confirm.power import Power
from tune_dlrml.views.search import duration


def power_lines(power: Power, cost: Cost) -> Iterator[str]:
    """What was measured: the differences, where the noise comes from, and what would halve the last of them."""
    yield power.sentence()
    steps = len(cost.measured.step_s) + 1
    yield (
        f"measured after {steps} of {cost.full_steps} steps: what grows with training, such as a margin, varies more "
        "at its end, and --measure-steps comes nearer to that; held-out pairs make "
        f"{power.share_of_pairs:.0%} of the variance of the last difference, seeds and the order of pairs the rest; "
        "with few seeds (--measure-seeds) this share is uncertain"
    )
    ways = list(_ways(power, cost))
    needed = " or ".join(ways) if ways else "more held-out pairs and more seeds together, since neither alone is enough"
    yield (
        f"half of it needs {needed}; what more steps or another objective change is seen by measuring again with "
        "--set training.max_steps=... or --set search.metric=..."
    )


def _ways(power: Power, cost: Cost) -> Iterator[str]:
    if power.pairs_to_halve is not None:
        before = power.pairs if power.confirmation is None else power.confirm_pairs
        seconds = cost.measured.evaluation_s / power.pairs * power.pairs_to_halve
        yield (
            f"{power.pairs_to_halve} held-out pairs instead of {before} (an evaluation then takes {duration(seconds)})"
        )
    if power.seeds_to_halve is not None and cost.confirmation is not None:
        whole_s = cost.confirmation.wall_s.mean * power.seeds_to_halve / power.seeds
        yield f"{power.seeds_to_halve} seeds instead of {power.seeds} (the confirmation then takes {duration(whole_s)})"
