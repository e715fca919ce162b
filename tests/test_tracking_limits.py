"""What MLflow bounds comes in as many calls as it takes, and what is cut says so."""

import json
import os
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.utils import validation
from test_tracking import outbox, report, runs_of, send, spec

from tune_dlrml.events import EventLog, parsed
from tune_dlrml.losses.dpo.config import DpoLoss
from tune_dlrml.records import State
from tune_dlrml.tracking.cursor import search_id
from tune_dlrml.tracking.mlflow.limits import (
    KEY_LENGTH,
    METRICS_A_CALL,
    PARAM_LENGTH,
    PARAMS_A_CALL,
    TAG_LENGTH,
    param_calls,
    short_key,
    short_text,
)
from tune_dlrml.tracking.mlflow.runs import MlflowRuns
from tune_dlrml.tracking.mlflow.store import MlflowStore


@pytest.fixture
def store(tmp_path: Path) -> MlflowStore:
    return MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", "searches", tmp_path / "artifacts")


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    (tmp_path / "toy").mkdir()
    return EventLog(tmp_path / "toy")


def test_the_limits_are_not_above_those_of_the_installed_mlflow() -> None:
    assert KEY_LENGTH <= validation.MAX_ENTITY_KEY_LENGTH
    assert PARAM_LENGTH <= validation.MAX_PARAM_VAL_LENGTH and TAG_LENGTH <= validation.MAX_TAG_VAL_LENGTH
    assert PARAMS_A_CALL <= validation.MAX_PARAMS_TAGS_PER_BATCH
    assert METRICS_A_CALL <= validation.MAX_METRICS_PER_BATCH


@pytest.mark.parametrize("limit", [100, 5000, 6000])
@pytest.mark.parametrize("character", ["x", "é", "語", "👩‍🚀"])
def test_a_text_is_whole_up_to_the_limit_and_marked_beyond(limit: int, character: str) -> None:
    whole = (character * limit)[:limit]
    assert short_text(whole, limit) == whole
    cut = short_text(whole + "y", limit)
    assert len(cut) == limit and cut.endswith(f"... [cut from {limit + 1} characters]")
    assert whole.startswith(cut.partition("... [cut")[0])


def test_long_keys_stay_different_legal_and_the_same_every_time() -> None:
    keys = [f"space.{'k' * length}.{tail}" for length in (10, 242, 243, 244, 500, 5000) for tail in ("a", "b")]
    short = [short_key(key) for key in keys]
    assert len({*short}) == len(keys) and max(map(len, short)) == KEY_LENGTH
    assert short[:2] == keys[:2] and short == [short_key(key) for key in keys]
    for key in short:
        validation._validate_param_name(key)


@pytest.mark.parametrize("count", [0, 1, 100, 101, 350])
def test_params_come_in_calls_of_as_many_as_one_takes(count: int) -> None:
    calls = [*param_calls({f"k{index}": index for index in range(count)})]
    assert [key for call in calls for key in call] == [f"k{index}" for index in range(count)]
    assert all(0 < len(call) <= PARAMS_A_CALL for call in calls)


def test_a_search_of_many_and_long_settings_is_described_whole_and_again_without_a_conflict(
    events: EventLog,
    store: MlflowStore,
) -> None:
    params = {f"params.p{index}": index for index in range(250)} | {
        "model": "/" + "long_folder/" * 1000,
        "x" * 400: "key",
        "NUL": "a\0b",
    }
    for _ in range(2):  # a resumed search describes itself again, and params are immutable
        runs = MlflowRuns(store, "toy", search_id(events.folder), {"note": "n" * 9000})
        parent = runs.open(None)
        runs.describe(parent, "name: toy\n", params)
    found = MlflowClient(tracking_uri=store.uri).get_run(parent)
    assert len(found.data.params) == len(params)
    assert found.data.params["params.p249"] == "249" and found.data.params[short_key("x" * 400)] == "key"
    assert found.data.params["model"].endswith("... [cut from 12001 characters]")
    assert found.data.params["NUL"] == "ab"
    assert found.data.tags["note"].endswith("[cut from 9000 characters]")


def test_a_trial_of_long_names_is_in_mlflow_whole(events: EventLog, store: MlflowStore) -> None:
    name = "params." + "n" * 300
    own = spec(0).model_copy(
        update={
            "branch": "b" * 6000,
            "loss": DpoLoss(name="dpo", beta=0.1),
            "params": {f"b.p{index}": index for index in range(150)} | {"b." + "k" * 300: 1},
        }
    )
    events.start(own)
    events.report(report(0, 1, **{name: 0.25}))
    events.end(0, State.FAILED, "r" * 7000)
    box = send(events, store)
    assert box.refused == 0
    (run,) = runs_of(store)["0"]
    assert run.data.metrics == {short_key(name): 0.25}
    assert len(run.data.params) == len(own.training.flat() | own.settings())
    assert run.data.tags["stop_reason"].endswith("[cut from 7000 characters]")
    assert run.data.tags["branch"].endswith("[cut from 6000 characters]")


BAD = ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "a\0b", "../../other/events.jsonl", 3, None, ["x"]]


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_a_judgement_that_names_a_file_outside_its_folder_is_no_event(name: object) -> None:
    event = {"kind": "judged", "timestamp_ms": 1, "step": 4, "metrics": {}, "artifacts": ["good.json"]}
    assert parsed(json.dumps(event).encode()) == event
    assert parsed(json.dumps(event | {"artifacts": ["good.json", name]}).encode()) is None


def test_what_lies_outside_a_trial_s_folder_never_becomes_an_artifact(
    events: EventLog,
    store: MlflowStore,
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "s3cret"}')
    events.start(spec(0))
    events.end(0, State.COMPLETE, "done")
    folder = events.path(0).parent
    (folder / "own.json").write_text("{}")
    os.symlink(secret, folder / "link.json")
    events.judged(0, 4, {"mt_bench": 7.0}, ["own.json", "link.json"])
    events.judged(0, 4, {"mt_bench": 7.5}, ["../../../secret.json"])  # as a file that somebody else wrote to has it
    box = outbox(events, store)
    box.open()
    box.deliver(0)
    assert box.refused == 2
    (run,) = runs_of(store)["0"]
    paths = [found.path for found in MlflowClient(tracking_uri=store.uri).list_artifacts(run.info.run_id)]
    assert paths == ["own.json"] and run.data.metrics == {"mt_bench": 7.0}
    assert not [
        file for file in (tmp_path / "artifacts").rglob("*") if file.is_file() and b"s3cret" in file.read_bytes()
    ]
