"""Search domains of a parameter, and the field type that takes a value or a domain of values."""

import difflib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

Scalar = float | int | str | bool | None


class Frozen(BaseModel):
    """A value that was checked once when it was read: no unknown keys, no later change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def flat(self) -> dict[str, Any]:
        """The plain values by dotted key; what is null is left out."""
        return flat(self.model_dump(mode="json"))


_LIKE_A_NUMBER = re.compile(r"[-+−–]?[.,]?\d[\d.,:_'’ /eExXoObB+−–-]*[%a-zA-Z]?")

NUMBER_REMEDY = "; a number is written as 40 or 5e-7: no quotes, leading zero, colon, comma or unit"


def is_like_a_number(value: Any) -> bool:
    """Whether a value is a text that a person, or another YAML reader, may read as a number: 010, 1:30, −5, 10k."""
    return isinstance(value, str) and _LIKE_A_NUMBER.fullmatch(value.strip()) is not None


def remedy(kind: str, given: Any) -> str:
    """Hint what to write instead of a value of the wrong type; empty where the message of its type is enough.

    Args:
        kind: The type of pydantic's error.
        given: The value.
    """
    if isinstance(given, str) and given.lower() in ("none", "nil"):
        return "; nothing is written as null"
    if kind in ("int_type", "float_type") and is_like_a_number(given):
        return NUMBER_REMEDY
    if kind == "int_type" and isinstance(given, float) and given.is_integer() and abs(given) < 1e15:
        return f"; write {given:.0f}"
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return "; put it in quotes if it is a text"
    return ""


def needed(errors: Sequence[ErrorDetails], *others: str) -> str:
    """What a value should be: the first error's message, then what else the errors of a union's other types allow.

    Args:
        errors: Of one value, at least one.
        others: Further alternatives, such as `null`.
    """
    first, *rest = (error["msg"].replace("a valid tuple", "a valid list") for error in errors)  # YAML's word
    beside = (text.removeprefix("Input should be ") for text in rest)
    return either([f"{first[0].lower()}{first[1:]}", *beside, *others])


def either(alternatives: Sequence[str]) -> str:
    """One of them: `a, b or c`."""
    *most, last = alternatives
    return f"{', '.join(most)} or {last}" if most else last


def hint(errors: Sequence[ErrorDetails], given: Any) -> str:
    """Hint what to write instead of a value with these errors, those of a union's types; may be empty."""
    found = next(filter(None, (remedy(error["type"], given) for error in errors)), "")
    if found or not any(error["type"] == "bool_type" for error in errors):
        return found
    words = [error["ctx"]["expected"].replace("'", "") for error in errors if error["type"] == "literal_error"]
    return f"; write {either([*words, 'true', 'false'])}"


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted keys, sections of a list by their place; what is None is left out."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if value is not None:
            inner = dict(enumerate(value)) if _is_of_sections(value) else value
            found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": value}
    return found


def _is_of_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def overlay(nested: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """A copy of `nested` with the dotted keys of `point` set; a place in a list of sections is a key."""
    result = dict(nested)
    for key, value in point.items():
        head, _, rest = key.partition(".")
        inner = result.get(head)
        if not rest:
            result[head] = value
        elif isinstance(inner, list) and _is_of_sections(inner):
            sections = overlay({str(at): each for at, each in enumerate(inner)}, {rest: value})
            result[head] = list(sections.values())
        else:
            result[head] = overlay(inner if isinstance(inner, dict) else {}, {rest: value})
    return result


class Range(Frozen):
    """An interval [low, high] of numbers, sampled uniformly or uniformly in the logarithm."""

    kind: Literal["uniform", "log_uniform", "int_uniform", "log_int_uniform"]
    low: float | int
    high: float | int
    num: int | None = None

    @property
    def log(self) -> bool:
        """Whether the sampler draws uniformly in the logarithm."""
        return self.kind.startswith("log")

    @property
    def integer(self) -> bool:
        """Whether only whole numbers are drawn."""
        return "int" in self.kind

    def extremes(self) -> list[Scalar]:
        """Both ends, as the sampler draws them: what is legal for both is legal between them."""
        return [self.low, self.high] if self.integer else [float(self.low), float(self.high)]

    def grid(self) -> list[Scalar]:
        """The `num` points of the grid sampler, evenly spaced on the domain's own scale."""
        if self.num is None:
            raise ValueError("a range needs `num` (number of points) to be searched with sampler: grid")
        if self.num == 1:
            return [self.low]
        forward, back = (math.log, math.exp) if self.log else (float, float)
        first, last = forward(self.low), forward(self.high)
        inner = [back(first + (last - first) * i / (self.num - 1)) for i in range(1, self.num - 1)]
        points = [self.low, *inner, self.high]
        return list(dict.fromkeys(round(p) for p in points)) if self.integer else list(points)

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int if self.integer else (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def as_yaml(self) -> dict[str, Any]:
        """The mapping that the search-space file holds."""
        return {self.kind: [self.low, self.high]} | ({} if self.num is None else {"num": self.num})


class Choice(Frozen):
    """A finite set of values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Scalar, ...]

    def extremes(self) -> list[Scalar]:
        """Every value, since they have no order."""
        return list(self.values)

    def grid(self) -> list[Scalar]:
        """Every value: the grid of a choice is the choice itself."""
        return list(self.values)

    def __contains__(self, value: object) -> bool:
        return any(value == own and isinstance(value, bool) == isinstance(own, bool) for own in self.values)

    def as_yaml(self) -> dict[str, Any]:
        """The mapping that the search-space file holds."""
        return {"choice": list(self.values)}


Domain = Range | Choice


def middle_of(domain: Domain) -> Scalar:
    """The middle of a range on its own scale, or the first choice."""
    return domain.model_copy(update={"num": 3}).grid()[1] if isinstance(domain, Range) else domain.values[0]


KINDS = ("uniform", "log_uniform", "int_uniform", "log_int_uniform", "choice")


def parse_domain(mapping: dict[str, Any]) -> Domain:
    """The domain of a mapping such as {log_uniform: [0.01, 0.5]}.

    Raises:
        PydanticCustomError: An unknown kind, bounds that are not two finite numbers with low < high, a logarithm of
            zero, a fraction in an int domain, or an empty or repeated choice.
    """
    keys = [key for key in mapping if key != "num"]
    if len(keys) != 1 or keys[0] not in KINDS:
        hint = difflib.get_close_matches(str(keys[0]), KINDS, n=1) if len(keys) == 1 else []
        suggestion = f"; did you mean {hint[0]}?" if hint else ""
        raise law(f"a domain is one of {', '.join(KINDS)}, but got {_shown(mapping)}{suggestion}")
    kind, body = keys[0], mapping[keys[0]]
    if kind == "choice":
        return _parse_choice(body, mapping)
    return _parse_range(kind, body, mapping.get("num"))


def _parse_choice(body: Any, mapping: dict[str, Any]) -> Choice:
    if "num" in mapping:
        raise law("a choice takes no `num`: all its values are the grid")
    if not isinstance(body, list) or not body:
        raise law(f"choice takes a list of at least one value, but got {_shown(body)}")
    if not all(value is None or isinstance(value, (bool, int, float, str)) for value in body):
        raise law(f"choice takes numbers, strings and booleans, but got {_shown(body)}")
    if len({(isinstance(value, bool), value) for value in body}) != len(body):
        raise law(f"the values of a choice must differ, but got {_shown(body)}")
    return Choice(values=tuple(body))


def _parse_range(kind: Any, body: Any, num: Any) -> Range:
    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

    if not isinstance(body, list) or len(body) != 2 or not all(map(number, body)):
        hints = [remedy("float_type", bound) for bound in body] if isinstance(body, list) else []
        raise law(f"{kind} takes [low, high], two finite numbers, but got {_shown(body)}{max(hints, default='')}")
    low, high = body
    if low >= high:
        raise law(f"`low < high` must hold, but got low={low}, high={high}")
    if kind.startswith("log") and low <= 0:
        raise law(f"{kind} needs low > 0 (the logarithm of {low} does not exist)")
    if "int" in kind and not all(isinstance(bound, int) for bound in body):
        raise law(f"{kind} takes whole numbers, but got {_shown(body)}")
    if num is not None and (not isinstance(num, int) or isinstance(num, bool) or num < 2):
        raise law(f"`num` is the number of grid points, at least 2, but got {_shown(num)}")
    return Range(kind=kind, low=low, high=high, num=num)


class Searchable:
    """Metadata of a field whose value is an `inner` or a domain, every value of which is a legal `inner`.

    With `domain_only`, the value must be a domain.
    """

    def __init__(self, inner: Any, *, domain_only: bool = False) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(inner, config=ConfigDict(allow_inf_nan=False))
        self._domain_only = domain_only

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(as_yaml)
        )

    def __get_pydantic_json_schema__(self, _: Any, __: GetJsonSchemaHandler) -> dict[str, Any]:
        inner = self._adapter.json_schema()
        domain = _domain_schema(inner)
        return domain if self._domain_only else {"anyOf": [inner, domain]}

    def _validate(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = parse_domain(value)
        if isinstance(value, (Range, Choice)):
            for extreme in value.extremes():
                self._check(extreme, given=value)
            return value
        if self._domain_only:
            raise _unfit(["input should be a domain"], value, "; a single value belongs into `training`")
        return self._check(value, given=value)

    def _check(self, value: Any, *, given: Any) -> Any:
        try:
            return self._adapter.validate_python(value, strict=True)
        except ValidationError as error:
            errors = error.errors()
            hinted = hint(errors, value)
            if errors[0]["type"] == "int_type" and isinstance(given, Range):
                hinted = " (int_uniform and log_int_uniform draw whole numbers)"
            others = ["a domain"] if given is value and _is_of_wrong_type(errors) else []
            raise _unfit([needed(errors), *others], as_yaml(given), hinted) from None


def _is_of_wrong_type(errors: Sequence[ErrorDetails]) -> bool:
    return all(error["type"].endswith("_type") or error["type"] == "literal_error" for error in errors)


def _domain_schema(inner: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of the mappings that `parse_domain` takes for a field whose values have the schema `inner`."""
    number = {key: value for key, value in inner.items() if key != "anyOf"}
    kinds = tuple(kind for kind in KINDS[:-1] if "int" in kind) if inner.get("type") == "integer" else KINDS[:-1]
    if inner.get("type") not in ("integer", "number") and "anyOf" not in inner:
        kinds = ()
    ends = {
        kind: {
            "type": "array",
            "items": number
            | {"type": "integer" if "int" in kind else "number"}
            | ({"exclusiveMinimum": 0} if "log" in kind else {}),
            "minItems": 2,
            "maxItems": 2,
        }
        for kind in kinds
    }
    choice = {"choice": {"type": "array", "items": inner, "minItems": 1, "uniqueItems": True}}
    points = {"num": {"type": "integer", "minimum": 2, "description": "Points of a grid."}} if kinds else {}
    one_of = [{"required": [kind]} for kind in kinds] + [{"required": ["choice"], "not": {"required": ["num"]}}]
    return {"type": "object", "properties": ends | choice | points, "additionalProperties": False, "oneOf": one_of}


def as_yaml(value: Any) -> Any:
    """A field's value as the search-space file holds it."""
    return value.as_yaml() if isinstance(value, (Range, Choice)) else value


def law(message: str, *, key: str = "") -> PydanticCustomError:
    """The error of a value that breaks a law; `key` is dotted, from the section whose validator raises it."""
    return PydanticCustomError("law", "{message}", {"message": message, "key": key})


def _unfit(expected: Sequence[str], value: Any, hinted: str) -> PydanticCustomError:
    """The law of a value that is none of `expected`, to which a message adds what else its key takes."""
    got = f"but got {_shown(value)}{hinted}"
    parts = {"message": f"{either(expected)}, {got}", "key": "", "expected": expected, "got": got}
    return PydanticCustomError("law", "{message}", parts)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:200]
