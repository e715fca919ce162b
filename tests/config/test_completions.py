"""Metrics of completions are refused where a search writes none, or rewards none."""

from typing import Any

import pytest
from made_search import small_search

from tune_dlrml.config import SearchConfig
from tune_dlrml.errors import InputError


def made(completions: dict[str, Any] | None, **search: Any) -> SearchConfig:
    return small_search(completions=completions, search={"num_trials": 3, **search})


LENGTH = {"constraints": {"eval_length_ratio": {"max": 1.3}}}
REWARD = {"metric": "eval_reward"}
WORTH = {"constraints": {"eval_reward": {"min": 0.1}}}


@pytest.mark.parametrize(
    ("completions", "search", "message"),
    [
        (None, LENGTH, r"constraints\.eval_length_ratio: .*writes none; add `completions: {}`"),
        (None, REWARD, r"search\.metric: eval_reward .*add `completions: {reward: vader}`"),
        ({}, REWARD, r"search\.metric: eval_reward .*add `completions: {reward: vader}`"),
        ({}, WORTH, r"constraints\.eval_reward: .*nothing rewards"),
    ],
)
def test_what_needs_completions_or_their_reward_is_refused_with_the_remedy(
    completions: dict[str, Any] | None, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        made(completions, **search)


@pytest.mark.parametrize(("completions", "search"), [({}, LENGTH), ({"reward": "vader"}, REWARD | WORTH)])
def test_with_them_it_is_not(completions: dict[str, Any], search: dict[str, Any]) -> None:
    assert made(completions, **search).completions is not None
