"""Checks that a model's folder is complete, from config.json, the index and the headers of its safetensors files alone.

Takes milliseconds, whatever the size of the weights, and no torch. `strict_loading` checks which weights a model needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_dlrml.errors import InputError
from tune_dlrml.models.quantization import PACKED, is_beside

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FETCH_AGAIN = "fetch it again, and compare its size with the original's"

_SHOWN = 3
_NO_WEIGHTS = {
    b"version https://git-lfs": "it is a git-lfs pointer, which stands for the file until `git lfs pull` fetches it",
    b"<!doctype html": f"it is a saved web page; {FETCH_AGAIN}",
    b"<html": f"it is a saved web page; {FETCH_AGAIN}",
    b"PK\x03\x04": "it is a zip archive, as torch.save writes; save the model again with `save_pretrained`",
}
"""First bytes of files that are in the place of weights, and the remedy for each."""


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder whose config or weights are incomplete.

    Raises:
        InputError: Naming the file, the fault and the remedy.
    """
    _read_object(folder / "config.json")
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds a PEFT adapter (adapter_config.json) beside a model, which is ambiguous: merge them with "
            "`merge_and_unload` and give the folder that `save_pretrained` then wrote"
        )
    tensor_shapes(folder)


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in a folder's files, out of their headers; as it was before it was quantised.

    Raises:
        InputError: A file is missing or not whole, or lacks what the index says that it holds.
    """
    held = _header(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else _headers(folder)
    return {name: shape for name, shape in held.items() if not is_beside(name)}


def _headers(folder: Path) -> dict[str, tuple[int, ...]]:
    index = _read_object(folder / INDEX)
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{folder / INDEX} must map the names of weights to files (`weight_map`); {FETCH_AGAIN}")
    missing = missing_shards(folder)
    if missing:
        raise InputError(
            f"{folder} lacks {some(missing)} of the {len(set(names.values()))} files that {INDEX} names; fetch what is "
            "missing"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(names.values())):
        held = _header(folder / file)
        lacking = [name for name, of in names.items() if of == file and name not in held]
        if lacking:
            raise InputError(
                f"{folder / file} lacks {some(lacking)}, which {INDEX} says that it holds: they are of different "
                "downloads; fetch both again"
            )
        shapes |= held
    return shapes


def missing_shards(folder: Path) -> list[str]:
    """Files of weights that the index names but that do not exist; none without an index."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return []
    files = {str(file) for file in dict(_read_object(folder / INDEX).get("weight_map") or {}).values()}
    return sorted(file for file in files if not (folder / file).is_file())


def has_weights(folder: Path) -> bool:
    """Whether there is anything to load: one file, or an index of several."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            packed = [name for name in shapes if PACKED in name]
            states = {name.partition(PACKED)[0]: json.loads(bytes(weights.get_tensor(name))) for name in packed}
            return shapes | {name: tuple(state["shape"]) for name, state in states.items()}
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        what = f"{file} ({file.stat().st_size:,} bytes) is no whole safetensors file ({reason})"
    with file.open("rb") as opened:
        begin = opened.read(64).lower()
    known = next((why for start, why in _NO_WEIGHTS.items() if begin.startswith(start.lower())), None)
    raise InputError(f"{what}: {known or f'its download was cut off or it was changed; {FETCH_AGAIN}'}.")


def _read_object(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); {FETCH_AGAIN}.") from None
    if not isinstance(document, dict):
        raise InputError(f"{file} must hold a JSON object, but holds a {type(document).__name__}; {FETCH_AGAIN}.")
    return document
