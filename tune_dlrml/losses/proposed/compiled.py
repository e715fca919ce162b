"""A proposed function compiled from its checked tree, with the listed names and no others.

In the compiled form nothing is looked up on a module or on a class: `torch.exp` is one global name, and `x.exp()` calls
the method of torch's tensor itself. Whole numbers stay within 64 bits, and arithmetic is between numbers and tensors.
"""

import ast
import copy
import math
import operator
from collections.abc import Callable
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor

from tune_dlrml.losses.proposed.allowed import allowed
from tune_dlrml.losses.proposed.body import dotted
from tune_dlrml.losses.proposed.vocabulary import ATTRIBUTES, CONSTANTS, FIELDS, FUNCTIONS, METHODS
from tune_dlrml.system.own_code import Function

LARGEST_BITS = 63
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_MODULES: dict[str, Any] = {"torch": torch, "F": torch.nn.functional, "math": math}
_BUILTINS: dict[str, Callable[..., Any]] = {"abs": abs, "float": float, "len": len, "min": min, "max": max}


@lru_cache(maxsize=512)
def compiled(code: str) -> Function:
    """The function that `code` defines.

    Raises:
        InputError: It is outside the allow-list.
    """
    known = allowed(code)
    tree = ast.Module([_Bare().visit(copy.deepcopy(known.tree))], type_ignores=[])
    names: dict[str, Any] = {"__builtins__": {"range": range}, **_given()}
    program = compile(ast.fix_missing_locations(tree), f"<{known.name}>", "exec", flags=0, dont_inherit=True)
    _check_names(program, {*names, *FIELDS, *ATTRIBUTES, "range", known.name})
    exec(program, names)
    function: Function = names[known.name]
    return function


def _check_names(program: CodeType, names: set[str]) -> None:
    """A second look, at what the code object can reach."""
    codes = [program, *(each for each in program.co_consts if isinstance(each, CodeType))]
    assert len(codes) == 2, "a function has none inside"
    assert {name for code in codes for name in code.co_names} <= names


def _given() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in (*FUNCTIONS, *CONSTANTS):
        module, _, name = path.rpartition(".")
        value = getattr(_MODULES[module], name) if module else _BUILTINS[name]
        found[path] = _called_from_here(value) if callable(value) else value
    found |= {f"Tensor.{name}": _called_from_here(getattr(Tensor, name)) for name in METHODS}
    return found | {f"op.{kind.__name__}": _arithmetic(apply) for kind, apply in _OPERATORS.items()}


def _called_from_here(function: Callable[..., Any]) -> Callable[..., Any]:
    # torch imports some of itself when it is first needed, with the builtins of the Python function that calls it.
    return lambda *arguments, **keywords: function(*arguments, **keywords)


def _arithmetic(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(left: Any, right: Any) -> Any:
        for value in (left, right):
            if not isinstance(value, (Tensor, float, int)):
                raise TypeError(f"arithmetic is between numbers and tensors, but here is a {type(value).__name__}")
        if isinstance(left, int) and isinstance(right, int):
            return _whole(apply, left, right)
        return apply(left, right)

    return checked


def _whole(apply: Callable[[Any, Any], Any], left: int, right: int) -> Any:
    """Arithmetic of whole numbers, which could otherwise become as large as memory."""
    size = left.bit_length() * max(right, 1) if apply is operator.pow else left.bit_length() + right.bit_length()
    if size > LARGEST_BITS:
        raise OverflowError(f"whole numbers have at most {LARGEST_BITS} bits; compute with floats")
    return apply(left, right)


class _Bare(ast.NodeTransformer):
    """Turns every function, method and operator into a call of one global name, and drops annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Without annotations."""
        node.returns = None
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """An assignment."""
        assert node.value is not None
        return ast.copy_location(ast.Assign(targets=[node.target], value=self.visit(node.value)), node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        """A call of the checked operator."""
        return _call(f"op.{type(node.op).__name__}", [self.visit(node.left), self.visit(node.right)], [], node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A call of a listed function, or of a method with its tensor as the first argument."""
        path = dotted(node.func)
        arguments = [self.visit(argument) for argument in node.args]
        keywords = [ast.keyword(each.arg, self.visit(each.value)) for each in node.keywords]
        if path in FUNCTIONS or path == "range":
            return _call(path, arguments, keywords, node)
        assert isinstance(node.func, ast.Attribute)
        return _call(f"Tensor.{node.func.attr}", [self.visit(node.func.value), *arguments], keywords, node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A constant by its name; fields of the pairs and of values stay."""
        path = dotted(node)
        if path in CONSTANTS:
            return ast.copy_location(ast.Name(path, ast.Load()), node)
        return self.generic_visit(node)


def _call(name: str, arguments: list[ast.expr], keywords: list[ast.keyword], node: ast.AST) -> ast.AST:
    return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), arguments, keywords), node)
