"""From a YAML file and `--set` overrides to a SearchConfig, or to one message that names file, line, key and value."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tune_dlrml.config.schema import SearchConfig, overlay
from tune_dlrml.errors import InputError

SIZE_LIMIT = 1_000_000
"""Bytes of a search-space file; a real one has a few thousand."""
NODE_LIMIT = 20_000
"""Values of a search-space file with its aliases written out, so that nested aliases cannot fill the memory."""


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which 5e-7 is a number, dates stay text, and explicit tags are refused."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


def load_config(path: Path, overrides: list[str] | None = None, **changes: Any) -> SearchConfig:
    """The search that a file describes.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` as given to `--set`; the value is read as YAML.
        **changes: Top-level keys set by other options of the command line.

    Raises:
        InputError: Naming file, line, key, value and what is allowed.
    """
    document, lines = _read(path)
    for override in overrides or []:
        document = _override(document, override)
    return parse_config({**document, **changes}, source=str(path), lines=lines)


def parse_config(document: dict[str, Any], *, source: str, lines: dict[str, int] | None = None) -> SearchConfig:
    """The search that a mapping of plain values describes; `source` and `lines` serve the error message."""
    try:
        return SearchConfig.model_validate(document)
    except ValidationError as error:
        raise InputError(_message(error, document, source, lines or {})) from None


def to_yaml(config: SearchConfig) -> str:
    """The resolved search, every key written out."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, width=120)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise InputError(f"{path}: a search-space file has at most {SIZE_LIMIT} bytes, but this one is larger")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a search-space file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path}: must hold a mapping of keys such as name, model, dataset, training, space")
        lines = dict(_check(root, str(path)))
        document = _StrictLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(_yaml_message(path, error)) from None
    return document, lines


def _check(root: yaml.Node, source: str) -> Iterator[tuple[str, int]]:
    """Yield the line of every dotted key; refuse repeated keys, tags, and aliases that grow out of bounds."""
    visited = 0

    def walk(node: yaml.Node, key: str) -> Iterator[tuple[str, int]]:
        nonlocal visited
        visited += 1
        line = node.start_mark.line + 1
        if visited > NODE_LIMIT:
            raise InputError(f"{source}:{line}: more than {NODE_LIMIT} values once the aliases are written out")
        if node.tag not in _PLAIN_TAGS:
            raise InputError(f"{source}:{line}: {key}: a plain value is needed, but got the YAML tag {node.tag}")
        yield key, line
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for name, value in node.value:
                inner = f"{key}.{name.value}" if key else str(name.value)
                if not isinstance(name, yaml.ScalarNode) or name.value in seen:
                    raise InputError(f"{source}:{name.start_mark.line + 1}: {inner}: the key is given twice; keep one")
                seen.add(name.value)
                yield inner, name.start_mark.line + 1
                yield from walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from walk(value, f"{key}[{index}]")

    yield from walk(root, "")


def _yaml_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return f"{where}: is not YAML: {getattr(error, 'problem', None) or error}"


def _override(document: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override}: must be dotted.key=value, such as search.num_trials=8")
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        if root is not None:
            list(_check(root, f"--set {key}"))
        value = None if root is None else _StrictLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not YAML: {error}") from None
    return overlay(document, {key.strip(): value})


def _message(error: ValidationError, document: dict[str, Any], source: str, lines: dict[str, int]) -> str:
    messages = list(dict.fromkeys(_one_message(detail, document, source, lines) for detail in error.errors()))
    return "\n".join(messages[:10])


def _one_message(detail: ErrorDetails, document: dict[str, Any], source: str, lines: dict[str, int]) -> str:
    path = _path_in(document, detail["loc"])
    key = _dotted(path)
    line = lines.get(key) or lines.get(_dotted(path[:-1]))
    where = f"{source}:{line}" if line and key else source
    prefix = f"{where}: {key}" if key else where
    given, kind = detail["input"], detail["type"]
    if kind == "extra_forbidden":
        return f"{prefix}: is no key of this section ({_nearest(str(path[-1]), _legal_keys(detail['loc'], document))})"
    if kind == "missing":
        return f"{prefix}: must be given, but is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = given.get("name") if isinstance(given, dict) else given
        return f"{prefix}.name: {_nearest(str(name), _loss_names())}, but got {json.dumps(name, default=str)}"
    if kind in ("domain", "value_error"):
        return f"{prefix}: {detail['msg'].removeprefix('Value error, ')}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{prefix}: {message}, but got {json.dumps(given, default=str)[:200]}"


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
        elif isinstance(document, dict) and index == len(loc) - 1 and part not in _loss_names():
            path.append(part)
    return tuple(path)


def _dotted(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _legal_keys(loc: tuple[int | str, ...], document: Any) -> list[str]:
    """Keys of the section that `loc` lies in."""
    model: Any = SearchConfig
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        if part in _loss_names():
            model = next(loss for loss in _losses() if loss.model_fields["name"].default == part)
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _section(model.model_fields[part].annotation) or model
    keys = list(model.model_fields)
    return [key for key in keys if key != "learnable"]


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_section(inner) for inner in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _losses() -> list[type[BaseModel]]:
    union = get_args(get_args(SearchConfig.model_fields["space"].annotation.model_fields["losses"].annotation)[0])[0]  # type: ignore[union-attr]
    return list(get_args(union))


def _loss_names() -> list[str]:
    return [loss.model_fields["name"].default for loss in _losses()]


def _nearest(word: str, legal: list[str]) -> str:
    close = difflib.get_close_matches(word, legal, n=1)
    allowed = f"allowed: {', '.join(legal)}"
    return f"did you mean {close[0]}? {allowed}" if close else allowed
