"""Hyper-parameter search over preference losses: Ray Tune decides, Ray Train and TRL train, MLflow shows.

From a notebook: `tune_dlrml.run_search(config)`, `tune_dlrml.load(name)`, `tune_dlrml.losses`, and around several
searches `with tune_dlrml.kept_cluster()`. What they need is imported when they are first used, so that importing this
package stays quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("kept_cluster", "load", "run_search"):
        return getattr(importlib.import_module("tune_dlrml.notebook"), name)
    if name == "losses":
        return importlib.import_module("tune_dlrml.losses")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
