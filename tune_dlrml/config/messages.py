"""Error messages for a search-space file: place, key, value and what is allowed."""

import difflib
import json
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tune_dlrml.config.schema import SearchConfig
from tune_dlrml.domains import Choice, Range, either, hint, needed
from tune_dlrml.losses.registry import LOSSES, NOT_HERE


def moved(places: dict[str, str], key: str, place: str) -> dict[str, str]:
    """The places after `key` and everything below it was given again at `place`, with the sections around it."""
    inside = (f"{key}.", f"{key}[")
    kept = {other: old for other, old in places.items() if not other.startswith(inside)}
    parts = key.split(".")
    sections = {".".join(parts[:depth]): place for depth in range(1, len(parts))}
    return sections | kept | {key: place}


def message_of(error: ValidationError, document: dict[str, Any], source: str, places: dict[str, str]) -> str:
    """The first ten errors, a line each; the errors of a union, of which every type has its own, are one.

    Args:
        error: The errors in `document`.
        document: The mapping of plain values that was read.
        source: Name of the document, for errors without a known place.
        places: Where each dotted key was given.
    """
    at: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        at.setdefault(_path_in(document, detail["loc"]), []).append(detail)
    messages = [_one_message(path, details, source, places) for path, details in at.items()]
    return "\n".join(messages[:10])


def _one_message(
    path: tuple[int | str, ...], details: Sequence[ErrorDetails], source: str, places: dict[str, str]
) -> str:
    detail = details[0]
    given, kind, others = detail["input"], detail["type"], _others(path, detail["loc"], detail["type"])
    key = _dotted(path)
    if kind == "law":
        key = ".".join(part for part in (key, detail["ctx"]["key"]) if part)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key, given = f"{key}.name", given.get("name")
    where = _place(key, places) or source
    prefix = where if not key or where == f"--set {key}" else f"{where}: {key}"
    if kind == "law":
        ctx = detail["ctx"]
        if "expected" in ctx:
            return f"{prefix}: {either([*ctx['expected'], *others])}, {ctx['got']}"
        return f"{prefix}: {detail['msg']}"
    if kind == "extra_forbidden":
        name = str(path[-1])
        unseen = "" if name.isascii() else f"; its letters are {json.dumps(name)}"
        return f"{prefix}: is not a key of this section ({nearest(name, _legal_keys(detail['loc']))}){unseen}"
    if kind == "missing":
        return f"{prefix}: must be given, but is missing"
    shown = json.dumps(given, default=str)[:200]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"{prefix}: {legal_losses(str(given))}, but got {shown}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{prefix}: {either(['a mapping of keys', *others])} is needed, but got {shown}"
    return f"{prefix}: {needed(details, *others)}, but got {shown}{hint(details, given)}"


def _place(key: str, places: dict[str, str]) -> str | None:
    """Where a key was given or, failing that, the section around it."""
    while key:
        if key in places:
            return places[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return None


def _path_in(document: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Location of an error without the parts that pydantic adds for unions and validators."""
    path: list[int | str] = []
    for index, part in enumerate(loc):
        inside = (isinstance(document, dict) and part in document) or (
            isinstance(document, list) and isinstance(part, int) and part < len(document)
        )
        if inside:
            document = document[part]
            path.append(part)
        elif isinstance(document, dict) and index == len(loc) - 1 and part not in LOSSES:
            path.append(part)
    return tuple(path)


def _dotted(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _legal_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the section that `loc` lies in."""
    return list(_section_at(loc[:-1]).model_fields)


def _others(path: tuple[int | str, ...], loc: tuple[int | str, ...], kind: str) -> list[str]:
    """What the key at a path takes besides what the errors of its value tell: null, or a section beside a domain."""
    if not path or isinstance(path[-1], int):
        return []
    key_at = len(loc) - 1 - loc[::-1].index(path[-1])
    field = _section_at(loc[:key_at]).model_fields.get(path[-1])
    types = () if field is None else get_args(field.annotation)
    beside = kind == "law" and any(_section(own) not in (None, Range, Choice) for own in types)
    return ["a mapping of keys"] * beside + ["null"] * (type(None) in types)


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    model: Any = SearchConfig
    for part in loc:
        if isinstance(part, int):
            continue
        if part in LOSSES:
            model = LOSSES[part].config
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    found: type[BaseModel] = model
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_section(inner) for inner in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def legal_losses(name: str) -> str:
    """What a name that no loss has could have been, or why that loss is not here."""
    if name in NOT_HERE:
        return f"{name} is not here, because {NOT_HERE[name]}; allowed: {', '.join(LOSSES)}"
    return nearest(name, list(LOSSES))


def nearest(word: str, legal: list[str]) -> str:
    """The legal words, after the one that was probably meant."""
    close = difflib.get_close_matches(word, legal, n=1)
    allowed = f"allowed: {', '.join(legal)}"
    return f"did you mean {close[0]}? {allowed}" if close else allowed
