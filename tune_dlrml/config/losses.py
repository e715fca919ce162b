"""The losses that a search can explore. Each carries its own fields only: a DPO has no beta_mix to set."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, model_validator

from tune_dlrml.config.custom_loss import CustomParams, FunctionReference
from tune_dlrml.config.domains import Choice, Frozen, Range, Searchable, as_yaml, law
from tune_dlrml.config.sft import SftTerm

Positive = Annotated[float, Field(gt=0)]
Numerics = Literal["stable", "published"]
StrictPositive = Annotated[float, Field(gt=0, strict=True)]
SearchedPositive = Annotated[float | Range | Choice, Searchable(Positive)]
SearchedShare = Annotated[float | Range | Choice, Searchable(Annotated[float, Field(ge=0, le=1)])]
SearchedNumber = Annotated[float | Range | Choice, Searchable(float)]
SearchedFlag = Annotated[bool | Choice, Searchable(bool)]
SearchedNumerics = Annotated[Numerics | Choice, Searchable(Numerics)]
TAU = 0.05
"""Temperature of the mixing coefficient in the DiscoPOP paper (arXiv 2406.08414)."""


class Loss(Frozen):
    """What all losses share."""

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

    def learnt_rate(self) -> float | None:
        """Constant learning rate of what the loss learns beside the policy; None if it learns nothing."""
        return None


class DpoLoss(Loss):
    """Direct preference optimization (arXiv 2305.18290, equation 7)."""

    name: Literal["dpo"] = "dpo"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""


class HingeLoss(Loss):
    """Hinge loss on the scaled margin, as in SLiC (arXiv 2305.10425)."""

    name: Literal["hinge"] = "hinge"
    beta: SearchedPositive = 0.1
    """Strength per nat: z = beta * margin."""


class IpoLoss(Loss):
    """Identity preference optimization (arXiv 2310.12036, equation 17)."""

    name: Literal["ipo"] = "ipo"
    beta: SearchedPositive = 0.1
    """Strength per nat: the margin is drawn to 1 / (2 * beta)."""
    length_normalized: SearchedFlag = False
    """Divides each log-ratio by the tokens of its completion, as TRL does; without it, it is the sum form
    of the DiscoPOP paper."""


class KtoLoss(Loss):
    """KTO in its pair form, with the KL of each half estimated from the batch (arXiv 2402.01306, equation 7)."""

    name: Literal["kto"] = "kto"
    beta: SearchedPositive = 0.1
    """Strength per nat of each log-ratio."""
    desirable_weight: SearchedPositive = 1.0
    """Of the chosen half."""
    undesirable_weight: SearchedPositive = 1.0
    """Of the rejected half."""
    kl_gradient: SearchedFlag = True
    """Lets the gradient through the batch's estimates of KL, as TRL's `kto_pair` and DiscoPOP do."""


class DiscopopLoss(Loss):
    """DiscoPOP, the log-ratio modulated loss LRML (arXiv 2406.08414, equation 5)."""

    name: Literal["discopop"] = "discopop"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient. The shape number is c = 1 / tau."""
    numerics: SearchedNumerics = "stable"
    """`stable` is evaluated in log space; `published` is 0 * inf = NaN far out."""


class LearnableBetaMix(Frozen):
    """A beta_mix trained beside the policy, at its own constant learning rate and without weight decay.

    Exactly one of `init` and `c_init` is given.
    """

    learnable: Literal[True] = True
    """Says that it is trained."""
    init: SearchedPositive | None = None
    """Where it starts, in units of beta_mix; this or c_init is given."""
    c_init: SearchedPositive | None = None
    """Where it starts, as the shape number c."""
    learning_rate: SearchedPositive = 1e-2
    """Its constant learning rate."""
    c_bounds: Annotated[tuple[StrictPositive, StrictPositive], Field(strict=False)] | None = (1.0, 9.1)
    """The parameter is c = low + (high - low) * sigmoid(theta); null is the raw scalar, as published."""

    @model_validator(mode="after")
    def _one_start_inside_the_bounds(self) -> Self:
        if (self.init is None) == (self.c_init is None):
            raise law(f"exactly one of `init` and `c_init` must be given, but {_given(self, 'init', 'c_init')}")
        if self.c_bounds is not None and self.c_bounds[0] >= self.c_bounds[1]:
            raise law(f"must be [low, high] with low < high, but got {list(self.c_bounds)}", key="c_bounds")
        return self


def _beta_mix(value: Any) -> float | Range | Choice | LearnableBetaMix | None:
    if value is None or isinstance(value, LearnableBetaMix):
        return value
    if isinstance(value, dict) and "learnable" in value:
        return LearnableBetaMix.model_validate(value)
    adapter: TypeAdapter[float | Range | Choice] = TypeAdapter(SearchedPositive)
    return adapter.validate_python(value)


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, LearnableBetaMix | CustomParams) else as_yaml(value)


class DlrmlLoss(Loss):
    """Decoupled log-ratio modulated loss: z = beta_kl * margin, mixing by sigmoid(beta_mix * margin / tau).

    The loss depends on z and c = beta_mix / (tau * beta_kl) only, so exactly one of `c` and `beta_mix` is given.
    """

    name: Literal["dlrml"] = "dlrml"
    beta_kl: SearchedPositive = 0.05
    """Strength per nat: z = beta_kl * margin."""
    c: SearchedPositive | None = None
    """Shape number beta_mix / (tau * beta_kl): bounded slope and no trap for 1 <= c <= 9.109."""
    beta_mix: Annotated[
        LearnableBetaMix | float | Range | Choice | None,
        PlainValidator(_beta_mix, json_schema_input_type=LearnableBetaMix | SearchedPositive | None),
        PlainSerializer(_plain),
    ] = None
    """Strength inside the mixing coefficient: a value, a domain, or learnable."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    numerics: SearchedNumerics = "stable"
    """`stable` is evaluated in log space; `published` is 0 * inf = NaN far out."""

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> Self:
        if (self.c is None) == (self.beta_mix is None):
            raise law(f"exactly one of `c` and `beta_mix` must be given, but {_given(self, 'c', 'beta_mix')}")
        if isinstance(self.tau, (Range, Choice)) and not self._depends_on_tau():
            raise law("the loss depends on c alone where c is given, so a search over tau changes nothing", key="tau")
        if isinstance(self.beta_mix, LearnableBetaMix):
            self._check_start(self.beta_mix)
        return self

    def _check_start(self, mix: LearnableBetaMix) -> None:
        if mix.c_bounds is None:
            return
        low, high = mix.c_bounds
        if mix.c_init is not None:
            starts = _ends(mix.c_init)
        else:
            starts = [i / (t * b) for i in _ends(mix.init) for t in _ends(self.tau) for b in _ends(self.beta_kl)]
        outside = [c for c in starts if not low < c < high]
        if outside:
            reached = f"c_init={outside[0]:.4g}" if mix.init is None else f"init / (tau * beta_kl) = {outside[0]:.4g}"
            raise law(
                f"a learnable beta_mix must start inside c_bounds={[low, high]}, but {reached}; give a `c_init` inside",
                key="beta_mix.init" if mix.c_init is None else "beta_mix.c_init",
            )

    def _depends_on_tau(self) -> bool:
        if isinstance(self.beta_mix, LearnableBetaMix):
            return self.beta_mix.c_bounds is None or self.beta_mix.init is not None
        return self.c is None

    def form(self) -> str:
        """Three forms of one loss, told apart by what sets the mixing."""
        if isinstance(self.beta_mix, LearnableBetaMix):
            return "dlrml_learnable"
        return "dlrml" if self.c is None else "dlrml_c"

    def learnt_rate(self) -> float | None:
        """That of a learnable beta_mix."""
        return float(self.beta_mix.learning_rate) if isinstance(self.beta_mix, LearnableBetaMix) else None  # type: ignore[arg-type]


class DbaqlLoss(Loss):
    """Dynamic blended adaptive quantile loss, discovered by DiscoPOP's search (arXiv 2406.08414); batch-coupled."""

    name: Literal["dbaql"] = "dbaql"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    temperature: SearchedPositive = 0.9
    """Flattens the logistic part and steepens the exponential one."""


class AqlLoss(Loss):
    """Adaptive quantile loss, discovered by DiscoPOP's search (arXiv 2406.08414); batch-coupled."""

    name: Literal["aql"] = "aql"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    quantile: SearchedNumber = 0.5
    """Where the moving quantile starts."""
    quantile_rate: SearchedShare = 0.01
    """How far it moves towards the batch's."""


class PadllLoss(Loss):
    """Performance adaptive decay logistic loss, discovered by DiscoPOP's search (arXiv 2406.08414)."""

    name: Literal["padll"] = "padll"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    decay: SearchedPositive = 0.9
    """Scales the loss of every pair."""
    mismatch_penalty: SearchedShare = 0.5
    """Share that is taken off the loss of pairs that are ranked wrong."""


class AqflLoss(Loss):
    """Adaptive quantile feedback loss, discovered by DiscoPOP's search (arXiv 2406.08414); batch-coupled."""

    name: Literal["aqfl"] = "aqfl"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient."""
    quantile_rate: SearchedShare = 0.05
    """Weight of the batch's mean in the adaptive quantile."""
    distance_scale: SearchedPositive = 0.1
    """How fast the mixing coefficient rises with the distance from that quantile."""


class CellLoss(Loss):
    """Combined exponential and logistic loss, discovered by DiscoPOP's search (arXiv 2406.08414)."""

    name: Literal["cell"] = "cell"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    alpha: SearchedShare = 0.5
    """Share of the exponential part."""


class PflLoss(Loss):
    """Policy focused loss, discovered by DiscoPOP's search (arXiv 2406.08414)."""

    name: Literal["pfl"] = "pfl"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    focus_scale: SearchedPositive = 2.0
    """Weight of pairs that the policy ranks wrong; those that it ranks right are divided by it."""


class CustomLoss(Loss):
    """Your own: a function of a `PairBatch` and of `params` that returns the loss of each pair."""

    name: Literal["custom"] = "custom"
    function: FunctionReference
    """package.module:function, importable where the search starts and on its workers; the folder that the search
    is started in counts."""
    params: CustomParams = CustomParams()
    """Its arguments by name: values, domains, and at most one that is learnt."""
    file_sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", exclude_if=lambda value: value is None)] = None
    """Of the function's file: the search fills it in, and then goes on with that file only."""

    def form(self) -> str:
        """The name of the function."""
        return self.function.rpartition(":")[2]

    def domains(self) -> dict[str, Range | Choice]:
        """The searched parameters, as params.<name>, with those of an SFT term."""
        return {f"params.{key}": domain for key, domain in self.params.domains().items()} | searched_fields(self)

    def learnt_rate(self) -> float | None:
        """That of the learnable parameter."""
        learnt = self.params.learnt()
        return None if learnt is None else float(learnt[1].learning_rate)  # type: ignore[arg-type]

    @property
    def beta_kl(self) -> Any:
        """What scales the margin, per nat: the parameter of that name or else `beta`; 1 without."""
        return self.params.strength()


Baseline = HingeLoss | IpoLoss | KtoLoss
Discovered = DbaqlLoss | AqlLoss | PadllLoss | AqflLoss | CellLoss | PflLoss
AnyLoss = Annotated[
    DpoLoss | DiscopopLoss | DlrmlLoss | Baseline | Discovered | CustomLoss, Field(discriminator="name")
]


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


def _ends(value: Any) -> list[Any]:
    return list(value.extremes()) if isinstance(value, (Range, Choice)) else [value]


def _given(value: Frozen, *names: str) -> str:
    given = [name for name in names if getattr(value, name) is not None]
    return f"got {' and '.join(given)}" if given else "got neither"


SHARED_FIELDS = ("name", "label", "sft")


def described() -> list[dict[str, Any]]:
    """Every loss with its fields, their defaults and the first line of its documentation."""
    listed = []
    for loss in get_args(get_args(AnyLoss)[0]):
        own = {key: field for key, field in loss.model_fields.items() if key not in (*SHARED_FIELDS, "file_sha256")}
        fields = {key: None if field.is_required() else _plain(field.default) for key, field in own.items()}
        summary = (loss.__doc__ or "").strip().splitlines()[0]
        listed.append({"name": loss.model_fields["name"].default, "fields": fields, "description": summary})
    return listed
