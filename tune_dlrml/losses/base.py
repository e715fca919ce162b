"""What the configurations of all losses share. Imports no torch."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from tune_dlrml.domains import Choice, Frozen, Range, Searchable
from tune_dlrml.losses.scoring_rules.config import SftTerm

Kind = Literal["pairwise", "pointwise"]
Positive = Annotated[float, Field(gt=0)]
SearchedPositive = Annotated[float | Range | Choice, Searchable(Positive)]
SearchedShare = Annotated[float | Range | Choice, Searchable(Annotated[float, Field(ge=0, le=1)])]
SearchedNumber = Annotated[float | Range | Choice, Searchable(float)]
SearchedFlag = Annotated[bool | Choice, Searchable(bool)]
TAU = 0.05
"""Temperature of the mixing coefficient in the DiscoPOP paper (arXiv 2406.08414)."""
SHARED_FIELDS = ("name", "label", "sft")


class Loss(Frozen):
    """What all losses share.

    `kind` is pairwise for a loss that uses only the difference of the two completions, and pointwise for one that uses
    each completion by itself. `source` is the paper and the equation. Both are None for a user's own loss.
    """

    kind: ClassVar[Kind | None]
    source: ClassVar[str | None]

    name: str
    """Which loss it is."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)] | None = None
    """Name of the branch in parameter names and tables; by default that of the loss, with a number behind it where
    two branches would otherwise share it."""
    sft: Annotated[SftTerm | None, Field(exclude_if=lambda term: term is None)] = None
    """Adds a scoring rule on the chosen answer's tokens."""

    def default_label(self) -> str:
        """Name of the branch if the file gives none: the form of the loss, and the rule of its SFT term."""
        return self.form() if self.sft is None else f"{self.form()}_{self.sft.rule}"

    def form(self) -> str:
        """The loss without its numbers."""
        return self.name

    def domains(self) -> dict[str, Range | Choice]:
        """The searched fields, dotted where nested, in the order of the class."""
        return searched_fields(self)

    def variants(self) -> dict[str, Self]:
        """The ways in which its numbers can be computed; `stable` is the only one of most losses."""
        return {"stable": self}

    def numbers(self) -> dict[str, Any]:
        """The loss's own fields, each one value by now."""
        own = type(self).model_fields.keys() - set(SHARED_FIELDS)
        return {name: drawn(getattr(self, name)) for name in sorted(own)}

    def learnt_rate(self) -> float | None:
        """Constant learning rate of what the loss learns beside the policy; None if it learns nothing."""
        return None


def drawn(field: Any) -> Any:
    """The field's value, which a point of the search space must have set by now.

    Raises:
        ValueError: It has not.
    """
    if field is None or isinstance(field, Range | Choice):
        raise ValueError(
            f"A loss is built from one value per field, but got {field!r}. Draw a point of the search space first."
        )
    return field


def searched_fields(value: Frozen, prefix: str = "") -> dict[str, Range | Choice]:
    """The fields of `value` that hold a domain, keyed by their dotted path."""
    found: dict[str, Range | Choice] = {}
    for name in type(value).model_fields:
        field = getattr(value, name)
        if isinstance(field, (Range, Choice)):
            found[prefix + name] = field
        elif isinstance(field, Frozen):
            found |= searched_fields(field, f"{prefix}{name}.")
    return found
