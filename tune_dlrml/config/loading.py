"""From a YAML file and `--set` overrides to a SearchConfig, or to one message that names file, line, key and value."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_dlrml import builtin
from tune_dlrml.config.messages import message_of, moved
from tune_dlrml.config.schema import SearchConfig
from tune_dlrml.config.yaml_text import Place, as_yaml_text, parse_yaml
from tune_dlrml.domains import overlay
from tune_dlrml.errors import InputError

SIZE_LIMIT = 1_000_000
"""Bytes of a search-space file; a real one has a few thousand."""
_TAKE_A_SPLIT = re.compile(r"(dataset\.(train|eval|test)|evaluation\.questions)(\[\d+\])?")
_SPLIT_AS_COMMENT = re.compile(r"#([\w.]+)?(\[.*)?(\s+#.*)?")


def load_config(path: Path, overrides: list[str] | None = None, **changes: Any) -> SearchConfig:
    """The search that a file describes.

    Args:
        path: A YAML file, or `builtin:<name>`.
        overrides: `dotted.key=value` as given to `--set`; the value is read as YAML.
        **changes: Top-level keys set by other options of the command line, each by the option of its name.

    Raises:
        InputError: Naming file and line (or the option), key, value and what is allowed.
    """
    if str(path).startswith(builtin.PREFIX):
        path = builtin.search_space(str(path).removeprefix(builtin.PREFIX))
    document, places = _read(path)
    for override in overrides or []:
        key, value = parse_override(override, document)
        document, places = overlay(document, {key: value}), moved(places, key, f"--set {key}")
    for key, value in changes.items():
        document, places = {**document, key: value}, moved(places, key, f"--{key}")
    return parse_config(document, source=str(path), places=places)


def parse_config(document: dict[str, Any], *, source: str, places: dict[str, str] | None = None) -> SearchConfig:
    """The search that a mapping of plain values describes, in the precision that it has on this machine.

    Args:
        document: The mapping.
        source: Name of the document, for errors without a known place.
        places: Where each dotted key was given, such as `search.yaml:12`.
    """
    try:
        return SearchConfig.model_validate(document).with_precision()
    except ValidationError as error:
        raise InputError(message_of(error, document, source, places or {})) from None


def to_yaml(config: SearchConfig) -> str:
    """The resolved search, every key written out."""
    return as_yaml_text(json.loads(config.model_dump_json()))


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
    document, places = parse_yaml(text, str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path}: must hold a mapping of keys such as name, model, dataset, training, space")
    lines = {key: f"{path}:{place.line}" for key, place in places.items()}
    for key, place in places.items():
        _refuse_split_as_comment(key, place, f"{lines[key]}: {key}")
    return document, lines


def _refuse_split_as_comment(key: str, place: Place, where: str) -> None:
    if _TAKE_A_SPLIT.fullmatch(key) and len(place.comment) > 1 and _SPLIT_AS_COMMENT.fullmatch(place.comment):
        raise InputError(
            f"{where}: `{place.comment}` is a comment, since a space is before it; write it directly after the "
            "reference if it is its split, or with a space after the # if not"
        )


def parse_override(override: str, document: dict[str, Any]) -> tuple[str, Any]:
    """Key and value of a `dotted.key=value`.

    Raises:
        InputError: It has another form, or a section that it names is a plain value in `document`.
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
    value, places = parse_yaml(text, f"--set {key}")
    for inner, place in places.items():
        _refuse_split_as_comment(f"{key}.{inner}".rstrip("."), place, f"--set {key}")
    return key, value
