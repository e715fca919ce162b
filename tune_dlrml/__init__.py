"""Hyper-parameter search over preference losses: Ray Tune decides, Ray Train and TRL train, MLflow shows.

From a notebook: `tune_dlrml.search(config)`, `tune_dlrml.load(name)`, `tune_dlrml.losses`. What they need is imported
when they are called, so that importing this package stays quick.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


class _Search(ModuleType):
    """The package of this name, which can be called: once any module of it is imported, it hides a function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """See `tune_dlrml.notebook.search`."""
        return importlib.import_module("tune_dlrml.notebook").search(*args, **options)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return importlib.import_module, (self.__name__,)


importlib.import_module("tune_dlrml.search").__class__ = _Search


def __getattr__(name: str) -> Any:
    if name == "load":
        return importlib.import_module("tune_dlrml.notebook").load
    if name == "losses":
        return importlib.import_module("tune_dlrml.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
