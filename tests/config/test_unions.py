"""A wrong value of a key that takes values of several types gets one message, which names all of them."""

import jsonschema
import pytest

from tune_dlrml.config import parse_config
from tune_dlrml.config.json_schema import json_schema
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import LOSSES

SCHEMA = json_schema()
WRONG = ("?", True, 1.5, ["?"], {"?": 1})
WORDS = {
    "null": ("null",),
    "boolean": ("true or false",),
    "integer": ("integer", "whole number"),
    "number": ("number",),
    "string": ("string", "regular expression"),
    "array": ("list",),
    "object": ("domain", "mapping"),
}
"""How a message may call a type of JSON."""


def types_of(schema):
    """The schemas of which a value of a key must fit one."""
    if "$ref" in schema:
        return types_of(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    return [found for inner in schema["anyOf"] for found in types_of(inner)] if "anyOf" in schema else [schema]


def is_domain(schema):
    return "choice" in schema.get("properties", {})


def unions(section, place=()):
    """Place and types of all keys below a section that take several."""
    for key, schema in section.get("properties", {}).items():
        types = types_of(schema)
        if len(types) > 1:
            yield (*place, key), types
        for inner in types:
            if not is_domain(inner):
                yield from unions(inner, (*place, key))
    for name, loss in section.get("discriminator", {}).get("mapping", {}).items():
        for inner in types_of({"$ref": loss}):
            yield from unions(inner, (*place, name))
    if "items" in section:
        for inner in types_of(section["items"]):
            yield from unions(inner, (*place, 0))


UNIONS = {place: types for place, types in unions(SCHEMA) if "seeds_losses" not in place and "loss" not in place}
"""The losses are in `space.losses`; elsewhere they are the same."""


def holding(place, value):
    """A document with a value at a place."""
    if not place:
        return value
    part, inner = place[0], holding(place[1:], value)
    if part == 0:
        return [inner]
    if part in LOSSES:
        return {"name": part} | inner
    return {part: {"learnable": True} | inner if part == "beta_mix" and place[1:] else inner}


def is_of(schema, value):
    of_type = {key: schema[key] for key in ("type", "const", "enum") if key in schema}
    return jsonschema.Draft202012Validator(of_type).is_valid(value)


def test_the_keys_that_take_auto_are_among_them():
    auto = {"const": "auto", "type": "string"}
    keys = {".".join(map(str, place)) for place, types in UNIONS.items() if auto in types}
    assert keys == {"training.bf16", "training.gradient_checkpointing", "training.shared_prompt", "resources.fsdp"}


@pytest.mark.parametrize("place", UNIONS, ids=lambda place: ".".join(map(str, place)))
def test_a_value_of_no_type_of_a_key_is_answered_by_all_of_them(place):
    types = UNIONS[place]
    wrong = next(value for value in WRONG if not any(is_of(schema, value) for schema in types))
    with pytest.raises(InputError) as refused:
        parse_config(holding(place, wrong), source="search.yaml")
    (message,) = [line for line in str(refused.value).splitlines() if f"{place[-1]}: " in line]
    for schema in types:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        assert all(str(value) in message for value in values)
        assert values or any(word in message for word in WORDS[schema["type"]])
