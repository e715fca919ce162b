import dataclasses
import math

import pytest

from tune_dlrml.config import DivergenceConfig
from tune_dlrml.training.divergence import DivergenceRule, StepStats

SOUND = StepStats(
    step=1,
    pairs=8,
    loss=0.7,
    accuracy=0.5,
    margin=0.1,
    chosen_logps=-60.0,
    rejected_logps=-60.0,
    grad_norm=1.0,
    nonfinite_loss=0.0,
    nonfinite_grad=0.0,
    learning_rate=1e-3,
    tokens=100,
)


def verdicts(rule: DivergenceRule, *changes: dict[str, float | None]) -> list[str | None]:
    """What the rule says of each of a row of steps, sound but for the changes."""
    return [rule.judge(dataclasses.replace(SOUND, step=step, **change)) for step, change in enumerate(changes, start=1)]


def rule(**config: float) -> DivergenceRule:
    return DivergenceRule(DivergenceConfig(**config), loss_at_zero=math.log(2))


BAD_LOSS = {"nonfinite_loss": 0.125}
BAD_GRAD = {"nonfinite_grad": 0.01, "grad_norm": None}


def test_sound_steps_never_end_a_trial() -> None:
    assert verdicts(rule(), *[{}] * 50) == [None] * 50


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_GRAD, {"grad_norm": None}])
def test_one_bad_step_is_within_the_default_limit_of_a_twentieth_and_two_are_not(bad: dict[str, float | None]) -> None:
    assert verdicts(rule(), {}, bad, {}, bad) == [
        None,
        None,
        None,
        "step 4: 2 of the last 4 steps were not finite (limit 0.05 x window 20)",
    ]


def test_a_bad_step_that_left_the_window_no_longer_counts() -> None:
    apart = [BAD_GRAD, *[{}] * 19, BAD_GRAD]
    assert verdicts(rule(), *apart) == [None] * 21
    assert verdicts(rule(), *[BAD_GRAD, *[{}] * 18, BAD_GRAD])[-1] is not None


def test_a_limit_of_zero_ends_the_trial_in_the_first_bad_step() -> None:
    (verdict,) = verdicts(rule(nonfinite_fraction=0.0), BAD_LOSS)
    assert verdict == "step 1: 1 of the last 1 steps were not finite (limit 0 x window 20)"


def test_a_limit_of_one_allows_every_step_to_be_bad() -> None:
    assert verdicts(rule(nonfinite_fraction=1.0, window=3), *[BAD_GRAD] * 9) == [None] * 9


@pytest.mark.parametrize("side", [1, -1])
def test_a_mean_margin_beyond_500_nats_on_either_side_is_divergence(side: int) -> None:
    assert verdicts(rule(), {"margin": side * 500.0}, {"margin": side * 501.0}) == [
        None,
        f"step 2: mean margin {side * 501} nats (limit 500)",
    ]


def test_the_margin_limit_is_configurable() -> None:
    assert verdicts(rule(margin_limit=2.0), {"margin": -2.5}) == ["step 1: mean margin -2.5 nats (limit 2)"]


def test_the_mean_loss_over_the_window_is_held_against_20_times_the_loss_at_margin_zero() -> None:
    limit = 20 * math.log(2)
    below, above = verdicts(rule(), {"loss": 0.5 * limit}, {"loss": 1.6 * limit})
    assert below is None
    assert above == "step 2: mean loss 14.56 over 2 steps (limit 13.86)"  # (0.5 + 1.6) / 2 x 13.863


def test_high_losses_that_left_the_window_no_longer_count() -> None:
    limit = 2 * math.log(2)
    config = {"loss_factor": 2.0, "window": 2}
    high, low = {"loss": 1.4 * limit}, {"loss": 0.5 * limit}
    assert verdicts(rule(**config), low, high, low, high, low) == [None] * 5
    assert verdicts(rule(**config), low, low, high, high)[-1] == "step 4: mean loss 1.941 over 2 steps (limit 1.386)"


def test_a_step_without_a_finite_loss_or_margin_leaves_the_window_of_losses_alone() -> None:
    limit = 2 * math.log(2)
    blind = {"loss": None, "margin": None, "nonfinite_loss": 1.0}
    found = verdicts(rule(loss_factor=2.0, nonfinite_fraction=1.0), {"loss": 0.9 * limit}, blind, {"loss": 1.2 * limit})
    assert found[:2] == [None, None]
    assert found[2] == "step 3: mean loss 1.456 over 2 steps (limit 1.386)"  # (0.9 + 1.2) / 2 x 1.3863
    assert verdicts(rule(nonfinite_fraction=1.0), blind) == [None]


@pytest.mark.parametrize("loss_at_zero", [0.0, -0.25])
def test_a_loss_that_is_not_positive_at_the_start_sets_no_limit_for_losses(loss_at_zero: float) -> None:
    rule = DivergenceRule(DivergenceConfig(), loss_at_zero=loss_at_zero)
    assert rule.judge(dataclasses.replace(SOUND, loss=1e6)) is None
