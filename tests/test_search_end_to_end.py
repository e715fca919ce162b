"""One real search of the toy through the command line, looked at from every side."""

import json
import math
from pathlib import Path

import mlflow
import pytest
import toy
from command_line import called, ended, started, without

from faults.leftovers import check_nothing_is_left, short_folder
from tune_dlrml.config.yaml_text import as_yaml_text

pytestmark = pytest.mark.slow

EXPLODING = 1e25
"""A learning rate at which the toy's weights overflow float32 in the first step."""


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """Eight trials over all branches, one of them exploding, planted as a branch of its own."""
    folder = tmp_path_factory.mktemp("end_to_end")
    document = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 128),
        toy.write_pairs(folder / "eval.jsonl", 64, seed=1),
    )
    document["training"] |= {"max_steps": 8}
    document["search"] = {"sampler": "grid", "scheduler": {"grace_period": 2, "reduction_factor": 2}}
    document["space"] = {
        "losses": [
            {"name": "dpo", "beta": 0.3},
            {"name": "discopop", "beta": 0.05},
            {"name": "dlrml", "beta_kl": 0.05, "c": 4},
            {"name": "dlrml", "beta_kl": 0.05, "beta_mix": {"learnable": True, "init": 0.01, "learning_rate": 0.1}},
        ],
        "training": {"learning_rate": {"choice": [3e-3, EXPLODING]}},
    }
    (folder / "toy.yaml").write_text(as_yaml_text(document))
    temporary = short_folder()
    environment = without("RAY_ADDRESS") | {"TMPDIR": str(temporary)}
    process = started("search", "toy.yaml", "--json", folder=folder, environment=environment)
    done = ended(process, within_s=400)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder, json.loads(done.stdout), done.stderr, temporary


def afterwards(*argv, folder):
    """A command that starts nothing."""
    return called(*argv, folder=folder, environment=without("RAY_ADDRESS"))


def test_every_point_of_the_grid_and_the_baseline_became_a_trial(search):
    _, document, _, _ = search
    trials = document["trials"]
    assert [trial["number"] for trial in trials] == list(range(9))
    assert trials[0]["branch"] == "baseline"
    points = {(trial["branch"], trial["params"].get("learning_rate")) for trial in trials[1:]}
    branches = ("dpo", "discopop", "dlrml_c", "dlrml_learnable")
    assert points == {(branch, rate) for branch in branches for rate in (3e-3, EXPLODING)}


def test_an_exploding_trial_ends_as_diverged_and_harms_no_other(search):
    _, document, _, _ = search
    exploding = [t for t in document["trials"] if t["params"].get("learning_rate") == EXPLODING]
    sound = [t for t in document["trials"] if t["params"].get("learning_rate") != EXPLODING]
    assert {trial["state"] for trial in exploding} == {"diverged"}
    assert all("not finite" in trial["stop_reason"] for trial in exploding)
    assert all(trial["steps"] <= 3 for trial in exploding)  # two bad steps of the window of 20 are more than 5 %
    assert {trial["state"] for trial in sound} <= {"complete", "pruned"}


def test_no_number_anywhere_is_other_than_finite(search):
    folder, document, _, _ = search
    for trial in document["trials"]:
        assert all(math.isfinite(value) for value in trial["metrics"].values())
        for line in (folder / "runs/toy/trials" / str(trial["number"]) / "events.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} in an event log"))


def test_the_best_trial_is_a_complete_one_with_the_highest_accuracy(search):
    _, document, _, _ = search
    complete = {t["number"]: t["value"] for t in document["trials"] if t["state"] == "complete"}
    assert complete[document["best"]] == max(complete.values())


def test_pruned_trials_ended_at_a_rung_and_complete_ones_at_the_full_budget(search):
    _, document, _, _ = search
    for trial in document["trials"]:
        if trial["state"] == "pruned":
            assert trial["steps"] in (2, 4)
        if trial["state"] == "complete":
            assert trial["steps"] == 8


def test_mlflow_has_a_nested_run_of_the_same_metrics_for_every_trial(search):
    folder, document, _, _ = search
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("tune_dlrml")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = [run for run in runs.values() if "tune_dlrml.trial" not in run.data.tags]
    assert parent.data.tags["best_trial"] == str(document["best"])
    assert "search.yaml" in [artifact.path for artifact in client.list_artifacts(parent.info.run_id)]
    assert Path(parent.info.artifact_uri.removeprefix("file://")).is_relative_to(folder / "runs")
    for trial in document["trials"]:
        run = runs[trial["mlflow_run_id"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == trial["state"]
        assert run.data.tags["stop_reason"] == trial["stop_reason"]
        assert run.data.tags["version.trl"] == "1.16.0"
        assert run.data.params["loss"] == trial["params"]["loss"]
        accuracy = client.get_metric_history(run.info.run_id, "eval_accuracy")
        assert accuracy[0].step == 0 and accuracy[0].value == 0.5
        losses = client.get_metric_history(run.info.run_id, "train_loss")
        assert [point.step for point in losses] == sorted({point.step for point in losses})


def test_the_learned_beta_mix_is_in_every_report(search):
    folder, document, _, _ = search
    trial = next(t for t in document["trials"] if t["branch"] == "dlrml_learnable" and t["state"] != "diverged")
    lines = (folder / "runs/toy/trials" / str(trial["number"]) / "events.jsonl").read_text().splitlines()
    reports = [event for event in map(json.loads, lines) if event["kind"] == "report"]
    c = [report["metrics"]["c"] for report in reports]
    assert c[0] == pytest.approx(4) and c[-1] != pytest.approx(4)
    for report in reports:
        assert report["metrics"]["beta_mix"] == pytest.approx(report["metrics"]["c"] * 0.05 * 0.05)


def test_progress_is_shown_without_the_output_of_the_libraries(search):
    folder, _, stderr, _ = search
    assert "trial   0 baseline" in stderr
    for noise in ("TrainController", "raylet", "Warning", "pid="):
        assert noise not in stderr
    assert (folder / "runs/toy/search.log").exists()


def test_status_shows_the_same_as_the_search(search):
    folder, document, _, _ = search
    told = json.loads(afterwards("status", "toy", "--json", folder=folder).stdout)
    assert told | {"interrupted": False, "out_of_time": False} == document  # which only its driver knows
    assert 0 < told["spent_s"] < 400
    table = afterwards("status", "toy", folder=folder).stdout
    assert "diverged" in table and "mlflow ui" in table


def test_the_same_command_again_finds_nothing_to_do(search):
    folder, document, _, _ = search
    again = afterwards("search", "toy.yaml", "--json", folder=folder)
    assert again.returncode == 0
    assert json.loads(again.stdout)["trials"] == document["trials"]


def test_the_same_name_with_another_space_is_refused(search):
    folder, _, _, _ = search
    refused = afterwards("search", "toy.yaml", "--set", "training.max_length=48", folder=folder)
    assert refused.returncode == 2
    assert "training.max_length" in refused.stderr and "Traceback" not in refused.stderr


def test_no_process_and_no_temporary_file_is_left_over(search):
    check_nothing_is_left(search[3])
