from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_search
import optuna
import pytest

from tune_dlrml.config import SearchConfig
from tune_dlrml.study.history import open_storage
from tune_dlrml.study.proposer import proposer_of
from tune_dlrml.study.study import SearchStudy

FOUR_BRANCHES = [
    {"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}},
    {"name": "discopop", "beta": {"log_uniform": [0.01, 0.5]}},
    {"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 0.5]}, "c": {"log_uniform": [1, 9.1]}},
    {"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 0.5]}, "beta_mix": {"log_uniform": [0.05, 0.5]}},
]


def make_config(losses: list[dict[str, Any]] = FOUR_BRANCHES, **search: Any) -> SearchConfig:
    return made_search.make_config(losses, **{"num_trials": 20, "sampler": "tpe"} | search)


@pytest.fixture
def config_with() -> Callable[..., SearchConfig]:
    return make_config


class Memory(optuna.storages.InMemoryStorage):  # type: ignore[misc]
    """A storage without a database, for tests of what many trials add up to."""

    engine = SimpleNamespace(dispose=lambda: None)


@pytest.fixture
def open_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SearchStudy]]:
    """Opens studies in one SQLite file, so that opening twice is a driver that ended and its successor.

    With url="memory", each is a new one without a database.
    """
    opened: list[SearchStudy] = []
    monkeypatch.setattr(
        "tune_dlrml.study.study.open_storage", lambda url: Memory() if url == "memory" else open_storage(url)
    )

    def open_(config: SearchConfig, url: str = f"sqlite:///{tmp_path}/study.db", **options: Any) -> SearchStudy:
        study = SearchStudy(config, proposer_of(config), url, **{"full_steps": 40} | options)
        opened.append(study)
        return study

    yield open_
    for study in opened:
        study.close()
