"""What belongs to one decision is in the study at once or not at all."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from tune_dlrml.config import SearchConfig
from tune_dlrml.records import State, TrialOutcome
from tune_dlrml.study.database import one_transaction
from tune_dlrml.study.study import SearchStudy

Config = Callable[..., SearchConfig]
Open = Callable[..., SearchStudy]


def rows_of(path: Path, table: str) -> Any:
    return sqlite3.connect(path).execute(f"SELECT count(*) FROM {table}").fetchone()[0]


@pytest.mark.parametrize("dies_at", ["report", "should_prune", "set_user_attr"])
def test_a_value_at_a_rung_and_its_verdict_are_in_the_study_together_or_not_at_all(
    config_with: Config, open_study: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    config = config_with(num_trials=3, sampler="random")
    study = open_study(config)
    number = study.ask().number

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, dies_at, die)
        study.judge(number, 5, {"eval_accuracy": 0.7})
    assert rows_of(tmp_path / "study.db", "trial_intermediate_values") == 0
    successor = open_study(config)
    assert successor.interrupted() == [number] and successor.pruned_at(number) is None
    assert successor.judge(number, 5, {"eval_accuracy": 0.7}) == "continue"
    assert open_study(config).row(number).value == 0.7


def test_what_another_process_undid_within_a_transaction_is_no_silent_loss(
    config_with: Config, open_study: Open, tmp_path: Path
) -> None:
    study = open_study(config_with(num_trials=3, sampler="random"))
    number = study.ask().number
    before = rows_of(tmp_path / "study.db", "trial_user_attributes")
    with (
        pytest.raises(optuna.exceptions.StorageInternalError, match="another process wrote to the same trial"),
        one_transaction(study._backend),
    ):
        study.set_attribute(number, "a", 1)
        session = study._backend.scoped_session()
        session.execute(sqlalchemy.text("SELECT 1"))
        session.rollback()  # as Optuna does where two write the same row
    assert rows_of(tmp_path / "study.db", "trial_user_attributes") == before
    study.set_attribute(number, "a", 2)
    assert study.row(number).attrs["a"] == 2


def test_an_end_takes_one_commit_and_one_that_fails_leaves_the_trial_under_way(
    config_with: Config, open_study: Open
) -> None:
    study = open_study(config_with(num_trials=3, sampler="random"))
    number = study.ask().number
    outcome = TrialOutcome(number, State.FAILED, "out of paper", exception="trace")
    commits = []
    full = [True]

    def commit(connection: Any) -> None:
        if connection.connection.dbapi_connection.in_transaction:
            commits.append(1)
            if full[0]:
                raise sqlalchemy.exc.OperationalError("COMMIT", None, sqlite3.OperationalError("disk is full"))

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", commit)
    try:
        with pytest.raises(sqlalchemy.exc.OperationalError):
            study.finish(outcome, 3)
        full[0] = False
        failed = study.row(number)
        assert failed.state is State.RUNNING and failed.stop_reason == "" and failed.attrs == {}
        commits.clear()
        assert study.finish(outcome, 3).state is State.FAILED
        assert len(commits) == 1
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", commit)
    row = study.row(number)
    assert (row.state, row.stop_reason, row.steps, row.attrs["exception"]) == (State.FAILED, "out of paper", 3, "trace")
