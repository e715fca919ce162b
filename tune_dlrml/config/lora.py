"""Low-rank adapters, in PEFT's names, with which a trial starts equal to its reference.

At its start a policy equals its reference: every margin is 0, and the reference log-probs that a search computes once
are those of the base without an adapter. So an adapter's product must be 0 before the first step, and the base's
weights must not change.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from tune_dlrml.config.numbers import BelowOne, Natural, NotNegativeInt, Positive
from tune_dlrml.domains import Domain, Frozen, Searchable, law

Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
STARTS = (True, "gaussian", "orthogonal")
"""Initializations whose product of the two matrices is 0."""
MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva", "mica")
"""Prefixes of the names of initializations that derive their matrices from the base's weights, or from data."""


def _target_modules(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise law(
            f"`all-linear`, a regular expression or a list of module names is needed, but got {json.dumps(value)}"
        )
    return value


def _start(value: Any) -> Any:
    if any(value is start or (isinstance(value, str) and value == start) for start in STARTS):
        return value
    shown = json.dumps(value)
    if value is False:
        why = "draws both matrices at random, so the policy would not start at its reference"
    elif isinstance(value, str) and value.startswith(MOVES_THE_BASE):
        why = "derives the adapter from the base's weights or from data, and changes the base that all trials share"
    else:
        why = "is not an initialization of PEFT"
    allowed = ", ".join(json.dumps(start) for start in STARTS)
    raise law(
        f"an adapter must start with a product of 0 ({allowed}), but {shown} {why}; leave it out, or give one of these"
    )


TargetModules = Annotated[str | list[str], PlainValidator(_target_modules, json_schema_input_type=str | list[str])]
Start = Literal[True, "gaussian", "orthogonal"]
Layers = Annotated[list[NotNegativeInt], Field(min_length=1)]


class LoraSettings(Frozen):
    """Low-rank adapters, in PEFT's names."""

    r: Natural = 16
    """Rank."""
    lora_alpha: Positive = 32
    """Scale: the adapter's output is multiplied by lora_alpha / r."""
    lora_dropout: BelowOne = 0.0
    """Dropout before the adapter; needs `disable_dropout: false`."""
    target_modules: TargetModules = "all-linear"
    """`all-linear`, a regular expression, or a list of module names."""
    use_rslora: bool = False
    """Divides lora_alpha by the root of r instead of by r."""
    use_dora: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    """Learns the length of each weight's rows beside their direction."""
    modules_to_save: Annotated[Names | None, Field(exclude_if=lambda value: value is None)] = None
    """Modules that are trained whole, as copies in float32."""
    layers_to_transform: Annotated[Layers | None, Field(exclude_if=lambda value: value is None)] = None
    """Numbers of the layers that get an adapter, from 0; null is all."""
    init_lora_weights: Annotated[
        Start,
        PlainValidator(_start, json_schema_input_type=Start),
        Field(exclude_if=lambda value: value is True),
    ] = True
    """Initialization of the two matrices; their product is always 0."""
    target_parameters: Annotated[Names | None, Field(exclude_if=lambda value: value is None)] = None
    """Weights outside of linear layers, such as the experts of a mixture in one tensor."""

    @model_validator(mode="after")
    def _laws(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise law(
                f"needs `target_modules` as a list of names, but it is {json.dumps(self.target_modules)}",
                key="layers_to_transform",
            )
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise law(f"an even `r` is needed for init_lora_weights: orthogonal, but got {self.r}", key="r")
        if self.target_parameters is not None:
            used = {"use_dora": self.use_dora, "lora_dropout": self.lora_dropout != 0}
            for key in (key for key, on in used.items() if on):
                raise law("PEFT has no such adapter for `target_parameters`; leave one of the two out", key=key)
        return self


class LoraSpace(Frozen):
    """Domains of the adapter settings that a search may vary, with the meaning that they have in `training.lora`."""

    r: Annotated[Domain, Searchable(Natural, domain_only=True)] | None = None
    lora_alpha: Annotated[Domain, Searchable(Positive, domain_only=True)] | None = None
    lora_dropout: Annotated[Domain, Searchable(BelowOne, domain_only=True)] | None = None
