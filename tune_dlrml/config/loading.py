"""From a YAML file and `--set` overrides to a SearchConfig, or to one message that names file, line, key and value."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tune_dlrml.config.domains import overlay
from tune_dlrml.config.messages import message_of, moved
from tune_dlrml.config.schema import SearchConfig
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

_KEY_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"}


def load_config(path: Path, overrides: list[str] | None = None, **changes: Any) -> SearchConfig:
    """The search that a file describes.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` as given to `--set`; the value is read as YAML.
        **changes: Top-level keys set by other options of the command line, each by the option of its name.

    Raises:
        InputError: Naming file and line (or the option), key, value and what is allowed.
    """
    document, places = _read(path)
    for override in overrides or []:
        key, value = parse_override(override, document)
        document, places = overlay(document, {key: value}), moved(places, key, f"--set {key}")
    for key, value in changes.items():
        document, places = {**document, key: value}, moved(places, key, f"--{key}")
    return parse_config(document, source=str(path), places=places)


def parse_config(document: dict[str, Any], *, source: str, places: dict[str, str] | None = None) -> SearchConfig:
    """The search that a mapping of plain values describes.

    Args:
        document: The mapping.
        source: What the message of a mistake names where no place is known.
        places: Where each dotted key was given, such as `search.yaml:12`.
    """
    try:
        return SearchConfig.model_validate(document)
    except ValidationError as error:
        raise InputError(message_of(error, document, source, places or {})) from None


def to_yaml(config: SearchConfig) -> str:
    """The resolved search, every key written out."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, width=120)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        # Opening a pipe would wait for ever, and a device has no size that says when to stop.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: a search-space file must be a file, but this is a pipe, a socket or a device")
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise InputError(f"{path}: a search-space file has at most {SIZE_LIMIT} bytes, but this one is larger")
        text = content.decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a search-space file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    document, lines = _parse(text, str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold a mapping of keys such as name, model, dataset, training, space")
    return document, {key: f"{path}:{line}" for key, line in lines.items()}


def _parse(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML text and the line of each of its dotted keys."""
    try:
        root = yaml.compose(text, Loader=_StrictLoader)
        if root is None:
            return None, {}
        lines = dict(_check(root, source))
        return _StrictLoader("").construct_document(root), lines
    except yaml.YAMLError as error:
        raise InputError(_yaml_message(source, error)) from None
    except RecursionError:
        raise InputError(f"{source}: is nested too deeply, or without end; a real file has five levels") from None


def _check(root: yaml.Node, source: str) -> Iterator[tuple[str, int]]:
    """Yield the line of every dotted key; refuse repeated keys, tags, and aliases that grow out of bounds."""
    loader = _StrictLoader("")
    visited = 0

    def walk(node: yaml.Node, key: str) -> Iterator[tuple[str, int]]:
        nonlocal visited
        visited += 1
        line = node.start_mark.line + 1
        if visited > NODE_LIMIT:
            raise InputError(f"{source}:{line}: more than {NODE_LIMIT} values once the aliases are written out")
        if node.tag not in _PLAIN_TAGS or node.tag != _plain_tag(loader, node):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise InputError(f"{source}:{line}: {key or 'value'}: a plain value is needed, but got the YAML tag {tag}")
        if isinstance(node, yaml.MappingNode):
            yield from walk_mapping(node, key)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield f"{key}[{index}]", value.start_mark.line + 1
                yield from walk(value, f"{key}[{index}]")
        else:
            try:
                loader.construct_object(node)
            except ValueError:
                raise InputError(f"{source}:{line}: {key or 'value'}: is no number: {node.value[:40]}") from None

    def walk_mapping(node: yaml.MappingNode, key: str) -> Iterator[tuple[str, int]]:
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.tag not in _KEY_TAGS or name.tag != _plain_tag(loader, name):
                shown = name.value if isinstance(name, yaml.ScalarNode) else f"a {name.id}"
                raise InputError(f"{source}:{line}: {key or 'top level'}: a key must be text, but got {shown}")
            inner = f"{key}.{name.value}" if key else name.value
            if name.value in seen:
                raise InputError(f"{source}:{line}: {inner}: the key is given twice; keep one")
            seen.add(name.value)
            yield inner, line
            yield from walk(value, inner)

    yield from walk(root, "")


def _plain_tag(loader: _StrictLoader, node: yaml.Node) -> Any:
    """The tag that the node's text has by itself, without one written in front of it."""
    implicit: Any = True
    if isinstance(node, yaml.ScalarNode):
        implicit = (node.style is None, node.style is not None)
    return loader.resolve(type(node), node.value, implicit)  # type: ignore[no-untyped-call]


def _yaml_message(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{source}:{mark.line + 1}" if mark else source
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{where}: is not YAML: {problem}"


def parse_override(override: str, document: dict[str, Any]) -> tuple[str, Any]:
    """Key and value of a `dotted.key=value`.

    Raises:
        InputError: It is none, or a section that it names is a plain value in `document`.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {override[:200]}: must be dotted.key=value, such as search.num_trials=8")
    section: Any = document
    for depth, part in enumerate(parts[:-1], start=1):
        section = section.get(part)
        if section is None:
            break
        if not isinstance(section, dict):
            outer, shown = ".".join(parts[:depth]), json.dumps(section)[:200]
            raise InputError(f"--set {key}: {outer} must be a mapping to have keys of its own, but it is {shown}")
    return key, _parse(text, f"--set {key}")[0]
