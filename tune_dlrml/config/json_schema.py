"""The JSON schema of a search-space file, for editors: keys, types, bounds, defaults and what each key means.

Laws across several keys, such as `grace_period <= max_steps`, are no part of it; `tune-dlrml doctor` checks those too.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from tune_dlrml.config.lora import LoraSettings, LoraSpace
from tune_dlrml.config.schema import SearchConfig, TrainingSpace
from tune_dlrml.config.training import TrainingConfig
from tune_dlrml.domains import Frozen

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SAME_MEANING: dict[type[Frozen], type[Frozen]] = {TrainingSpace: TrainingConfig, LoraSpace: LoraSettings}
"""Sections whose keys have the meaning of another section's keys."""


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema, as one JSON document."""
    document = SearchConfig.model_json_schema(schema_generator=_WithoutTitles)
    classes = {section.__name__: section for section in _sections(Frozen)}
    for name, schema in (*document["$defs"].items(), (SearchConfig.__name__, document)):
        schema["description"] = inspect.getdoc(classes[name])
        for key, meaning in meanings(classes[name]).items():
            schema["properties"][key]["description"] = meaning
    for reference in document["$defs"]["SpaceConfig"]["properties"]["losses"]["items"]["oneOf"]:
        loss = document["$defs"][reference["$ref"].rpartition("/")[2]]
        loss["required"] = ["name", *(key for key in loss.get("required", ()) if key != "name")]
    return {"$schema": DIALECT} | document | {"title": "A search of tune_dlrml"}


def meanings(section: type[Frozen]) -> dict[str, str]:
    """Meaning of each key of a section: the docstring after it in the class, or in the class of the same meaning.

    Read from the source only when a schema is needed: pydantic would read it whenever a command starts.
    """
    found = {} if section not in SAME_MEANING else meanings(SAME_MEANING[section])
    for base in reversed(section.__mro__[: section.__mro__.index(Frozen)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(inspect.cleandoc(ast.literal_eval(text.value)).split())
    return {key: found[key] for key in section.model_fields if key in found}


def _sections(section: type[Frozen]) -> Iterator[type[Frozen]]:
    for own in section.__subclasses__():
        yield own
        yield from _sections(own)
