"""Softplus and sigmoid of a float, without overflow. Imports no torch."""

import math


def softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return math.exp(-softplus(-x))
