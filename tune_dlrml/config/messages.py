"""Error messages for a search-space file: place, key, value and what is allowed."""

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tune_dlrml.config.schema import SearchConfig
from tune_dlrml.domains import remedy
from tune_dlrml.losses.registry import LOSSES, NOT_HERE


def moved(places: dict[str, str], key: str, place: str) -> dict[str, str]:
    """The places after `key` and everything below it was given again at `place`, with the sections around it."""
    inside = (f"{key}.", f"{key}[")
    kept = {other: old for other, old in places.items() if not other.startswith(inside)}
    parts = key.split(".")
    sections = {".".join(parts[:depth]): place for depth in range(1, len(parts))}
    return sections | kept | {key: place}


def message_of(error: ValidationError, document: dict[str, Any], source: str, places: dict[str, str]) -> str:
    """The first ten errors, a line each.

    Args:
        error: The errors in `document`.
        document: The mapping of plain values that was read.
        source: Name of the document, for errors without a known place.
        places: Where each dotted key was given.
    """
    messages = list(dict.fromkeys(_one_message(detail, document, source, places) for detail in error.errors()))
    return "\n".join(messages[:10])


def _one_message(detail: ErrorDetails, document: dict[str, Any], source: str, places: dict[str, str]) -> str:
    path, given, kind = _path_in(document, detail["loc"]), detail["input"], detail["type"]
    key = _dotted(path)
    if kind == "law":
        key = ".".join(part for part in (key, detail["ctx"]["key"]) if part)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key, given = f"{key}.name", given.get("name")
    where = _place(key, places) or source
    prefix = where if not key or where == f"--set {key}" else f"{where}: {key}"
    if kind == "law":
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
    if kind in ("model_type", "model_attributes_type"):
        return f"{prefix}: a mapping of keys is needed, but got {shown}"
    return f"{prefix}: {detail['msg'][0].lower()}{detail['msg'][1:]}, but got {shown}{remedy(kind, given)}"


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
    model: Any = SearchConfig
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        if part in LOSSES:
            model = LOSSES[part].config
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    return list(model.model_fields)


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
