import json
import os
from pathlib import Path

import pytest
from command_line import called, without
from export.finished import finished_search

LOSSES = [{"name": "dpo", "beta": 0.2}, {"name": "discopop", "beta": 0.05}]


@pytest.fixture(scope="module")
def search(tmp_path_factory, toy_model):
    return finished_search(tmp_path_factory.mktemp("command"), toy_model, LOSSES, pruned=1)


def export(search, *argv):
    return called("export", *argv, folder=search.storage.parent, environment=without("RAY_ADDRESS"))


def test_the_best_trial_is_exported_into_its_search(search):
    done = export(search, "toy", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["trial"], document["kind"]) == (0, "adapter")
    folder = Path(document["folder"])
    assert folder == search.place.folder("toy") / "exports" / "trial-0"
    assert {*document["files"]} == {*os.listdir(folder)}
    assert {"README.md", "reproduce.py", "pairs.jsonl", "adapter_model.safetensors"} <= {*document["files"]}


def test_the_output_has_the_folder_and_the_command_to_repeat_it(search, tmp_path):
    done = export(search, "toy", "--trial", "0", "--out", str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    assert f"adapter in {tmp_path / 'mine'}" in done.stdout and f"{tmp_path / 'mine' / 'reproduce.py'}" in done.stdout


def test_a_trial_without_a_model_is_the_inputs_fault(search, tmp_path):
    done = export(search, "toy", "--trial", "1", "--out", str(tmp_path / "mine"))
    assert done.returncode == 2 and "exportable trials: 0" in done.stderr
    assert not (tmp_path / "mine").exists() and "Traceback" not in done.stderr


def test_nothing_is_left_of_an_export_that_could_not_be_written(search, tmp_path):
    (tmp_path / "taken").write_text("")
    done = export(search, "toy", "--out", str(tmp_path / "taken" / "below"))
    assert done.returncode != 0 and "Traceback" not in done.stderr and "taken" in done.stderr
    assert os.listdir(tmp_path) == ["taken"]
