"""The source of a loss on its own: the pure function that a trial minimised, and all code of this project it calls.

The source is cut out of the modules of `losses` by name, so that an exported script computes exactly what the trial
computed, and a new loss needs no template. Such a function may therefore use only torch, the standard library, and
names at the top of its own module or imported from another one of `losses`.

A user's own loss is exported as its whole file, a proposed one as the file that it would have.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tune_dlrml.errors import InputError
from tune_dlrml.losses.base import drawn
from tune_dlrml.losses.custom.build import bare
from tune_dlrml.losses.custom.config import WrittenLoss
from tune_dlrml.losses.learnt import Learnt
from tune_dlrml.losses.preference import OF_THE_PAIRS, PairBatch, PureLoss
from tune_dlrml.losses.registry import AnyLoss, build_loss
from tune_dlrml.losses.scoring_rules.function import TokenRule, rule_of

OWN = "tune_dlrml.losses"
WITHOUT = "export it with --no-script"
MIX = "MIX"
"""Name in the script of the parameter that is learnt beside the policy."""
CUSTOM_MODULE = "custom_loss"
"""Name of the exported file of a user's own loss."""


@dataclass(frozen=True)
class LossSource:
    """A loss as Python text.

    Attributes:
        imports: Lines that import what it needs.
        definitions: The functions, the helpers that they call, the module of the learnt parameter, and the scoring rule
            of an SFT term.
        call: An expression over `OF_THE_PAIRS` and `MIX` with the trial's numbers in it, shape (B,).
        mix: An expression that makes `MIX`; None if nothing is learnt.
        mix_learning_rate: Its constant rate.
        mix_metric: Name of the learnt parameter in reports; None if nothing is learnt.
        rule: An expression that makes the scoring rule of its SFT term; None without one.
        rule_weight: Weight of that term.
        ld_alpha: Weight of the tokens beyond the public length of a pair; None where all count alike.
        weighted: Whether the loss of a pair is multiplied by WPO's weight.
        documentation: Docstrings of the functions: formula, shapes, source.
        module: Text of the module that defines the function, exported as `CUSTOM_MODULE`; None for a loss of this
            project.
    """

    imports: str
    definitions: str
    call: str
    mix: str | None
    mix_learning_rate: float | None
    mix_metric: str | None
    rule: str | None
    rule_weight: float | None
    ld_alpha: float | None
    weighted: bool
    documentation: str
    module: str | None = None


@dataclass(frozen=True)
class _Called:
    """How the script computes a loss.

    Attributes:
        functions: Those that the trial minimised, one unless it is a sum.
        call: See `LossSource`.
        needed: Functions and classes of `losses` that it uses.
        learnt: The parameter learnt beside the policy; None if nothing is learnt.
        imports: Lines that import more.
        module: See `LossSource`.
    """

    functions: tuple[Callable[..., Any], ...]
    call: str
    needed: list[Callable[..., Any] | type]
    learnt: Learnt | None
    imports: tuple[str, ...] = ()
    module: str | None = None


def loss_source(config: AnyLoss) -> LossSource:
    """The loss that `config` describes, as text; every searched field of it is a number by now.

    Raises:
        InputError: The loss is not a pure function of a pair defined by its name and fields, or its file cannot run
            alone or has changed since the trial.
    """
    called = _known(config) if config.written is None else _own(config)
    cut = _Cut()
    learnt: list[Any] = [] if called.learnt is None else [type(called.learnt)]
    for each in [*called.needed, *learnt, *([] if config.sft is None else [TokenRule])]:
        cut.take(importlib.import_module(each.__module__), each.__name__)
    return LossSource(
        imports="\n".join(sorted({*cut.imports, *called.imports})),
        definitions="\n\n\n".join(cut.definitions.values()),
        call=called.call,
        mix=None if called.learnt is None else _made(called.learnt),
        mix_learning_rate=config.learnt_rate(),
        mix_metric=next(reversed(config.learnt_metrics()), None),
        rule=None if config.sft is None else repr(rule_of(config.sft)),
        rule_weight=None if config.sft is None else float(config.sft.weight),  # type: ignore[arg-type]
        ld_alpha=None if config.ld_alpha is None else float(drawn(config.ld_alpha)),
        weighted=config.weighting is not None,
        documentation="\n\n".join(inspect.getdoc(function) or "" for function in called.functions),
        module=called.module,
    )


def _known(config: AnyLoss) -> _Called:
    loss = build_loss(config)
    if any(True for _ in loss.buffers()):
        raise InputError(
            f"a script needs a loss that is a pure function of a pair, but {config.name} remembers a mean of the pairs "
            f"that it was trained on; {WITHOUT}"
        )
    calls: list[str] = []
    needed: list[Callable[..., Any] | type] = []
    functions: list[Callable[..., Any]] = []
    for weight, term in loss.terms():
        assert isinstance(term, PureLoss)
        functions.append(term.function)
        needed += [term.function] if term.divergence is None else [term.divergence.function, term.function]
        call = f"{term.function.__name__}({', '.join(_arguments(term))})"
        calls.append(call if weight == 1 else f"{weight!r} * {call}")
    return _Called(tuple(functions), " + ".join(calls), needed, loss.mix)


def _made(learnt: Learnt) -> str:
    """An expression that makes it again."""
    arguments = ", ".join(f"{key}={value!r}" for key, value in learnt.arguments.items())
    return f"{type(learnt).__name__}({arguments})"


def _own(config: AnyLoss) -> _Called:
    """A user's or a proposed function, with its module."""
    assert isinstance(config, WrittenLoss)
    loss, module = bare(config), config.module()
    _check_alone(config.form(), module)
    given = [f"{key}={value!r}" for key, value in loss.numbers.items()]
    if loss.learnt is not None:
        given.append(f"{loss.learnt.keyword}={MIX}.value()")
    return _Called(
        functions=(inspect.unwrap(loss.function),),
        call=_call_of_pairs(config.form(), given),
        needed=[PairBatch],
        learnt=loss.learnt,
        imports=(f"import {CUSTOM_MODULE}",),
        module=module,
    )


def _call_of_pairs(name: str, numbers: list[str]) -> str:
    pairs = f"PairBatch({', '.join(PairBatch._fields)})"
    return f"{CUSTOM_MODULE}.{name}({', '.join([pairs, *numbers])})"


def _check_alone(name: str, module: str) -> None:
    """Refuse a file that needs its package, or this project."""
    for imported, line in _imported(ast.parse(module)):
        if imported.startswith(".") or imported.partition(".")[0] == "tune_dlrml":
            raise InputError(
                f"{name}, line {line} of its file: a script can be written for a loss whose file stands alone, but "
                f"this one imports {imported}; import what only annotations need under TYPE_CHECKING, or {WITHOUT}"
            )


def _imported(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules that are imported when the code runs, with their lines."""
    if isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or ""), node.lineno
    elif isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
        for child in ast.iter_child_nodes(node):
            yield from _imported(child)


def _arguments(loss: PureLoss) -> list[str]:
    """Arguments of the call, each as text; one that has no number, such as a statistic, keeps its default."""
    learnt = {} if loss.mix is None else {loss.mix.keyword: f"{MIX}.value()"}
    given = {name: repr(value) for name, value in loss.numbers.items()} | learnt
    names = inspect.signature(loss.function).parameters
    seen = {name: name for name in OF_THE_PAIRS} | _scores(loss)
    return [seen[name] if name in seen else f"{name}={given[name]}" for name in names if name in (*seen, *given)]


def _scores(loss: PureLoss) -> dict[str, str]:
    """What stands for the log-ratios and their margin under another divergence than the reverse KL."""
    if loss.divergence is None:
        return {}
    numbers = "".join(f", {key}={value!r}" for key, value in loss.divergence.numbers.items())
    chosen, rejected = (
        f"{loss.divergence.function.__name__}({side}_logratio_B{numbers})" for side in ("chosen", "rejected")
    )
    return {"chosen_logratio_B": chosen, "rejected_logratio_B": rejected, "margin_B": f"{chosen} - {rejected}"}


class _Cut:
    """Definitions cut out of modules, each after those that it needs.

    Attributes:
        imports: Lines that import the names of other libraries.
        definitions: Source by name, in an order in which it can be run.
    """

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.definitions: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()

    def take(self, module: ModuleType, name: str) -> None:
        """Cut the definition of `name` at the top of a module, and all that it refers to there."""
        if name in self.definitions or (module.__name__, name) in self._seen:
            return
        self._seen.add((module.__name__, name))
        text = inspect.getsource(module)
        statement = _bindings(ast.parse(text)).get(name)
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            self._take_import(statement, name)
        elif statement is not None:
            for used in sorted(_names(statement)):
                self.take(module, used)
            self.definitions[name] = _segment(text, statement)

    def _take_import(self, statement: ast.Import | ast.ImportFrom, name: str) -> None:
        alias = next(alias for alias in statement.names if (alias.asname or alias.name.partition(".")[0]) == name)
        source = statement.module if isinstance(statement, ast.ImportFrom) else None
        if source is not None and source.startswith(OWN):
            self.take(importlib.import_module(source), alias.name)
            return
        bound = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
        self.imports.add(f"import {bound}" if source is None else f"from {source} import {bound}")


def _bindings(tree: ast.Module) -> Mapping[str, ast.stmt]:
    """The statement that binds each name at the top of a module."""
    found: dict[str, ast.stmt] = {}
    for statement in tree.body:
        match statement:
            case ast.FunctionDef() | ast.ClassDef():
                found[statement.name] = statement
            case ast.Import() | ast.ImportFrom():
                found |= {alias.asname or alias.name.partition(".")[0]: statement for alias in statement.names}
            case ast.Assign():
                found |= {target.id: statement for target in statement.targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = statement
    return found


def _names(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _segment(text: str, statement: ast.stmt) -> str:
    """The lines of a statement, decorators included, without comments that only this project's tools read."""
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(each.lineno for each in decorators)])
    lines = text.splitlines()[first - 1 : statement.end_lineno]
    return "\n".join(line.partition("  # type: ignore")[0] for line in lines)
