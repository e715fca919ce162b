"""Preference losses: their geometry, their evaluation, and the one value that is trained beside the policy.

From a notebook: `list()`, `build({"name": "dlrml", "beta_kl": 0.05, "c": 4})`, `geometry`. A loss of one's own is a
function of a `PairBatch`.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any


def list() -> Sequence[Mapping[str, Any]]:
    """Every loss with its fields, their defaults and what it is."""
    return importlib.import_module("tune_dlrml.losses.registry").described()  # type: ignore[no-any-return]


def build(loss: Mapping[str, Any]) -> Any:
    """The loss that an entry of `space.losses` describes, with one value in every field; see `PreferenceLoss`.

    Raises:
        InputError: It describes none.
    """
    from pydantic import TypeAdapter, ValidationError

    from tune_dlrml.errors import InputError
    from tune_dlrml.losses.registry import AnyLoss, build_loss

    try:
        return build_loss(TypeAdapter(AnyLoss).validate_python(dict(loss)))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{place}: {first['msg']}, but got {first['input']!r}") from None


def __getattr__(name: str) -> Any:
    if name == "geometry":
        return importlib.import_module("tune_dlrml.losses.lrml.geometry")
    if name == "PairBatch":
        return importlib.import_module("tune_dlrml.losses.preference").PairBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
