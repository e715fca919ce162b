"""What a search can tell apart, as text."""

from collections.abc import Iterator

from tune_dlrml.doctor.cost import Cost
from tune_dlrml.search.confirm.power import Power
from tune_dlrml.views.search import duration


def power_lines(power: Power, cost: Cost) -> Iterator[str]:
    """What was measured: the differences, where the noise comes from, and what would halve the last of them."""
    yield power.sentence()
    yield (
        f"held-out pairs make {power.share_of_pairs:.0%} of the variance of the last, seeds and the order of pairs the "
        "rest; with few seeds (--measure-seeds) this share is uncertain"
    )
    yield (
        f"half of it needs {' or '.join(_ways(power, cost))}; what more steps or another objective change is seen by "
        "measuring again with --set training.max_steps=... or --set search.metric=..."
    )


def _ways(power: Power, cost: Cost) -> Iterator[str]:
    before = power.pairs if power.confirmation is None else power.confirm_pairs
    if power.pairs_to_halve is None:
        yield "more than held-out pairs, since no number of them is enough"
    else:
        seconds = cost.measured.evaluation_s / power.pairs * power.pairs_to_halve
        yield (
            f"{power.pairs_to_halve} held-out pairs instead of {before} (an evaluation then takes {duration(seconds)})"
        )
    if power.seeds_to_halve is not None and cost.confirmation is not None:
        hours = cost.confirmation.wall_s.mean * power.seeds_to_halve / power.seeds
        yield f"{power.seeds_to_halve} seeds instead of {power.seeds} (the confirmation then takes {duration(hours)})"
    elif power.confirmation is not None:
        yield "more than seeds, since no number of them is enough"
