"""What `doctor --measure` says of the power of a search."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from tune_dlrml.search.confirm.power import Power
from tune_dlrml.views.power import power_lines

POWER = Power(
    metric="eval_accuracy",
    pairs=64,
    trial=0.17,
    two_trials=0.15,
    confirmation=0.09,
    seeds=5,
    confirm_pairs=128,
    share_of_pairs=0.6,
    pairs_to_halve=None,
    seeds_to_halve=None,
)
COST: Any = SimpleNamespace(
    measured=SimpleNamespace(step_s=(1.0, 1.0, 1.0), evaluation_s=8.0),
    full_steps=20,
    confirmation=SimpleNamespace(wall_s=SimpleNamespace(mean=300.0)),
)


def test_the_lines_say_what_is_told_apart_what_it_was_measured_on_and_what_halves_it():
    both = replace(POWER, pairs_to_halve=512, seeds_to_halve=20)
    differences, noise, ways = power_lines(both, COST)
    assert (
        "two trials from each other at 0.15, and a finalist from the baseline in a confirmation of 5 seeds"
        in differences
    )
    assert noise.startswith("measured after 4 of 20 steps") and "60%" in noise
    assert "512 held-out pairs instead of 128 (an evaluation then takes 1:04 min)" in ways
    assert "or 20 seeds instead of 5 (the confirmation then takes 20:00 min)" in ways


def test_where_neither_alone_halves_it_the_line_says_so():
    *_, ways = power_lines(POWER, COST)
    assert "more held-out pairs and more seeds together, since neither alone is enough" in ways
    *_, ways = power_lines(replace(POWER, confirmation=None, seeds=1, pairs_to_halve=260), COST)
    assert "half of it needs 260 held-out pairs instead of 64" in ways
