"""The first line of a proposed function: what its name, its arguments and their defaults may be. Imports no torch."""

import ast
from collections.abc import Iterator

from tune_dlrml.losses.proposed.vocabulary import GIVEN

LARGEST_NUMBER = 1e9
"""Of the numbers in the text that are whole, and of every default."""
NAME_LENGTH = 40


class Arguments:
    """The line of a definition: its name, its arguments and their defaults."""

    def __init__(self, definition: ast.FunctionDef) -> None:
        self._definition = definition
        given = definition.args
        self._taken = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        self._values = [*given.defaults, *(value for value in given.kw_defaults if value is not None)]

    def names(self) -> list[str]:
        """Of all arguments, the pairs first."""
        return [argument.arg for argument in self._taken]

    def defaults(self) -> list[float | int | bool | None]:
        """Of all arguments but the first."""
        given = self._definition.args
        positional = [None] * (len(given.posonlyargs) + len(given.args) - len(given.defaults)) + given.defaults
        return [None if value is None else number_of(value) for value in [*positional, *given.kw_defaults][1:]]

    def refusals(self) -> Iterator[tuple[int, str]]:
        """What is not allowed: its line, and what to write instead."""
        given, line = self._definition.args, self._definition.lineno
        if self._definition.decorator_list:
            yield self._definition.decorator_list[0].lineno, "no decorator"
        if given.vararg or given.kwarg:
            yield line, "no star arguments; name each scalar"
        if len(given.posonlyargs) > 1 or not [*given.posonlyargs, *given.args]:
            yield line, "the first argument is the pairs, the others are taken by name: def name(pairs, *, beta):"
        elif len(given.defaults) >= len(given.posonlyargs) + len(given.args):
            yield line, "the pairs have no default"
        yield from self._bad_names()
        for value in self._values:
            number = number_of(value)
            if number is None or not abs(number) <= LARGEST_NUMBER:
                yield value.lineno, f"a default is a number of at most {LARGEST_NUMBER:g}, such as beta=0.1"
        for annotation in [self._definition.returns, *(argument.annotation for argument in self._taken)]:
            if annotation is not None:
                yield from annotation_refusals(annotation)

    def _bad_names(self) -> Iterator[tuple[int, str]]:
        for name, line in [
            (self._definition.name, self._definition.lineno),
            *((argument.arg, argument.lineno) for argument in self._taken),
        ]:
            if not name.isascii() or name.startswith("_") or len(name) > NAME_LENGTH:
                yield line, f"a name has ASCII letters, at most {NAME_LENGTH}, the first of them no _, but got {name}"
            if name in GIVEN:
                yield line, f"{name} means something else here; choose another name"


def number_of(node: ast.expr) -> float | int | bool | None:
    """The number that a literal stands for."""
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if isinstance(inner, ast.Constant) and isinstance(inner.value, (bool, int, float)):
        return -inner.value if negative else inner.value
    return None


def annotation_refusals(node: ast.expr) -> Iterator[tuple[int, str]]:
    """Annotations are for people; only names pass, so that none computes anything."""
    for each in ast.walk(node):
        plain = isinstance(each, (ast.Name, ast.Attribute, ast.BinOp, ast.BitOr, ast.Load, ast.Subscript, ast.Tuple))
        if not plain and not (isinstance(each, ast.Constant) and isinstance(each.value, (str, type(None)))):
            yield node.lineno, "an annotation is a name, such as float"
            return
        if "_" in (getattr(each, "id", "")[:1], getattr(each, "attr", "")[:1]):
            yield node.lineno, "no name that begins with _"
            return
