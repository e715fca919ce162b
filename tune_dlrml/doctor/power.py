"""What a planned search can tell apart, before it starts: by formula, and from a few short trials."""

from collections.abc import Iterator, Sequence
from typing import Any

from tune_dlrml.config import SearchConfig
from tune_dlrml.data import select_pairs
from tune_dlrml.domains import middle_of
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.metrics import METRICS
from tune_dlrml.search.confirm.power import Noise, Power
from tune_dlrml.space import SearchSpace, TrialSpec, loss_at

NO_POWER = (
    "what the search can tell apart was not measured: its objective must be a mean over the held-out pairs, and its "
    "space must have a setting beside the baseline's"
)
ONE_PAIR = (
    "what the search can tell apart was not found: it takes at least two held-out pairs in each of dataset.eval and "
    "dataset.test, but one has a single one"
)
SAME = (
    "what the search can tell apart was not found: both settings have the same outcome on every held-out pair; raise "
    "--measure-steps"
)


def noise_trials(config: SearchConfig, baseline: TrialSpec, seeds: int) -> list[TrialSpec]:
    """The baseline under further seeds, then another setting of the space under all of them.

    Empty where the objective is no mean over held-out pairs, or the space has no setting but the baseline's.
    """
    other = next((loss for loss in _settings(config) if _numbers(loss) != _numbers(baseline.loss)), None)
    if METRICS[config.search.metric].of_pair is None or other is None:
        return []
    under = [
        baseline.training.model_copy(update={"seed": (baseline.training.seed + index) % 2**32, "data_seed": None})
        for index in range(seeds)
    ]
    again = [baseline.model_copy(update={"training": training}) for training in under[1:]]
    return again + [baseline.model_copy(update={"loss": other, "training": training}) for training in under]


def _settings(config: SearchConfig) -> Iterator[AnyLoss]:
    """The middle of each loss of the space, the last one first, and then its ends."""
    for loss in reversed(SearchSpace(config).branches.values()):
        domains = loss.domains()
        for point in (
            {key: middle_of(domain) for key, domain in domains.items()},
            {key: domain.extremes()[0] for key, domain in domains.items()},
        ):
            yield loss_at(loss, point)


def _numbers(loss: AnyLoss) -> dict[str, Any]:
    """All of a loss but its label."""
    return loss.model_dump(exclude={"label"})


def measured_power(config: SearchConfig, margins: Sequence[Sequence[float]], tested: int | None) -> Power | str:
    """From the held-out margins of two settings, each under the same seeds in the same order.

    Args:
        config: The search.
        margins: Of the first setting under each seed, then of the second.
        tested: Pairs of `dataset.test`; None without.

    Returns:
        The power; the reason why there is none where the settings do not differ yet, or a single pair is held out.
    """
    metric = METRICS[config.search.metric]
    assert metric.of_pair is not None, "noise_trials leaves out such metrics"
    outcomes = [[metric.of_pair(margin) for margin in own] for own in margins]
    one, other = outcomes[: len(outcomes) // 2], outcomes[len(outcomes) // 2 :]
    of_two = [[b - a for a, b in zip(ours, theirs, strict=True)] for ours, theirs in zip(one, other, strict=True)]
    pairs = len(outcomes[0])
    if min(pairs, pairs if tested is None else tested) < 2:
        return ONE_PAIR
    noise = Noise.of(of_two)
    if noise.seed == noise.pair == noise.rest == 0:
        return SAME
    return Power.of(
        metric.name,
        Noise.mean([one, other]),
        noise,
        pairs=pairs,
        confirm=config.search.confirm,
        confirm_pairs=pairs if tested is None else tested,
    )


def tested_pairs(config: SearchConfig) -> int | None:
    """Number of pairs of `dataset.test`, as far as can be said without their tokens; None without."""
    if config.dataset.test is None:
        return None
    return len(select_pairs(config.dataset, config.training, None).sections["test"].pairs)
