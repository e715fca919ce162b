"""Which functions may be proposed: an allow-list over the syntax tree. Imports no torch.

A proposal is text that nobody has read. What is not named here is refused, with its line and what to write instead, so
that what passes can do nothing but compute: it reaches no module, no file, no attribute that leads further, changes
none of its arguments, and ends. That holds of the text as it stands, too, in a file that is imported.
"""

import ast
import unicodedata
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from tune_dlrml.errors import InputError
from tune_dlrml.losses.proposed.arguments import Arguments
from tune_dlrml.losses.proposed.body import SAID, Body

CHARACTERS = 6000
NODES = 800
DEPTH = 40
"""Largest depth of the syntax tree."""
SHOWN = 5
"""Refusals of one text that are named."""


@dataclass(frozen=True)
class Allowed:
    """A function within the allow-list.

    Attributes:
        tree: Its definition.
        pairs: What it calls its first argument.
        scalars: Its other arguments by name, with their defaults; None where there is none.
    """

    tree: ast.FunctionDef
    pairs: str
    scalars: dict[str, float | int | bool | None]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.tree.name


@lru_cache(maxsize=512)
def allowed(code: str) -> Allowed:
    """The one function that `code` defines.

    Raises:
        InputError: It is not exactly one function within the allow-list; the message has the lines and the reasons.
    """
    definition = _definition(_parsed(code))
    arguments = Arguments(definition)
    refused = [*arguments.refusals(), *Body(definition, arguments.names()).refusals()]
    if refused:
        shown = [f"line {line}: {reason}" for line, reason in dict.fromkeys(sorted(refused))]
        more = [] if len(shown) <= SHOWN else [f"and {len(shown) - SHOWN} more"]
        raise InputError("; ".join([*shown[:SHOWN], *more]))
    pairs, *scalars = arguments.names()
    return Allowed(definition, pairs, dict(zip(scalars, arguments.defaults(), strict=True)))


def _parsed(code: str) -> ast.Module:
    if len(code) > CHARACTERS:
        _refuse(1, f"a function has at most {CHARACTERS} characters, but this one has {len(code)}")
    for number, line in enumerate(code.split("\n"), start=1):
        for character in line:
            if character != "\t" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
                _refuse(number, f"no invisible character, but here is U+{ord(character):04X}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in docstrings
            tree = ast.parse(code)
    except SyntaxError as error:
        _refuse(error.lineno or 1, f"not Python: {error.msg}")
    except (ValueError, MemoryError, RecursionError):
        _refuse(1, "not Python that can be read")
    _check_size(tree)
    return tree


def _check_size(tree: ast.Module) -> None:
    level: list[ast.AST] = [tree]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > NODES or depth > DEPTH:
            line = next((node.lineno for node in level if hasattr(node, "lineno")), 1)
            _refuse(line, "too long or too deeply nested; split it into assignments")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def _definition(tree: ast.Module) -> ast.FunctionDef:
    functions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    for node in tree.body:
        if not functions or node is not functions[0]:
            other = type(node) in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            said = "one function alone, and no second definition" if other else SAID.get(type(node))
            _refuse(node.lineno, said or "one `def` alone; put everything into it")
    if not functions:
        _refuse(1, "a function is needed, def name(pairs, *, beta):")
    if not isinstance(functions[0], ast.FunctionDef):
        _refuse(functions[0].lineno, SAID[type(functions[0])])
    return functions[0]


def _refuse(line: int, reason: str) -> NoReturn:
    raise InputError(f"line {line}: {reason}")
