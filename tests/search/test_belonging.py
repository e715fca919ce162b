"""A study and the folder of its search belong together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.errors import InputError


@pytest.fixture
def study(config_with: Callable[..., Any], open_study: Callable[..., Any]) -> Any:
    return open_study(config_with(sampler="random"))


def test_the_first_driver_ties_them_and_the_next_finds_them_tied(study: Any, tmp_path: Path) -> None:
    study.belong_to(tmp_path, "abc")
    study.ask()
    (tmp_path / "trials" / "0").mkdir(parents=True)
    study.belong_to(tmp_path, "abc")


def test_another_folder_is_refused(study: Any, tmp_path: Path) -> None:
    study.belong_to(tmp_path, "abc")
    with pytest.raises(InputError, match="belong to different searches"):
        study.belong_to(tmp_path / "elsewhere", "def")


def test_a_new_study_over_the_trials_of_another_is_refused(study: Any, tmp_path: Path) -> None:
    (tmp_path / "trials" / "0").mkdir(parents=True)
    with pytest.raises(InputError, match="--study-url"):
        study.belong_to(tmp_path, "abc")
