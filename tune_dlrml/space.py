"""From a search-space file to the parameters that a sampler draws, and from a drawn point to its trial."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from tune_dlrml.config import SearchConfig, TrainingConfig
from tune_dlrml.domains import Choice, Domain, Frozen, overlay
from tune_dlrml.losses.base import searched_fields
from tune_dlrml.losses.registry import AnyLoss

BRANCH = "loss"
"""Name of the categorical parameter that chooses the branch, where there is more than one."""
TRAINING = "training"
"""Prefix of the training parameters, which all branches share."""
IMPLIED = {
    *("loss", "tau", "numerics", "beta_mix.learnable", "beta_mix.c_bounds", "beta_mix.learning_rate"),
    *("sft.rule", "sft.smoothing", "sft.masked_logarithmic", "function", "file_sha256"),
}
"""Settings that the name of a branch implies, or that are rarely varied."""
ABOUT_LEARNING = (".learnable", ".learning_rate", ".bounds")
"""Ends of settings about a parameter that is learnt."""
Point = Mapping[str, Any]


class TrialSpec(Frozen):
    """One trial as its worker group gets it; every value is a number, no domain is left.

    Attributes:
        number: Optuna's number of the trial, used everywhere.
        attempt: 0, and one more for each time the trial was issued again.
        branch: Label of the loss in the space, or `baseline`.
        params: The point in the space, keyed as in the study.
    """

    number: int
    attempt: int = 0
    branch: str
    loss: AnyLoss
    training: TrainingConfig
    params: dict[str, float | int | str | bool | None]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The spec that `model_dump(mode="json")` wrote."""
        return cls.model_validate(document)

    def settings(self) -> dict[str, Any]:
        """The loss's own values and the training settings that the search varies, flat, for tables and MLflow.

        Of a written loss the strength has the name that it has in other losses, so that they share a column.
        """
        field = self.loss.strength_field or ""
        word = field.rpartition(".")[2]
        loss = {
            key.replace(field, word, 1) if f"{key}.".startswith(f"{field}.") else key: value
            for key, value in self.loss.flat().items()
            if key not in ("label", "code")
        }
        varied = {key: value for key, value in self.params.items() if key.startswith(f"{TRAINING}.")}
        return {"loss": loss.pop("name"), **loss, **{key.partition(".")[2]: value for key, value in varied.items()}}

    def shown(self) -> dict[str, Any]:
        """The settings beside its branch that tell a trial from others in a table."""
        return {
            key: value
            for key, value in self.settings().items()
            if key not in IMPLIED and not key.endswith(ABOUT_LEARNING)
        }


class OutsideError(ValueError):
    """A trial that is no point of a search space.

    Attributes:
        key: Parameter at fault, where there is one.
    """

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason)
        self.key = key


def loss_at(loss: AnyLoss, values: Mapping[str, Any]) -> AnyLoss:
    """The loss with the dotted fields of `values` put in, checked again."""
    return type(loss).model_validate(overlay(loss.model_dump(), dict(values)))


class SearchSpace:
    """The branches of a search and the domains of each, as the sampler sees them.

    Args:
        config: The search that the space belongs to.
        branches: Losses by the names of their branches; by default those that the search's file names.
    """

    def __init__(self, config: SearchConfig, branches: Mapping[str, AnyLoss] | None = None) -> None:
        self.branches = config.known_losses().branches() if branches is None else dict(branches)
        self.shared: dict[str, Domain] = {
            f"{TRAINING}.{key}": domain for key, domain in searched_fields(config.space.training).items()
        }
        self._training = config.training
        self._baseline = config.baseline_loss()

    def domains(self, branch: str) -> dict[str, Domain]:
        """Parameters of one branch: its own, under its name, and the shared ones."""
        own = {f"{branch}.{key}": domain for key, domain in self.branches[branch].domains().items()}
        return own | self.shared

    def common(self) -> dict[str, Domain]:
        """Parameters that every trial has, the choice of its branch among them."""
        choice = self.choice_of_branch()
        return self.domains(next(iter(self.branches))) if choice is None else {BRANCH: choice, **self.shared}

    def choice_of_branch(self) -> Choice | None:
        """Domain of the parameter `loss`; None where there is one branch only and nothing to choose."""
        return Choice(values=tuple(self.branches)) if len(self.branches) > 1 else None

    def branch_of(self, point: Point) -> str:
        """Branch that a point lies in."""
        return str(point[BRANCH]) if BRANCH in point else next(iter(self.branches))

    def spec(self, number: int, point: Point) -> TrialSpec:
        """The trial of a point."""
        branch = self.branch_of(point)
        loss = self.branches[branch]
        own = {key.removeprefix(f"{branch}."): value for key, value in point.items() if key.startswith(f"{branch}.")}
        concrete = loss_at(loss, own)
        missing = concrete.domains().keys()
        if missing:
            raise ValueError(f"a point of branch {branch} needs {', '.join(missing)}, but got {dict(point)}")
        shared = {key.partition(".")[2]: value for key, value in point.items() if key in self.shared}
        return TrialSpec(
            number=number, branch=branch, loss=concrete, training=self._training.at(shared), params=dict(point)
        )

    def baseline_spec(self, number: int) -> TrialSpec | None:
        """The plain DPO of trial 0 under the training settings that the file gives outside the space."""
        if self._baseline is None:
            return None
        return TrialSpec(number=number, branch="baseline", loss=self._baseline, training=self._training, params={})

    def baseline_point(self) -> Point | None:
        """The baseline as a point of the space, where the space holds it, so that the sampler learns from it."""
        spec = self.baseline_spec(0)
        try:
            return None if spec is None else self.point_of(spec)
        except OutsideError:
            return None

    def point_of(self, spec: TrialSpec) -> Point:
        """The point of this space that is a trial of the same loss, under the same values of what the space varies.

        Raises:
            OutsideError: There is none.
        """
        self._check_fixed(spec)
        reasons: list[str] = []
        for branch, loss in self.branches.items():
            if loss.name != spec.loss.name:
                continue
            values = self._values_of(spec, branch)
            outside = {key: values[key] for key, domain in self.domains(branch).items() if values[key] not in domain}
            reasons += [f"{key} is {value!r} there" for key, value in outside.items()]
            if outside:
                continue
            point = ({BRANCH: branch} if len(self.branches) > 1 else {}) | values
            if self.spec(spec.number, point).loss.model_copy(update={"label": None}) == spec.loss.model_copy(
                update={"label": None}
            ):
                return point
            reasons.append(f"its loss differs from {branch} where that is fixed")
        raise OutsideError(reasons[0] if reasons else f"no loss here is {spec.loss.name}")

    def _values_of(self, spec: TrialSpec, branch: str) -> dict[str, Any]:
        loss, training = spec.loss.flat(), spec.training.flat()
        return {
            key: (training if key in self.shared else loss).get(key.partition(".")[2]) for key in self.domains(branch)
        }

    def _check_fixed(self, spec: TrialSpec) -> None:
        """Refuse a trial whose search varied a setting that this space fixes at another value."""
        fixed = self._training.flat()
        for key, value in spec.params.items():
            section, _, name = key.partition(".")
            if section == TRAINING and key not in self.shared and fixed.get(name) != value:
                raise OutsideError(f"{key} is {value!r} there and {fixed.get(name)!r} here")

    def check_point(self, point: Point) -> None:
        """Check a point of which some parameters may be left out.

        Raises:
            OutsideError: It names no branch, a parameter that its branch does not have, or a value outside a domain.
        """
        choice = self.choice_of_branch()
        if choice is not None and point.get(BRANCH) not in choice:
            raise OutsideError(f"`{BRANCH}` is one of {', '.join(self.branches)}, but got {point.get(BRANCH)!r}")
        domains = self.domains(self.branch_of(point))
        for key, value in point.items():
            if key == BRANCH and choice is not None:
                continue
            if key not in domains:
                raise OutsideError(f"no such parameter; there are {', '.join(domains) or 'none'}", key)
            if value not in domains[key]:
                raise OutsideError(f"{json.dumps(domains[key].as_yaml())} is searched, but got {value!r}", key)

    def grid(self) -> Iterator[Point]:
        """Every point of the product of each branch's grids."""
        for branch in self.branches:
            domains = self.domains(branch)
            start: dict[str, Any] = {BRANCH: branch} if len(self.branches) > 1 else {}
            for values in itertools.product(*(domain.grid() for domain in domains.values())):
                yield start | dict(zip(domains, values, strict=True))
