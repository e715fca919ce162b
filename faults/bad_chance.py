"""Mistakes made by chance: mutations of a sound search, drawn with a seed."""

import copy
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.bad_cases import SPACE, Case, Files, changed, document, files, jsonl, outermost, rows
from tune_dlrml.config.yaml_text import as_yaml_text


def chance_cases(model: Path, count: int, seed: int) -> Iterator[Case]:
    """Mutations of the sound search, each from a generator of its own so that none depends on the others."""
    sound = document(model)
    text = as_yaml_text(sound)
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        mutate = rng.choice(MUTATIONS)
        case_files, says = mutate(sound, text, rng)
        yield Case(f"{mutate.__name__.strip('_')} {number}", case_files, says, by_chance=True)


Mutation = Callable[[dict[str, Any], str, random.Random], tuple[Files, tuple[str, ...]]]


def _other_value(sound: dict[str, Any], _: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    key, _ = rng.choice(_leaves(sound))
    value = rng.choice([None, True, "text", "", [1], {"a": 1}, float("nan"), float("inf"), -1, 0, 2.5, 10**12])
    return files(changed(sound, key, value)), (outermost(key),)


def _without_key(sound: dict[str, Any], _: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    key, _ = rng.choice(_leaves(sound))
    space = copy.deepcopy(sound)
    *outer, last = key.split(".")
    inner = space
    for part in outer:
        inner = inner[part]
    del inner[last]
    return files(space), (SPACE, outermost(key))


def _misspelt_key(sound: dict[str, Any], text: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    lines, at, key = _line_with_key(text, rng)
    cut = rng.randrange(len(key))
    lines[at] = lines[at].replace(key, key[:cut] + rng.choice("xyz_") + key[cut + 1 :], 1)
    return files("\n".join(lines)), (SPACE,)


def _key_twice(sound: dict[str, Any], text: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    lines, at, key = _line_with_key(text, rng)
    indent = re.match(r"[ -]*", lines[at])[0].replace("-", " ")
    lines.insert(at + 1, f"{indent}{key}: 1")
    return files("\n".join(lines)), (f"{SPACE}:",)


def _cut_space(sound: dict[str, Any], text: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    return files(text[: rng.randrange(len(text))]), (SPACE,)


def _flipped_space(sound: dict[str, Any], text: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    return files(_flipped(text.encode(), rng)), ()


def _cut_rows(sound: dict[str, Any], _: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    content = jsonl(rows())
    return files(sound, content[: rng.randrange(len(content))]), ("dataset.train", "train.jsonl")


def _flipped_rows(sound: dict[str, Any], _: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    return files(sound, _flipped(jsonl(rows()), rng)), ("dataset.train", "train.jsonl")


def _bad_row(sound: dict[str, Any], _: str, rng: random.Random) -> tuple[Files, tuple[str, ...]]:
    lines: list[Any] = rows()
    at = rng.randrange(len(lines))
    column = rng.choice(["prompt", "chosen", "rejected"])
    if rng.random() < 0.3:
        del lines[at][column]
    else:
        lines[at][column] = rng.choice([None, 1, 0.5, True, "", "  ", [], {}, ["a"], [{"role": "user"}], [[]]])
    return files(sound, jsonl(lines)), ("train.jsonl", f"line {at + 1}")


MUTATIONS: list[Mutation] = [
    _other_value,
    _other_value,
    _without_key,
    _misspelt_key,
    _key_twice,
    _cut_space,
    _flipped_space,
    _cut_rows,
    _flipped_rows,
    _bad_row,
    _bad_row,
]


def _leaves(nested: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in nested.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _line_with_key(text: str, rng: random.Random) -> tuple[list[str], int, str]:
    lines = text.splitlines()
    keys = {at: match[1] for at, line in enumerate(lines) if (match := re.match(r"[ -]*(\w+):", line))}
    at = rng.choice(list(keys))
    return lines, at, keys[at]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)
