"""The source of a loss on its own: the pure function that a trial minimised, and whatever of this project it calls.

It is cut out of the modules of `losses` by name, so that a script which is handed on computes what the trial computed,
to the operation, and a new loss needs no template. What such a function may use is therefore narrow: torch, the
standard library, and names at the top of its own module or imported from another one of `losses`.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tune_dlrml import losses
from tune_dlrml.config import AnyLoss, LearnableBetaMix
from tune_dlrml.errors import InputError
from tune_dlrml.losses.mixing import LearnableMix
from tune_dlrml.losses.registry import PairBatch, PreferenceLoss, build_loss
from tune_dlrml.losses.scoring_rules import TokenRule, rule_of

OWN = "tune_dlrml.losses"
OF_THE_PAIRS = (*PairBatch._fields, "margin_B")
"""What a loss may be called with: every one of them is there in the script under this name."""
WITHOUT = "export it with --no-script"
MIX = "MIX"
"""Name of the learnable beta_mix in the script."""


@dataclass(frozen=True)
class LossSource:
    """A loss as Python text.

    Attributes:
        name: Of the pure function.
        imports: Lines that import what it needs.
        definitions: The function, the helpers that it calls, the module of beta_mix if it is learnt, and the scoring
            rule of an SFT term.
        call: An expression over `OF_THE_PAIRS` and `MIX` with the trial's numbers in it, shape (B,).
        mix: An expression that makes `MIX`; None if nothing is learnt.
        mix_learning_rate: Its constant rate.
        rule: An expression that makes the scoring rule of its SFT term; None without one.
        rule_weight: Weight of that term.
        documentation: What the pure function says of itself: formula, shapes, source.
    """

    name: str
    imports: str
    definitions: str
    call: str
    mix: str | None
    mix_learning_rate: float | None
    rule: str | None
    rule_weight: float | None
    documentation: str


def loss_source(config: AnyLoss) -> LossSource:
    """The loss that `config` describes, as text; every searched field of it is a number by now.

    Raises:
        InputError: The loss is no pure function of a pair that can be told by its name and fields.
    """
    built = build_loss(config)
    function = _pure_function(config)
    call = f"{function.__name__}({', '.join(_arguments(function, config, built))})"
    learnt = getattr(config, "beta_mix", None)
    needed: list[Callable[..., Any] | type] = [function]
    mix = None
    if isinstance(learnt, LearnableBetaMix):
        mix = _mix(config, learnt)
        needed.append(LearnableMix)
    if config.sft is not None:
        needed.append(TokenRule)
    cut = _Cut()
    for each in needed:
        cut.take(importlib.import_module(each.__module__), each.__name__)
    return LossSource(
        name=function.__name__,
        imports="\n".join(sorted(cut.imports)),
        definitions="\n\n\n".join(cut.definitions.values()),
        call=call,
        mix=mix,
        mix_learning_rate=float(learnt.learning_rate) if isinstance(learnt, LearnableBetaMix) else None,  # type: ignore[arg-type]
        rule=None if config.sft is None else repr(rule_of(config.sft)),
        rule_weight=None if config.sft is None else float(config.sft.weight),  # type: ignore[arg-type]
        documentation=inspect.getdoc(function) or "",
    )


def _pure_function(config: AnyLoss) -> Callable[..., Any]:
    """The function of the loss's name anywhere in `losses`; its `_published` form where the trial computed that."""
    name = config.name + ("_published" if getattr(config, "numerics", "stable") == "published" else "")
    for info in pkgutil.iter_modules(losses.__path__):
        module = importlib.import_module(f"{OWN}.{info.name}")
        found = vars(module).get(name)
        if inspect.isfunction(found) and found.__module__ == module.__name__:
            return found
    raise InputError(
        f"a script can be written for a loss that is a function of its own name in {OWN}, but there is none for "
        f"{config.name!r}; {WITHOUT}"
    )


def _arguments(function: Callable[..., Any], config: AnyLoss, built: PreferenceLoss) -> list[str]:
    """Arguments of the call, each as text; one that has a default and no field, such as a statistic, keeps it."""
    given = []
    for name, parameter in inspect.signature(function).parameters.items():
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if name in OF_THE_PAIRS:
            text = name
        elif name == "beta_mix" and built.mix is not None:
            text = f"{MIX}.beta_mix()"
        elif parameter.default is inspect.Parameter.empty or hasattr(config, name):
            text = repr(_value(name, config, built))
        else:
            continue
        given.append(f"{name}={text}" if keyword else text)
    return given


def _value(name: str, config: AnyLoss, built: PreferenceLoss) -> Any:
    """The field of that name, or else a number that the built loss has derived (c becomes beta_mix)."""
    for holder in (config, built):
        value = getattr(holder, name, None)
        if isinstance(value, (bool, int, float, str)):
            return value
    raise InputError(f"loss {config.name!r} has no value for the argument `{name}` of its function; {WITHOUT}")


def _mix(config: Any, learnt: LearnableBetaMix) -> str:
    c_init = learnt.c_init if learnt.init is None else learnt.init / (config.tau * config.beta_kl)  # type: ignore[operator]
    return (
        f"LearnableMix(beta_kl={config.beta_kl!r}, tau={config.tau!r}, c_init={c_init!r}, c_bounds={learnt.c_bounds!r})"
    )


class _Cut:
    """Definitions cut out of modules, each behind those that it needs.

    Attributes:
        imports: Lines that import the names of other libraries.
        definitions: Source by name, in an order in which it can be run.
    """

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.definitions: dict[str, str] = {}
        self._seen: set[tuple[str, str]] = set()

    def take(self, module: ModuleType, name: str) -> None:
        """Take what `name` means at the top of a module, and all that it refers to there."""
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
    """What binds each name at the top of a module."""
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
