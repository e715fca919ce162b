"""The Pareto front: the policies that no other policy beats in both gain and cost."""

import math
from collections.abc import Sequence


def pareto_front(places: Sequence[tuple[float, float]], *, maximize: bool = True) -> list[int]:
    """Indices of the places that no other place beats, by increasing cost.

    A place is beaten by one with no less gain at no more cost that is better in one of the two; equal places both stay.
    A place whose cost or gain is not finite is ignored.

    Args:
        places: Cost, of which less is better, and gain.
        maximize: Whether more gain is better.
    """
    sign = 1.0 if maximize else -1.0
    finite = [index for index, place in enumerate(places) if all(map(math.isfinite, place))]
    front: list[int] = []
    for index in sorted(finite, key=lambda each: (places[each][0], -sign * places[each][1], each)):
        last = places[front[-1]] if front else None
        if last is None or sign * places[index][1] > sign * last[1] or tuple(places[index]) == tuple(last):
            front.append(index)
    return front
