"""A search that was begun before a key existed goes on with that key at its default, and with no other value of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tune_dlrml.config import ColumnsConfig
from tune_dlrml.errors import InputError
from tune_dlrml.study.resumable import refuse_differences

NEW_KEYS = {"columns", "messages", "prompt_in_answers"}


def test_keys_that_a_search_was_started_without_have_their_defaults(config_with: Callable[..., Any]) -> None:
    config = config_with(sampler="random")
    now = config.model_dump(mode="json", exclude={"tracking"})
    before = now | {"dataset": {key: value for key, value in now["dataset"].items() if key not in NEW_KEYS}}
    refuse_differences("old", {"config": before}, {"config": now})
    dataset = config.dataset.model_copy(update={"columns": ColumnsConfig(prompt="question")})
    other = config.model_copy(update={"dataset": dataset}).model_dump(mode="json", exclude={"tracking"})
    with pytest.raises(InputError, match=r'dataset\.columns\.prompt: was "prompt", is now "question"'):
        refuse_differences("old", {"config": before}, {"config": other})


def test_a_search_started_before_prompts_in_answers_were_refused_resumes_with_them(
    config_with: Callable[..., Any],
) -> None:
    config = config_with(sampler="random")
    begun = config.model_dump(mode="json", exclude={"tracking"})
    before = begun | {"dataset": {key: value for key, value in begun["dataset"].items() if key not in NEW_KEYS}}
    kept = config.model_copy(update={"dataset": config.dataset.model_copy(update={"prompt_in_answers": "keep"})})
    now = kept.model_dump(mode="json", exclude={"tracking"})
    refuse_differences(
        "old", {"config": before, "data_hash": {"train": "a"}}, {"config": now, "data_hash": {"train": "a"}}
    )
    with pytest.raises(InputError, match=r'data_hash\.train: was "a", is now "b"'):
        refuse_differences(
            "old", {"config": before, "data_hash": {"train": "a"}}, {"config": now, "data_hash": {"train": "b"}}
        )
