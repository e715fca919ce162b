"""A user's own loss: a function of the pairs and of its parameters, imported by name and identified by its file's hash.

Shape legend: B = preference pairs in the batch.

The module must be importable where a search starts and on its workers. The folder that a command runs in counts:
Ray gives it to the workers of a cluster on this machine, and `ray job submit --working-dir` to those of another.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tune_dlrml.domains import Choice, Range
from tune_dlrml.errors import InputError
from tune_dlrml.losses.custom.config import LearnableParam, WrittenLoss
from tune_dlrml.losses.learnt import Learnt
from tune_dlrml.losses.numeric import numeric_geometry
from tune_dlrml.losses.preference import PairBatch, PreferenceLoss
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.system.own_code import Function, error_line

COMPANY = 255
"""Other pairs, at margin 0, among which one pair of a batch-coupled function is looked at."""
PROBES = (-7.0, -1.5, -0.1, 0.0, 0.3, 2.0, 11.0)
"""Margins in nats whose losses are computed together and apart, to find whether pairs are coupled."""


class LearntParam(Learnt):
    """A parameter of a user's function that is trained beside the policy, as one scalar float32 `theta`.

    With `bounds = (low, high)` the value is low + (high - low) * sigmoid(theta), without them it is theta.
    """

    def __init__(self, *, name: str, init: float, bounds: tuple[float, float] | None) -> None:
        super().__init__(name, name=name, init=init, bounds=bounds)
        self.bounds = bounds
        start = init if bounds is None else math.log((init - bounds[0]) / (bounds[1] - init))
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def value(self) -> Tensor:
        """Present value, shape (), differentiable."""
        if self.bounds is None:
            return self.theta
        low, high = self.bounds
        return low + (high - low) * torch.sigmoid(self.theta)

    def reported(self) -> dict[str, float]:
        """The present value by the parameter's name; empty when it is not finite."""
        value = self.value().item()
        return {f"params.{self.keyword}": value} if math.isfinite(value) else {}


class Custom(PreferenceLoss):
    """A user's function at fixed numbers, one of which may be learnt.

    Args:
        function: Takes a `PairBatch` and the numbers by keyword, and returns the losses (B,).
        numbers: Its keyword arguments but for the learnt one.
        beta_kl: What scales the margin, per nat.
        learnt: The parameter that is trained beside the policy.
    """

    def __init__(
        self, function: Function, numbers: Mapping[str, Any], *, beta_kl: float, learnt: LearntParam | None = None
    ) -> None:
        super().__init__(beta_kl=beta_kl, mix=learnt)
        self.function = function
        self.numbers = dict(numbers)
        self._geometry: Geometry | None = None

    @property
    def learnt(self) -> LearntParam | None:
        """The parameter that is trained beside the policy."""
        return self.mix

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair, shape (B,), in nats, differentiable in the learnt parameter too."""
        learnt = {} if self.learnt is None else {self.learnt.keyword: self.learnt.value()}
        return self.function(_complete(pairs), **self.numbers, **learnt)

    def geometry(self) -> Geometry:
        """Found numerically in float64, at the present value of the learnt parameter."""
        if self._geometry is None or self.learnt is not None:
            with raising_input_errors(self.function):
                self._geometry = numeric_geometry(self)
        return self._geometry


class CoupledCustom(Custom):
    """A user's function whose pairs depend on each other, looked at one pair at a time among others at margin 0."""

    batch_coupled = True

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair as the only one of its batch that has left margin 0, shape (B,), in nats."""
        count = pairs.chosen_logratio_B.shape[0]
        company = pairs.chosen_logratio_B.new_zeros(COMPANY)

        def among_others(at: int) -> PairBatch:
            ratios = [torch.cat([field[at : at + 1], company]) for field in pairs[:2]]
            lengths = [torch.cat([field[at : at + 1], torch.ones_like(company)]) for field in pairs[2:4]]
            return PairBatch(*ratios, *lengths)

        return torch.stack([self(among_others(at))[0] for at in range(count)])


def _complete(pairs: PairBatch) -> PairBatch:
    """The pairs with 0 in place of None, which is what it counts as."""
    missing = [name for name, field in zip(pairs._fields, pairs, strict=True) if field is None]
    return pairs._replace(**{name: torch.zeros_like(pairs.chosen_logratio_B) for name in missing})


@contextmanager
def raising_input_errors(function: Function) -> Iterator[None]:
    """Turn an exception of a user's function into one line with file and line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = getattr(inspect.unwrap(function), "__code__", None)
        raise InputError(
            f"the function raised {error_line(error, None if code is None else code.co_filename)}"
        ) from None


def is_coupled(loss: Custom) -> bool:
    """Whether a pair's loss depends on the other pairs of its batch: together and alone they then differ."""
    together, apart = _probed(loss, [list(PROBES)]), _probed(loss, [[margin] for margin in PROBES])
    return not torch.allclose(together, apart, rtol=1e-9, atol=1e-12, equal_nan=True)


@torch.no_grad()  # type: ignore[untyped-decorator]
def _probed(loss: Custom, batches: list[list[float]]) -> Tensor:
    found = []
    for margins in batches:
        half_B = torch.tensor(margins, dtype=torch.float64) / 2
        one_B = torch.ones_like(half_B)
        found.append(torch.as_tensor(loss(PairBatch(half_B, -half_B, one_B, one_B))).reshape(-1))
    return torch.cat(found)


def bare(config: WrittenLoss, kind: type[Custom] = Custom) -> Custom:
    """The loss that `config` describes, without a look at what the function does.

    Raises:
        InputError: The function cannot be found, or is not the one that `config` is tied to.
        ValueError: A field still holds a domain.
    """
    function = config.loaded()
    numbers: dict[str, Any] = {}
    learnt = None
    for name, value in config.params.given().items():
        if isinstance(value, LearnableParam):
            learnt = LearntParam(name=name, init=float(_number(value.init)), bounds=value.bounds)
        else:
            numbers[name] = _number(value)
    strength = config.strength
    usable = isinstance(strength, (int, float)) and not isinstance(strength, bool) and strength > 0
    return kind(function, numbers, beta_kl=float(strength) if usable else 1.0, learnt=learnt)  # type: ignore[arg-type]


def _number(value: Any) -> Any:
    if isinstance(value, (Range, Choice)):
        raise ValueError(
            f"A loss is built from one value per field, but got {value!r}. Draw a point of the space first."
        )
    return value


def build_written(config: WrittenLoss) -> PreferenceLoss:
    """A user's or a proposed loss as configured.

    Raises:
        InputError: The function cannot be found or called, or its file has changed.
    """
    loss = bare(config)
    with raising_input_errors(loss.function):
        coupled = is_coupled(loss)
    return bare(config, CoupledCustom) if coupled else loss
