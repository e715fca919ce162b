"""Token-level scoring rules: beside a preference loss, or alone as the warm-up that all trials of a search share."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tune_dlrml.domains import Choice, Frozen, Range, Searchable, law

RuleName = Literal["logarithmic", "brier", "spherical", "alpha_power", "pseudo_spherical"]
WITH_ALPHA = ("alpha_power", "pseudo_spherical")
"""Rules that are a family over alpha: Brier is alpha_power at 2, spherical is pseudo_spherical at 2."""
Positive = Annotated[float, Field(gt=0)]
AboveOne = Annotated[float, Field(gt=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
SearchedPositive = Annotated[float | Range | Choice, Searchable(Positive)]
SearchedAboveOne = Annotated[float | Range | Choice, Searchable(AboveOne)]
SearchedBelowOne = Annotated[float | Range | Choice, Searchable(BelowOne)]


class ScoringRule(Frozen):
    """A strictly proper scoring rule of the next token (arXiv 2405.18906); the loss is minus the score."""

    rule: RuleName = "logarithmic"
    """Brier is alpha_power at alpha 2, spherical is pseudo_spherical at 2."""
    alpha: SearchedAboveOne | None = None
    """Of alpha_power and pseudo_spherical, and of no other rule."""
    smoothing: SearchedBelowOne = 0.0
    """Share of the target that moves from the label to the whole vocabulary."""
    masked_logarithmic: bool = True
    """With smoothing, rules other than the logarithmic also score, logarithmically, the
    tokens whose probability is below the smoothed target's floor."""

    @model_validator(mode="after")
    def _alpha_where_it_counts(self) -> Self:
        if (self.alpha is not None) != (self.rule in WITH_ALPHA):
            got = "no alpha" if self.alpha is None else "an alpha"
            raise law(
                f"`alpha` must be given for {' and '.join(WITH_ALPHA)}, and for no other rule, "
                f"but got {got} for {self.rule}",
                key="alpha",
            )
        return self


class SftTerm(ScoringRule):
    """A scoring rule on the chosen answer, mean over its tokens, added to the preference loss with `weight`."""

    weight: SearchedPositive = 1.0
    """Of the term beside the preference loss."""


class WarmUp(ScoringRule):
    """Plain fine-tuning on the chosen answers, once, before the trials of a search, which all start from its result."""

    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps."""
    learning_rate: Positive
    """Their learning rate."""

    @model_validator(mode="after")
    def _the_same_for_all_trials(self) -> Self:
        for key in ("alpha", "smoothing"):
            if isinstance(getattr(self, key), (Range, Choice)):
                raise law(
                    "all trials share one warm-up, so it takes a single value here; search over the `sft` of a loss",
                    key=key,
                )
        return self
