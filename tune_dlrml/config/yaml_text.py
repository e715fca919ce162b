"""YAML 1.2 text to plain values with their lines, and back. Ambiguous text is refused."""

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from tune_dlrml.errors import InputError

NODE_LIMIT = 20_000
"""Values of a text with its aliases written out, so that nested aliases cannot fill the memory."""

_CORE = "tag:yaml.org,2002:"
_STR, _BOOL, _FLOAT, _MERGE = (Tag(suffix=f"{_CORE}{kind}") for kind in ("str", "bool", "float", "merge"))
_PLAIN_TAGS = {f"{_CORE}{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}

_SWITCH = re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_SHORT_FLOAT = re.compile(r"[-+]?\.[0-9]+[eE][0-9]+")
_COMMENT = re.compile(r"(?:[ \t]*:)?[ \t]+(#[^\r\n\0]*)")
_BRACKET_IN_COMMENT = re.compile(r"[ \t](#[\w.]*\[.*)")
_LINE_END = re.compile(r"\r\n?|\n")
_OCTAL_OR_NOT = re.compile(r"[-+]?0o?[0-9_]+")


@dataclass(frozen=True)
class Place:
    """Place of a value in a text.

    Attributes:
        line: Its key's line, from 1.
        comment: The comment after it on its last line, with its `#`; empty without one.
    """

    line: int
    comment: str = ""


class _Reading(VersionedResolver):
    """What a plain scalar is: the core schema of YAML 1.2, and `yes`, `no`, `on`, `off` as in 1.1.

    `010` is 8 to a reader of YAML 1.1 and 10 to one of 1.2, so it is text, which no number's key takes. Dates are text.
    """

    @property
    def processing_version(self) -> tuple[int, int]:
        """YAML 1.2, whatever a `%YAML` line says."""
        return (1, 2)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            if _SWITCH.fullmatch(value):
                return _BOOL
            if _SHORT_FLOAT.fullmatch(value):
                return _FLOAT
            if _OCTAL_OR_NOT.fullmatch(value):
                return _STR
        tag = super().resolve(kind, value, implicit)
        return tag if str(tag) in _PLAIN_TAGS else _STR


class _Writing(_Reading):
    """Which text needs no quotes: what this module and any reader of YAML 1.1 or 1.2 take for text."""

    _version = (1, 2)

    @property
    def processing_version(self) -> tuple[int, int]:
        """The version that is being asked."""
        return self._version

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        for self._version in ((1, 1), (1, 2)):
            if tag == _STR:
                tag = VersionedResolver.resolve(self, kind, value, implicit)
        return tag


class _Representer(SafeRepresenter):
    """Floats with a point, without which readers of YAML 1.1 see text; what is not printable as escapes."""

    def represent_float(self, data: float) -> ScalarNode:
        text = super().represent_float(data).value
        return self.represent_scalar(str(_FLOAT), text if "." in text else text.replace("e", ".0e"))

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar(str(_STR), data, style=None if data.isprintable() else '"')


_Representer.add_representer(float, _Representer.represent_float)
_Representer.add_representer(str, _Representer.represent_str)


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, Place]]:
    """The value of a text, and the place of each of its dotted keys; the whole has the key "".

    Args:
        text: One YAML document.
        source: Its name in messages.

    Raises:
        InputError: The text is not YAML, repeats a key, has a tag or a key that is not text, or grows out of bounds.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Reading
    yaml.composer.warn_double_anchors = False
    try:
        root = yaml.compose(text)
        if root is None:
            return None, {}
        places = {"": Place(_line(root), _comment(root)), **dict(_Walk(yaml, source).of(root))}
        return yaml.constructor.construct_document(root), places
    except YAMLError as error:
        raise InputError(_message(source, error, text)) from None
    except RecursionError:
        raise InputError(f"{source}: is nested too deeply, or without end; a real file has five levels") from None


def as_yaml_text(value: Any) -> str:
    """A text that readers of any YAML version read back as `value`, which is made of plain values."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _Writing, _Representer
    yaml.default_flow_style, yaml.width = False, sys.maxsize  # folded lines of quoted text gain spaces
    yaml.representer.sort_base_mapping_type_on_output = False
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


class _Walk:
    """A walk over a text's nodes that gives the place of every dotted key and refuses what is not plain."""

    def __init__(self, yaml: YAML, source: str) -> None:
        self._yaml, self._source = yaml, source
        self._visited = 0
        self._anchors: dict[str, Node] = {}

    def of(self, node: Node, key: str = "") -> Iterator[tuple[str, Place]]:
        self._visited += 1
        if self._visited > NODE_LIMIT:
            raise self._refusal(node, f"more than {NODE_LIMIT} values once the aliases are written out")
        self._check_anchor(node)
        shown = key or "value"
        if str(node.tag) not in _PLAIN_TAGS or node.tag != self._own_tag(node):
            tag = str(node.tag).replace(_CORE, "!!")
            raise self._refusal(node, f"{shown}: a plain value is needed, but got the YAML tag {tag}")
        if isinstance(node, MappingNode):
            yield from self._of_mapping(node, key)
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                inner = f"{key}[{index}]"
                yield inner, Place(_line(value), _comment(value))
                yield from self.of(value, inner)
        else:
            try:
                self._yaml.constructor.construct_object(node)
            except ValueError:
                raise self._refusal(node, f"{shown}: is no number: {node.value[:40]}") from None

    def _of_mapping(self, node: MappingNode, key: str) -> Iterator[tuple[str, Place]]:
        lines: dict[str, int] = {}
        # Merged keys come first, so that the place of one that is also written out is where it is written out.
        for name, value in sorted(node.value, key=lambda pair: pair[0].tag != _MERGE):
            if name.tag not in (_STR, _MERGE) or name.tag != self._own_tag(name):
                shown = (name.value or "nothing") if isinstance(name, ScalarNode) else f"a {name.id}"
                problem = f"{key or 'top level'}: a key must be text, but got {shown}; a text is put in quotes"
                raise self._refusal(name, f"{problem} where YAML reads something else, as with 5, on or {{{{ }}}}")
            inner = f"{key}.{name.value}" if key else name.value
            if name.value in lines:
                first = f"first on line {lines[name.value]}"
                raise self._refusal(name, f"{inner}: the key is given twice, {first}; keep one")
            lines[name.value] = _line(name)
            if name.tag == _MERGE:
                for merged in reversed(value.value) if isinstance(value, SequenceNode) else [value]:
                    yield from self.of(merged, key)
            else:
                yield inner, Place(_line(name), _comment(value, name))
                yield from self.of(value, inner)

    def _check_anchor(self, node: Node) -> None:
        if node.anchor is not None and self._anchors.setdefault(node.anchor, node) is not node:
            first = f"first on line {_line(self._anchors[node.anchor])}"
            raise self._refusal(node, f"the anchor &{node.anchor} is given twice, {first}; keep one")

    def _own_tag(self, node: Node) -> Any:
        """The tag that the node's text has by itself, without one written in front of it."""
        plain = isinstance(node, ScalarNode) and node.style is None
        return self._yaml.resolver.resolve(type(node), node.value, (plain, not plain))

    def _refusal(self, node: Node, message: str) -> InputError:
        return InputError(f"{self._source}:{_line(node)}: {message}")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _comment(node: Node, name: Node | None = None) -> str:
    mark = node.end_mark
    if name is not None and node.start_mark.index == mark.index:  # nothing behind the key: the mark is the next token's
        mark = name.end_mark
    found = _COMMENT.match(mark.buffer, mark.pointer)
    return found[1].rstrip() if found else ""


def _message(source: str, error: YAMLError, text: str) -> str:
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    if isinstance(error, ReaderError):
        return f"{source}:{len(_LINE_END.findall(text, 0, error.position)) + 1}: is not YAML: {problem}"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{source}: is not YAML: {problem}"
    in_flow = "flow" in (getattr(error, "context", None) or "")
    first = error.context_mark.line if in_flow else mark.line  # type: ignore[attr-defined]
    lines = _LINE_END.split(text)[first : mark.line + 1]
    swallowed = next((found[1] for line in lines if (found := _BRACKET_IN_COMMENT.search(line))), None)
    hint = f" (`{swallowed}` is a comment, since a space is before the #)" if swallowed else ""
    if not hint and "'\\t'" in problem:
        hint = " (write spaces for tabs)"
    return f"{source}:{mark.line + 1}: is not YAML: {problem}{hint}"
