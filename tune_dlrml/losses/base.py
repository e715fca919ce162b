"""What the configurations of all losses share. Imports no torch."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from tune_dlrml.domains import Choice, Frozen, Range, Searchable, law
from tune_dlrml.losses.scoring_rules.config import SftTerm

if TYPE_CHECKING:
    from tune_dlrml.losses.custom.validation import Observation
    from tune_dlrml.losses.faults import Faults, Points
    from tune_dlrml.losses.shape import Geometry

Kind = Literal["pairwise", "pointwise"]
Positive = Annotated[float, Field(gt=0)]
SearchedPositive = Annotated[float | Range | Choice, Searchable(Positive)]
SearchedShare = Annotated[float | Range | Choice, Searchable(Annotated[float, Field(ge=0, le=1)])]
SearchedNumber = Annotated[float | Range | Choice, Searchable(float)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]
SearchedNoise = Annotated[float | Range | Choice, Searchable(Noise)]
SearchedFlag = Annotated[bool | Choice, Searchable(bool)]
TAU = 0.05
"""Temperature of the mixing coefficient in the DiscoPOP paper (arXiv 2406.08414)."""
OPTIONS = ("sft", "ld_alpha", "weighting", "f_divergence")
"""Fields that stand beside a loss's own ones, on all losses or on many."""
SHARED_FIELDS = ("name", "label", *OPTIONS)


Divergence = Literal["forward_kl", "js", "alpha"]
SearchedAlpha = Annotated[float | Range | Choice, Searchable(Annotated[float, Field(gt=0, lt=1)])]


class FDivergence(Frozen):
    """The divergence that holds the policy near its reference, in place of the reverse KL (arXiv 2309.16240)."""

    kind: Divergence
    """Forward KL, Jensen-Shannon, or alpha, which lies between the reverse and the forward KL."""
    alpha: SearchedAlpha | None = None
    """Of alpha, and of no other: near 0 it is the reverse KL, near 1 the forward KL. TRL's coefficient is 1 - alpha."""

    @model_validator(mode="after")
    def _alpha_where_it_counts(self) -> Self:
        if (self.alpha is not None) != (self.kind == "alpha"):
            got = "no alpha" if self.alpha is None else "an alpha"
            raise law(f"it must be given for kind alpha, and for no other, but got {got} for {self.kind}", key="alpha")
        return self


class ClosedForm(NamedTuple):
    """A loss that needs no torch to be drawn: of a pair in nats over its margin in nats, and its geometry."""

    value: "Callable[[float], float]"
    geometry: "Geometry"


class Loss(Frozen):
    """What all losses share.

    `kind` is pairwise for a loss that uses only the difference of the two completions, and pointwise for one that uses
    each completion by itself. `source` is the paper and the equation. Both are None for a user's own loss.
    """

    kind: ClassVar[Kind | None]
    source: ClassVar[str | None]
    needs_reference: ClassVar[bool] = True
    """Whether it looks at the reference's log-probabilities."""
    couples_batch: ClassVar[bool | None] = False
    """Whether a pair's loss depends on the other pairs of its micro-batch; None where it must be tried."""
    trl: ClassVar[str | None] = None
    """Its `loss_type` in TRL's DPOTrainer, which computes the same, or another trainer and its loss_type; None where
    TRL has none."""
    published: ClassVar[Mapping[str, Any] | None] = {}
    """The fields that have no default, as its source has them; None where it has none."""
    titles: ClassVar[Mapping[str, str]] = {}
    """What it is called in a picture, by its form; a form without an entry by its label."""
    placing: ClassVar[tuple[str, ...]] = ("beta",)
    """Fields of its place on the stability map: first its strength, then those of its shape number; may be empty."""
    one_beta: ClassVar[bool] = False
    """Whether one beta is both strength and mixing, so that all its trials of one c lie on a line of that map."""
    trap_is_sought: ClassVar[bool] = False
    """Whether its trap is found numerically, which takes long."""
    written: ClassVar[str | None] = None
    """The field that has the function or leads to it, of a loss that is none of this project's own."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Options that it does not take, each with the reason."""

    name: str
    """Which loss it is."""
    label: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=40)] | None = None
    """Name of the branch in parameter names and tables; by default that of the loss, with a number after it where
    two branches would otherwise share it."""
    sft: Annotated[SftTerm | None, Field(exclude_if=lambda term: term is None)] = None
    """Adds a scoring rule on the chosen answer's tokens."""
    ld_alpha: Annotated[SearchedShare | None, Field(exclude_if=lambda weight: weight is None)] = None
    """Weight of the log-probabilities of the tokens beyond the public length of a pair, that of its shorter completion
    (LD-DPO, arXiv 2409.06411): 1 changes nothing, 0 leaves them out."""

    weighting: Annotated[Literal["wpo"] | None, Field(exclude_if=lambda kind: kind is None)] = None
    """Multiplies the loss of a pair by how likely the policy finds its two completions, beside what it would say itself
    (WPO, arXiv 2406.11827): the further a pair is off the policy, the less it counts."""

    @model_validator(mode="after")
    def _options_are_taken(self) -> Self:
        for key, reason in self.refuses.items():
            if getattr(self, key) is not None:
                raise law(f"{self.name} takes none: {reason}", key=key)
        return self

    @classmethod
    def options(cls) -> list[str]:
        """What it takes beside its own fields."""
        return [key for key in OPTIONS if key in cls.model_fields and key not in cls.refuses]

    def default_label(self) -> str:
        """Name of the branch if the file gives none: the form of the loss, and its options."""
        return "_".join([self.form(), *self._options()])

    def _options(self) -> list[str]:
        """What the label says of sections beside the loss's own fields."""
        length = [] if self.ld_alpha is None else ["ld"]
        return [*([] if self.sft is None else [self.sft.rule]), *length, *filter(None, [self.weighting])]

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

    @property
    def strength_field(self) -> str | None:
        """The field that holds its strength, dotted where nested; None where there is none."""
        return self.placing[0] if self.placing else None

    @property
    def strength(self) -> Any:
        """What scales the margin, per nat; None for a loss that has no place on the stability map."""
        return getattr(self, self.placing[0]) if self.placing else None

    def title(self) -> str:
        """What it is called in a picture."""
        return self.titles.get(self.default_label(), self.default_label())

    def shape_number(self) -> float | None:
        """The shape number c that training begins with; None without mixing."""
        return None

    def learnt_rate(self) -> float | None:
        """Constant learning rate of what the loss learns beside the policy; None if it learns nothing."""
        return None

    def learnt_metrics(self) -> tuple[str, ...]:
        """Names under which reports have what is learnt beside the policy, itself as the last."""
        return ()

    def closed_form(self, c: float | None) -> ClosedForm | None:
        """How it is drawn without torch, at a shape number c; None where it cannot be."""
        return None

    def faults(self, points: "Points", limit: float) -> "Faults | None":
        """What is wrong with it at each point of a box of its fields, up to a margin of `limit` nats.

        None where there is no formula, so that it has to be evaluated.
        """
        return None

    def tied(self) -> Self:
        """The loss tied to the file that its function is in; itself without such a file.

        Raises:
            InputError: There is no such file.
        """
        return self

    def observations(self) -> "list[Observation]":
        """What is so about a user's function, at one value of each field.

        Raises:
            InputError: It cannot be trained with.
        """
        return []


class MarginLoss(Loss):
    """A loss of the difference of two scores, one of each completion, which other divergences score otherwise."""

    f_divergence: Annotated[FDivergence | None, Field(exclude_if=lambda section: section is None)] = None
    """Scores completions under another divergence than the reverse KL."""

    def _options(self) -> list[str]:
        return [*super()._options(), *([] if self.f_divergence is None else [self.f_divergence.kind])]


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
