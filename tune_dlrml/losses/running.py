"""A mean over the pairs that a loss was trained on so far, for losses that hold a pair against it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tune_dlrml.losses.preference import PairBatch, PureLoss
from tune_dlrml.losses.shape import Geometry


class RunningMean(nn.Module):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """Mean of what was seen, 0 before anything was, as float64 buffers that a checkpoint keeps.

    Without `momentum` it is the mean of all numbers; with it, momentum * what it was + (1 - momentum) * the mean of the
    newest micro-batch. Numbers that are not finite are left out. With several workers a micro-batch is that of all of
    them together, so that every worker has the same mean.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, momentum: float | None = None) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update(self, values_N: Tensor) -> None:
        """Take the numbers of a micro-batch, shape (N,), into the mean."""
        finite_N = values_N[values_N.isfinite()].double()
        sums = torch.stack([finite_N.sum(), finite_N.new_tensor(finite_N.numel())])
        if dist.is_initialized():
            dist.all_reduce(sums)
        total, new = sums
        if new == 0:
            return
        self.count += new
        share = new / self.count if self.momentum is None else 1 - self.momentum
        self.mean += share * (total / new - self.mean)


class RunningLoss(PureLoss):
    """A pure function that takes a running mean as one of its keywords, whose default is that of the first step.

    Args:
        function: See `PureLoss`, as `numbers`, `geometry` and `statistic`.
        numbers: Its other keyword arguments.
        geometry: Shape of the loss at the first step.
        keyword: By which the function takes the mean.
        of: What the mean is of: numbers of any count out of a micro-batch.
        momentum: See `RunningMean`.
        statistic: Of a function that is coupled over the micro-batch beside.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        numbers: Mapping[str, Any],
        geometry: Geometry,
        *,
        keyword: str,
        of: Callable[[PairBatch], Tensor],
        momentum: float | None = None,
        statistic: float | None = None,
    ) -> None:
        super().__init__(function, numbers, geometry, statistic=statistic)
        self.running = RunningMean(momentum)
        self._keyword = keyword
        self._of = of

    def observe(self, pairs: PairBatch) -> None:
        """Take a micro-batch into the mean."""
        self.running.update(self._of(pairs))

    def forward(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair at the present mean, shape (B,)."""
        present = {self._keyword: self.running.mean.to(pairs.chosen_logratio_B)}
        return self.function(*self._seen(pairs), **self.numbers, **present)

    def at_start(self, pairs: PairBatch) -> Tensor:
        """Loss of each pair at the mean of the first step, shape (B,)."""
        statistic = {} if self.statistic is None else {"statistic": pairs.chosen_logratio_B.new_tensor(self.statistic)}
        return self.function(*self._seen(pairs), **self.numbers, **statistic)
