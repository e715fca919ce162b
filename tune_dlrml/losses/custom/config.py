"""Configuration of a loss whose function is not this project's: its parameters, and how a user's own is named."""

import json
import keyword
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from tune_dlrml.domains import (
    NUMBER_REMEDY,
    Choice,
    Frozen,
    Range,
    Searchable,
    as_yaml,
    is_like_a_number,
    law,
)
from tune_dlrml.errors import InputError
from tune_dlrml.losses.base import Kind, Loss, searched_fields

if TYPE_CHECKING:
    from tune_dlrml.losses.custom.validation import Observation
    from tune_dlrml.system.own_code import Function, OwnFunction

Number = float | Range | Choice
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
FIRST = "pairs"
"""What the first argument of a user's function is called in messages; no parameter can have its name."""
_REFERENCE = re.compile(r"([^\W\d]\w*(\.[^\W\d]\w*)*|[^:]+\.py):[^\W\d]\w*")


def _reference(value: str) -> str:
    if _REFERENCE.fullmatch(value) is None:
        raise law(
            "package.module:function or path/to/file.py:function is needed, such as my_losses:soft_hinge, but got "
            f"{json.dumps(value)}"
        )
    return value


FunctionReference = Annotated[
    str, AfterValidator(_reference), WithJsonSchema({"type": "string", "pattern": rf"^{_REFERENCE.pattern}$"})
]


class LearnableParam(Frozen):
    """A parameter trained beside the policy, at its own constant learning rate and without weight decay."""

    learnable: Literal[True] = True
    """Says that it is trained."""
    init: Annotated[Number, Searchable(float)]
    """Where it starts."""
    learning_rate: Annotated[Number, Searchable(Annotated[float, Field(gt=0)])] = 1e-2
    """Its constant learning rate."""
    bounds: Annotated[tuple[Finite, Finite], Field(strict=False)] | None = None
    """It is low + (high - low) * sigmoid(theta); null is theta itself, free to wander."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        if unknown:
            raise law(f"a learnable parameter has {', '.join(cls.model_fields)}, but got {json.dumps(unknown[0])}")
        return value

    @model_validator(mode="after")
    def _starts_inside(self) -> Self:
        if self.bounds is None:
            return self
        low, high = self.bounds
        if low >= high:
            raise law(f"must be [low, high] with low < high, but got {[low, high]}", key="bounds")
        starts = self.init.extremes() if isinstance(self.init, (Range, Choice)) else [self.init]
        outside = [start for start in starts if not low < start < high]  # type: ignore[operator]
        if outside:
            raise law(f"a learnable parameter must start inside bounds={[low, high]}, but got {outside[0]}", key="init")
        return self


Scalar = bool | int | float | str
Param = Scalar | Range | Choice | LearnableParam
_Plain = Annotated[Scalar | Range | Choice, Searchable(Scalar)]
_ParamInFile = LearnableParam | _Plain
_PLAIN: TypeAdapter[Any] = TypeAdapter(_Plain)


def _param(value: Any) -> Any:
    if isinstance(value, LearnableParam):
        return value
    if isinstance(value, dict) and "learnable" in value:
        return LearnableParam.model_validate(value)
    plain = _PLAIN.validate_python(value)
    for given in plain.values if isinstance(plain, Choice) else [plain]:
        if is_like_a_number(given):
            raise law(f"a text that looks like a number is none, but got {json.dumps(given)}{NUMBER_REMEDY}")
    return plain


class CustomParams(Frozen):
    """Parameters of a user's function by their names: values, domains, and at most one that is learnt."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, PlainValidator(_param, json_schema_input_type=_ParamInFile)]] = Field(
        init=False
    )

    @model_validator(mode="after")
    def _laws(self) -> Self:
        for name in self.given():
            if not name.isidentifier() or keyword.iskeyword(name) or name == FIRST:
                raise law(
                    f"a parameter is called as a Python argument other than `{FIRST}`, but got {json.dumps(name)}"
                )
        learnt = [name for name, value in self.given().items() if isinstance(value, LearnableParam)]
        if len(learnt) > 1:
            raise law(f"one parameter can be learnt, but got {' and '.join(learnt)}", key=learnt[1])
        return self

    @model_serializer(mode="plain")
    def _as_given(self) -> dict[str, Any]:
        return {
            name: value.model_dump() if isinstance(value, LearnableParam) else as_yaml(value)
            for name, value in self.given().items()
        }

    def given(self) -> dict[str, Param]:
        """Every parameter by its name."""
        return dict(self.__pydantic_extra__ or {})

    def learnt(self) -> tuple[str, LearnableParam] | None:
        """The one that is learnt, with its name."""
        return next(((name, value) for name, value in self.given().items() if isinstance(value, LearnableParam)), None)

    def domains(self) -> dict[str, Range | Choice]:
        """What is searched, by dotted name."""
        found: dict[str, Range | Choice] = {}
        for name, value in self.given().items():
            own = {"": value}
            if isinstance(value, LearnableParam):
                own = {".init": value.init, ".learning_rate": value.learning_rate}
            found |= {name + key: field for key, field in own.items() if isinstance(field, (Range, Choice))}
        return found

    def strength_name(self) -> str | None:
        """What the parameter is called that scales the margin: `beta_kl` or else `beta`, where there is one."""
        return next((name for name in ("beta_kl", "beta") if name in self.given()), None)

    def strength(self) -> Param:
        """What scales the margin; 1 per nat without such a parameter."""
        name = self.strength_name()
        found = 1.0 if name is None else self.given()[name]
        return found.init if isinstance(found, LearnableParam) else found


class WrittenLoss(Loss):
    """A function of a `PairBatch` and of `params`, which is none of this project's."""

    kind: ClassVar[Kind | None] = None
    source: ClassVar[str | None] = None
    couples_batch: ClassVar[bool | None] = None
    placing: ClassVar[tuple[str, ...]] = ()
    trap_is_sought: ClassVar[bool] = True
    published: ClassVar[None] = None
    params: CustomParams = CustomParams()
    """Its arguments by name: values, domains, and at most one that is learnt."""

    def domains(self) -> dict[str, Range | Choice]:
        """The searched parameters, as params.<name>, with those of an SFT term."""
        return {f"params.{key}": domain for key, domain in self.params.domains().items()} | searched_fields(self)

    def learnt_rate(self) -> float | None:
        """That of the learnable parameter."""
        learnt = self.params.learnt()
        return None if learnt is None else float(learnt[1].learning_rate)  # type: ignore[arg-type]

    def learnt_metrics(self) -> tuple[str, ...]:
        """The learnable parameter, by its name."""
        learnt = self.params.learnt()
        return () if learnt is None else (f"params.{learnt[0]}",)

    @property
    def strength_field(self) -> str | None:
        """The parameter that scales the margin, where it is given."""
        name = self.params.strength_name()
        return None if name is None else f"params.{name}"

    @property
    def strength(self) -> Any:
        """What scales the margin, per nat: the parameter `beta_kl` or else `beta`; 1 without."""
        return self.params.strength()

    def loaded(self) -> "Function":
        """The function.

        Raises:
            InputError: There is none, or not the one that the loss is tied to.
        """
        raise NotImplementedError

    def module(self) -> str:
        """A Python module that defines the function, as text.

        Raises:
            InputError: See `loaded`.
        """
        raise NotImplementedError

    def observations(self) -> "list[Observation]":
        """What is so about the function, at one value of each parameter.

        Raises:
            InputError: It cannot be trained with.
        """
        from tune_dlrml.losses.custom.validation import validate_written

        return validate_written(self)


class CustomLoss(WrittenLoss):
    """Your own: a function of a `PairBatch` and of `params` that returns the loss of each pair."""

    written: ClassVar[str] = "function"
    name: Literal["custom"] = "custom"
    function: FunctionReference
    """package.module:function, or path/to/file.py:function; importable where the search starts and on its workers; the
    folder that the search is started in counts."""
    file_sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", exclude_if=lambda value: value is None)] = None
    """Of the function's file: the search fills it in, and can then be resumed only with that file."""

    def form(self) -> str:
        """The name of the function."""
        return self.function.rpartition(":")[2]

    def tied(self) -> Self:
        """With the hash of the file that the function is in.

        Raises:
            InputError: There is no such file.
        """
        return self.model_copy(update={"file_sha256": self._own().sha256})

    def loaded(self) -> "Function":
        """The function, as its file is now."""
        own = self._own()
        if self.file_sha256 is not None and own.sha256 != self.file_sha256:
            raise InputError(
                f"{self.function}: its file must be the one that the search started with, sha256 {self.file_sha256}, "
                f"but {own.file} has {own.sha256}; restore that file, or start a search with another name"
            )
        return own.call

    def module(self) -> str:
        """The file of the function."""
        self.loaded()
        return self._own().file.read_text(encoding="utf-8")

    def _own(self) -> "OwnFunction":
        from tune_dlrml.system.own_code import load_function

        return load_function(self.function)
