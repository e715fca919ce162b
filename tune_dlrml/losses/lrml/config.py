"""Configuration of the log-ratio modulated losses, DiscoPOP and dLRML. Imports no torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, model_validator

from tune_dlrml.domains import Choice, Frozen, Range, Searchable, as_yaml, law
from tune_dlrml.losses.base import TAU, ClosedForm, Kind, MarginLoss, SearchedPositive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tune_dlrml.losses.faults import Faults, Points

Numerics = Literal["stable", "published"]
StrictPositive = Annotated[float, Field(gt=0, strict=True)]
SearchedNumerics = Annotated[Numerics | Choice, Searchable(Numerics)]


class LrmlLoss(MarginLoss):
    """What DiscoPOP and dLRML share: each can be computed in log space, or in the product form that was published."""

    def variants(self) -> dict[str, Self]:
        """Both, by the value of `numerics`."""
        return {name: self.model_copy(update={"numerics": name}) for name in get_args(Numerics)}

    def closed_form(self, c: float | None) -> ClosedForm | None:
        """The curve of dLRML at a shape number, under the reverse KL."""
        if c is None or self.f_divergence is not None:
            return None
        from tune_dlrml.losses.lrml.geometry import dlrml_value, learned_geometry

        return ClosedForm(lambda margin: dlrml_value(self.strength * margin, c), learned_geometry(c))

    def faults(self, points: "Points", limit: float) -> "Faults | None":
        """By c, and by where exp(-z) overflows, under the reverse KL."""
        if self.f_divergence is not None:
            return None
        from tune_dlrml.losses.lrml.faults import mixing_faults

        strength = self._values(points, self.placing[0]).astype(float)
        numerics = self._values(points, "numerics")
        return mixing_faults(self._shape_numbers(points), strength, numerics, limit, self._safe_range())

    def _shape_numbers(self, points: "Points") -> "NDArray[Any]":
        """The shape number c at every point, at the start where it is learnt."""
        raise NotImplementedError

    def _safe_range(self) -> str:
        """The safe band in the parameters that the file gives."""
        raise NotImplementedError

    def _values(self, points: "Points", key: str) -> "NDArray[Any]":
        """A field at every point: as it was drawn, or the one value that it has."""
        import numpy as np

        if key in points:
            return points[key]
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return np.array([value], dtype=object)


class DiscopopLoss(LrmlLoss):
    """DiscoPOP, the log-ratio modulated loss LRML."""

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2406.08414, equation 5"
    trl: ClassVar[str] = "discopop"
    titles: ClassVar[Mapping[str, str]] = {"discopop": "DiscoPOP"}
    one_beta: ClassVar[bool] = True
    name: Literal["discopop"] = "discopop"
    beta: SearchedPositive = 0.05
    """Strength per nat: z = beta * margin."""
    tau: SearchedPositive = TAU
    """Temperature of the mixing coefficient. The shape number is c = 1 / tau."""
    numerics: SearchedNumerics = "stable"
    """`stable` is evaluated in log space; `published` is 0 * inf = NaN far out."""

    def shape_number(self) -> float:
        """1 / tau."""
        return 1 / float(self.tau)  # type: ignore[arg-type]

    def _shape_numbers(self, points: "Points") -> "NDArray[Any]":
        return 1 / self._values(points, "tau").astype(float)

    def _safe_range(self) -> str:
        from tune_dlrml.losses.lrml.geometry import SAFE_BAND

        low, high = SAFE_BAND
        return f"tau within {1 / high:.3g}..{1 / low:g}, since c = 1 / tau"


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
    return value.model_dump() if isinstance(value, LearnableBetaMix) else as_yaml(value)


class DlrmlLoss(LrmlLoss):
    """Decoupled log-ratio modulated loss: z = beta_kl * margin, mixing by sigmoid(beta_mix * margin / tau).

    The loss depends on z and c = beta_mix / (tau * beta_kl) only, so exactly one of `c` and `beta_mix` is given.
    """

    kind: ClassVar[Kind] = "pairwise"
    source: ClassVar[str] = "arXiv 2406.08414, equation 5, with the beta inside the mixing coefficient set free"
    titles: ClassVar[Mapping[str, str]] = {
        "dlrml": "dLRML, fixed β_mix",
        "dlrml_c": "dLRML",
        "dlrml_learnable": "dLRML, learned β_mix",
    }
    placing: ClassVar[tuple[str, ...]] = ("beta_kl", "c", "beta_mix")
    published: ClassVar[Mapping[str, Any]] = {"beta_mix": 0.2}
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
        """Name of the form, one of three that differ in how the mixing is set."""
        if isinstance(self.beta_mix, LearnableBetaMix):
            return "dlrml_learnable"
        return "dlrml" if self.c is None else "dlrml_c"

    def learnt_rate(self) -> float | None:
        """That of a learnable beta_mix."""
        return float(self.beta_mix.learning_rate) if isinstance(self.beta_mix, LearnableBetaMix) else None  # type: ignore[arg-type]

    def learnt_metrics(self) -> tuple[str, ...]:
        """Of a learnable beta_mix: its c and itself."""
        return ("c", "beta_mix") if isinstance(self.beta_mix, LearnableBetaMix) else ()

    def shape_number(self) -> float:
        """That given, or beta_mix / (tau * beta_kl); of a learnable one that at its start."""
        c, mix, _ = self._mixing()
        if c is not None:
            return float(c)
        return float(mix) / (float(self.tau) * float(self.beta_kl))  # type: ignore[arg-type]

    def _mixing(self) -> tuple[Any, Any, str]:
        """The shape number, or else the beta_mix, that training begins with, and the prefix of their keys."""
        if isinstance(self.beta_mix, LearnableBetaMix):
            return self.beta_mix.c_init, self.beta_mix.init, "beta_mix."
        return self.c, self.beta_mix, ""

    def _shape_numbers(self, points: "Points") -> "NDArray[Any]":
        c, _, prefix = self._mixing()
        c_key, mix_key = (f"{prefix}c_init", f"{prefix}init") if prefix else ("c", "beta_mix")
        if c is not None:
            return self._values(points, c_key).astype(float)
        tau, beta_kl = (self._values(points, key).astype(float) for key in ("tau", "beta_kl"))
        found: NDArray[Any] = self._values(points, mix_key).astype(float) / (tau * beta_kl)
        return found

    def _safe_range(self) -> str:
        from tune_dlrml.losses.lrml.geometry import SAFE_BAND

        low, high = SAFE_BAND
        c, _, prefix = self._mixing()
        if c is not None:
            return f"{'c_init' if prefix else 'c'} within {low:g}..{high:.4g}"
        mix = "init" if prefix else "beta_mix"
        if isinstance(self.tau, (int, float)):
            return f"{mix}/beta_kl within {low * self.tau:.3g}..{high * self.tau:.3g} at tau {self.tau:g}, or search c"
        return f"{mix}/(tau * beta_kl) within {low:g}..{high:.4g}, or search c"


def _ends(value: Any) -> list[Any]:
    return list(value.extremes()) if isinstance(value, (Range, Choice)) else [value]


def _given(value: Frozen, *names: str) -> str:
    given = [name for name in names if getattr(value, name) is not None]
    return f"got {' and '.join(given)}" if given else "got neither"
