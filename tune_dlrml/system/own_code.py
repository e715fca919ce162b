"""A user's module and its functions, compiled from exactly the bytes that are hashed.

Python itself reuses a module that was imported before, as in a notebook after an edit, and bytecode that was compiled
from another state of the file within the same second. Here a module is compiled again whenever its file has changed.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tune_dlrml.errors import InputError

Function = Callable[..., Any]


@dataclass(frozen=True)
class OwnModule:
    """A module as it was loaded.

    Attributes:
        file: Its file.
        sha256: Of the compiled bytes.
    """

    module: ModuleType
    file: Path
    sha256: str


_loaded: dict[str, OwnModule] = {}


def load_module(name: str) -> OwnModule:
    """The module of this dotted name, or in this file `*.py`, as its file is now; the same object while that stays so.

    It is searched on `sys.path`, a relative file also there, and is in `sys.modules` afterwards. Python itself imports
    what it imports.

    Raises:
        InputError: It is not one Python file.
        ModuleNotFoundError: It does not exist.
        Exception: Whatever its code raises.
    """
    spec = _of_file(name) if name.endswith(".py") else _found(name)
    file = _only_file(name, spec)
    source = file.read_bytes()
    digest, known = hashlib.sha256(source).hexdigest(), _loaded.get(name)
    if known is None or (known.file, known.sha256) != (file, digest) or sys.modules.get(spec.name) is not known.module:
        known = _loaded[name] = OwnModule(_executed(spec, source, file), file, digest)
    return known


def _found(name: str) -> ModuleSpec:
    """The spec of a module, regardless of what was loaded under its name before."""
    parent, _, _ = name.rpartition(".")
    path = getattr(importlib.import_module(parent), "__path__", []) if parent else None
    for _ in range(2):
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path)
            if spec is not None:
                return spec
        importlib.invalidate_caches()  # a file that was written a moment ago
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _of_file(name: str) -> ModuleSpec:
    """The spec of a file, under a name of its own."""
    places = [Path.cwd(), *map(Path, sys.path)]
    file = next((place / name for place in places if (place / name).is_file()), None)
    if file is None:
        raise InputError(f"there is no such file, from {places[0]} or from the folders of PYTHONPATH")
    file = file.resolve()
    spec = importlib.util.spec_from_file_location(f"own_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}", file)
    assert spec is not None, "its name ends with .py"
    return spec


def _only_file(name: str, spec: ModuleSpec) -> Path:
    file = Path(spec.origin or "")
    if not spec.has_location or file.suffix != ".py" or not file.is_file():
        raise InputError(f"{name}: must be a Python file, but is {spec.origin or 'a folder without an __init__.py'}")
    relative = Path(*name.split("."))
    for here in (Path.cwd() / relative.with_suffix(".py"), Path.cwd() / relative / "__init__.py"):
        if here.is_file() and here.read_bytes() != file.read_bytes():
            raise InputError(
                f"{name}: two different files have this name, {file}, which Python uses, and {here} in the current "
                "folder; rename one of them, or remove the other's folder from PYTHONPATH"
            )
    return file.resolve()


def _executed(spec: ModuleSpec, source: bytes, file: Path) -> ModuleType:
    code = compile(source, str(file), "exec", dont_inherit=True)
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # as code expects that asks for its own module, such as dataclasses
    try:
        exec(code, module.__dict__)
    except BaseException:
        if before is None:
            del sys.modules[spec.name]
        else:
            sys.modules[spec.name] = before
        raise
    parent, _, child = spec.name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    return module


@dataclass(frozen=True)
class OwnFunction:
    """A user's function.

    Attributes:
        file: Of the module that its reference names, which defines it.
        sha256: Of that file; files that it imports are not included.
    """

    call: Function
    file: Path
    sha256: str


def load_function(reference: str) -> OwnFunction:
    """The function that `package.module:function` or `path/to/file.py:function` names, as its file is now.

    Raises:
        InputError: There is no such module or function, or the module cannot be imported, or it imports the function
            from another file, which would not be hashed.
    """
    module_name, _, name = reference.rpartition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        loaded = load_module(module_name)
    except InputError as error:
        raise InputError(f"{reference}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{reference}: there is no module {error.name!r} in {here} or on PYTHONPATH; run the command in the "
                "folder that holds it"
            ) from None
        raise InputError(f"{reference}: importing it failed: {error_line(error)}") from None
    except Exception as error:
        raise InputError(f"{reference}: importing it failed: {error_line(error)}") from None
    function: Function | None = getattr(loaded.module, name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(loaded.module).items()
            if inspect.isfunction(value) and value.__module__ == loaded.module.__name__
        ]
        has = f"functions there: {', '.join(own)}" if own else "it has no function of its own"
        raise InputError(f"{reference}: {module_name} must have a function {name}, but has none; {has}")
    _check_defined_there(reference, function, loaded.file)
    return OwnFunction(function, loaded.file, loaded.sha256)


def _check_defined_there(reference: str, function: Function, file: Path) -> None:
    inner = inspect.unwrap(function)
    if not inspect.isfunction(inner):
        raise InputError(f"{reference}: must be a Python function in a file, but is {type(inner).__name__}")
    if inner.__code__.co_filename != str(file):
        raise InputError(
            f"{reference}: the named file must define the function, since its hash identifies the function, but {file} "
            f"imports it from {inner.__code__.co_filename}; name that module, or wrap the function with functools.wraps"
        )


def error_line(error: BaseException, file: str | None = None) -> str:
    """An exception of a user's code in one line, with the place in their file that raised it."""
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
    if file is not None:
        own = [frame for frame in frames if frame.filename == file]
    else:
        own = [frame for frame in frames if "<frozen" not in frame.filename and frame.filename != __file__]
    if isinstance(error, SyntaxError) and error.filename:
        place = f" at {error.filename}:{error.lineno}"
    else:
        place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a message'}{place}"
