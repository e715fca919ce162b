"""Configuration of a proposed loss: the text of its function, and its parameters. Imports no torch."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator

from tune_dlrml.domains import Choice, law
from tune_dlrml.errors import InputError
from tune_dlrml.losses.custom.config import CustomParams, LearnableParam, WrittenLoss
from tune_dlrml.losses.proposed.allowed import allowed

if TYPE_CHECKING:
    from tune_dlrml.system.own_code import Function

HEAD = """from __future__ import annotations

import math

import torch
import torch.nn.functional as F


"""
"""What stands above a proposed function in a file of its own."""


def _code(code: str) -> str:
    try:
        allowed(code)
    except InputError as error:
        raise law(str(error)) from None
    return code


class ProposedLoss(WrittenLoss):
    """A function as text, within the language of proposals: compiled wherever it is used, and imported nowhere."""

    source: ClassVar[str | None] = "a language model"
    written: ClassVar[str] = "code"
    name: Literal["proposed"] = "proposed"
    code: Annotated[str, AfterValidator(_code)]
    """The text of one function, def name(pairs, *, beta, ...), without imports; docs/guide/discovery.md has what it
    may use."""

    @model_validator(mode="after")
    def _params_of_the_function(self) -> Self:
        scalars, given = allowed(self.code).scalars, self.params.given()
        for name, value in given.items():
            if name not in scalars:
                raise law(f"{self.form()} takes {', '.join(scalars) or 'no scalars'}, but got {name}", key="params")
            if any(isinstance(each, str) for each in _values(value)):
                raise law("a scalar of a proposed loss is a number", key=f"params.{name}")
        missing = [name for name, default in scalars.items() if default is None and name not in given]
        if missing:
            raise law(f"{self.form()} takes {missing[0]}, which has no default; give it a value", key="params")
        return self

    def form(self) -> str:
        """The name of the function."""
        return allowed(self.code).name

    @property
    def strength(self) -> Any:
        """What scales the margin, per nat: the scalar `beta_kl` or else `beta`, or its default; 1 without."""
        defaults = {name: value for name, value in allowed(self.code).scalars.items() if value is not None}
        return CustomParams.model_validate(defaults | self.params.given()).strength()

    def loaded(self) -> "Function":
        """The function, compiled from its checked tree."""
        from tune_dlrml.losses.proposed.compiled import compiled

        return compiled(self.code)

    def module(self) -> str:
        """The function below the imports that it needs."""
        return f"{HEAD}{self.code.strip()}\n"


def _values(value: Any) -> tuple[Any, ...]:
    if isinstance(value, LearnableParam):
        return ()
    return value.values if isinstance(value, Choice) else (value,)
