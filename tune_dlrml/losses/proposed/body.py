"""The body of a proposed function: which statements and expressions it may have. Imports no torch."""

import ast
import difflib

from tune_dlrml.losses.proposed.arguments import LARGEST_NUMBER, annotation_refusals, number_of
from tune_dlrml.losses.proposed.vocabulary import (
    ATTRIBUTES,
    CONSTANTS,
    DTYPES,
    FIELDS,
    FUNCTIONS,
    GIVEN,
    GROWING,
    KEYWORDS,
    METHODS,
    REMEDIES,
    WORDS,
)

ROUNDS = 32
"""Of a loop, and of loops inside loops together."""
GROWTH = 3
"""Operations that make a tensor larger."""
ELEMENTS = 8
"""Of a list or a tuple."""
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr, ast.BitXor)
_COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_PLAIN = (ast.BoolOp, ast.UnaryOp, ast.IfExp, ast.boolop, ast.unaryop, ast.operator, ast.cmpop, ast.expr_context)
SAID = {
    ast.Import: "no import: torch, F (torch.nn.functional) and math are given",
    ast.ImportFrom: "no import: torch, F (torch.nn.functional) and math are given",
    ast.AugAssign: "no assignment with an operator, which edits a tensor in place; write `x = x + ...`",
    ast.While: "no while; a loop is `for i in range(3):` with a number in it",
    ast.Lambda: "no lambda; write the expression where it is used",
    ast.FunctionDef: "no function inside the function; write the expression where it is used",
    ast.ClassDef: "no class",
    ast.Global: "no global",
    ast.Nonlocal: "no nonlocal",
    ast.Try: "no try; a loss is finite by its formula: use log-space forms such as F.logsigmoid",
    ast.Raise: "no raise",
    ast.Assert: "no assert",
    ast.With: "no with; use .detach() for what carries no gradient",
    ast.Delete: "no del",
    ast.NamedExpr: "no := ; assign on a line of its own",
    ast.JoinedStr: "no f-string",
    ast.ListComp: "no comprehension; write the terms out",
    ast.SetComp: "no comprehension; write the terms out",
    ast.DictComp: "no comprehension; write the terms out",
    ast.GeneratorExp: "no comprehension; write the terms out",
    ast.Dict: "no dict",
    ast.Set: "no set",
    ast.Starred: "no star arguments; name each",
    ast.Yield: "no yield",
    ast.YieldFrom: "no yield",
    ast.Await: "no await",
    ast.AsyncFunctionDef: "no async",
    ast.AsyncFor: "no async",
    ast.AsyncWith: "no async",
    ast.Match: "no match; use if and elif",
}
"""What is refused by its kind, and what to write instead."""


class Body:
    """What a function does, statement by statement."""

    def __init__(self, definition: ast.FunctionDef, arguments: list[str]) -> None:
        self._body = definition.body
        self._pairs = arguments[0] if arguments else ""
        self._known = {*arguments[1:], *_assigned(definition)}
        self._rounds = 1
        self._growth = 0
        self._found: list[tuple[int, str]] = []
        self._line = definition.lineno

    def refusals(self) -> list[tuple[int, str]]:
        """What is not allowed: its line, and what to write instead."""
        if not any(isinstance(node, ast.Return) for statement in self._body for node in ast.walk(statement)):
            self._no(self._body[-1], "a return is needed, of one loss per pair")
        self._block(self._body)
        return self._found

    def _no(self, node: ast.AST, reason: str) -> None:
        self._found.append((getattr(node, "lineno", self._line), reason))

    def _not(self, node: ast.AST) -> None:
        self._no(node, SAID.get(type(node), f"{type(node).__name__} is not part of the language of a loss"))

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._line = statement.lineno
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Return(value=ast.expr() as value):
                self._expression(value)
            case ast.Return():
                self._no(node, "return has a value, one loss per pair")
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                self._several(node, targets, values)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                self._several(node, targets, [value])
            case ast.Assign(targets=targets, value=value):
                self._several(node, targets, [value])
            case ast.AnnAssign(target=target, annotation=annotation, value=ast.expr() as value):
                self._found += annotation_refusals(annotation)
                self._several(node, [target], [value])
            case ast.If(test=test, body=body, orelse=orelse):
                self._expression(test)
                self._block([*body, *orelse])
            case ast.For():
                self._loop(node)
            case ast.Pass() | ast.Break() | ast.Continue() | ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.Expr(value=value):
                self._expression(value)
                self._no(node, "a line that computes something and drops it does nothing; assign or return it")
            case _:
                self._not(node)

    def _several(self, node: ast.stmt, targets: list[ast.expr], values: list[ast.expr]) -> None:
        """An assignment, of one value or of several at once."""
        for target in targets:
            if isinstance(target, ast.Name):
                self._bound(target)
            elif isinstance(target, (ast.Subscript, ast.Attribute)):
                self._no(node, "a tensor is not edited; use torch.where(condition, a, b) and a new name")
            else:
                self._no(node, "names are assigned, one value each: a, b = x, y")
        for value in values:
            self._expression(value)

    def _bound(self, target: ast.Name) -> None:
        if target.id in (self._pairs, *GIVEN):
            self._no(target, f"{target.id} keeps its meaning; choose another name")
        elif target.id.startswith("_") and target.id != "_":
            self._no(target, f"no name that begins with _, but got {target.id}")

    def _loop(self, node: ast.For) -> None:
        rounds = _rounds(node.iter)
        if rounds is None or not isinstance(node.target, ast.Name) or node.orelse:
            self._no(node, "a loop is `for i in range(3):` with a number in it, and has no else")
            rounds = 1
        else:
            self._bound(node.target)
        if rounds * self._rounds > ROUNDS:
            self._no(node, f"loops have at most {ROUNDS} rounds, all together")
        before, self._rounds = self._rounds, max(1, rounds) * self._rounds
        self._block(node.body)
        self._rounds = before

    def _expression(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=value):
                self._constant(node, value)
            case ast.Name(id=name):
                self._name(node, name)
            case ast.BinOp(left=left, op=op, right=right):
                if not isinstance(op, _OPERATORS):
                    self._no(node, f"no {type(op).__name__}; arithmetic is + - * / // % ** & | ^")
                self._each([left, right])
            case ast.Compare(left=left, ops=ops, comparators=others):
                if not all(isinstance(op, _COMPARISONS) for op in ops):
                    self._no(node, "comparisons are < <= > >= == !=; fields of the pairs are never None")
                self._each([left, *others])
            case ast.Call():
                self._call(node)
            case ast.Attribute():
                self._attribute(node)
            case ast.Subscript(value=value, slice=index):
                self._each([value])
                self._index(node, index)
            case ast.Tuple() | ast.List():
                self._no(node, "a list or a tuple stands in torch.stack, in torch.cat or in `a, b = x, y` alone")
            case _ if isinstance(node, _PLAIN):
                self._each([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)])
            case _:
                self._not(node)

    def _each(self, nodes: list[ast.expr]) -> None:
        for node in nodes:
            self._expression(node)

    def _constant(self, node: ast.expr, value: object) -> None:
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            self._no(node, f"a whole number is at most {LARGEST_NUMBER:g}; write it as a float")
        elif not isinstance(value, (bool, int, float)):
            self._no(node, "a value is a number or a tensor, not a text, nothing or a complex number")

    def _name(self, node: ast.expr, name: str) -> None:
        if name == self._pairs:
            self._no(node, f"{name} is read by its fields alone, such as {name}.margin_B")
        elif name in GIVEN:
            self._no(node, f"{name} is no value; call it")
        elif name not in self._known:
            self._unknown(node, name, [*self._known, *GIVEN], "there is no name")

    def _unknown(self, node: ast.AST, name: str, names: list[str], said: str) -> None:
        last = name.rpartition(".")[2]
        same = [f"{self._pairs}.{last}"] if last in FIELDS else []
        same += [each for each in (*names, *FUNCTIONS) if each != name and each.rpartition(".")[2] == last]
        like = same or difflib.get_close_matches(name, names, n=1)
        remedy = REMEDIES.get(last) or (f"did you mean {like[0]}?" if like else "")
        if last.endswith("_") and not last.startswith("_"):
            remedy = "a name that ends with _ edits its tensor in place"
        self._no(node, f"{said} {name}" + (f"; {remedy}" if remedy else ""))

    def _stranger(self, node: ast.expr) -> bool:
        """Whether the first of a dotted name means nothing here, which is said."""
        head = (dotted(node) or "").partition(".")[0]
        if not head or head in (self._pairs, *self._known, *GIVEN):
            return False
        self._name(node, head)
        return True

    def _attribute(self, node: ast.Attribute) -> None:
        path = dotted(node)
        if node.attr.startswith("_"):
            self._no(node, f"no attribute that begins with _, but got {node.attr}")
        elif path is not None and path.partition(".")[0] == self._pairs:
            self._field(node, path)
        elif path is not None and path.partition(".")[0] in GIVEN:
            if path in FUNCTIONS:
                self._no(node, f"{path} is no value; call it")
            elif path not in CONSTANTS:
                self._unknown(node, path, [*FUNCTIONS, *CONSTANTS], "there is no")
        elif not self._stranger(node):
            self._expression(node.value)
            if node.attr not in ATTRIBUTES:
                self._unknown(node, node.attr, [*METHODS, *ATTRIBUTES], "a value has no")

    def _field(self, node: ast.Attribute, path: str) -> None:
        head, _, rest = path.partition(".")
        field, _, deeper = rest.partition(".")
        if field not in FIELDS:
            like = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.4)
            remedy = f"did you mean {head}.{like[0]}?" if like else f"there are {', '.join(FIELDS)}"
            self._no(node, f"the pairs have no field {field}; {remedy}")
        elif deeper and deeper not in ATTRIBUTES:
            self._unknown(node, deeper, [*METHODS, *ATTRIBUTES], "a value has no")

    def _call(self, node: ast.Call) -> None:
        function, path = node.func, dotted(node.func)
        if isinstance(function, ast.Name):
            path = function.id
            self._listed(node, path)
        elif path is not None and path.partition(".")[0] in GIVEN and "." in path:
            self._listed(node, path)
        elif isinstance(function, ast.Attribute):
            self._method(node, function)
        else:
            self._no(node, "only functions by their names are called")
            return
        name = (path or "").rpartition(".")[2] if not isinstance(function, ast.Attribute) else function.attr
        self._arguments(node, name)
        if name in GROWING:
            self._grows(node, name)

    def _listed(self, node: ast.Call, path: str) -> None:
        if path not in FUNCTIONS:
            self._unknown(node, path, [name for name in FUNCTIONS if "." in name], "there is no function")
        elif len(node.args) > FUNCTIONS[path]:
            self._no(node, f"{path} takes at most {FUNCTIONS[path]} by position; give the others by name")

    def _method(self, node: ast.Call, function: ast.Attribute) -> None:
        if self._stranger(function):
            return
        if function.attr.startswith("_"):
            self._no(node, f"no attribute that begins with _, but got {function.attr}")
        elif function.attr not in METHODS:
            self._unknown(node, function.attr, list(METHODS), "a tensor has no method")
        elif len(node.args) > METHODS[function.attr]:
            self._no(node, f".{function.attr} takes at most {METHODS[function.attr]} by position")
        elif function.attr == "to" and not (len(node.args) == 1 and not node.keywords and _is_dtype(node.args[0])):
            self._no(node, "tensors stay on their device; .to takes a dtype, such as .to(x.dtype)")
        self._expression(function.value)

    def _arguments(self, node: ast.Call, name: str) -> None:
        for argument in node.args:
            if name in ("stack", "cat", "concat") and isinstance(argument, (ast.List, ast.Tuple)):
                if len(argument.elts) > ELEMENTS:
                    self._no(node, f"at most {ELEMENTS} tensors are put together")
                self._each(argument.elts)
            elif name == "float" and isinstance(argument, ast.Constant) and argument.value in ("inf", "-inf"):
                continue
            else:
                self._expression(argument)
        for keyword in node.keywords:
            word = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg is None:
                self._no(node, SAID[ast.Starred])
            elif keyword.arg not in KEYWORDS:
                self._no(node, f"there is no argument {keyword.arg} here; leave it out")
            elif keyword.arg == "device" and not (
                isinstance(keyword.value, ast.Attribute) and keyword.value.attr == "device"
            ):
                self._no(node, "tensors stay on their device; write device=pairs.margin_B.device")
            elif word is None and isinstance(keyword.value, ast.Constant):
                continue
            elif word not in WORDS.get(keyword.arg, ()):
                self._expression(keyword.value)

    def _grows(self, node: ast.expr, what: str) -> None:
        self._growth += 1
        if self._rounds > 1:
            self._no(node, f"{what} can make a tensor larger, so it stands in no loop")
        elif self._growth == GROWTH + 1:
            self._no(node, f"at most {GROWTH} times a tensor is made larger ({', '.join(sorted(GROWING))} or an index)")

    def _index(self, node: ast.Subscript, index: ast.expr) -> None:
        """An index is numbers, slices of numbers and `...`; others can make a tensor larger."""
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        for part in parts:
            bounds = [part.lower, part.upper, part.step] if isinstance(part, ast.Slice) else [part]
            for bound in bounds:
                if bound is None or _is_ellipsis(bound):
                    continue
                if isinstance(bound, ast.Constant) and bound.value is None:
                    self._grows(node, "[None]")
                elif number_of(bound) is None:
                    self._grows(node, "an index that is computed")
                    self._expression(bound)


def dotted(node: ast.expr) -> str | None:
    """`torch.nn.functional.relu` as `F.relu`, other names with dots as they stand; None for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    path = ".".join([node.id, *reversed(parts)])
    return f"F.{path.removeprefix('torch.nn.functional.')}" if path.startswith("torch.nn.functional.") else path


def _assigned(definition: ast.FunctionDef) -> set[str]:
    return {node.id for node in ast.walk(definition) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _rounds(iterated: ast.expr) -> int | None:
    """How often a loop over this runs; None where the text does not say."""
    match iterated:
        case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 1 <= len(args) <= 3:
            numbers = [number_of(argument) for argument in args]
            if all(type(number) is int for number in numbers) and (len(numbers) < 3 or numbers[2]):
                bounds = range(*numbers)  # type: ignore[arg-type]
                return ROUNDS + 1 if bounds[ROUNDS : ROUNDS + 1] else len(bounds)
    return None


def _is_dtype(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute) and node.attr == "dtype":
        return True
    return dotted(node) in DTYPES


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
