"""The Pareto front is what comparing every two finite places leaves, and nothing that is not finite."""

import math
import random

import pytest

from tune_dlrml.pareto import pareto_front

NAN, INF = math.nan, math.inf


def test_the_front_holds_what_nothing_beats_by_rising_cost() -> None:
    places = [
        (2.0, 0.5),
        (0.0, 0.2),
        (3.0, 0.5),  # beaten by the first: as good, further away
        (2.0, 0.4),  # beaten by the first: worse, as far
        (9.0, 0.9),
        (9.0, 0.9),  # an equal one beats nobody
        (1.0, 0.1),
    ]
    assert pareto_front(places) == [1, 0, 4, 5]
    assert pareto_front(places, maximize=False) == [1, 6]
    assert pareto_front([]) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("maximize", [True, False])
def test_it_is_what_comparing_every_two_places_leaves(seed: int, maximize: bool) -> None:
    dice = random.Random(seed)
    odd = [NAN, INF, -INF]
    places = [
        tuple(dice.choice(odd) if dice.random() < 0.1 else float(dice.randrange(12)) for _ in range(2))
        for _ in range(60)
    ]
    sign = 1 if maximize else -1
    finite = [index for index, place in enumerate(places) if math.isfinite(sum(place))]

    def beats(one: int, other: int) -> bool:
        (cost, gain), (its_cost, its_gain) = places[one], places[other]
        return cost <= its_cost and sign * gain >= sign * its_gain and places[one] != places[other]

    left = {index for index in finite if not any(beats(other, index) for other in finite)}
    front = pareto_front(places, maximize=maximize)
    assert {*front} == left and len(front) == len(left)
    assert [places[index][0] for index in front] == sorted(places[index][0] for index in front)


@pytest.mark.parametrize("odd", [(NAN, 1.0), (1.0, NAN), (NAN, NAN), (-INF, 1.0), (0.0, INF), (INF, -INF)])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_place_that_is_not_finite_is_not_on_it_and_keeps_no_other_off(odd: tuple[float, float], at: int) -> None:
    places = [(0.0, 0.1), (1.0, 0.2)]
    places.insert(at, odd)
    assert [places[index] for index in pareto_front(places)] == [(0.0, 0.1), (1.0, 0.2)]
    assert pareto_front([odd]) == []
