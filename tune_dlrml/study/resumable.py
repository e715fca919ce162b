"""What must stay the same for a search to be resumed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError

FREE_KEYS = (
    "dataset.prompt_in_answers",
    "search.num_trials",
    "search.time_budget_s",
    "search.max_failures",
    "search.study_url",
    "search.confirm",
    "discovery.proposer",
    "discovery.proposer_url",
    "discovery.proposer_key_file",
    "discovery.candidates",
    "discovery.context",
    "discovery.limits",
    "discovery.max_new_tokens",
    "discovery.temperature",
    "discovery.price_per_million_tokens",
    "checkpoint",
    "resources.cpus_per_worker",
    "resources.gpus_per_worker",
    "resources.concurrent_trials",
    "resources.wait_s",
    "resources.silence_s",
    "resources.trials_per_group",
    "evaluation",
    "tracking",
)
"""Settings that may change: they decide how far and where a search runs and who judges it, not what it trains.

`dataset.prompt_in_answers` decides the pairs, whose hashes are compared: a search that was started before that key
existed trains on the prompts in its answers, and can be resumed only with `keep`.
`resources.workers` is not in the list: each worker adds its pairs to every step. `resources.fsdp` may change where
adapters are trained.
"""
_ABSENT = "absent"


def refuse_differences(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compare the settings with which a search was started to those with which it is resumed.

    Args:
        name: The search.
        old: `config`, `full_steps` and the hashes as the study holds them; what is missing is not compared.
        new: The same as they are now.

    Raises:
        InputError: Naming every differing key with both values.
    """
    free = FREE_KEYS if _trains_all_weights(new) else (*FREE_KEYS, "resources.fsdp")
    differing: list[str] = []
    for section in old.keys() & new.keys():
        prefix = "" if section == "config" else section
        was_set = _completed(_with_type(old[section])) if section == "config" else old[section]
        before, now = dict(_leaves(was_set, prefix)), dict(_leaves(new[section], prefix))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key, _ABSENT) != now.get(key, _ABSENT) and not _is_free(key, free):
                was, is_now = (json.dumps(values[key]) if key in values else _ABSENT for values in (before, now))
                differing.append(f"  {key}: was {was}, is now {is_now}")
    if differing:
        raise InputError(
            f"search {name!r} was started with other settings; resume it with those, or choose another --name:\n"
            + "\n".join(differing)
        )


def _with_type(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a search whose `search.scheduler` may have no `type`: none was paused before that key existed."""
    search = config.get("search", {})
    if not search.get("scheduler"):
        return config
    return {**config, "search": {**search, "scheduler": {"type": "stopping", **search["scheduler"]}}}


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a search, with defaults for keys that did not exist when it was started; they change nothing."""
    try:
        return SearchConfig.model_validate(dict(config)).model_dump(mode="json", include=set(config))
    except ValidationError:  # not legal any more: every difference is reported
        return config


def _trains_all_weights(settings: Mapping[str, Any]) -> bool:
    """Whether checkpoints hold optimizer state that is sharded like the weights; that of an adapter is not."""
    return settings.get("config", {}).get("training", {}).get("lora") is None


def _is_free(key: str, free: Sequence[str]) -> bool:
    return any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in free)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every plain value inside `value`, keyed by its dotted path; an empty container is a value, too."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
