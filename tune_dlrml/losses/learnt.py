"""What a loss learns beside the policy: one scalar parameter."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Learnt(nn.Module, ABC):  # type: ignore[misc]  # mypy skips torch, see pyproject.toml
    """A number of a loss that is trained, as one scalar float32 parameter `theta`.

    `keyword` is its argument in the loss's function; `arguments` construct it again, by keyword.
    """

    theta: nn.Parameter

    def __init__(self, keyword: str, **arguments: Any) -> None:
        super().__init__()
        self.keyword = keyword
        self.arguments = arguments

    @abstractmethod
    def value(self) -> Tensor:
        """Present value, shape (), differentiable."""

    @abstractmethod
    def reported(self) -> dict[str, float]:
        """What reports say of it, by the names of metrics; empty when it is not finite."""
