"""The rule that ends a trial in the optimizer step that shows it has diverged."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_dlrml.config import DivergenceConfig


@dataclass(frozen=True)
class StepStats:
    """One optimizer step over all ranks and micro-batches.

    Losses, margins and log-probs are means over the pairs that are finite, in nats; None where no pair is.

    Attributes:
        step: Number of the step, from 1.
        pairs: Preference pairs in it.
        nonfinite_loss: Share of the pairs whose loss is not finite.
        nonfinite_grad: Share of the gradient's entries that are not finite, before clipping.
        grad_norm: L2 norm of the gradient before clipping; None where it is not finite.
        tokens: Tokens of prompts and completions, padding left out.
        sft_loss: The term beside the loss, without its weight; 0 where there is none.
    """

    step: int
    pairs: int
    loss: float | None
    accuracy: float | None
    margin: float | None
    chosen_logps: float | None
    rejected_logps: float | None
    grad_norm: float | None
    nonfinite_loss: float
    nonfinite_grad: float
    learning_rate: float
    tokens: int
    sft_loss: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every loss and every gradient entry of the step is finite."""
        return self.nonfinite_loss == 0 and self.nonfinite_grad == 0 and self.grad_norm is not None


class DivergenceRule:
    """Judges every optimizer step over a sliding window.

    Args:
        config: Limits of the rule.
        loss_at_zero: Loss of a pair at margin 0, the scale that `loss_factor` multiplies; one that is not positive is
            no scale, and no mean loss is then too large.
        judges_margin: Whether margins are those to a reference, which `margin_limit` bounds.
    """

    def __init__(self, config: DivergenceConfig, *, loss_at_zero: float, judges_margin: bool = True) -> None:
        self._config = config
        self._loss_limit = config.loss_factor * loss_at_zero if loss_at_zero > 0 else math.inf
        self._margin_limit = config.margin_limit if judges_margin else math.inf
        self._finite: deque[bool] = deque(maxlen=config.window)
        self._losses: deque[float] = deque(maxlen=config.window)

    def state(self) -> dict[str, list[Any]]:
        """The windows as JSON values, for a checkpoint."""
        return {"finite": [*self._finite], "losses": [*self._losses]}

    def restore(self, state: Mapping[str, list[Any]]) -> None:
        """Go on from the windows that `state` gave."""
        self._finite.extend(state["finite"])
        self._losses.extend(state["losses"])

    def judge(self, stats: StepStats) -> str | None:
        """Why the trial has diverged at this step, or None if it has not."""
        config = self._config
        self._finite.append(stats.finite)
        bad = self._finite.count(False)
        if bad > config.nonfinite_fraction * config.window:
            return (
                f"step {stats.step}: {bad} of the last {len(self._finite)} steps were not finite "
                f"(limit {config.nonfinite_fraction:g} x window {config.window})"
            )
        if stats.margin is not None and abs(stats.margin) > self._margin_limit:
            return f"step {stats.step}: mean margin {stats.margin:.4g} nats (limit {config.margin_limit:g})"
        if stats.loss is not None:
            self._losses.append(stats.loss)
        mean = math.fsum(self._losses) / len(self._losses) if self._losses else 0.0
        if mean > self._loss_limit:
            return (
                f"step {stats.step}: mean loss {mean:.4g} over {len(self._losses)} steps (limit {self._loss_limit:.4g})"
            )
        return None
