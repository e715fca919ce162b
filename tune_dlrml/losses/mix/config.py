"""What a search-space file says of a weighted sum of losses. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from tune_dlrml.domains import Choice, Frozen, Range, law
from tune_dlrml.losses.base import Kind, Loss, SearchedPositive, searched_fields

if TYPE_CHECKING:
    PartLoss = Loss


class MixPart(Frozen):
    """One loss of a weighted sum."""

    loss: "PartLoss"
    """Any loss that takes a reference and learns nothing, but one of your own or another sum, with its own fields."""
    weight: SearchedPositive = 1.0
    """Its weight; the weights need not add up to 1."""


class MixLoss(Loss):
    """A weighted sum of losses, of which each keeps its own fields."""

    kind: ClassVar[Kind | None] = None
    source: ClassVar[str] = "arXiv 2411.10442, mixed preference optimization, for any losses"
    couples_batch: ClassVar[bool | None] = None
    placing: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[str, Any]] = {
        "parts": [
            {"loss": {"name": "dpo", "beta": 0.1}, "weight": 0.8},
            {"loss": {"name": "bco_pair", "beta": 0.1}, "weight": 0.2},
        ]
    }
    name: Literal["mix"] = "mix"
    parts: list[MixPart]
    """The losses, two or more, each with its weight."""

    @model_validator(mode="after")
    def _parts_are_summed_only(self) -> Self:
        if len(self.parts) < 2:
            raise law(f"a sum has two parts or more, but got {len(self.parts)}", key="parts")
        for at, part in enumerate(self.parts):
            for key in ("sft", "ld_alpha", "weighting"):
                if getattr(part.loss, key) is not None:
                    raise law(f"`{key}` stands beside the sum, but got one inside a part", key=f"parts.{at}.loss.{key}")
            for key, reason in part.loss.refuses.items():
                if getattr(self, key) is not None:
                    raise law(f"{part.loss.name} among the parts takes none: {reason}", key=key)
            if not part.loss.needs_reference:
                raise law("a part takes a reference, but this one takes none", key=f"parts.{at}.loss")
            if part.loss.learnt_metrics():
                raise law("a part learns nothing beside the policy, but this one does", key=f"parts.{at}.loss")
        return self

    @property
    def strength(self) -> Any:
        """That of the first part."""
        return self.parts[0].loss.strength

    def form(self) -> str:
        """The names of its parts."""
        return "_".join(["mix", *(part.loss.name for part in self.parts)])

    def domains(self) -> dict[str, Range | Choice]:
        """The searched weights and fields of the parts, as parts.<at>.weight and parts.<at>.loss.<field>, from 0."""
        found = searched_fields(self)
        for at, part in enumerate(self.parts):
            found |= searched_fields(part, f"parts.{at}.")
        return found
