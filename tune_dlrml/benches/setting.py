"""What the trials of a search are called in a picture."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tune_dlrml.benches.subject import Loaded
from tune_dlrml.evaluation.frontier.picture import Setting

SEED = "training.seed"
SHORTEST = 3
"""Significant digits of a number, if all numbers stay distinct."""


def settings_of(trials: Sequence[Loaded]) -> list[Setting]:
    """How the trials of a search are called, in their order; two are called alike only if they differ in their seed.

    The label is the loss, with its c where all trials of the loss share one; the note is the strength and whatever else
    differs, of a loss between its own trials, of the training between all.
    """
    values = [_values(trial) for trial in trials]
    return [_setting(own, values) for own in values]


def _values(trial: Loaded) -> dict[str, Any]:
    """All that a trial was trained with but its seed, the loss's fields by their names and the training's dotted."""
    assert trial.spec is not None, "a complete trial has a spec"
    loss, training = trial.spec.loss, trial.spec.training.flat()
    own = {key: value for key, value in loss.flat().items() if key not in ("name", "label")}
    shared = {f"training.{key}": value for key, value in training.items() if f"training.{key}" != SEED}
    return {"form": loss.title(), "strength": loss.strength_field, **own, **shared}


def _setting(own: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]) -> Setting:
    peers = [other for other in everyone if other["form"] == own["form"]]
    label, strength = own["form"], own["strength"]
    notes = [] if strength not in own else [f"β {_text(strength, own, peers)}"]
    for key in own:
        compared = everyone if key.startswith("training.") else peers
        if key not in ("form", "strength", strength) and _varies(key, compared):
            notes.append(f"{key.removeprefix('training.')} {_text(key, own, compared)}")
    if "c" in own and not _varies("c", peers):
        label += f", c = {own['c']:g}"
    return Setting(label, ", ".join(notes))


def _varies(key: str, compared: Sequence[Mapping[str, Any]]) -> bool:
    return len(_distinct(key, compared)) > 1


def _distinct(key: str, compared: Sequence[Mapping[str, Any]]) -> set[str]:
    return {json.dumps(other.get(key)) for other in compared}


def _text(key: str, own: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """A value in the fewest digits that distinguish it from the others'."""
    if not _is_number(own[key]):
        return str(own[key])
    numbers = {other[key] for other in compared if _is_number(other.get(key))}
    digits = next(d for d in range(SHORTEST, 18) if len({f"{number:.{d}g}" for number in numbers}) == len(numbers))
    return f"{own[key]:.{digits}g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
