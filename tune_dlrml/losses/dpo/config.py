"""Configuration of DPO and of the related hinge and IPO. Imports no torch."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from tune_dlrml.losses.base import ClosedForm, Kind, Loss, SearchedFlag, SearchedPositive


class DpoLoss(Loss):
    """Direct preference optimization."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2305.18290, equation 7"
    trl: ClassVar[str] = "sigmoid"
    titles: ClassVar[Mapping[str, str]] = {"dpo": "DPO"}
    name: Literal["dpo"] = "dpo"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""

    def closed_form(self, c: float | None) -> ClosedForm:
        """softplus(-beta * margin)."""
        from tune_dlrml.losses.dpo.geometry import dpo_geometry, dpo_value

        return ClosedForm(lambda margin: dpo_value(self.strength * margin), dpo_geometry())


class HingeLoss(Loss):
    """Hinge loss on the scaled margin, as in SLiC."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2305.10425"
    trl: ClassVar[str] = "hinge"
    name: Literal["hinge"] = "hinge"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""


class IpoLoss(Loss):
    """Identity preference optimization."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2310.12036, equation 17"
    trl: ClassVar[str] = "ipo"
    name: Literal["ipo"] = "ipo"
    beta: SearchedPositive = 0.1
    """Strength per nat: the margin is drawn to 1 / (2 * beta)."""
    length_normalized: SearchedFlag = False
    """Divides each log-ratio by the tokens of its completion, as TRL does; without it, it is the sum form
    of the DiscoPOP paper."""
